"""Lines over a number, each named at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mmard.report.drawing import LETTERS, Canvas, canvas
from mmard.report.palette import dash, mark, marker, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from mmard.report.axes import LETTER, frame, spread, ticks

Numbers = Sequence[float]
DIRECT = 6
"""More series than these are told by the key of the page, not by labels within the plot."""


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
