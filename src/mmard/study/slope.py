"""How a student follows its teacher: a line by least squares through (teacher's accuracy, student's accuracy)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mmard.evaluation.spread import Difference, t_95
from mmard.study.grid import Row
from mmard.study.summary import CLEAN, ROBUST, Mean, Reading

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


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope | None:
    """The line of least squares; None where all points have one x.

    >>> found = slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
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
class Taught:
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


def taught(reading: Reading, host: str, student: str) -> list[Taught]:
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
            Taught(
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


def trend(teachers: Sequence[Taught], variant: str, minus: str = "") -> Trend | None:
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
    cells, whole = slope(xs, ys) if xs else None, slope(middles, means) if middles else None
    return None if cells is None or whole is None else Trend(cells, whole)
