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
from typing import TYPE_CHECKING, Any, NamedTuple

from mmard.evaluation.score import Mask
from mmard.report.drawing import LETTER, Box, Canvas, labels, write_names
from mmard.report.palette import dash, mark, series
from mmard.study.drawing import (
    BOTTOM,
    LETTER_HEIGHT,
    WIDE,
    WIDTH,
    Plot,
    along,
    around,
    dot,
    few_ticks,
    legend,
    panel,
    plot,
    same_heights,
    words,
)
from mmard.study.figures import NOTHING, gap_entry, mean_text, number, signed, study_table
from mmard.study.grid import Row
from mmard.study.hosts import Cells
from mmard.study.reading import (
    CLEAN,
    ROBUST,
    Host,
    Mean,
    Quantity,
    Reading,
    axes_of,
    host_name,
    hosts_of,
    rows_of,
    short,
    valued,
    variants_of,
)
from mmard.tables.statistics import LEVEL, Difference, difference, holm, t_95
from mmard.tables.table import Entry, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEAK = 0.5
"""A teacher with less than this share of the best teacher's robust accuracy is no robust one."""


@dataclass(frozen=True)
class FittedLine:
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


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> FittedLine | None:
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
        return FittedLine(steep, start, None, 2)
    rest = sum((y - start - steep * x) ** 2 for x, y in zip(xs, ys, strict=True))
    degrees = len(xs) - 2
    return FittedLine(steep, start, t_95(degrees) * math.sqrt(rest / degrees / width), len(xs))


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

    cells: FittedLine
    teachers: FittedLine


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


_SLOPES = (
    "Least squares over robust teachers x seeds, those set apart left out. ± cells: half of the 95 % interval"
    " (Student's t) with every network as a point; too narrow for teachers at large, as students of one teacher are not"
    " independent. ± teachers: the same with one point for each teacher, the mean over seeds. n: teachers, networks."
)


def saturation_tables(reading: Reading) -> list[Table]:
    """Students by teacher, the weakest first, and slopes."""
    made = []
    variants = variants_of(reading)
    first, added = variants[0], variants[1:]
    for host, student in dict.fromkeys((key.host, key.student) for key in hosts_of(reading)):
        teachers = by_teacher(reading, host, student)
        rows: list[Cells] = []
        for each in sorted(teachers, key=lambda t: t.apart):
            own = [NOTHING if value is None else number(value, ROBUST) for value in (each.robust, each.clean)]
            means = [mean_text(each.students.get(variant), ROBUST) for variant in variants]
            gains = [gap_entry(each.gains.get(variant), ROBUST) for variant in added]
            rows.append((each.role + (", apart" if each.apart else ""), *own, *means, *gains))
        name = host_name(reading, Host(host, student, ""))
        students = (*(f"{v}: robust %" for v in variants), *(f"gain of {v}" for v in added))
        heads = (f"{name}, teacher", "its robust %", "its clean %", *students)
        said = f"Of teachers the weights that taught. {_roles(teachers)} {_after_holm(teachers, added)}"
        made.append(study_table(heads, tuple(rows), said.strip()))
        lines: list[Cells] = [(f"{name} {variant}", *_slopes(trend(teachers, variant))) for variant in variants]
        lines += [(f"{variant} minus {first}", *_slopes(trend(teachers, variant, first))) for variant in added]
        made.append(study_table(("student's points for one of the teacher's", "slope", "± cells", "± teachers", "n"),
                          tuple(lines), _SLOPES))  # fmt: skip
    return made


def _after_holm(teachers: Sequence[TeacherResult], variants: Sequence[str]) -> str:
    """From which teachers a variant gains, or loses, allowing for there being several."""
    said = []
    for variant in variants:
        ps = {t.role: p for t in teachers if variant in t.gains and (p := t.gains[variant].p()) is not None}
        clear = [role for role, p in zip(ps, holm(list(ps.values())), strict=True) if p < LEVEL]
        if len(ps) > 1:
            said.append(f"{variant}: {', '.join(clear) or 'none'} of {len(ps)}")
    return f"Beyond noise after Holm over the teachers: {'; '.join(said)}." if said else ""


def _roles(teachers: Sequence[TeacherResult]) -> str:
    return "; ".join(f"{each.role}: {each.title}" for each in teachers) + "."


def _slopes(found: Trend | None) -> Cells:
    if found is None:
        return (NOTHING,) * 4
    halves = ["unknown" if line.half is None else f"{line.half:.2f}" for line in (found.cells, found.teachers)]
    clear = found.teachers.half is not None and abs(found.cells.slope) > found.teachers.half
    return (Entry(signed(found.teachers.slope), strong=clear), *halves, f"{found.teachers.n}, {found.cells.n}")


def saturation_plots(reading: Reading) -> list[Plot]:
    """Student against teacher with a line for each variant; teachers that are set apart in a panel of their own."""
    made = []
    pairs = dict.fromkeys((each.host, each.student) for each in hosts_of(reading))
    for position, (host, student) in enumerate(pairs):
        teachers = [each for each in by_teacher(reading, host, student) if each.robust is not None and each.students]
        if teachers:
            made.append(_follows(reading, host, student, teachers, "" if position == 0 else student))
    return made


def _follows(reading: Reading, host: str, student: str, teachers: Sequence[TeacherResult], slug: str) -> Plot:
    variants = variants_of(reading)
    inside, outside = [t for t in teachers if not t.apart], [t for t in teachers if t.apart]
    left, top, height = 40, 34, 290
    aside = 50 + 74 * len(outside) if outside else 0
    wide = WIDTH - left - aside - 16
    name = host_name(reading, Host(host, student, ""))
    alt = f"Robust accuracy of students of {name} against that of their teachers, {' and '.join(variants)}."

    def draw(made: Canvas) -> None:
        main = panel(made, left, top, wide, height, first=True)
        apart = panel(made, left + wide + 44, top, aside - 44, height) if outside else None
        robust = [float(each.robust or 0) for each in inside]
        for index, variant in enumerate(variants):
            shift = (index - (len(variants) - 1) / 2) * max(0.0005, 0.015 * (max(robust) - min(robust)))
            for each in inside:
                _students(main, float(each.robust or 0) + shift, each.students.get(variant), index)
            line = trend(teachers, variant)
            if line is not None:
                ends = [min(robust), max(robust)]
                (drawn,) = main.plot(ends, [line.cells.at(x) for x in ends], color=mark(series(index)), linewidth=1.6)
                if dash(index):
                    drawn.set_dashes(dash(index))
            for at, each in enumerate(outside):
                if apart is not None:
                    _students(apart, at + (index - (len(variants) - 1) / 2) * 0.16, each.students.get(variant), index)
        along(main, "robust % of the teacher")
        if apart is not None:
            labels = [f"{each.role}\n{number(each.robust or 0.0, ROBUST)}" for each in outside]
            apart.set_xticks(range(len(outside)), labels)
            apart.set_xlim(-0.6, len(outside) - 0.4)
            words(made, left + wide + 44, top + height + 46, "apart, not in the lines", quiet=True)
        for axes in filter(None, (main, apart)):
            same_heights([axes])
        taken, level = -math.inf, 0
        for x, role in sorted((float(each.robust or 0), each.role) for each in inside):
            at_pixel = float(main.transData.transform((x, 0))[0])
            level = level + 1 if at_pixel - LETTER * len(role) / 2 < taken else 0
            taken = max(taken, at_pixel + LETTER * len(role) / 2)
            main.annotate(
                role, (x, 0), xycoords=("data", "axes fraction"), xytext=(0, 5 + 12 * level),
                textcoords="offset points", ha="center", fontsize=10, color=mark("muted"),
            )  # fmt: skip
        head = f"{name}, robust %"
        words(made, 2, 14, head, quiet=True)
        slopes = [(index, _slope_text(variant, teachers), False) for index, variant in enumerate(variants)]
        legend(made, slopes, 26 + LETTER * len(head), 14)

    return plot(reading, slug, alt, draw, top + height + 56)


def _slope_text(variant: str, teachers: Sequence[TeacherResult]) -> str:
    found = trend(teachers, variant)
    if found is None:
        return variant
    reach = "" if found.teachers.half is None else f" ± {found.teachers.half:.2f}"
    return f"{variant}: slope {found.teachers.slope:.2f}{reach}".replace("-", "\N{MINUS SIGN}")


def _students(axes: Axes, x: float, mean: Mean | None, index: int) -> None:
    if mean is None:
        return
    if mean.n > 1:
        axes.plot(
            [x] * mean.n, mean.values, "o", color=mark(series(index)), markersize=2.6, alpha=0.45, markeredgewidth=0
        )
    dot(axes, x, mean.mean, index, reach=mean.interval, upright=True)


HEIGHT = 380


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


def trade_off_tables(reading: Reading) -> list[Table]:
    """Clean and robust accuracy along every line, and what a row has above the other lines."""
    found = trade_off_lines(reading)
    heads = ("method", CLEAN.title, ROBUST.title, *(f"above the line of {host_name(reading, key)}" for key in found))
    rows: list[tuple[str | Entry, ...]] = []
    for key in hosts_of(reading):
        for row in found.get(key, rows_of(reading, key)):
            means = [mean_text(reading.mean(row, quantity), quantity) for quantity in (CLEAN, ROBUST)]
            gaps = [gap_entry(above_line(reading, row, line), ROBUST) for line in found.values()]
            rows.append((valued(reading, row), *means, *gaps))
    caption = (
        "Above a line: robust accuracy minus that of the line at the same clean accuracy, in points, paired by seed; a"
        " line is straight between its rows, and beyond its ends as at the nearer one."
    )
    plugged = [(row, other) for row in reading.grid.rows if (other := without_plugin(reading, row)) is not None]
    gains = tuple(
        (valued(reading, row), *(gap_entry(reading.gain(row, other, q), q) for q in (CLEAN, ROBUST)))
        for row, other in plugged
    )
    heads_of_gains = ("minus the same without its plug-in", "clean, points", "robust, points")
    return [study_table(heads, tuple(rows), caption), study_table(heads_of_gains, gains, "")]


def trade_off_plots(reading: Reading) -> list[Plot]:
    """Every row where it stands, those of one method joined."""
    found = trade_off_lines(reading)
    if not found:
        return []
    hosts = hosts_of(reading)
    left, top = 44, 30
    names = ", ".join(host_name(reading, host) for host in hosts)
    alt = f"Robust accuracy against clean accuracy, along a weight of each method's own: {names}."

    def draw(made: Canvas) -> None:
        axes = panel(made, left, top, WIDTH - left - 12, HEIGHT, first=True)
        said: dict[tuple[float, float], str] = {}
        shown: list[tuple[int, str, bool]] = []
        for index, host in enumerate(hosts):
            rows = found.get(host, rows_of(reading, host))
            accuracies = {row: position for row in rows if (position := _place(reading, row)) is not None}
            at = {row: (clean.mean, robust.mean) for row, (clean, robust) in accuracies.items()}
            axes.plot(*zip(*at.values(), strict=True), color=mark(series(index)), linewidth=1, zorder=1)
            for row, (clean, robust) in accuracies.items():
                dot(axes, *at[row], index, thin=around(clean.mean, clean.deviation))
                dot(axes, *at[row], index, thin=around(robust.mean, robust.deviation), upright=True)
                said[at[row]] = _value(reading, row) if len(at) > 1 else host_name(reading, host)
            if len(at) > 1:
                shown.append((index, " by ".join([host_name(reading, host), *axes_of(reading, host)]), False))
        axes.margins(0.08, 0.08)
        for each in (axes.xaxis, axes.yaxis):
            few_ticks(each, 7)
        axes.grid(visible=True, axis="both")
        axes.set_xlabel("clean %", loc="right", labelpad=3)
        words(made, 2, 14, "robust %", quiet=True)
        legend(made, shown, left + 40, 14)
        words(made, 2, top + HEIGHT + BOTTOM - 8, "means, and thin the standard deviation over seeds", quiet=True)
        made.figure.draw_without_rendering()
        points = [(float(x), float(y)) for x, y in (axes.transData.transform(each) for each in said)]
        box = axes.get_window_extent()
        sizes = [(WIDE * len(name), LETTER_HEIGHT) for name in said.values()]
        placed = labels(points, sizes, Box(box.x0 + 2, box.y0 + 2, box.x1, box.y1))
        write_names(made, axes, list(said.values()), points, placed)

    return [plot(reading, "", alt, draw, top + HEIGHT + BOTTOM)]


def _place(reading: Reading, row: Row) -> tuple[Mean, Mean] | None:
    clean, robust = reading.mean(row, CLEAN), reading.mean(row, ROBUST)
    return None if clean is None or robust is None else (clean, robust)


def _value(reading: Reading, row: Row) -> str:
    axis = row.axis or next(each.axis for each in reading.grid.rows if each.host == row.host and each.axis)
    return short(reading.value(row, axis))
