"""The tables and plots of a study by the way in which it is read (`Study.reads`), and its tables in every form.

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

import json
from collections.abc import Callable
from typing import Any

from mmard.study import hosts, methods, trends
from mmard.study.drawing import Plot
from mmard.study.figures import foot
from mmard.study.grid import Reads, Row
from mmard.study.reading import CLEAN, ROBUST, SECONDS, Reading, missing_rows
from mmard.tables.table import Table, latex, markdown

VIEWS: dict[Reads, tuple[Callable[[Reading], list[Table]], Callable[[Reading], list[Plot]]]] = {
    "plug-and-play": (hosts.plug_and_play_tables, hosts.plug_and_play_plots),
    "boundary": (hosts.boundary_tables, hosts.boundary_plots),
    "ablation": (hosts.ablation_tables, hosts.ablation_plots),
    "saturation": (trends.saturation_tables, trends.saturation_plots),
    "benchmark": (methods.benchmark_tables, methods.benchmark_plots),
    "trade-off": (trends.trade_off_tables, trends.trade_off_plots),
    "sensitivity": (methods.sensitivity_tables, methods.sensitivity_plots),
    "networks": (methods.networks_tables, methods.networks_plots),
}


def tables(reading: Reading) -> list[Table]:
    """The tables of a study."""
    return VIEWS[reading.grid.study.reads][0](reading)


def charts(reading: Reading) -> list[Plot]:
    """The plots of a study; none where there is no record. Nothing is drawn yet."""
    return VIEWS[reading.grid.study.reads][1](reading) if reading.any else []


def written(reading: Reading, form: str) -> str:
    """The tables of a study as "markdown" or "latex"; all of its rows, unrounded, as "csv" or "json"."""
    if form == "csv":
        return Table.of_records(row_records(reading)).csv()
    if form == "json":
        return json.dumps(row_records(reading), indent=2, ensure_ascii=False)
    below = " ".join([foot(reading), *(f"Missing: {row}." for row in missing_rows(reading))])
    if form == "markdown":
        return markdown(tables(reading), below)
    return latex(tables(reading), below, name=reading.grid.study.name)


def row_records(reading: Reading) -> list[dict[str, Any]]:
    """Every row of the study with its figures, unrounded: what CSV and JSON hold."""
    return [_line(reading, row) for row in reading.grid.rows]


def _line(reading: Reading, row: Row) -> dict[str, Any]:
    made: dict[str, Any] = {
        "scale": reading.grid.scale.name,
        "study": reading.grid.study.name,
        "host": row.host,
        "variant": row.variant,
        "student": row.student,
        "teacher": row.teacher,
        "teacher_robust": reading.teacher_robust(row),
        "axis": row.axis,
        "value": row.value,
        "which": reading.which,
        "seeds": sorted(reading.recorded(row)),
        "seeds_declared": len(row.cells),
    }
    reference = reading.reference(row)
    made["held_beside"] = None if reference is None else reference.variant
    for name, quantity in (("clean", CLEAN), ("robust", ROBUST), ("train_seconds", SECONDS)):
        found = reading.mean(row, quantity)
        gap = reading.gain(row, reference, quantity)
        low, high = (None, None) if found is None or found.interval is None else found.interval
        made |= {
            name: None if found is None else found.mean,
            f"{name}_deviation": None if found is None else found.deviation,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_difference": None if gap is None else gap.mean,
            f"{name}_difference_over_seeds": None if gap is None else gap.over_seeds,
            f"{name}_difference_over_images": None if gap is None else gap.over_images,
        }
    return made
