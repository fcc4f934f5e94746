"""What plots share: the names of axes, ticks, and places for labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmard.report.drawing import LETTERS, Canvas
from mmard.report.palette import mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LETTER = 6.2
"""Width of a letter of a label, on average."""


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
    axes.yaxis.set_major_formatter(FuncFormatter(percentages if fractions else plain))


def plain(value: float, _: object = None) -> str:
    """A number as a tick, with a minus that is one."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


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
