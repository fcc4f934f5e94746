"""Changes of colour and shape for batches of images in [0, 1], each image by a strength of its own.

A change takes images (B, C, H, W), strengths (B,), a sign and an axis, bool (B,) each, and returns new images. The
blends are those that image libraries agree on: strength 0 is the degenerate image, 1 the image itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Change = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

LUMA = (0.2989, 0.587, 0.114)
"""What red, green and blue weigh in a grey image."""


def nearest(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at these rows and columns, int64 (B, H, W) each; black where they are outside the image."""
    b, c, h, w = x.shape
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    places = (rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)).view(b, 1, h * w)
    return x.flatten(2).gather(2, places.expand(b, c, h * w)).view(b, c, h, w) * inside[:, None]


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
    levels = (x * 255).round().long().clamp(0, 255).view(b * c, h * w)
    counts = torch.zeros(b * c, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    last = counts.gather(1, levels.amax(1, keepdim=True))
    step = (h * w - last) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp(0, 255)
    spread = torch.where(step > 0, table.gather(1, levels), levels)
    return (spread.to(x.dtype) / 255).view(b, c, h, w)


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


CHANGES: dict[str, Change] = {
    "saturation": saturation,
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "autocontrast": autocontrast,
    "equalise": equalise,
    "shear": shear,
    "rotate": rotate,
}
"""Name -> change."""
