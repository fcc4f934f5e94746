"""What records say of a study's rows: means over seeds, and differences that are paired by seed.

    reading = Reading(grid, records)                    records by the name of their cell; those that lack are missing
    reading.mean(row, ROBUST)                           mean, deviation and interval over the seeds that there are
    reading.gain(row, reading.reference(row), ROBUST)   the row minus the one that it is held beside

The statistics are those of `mmard.tables.statistics`. Nothing is filled in: a row without records has no mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmard.evaluation.score import Mask, wilson
from mmard.settings import Value
from mmard.study.grid import Cell, Grid, Row
from mmard.study.records import Record, unpacked
from mmard.tables.statistics import Difference, deviation, difference, mean_interval

WHICH = ("best", "last")


@dataclass(frozen=True)
class Quantity:
    """Something that every record has a number of.

    Attributes:
        title: as a table's head says it, with its unit.
        take: the number of a record with its best or last weights; None where it has none.
        times: what the number is multiplied with to be shown: 100 for a share.
        digits: behind the point when shown.
        figure: the key of the figure whose verdicts on images can be paired; "" for none.
        unit: of a difference as it is shown.
    """

    title: str
    take: Callable[[Record, str], float | None]
    times: float = 1.0
    digits: int = 1
    figure: str = ""
    unit: str = "points"


def accuracy(key: str, title: str) -> Quantity:
    """The accuracy under an attack, or "clean", or "robust": the least of all attacks together."""

    def take(record: Record, which: str) -> float | None:
        found = record["figures"].get(which, {}).get(key)
        return None if found is None else float(found["accuracy"])

    return Quantity(title, take, 100.0, 1, key)


def _train_seconds(record: Record, which: str) -> float | None:
    # A clock on the wall says little of a CPU that does other work too.
    found = record["seconds"].get("train_cpu" if record["device"] == "cpu" else "train")
    return None if found is None else float(found)


ROBUST = accuracy("robust", "robust %")
CLEAN = accuracy("clean", "clean %")
SECONDS = Quantity("training s", _train_seconds, 1.0, 0, unit="s")
"""Of the CPU where a run was trained there, in one sitting; on a GPU by the clock."""


INPUTS = {
    "own": "training examples, attacked as in the run's own training",
    "test": "attacked test images",
}
"""Which inputs, and in words."""
NEARNESS = {
    "margin": ("mean_margin", "margin", "nats"),
    "misread": ("wrong", "misread %", "points"),
    "entropy": ("entropy", "entropy", "nats"),
    "distance": ("distance_first_order", "distance", "radii"),
    "nearest": ("distance_minimal", "nearest", "radii"),
}
"""Numbers on inputs beside a decision boundary: key in the record, title, unit. The margin is the log-probability of
the true class minus the largest other; the distance is that to the boundary if the margin were linear, `nearest` that
to the nearest point with another prediction that an attack of least norm finds."""


def nearness(name: str, state: str = "own") -> Quantity:
    """A number of `NEARNESS`, e.g. "teacher margin", on inputs of this kind."""
    whose, what = name.split()
    key, title, unit = NEARNESS[what]

    def take(record: Record, which: str) -> float | None:
        found = ((record.get("boundary") or {}).get(state) or {}).get(whose, {}).get(key)
        radius = float(record["settings"]["eps"]) if unit == "radii" else 1.0
        return None if found is None else float(found) / radius

    times, digits = (100.0, 1) if unit == "points" else (1.0, 2)
    return Quantity(f"{whose}: {title}", take, times, digits, unit=unit)


def boundary_quantities(state: str) -> tuple[Quantity, ...]:
    """What a table of boundaries shows, the teacher's first."""
    shown = ("margin", "misread", "entropy", "distance")
    return tuple(nearness(f"{whose} {what}", state) for whose in ("teacher", "student") for what in shown)


@dataclass(frozen=True)
class Mean:
    """A quantity over the seeds of a row.

    Attributes:
        by_seed: the numbers.
        of: how many seeds the row is declared with.
        images: of a single figure, (images read rightly, images), for its interval.
        suspicious: slugs of the suspicion checks that these weights raised; see docs/checks.md.
    """

    by_seed: Mapping[int, float]
    of: int
    images: tuple[int, int] | None = None
    suspicious: tuple[str, ...] = ()

    @property
    def values(self) -> list[float]:
        """By seed, in order."""
        return [self.by_seed[seed] for seed in sorted(self.by_seed)]

    @property
    def n(self) -> int:
        """Seeds behind it."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def median(self) -> float:
        """Over seeds."""
        return statistics.median(self.values)

    @property
    def deviation(self) -> float | None:
        """Over seeds, n - 1 in the denominator; None for one."""
        return deviation(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %: by Student's t over seeds; of one seed's accuracy by Wilson over images; None where it is unknown."""
        if self.n > 1:
            return mean_interval(self.values)
        return None if self.images is None else wilson(*self.images)


def mean_of(records: Mapping[int, Record], quantity: Quantity, which: str, seeds: int) -> Mean | None:
    """A quantity over records by seed, of so many seeds that there should be; None where no record has it."""
    found = {seed: value for seed, record in records.items() if (value := quantity.take(record, which)) is not None}
    if not found:
        return None
    images = None
    if quantity.figure and len(found) == 1:
        figure = records[next(iter(found))]["figures"][which][quantity.figure]
        images = (int(figure["correct"]), int(figure["n"]))
    raised = (mark for r in records.values() for mark in (r.get("suspicious") or {}).get(which, ()))
    suspicious = tuple(dict.fromkeys(raised)) if quantity.figure and quantity.figure != "clean" else ()
    return Mean(found, seeds, images, suspicious)


@dataclass(frozen=True)
class Reading:
    """A grid and the records of its cells.

    Attributes:
        grid: the study at a scale.
        records: by the name of the cell; others than the grid's do not matter.
        which: the weights that are spoken of.
    """

    grid: Grid
    records: Mapping[str, Record]
    which: str = "best"

    def cell(self, row: Row) -> Cell:
        """The first cell of a row, whose settings are those of all but for the seed."""
        return self.grid.cells[row.cells[0]]

    def recorded(self, row: Row) -> dict[int, Record]:
        """Records of a row by seed, as far as there are any."""
        found = {self.grid.cells[name].seed: self.records.get(name) for name in row.cells}
        return {seed: record for seed, record in found.items() if record is not None}

    def mean(self, row: Row, quantity: Quantity) -> Mean | None:
        """A quantity over the seeds that there are; None where there is none."""
        return mean_of(self.recorded(row), quantity, self.which, len(row.cells))

    def gain(self, row: Row, other: Row | None, quantity: Quantity) -> Difference | None:
        """The row minus another, over the seeds that both have; None where they share none."""
        if other is None:
            return None
        ours, theirs = self.mean(row, quantity), self.mean(other, quantity)
        if ours is None or theirs is None:
            return None
        shared = ours.by_seed.keys() & theirs.by_seed.keys()
        if not shared:
            return None
        masks = [self.masks(each, quantity) for each in (row, other)]
        a, b = ({seed: each.by_seed[seed] for seed in shared} for each in (ours, theirs))
        return difference(a, b, *masks, of_images=bool(quantity.figure))

    def masks(self, row: Row, quantity: Quantity) -> dict[int, Mask]:
        """Which images a row's networks read rightly, by seed; for a quantity that is no accuracy there are none."""
        found = {}
        for seed, record in self.recorded(row).items():
            figure = record["figures"].get(self.which, {}).get(quantity.figure)
            if figure is not None and "right" in figure:
                found[seed] = unpacked(figure["right"], int(figure["n"]))
        return found

    def reference(self, row: Row) -> Row | None:
        """What a row is held beside: for a point of a sweep the default, for a variant the host's first; None for that.

        Two rows of the same host, student and teacher.
        """
        alike = [r for r in self.grid.rows if (r.host, r.student, r.teacher) == (row.host, row.student, row.teacher)]
        resting = [r for r in alike if not r.axis]
        if not row.axis:
            return resting[0] if resting and resting[0] is not row else None
        own = self.cell(row).settings
        same = [r for r in resting if self.cell(r).settings.method == own.method]
        return min(same, key=lambda r: _unlike(self.cell(r).settings.params, own.params), default=None)

    def host(self, row: Row) -> Row | None:
        """The first row of a row's host, student and teacher; None for that row itself."""
        alike = (r for r in self.grid.rows if (r.host, r.student, r.teacher) == (row.host, row.student, row.teacher))
        first = next((r for r in alike if not r.axis), None)
        return None if first is row else first

    def value(self, row: Row, axis: str) -> Value | None:
        """What a row has along an axis of the study's sweeps; None where its method has no such parameter."""
        sweep = next(each for each in self.grid.study.sweeps if each.axis == axis)
        return self.cell(row).settings.params.get(sweep.param)

    def teacher(self, row: Row) -> tuple[str, Record | None]:
        """Cell and record of a row's robust teacher; "" without one."""
        name = self.cell(row).teachers.get("T", "")
        return name, self.records.get(name)

    def teacher_robust(self, row: Row, quantity: Quantity = ROBUST) -> float | None:
        """The teacher's own figure, of the weights that the student learnt from."""
        record, settings = self.teacher(row)[1], self.cell(row).settings
        if record is None:
            return None
        return quantity.take(record, settings.teacher_which)

    def missing(self) -> list[tuple[Row, list[int]]]:
        """Rows that lack records, and the seeds that they lack."""
        found = []
        for row in self.grid.rows:
            lacking = [self.grid.cells[name].seed for name in row.cells if name not in self.records]
            if lacking:
                found.append((row, lacking))
        return found

    @property
    def any(self) -> bool:
        """Whether there is a record of any row."""
        return any(name in self.records for row in self.grid.rows for name in row.cells)


def _unlike(a: Mapping[str, Value], b: Mapping[str, Value]) -> int:
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys())


def half_width(gap: Difference) -> float | None:
    """Half of a difference's 95 % interval; with one seed that over images; None where neither is known."""
    return gap.over_images if gap.half is None else gap.half


class Host(NamedTuple):
    """What rows share that are held beside each other."""

    host: str
    student: str
    teacher: str


class SweepPoint(NamedTuple):
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


def axes_of(reading: Reading, key: Host) -> dict[str, list[SweepPoint]]:
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
        found[axis] = [SweepPoint(short(value), row, default) for value, row, default in points]
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


def on_common_seeds(means: Sequence[Mean | None]) -> dict[int, list[float]]:
    """Numbers of several rows by seed, for the seeds that all have; nothing where a row has no figure."""
    known = [mean for mean in means if mean is not None]
    if not known or len(known) < len(means):
        return {}
    seeds = set.intersection(*(set(mean.by_seed) for mean in known))
    return {seed: [mean.by_seed[seed] for mean in known] for seed in sorted(seeds)}


def pooled(reading: Reading, pairs: Sequence[tuple[Row, Row | None]], quantity: Quantity) -> Difference | None:
    """The mean of what rows gain over others, paired by the seeds that all of them have.

    None where a pair has no figure: an average over fewer hosts would be another one.
    """
    ours, theirs = [row for row, _ in pairs], [other for _, other in pairs if other is not None]
    both = [*ours, *theirs]
    by_seed = on_common_seeds([reading.mean(row, quantity) for row in both])
    if not by_seed or len(both) < 2 * len(pairs):
        return None
    n = len(pairs)
    mine = {seed: statistics.fmean(values[:n]) for seed, values in by_seed.items()}
    other = {seed: statistics.fmean(values[n:]) for seed, values in by_seed.items()}
    masks = [_mean_masks(reading, side, set(by_seed), quantity) for side in (ours, theirs)]
    return difference(mine, other, *masks, of_images=bool(quantity.figure))


def _mean_masks(reading: Reading, rows: Sequence[Row], seeds: set[int], quantity: Quantity) -> dict[int, Any]:
    """By seed, the share of the rows' networks that read an image rightly, (n,); none where one has no verdicts."""
    masks = [reading.masks(row, quantity) for row in rows]
    if not all(seeds <= own.keys() for own in masks):
        return {}
    return {seed: np.mean([own[seed] for own in masks], axis=0) for seed in seeds}


def missing_rows(reading: Reading) -> list[str]:
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
