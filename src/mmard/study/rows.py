"""The rows of a grid by host, variant and axis, as tables, plots and claims go through them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmard.evaluation.spread import Difference, difference
from mmard.study.grid import Row
from mmard.study.summary import Quantity, Reading


class Host(NamedTuple):
    """What rows share that are held beside each other."""

    host: str
    student: str
    teacher: str


class Point(NamedTuple):
    """A value along an axis, as text, with its row."""

    value: str
    row: Row
    default: bool


def hosts_of(reading: Reading) -> list[Host]:
    """In the order of the rows."""
    return list(dict.fromkeys(Host(row.host, row.student, row.teacher) for row in reading.grid.rows))


def variants_of(reading: Reading) -> list[str]:
    """Names of the variants that are no points of sweeps; the first is what the others are held beside."""
    return list(dict.fromkeys(row.variant for row in reading.grid.rows if not row.axis))


def rows_of(reading: Reading, key: Host) -> list[Row]:
    """All rows of a host, points of sweeps among them."""
    return [row for row in reading.grid.rows if (row.host, row.student, row.teacher) == key]


def row_of(reading: Reading, key: Host, variant: str) -> Row | None:
    """The row of a host in a variant."""
    return next((row for row in rows_of(reading, key) if row.variant == variant), None)


def host_name(reading: Reading, key: Host) -> str:
    """A host, with its student and teacher where the study has several."""
    several = len({row.student for row in reading.grid.rows}) > 1
    teachers = len({row.teacher for row in reading.grid.rows if row.teacher}) > 1
    parts = [key.host, key.student if several else "", f"from {key.teacher}" if teachers and key.teacher else ""]
    return ", ".join(filter(None, parts))


def row_name(reading: Reading, row: Row) -> str:
    """A row in words, as short as the study allows: where hosts differ in their variants, the first goes unsaid."""
    name = host_name(reading, Host(row.host, row.student, row.teacher))
    variants: dict[str, set[str]] = {}
    for each in reading.grid.rows:
        variants.setdefault(each.host, set()).add(each.variant)
    differ = len({frozenset(own) for own in variants.values()}) > 1
    unsaid = row.variant == variants_of(reading)[0] if differ else len(variants[row.host]) == 1
    return name if unsaid else f"{name} {row.variant}"


def axes_of(reading: Reading, key: Host) -> dict[str, list[Point]]:
    """The axes of a host's sweeps with their points in order, the default among them."""
    found = {}
    own = [row for row in rows_of(reading, key) if row.axis]
    for axis in dict.fromkeys(row.axis for row in own):
        rows = [row for row in own if row.axis == axis]
        points: list[tuple[object, Row, bool]] = [(row.value, row, False) for row in rows]
        resting = reading.reference(rows[0])
        at = None if resting is None else reading.value(resting, axis)
        if resting is not None and at is not None:
            points.append((at, resting, True))
        if all(isinstance(value, int | float) for value, _, _ in points):
            points.sort(key=lambda point: float(point[0]))  # type: ignore[arg-type]
        found[axis] = [Point(short(value), row, default) for value, row, default in points]
    return found


def valued(reading: Reading, row: Row) -> str:
    """A row of a host that has sweeps, with its value along each of their axes, the default's too."""
    key = Host(row.host, row.student, row.teacher)
    values = [f"{axis} {short(reading.value(row, axis))}" for axis in axes_of(reading, key)]
    return " ".join([host_name(reading, key), *values])


def short(value: object) -> str:
    """A parameter's value in few letters.

    >>> short(0.30000001), short(True), short("nce")
    ('0.3', 'yes', 'nce')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float | int) else str(value)


def pooled(reading: Reading, pairs: Sequence[tuple[Row, Row | None]], quantity: Quantity) -> Difference | None:
    """The mean of what rows gain over others, paired by the seeds that all of them have.

    None where a pair has no figure: an average over fewer hosts would be another one.
    """
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row, other in pairs:
        if other is None:
            return None
        sides[0].append(row)
        sides[1].append(other)
    means = [[reading.mean(row, quantity) for row in side] for side in sides]
    known = [[mean for mean in side if mean is not None] for side in means]
    if not pairs or known != means:
        return None
    seeds = set.intersection(*(set(mean.by_seed) for side in known for mean in side))
    if not seeds:
        return None
    values = [{s: statistics.fmean(mean.by_seed[s] for mean in side) for s in sorted(seeds)} for side in known]
    masks = [_mean_masks(reading, side, seeds, quantity) for side in sides]
    return difference(values[0], values[1], masks[0], masks[1])


def _mean_masks(reading: Reading, rows: Sequence[Row], seeds: set[int], quantity: Quantity) -> dict[int, Any]:
    """By seed, the share of the rows' networks that read an image rightly, (n,); none where one has no verdicts."""
    masks = [reading.masks(row, quantity) for row in rows]
    if not all(seeds <= own.keys() for own in masks):
        return {}
    return {seed: np.mean([own[seed] for own in masks], axis=0) for seed in seeds}


def gaps(reading: Reading) -> list[str]:
    """What is missing, a line for each row."""
    found = []
    for row, seeds in reading.missing():
        if len(seeds) == len(row.cells):
            found.append(f"{row_name(reading, row)}: no record")
        else:
            word = "seed" if len(seeds) == 1 else "seeds"
            found.append(f"{row_name(reading, row)}: no record of {word} {', '.join(map(str, seeds))}")
    return found


def times_as_long(reading: Reading, row: Row, other: Row | None, quantity: Quantity) -> float | None:
    """A row's median time over that of another."""
    ours = reading.mean(row, quantity)
    theirs = None if other is None else reading.mean(other, quantity)
    return None if ours is None or theirs is None else ours.median / theirs.median
