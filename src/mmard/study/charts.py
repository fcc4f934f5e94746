"""The plots of a study as SVG files of their own, by the way in which it is read (`Study.reads`)."""

from __future__ import annotations

from collections.abc import Callable

from mmard.study.charts_of_hosts import ablation, boundary, plug_and_play, saturation
from mmard.study.charts_of_methods import benchmark, sensitivity
from mmard.study.charts_of_trade import trade_off
from mmard.study.declared import Reads
from mmard.study.drawn import Plot
from mmard.study.summary import Reading

DRAWERS: dict[Reads, Callable[[Reading], list[Plot]]] = {
    "plug-and-play": plug_and_play,
    "boundary": boundary,
    "ablation": ablation,
    "saturation": saturation,
    "benchmark": benchmark,
    "trade-off": trade_off,
    "sensitivity": sensitivity,
}


def charts(reading: Reading) -> list[Plot]:
    """The plots of a study; none where there is no record. Nothing is drawn yet."""
    return DRAWERS[reading.grid.study.reads](reading) if reading.any else []
