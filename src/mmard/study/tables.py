"""The tables of a study, by the way in which it is read (`Study.reads`).

plug-and-play   hosts x variants: robust accuracy, gain over the host, clean accuracy, time
boundary        how near training examples come to the boundaries of teacher and student
ablation        the points of sweeps beside the default and beside the host
saturation      students by teacher, and the slope of student over teacher
benchmark       all methods, best and last weights, sorted; accuracy for time
trade-off       who is more robust at the same clean accuracy
sensitivity     what a hyperparameter costs that is off by a factor
networks        teachers and students with their weights, under each attack
"""

from __future__ import annotations

from collections.abc import Callable

from mmard.study.drawing import Plot
from mmard.study.grid import Reads
from mmard.study.hosts import (
    ablation_plots,
    ablation_tables,
    boundary_plots,
    boundary_tables,
    plug_and_play_plots,
    plug_and_play_tables,
    saturation_plots,
    saturation_tables,
)
from mmard.study.methods import (
    benchmark_plots,
    benchmark_tables,
    networks_plots,
    networks_tables,
    sensitivity_plots,
    sensitivity_tables,
    trade_off_plots,
    trade_off_tables,
)
from mmard.study.reading import Reading
from mmard.study.sheets import Sheet

READERS: dict[Reads, Callable[[Reading], list[Sheet]]] = {
    "plug-and-play": plug_and_play_tables,
    "boundary": boundary_tables,
    "ablation": ablation_tables,
    "saturation": saturation_tables,
    "benchmark": benchmark_tables,
    "trade-off": trade_off_tables,
    "sensitivity": sensitivity_tables,
    "networks": networks_tables,
}


def tables(reading: Reading) -> list[Sheet]:
    """The tables of a study."""
    return READERS[reading.grid.study.reads](reading)


# charts ---------------------------------------------------------------------------------------------------------------
# The plots of a study as SVG files of their own, by the way in which it is read (`Study.reads`).


DRAWERS: dict[Reads, Callable[[Reading], list[Plot]]] = {
    "plug-and-play": plug_and_play_plots,
    "boundary": boundary_plots,
    "ablation": ablation_plots,
    "saturation": saturation_plots,
    "benchmark": benchmark_plots,
    "trade-off": trade_off_plots,
    "sensitivity": sensitivity_plots,
    "networks": networks_plots,
}


def charts(reading: Reading) -> list[Plot]:
    """The plots of a study; none where there is no record. Nothing is drawn yet."""
    return DRAWERS[reading.grid.study.reads](reading) if reading.any else []
