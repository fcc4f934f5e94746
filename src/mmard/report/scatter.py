"""Clean against robust accuracy: a dot for each run, larger ones for means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mmard.report.axes import LETTER, frame, percentages, ticks
from mmard.report.drawing import canvas
from mmard.report.labels import Box, labels, write_names
from mmard.report.palette import mark, marker, series


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
