"""A few images beside what an attack made of them, and how two networks read both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmard.data.image_set import ImageSet
from mmard.evaluation.views import Views, predictions, read_rightly
from mmard.modes import evaluating

MOST, BROKEN = 12, 8
"""Images at most, and how many of them were broken where there are enough of both kinds."""


def chosen(clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
    """Rows to show, broken ones first: the first 8 in the set's order that were right and fell, and the first 4 that
    held; where one kind has fewer, the other has more, up to 12. Logits (n, C) and labels (n,) -> rows."""
    right, holds = read_rightly(clean, y), read_rightly(attacked, y)
    broken, held = ((right & ~holds).nonzero()[:, 0], (right & holds).nonzero()[:, 0])
    n_broken = min(len(broken), max(BROKEN, MOST - len(held)))
    return torch.cat((broken[:n_broken], held[: MOST - n_broken]))


def examples(
    images: ImageSet, views: Views, attack: str, teacher: nn.Module | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Some images, what the attack made of them, and the readings.

    Args:
        images: the images of the evaluation.
        views: what was seen, with the attacked images.
        attack: the spec of the attack.
        teacher: another network that reads the same; None where there is none.

    Returns:
        The body of a finding "examples", and its arrays: x and x_adv, uint8 (k, C, H, W), the latter rounded to 8 bits
        to be looked at, and delta, float32, which is x_adv - x as it was.
    """
    clean, attacked = views.clean, views.under(attack)
    rows = chosen(clean, attacked, images.y)
    x, x_adv, y = images.x[rows].float() / 255, views.x_adv(attack)[rows], images.y[rows]
    readings = {"clean": clean[rows], "adv": attacked[rows]}
    if teacher is not None and len(rows):
        state = next(teacher.parameters(), None)
        device = torch.device("cpu") if state is None else state.device
        with evaluating(teacher), torch.no_grad():
            for name, inputs in (("teacher_clean", x), ("teacher_adv", x_adv)):
                readings[name] = teacher(inputs.to(device)).float().cpu()
    told = {name: _reading(logits, y) for name, logits in readings.items()}
    items = []
    for k, row in enumerate(rows.tolist()):
        item: dict[str, Any] = {"index": row, "true": int(y[k])}
        for name in ("clean", "adv", "teacher_clean", "teacher_adv"):
            pred, prob = told[name][k] if name in told else (None, None)
            item |= {f"{name}_pred": pred, f"{name}_prob": prob}
        items.append(item)
    arrays = {
        "x": images.x[rows].numpy(),
        "x_adv": (255 * x_adv).round().clamp(0, 255).to(torch.uint8).numpy(),
        "delta": (x_adv - x).numpy().astype(np.float32),
    }
    body = {"items": items, "classes": list(images.classes), "image_shape": list(images.image_shape)}
    return body, arrays if items else {}


def _reading(logits: Tensor, y: Tensor) -> list[tuple[int, float]]:
    """Prediction and its probability for each image."""
    preds = predictions(logits, y)
    probs = logits.softmax(1).gather(1, preds[:, None])[:, 0]
    return list(zip(preds.tolist(), probs.tolist(), strict=True))
