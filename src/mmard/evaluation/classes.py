"""Accuracy by class: which class a robust accuracy comes from, and what the others are taken for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmard.data.image_set import ImageSet
from mmard.evaluation.score import Mask
from mmard.evaluation.views import predictions

MOST_CONFUSED = 100
"""Classes up to which confusions are kept; beyond, the tables would be larger than all else in a record."""


def by_class(
    images: ImageSet, clean: Mask, attacked: Mask, clean_logits: Tensor, attacked_logits: Tensor | None
) -> dict[str, Any]:
    """Images of each class, those read rightly without and under an attack, and for what each class is taken.

    Args:
        images: n images.
        clean, attacked: who is read rightly, (n,).
        clean_logits, attacked_logits: (n, C); None where an attack hands out verdicts alone.

    Returns:
        The body of a finding "classes". Row of a confusion: the true class; column: the prediction.
    """
    count = images.class_counts()
    few = images.num_classes <= MOST_CONFUSED
    return {
        "classes": list(images.classes),
        "count": count.tolist(),
        "clean": _right(images, clean),
        "attacked": _right(images, attacked),
        "confusion_clean": confusion(clean_logits, images.y) if few else None,
        "confusion_attacked": confusion(attacked_logits, images.y) if few and attacked_logits is not None else None,
    }


def confusion(logits: Tensor, y: Tensor) -> list[list[int]]:
    """Counts by true class (rows) and prediction (columns); a tie counts as the other class."""
    classes = logits.shape[1]
    cells = torch.bincount(y * classes + predictions(logits, y), minlength=classes * classes)
    found: list[list[int]] = cells.view(classes, classes).tolist()
    return found


def worst(right: list[int], count: list[int]) -> int | None:
    """The class with the smallest share of images read rightly, the first of equals; None without images.

    >>> worst([5, 0, 2], [10, 0, 5])
    2
    """
    shares = [r / n if n else np.inf for r, n in zip(right, count, strict=True)]
    return int(np.argmin(shares)) if any(count) else None


def _right(images: ImageSet, mask: Mask) -> list[int]:
    found: list[int] = torch.bincount(images.y[torch.from_numpy(mask)], minlength=images.num_classes).tolist()
    return found
