"""The tables of a study, by the way in which it is read (`Study.reads`).

plug-and-play   hosts x variants: robust accuracy, gain over the host, clean accuracy, time
boundary        how near training examples come to the boundaries of teacher and student
ablation        the points of sweeps beside the default and beside the host
saturation      students by teacher, and the slope of student over teacher
benchmark       all methods, best and last weights, sorted; accuracy for time
trade-off       who is more robust at the same clean accuracy
sensitivity     what a hyperparameter costs that is off by a factor
"""

from __future__ import annotations

from collections.abc import Callable

from mmard.study.declared import Reads
from mmard.study.sheets import Sheet
from mmard.study.summary import Reading
from mmard.study.tables_of_hosts import ablation, boundary, plug_and_play, saturation
from mmard.study.tables_of_methods import benchmark, sensitivity, trade_off

READERS: dict[Reads, Callable[[Reading], list[Sheet]]] = {
    "plug-and-play": plug_and_play,
    "boundary": boundary,
    "ablation": ablation,
    "saturation": saturation,
    "benchmark": benchmark,
    "trade-off": trade_off,
    "sensitivity": sensitivity,
}


def tables(reading: Reading) -> list[Sheet]:
    """The tables of a study."""
    return READERS[reading.grid.study.reads](reading)
