"""The report's colours, once for light and once for dark, and how a drawing refers to them by name.

A drawing is made in marker colours, one for each name, which are exchanged for CSS variables when it becomes SVG: so
one drawing serves both. Series keep a distance from each other that is seen with protanopia, deuteranopia and
tritanopia too, and differ in dash and marker as well; red is left to suspicion.
"""

from __future__ import annotations

from markupsafe import Markup

LIGHT = {
    "page": "#fcfcfa",
    "panel": "#f3f4f1",
    "ink": "#1b2026",
    "muted": "#59636e",
    "rule": "#d5dadf",
    "grid": "#e4e7ea",
    "accent": "#0a6670",
    "alarm": "#b3201a",
    "alarm-panel": "#fdf0ee",
    "heat": "#e3a069",
    "right": "#8fc0d6",
    "series-0": "#2348b0",
    "series-1": "#b0430c",
    "series-2": "#1a8670",
    "series-3": "#c965b2",
    "series-4": "#8e8d03",
    "series-5": "#3b424c",
}
DARK = {
    "page": "#14171b",
    "panel": "#1d2126",
    "ink": "#e9ecef",
    "muted": "#a4aeb9",
    "rule": "#3a424b",
    "grid": "#2b3138",
    "accent": "#62c6d2",
    "alarm": "#ff8f85",
    "alarm-panel": "#3a1f1f",
    "heat": "#8a4f1c",
    "right": "#1f5f7a",
    "series-0": "#548cc1",
    "series-1": "#f18104",
    "series-2": "#09bc8b",
    "series-3": "#faa0e5",
    "series-4": "#f7de5b",
    "series-5": "#e5f2ff",
}
TEXT = ("ink", "muted", "accent", "alarm")
"""Colours that text is set in: they keep a contrast of 4.5 with page and panel, as WCAG 2 AA asks."""
TINTS = ("heat", "right")
"""Colours behind ink."""

SERIES = tuple(name for name in LIGHT if name.startswith("series-"))
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.6), (7, 2, 1.6, 2), (4, 1.2), (9, 3))
MARKERS = ("o", "s", "^", "D", "v", "P")

_MARKS = {name: f"#0101{index:02x}" for index, name in enumerate(LIGHT)}


def mark(name: str) -> str:
    """The marker colour that stands for a name while drawing.

    >>> variables(f"stroke: {mark('ink')}")
    'stroke: var(--ink)'
    """
    return _MARKS[name]


def variables(style: str) -> str:
    """A style with CSS variables for marker colours."""
    for name, colour in _MARKS.items():
        style = style.replace(colour, f"var(--{name})")
    return style


def series(index: int) -> str:
    """The name of a series' colour; with more series than colours they begin anew, in another dash.

    >>> series(1), series(7)
    ('series-1', 'series-1')
    """
    return SERIES[index % len(SERIES)]


def dash(index: int) -> tuple[float, ...]:
    """The dash of a series; empty for a whole line."""
    return DASHES[(index + index // len(SERIES)) % len(DASHES)]


def marker(index: int) -> str:
    """The marker of a series, as matplotlib spells it."""
    return MARKERS[(index + index // len(SERIES)) % len(MARKERS)]


_SHAPES = (
    '<circle cx="14" cy="6" r="3.4"/>',
    '<path d="M10.8 2.8h6.4v6.4h-6.4z"/>',
    '<path d="M14 2l4 7.4h-8z"/>',
    '<path d="M14 1.6L18.2 6 14 10.4 9.8 6z"/>',
    '<path d="M14 10.2l4-7.4h-8z"/>',
    '<path d="M12.6 2.2h2.8v2.4h2.4v2.8h-2.4v2.4h-2.8V7.4h-2.4V4.6h2.4z"/>',
)


def swatch(index: int) -> Markup:
    """A sample of a series' line and marker, for keys and the heads of rows."""
    dashes = " ".join(f"{part:g}" for part in dash(index))
    return Markup(
        '<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true" style="--tone: var(--{})">'
        '<path d="M1 6h26" stroke-dasharray="{}"/>{}</svg>'
    ).format(series(index), dashes, Markup(_SHAPES[(index + index // len(SERIES)) % len(_SHAPES)]))


def declarations(colours: dict[str, str]) -> str:
    """CSS declarations of all variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
