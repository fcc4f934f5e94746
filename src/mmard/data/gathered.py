"""A user's validation loader as a set of images that can be attacked, counted and hashed like any other."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from mmard.data.batches import LoaderBatches
from mmard.data.image_set import ImageSet


def gathered(loader: DataLoader[Any], origin: str) -> ImageSet:
    """All images of a loader, once, rounded to 8 bits (exact for images that were 8-bit before the loader).

    Args:
        loader: gives (x, y) with x float (B, C, H, W) in [0, 1] and integer y (B,).
        origin: a line for records.

    Raises:
        Refused: for batches of any other kind.
    """
    pairs = list(LoaderBatches(loader, "cpu", seed=0).epoch(0))
    x = torch.cat([x for x, _ in pairs]).mul(255).round().to(torch.uint8)
    y = torch.cat([y for _, y in pairs])
    return ImageSet(x, y, tuple(map(str, range(int(y.max()) + 1))), origin)
