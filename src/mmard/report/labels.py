"""Places for names beside points of a scatter, so that no name lies on another or on a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mmard.report.drawing import LETTERS, Canvas
from mmard.report.palette import mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
