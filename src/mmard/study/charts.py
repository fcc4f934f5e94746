"""The plots of a study as SVG files of their own, by the way in which it is read (`Study.reads`)."""

from __future__ import annotations

from collections.abc import Callable

from mmard.errors import unknown
from mmard.study.charts_of_hosts import ablation, boundary, plug_and_play, saturation
from mmard.study.charts_of_methods import benchmark, sensitivity
from mmard.study.drawn import Plot
from mmard.study.summary import Reading

DRAWERS: dict[str, Callable[[Reading], list[Plot]]] = {
    "plug-and-play": plug_and_play,
    "boundary": boundary,
    "ablation": ablation,
    "saturation": saturation,
    "benchmark": benchmark,
    "sensitivity": sensitivity,
}


def charts(reading: Reading) -> list[Plot]:
    """The plots of a study; none where there is no record. Nothing is drawn yet.

    Raises:
        Refused: for a study that is read in a way that is not known here.
    """
    reads = reading.grid.study.reads
    if reads not in DRAWERS:
        raise unknown(f"`reads` of study {reading.grid.study.name}", reads, DRAWERS)
    return DRAWERS[reads](reading) if reading.any else []
