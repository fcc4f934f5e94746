"""Histograms, lines, reliability, dots, bars and scatters: what the pictures of the report are drawn by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mmard.report.drawing import (
    LETTER,
    LETTERS,
    SMALL,
    WIDTH,
    Box,
    Canvas,
    canvas,
    frame,
    labels,
    percentages,
    plain,
    spread,
    ticks,
    write_names,
)
from mmard.report.palette import dash, mark, marker, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes


HistogramNumbers = Sequence[float]


def histogram(
    slug: str, alt: str, edges: HistogramNumbers, filled: HistogramNumbers, outlined: HistogramNumbers | None,
    *, index: int, x: str, y: str,
    split: tuple[float, str, str] | None = None, filled_name: str = "attacked", outlined_name: str = "clean",
    limits: tuple[float, float] | None = None,
) -> Markup:  # fmt: skip
    """Two histograms over the same bins: one filled, one as an outline.

    Args:
        split: a place on x and what lies left and right of it.
    """
    with canvas(slug, alt, height=200, left=32, top=40 if split else 26) as made:
        axes, colour = made.axes, mark(series(index))
        axes.stairs(filled, edges, fill=True, color=colour, alpha=0.45, linewidth=0)
        axes.stairs(filled, edges, color=colour, linewidth=1.2, baseline=None)
        if outlined is not None:
            axes.stairs(outlined, edges, color=mark("ink"), linewidth=1.3, baseline=None)
        axes.set_ylim(bottom=0)
        axes.set_xlim(*(limits or (edges[0], edges[-1])))
        ticks(axes)
        frame(made, x, y)
        if split is not None:
            at, before, behind = split
            axes.axvline(at, color=mark("muted"), linewidth=1, dashes=(3, 3))
            for text, side, shift in ((f"← {before}", "right", -5), (f"{behind} →", "left", 5)):
                axes.annotate(
                    text, (at, 1), xycoords=("data", "axes fraction"), xytext=(shift, 7), textcoords="offset points",
                    ha=side, fontsize=SMALL, color=mark("muted"),
                )  # fmt: skip
        wide = WIDTH - 12
        for k, (text, face, edge) in enumerate(
            ((filled_name, colour, colour), (outlined_name, "none", mark("ink"))) if outlined is not None else ()
        ):
            at = wide - (LETTER * (len(filled_name) + len(outlined_name)) + 54) + k * (LETTER * len(filled_name) + 30)
            from matplotlib.patches import Rectangle

            box = Rectangle(
                (at / made.width, 1 - 15 / made.height), 9 / made.width, 8 / made.height, facecolor=face,
                edgecolor=edge, linewidth=1.1, alpha=0.6 if face != "none" else 1,
            )  # fmt: skip
            made.figure.add_artist(box)
            made.figure.text((at + 14) / made.width, 1 - 11 / made.height, text, fontsize=SMALL, va="center")
    return made.svg


Numbers = Sequence[float]
DIRECT = 6
"""More series than these are named by the key of the page, not by labels within the plot."""


@dataclass(frozen=True)
class Line:
    """A line and how it looks.

    Attributes:
        xs, ys: its points.
        index: which series it is: colour, dash and marker.
        label: what is written at its end, if anything.
        low, high: a band around it.
        faint: thin and pale, behind the others, e.g. one seed of several.
        marks: whether each point has a marker.
        dashed: the dash where it is not that of the series.
    """

    xs: Numbers
    ys: Numbers
    index: int = 0
    label: str = ""
    low: Numbers | None = None
    high: Numbers | None = None
    faint: bool = False
    marks: bool = False
    dashed: int | None = None


def line_plot(
    slug: str,
    alt: str,
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    fractions: bool = False,
    whole: bool = False,
    log: bool = False,
    from_zero: bool = True,
    bottom: float | None = None,
    x_text: Callable[[float, object], str] | None = None,
    x_log: bool = False,
    upright: float | None = None,
    height: float = 220,
) -> Markup:
    """Lines over a number, each named at its end.

    Args:
        x, y: names of the axes with their units.
        fractions: y is a share, shown in percent.
        whole: x is a count.
        log, x_log: logarithmic axes.
        from_zero: the y axis begins at 0.
        bottom: where else it begins; what lies lower is cut.
        x_text: how ticks of x read.
        upright: an x to mark, e.g. the radius that the network was trained for.
    """
    named = [line for line in lines if line.label]
    direct = len(named) <= DIRECT
    longest = max((len(line.label) for line in named), default=0) if direct else 0
    keys = 22 if any(line.dashed is not None for line in named) else 14
    right = min(12 + (LETTER * min(longest, 20) + keys if longest else 0), 150)
    with canvas(slug, alt, right=right, height=height) as made:
        axes = made.axes
        if x_log:
            axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        if log:
            axes.set_yscale("log")
        if upright is not None:
            axes.axvline(upright, color=mark("rule"), linewidth=1, dashes=(3, 3), zorder=0)
        for line in sorted(lines, key=lambda each: not each.faint):
            _draw(axes, line, cut=bottom is not None)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        elif from_zero and not log:
            axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1e-6))
        if fractions:
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
        axes.margins(x=0.02)
        ticks(axes, whole=whole, fractions=fractions, x_text=x_text)
        if x_log:
            _log_ticks(axes, sorted({value for line in lines for value in line.xs}))
        if log:
            axes.minorticks_off()
        frame(made, x, y)
        if direct:
            _label_ends(made, named)
    return made.svg


def _draw(axes: Axes, line: Line, cut: bool) -> None:
    colour, dashes = mark(series(line.index)), dash(line.index if line.dashed is None else line.dashed)
    alone = len(line.xs) == 1
    if line.low is not None and line.high is not None:
        if alone:
            axes.vlines(line.xs, line.low, line.high, color=colour, linewidth=1.2, alpha=0.6)
        else:
            axes.fill_between(line.xs, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
    look: dict[str, Any] = {"color": colour, "linewidth": 0.9 if line.faint else 1.9, "alpha": 0.4 if line.faint else 1}
    if dashes and not line.faint:
        look |= {"dashes": dashes, "dash_capstyle": "butt"}
    if line.marks or alone:
        look |= {"marker": marker(line.index), "markersize": 3 if line.faint else 4.6, "markeredgewidth": 0}
    axes.plot(line.xs, line.ys, clip_on=cut, **look)


def _log_ticks(axes: Axes, values: Sequence[float]) -> None:
    kept: list[float] = []
    for value in values:
        if not kept or value >= 2.4 * max(kept[-1], 0.4):
            kept.append(value)
    if kept and kept[-1] != values[-1]:
        kept[-1] = values[-1]
    axes.set_xticks(kept, [f"{value:g}" for value in kept])
    axes.minorticks_off()


def _label_ends(made: Canvas, lines: Sequence[Line]) -> None:
    """Names beside the ends of lines: a marker in the colour, letters in ink, which can be read in any colour."""
    axes = made.axes
    if not lines:
        return
    made.figure.draw_without_rendering()
    box = axes.get_window_extent()
    ends = [axes.transData.transform((line.xs[-1], line.ys[-1]))[1] for line in lines]
    places = spread(ends, 13.5, box.y0 + 2, box.y1)
    for line, place in zip(lines, places, strict=True):
        x = (box.x1 + 10) / made.width
        colour = mark(series(line.index))
        look: dict[str, Any] = {"color": colour, "transform": made.figure.transFigure, "clip_on": False}
        half = 0.0 if line.dashed is None else 8 / made.width
        if line.dashed is None:
            look |= {"marker": marker(line.index), "markersize": 5, "markeredgewidth": 0}
        elif dash(line.dashed):
            look |= {"dashes": dash(line.dashed), "dash_capstyle": "butt"}
        axes.plot([x - half / 2, x + 1.5 * half], [place / made.height] * 2, **look)
        text = line.label if len(line.label) <= 20 else line.label[:19] + "…"
        at = x + 8 / made.width + 1.1 * half
        made.figure.text(at, place / made.height, text, fontsize=LETTERS, va="center_baseline")


@dataclass(frozen=True)
class Bin:
    """Images of about one confidence: their mean confidence, their accuracy and its interval, shares in [0, 1]."""

    confidence: float
    accuracy: float
    low: float
    high: float


def reliability(slug: str, alt: str, clean: Sequence[Bin], attacked: Sequence[Bin], *, index: int) -> Markup:
    """Both states in one plot: hollow without attack, filled under it."""
    with canvas(slug, alt, height=250, left=34) as made:
        axes, colour = made.axes, mark(series(index))
        axes.plot([0, 1], [0, 1], color=mark("muted"), linewidth=1, dashes=(3, 3))
        for name, bins, face, tone in (
            ("clean", clean, mark("page"), mark("ink")), ("attacked", attacked, colour, colour),
        ):  # fmt: skip
            xs, ys = [b.confidence for b in bins], [b.accuracy for b in bins]
            axes.vlines(xs, [b.low for b in bins], [b.high for b in bins], color=tone, linewidth=1, alpha=0.4)
            shape = "o" if name == "clean" else marker(index)
            axes.plot(
                xs, ys, color=tone, linewidth=1.2, marker=shape, markersize=4.6, markerfacecolor=face,
                markeredgecolor=tone, markeredgewidth=1.1, label=name,
            )  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        look = {"frameon": False, "handlelength": 1.6, "borderpad": 0.1}
        axes.legend(loc="upper left", fontsize=SMALL, labelcolor=mark("ink"), **look)
        ticks(axes, n=4, fractions=True, x_text=percentages)
        frame(made, "confidence, %", "accuracy, %")
    return made.svg


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


@dataclass(frozen=True)
class Place:
    """Where a row of the results stands: (clean, robust) of its mean and of each seed, shares in [0, 1]."""

    index: int
    name: str
    mean: tuple[float, float]
    seeds: Sequence[tuple[float, float]]


def trade_off(slug: str, alt: str, places: Sequence[Place], *, x: str, y: str) -> Markup:
    """The scatter, each place named beside its dot where there is room for names."""
    direct = len(places) <= 8
    with canvas(slug, alt, height=250, left=34, right=14) as made:
        axes = made.axes
        for place in places:
            look: dict[str, Any] = {
                "color": mark(series(place.index)),
                "marker": marker(place.index),
                "linestyle": "none",
            }
            for seed in place.seeds if len(place.seeds) > 1 else ():
                axes.plot([seed[0]], [seed[1]], alpha=0.45, markersize=3.2, markeredgewidth=0, **look)
                axes.plot(*zip(place.mean, seed, strict=True), color=look["color"], alpha=0.3, linewidth=0.8)
            x_mean, y_mean = place.mean
            axes.plot([x_mean], [y_mean], markersize=7.5, markeredgewidth=1, markeredgecolor=mark("page"), **look)
        axes.margins(0.14, 0.12)
        axes.grid(visible=True, axis="both")
        ticks(axes, n=4, fractions=True, x_text=percentages)
        frame(made, x, y)
        if direct:
            made.figure.draw_without_rendering()
            box = axes.get_window_extent()
            inside = Box(box.x0 + 2, box.y0 + 2, box.x1 + 12, box.y1 + 6)
            at = [(float(x), float(y)) for x, y in (axes.transData.transform(place.mean) for place in places)]
            names = [place.name if len(place.name) <= 20 else place.name[:19] + "…" for place in places]
            write_names(made, axes, names, at, labels(at, [(LETTER * len(name), 13.0) for name in names], inside))
    return made.svg
