"""The nearest point that a network reads otherwise: an upper bound of the distance to its decision boundary.

FAB (`mmard.attacks.fab`) walks along the boundary to each of the likeliest other classes, with no radius in mind; what
it finds is then drawn toward the image by bisection, as far as the reading stays another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmard.attacks.fab import FAB
from mmard.attacks.rows import wide
from mmard.balls import Budget

STEPS, TARGETS, HALVINGS = 30, 3, 10
METHOD = f"FAB, {STEPS} steps to each of up to {TARGETS} classes, and {HALVINGS} bisections"
FAR = {"linf": 1.0, "l2": 1e6, "l1": 1e6}
"""Radii that reach everything, by norm."""


def distance_to_boundary(model: nn.Module, x: Tensor, norm: str) -> Tensor:
    """Distance (B,) from x (B, C, H, W) to the nearest point found with another prediction; infinite where none was.

    The prediction at x counts and not the label, so a misread image has a distance too. The model is called as it is:
    its mode and its parameters belong to the caller.

    Args:
        model: inputs in [0, 1] to logits.
        x: inputs in [0, 1].
        norm: in whose length the distance is.
    """
    anywhere = Budget(FAR[norm], norm)
    with torch.no_grad():
        ranking = model(x).sort(dim=1).indices
    own, best = ranking[:, -1], torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
    for rank in range(2, min(TARGETS, ranking.shape[1] - 1) + 2):
        point, met = FAB(STEPS).walk(model, x, own, ranking[:, -rank], anywhere)
        point = _drawn_near(model, x, point, own)
        reach = anywhere.distance(point, x)
        best = torch.where(met & (reach < best), reach, best)
    return best


def _drawn_near(model: nn.Module, x: Tensor, point: Tensor, own: Tensor) -> Tensor:
    """On the way from x to a point that is read otherwise, the nearest such point by bisection."""
    low, high = torch.zeros_like(wide(own, x), dtype=x.dtype), torch.ones_like(wide(own, x), dtype=x.dtype)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        with torch.no_grad():
            other = wide(model(x + middle * (point - x)).argmax(1) != own, x)
        low, high = torch.where(other, low, middle), torch.where(other, middle, high)
    return x + high * (point - x)
