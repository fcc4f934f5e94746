"""From a matplotlib figure to SVG that belongs to the page: its colours, its letters, its own ids, nothing foreign.

Drawings are small on purpose (`WIDTH`), so that a phone shows each at its natural size and a wide screen several beside
each other. Text stays text. The same drawing gives the same characters on every machine with the same matplotlib.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
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


class Box(NamedTuple):
    """In CSS pixels, y upward."""

    left: float
    bottom: float
    right: float
    top: float

    def shared(self, other: Box) -> float:
        """Area that two have in common."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.top, other.top) - max(self.bottom, other.bottom)
        return across * up if across > 0 and up > 0 else 0.0


DISTANCES = (9.0, 16.0, 26.0, 38.0, 52.0, 68.0)
TURNS = 16
POINT = 6.0
"""Half of what a point takes."""
LED = 12.0
"""A name farther from its point than this needs a line to it."""


def labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    avoided: Sequence[tuple[float, float]] = (),
) -> list[Box]:
    """A box for each name, near its point.

    Each takes the nearest place that is free of earlier names, of all points and of the rim, those in a crowd first;
    where there is none, the one that covers least.

    Args:
        points: (x, y) in CSS pixels, y upward.
        sizes: (width, height) of the names.
        inside: what they must not leave.
        avoided: more places that they had better not cover, e.g. along a line.
    """
    dots = [Box(x - POINT, y - POINT, x + POINT, y + POINT) for x, y in points]
    dots += [Box(x - 1, y - 1, x + 1, y + 1) for x, y in avoided]
    near = [sum(math.dist(a, b) < 80 for b in points) for a in points]
    placed: dict[int, Box] = {}
    for i in sorted(range(len(points)), key=lambda i: (-near[i], points[i])):
        placed[i] = min(
            _places(points[i], sizes[i]), key=lambda each: _price(each, points[i], dots, list(placed.values()), inside)
        )
    return [placed[i] for i in range(len(points))]


def _places(point: tuple[float, float], size: tuple[float, float]) -> list[Box]:
    """Boxes around a point whose nearest edge or corner is at one of the distances."""
    (x, y), (wide, tall) = point, size
    found = []
    for distance in DISTANCES:
        for turn in range(TURNS):
            angle = 2 * math.pi * turn / TURNS
            to_x, to_y = math.cos(angle), math.sin(angle)
            # The box leans away from the point: its edge on the near side is at the distance.
            middle_x = x + distance * to_x + wide / 2 * (0 if abs(to_x) < 0.2 else math.copysign(1, to_x))
            middle_y = y + distance * to_y + tall / 2 * to_y
            found.append(Box(middle_x - wide / 2, middle_y - tall / 2, middle_x + wide / 2, middle_y + tall / 2))
    return found


def _price(
    box: Box, point: tuple[float, float], dots: Sequence[Box], others: Sequence[Box], inside: Box
) -> tuple[float, float]:
    covered = sum(box.shared(each) for each in dots) + sum(box.shared(each) for each in others)
    whole = (box.right - box.left) * (box.top - box.bottom)
    outside = whole - box.shared(inside)
    return round(covered + 2 * outside, 3), reach(box, point)


def reach(box: Box, point: tuple[float, float]) -> float:
    """How far a box is from a point: 0 inside.

    >>> reach(Box(3, 0, 5, 2), (0, 1))
    3.0
    """
    across = max(box.left - point[0], point[0] - box.right, 0.0)
    up = max(box.bottom - point[1], point[1] - box.top, 0.0)
    return math.hypot(across, up)


def write_names(
    made: Canvas, axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]], boxes: Sequence[Box]
) -> None:
    """Write each name into its box; where that is not beside its point, a line leads there.

    Args:
        axes: that the points (x, y), in CSS pixels, are in.
    """
    for name, point, box in zip(names, points, boxes, strict=True):
        if reach(box, point) > LED:
            end = (min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top))
            leader = zip(*(axes.transData.inverted().transform(each) for each in (point, end)), strict=True)
            axes.plot(*leader, color=mark("rule"), linewidth=1, zorder=0)
        x, y = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        made.figure.text(
            x / made.width, y / made.height, name, fontsize=LETTERS, ha="center", va="center_baseline",
        )  # fmt: skip
