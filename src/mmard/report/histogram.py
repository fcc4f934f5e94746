"""Two histograms over the same bins, e.g. of attacked and of clean images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from mmard.report.drawing import SMALL, WIDTH, canvas
from mmard.report.palette import mark, series

if TYPE_CHECKING:
    pass
from mmard.report.axes import LETTER, frame, ticks

Numbers = Sequence[float]


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
