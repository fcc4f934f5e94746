"""Accuracy against confidence, which is the diagonal for a network that knows how sure to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmard.report.axes import frame, percentages, ticks
from mmard.report.drawing import SMALL, canvas
from mmard.report.palette import mark, marker, series


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
