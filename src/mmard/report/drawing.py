"""From a matplotlib figure to SVG that belongs to the page: its colours, its letters, its own ids, nothing foreign.

Drawings are small on purpose (`WIDTH`), so that a phone shows each at its natural size and a wide screen several beside
each other. Text stays text. The same drawing gives the same characters on every machine with the same matplotlib.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup, escape

from mmard.errors import needs_extra
from mmard.report.palette import DARK, LIGHT, declarations, mark, variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 320
"""Of a drawing, in CSS pixels at its natural size; its letters are as large as small print beside it."""
LETTERS = 11
SMALL = 10

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_IDS = re.compile(r"url\(#([^)]+)\)")


def need_plots() -> None:
    """Refuse early where matplotlib is not installed.

    Raises:
        Refused: naming the extra that brings it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise needs_extra("matplotlib", "plots", "mmard report") from None


def style() -> dict[str, Any]:
    """What a drawing of the report looks like, as matplotlib's settings."""
    ink, muted = mark("ink"), mark("muted")
    return {
        "figure.dpi": 72,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": mark("rule"),
        "axes.linewidth": 1,
        "axes.labelcolor": muted,
        "axes.labelsize": LETTERS,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": mark("grid"),
        "grid.linewidth": 1,
        "xtick.color": mark("rule"),
        "xtick.labelcolor": muted,
        "xtick.labelsize": LETTERS,
        "xtick.major.size": 3,
        "xtick.minor.visible": False,
        "ytick.color": mark("rule"),
        "ytick.labelcolor": muted,
        "ytick.labelsize": LETTERS,
        "ytick.major.size": 0,
        "font.family": ["DejaVu Sans"],
        "font.size": LETTERS,
        "text.color": ink,
        "text.parse_math": False,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "mmard",
        "path.simplify": False,
    }


class Canvas:
    """A figure with one plot, which becomes SVG when it is drawn."""

    def __init__(self, figure: Figure, axes: Axes, width: float, height: float) -> None:
        self.figure, self.axes, self.width, self.height = figure, axes, width, height
        self.svg = Markup("")


@contextmanager
def canvas(
    slug: str,
    alt: str,
    *,
    height: float = 220,
    width: float = WIDTH,
    left: float = 36,
    right: float = 10,
    top: float = 24,
    bottom: float = 36,
) -> Iterator[Canvas]:
    """A plot to draw on, within the block; after it, `svg` holds the drawing.

    Args:
        slug: what the ids within begin with, one of its kind on the page.
        alt: what the drawing shows, in words.
        height, width, left, right, top, bottom: of the whole and of its margins, in CSS pixels.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Defaults first: a matplotlibrc of the reader's must not reach into the page.
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        for key, value in style().items():
            mpl.rcParams[key] = value  # type: ignore[index]
        # The page's font draws the letters; matplotlib's own need not have them all.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        made = Canvas(figure, figure.add_axes(place), width, height)
        yield made
        held = io.BytesIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(held, format="svg", metadata=nothing)
    made.svg = page_svg(held.getvalue().decode(), slug, alt)


def page_svg(text: str, slug: str, alt: str) -> Markup:
    """SVG as matplotlib writes it, made a part of the page."""
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            styles = child.tag == f"{_SVG}defs" and child.find(f"{_SVG}style") is not None
            if styles or child.tag.endswith("metadata"):
                parent.remove(child)
    _rename(root, slug)
    small = {id(part) for defs in root.iter(f"{_SVG}defs") for part in defs.iter()}
    for element in root.iter():
        _tidy(element, 2 if id(element) in small else 1)
    inner = "".join(_written(child) for child in root)
    shape = root.attrib["viewBox"]
    return Markup('<svg class="plot" viewBox="{}" role="img" aria-label="{}">{}</svg>').format(
        shape, alt, Markup(inner)
    )


def standing_alone(svg: Markup, width: float, height: float) -> str:
    """A drawing of the report's as a file of its own, with the colours that its page would bring."""
    style = (
        f":root {{ {declarations(LIGHT)} }} @media (prefers-color-scheme: dark) {{ :root {{ {declarations(DARK)} }} }} "
        "text { font-family: system-ui, sans-serif; }"
    )
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
    opened = str(svg).replace('<svg class="plot"', f"<svg {size}", 1)
    head, rest = opened.split(">", 1)
    ground = '<rect width="100%" height="100%" style="fill: var(--page)"/>'
    return f"{head}><style>{style}</style>{ground}{rest}\n"


def _rename(root: ElementTree.Element, slug: str) -> None:
    """Keep the ids that something refers to, under names that no other drawing has."""
    wanted = set()
    for element in root.iter():
        if _LINK in element.attrib:
            wanted.add(element.attrib[_LINK][1:])
        for value in element.attrib.values():
            wanted |= set(_IDS.findall(value))
    names: dict[str, str] = {}
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in wanted:
            element.attrib["id"] = names.setdefault(str(own), f"{slug}.{len(names)}")
    for element in root.iter():
        if _LINK in element.attrib:
            element.attrib["href"] = "#" + names[element.attrib.pop(_LINK)[1:]]
        for key, value in element.attrib.items():
            if _IDS.search(value):
                element.attrib[key] = _IDS.sub(lambda found: f"url(#{names[found[1]]})", value)


def _tidy(element: ElementTree.Element, digits: int) -> None:
    """Short numbers, the page's letters, and no turn by nothing."""
    element.tag = element.tag.removeprefix(_SVG)
    attributes = element.attrib
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if "style" in attributes:
        parts = [part.strip() for part in attributes["style"].split(";")]
        parts = [part for part in parts if part and not part.startswith("font-family")]
        attributes["style"] = variables("; ".join(parts))
    for key in ("d", "x", "y", "width", "height", "transform", "style"):
        if key in attributes:
            kept = 2 if key == "style" else digits
            short = _NUMBER.sub(lambda found, kept=kept: _short(found[0], kept), attributes[key])  # type: ignore[misc]
            attributes[key] = " ".join(short.split())
    if "d" in attributes:
        attributes["d"] = _brief(attributes["d"])
    element.tail = None
    if element.tag != "text" and element.tag != "tspan":
        element.text = None


def _short(number: str, digits: int) -> str:
    text = f"{float(number):.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _brief(path: str) -> str:
    """A path of straight lines with its level and upright parts as such, and none of no length; others as they are.

    >>> _brief("M 0 5 L 0 5 L 4 5 L 4 9 L 7 12 z"), _brief("M 0 0 C 1 1 2 2 3 3")
    ('M0 5H4V9L7 12z', 'M 0 0 C 1 1 2 2 3 3')
    """
    words = path.split()
    if set(filter(str.isalpha, words)) - {"M", "L", "z"}:
        return path
    made, at, i = [], ("", ""), 0
    while i < len(words):
        if words[i] == "z":
            made.append("z")
            i += 1
            continue
        letter, x, y = words[i : i + 3]
        i += 3
        if letter == "M" or (x != at[0] and y != at[1]):
            made.append(f"{letter}{x} {y}")
        elif x != at[0]:
            made.append(f"H{x}")
        elif y != at[1]:
            made.append(f"V{y}")
        at = (x, y)
    return "".join(made)


def _written(element: ElementTree.Element) -> str:
    """An element as HTML spells it; groups that say nothing are left out."""
    inner = str(escape(element.text or "")) + "".join(_written(child) for child in element)
    if (element.tag in ("g", "defs") and not inner) or element.attrib.get("style") == "fill: none":
        return ""
    if element.tag == "g" and not element.attrib:
        return inner
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in element.attrib.items())
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>"
