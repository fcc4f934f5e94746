"""Lines through the rows of a study: students along their teachers, and methods along their own weights.

by_teacher(reading, host, student)     the teachers of a study, each with the accuracy of its students
trend(teachers, variant)               the line of least squares through (teacher's, student's) robust accuracy
trade_off_lines(reading)               host -> its rows by rising clean accuracy
above_line(reading, row, line)         robust accuracy minus that of a line at the same clean accuracy
without_plugin(reading, row)           the same row of the host without its plug-in
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from mmard.evaluation.score import Mask
from mmard.study.grid import Row
from mmard.study.reading import CLEAN, ROBUST, Host, Mean, Quantity, Reading, hosts_of, rows_of
from mmard.tables.statistics import Difference, difference, t_95

WEAK = 0.5
"""A teacher with less than this share of the best teacher's robust accuracy is no robust one."""


@dataclass(frozen=True)
class Slope:
    """A line through points.

    Attributes:
        slope: student's accuracy for one of the teacher's.
        intercept: the line's value at 0.
        half: half of the slope's 95 % interval, by Student's t with n - 2 degrees of freedom; None for two points.
        n: points.
    """

    slope: float
    intercept: float
    half: float | None
    n: int

    def at(self, x: float) -> float:
        """The line's value."""
        return self.intercept + self.slope * x


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> Slope | None:
    """The line of least squares; None where all points have one x.

    >>> found = fit_line([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    >>> found.slope, found.intercept, found.half
    (2.0, 1.0, 0.0)
    """
    assert len(xs) == len(ys), "a point has two numbers"
    if len(set(xs)) < 2:
        return None
    middle, level = statistics.fmean(xs), statistics.fmean(ys)
    width = sum((x - middle) ** 2 for x in xs)
    steep = sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / width
    start = level - steep * middle
    if len(xs) == 2:
        return Slope(steep, start, None, 2)
    rest = sum((y - start - steep * x) ** 2 for x, y in zip(xs, ys, strict=True))
    degrees = len(xs) - 2
    return Slope(steep, start, t_95(degrees) * math.sqrt(rest / degrees / width), len(xs))


@dataclass(frozen=True)
class TeacherResult:
    """One teacher and what became of its students.

    Attributes:
        role: of the teacher at the scale, and its title there.
        robust, clean: its own accuracy; None where its record is missing.
        apart: whether it is left out of lines: not robust, or named so by the study.
        students: robust accuracy by variant; variants without a record are absent.
        clean_students: clean accuracy likewise.
        gains: each variant minus the first, by variant.
    """

    role: str
    title: str
    robust: float | None
    clean: float | None
    apart: bool
    students: dict[str, Mean]
    clean_students: dict[str, Mean]
    gains: dict[str, Difference]


def by_teacher(reading: Reading, host: str, student: str) -> list[TeacherResult]:
    """The teachers of a study that differ in robust accuracy, the weakest first, for one host and student."""
    by_role: dict[str, list[Row]] = {}
    for row in reading.grid.rows:
        if (row.host, row.student) == (host, student) and row.teacher and not row.axis:
            by_role.setdefault(row.teacher, []).append(row)
    own = {role: reading.teacher_robust(rows[0]) for role, rows in by_role.items()}
    best = max((value for value in own.values() if value is not None), default=0.0)
    found = []
    for role, rows in by_role.items():
        robust = own[role]
        weak = robust is not None and robust < WEAK * best
        found.append(
            TeacherResult(
                role=role,
                title=str(reading.grid.scale.teachers[role].get("title", role)),
                robust=robust,
                clean=reading.teacher_robust(rows[0], CLEAN),
                apart=weak or role in reading.grid.study.apart,
                students={r.variant: m for r in rows if (m := reading.mean(r, ROBUST)) is not None},
                clean_students={r.variant: m for r in rows if (m := reading.mean(r, CLEAN)) is not None},
                gains={r.variant: g for r in rows if (g := reading.gain(r, reading.reference(r), ROBUST)) is not None},
            )
        )
    return sorted(found, key=lambda t: (t.robust is None, t.robust or 0.0))


@dataclass(frozen=True)
class Trend:
    """A line through robust teachers, with two intervals of its slope.

    Attributes:
        cells: through one point for each teacher and seed. Its interval takes networks that share a teacher for
            independent of each other, and is too narrow for a statement about other teachers.
        teachers: through one point for each teacher, the mean over seeds: two degrees of freedom fewer than teachers.
    """

    cells: Slope
    teachers: Slope


def trend(teachers: Sequence[TeacherResult], variant: str, minus: str = "") -> Trend | None:
    """The line of one variant, or of its difference from another seed by seed; None for fewer than two teachers."""
    xs, ys, middles, means = [], [], [], []
    for each in teachers:
        mean, other = each.students.get(variant), each.students.get(minus)
        if each.apart or each.robust is None or mean is None or (minus and other is None):
            continue
        below = other.by_seed if other is not None and minus else dict.fromkeys(mean.by_seed, 0.0)
        values = [mean.by_seed[seed] - below[seed] for seed in sorted(mean.by_seed) if seed in below]
        if values:
            xs += [each.robust] * len(values)
            ys += values
            middles.append(each.robust)
            means.append(statistics.fmean(values))
    cells, whole = fit_line(xs, ys) if xs else None, fit_line(middles, means) if middles else None
    return None if cells is None or whole is None else Trend(cells, whole)


# robust accuracy at the same clean accuracy --------------------------------------------------------------------------
def without_plugin(reading: Reading, row: Row) -> Row | None:
    """The same row of the host without its last plug-in; None where the study has none."""
    host, plus, _ = row.host.rpartition("+")
    alike = (host, row.student, row.variant, row.axis, row.value)
    own = (r for r in reading.grid.rows if (r.host, r.student, r.variant, r.axis, r.value) == alike)
    return next((r for r in own if plus and r.teacher in (row.teacher, "")), None)


class Accuracies(NamedTuple):
    """Where one network stands: its accuracies, and which images it reads rightly, clean and attacked."""

    clean: float
    robust: float
    masks: tuple[Any, Any] | None


def trade_off_lines(reading: Reading) -> dict[Host, list[Row]]:
    """Methods with several rows that have records, by rising clean accuracy on average."""
    found = {}
    for key in hosts_of(reading):
        own = rows_of(reading, key)
        level = {row: mean.mean for row in own if (mean := reading.mean(row, CLEAN)) is not None}
        if len(level) > 1:
            found[key] = sorted(level, key=lambda row: level[row])
    return found


def above_line(reading: Reading, row: Row, line: Sequence[Row]) -> Difference | None:
    """A row's robust accuracy minus that of a line where the line's clean accuracy is the row's, paired by seed.

    The line is straight between its rows, and beyond its ends as at the nearer one. The interval over images holds
    both accuracies of all networks to vary with the images. None where no seed has all, and for a row of the line.
    """
    if row in line:
        return None
    ours = _accuracies(reading, row)
    theirs = [_accuracies(reading, each) for each in line]
    seeds = ours.keys() & set.intersection(*(set(each) for each in theirs))
    if not seeds:
        return None
    beside = {
        seed: _at_clean(sorted((each[seed] for each in theirs), key=_ordered), ours[seed]) for seed in sorted(seeds)
    }
    masks = {seed: mask for seed, (_, mask) in beside.items() if mask is not None}
    mine = {seed: ours[seed].robust for seed in beside}
    return difference(mine, {seed: value for seed, (value, _) in beside.items()}, reading.masks(row, ROBUST), masks)


def _accuracies(reading: Reading, row: Row) -> dict[int, Accuracies]:
    """By seed."""
    of = {quantity: reading.mean(row, quantity) for quantity in (CLEAN, ROBUST)}
    clean, robust = of[CLEAN], of[ROBUST]
    if clean is None or robust is None:
        return {}
    rights: dict[Quantity, dict[int, Mask]] = {quantity: reading.masks(row, quantity) for quantity in of}
    known = rights[CLEAN].keys() & rights[ROBUST].keys()
    return {
        seed: Accuracies(
            clean.by_seed[seed],
            robust.by_seed[seed],
            (rights[CLEAN][seed].astype(float), rights[ROBUST][seed].astype(float)) if seed in known else None,
        )
        for seed in clean.by_seed.keys() & robust.by_seed.keys()
    }


def _ordered(at: Accuracies) -> tuple[float, float]:
    return at.clean, at.robust


def _at_clean(line: Sequence[Accuracies], at: Accuracies) -> tuple[float, Any]:
    """The line's robust accuracy at a clean accuracy, and per image what its mean varies by: to first order."""
    end = line[0] if at.clean <= line[0].clean else line[-1]
    between = ((a, b) for a, b in pairwise(line) if a.clean <= at.clean <= b.clean and a.clean < b.clean)
    a, b = next(between, (end, end))
    if a is b:
        return a.robust, None if a.masks is None else a.masks[1]
    w, slope = (at.clean - a.clean) / (b.clean - a.clean), (b.robust - a.robust) / (b.clean - a.clean)
    value = a.robust + slope * (at.clean - a.clean)
    if a.masks is None or b.masks is None or at.masks is None:
        return value, None
    # d value = (1 - w) dR_a + w dR_b + slope (dC - (1 - w) dC_a - w dC_b)
    clean = at.masks[0] - (1 - w) * a.masks[0] - w * b.masks[0]
    return value, (1 - w) * a.masks[1] + w * b.masks[1] + slope * clean
