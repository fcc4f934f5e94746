"""What the plots of studies are made of, and what a file of one says of itself.

They are drawn as the report's are, wider, and bring the colours for light and dark with them. Each names in its head
what it was drawn from (`drawn_from`), so that a plot that lags behind its records is found without drawing it again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmard.report.drawing import LETTER, LETTERS, SMALL, Canvas, canvas, need_plots, standing_alone
from mmard.report.palette import mark, marker, series
from mmard.study.figures import protocol
from mmard.study.reading import Reading
from mmard.tables.statistics import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


WIDTH = 720
"""Of a plot, in CSS pixels: what a page of text is wide."""
NAME = 10
"""Between a name and the panel that it stands at."""
BOTTOM = 40
"""Below a panel, for its ticks and title."""
LETTER_HEIGHT = 13.0
WIDE = 7.0
"""Of a letter in a font that is wide."""


@dataclass(frozen=True)
class Plot:
    """A plot that can be drawn.

    Attributes:
        slug: what its file is called beside the study's name; "" for the first.
        alt: what it shows, in words.
        draw: makes the SVG file's text; refused where matplotlib is not installed.
    """

    slug: str
    alt: str
    draw: Callable[[], str]


def stamp(reading: Reading) -> str:
    """What a study's plots are drawn from: a hash of its rows, and of the figures in their records."""
    grid = reading.grid
    rows = [[row.host, row.variant, row.student, row.teacher, row.axis, row.value, row.cells] for row in grid.rows]
    held = {}
    for name in grid.cells:
        record = reading.records.get(name)
        if record is not None:
            own = record["figures"].get(reading.which, {})
            figures = {key: [each["n"], each["correct"], each.get("right")] for key, each in own.items()}
            held[name] = [figures, record["seconds"], record.get("boundary")]
    said = [grid.scale.name, grid.study.name, grid.study.apart, reading.which, rows, held]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def drawn_from(svg: str) -> str | None:
    """The `stamp` of what a file was drawn from; None where it says nothing."""
    found = re.search(r"<desc>drawn from ([0-9a-f]{16})</desc>", svg)
    return None if found is None else found[1]


def around(value: float, reach: float | None) -> tuple[float, float] | None:
    """An interval by its middle and half of its width."""
    return None if reach is None else (value - reach, value + reach)


def plot(reading: Reading, slug: str, alt: str, draw: Callable[[Canvas], None], height: float) -> Plot:
    """A plot of this height that `draw` puts on a canvas, as a file that says what it was drawn from."""
    whole = f"{alt} {protocol(reading)}"

    def drawn() -> str:
        need_plots()
        with canvas(slug_of(reading, slug), whole, width=WIDTH, height=height) as made:
            draw(made)
        svg = standing_alone(made.svg, made.width, made.height)
        return svg.replace("<style>", f"<desc>drawn from {stamp(reading)}</desc><style>", 1)

    return Plot(slug, alt, drawn)


def panel(made: Canvas, left: float, top: float, width: float, height: float, *, first: bool = False) -> Axes:
    """Axes at a place in CSS pixels from the upper left corner; `first` moves those that are there."""
    bounds = (left / made.width, 1 - (top + height) / made.height, width / made.width, height / made.height)
    if first:
        made.axes.set_position(bounds)
        return made.axes
    return made.figure.add_axes(bounds)


def words(made: Canvas, x: float, y: float, text: str, *, quiet: bool = False, **more: Any) -> None:
    """Text at a place in CSS pixels from the upper left corner, its middle at y."""
    look: dict[str, Any] = {"fontsize": SMALL if quiet else LETTERS, "va": "center_baseline", **more}
    look["color"] = mark("muted" if quiet else "ink")
    made.figure.text(x / made.width, 1 - y / made.height, text, **look)


def legend(made: Canvas, entries: Sequence[tuple[int, str, bool]], x: float, y: float) -> None:
    """Markers and what they stand for, in one line: (series, name, hollow)."""
    for index, name, hollow in entries:
        colour = mark(series(index))
        made.axes.plot(
            [(x + 5) / made.width], [1 - y / made.height], transform=made.figure.transFigure, clip_on=False,
            marker=marker(index), color=colour, markersize=5.5, markerfacecolor=mark("page") if hollow else colour,
            markeredgewidth=1.2 if hollow else 0, linestyle="none",
        )  # fmt: skip
        words(made, x + 14, y, name)
        x += 32 + LETTER * len(name)


def dot(
    axes: Axes,
    x: float,
    y: float,
    index: int,
    *,
    reach: tuple[float, float] | None = None,
    thin: tuple[float, float] | None = None,
    hollow: bool = False,
    upright: bool = False,
) -> None:
    """A point with an interval (low, high), and a second one in a thin line, along x or, `upright`, along y."""
    colour = mark(series(index))
    for ends, width in ((thin, 0.7), (reach, 2.0)):
        if ends is not None:
            xs, ys = ([x, x], list(ends)) if upright else (list(ends), [y, y])
            axes.plot(xs, ys, color=colour, linewidth=width, alpha=0.5, solid_capstyle="butt")
    axes.plot(
        [x], [y], marker=marker(index), color=colour, markersize=5.5, linestyle="none",
        markerfacecolor=mark("page") if hollow else colour, markeredgewidth=1.2 if hollow else 0,
    )  # fmt: skip


def gap_dot(axes: Axes, gap: Difference, y: float, index: int) -> None:
    """A difference with its intervals over seeds (thick) and over images (thin); hollow within noise."""
    seeds, images = (around(gap.mean, each) for each in (gap.over_seeds, gap.over_images))
    dot(axes, gap.mean, y, index, reach=seeds, thin=images, hollow=not gap.clear)


def in_rows(axes: Axes, names: Sequence[str], positions: Sequence[float], bottom: float, *, named: bool = True) -> None:
    """Rows from the top down, with a grid for what is read off along x."""
    axes.set_yticks(list(positions), list(names) if named else [""] * len(positions))
    axes.tick_params(axis="y", labelcolor=mark("ink"), pad=NAME - 4)
    axes.set_ylim(bottom, -0.7)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")


def along(axes: Axes, title: str, *, shares: bool = True, n: int = 5, zero: bool = False) -> None:
    """Few ticks along x, in percent for shares, and what they count."""
    few_ticks(axes.xaxis, n, in_percent if shares else plain)
    axes.margins(x=0.06)
    axes.set_xlabel(title, loc="right", labelpad=3)
    if zero:
        axes.axvline(0, color=mark("muted"), linewidth=1, zorder=0)


def few_ticks(axis: Axis, n: int, said: Callable[[float, object], str] | None = None) -> None:
    """At most so many ticks at round numbers, in percent unless said otherwise."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(n, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(said or in_percent))


def in_percent(value: float, _: object = None) -> str:
    """A share as a tick in percent, with a real minus."""
    return plain(100 * value)


def plain(value: float, _: object = None) -> str:
    """A number as a tick."""
    return f"{round(value, 9):.4g}".replace("-", "\N{MINUS SIGN}")


def name_width(names: Sequence[str]) -> float:
    """What the longest name takes at the left of a panel."""
    return NAME + 4 + WIDE * max(map(len, names), default=0)


def level_title(reading: Reading) -> str:
    """What an axis of robust accuracies says of its intervals."""
    several = any(len(reading.recorded(row)) > 1 for row in reading.grid.rows)
    return "robust %, mean and its 95 % interval" if several else "robust %, 95 % interval over images"


def slug_of(reading: Reading, *more: str) -> str:
    """What ids within a plot begin with."""
    return "-".join(filter(None, (reading.grid.scale.name, reading.grid.study.name, *more)))


def same_heights(panels: Sequence[Axes]) -> None:
    """The widest of the limits along y for all of some panels, with the same ticks in percent."""
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        few_ticks(axes.yaxis, 4)
