"""How near images and adversarial examples lie to the decision boundaries of a student and of its teacher.

Claim 2 of Wang et al. 2025 (arXiv:2503.06559) is that the examples of existing methods lie far from the teacher's
boundary. Four numbers tell, for either network, so that nearness to the teacher's boundary is not bought by a weak
attack on the student:

    m(x)       = log p(y|x) - max over other classes of log p(.|x)     its mean; and the share of images misread
    H(x)       = entropy of p(.|x)
    |m(x)| / ||grad m(x)||, in the dual norm                            the distance if m were linear
    the distance to the nearest point found with another prediction     on a sample
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks.fab import FAB
from mmard.attacks.queries import logits_of, wide
from mmard.balls import Budget
from mmard.evaluation.findings import counts
from mmard.evaluation.journal import Progress
from mmard.modes import evaluating, frozen
from mmard.ops import correct, entropy, margin
from mmard.settings import EVALUATION_BATCH

STEPS, TARGETS, HALVINGS = 30, 3, 10
METHOD = f"FAB, {STEPS} steps to each of up to {TARGETS} classes, and {HALVINGS} bisections"
FAR = {"linf": 1.0, "l2": 1e6, "l1": 1e6}
"""Radii that reach everything, by norm."""


def distance_to_boundary(model: nn.Module, x: Tensor, norm: str) -> Tensor:
    """Distance (B,) from x (B, C, H, W) to the nearest point found with another prediction; infinite where none was.

    An upper bound of the distance to the decision boundary. FAB walks along the boundary to each of the likeliest other
    classes, with no radius in mind; what it finds is then drawn toward the image by bisection, as far as the prediction
    stays another. The prediction at x counts and not the label, so a misread image has a distance too. The model is
    called as it is: its mode and its parameters belong to the caller.

    Args:
        model: inputs in [0, 1] to logits.
        x: inputs in [0, 1].
        norm: in whose length the distance is.
    """
    anywhere = Budget(FAR[norm], norm)
    with torch.no_grad():
        ranking = logits_of(model, x).sort(dim=1).indices
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
            other = wide(logits_of(model, x + middle * (point - x)).argmax(1) != own, x)
        low, high = torch.where(other, low, middle), torch.where(other, middle, high)
    return x + high * (point - x)


SAMPLE = 256
"""Images on which the nearest point is looked for."""
BINS = 40
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
"""Order of the norm in which a gradient is measured when distances are in the norm of this name."""


@dataclass(frozen=True)
class Proximity:
    """What one network says of a set of inputs, (n,) each.

    Attributes:
        margin: log-probability of the true class minus the largest other.
        right: whether the true class is predicted, bool.
        entropy: of the prediction, in nats.
        slope: dual norm of the margin's gradient by the input.
        nearest: distance to the nearest point with another prediction, for a sample; infinite where none was found.
    """

    margin: Tensor
    right: Tensor
    entropy: Tensor
    slope: Tensor
    nearest: Tensor

    def record(self) -> dict[str, Any]:
        """As JSON holds it. Where the gradient is zero there is no first-order distance; `flat` counts those."""
        sloping = self.slope > 0
        linear = (self.margin.abs() / self.slope)[sloping]
        found = self.nearest[self.nearest.isfinite()]
        return {
            "mean_margin": float(self.margin.mean()),
            "wrong": float((~self.right).double().mean()),
            "entropy": float(self.entropy.mean()),
            "distance_first_order": float(linear.mean()) if len(linear) else None,
            "distance_first_order_median": float(linear.median()) if len(linear) else None,
            "flat": int((~sloping).sum()),
            "distance_minimal": float(found.mean()) if len(found) else None,
            "n_minimal": len(found),
        }


def proximity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    sample: Tensor,
    *,
    batch_size: int = EVALUATION_BATCH,
    progress: Progress | None = None,
    name: str = "boundary",
) -> Proximity:
    """How near inputs are to the boundary of one network, which is in eval mode inside.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        x: inputs (n, C, H, W) in [0, 1], on the CPU.
        y: labels (n,).
        norm: in which distances are.
        sample: rows for which the nearest point is looked for.
        batch_size: inputs asked at once.
        progress: told how far it is.
        name: what progress is told.
    """
    state = next(chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if state is None else state.device
    x = x.to(torch.float64) if state is not None and state.dtype == torch.float64 else x
    margins, rights, entropies, slopes, nearest = [], [], [], [], []
    total = len(x) + len(sample)
    with evaluating(model), frozen(model):
        for first in range(0, len(x), batch_size):
            at = x[first : first + batch_size].to(device).requires_grad_()
            with torch.enable_grad():
                logits = logits_of(model, at)
                labels = y[first : first + batch_size].to(device)
                m = -margin(logits, labels)
                (gradient,) = torch.autograd.grad(m.sum(), at)
            margins.append(m.detach().cpu())
            rights.append(correct(logits.detach(), labels).cpu())
            entropies.append(entropy(logits.detach()).cpu())
            slopes.append(torch.linalg.vector_norm(gradient.flatten(1), DUAL[norm], dim=1).cpu())
            if progress is not None:
                progress(name, min(first + batch_size, len(x)), total, int(torch.cat(rights).sum()))
        for first in range(0, len(sample), batch_size):
            rows = sample[first : first + batch_size]
            nearest.append(distance_to_boundary(model, x[rows].to(device), norm).cpu())
            if progress is not None:
                progress(name, len(x) + first + len(rows), total, int(torch.cat(rights).sum()))
    empty = torch.empty(0)
    margin_, right, entropy_, slope = (torch.cat(each) for each in (margins, rights, entropies, slopes))
    return Proximity(margin_, right, entropy_, slope, torch.cat(nearest or [empty]))


def sampled(n: int, seed: int) -> Tensor:
    """Rows of the sample, ascending: the same for both networks and for clean and attacked inputs."""
    order = torch.randperm(n, generator=seeds.generator("cpu", seed, "boundary", n))
    return order[:SAMPLE].sort().values


def boundary(
    student: nn.Module,
    teacher: nn.Module,
    source: str,
    clean: Tensor,
    attacked: Tensor,
    y: Tensor,
    norm: str,
    *,
    seed: int,
    batch_size: int = EVALUATION_BATCH,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Proximity of clean and attacked inputs to both boundaries.

    Args:
        student, teacher: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        source: a line on where the teacher comes from.
        clean, attacked: inputs (n, C, H, W) in [0, 1], on the CPU.
        y: labels (n,).
        norm: in which distances are.
        seed: of the sample.
        batch_size, progress: as in `proximity`.

    Returns:
        The body of a finding "boundary".
    """
    sample = sampled(len(y), seed)
    found: dict[str, Proximity] = {}
    for name, inputs in (("clean", clean), ("attacked", attacked)):
        for who, model in (("teacher", teacher), ("student", student)):
            found[f"{who}_{name}"] = proximity(
                model, inputs, y, norm, sample, batch_size=batch_size, progress=progress, name=f"{who}, {name}"
            )
    all_margins = torch.cat([each.margin for each in found.values()]).double().numpy()
    low, high = np.quantile(all_margins, (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    return {
        "teacher": source,
        **{
            name: {who: found[f"{who}_{name}"].record() for who in ("teacher", "student")}
            for name in ("clean", "attacked")
        },
        "minimal_by": METHOD,
        "histograms": {
            "edges": edges.tolist(),
            **{name: counts(each.margin.double().numpy(), edges) for name, each in found.items()},
        },
    }
