"""How sure a network is, and whether it is right as often as it is sure.

Guo, Pleiss, Sun, Weinberger. "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599 (15 bins).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmard.evaluation.finding import counts
from mmard.evaluation.views import read_rightly
from mmard.ops import ce, true_probability

BINS = 15
"""Of equal width on [0, 1]; a confidence on an edge belongs to the bin below it."""
_MARGIN_EDGES = np.linspace(-1, 1, 41)
_CONFIDENCE_EDGES = np.linspace(0, 1, 21)


def margins(clean: Tensor, attacked: Tensor, y: Tensor) -> dict[str, Any]:
    """Histograms of the margin in probability and of the confidence; logits (n, C) and labels (n,).

    Returns:
        The body of a finding "margins".
    """
    return {
        "margin": "probability of the true class minus the largest other",
        "edges": _MARGIN_EDGES.tolist(),
        "clean": counts(_margin(clean, y).numpy(), _MARGIN_EDGES),
        "attacked": counts(_margin(attacked, y).numpy(), _MARGIN_EDGES),
        "mean_clean": float(_margin(clean, y).mean()),
        "mean_attacked": float(_margin(attacked, y).mean()),
        "confidence_edges": _CONFIDENCE_EDGES.tolist(),
        "confidence_clean": counts(clean.softmax(1).amax(1).numpy(), _CONFIDENCE_EDGES),
        "confidence_attacked": counts(attacked.softmax(1).amax(1).numpy(), _CONFIDENCE_EDGES),
    }


def calibration(clean: Tensor, attacked: Tensor, y: Tensor) -> dict[str, Any]:
    """Reliability bins, expected calibration error and mean negative log-likelihood (nats); logits (n, C), labels (n,).

    Returns:
        The body of a finding "calibration". A bin without images has no confidence and no accuracy.
    """
    found: dict[str, Any] = {}
    for name, logits in (("clean", clean), ("attacked", attacked)):
        confidence = logits.double().softmax(1).amax(1)
        found[name] = reliability(confidence, read_rightly(logits, y))
        found[f"ece_{name}"] = expected_error(found[name])
        found[f"nll_{name}"] = float(ce(logits.double(), y).mean())
    return found


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the images in each bin of confidence; (n,) in [0, 1] and (n,) bool."""
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    found = []
    for b in range(bins):
        inside = place == b
        n = int(inside.sum())
        found.append(
            {
                "lower": b / bins,
                "upper": (b + 1) / bins,
                "n": n,
                "confidence": float(confidence[inside].mean()) if n else None,
                "accuracy": float(right[inside].double().mean()) if n else None,
            }
        )
    return found


def expected_error(bins: list[dict[str, Any]]) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins, weighed by their images."""
    n = sum(b["n"] for b in bins)
    return sum(b["n"] / n * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"])


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Probability of the true class minus the largest other, (n, C) and (n,) -> (n,) in [-1, 1]."""
    probs = logits.softmax(1)
    return true_probability(logits, y) - probs.scatter(1, y[:, None], -torch.inf).amax(1)
