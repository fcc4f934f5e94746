"""Augmentation for whole batches, in two acts: drawing the views of images, and applying them.

A view is a few numbers per image, drawn on the CPU. So whoever remembers something about views of images (a teacher's
predictions, say) can know the view before the pixels exist: pad 4 with flips has 9 x 9 x 2 = 162 of them.

    Augmentation         crops of the zero-padded image, mirror images, cutout
    StrongAugmentation   the recipe IDBH of teacher-free training

IDBH: mirror by chance, crop-shift by fewer than `reach` pixels, one of eight transforms of colour or shape, erase a
rectangle. Li, Spratling. "Data Augmentation Alone Can Improve Adversarial Training", ICLR 2023, arXiv:2301.09879.
Zhong, Zheng, Kang, Li, Yang. "Random Erasing Data Augmentation", AAAI 2020, arXiv:1708.04896. Kinds of transform, their
probabilities and ranges are those of the authors' released code (TreeLLi/DA-Alone-Improves-AT and code that carries its
classes), read; the numbers of the paper's text were not. What its code does with an image library is written here as
arithmetic on whole batches: colours in [0, 1] without rounding in between, and shapes by the nearest pixel. So images
agree with it up to rounding, and draws do not.

A transform takes images (B, C, H, W) in [0, 1], strengths (B,), a sign and an axis, bool (B,) each, and returns new
images. The blends are those that image libraries agree on: strength 0 is the degenerate image, 1 the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mmard.data.image_set import as_floats, as_levels
from mmard.errors import Refused, require, unknown

Transform = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

LUMA = (0.2989, 0.587, 0.114)
"""What red, green and blue weigh in a grey image."""


def nearest(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at these rows and columns, int64 (B, H, W) each; black where they are outside the image."""
    b, c, h, w = x.shape
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    flat = (rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)).view(b, 1, h * w)
    return x.flatten(2).gather(2, flat.expand(b, c, h * w)).view(b, c, h, w) * inside[:, None]


def grey(x: Tensor) -> Tensor:
    """Brightness (B, 1, H, W); the image itself where it has one channel."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, degenerate: Tensor, strength: Tensor) -> Tensor:
    s = strength.view(-1, 1, 1, 1)
    return (s * x + (1 - s) * degenerate).clamp(0, 1)


def saturation(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Between grey and twice the colour."""
    return _blend(x, grey(x), strength)


def brightness(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Between black and twice the light."""
    return _blend(x, torch.zeros_like(x), strength)


def contrast(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Between the mean grey and twice the distance from it."""
    return _blend(x, grey(x).mean((2, 3), keepdim=True), strength)


def sharpness(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Between smoothed (3 x 3, the middle five times the rest, borders as they are) and sharpened."""
    smooth, c = x.clone(), x.shape[1]
    if min(x.shape[2:]) >= 3:
        kernel = x.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(c, 1, 3, 3)
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel, groups=c)
    return _blend(x, smooth, strength)


def autocontrast(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Every channel stretched to [0, 1]; one of a single level stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high <= low
    return torch.where(flat, x, (x - low) / (high - low).masked_fill(flat, 1.0))


def equalise(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Every channel with its 256 levels spread evenly, as image libraries do it by integers."""
    b, c, h, w = x.shape
    levels = as_levels(x).long().view(b * c, h * w)
    counts = torch.zeros(b * c, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    last = counts.gather(1, levels.amax(1, keepdim=True))
    step = (h * w - last) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp(0, 255)
    spread = torch.where(step > 0, table.gather(1, levels), levels)
    return as_floats(spread, x.dtype).view(b, c, h, w)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (1, H, W) of the pixels' centres, from the image's centre."""
    h, w = x.shape[2:]
    rows = torch.arange(h, device=x.device, dtype=x.dtype) - (h - 1) / 2
    columns = torch.arange(w, device=x.device, dtype=x.dtype) - (w - 1) / 2
    return rows.view(1, h, 1).expand(1, h, w), columns.view(1, 1, w).expand(1, h, w)


def _at(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    h, w = x.shape[2:]
    return nearest(x, (rows + (h - 1) / 2).round().long(), (columns + (w - 1) / 2).round().long())


def shear(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Rows pushed sideways (or columns up and down, by `axis`) by `strength` pixels a pixel from the centre."""
    s = torch.where(sign, -strength, strength).view(-1, 1, 1)
    rows, columns = _centred(x)
    across = axis.view(-1, 1, 1)
    return _at(x, torch.where(across, rows, rows + s * columns), torch.where(across, columns + s * rows, columns))


def rotate(x: Tensor, strength: Tensor, sign: Tensor, axis: Tensor) -> Tensor:
    """Turned about the centre by this many whole degrees."""
    angle = torch.deg2rad(torch.where(sign, -strength.round(), strength.round())).view(-1, 1, 1)
    rows, columns = _centred(x)
    return _at(x, rows * angle.cos() + columns * angle.sin(), columns * angle.cos() - rows * angle.sin())


TRANSFORMS: dict[str, Transform] = {
    "saturation": saturation,
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "autocontrast": autocontrast,
    "equalise": equalise,
    "shear": shear,
    "rotate": rotate,
}
"""Name -> transform."""


# Probability of each transform, and the range of its strength.
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
        transform: which one, its strength, its sign, its axis.
        hole: whether to erase, then area, shape, and corner of each try.
    """

    place: Tensor
    transform: Tensor
    hole: Tensor

    def take(self, rows: slice) -> StrongViews:
        """What was drawn for some of the images."""
        return StrongViews(self.place[rows], self.transform[rows], self.hole[rows])


@dataclass(frozen=True)
class StrongAugmentation:
    """Mirror, crop-shift, one transform, and erasing, each drawn for each image.

    Args:
        reach: a crop loses fewer pixels than this, across and down together; what is left is put elsewhere on black.
        transforms: probability and range of strength by name, as `COLOUR` and `SHAPE`.
        erase: probability of an erased rectangle.
        largest: of the area that a rectangle may have; the smallest is 0.02.
        flip: mirror every other image, by chance.
    """

    reach: int = 11
    transforms: tuple[tuple[str, tuple[float, float, float]], ...] = tuple(COLOUR.items())
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
        z = as_floats(x) if levels else x
        z = self._placed(z, views.place.to(x.device))
        z = self._transformed(z, views.transform.to(x.device))
        z = self._erased(z, views.hole.to(x.device))
        return as_levels(z) if levels else z

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

    def _transformed(self, x: Tensor, u: Tensor) -> Tensor:
        """Each image by the one transform that was drawn for it."""
        out, below = x.clone(), 0.0
        for name, (probability, low, high) in self.transforms:
            mine = ((u[:, 0] >= below) & (u[:, 0] < below + probability)).nonzero()[:, 0]
            below += probability
            if len(mine):
                strength = low + (high - low) * u[mine, 1]
                out[mine] = TRANSFORMS[name](x[mine], strength.to(x.dtype), u[mine, 2] < 0.5, u[mine, 3] < 0.5)
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
            flat = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(b, 1, h * w)
            x = padded.flatten(2).gather(2, flat.expand(b, c, h * w)).view(b, c, h, w)
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
    "flip": lambda side: Augmentation(0, flip=True),
    "crop": lambda side: Augmentation(_eighth(side), flip=False),
    "crop-flip": lambda side: Augmentation(_eighth(side), flip=True),
    "crop-flip-cutout": lambda side: Augmentation(_eighth(side), flip=True, cutout=side // 2),
    "idbh-weak": weak,
    "idbh-strong": strong,
    "idbh-shape": shapes,
}
"""By name, for images of a given side: padding is an eighth of it (4 at 32 pixels, 8 at 64), a hole half of it.
The recipe idbh is in `mmard.data.augment`."""


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
