"""Tables and plots that hold methods beside each other: benchmark, hyperparameters, single networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from mmard.report.drawing import Box, Canvas, labels, reach, write_names
from mmard.report.palette import mark
from mmard.study.drawing import (
    BOTTOM,
    LETTER_HEIGHT,
    WIDE,
    WIDTH,
    Plot,
    along,
    dot,
    few_ticks,
    gap_dot,
    in_rows,
    legend,
    level_title,
    name_width,
    panel,
    plain,
    plot,
    words,
)
from mmard.study.figures import NOTHING, gap_entry, mean_text, number, study_table
from mmard.study.grid import Row
from mmard.study.reading import (
    CLEAN,
    ROBUST,
    SECONDS,
    WHICH,
    Quantity,
    Reading,
    accuracy,
    axes_of,
    host_name,
    hosts_of,
    mean_of,
    row_name,
    row_of,
    variants_of,
)
from mmard.study.records import Record
from mmard.tables.statistics import Difference
from mmard.tables.table import Entry, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 19


NEAR = 16.0
"""Pixels from a point at which its name is read as its own without a line."""


def ranked(reading: Reading) -> list[Row]:
    """Rows that have a robust accuracy, the highest first."""
    found = {row: mean.mean for row in reading.grid.rows if (mean := reading.mean(row, ROBUST)) is not None}
    return sorted(found, key=lambda row: -found[row])


def benchmark_tables(reading: Reading) -> list[Table]:
    """All methods, sorted, with best and last weights; then accuracy for time."""
    rows = ranked(reading)
    if not rows:
        return [study_table(("method",), (), "No records.")]
    readings = {which: replace(reading, which=which) for which in WHICH}
    made: list[tuple[str | Entry, ...]] = []
    for row in rows:
        gap = None if row is rows[0] else reading.gain(row, rows[0], ROBUST)
        noise = gap is not None and gap.over_seeds is not None and not gap.clear
        found = gap_entry(gap, ROBUST)
        minus_top = f"{found.text}, noise" if noise and isinstance(found, Entry) else found
        seconds = reading.mean(row, SECONDS)
        each = [mean_text(readings[w].mean(row, q), q) for w in WHICH for q in (CLEAN, ROBUST)]
        time = NOTHING if seconds is None else number(seconds.median, SECONDS)
        made.append((row_name(reading, row), *each, minus_top, _seeds(reading, row), time))
    figures = (f"{w}: {q.title}" for w in WHICH for q in (CLEAN, ROBUST))
    heads = ("method", *figures, "minus the top", "seeds", "time, s")
    caption = (
        f"Sorted by robust accuracy, {reading.which} weights, of which the differences are too. noise: within that of"
        " the top, which is the highest of all and so flattered by chance. Time: of training, median over seeds."
    )
    sheets = [study_table(heads, tuple(made), caption)]
    front = pareto(reading)
    if front:
        lines = [(row_name(reading, row), number(s, SECONDS), number(r, ROBUST)) for row, s, r in front]
        caption = (
            "Methods to which no other is at once faster and more robust, by medians of time and means of accuracy."
        )
        sheets.append(
            study_table(("most robust for its time", "training, s", "robust %"), tuple(lines), caption, main=False)
        )
    return sheets


def _seeds(reading: Reading, row: Row) -> str:
    found = reading.mean(row, ROBUST)
    n = 0 if found is None else found.n
    return str(n) if n == len(row.cells) else f"{n} of {len(row.cells)}"


def placed(reading: Reading) -> list[tuple[Row, float, float]]:
    """(row, median seconds of training, mean robust accuracy) of the rows that have both, the fastest first."""
    found = []
    for row in reading.grid.rows:
        seconds, robust = reading.mean(row, SECONDS), reading.mean(row, ROBUST)
        if seconds is not None and robust is not None:
            found.append((row, seconds.median, robust.mean))
    return sorted(found, key=lambda each: (each[1], -each[2]))


def pareto(reading: Reading) -> list[tuple[Row, float, float]]:
    """Those of `placed` that are more robust than everything faster."""
    front: list[tuple[Row, float, float]] = []
    for each in placed(reading):
        if not front or each[2] > front[-1][2]:
            front.append(each)
    return front


def benchmark_plots(reading: Reading) -> list[Plot]:
    """All methods in rows, best and last weights; then accuracy against time of training."""
    return [_ranks(reading), *_price(reading)] if ranked(reading) else []


def _drawn(reading: Reading) -> tuple[list[Row], str]:
    """Rows that stand together on a scale, and a line on those that do not: below half of the first."""
    rows = ranked(reading)
    robust = {row: mean.mean for row in rows if (mean := reading.mean(row, ROBUST)) is not None}
    kept = [row for row in rows if robust[row] >= robust[rows[0]] / 2]
    rest = [f"{row_name(reading, row)} {100 * robust[row]:.1f}" for row in rows if row not in kept]
    return kept, f"left out, in %: {', '.join(rest)}" if rest else ""


def _ranks(reading: Reading) -> Plot:
    rows, left_out = _drawn(reading)
    names = [row_name(reading, row) for row in rows]
    readings = [replace(reading, which=which) for which in (reading.which, *(w for w in WHICH if w != reading.which))]
    left, top, height = name_width(names), 34, ROW * len(rows)
    wide = (WIDTH - left - 26 - 12) * 0.52
    alt = f"Robust accuracy of {len(rows)} methods, the highest first, and what each is below the first."

    def draw(made: Canvas) -> None:
        level = panel(made, left, top, wide, height, first=True)
        gaps = panel(made, left + wide + 26, top, WIDTH - left - wide - 26 - 12, height)
        for y, row in enumerate(rows):
            for index, each in reversed(list(enumerate(readings))):
                mean = each.mean(row, ROBUST)
                if mean is not None:
                    dot(level, mean.mean, y, 0, reach=mean.interval if index == 0 else None, hollow=index > 0)
            gap = reading.gain(row, rows[0], ROBUST) if y else None
            if gap is not None:
                gap_dot(gaps, gap, y, 2)
        in_rows(level, names, range(len(rows)), len(rows) - 0.3)
        in_rows(gaps, names, range(len(rows)), len(rows) - 0.3, named=False)
        along(level, level_title(reading))
        along(gaps, "points above the first, paired", zero=True)
        # The words at the right take 300 of the width, these 170.
        at = min(left - 4, WIDTH - 490)
        legend(made, [(0, f"{readings[0].which} weights", False), (0, f"{readings[1].which}", True)], at, 14)
        words(
            made, WIDTH - 12, 14, "right: over seeds (thick), over images (thin); hollow: noise", quiet=True, ha="right"
        )
        words(made, 2, top + height + BOTTOM - 8, left_out, quiet=True)

    return plot(reading, "", alt, draw, top + height + BOTTOM)


def _price(reading: Reading) -> list[Plot]:
    """Robust accuracy against time of training, with those that nothing faster surpasses joined."""
    kept, left_out = _drawn(reading)
    points = [each for each in placed(reading) if each[0] in kept]
    if len(points) < 2:
        return []
    names = [row_name(reading, row) for row, _, _ in points]
    left, top, height = 44, 30, 430
    alt = f"Robust accuracy of {len(points)} methods against seconds of training; those that nothing faster surpasses."

    def draw(made: Canvas) -> None:
        axes = panel(made, left, top, WIDTH - left - 12, height, first=True)
        front = {row for row, _, _ in pareto(reading)}
        edge = [(s, r) for row, s, r in points if row in front]
        axes.plot(*zip(*edge, strict=True), color=mark("muted"), linewidth=1, dashes=(4, 3), zorder=1)
        for row, seconds, robust in points:
            dot(axes, seconds, robust, 1 if row in front else 0)
        axes.set_xscale("log")
        axes.margins(0.08, 0.08)
        _seconds_axis(axes, [s for _, s, _ in points])
        axes.grid(visible=True, axis="both")
        axes.set_xlabel("training, seconds (median over seeds)", loc="right", labelpad=3)
        words(made, 2, 14, "robust %", quiet=True)
        legend(made, [(1, "nothing faster is more robust", False)], left + 40, 14)
        made.figure.draw_without_rendering()
        at = [(float(x), float(y)) for x, y in (axes.transData.transform((s, r)) for _, s, r in points)]
        box = axes.get_window_extent()
        inside = Box(box.x0 + 2, box.y0 + 2, box.x1, box.y1)
        line = _along([tuple(map(float, axes.transData.transform(each))) for each in edge])
        named = _named(names, at, [row in front for row, _, _ in points], inside, line)
        unnamed = "" if len(named) == len(names) else "points in a crowd have their names in the table"
        words(made, 2, top + height + BOTTOM - 8, "; ".join(filter(None, (left_out, unnamed))), quiet=True)
        shown = list(named)
        write_names(made, axes, [names[k] for k in shown], [at[k] for k in shown], list(named.values()))

    return [plot(reading, "time", alt, draw, top + height + BOTTOM)]


def _named(
    names: Sequence[str],
    at: Sequence[tuple[float, float]],
    always: Sequence[bool],
    inside: Box,
    line: Sequence[tuple[float, float]],
) -> dict[int, Box]:
    """Where names go, by point: of points that must have one, and of those beside which there is room."""
    sizes = [(WIDE * len(name), LETTER_HEIGHT) for name in names]
    found = labels(at, sizes, inside, line)
    kept = [k for k, each in enumerate(found) if always[k] or reach(each, at[k]) <= NEAR]
    bare = [at[k] for k in range(len(at)) if k not in kept]
    again = labels([at[k] for k in kept], [sizes[k] for k in kept], inside, [*line, *bare])
    return dict(zip(kept, again, strict=True))


def _along(corners: Sequence[tuple[float, ...]]) -> list[tuple[float, float]]:
    """Points along a line of straight parts, ten pixels apart."""
    found = []
    for a, b in pairwise(corners):
        n = max(1, int(math.dist(a, b) / 10))
        found += [(a[0] + (b[0] - a[0]) * k / n, a[1] + (b[1] - a[1]) * k / n) for k in range(n)]
    return found


def _seconds_axis(axes: Axes, seconds: list[float]) -> None:
    """Ticks at round numbers of a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    low, high = axes.get_xlim()
    ticks = [m * 10.0**e for e in range(-3, 8) for m in (1, 1.5, 2, 3, 4, 5, 7) if low <= m * 10.0**e <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    few_ticks(axes.yaxis, 6)


@dataclass(frozen=True)
class Sensitivity:
    """A hyperparameter of a method, off by a factor to both sides.

    Attributes:
        host: the method.
        axis: the hyperparameter.
        default: its value.
        changes: what robust accuracy changes by, for each point: (label such as "/3", value, change).
    """

    host: str
    axis: str
    default: str
    changes: tuple[tuple[str, str, Difference | None], ...]

    @property
    def worst(self) -> float:
        """The largest loss, as a change: at most 0."""
        return min([0.0, *(gap.mean for _, _, gap in self.changes if gap is not None)])


def sensitivities(reading: Reading, quantity: Quantity = ROBUST) -> list[Sensitivity]:
    """Every hyperparameter of the study, those of one method together."""
    found = []
    for key in hosts_of(reading):
        for axis, points in axes_of(reading, key).items():
            default = next((point.value for point in points if point.default), "")
            changes = tuple(
                (
                    p.row.variant.removeprefix(f"{axis} "),
                    p.value,
                    reading.gain(p.row, reading.reference(p.row), quantity),
                )
                for p in points
                if not p.default
            )
            found.append(Sensitivity(host_name(reading, key), axis, default, changes))
    return found


def sensitivity_tables(reading: Reading) -> list[Table]:
    """What each hyperparameter costs, and the worst of each method."""
    every = sensitivities(reading)
    labels = list(dict.fromkeys(label for each in every for label, _, _ in each.changes))
    rows: list[tuple[str | Entry, ...]] = []
    for each in every:
        cells: list[str | Entry] = []
        for label in labels:
            gap, value = next(((gap, value) for own, value, gap in each.changes if own == label), (None, ""))
            entry = gap_entry(gap, ROBUST)
            cells.append(replace(entry, text=f"{entry.text} (at {value})") if isinstance(entry, Entry) else entry)
        rows.append((each.host, each.axis, each.default, *cells))
    caption = "Change of robust accuracy in points."
    sheets = [study_table(("method", "hyperparameter", "default", *labels), tuple(rows), caption, words=3)]
    worst = []
    for key in hosts_of(reading):
        name = host_name(reading, key)
        own = [each for each in every if each.host == name and any(gap is not None for _, _, gap in each.changes)]
        rest = row_of(reading, key, variants_of(reading)[0])
        if own:
            least = min(own, key=lambda each: each.worst)
            gap_cells = [(gap.mean, label, gap) for label, _, gap in least.changes if gap is not None]
            _, label, gap = min(gap_cells, key=lambda each: each[0])
            robust = NOTHING if rest is None else mean_text(reading.mean(rest, ROBUST), ROBUST)
            worst.append((name, robust, f"{least.axis} {label}", gap_entry(gap, ROBUST)))
    caption = "The hyperparameter of each method whose change costs most; the lowest of several, so chance adds to it."
    sheets.append(study_table(("method", "robust % at defaults", "worst", "change"), tuple(worst), caption))
    return sheets


def sensitivity_plots(reading: Reading) -> list[Plot]:
    """What each hyperparameter changes when it is off to either side, the most costly method last."""
    every = [each for each in sensitivities(reading) if any(gap is not None for _, _, gap in each.changes)]
    if not every:
        return []
    order = dict.fromkeys(each.host for each in every)
    worst = {host: min(each.worst for each in every if each.host == host) for host in order}
    rows = sorted(every, key=lambda each: (worst[each.host], each.host, each.worst))
    labels_said = list(dict.fromkeys(label for each in rows for label, _, _ in each.changes))
    names = [_name(each) for each in rows]
    left, top, height = name_width(names), 34, 24 * len(rows)
    alt = f"Change of robust accuracy of {len(order)} methods when a hyperparameter is {' or '.join(labels_said)}."

    def draw(made: Canvas) -> None:
        axes = panel(made, left, top, WIDTH - left - 12, height, first=True)
        for y, each in enumerate(rows):
            for label, _, gap in each.changes:
                if gap is not None:
                    index = labels_said.index(label)
                    shift = (index - (len(labels_said) - 1) / 2) * 0.36
                    gap_dot(axes, gap, y + shift, index)
        in_rows(axes, names, range(len(rows)), len(rows) - 0.3)
        along(axes, "change of robust accuracy, points, paired 95 % intervals", zero=True, n=7)
        legend(made, [(index, label, False) for index, label in enumerate(labels_said)], left - 4, 14)
        said = "interval over seeds (thick), over images (thin); hollow: within noise"
        words(made, WIDTH - 12, 14, said, quiet=True, ha="right")

    return [plot(reading, "", alt, draw, top + height + BOTTOM)]


def _name(each: Sensitivity) -> str:
    """A hyperparameter with its method, which its own name may say already."""
    owner = each.axis.split(".")[0]
    return f"{each.axis} = {each.default}" if owner == each.host else f"{each.host}: {each.axis} = {each.default}"


def networks_of(reading: Reading) -> list[tuple[str, dict[int, Record]]]:
    """The networks of a study with their records by seed: teachers, then rows."""
    found: dict[str, dict[int, Record]] = {}
    for row in reading.grid.rows:
        cell, record = reading.teacher(row)
        if record is not None:
            role = reading.grid.cells[cell].role.removeprefix("teacher ")
            title = str(reading.grid.scale.teachers[role].get("title", role))
            found.setdefault(f"teacher: {title}", {reading.grid.cells[cell].seed: record})
    return [*found.items(), *((row_name(reading, row), reading.recorded(row)) for row in reading.grid.rows)]


def networks_tables(reading: Reading) -> list[Table]:
    """Teachers and students: how many weights, and accuracy under each attack."""
    specs = reading.grid.scale.attacks
    figures = [r["figures"][reading.which] for _, own in networks_of(reading) for r in own.values()]
    labels = [next((own[spec]["label"].split(" (")[0] for own in figures if spec in own), spec) for spec in specs]
    quantities = [CLEAN, *(accuracy(spec, f"{label} %") for spec, label in zip(specs, labels, strict=True)), ROBUST]
    rows: list[tuple[str | Entry, ...]] = []
    for name, own in networks_of(reading):
        means = [mean_of(own, quantity, reading.which, max(len(own), 1)) for quantity in quantities]
        weights = f"{next(iter(own.values()))['parameters']:,}" if own else NOTHING
        rows.append((name, weights, *map(mean_text, means, quantities)))
    heads = ("network", "weights", *(quantity.title for quantity in quantities))
    return [study_table(heads, tuple(rows), "Robust: right under every attack.")]


def networks_plots(reading: Reading) -> list[Plot]:
    """Every network's accuracy, clean and under all attacks."""
    networks = networks_of(reading)
    names = [name for name, _ in networks]
    left, top, height = name_width(names), 34, 24 * len(networks)
    alt = f"Clean and robust accuracy of {len(networks)} networks: {', '.join(names)}."

    def draw(made: Canvas) -> None:
        axes = panel(made, left, top, WIDTH - left - 12, height, first=True)
        for y, (_, own) in enumerate(networks):
            for index, quantity in ((1, CLEAN), (0, ROBUST)):
                mean = mean_of(own, quantity, reading.which, max(len(own), 1))
                if mean is not None:
                    dot(axes, mean.mean, y, index, reach=mean.interval)
        in_rows(axes, names, range(len(names)), len(names) - 0.3)
        along(axes, level_title(reading).replace("robust %", "%"))
        legend(made, [(1, "clean", False), (0, "robust: under every attack", False)], left - 4, 14)

    return [plot(reading, "", alt, draw, top + height + BOTTOM)]


def comparisons(reading: Reading) -> list[str]:
    """The study's comparisons as sentences, each with what its difference may be off by."""
    rows = {row.host: row for row in reversed(reading.grid.rows)}
    found = []
    for each in reading.grid.study.compared:
        gap = reading.gain(rows[each.host], rows[each.than], ROBUST)
        if gap is not None:
            known = ((gap.over_images, "over images"), (gap.over_seeds, "over seeds"))
            halves = [f"±{100 * half:.1f} {of}" for half, of in known if half is not None]
            found.append(
                f"{each.says}: {100 * gap.mean:+.1f} points of robust accuracy, {' and '.join(halves)}: {noise(gap)}."
            )
    return found


def noise(gap: Difference) -> str:
    """What a difference is beyond, in words; one seed of training says nothing of noise over seeds."""
    if gap.over_seeds is None:
        clear = gap.over_images is not None and abs(gap.mean) > gap.over_images
        return f"{'beyond' if clear else 'within'} the noise of the test images alone"
    return gap.verdict
