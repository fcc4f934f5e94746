"""Dots and bars in named rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mmard.report.drawing import LETTERS, canvas
from mmard.report.palette import mark, marker, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from mmard.report.axes import LETTER, percentages, plain, ticks


@dataclass(frozen=True)
class Dot:
    """A value in a row, with its interval."""

    row: int
    value: float
    low: float | None = None
    high: float | None = None
    index: int = 0
    hollow: bool = False
    shift: float = 0.0


def dot_rows(
    slug: str, alt: str, rows: Sequence[str], dots: Sequence[Dot], *, x: str, fractions: bool = True,
    means: Sequence[float | None] | None = None, zero: bool = False, numbers: Sequence[str] | None = None,
) -> Markup:  # fmt: skip
    """Dots in named rows with their intervals, and a bar at each row's mean."""
    left = 14 + LETTER * min(max((len(row) for row in rows), default=4), 22)
    right = 12 if numbers is None else 14 + LETTER * max(map(len, numbers), default=0)
    with canvas(slug, alt, height=46 + 30 * len(rows), left=left, right=right, top=6, bottom=38) as made:
        axes = made.axes
        for dot in dots:
            y, colour = dot.row + dot.shift, mark(series(dot.index))
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [y, y], color=colour, linewidth=1.3, alpha=0.45, solid_capstyle="butt")
            face = mark("page") if dot.hollow else colour
            axes.plot(
                [dot.value], [y], marker=marker(dot.index), color=colour, markersize=5, markerfacecolor=face,
                markeredgewidth=1.2 if dot.hollow else 0, clip_on=False,
            )  # fmt: skip
        for row, mean in enumerate(means or ()):
            if mean is not None:
                axes.plot([mean, mean], [row - 0.36, row + 0.36], color=mark("ink"), linewidth=2)
        _name_rows(axes, rows)
        if numbers is not None:
            for row, text in enumerate(numbers):
                axes.annotate(
                    text, (1, row), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
                    va="center_baseline", fontsize=LETTERS,
                )  # fmt: skip
        if zero:
            axes.axvline(0, color=mark("muted"), linewidth=1, zorder=0)
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(percentages if fractions else plain))
        axes.margins(x=0.06)
        axes.set_xlabel(x, loc="right", labelpad=3)
    return made.svg


def _name_rows(axes: Axes, rows: Sequence[str]) -> None:
    axes.set_yticks(range(len(rows)), [row if len(row) <= 22 else row[:21] + "…" for row in rows])
    axes.tick_params(axis="y", labelcolor=mark("ink"))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")


@dataclass(frozen=True)
class Bar:
    """Two shares of a class: without attack, pale, and under it, full; with an interval or a dot for each seed."""

    name: str
    outer: float
    inner: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()


def bar_rows(slug: str, alt: str, bars: Sequence[Bar], *, index: int, x: str) -> Markup:
    """Pairs of bars in named rows."""
    left = 14 + LETTER * min(max((len(bar.name) for bar in bars), default=4), 22)
    with canvas(slug, alt, height=46 + 19 * len(bars), left=left, top=6, bottom=38) as made:
        axes, colour = made.axes, mark(series(index))
        for row, bar in enumerate(bars):
            axes.barh(row, bar.outer, height=0.72, color=colour, alpha=0.2, linewidth=0)
            axes.barh(row, bar.inner, height=0.72, color=colour, alpha=0.85, linewidth=0)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [row, row], color=mark("ink"), linewidth=1.2, solid_capstyle="butt")
            if bar.seeds:
                axes.plot(bar.seeds, [row] * len(bar.seeds), "o", color=mark("ink"), markersize=2.6, markeredgewidth=0)
        _name_rows(axes, [bar.name for bar in bars])
        axes.set_xlim(0, 1)
        ticks(axes, n=4, x_text=percentages)
        axes.set_yticks(range(len(bars)), [bar.name[:22] for bar in bars])
        axes.yaxis.set_major_formatter(_names([bar.name[:22] for bar in bars]))
        axes.set_xlabel(x, loc="right", labelpad=3)
    return made.svg


def _names(names: Sequence[str]) -> Any:
    from matplotlib.ticker import FixedFormatter

    return FixedFormatter(list(names))
