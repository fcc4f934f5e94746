"""Plots that hold methods beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from mmard.evaluation.spread import Difference
from mmard.report.drawing import Canvas
from mmard.report.labels import Box, labels, reach, write_names
from mmard.report.palette import mark
from mmard.study.drawn import (
    WIDE,
    WIDTH,
    Plot,
    along,
    around,
    dot,
    in_percent,
    in_rows,
    key,
    level_title,
    name_width,
    panel,
    plain,
    plot,
    words,
)
from mmard.study.grid import Row
from mmard.study.rows import row_name
from mmard.study.summary import ROBUST, WHICH, Reading, beyond
from mmard.study.tables_of_methods import Turned, pareto, placed, ranked, turned

BOTTOM = 40
ROW = 19
LETTER_HEIGHT = 13.0
NEAR = 16.0
"""Pixels from a point at which its name is read as its own without a line."""


def benchmark(reading: Reading) -> list[Plot]:
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
                seeds, images = (around(gap.mean, each) for each in (gap.over_seeds, gap.over_images))
                dot(gaps, gap.mean, y, 2, reach=seeds, thin=images, hollow=not beyond(gap))
        in_rows(level, names, range(len(rows)), len(rows) - 0.3)
        in_rows(gaps, names, range(len(rows)), len(rows) - 0.3, named=False)
        along(level, level_title(reading))
        along(gaps, "points above the first, paired", zero=True)
        key(made, [(0, f"{readings[0].which} weights", False), (0, f"{readings[1].which}", True)], left - 4, 14)
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
        key(made, [(1, "nothing faster is more robust", False)], left + 40, 14)
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


def _seconds_axis(axes: object, seconds: list[float]) -> None:
    """Ticks at round numbers of a logarithmic axis."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

    assert isinstance(axes, Axes), "a panel"
    low, high = axes.get_xlim()
    ticks = [m * 10.0**e for e in range(-3, 8) for m in (1, 1.5, 2, 3, 4, 5, 7) if low <= m * 10.0**e <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(in_percent))


def sensitivity(reading: Reading) -> list[Plot]:
    """What each hyperparameter changes when it is off to either side, the most costly method last."""
    every = [each for each in turned(reading) if any(gap is not None for _, _, gap in each.changes)]
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
                    _change(axes, gap, y + shift, index)
        in_rows(axes, names, range(len(rows)), len(rows) - 0.3)
        along(axes, "change of robust accuracy, points, paired 95 % intervals", zero=True, n=7)
        key(made, [(index, label, False) for index, label in enumerate(labels_said)], left - 4, 14)
        said = "interval over seeds (thick), over images (thin); hollow: within noise"
        words(made, WIDTH - 12, 14, said, quiet=True, ha="right")

    return [plot(reading, "", alt, draw, top + height + BOTTOM)]


def _name(each: Turned) -> str:
    """A hyperparameter with its method, which its own name may say already."""
    owner = each.axis.split(".")[0]
    return f"{each.axis} = {each.default}" if owner == each.host else f"{each.host}: {each.axis} = {each.default}"


def _change(axes: object, gap: Difference, y: float, index: int) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes), "a panel"
    seeds, images = (around(gap.mean, each) for each in (gap.over_seeds, gap.over_images))
    dot(axes, gap.mean, y, index, reach=seeds, thin=images, hollow=not beyond(gap))
