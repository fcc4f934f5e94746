"""Pad-crop, flip and cutout for whole batches, in two acts: drawing the views, and applying them to images.

A view is a few integers per image, drawn on the CPU. So whoever remembers something about views of images (a teacher's
predictions, say) can know the view before the pixels exist: pad 4 with flips has 9 x 9 x 2 = 162 of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mmard.data.strong import shapes, strong, weak
from mmard.errors import Refused, unknown

_GRID = 2**16  # centres of holes are drawn as fractions of the side, in these steps


@dataclass(frozen=True)
class Views:
    """What was drawn for a batch, int64 (B,) each and bool (B,) for `flip`.

    Args:
        dy: first row of the crop within the padded image, 0 to 2 pad; `pad` is the image itself.
        dx: first column, likewise.
        flip: mirrored left to right, after the crop.
        hole_y: centre of the hole as a fraction of the height, in 65536ths; looked at only where there is cutout.
        hole_x: likewise of the width.
    """

    dy: Tensor
    dx: Tensor
    flip: Tensor
    hole_y: Tensor
    hole_x: Tensor

    def take(self, rows: slice) -> Views:
        """What was drawn for some of the images."""
        return replace(self, **{each.name: getattr(self, each.name)[rows] for each in fields(self)})


class Augmenting(Protocol):
    """What batches need of an augmentation. The views are its own kind, with a `take` of rows."""

    @property
    def distinct(self) -> int | None:
        """How many views of an image there are; None if they are not counted."""

    def draw(self, n: int, generator: torch.Generator) -> Any:
        """Views for n images, from a generator on the CPU."""

    def apply(self, x: Tensor, views: Any) -> Tensor:
        """The views of the images, (B, C, H, W) -> (B, C, H, W)."""


@dataclass(frozen=True)
class Augmentation:
    """Random crops of the zero-padded image, mirror images, and a square hole.

    Args:
        pad: zero pixels added on each side before a crop of the original size is taken; 0 for no crop.
        flip: mirror every other image, by chance.
        cutout: side of a square set to zero around a random pixel, cut off at the border (DeVries and Taylor, 2017,
            arXiv:1708.04552); 0 for none.

    >>> Augmentation(pad=4, flip=True).distinct
    162
    """

    pad: int = 4
    flip: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.pad < 0 or self.cutout < 0:
            raise Refused("Augmentation", expected="pad and cutout of 0 or more", got=f"{self.pad} and {self.cutout}")

    @property
    def distinct(self) -> int | None:
        """How many views of an image there are; None with cutout, whose holes are not counted."""
        return None if self.cutout else (2 * self.pad + 1) ** 2 * (1 + self.flip)

    def number(self, views: Views) -> Tensor:
        """Each view's number in 0..distinct - 1, int64 (B,).

        Raises:
            Refused: with cutout.
        """
        if self.cutout:
            raise Refused("views with cutout", expected="views that can be counted", got=f"cutout {self.cutout}")
        crop = views.dy * (2 * self.pad + 1) + views.dx
        return crop * (1 + self.flip) + views.flip.long()

    def numbered(self, number: Tensor) -> Views:
        """The views with these numbers, int64 (B,): the inverse of `number`.

        >>> augmentation = Augmentation(pad=4)
        >>> augmentation.number(augmentation.numbered(torch.tensor([0, 83, 161])))
        tensor([  0,  83, 161])
        """
        crop, flip = number // (1 + self.flip), number % (1 + self.flip)
        nowhere = torch.zeros_like(number)
        return Views(crop // (2 * self.pad + 1), crop % (2 * self.pad + 1), flip > 0, nowhere, nowhere)

    def draw(self, n: int, generator: torch.Generator) -> Views:
        """Views for n images, uniform over all there are, from a generator on the CPU."""

        def integers(below: int) -> Tensor:
            return torch.randint(below, (n,), generator=generator)

        crops = 2 * self.pad + 1
        dy, dx, flip = integers(crops), integers(crops), integers(2) > 0
        return Views(dy, dx, flip & self.flip, integers(_GRID), integers(_GRID))

    def apply(self, x: Tensor, views: Views) -> Tensor:
        """The views of the images, (B, C, H, W) -> (B, C, H, W), same type and device; never the input's own storage
        unless there is nothing to do."""
        b, c, h, w = x.shape
        if self.pad or self.flip:
            i, j = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
            dy, dx, flip = (v.to(x.device, non_blocking=True)[:, None] for v in (views.dy, views.dx, views.flip))
            rows, columns = i + dy, torch.where(flip, w - 1 - j, j) + dx
            padded = F.pad(x, (self.pad,) * 4)
            # One gather over the flattened image: eight times faster on a CPU than indexing with four index tensors.
            places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(b, 1, h * w)
            x = padded.flatten(2).gather(2, places.expand(b, c, h * w)).view(b, c, h, w)
        if self.cutout:
            inside = self._within(views.hole_y, h, x.device)[:, None, :, None]
            x = x.masked_fill(inside & self._within(views.hole_x, w, x.device)[:, None, None, :], 0)
        return x

    def _within(self, hole: Tensor, side: int, device: torch.device) -> Tensor:
        """Which of the rows or columns the hole covers, bool (B, side)."""
        first = (hole.to(device, non_blocking=True) * side // _GRID - self.cutout // 2)[:, None]
        i = torch.arange(side, device=device)
        return (i >= first) & (i < first + self.cutout)


def _eighth(side: int) -> int:
    return max(1, round(side / 8))


AUGMENTATIONS: dict[str, Callable[[int], Augmenting | None]] = {
    "none": lambda side: None,
    "crop": lambda side: Augmentation(_eighth(side), flip=False),
    "crop-flip": lambda side: Augmentation(_eighth(side), flip=True),
    "crop-flip-cutout": lambda side: Augmentation(_eighth(side), flip=True, cutout=side // 2),
    "idbh-weak": weak,
    "idbh-strong": strong,
    "idbh-shape": shapes,
}
"""By name, for images of a given side: padding is an eighth of it (4 at 32 pixels, 8 at 64), a hole half of it.
The recipe idbh is in `mmard.data.strong`."""


def augmentation(name: str, image_shape: tuple[int, int, int]) -> Augmenting | None:
    """The named augmentation for images (C, H, W), or None for none.

    >>> augmentation("crop-flip", (3, 32, 32))
    Augmentation(pad=4, flip=True, cutout=0)

    Raises:
        Refused: for a name that AUGMENTATIONS does not hold.
    """
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name](min(image_shape[1:]))
