"""The kinds of plot that the report draws: lines over a number, dots in rows, bars in rows, steps of a histogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mmard.report.drawing import LETTERS, SMALL, WIDTH, Canvas, canvas
from mmard.report.palette import dash, mark, marker, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Sequence[float]
DIRECT = 6
"""More series than these are told by the key of the page, not by labels within the plot."""
LETTER = 6.2
"""Width of a letter of a label, on average."""


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


def percentages(value: float, _: object = None) -> str:
    """A fraction as a tick in percent.

    >>> percentages(0.25)
    '25'
    """
    return f"{100 * value:.4g}"


def frame(made: Canvas, x: str, y: str) -> None:
    """Name both axes: y above its numbers where it can be read upright, x below."""
    axes = made.axes
    figure_y = 1 - 11 / made.height
    made.figure.text(2 / made.width, figure_y, y, color=mark("muted"), fontsize=LETTERS, va="center")
    axes.set_xlabel(x, loc="right", labelpad=3)


def ticks(axes: Axes, *, whole: bool = False, n: int = 5, fractions: bool = False, x_text: Any = None) -> None:
    """Few ticks, at round numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(n, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    if x_text is not None:
        axes.xaxis.set_major_formatter(FuncFormatter(x_text))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(percentages if fractions else _plain))


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


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


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels, as near to the wanted ones as a gap between them allows, in the same order.

    >>> spread([10, 11, 50], 10, 0, 100)
    [5.5, 15.5, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        clusters.append([i])
        centres.append(float(wanted[i]))
        while len(clusters) > 1:
            reach = gap * (len(clusters[-1]) + len(clusters[-2])) / 2
            if centres[-1] - centres[-2] >= reach:
                break
            joined = clusters[-2] + clusters[-1]
            clusters[-2:] = [joined]
            centres[-2:] = [sum(wanted[j] for j in joined) / len(joined)]
    placed = [0.0] * len(wanted)
    for members, centre in zip(clusters, centres, strict=True):
        half = gap * (len(members) - 1) / 2
        centre = min(max(centre, low + half), max(high - half, low + half))
        for k, i in enumerate(members):
            placed[i] = centre - half + gap * k
    return placed


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
        axes.xaxis.set_major_formatter(FuncFormatter(percentages if fractions else _plain))
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


def histogram(
    slug: str, alt: str, edges: Numbers, filled: Numbers, outlined: Numbers | None, *, index: int, x: str, y: str,
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
