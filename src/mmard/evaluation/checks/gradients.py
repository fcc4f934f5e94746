"""Checks that look at gradients: are there any, and do they say where the loss rises?

Carlini, Athalye, Papernot, Brendel, Rauber, Tsipras, Goodfellow, Madry, Kurakin. "On evaluating adversarial
robustness", 2019, arXiv:1902.06705. Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420 (shattered gradients).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmard.balls import Budget
from mmard.evaluation.checks.checked import Checked, exceeds, judged, skipped
from mmard.evaluation.checks.probe import Probe
from mmard.ops import ce, margin

FLAT_SHARE = 0.01
"""Share of images without gradient that is let pass: each of them may be a whole image's worth of false robustness."""
MISLED_SHARE = 0.05
PROMISE = 0.1
"""Share of the rise that the gradient promises which must come about at one of the distances below."""
DISTANCES = (1 / 4, 1 / 16, 1 / 64)
"""Of the radius."""
NAMES = ("vanishing-gradients", "misleading-gradients")
NO_GRADIENT = "the network gives no gradients: robust accuracies come from black-box attacks alone, as upper bounds"


def gradients(probe: Probe, x: Tensor, y: Tensor, budget: Budget) -> list[Checked]:
    """Both checks, on the images (n, ...) that are read rightly: two gradients and five forward passes."""
    right = probe.ask(x).argmax(1) == y
    if not bool(right.any()):
        return [skipped(name, "no image of the sample is read rightly") for name in NAMES]
    x, y = x[right], y[right]
    of_ce, of_margin = probe.slope(x, y, ce), probe.slope(x, y, margin)
    if of_ce is None or of_margin is None:
        says = (
            "the way back from the logits to the input is cut (a threshold, detach, a detour over NumPy): attacks that "
            "need a gradient fail, and robust accuracies come from black-box attacks alone, as upper bounds"
        )
        return [judged(NAMES[0], True, says, images=len(x), cut=1), skipped(NAMES[1], "there are no gradients")]
    return [_vanishing(of_ce, of_margin), _misleading(probe, x, y, of_margin, budget)]


def _vanishing(of_ce: tuple[Tensor, Tensor], of_margin: tuple[Tensor, Tensor]) -> Checked:
    n = len(of_ce[0])
    none, flat = (_lost(gradient) for _, gradient in (of_ce, of_margin))
    lost, cut, zero = int(none.sum()), int(flat.sum()), int((of_ce[0] == 0).sum())
    figures = {"images": n, "without_gradient": lost, "of_these_flat": cut, "loss_rounded_to_zero": zero}
    if not exceeds(lost, n, FLAT_SHARE):
        says = f"cross-entropy has a gradient on {n - lost} of {n} images"
        return judged("vanishing-gradients", False, says, **figures)
    if 2 * cut > lost:
        why = (
            f"nor has the margin on {cut}: a rounding or a threshold cuts it; only black-box attacks (square, "
            "transfer) or a differentiable stand-in for that part say something"
        )
    else:
        why = (
            f"while the margin has one on {n - cut}: logits are too large for the loss (saturated); pgd and apgd-ce "
            "see nothing, cw and apgd-t do"
        )
    says = f"cross-entropy has no gradient on {lost} of {n} images, {why}"
    return judged("vanishing-gradients", True, says, **figures)


def _misleading(probe: Probe, x: Tensor, y: Tensor, of_margin: tuple[Tensor, Tensor], budget: Budget) -> Checked:
    value, gradient = of_margin
    direction = gradient.sign() if budget.norm == "linf" else Budget(1.0, "l2").steepest(gradient)
    # A vector of l2 length r / sqrt(d) is in the l1 ball of radius r.
    radius = budget.eps / (x[0].numel() ** 0.5 if budget.norm == "l1" else 1)
    rounding = 64 * torch.finfo(x.dtype).eps * probe.ask(x).abs().amax(1)
    told = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    kept = torch.zeros_like(told)
    best = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for distance in DISTANCES:
        x_moved = (x + distance * radius * direction).clamp(0, 1)
        promised = ((x_moved - x) * gradient).flatten(1).sum(1).double()
        rise = margin(probe.ask(x_moved), y) - value
        heard = promised > rounding
        told |= heard
        kept |= heard & (rise >= PROMISE * promised)
        best = torch.where(heard, torch.maximum(best, rise / promised), best)
    n, misled = int(told.sum()), int((told & ~kept).sum())
    if n == 0:
        return skipped("misleading-gradients", "no image has a gradient that rises above rounding")
    typical = float(best[told].median())
    says = (
        f"following the gradient of the margin brings less than {PROMISE:.0%} of the rise it promises on {misled} of "
        f"{n} images (typically {typical:.0%})"
    )
    suspicious = exceeds(misled, n, MISLED_SHARE)
    if suspicious:
        says += ": it does not describe the network at this radius; trust black-box attacks (square, transfer) more"
    return judged("misleading-gradients", suspicious, says, images=n, misled=misled, typical_share=typical)


def _lost(gradient: Tensor) -> Tensor:
    """Whose gradient (n, ...) is zero, or so small that products with it lose their digits: (n,) bool."""
    limits = torch.finfo(gradient.dtype)
    return gradient.flatten(1).abs().amax(1) < limits.tiny / limits.eps
