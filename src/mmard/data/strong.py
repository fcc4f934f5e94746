"""The strong augmentation of teacher-free recipes: mirror, crop and shift, one change of colour or shape, erasing.

Li, Spratling. "Data Augmentation Alone Can Improve Adversarial Training", ICLR 2023, arXiv:2301.09879 (IDBH).
Zhong, Zheng, Kang, Li, Yang. "Random Erasing Data Augmentation", AAAI 2020, arXiv:1708.04896.

    mirror by chance  ->  crop-shift by fewer than `reach` pixels  ->  one of eight changes  ->  erase a rectangle

Kinds of change, their probabilities and ranges are those of the authors' released code (TreeLLi/DA-Alone-Improves-AT
and code that carries its classes), read; the numbers of the paper's text were not. What its code does with an image
library is written here as arithmetic on whole batches: colours in [0, 1] without rounding in between, and shapes by the
nearest pixel. So images agree with it up to rounding, and draws do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.data.changes import CHANGES, nearest
from mmard.errors import require

# Probability of each change, and the range of its strength.
COLOUR = {
    "saturation": (0.125, 0.1, 1.9),
    "brightness": (0.125, 0.5, 1.9),
    "contrast": (0.125, 0.5, 1.9),
    "sharpness": (0.125, 0.1, 1.9),
    "autocontrast": (0.125, 0.0, 0.0),
    "equalise": (0.125, 0.0, 0.0),
    "shear": (0.125, 0.05, 0.15),
    "rotate": (0.125, 1.0, 10.0),
}
SHAPE = {
    "saturation": (0.08, 0.1, 1.9),
    "brightness": (0.08, 0.5, 1.9),
    "contrast": (0.04, 0.5, 1.9),
    "sharpness": (0.08, 0.1, 1.9),
    "autocontrast": (0.04, 0.0, 0.0),
    "equalise": (0.08, 0.0, 0.0),
    "shear": (0.3, 0.05, 0.35),
    "rotate": (0.3, 1.0, 30.0),
}
TRIES = 10
"""Rectangles that are drawn until one fits into the image, after which there is none."""


@dataclass(frozen=True)
class StrongViews:
    """What was drawn for a batch: uniform numbers in [0, 1), float64 (B, n) each, with a meaning for each column.

    Args:
        place: mirror, strength of the crop, its share across, and the two corners, across and down.
        change: which change, its strength, its sign, its axis.
        hole: whether to erase, then area, shape, and corner of each try.
    """

    place: Tensor
    change: Tensor
    hole: Tensor

    def take(self, rows: slice) -> StrongViews:
        """What was drawn for some of the images."""
        return StrongViews(self.place[rows], self.change[rows], self.hole[rows])


@dataclass(frozen=True)
class StrongAugmentation:
    """Mirror, crop-shift, one change, and erasing, each drawn for each image.

    Args:
        reach: a crop loses fewer pixels than this, across and down together; what is left is put elsewhere on black.
        changes: probability and range of strength by name, as `COLOUR` and `SHAPE`.
        erase: probability of an erased rectangle.
        largest: of the area that a rectangle may have; the smallest is 0.02.
        flip: mirror every other image, by chance.
    """

    reach: int = 11
    changes: tuple[tuple[str, tuple[float, float, float]], ...] = tuple(COLOUR.items())
    erase: float = 0.5
    largest: float = 1 / 3
    flip: bool = True

    def __post_init__(self) -> None:
        require(self.reach >= 1, "reach", expected="at least 1", got=self.reach)
        require(0 <= self.erase <= 1, "erase", expected="a probability", got=self.erase)

    @property
    def distinct(self) -> int | None:
        """How many views of an image there are: not counted."""
        return None

    def draw(self, n: int, generator: torch.Generator) -> StrongViews:
        """Views for n images, from a generator on the CPU."""

        def uniform(columns: int) -> Tensor:
            return torch.rand(n, columns, generator=generator, dtype=torch.float64)

        return StrongViews(uniform(7), uniform(4), uniform(1 + 4 * TRIES))

    def apply(self, x: Tensor, views: StrongViews) -> Tensor:
        """The views of the images, uint8 levels or floats in [0, 1], (B, C, H, W) -> (B, C, H, W), same type."""
        levels = not x.is_floating_point()
        z = x.float() / 255 if levels else x
        z = self._placed(z, views.place.to(x.device))
        z = self._changed(z, views.change.to(x.device))
        z = self._erased(z, views.hole.to(x.device))
        return (z * 255).round().clamp(0, 255).to(x.dtype) if levels else z

    def _placed(self, x: Tensor, u: Tensor) -> Tensor:
        """Mirror, then lose `a` columns and `b` rows, a + b < reach, and put the rest somewhere else."""
        h, w = x.shape[2:]
        strength = (u[:, 1] * self.reach).long()
        a = (u[:, 2] * (strength + 1)).long()
        b = strength - a
        from_x, from_y, to_x, to_y = (
            (u[:, column] * (lost + 1)).long() for column, lost in ((3, a), (4, b), (5, a), (6, b))
        )
        j, i = torch.arange(w, device=x.device), torch.arange(h, device=x.device)
        columns, rows = j - (to_x - from_x)[:, None], i - (to_y - from_y)[:, None]
        inside_x = (j >= to_x[:, None]) & (j < (to_x + w - a)[:, None])
        inside_y = (i >= to_y[:, None]) & (i < (to_y + h - b)[:, None])
        mirrored = ((u[:, 0] < 0.5) & self.flip)[:, None]
        columns = torch.where(mirrored, w - 1 - columns, columns)
        moved = nearest(x, rows[:, :, None].expand(-1, h, w), columns[:, None, :].expand(-1, h, w))
        return moved * (inside_y[:, None, :, None] & inside_x[:, None, None, :])

    def _changed(self, x: Tensor, u: Tensor) -> Tensor:
        """Each image by the one change that was drawn for it."""
        out, below = x.clone(), 0.0
        for name, (probability, low, high) in self.changes:
            mine = ((u[:, 0] >= below) & (u[:, 0] < below + probability)).nonzero()[:, 0]
            below += probability
            if len(mine):
                strength = low + (high - low) * u[mine, 1]
                out[mine] = CHANGES[name](x[mine], strength.to(x.dtype), u[mine, 2] < 0.5, u[mine, 3] < 0.5)
        return out

    def _erased(self, x: Tensor, u: Tensor) -> Tensor:
        """A black rectangle of an area and a shape that were drawn, the first of the tries that fits."""
        h, w = x.shape[2:]
        tries = u[:, 1:].view(len(x), TRIES, 4)
        area = h * w * (0.02 + (self.largest - 0.02) * tries[..., 0])
        ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * tries[..., 1])
        tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (tall < h) & (wide < w)
        first = fits.to(torch.int8).argmax(1, keepdim=True)
        top, left = (tries[..., 2] * (h - tall + 1)).floor(), (tries[..., 3] * (w - wide + 1)).floor()
        tall, wide, top, left = (v.gather(1, first) for v in (tall, wide, top, left))
        i, j = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
        hole = ((i >= top) & (i < top + tall))[:, None, :, None] & ((j >= left) & (j < left + wide))[:, None, None, :]
        erased = (u[:, 0] < self.erase) & fits.any(1)
        return x.masked_fill(hole & erased[:, None, None, None], 0.0)


def _to_side(pixels: int, side: int) -> int:
    return max(1, round(pixels * side / 32))


def weak(side: int) -> StrongAugmentation:
    """For images of this side: erase every other image (the released "weak" form at 32 pixels)."""
    return StrongAugmentation(_to_side(11, side), erase=0.5)


def strong(side: int) -> StrongAugmentation:
    """For images of this side: erase every image (the released "strong" form at 32 pixels)."""
    return StrongAugmentation(_to_side(11, side), erase=1.0)


def shapes(side: int) -> StrongAugmentation:
    """For images of this side: more shear and rotation, larger holes (the released form for house numbers)."""
    return StrongAugmentation(_to_side(9, side), tuple(SHAPE.items()), erase=1.0, largest=0.5)
