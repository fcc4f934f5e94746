"""One step from strong noise, without projection: a cheap attack to train on, and none to evaluate with.

De Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania. "Make Some Noise: Reliable and Efficient Single-Step Adversarial
Training", NeurIPS 2022, arXiv:2202.01181.

    z = clip( x + k eps u ),  u uniform in the unit ball;    x' = clip( z + step_size * steepest( grad objective(z) ) )

The noise is not taken back, so x' may be (k + 1) eps away from x under linf. That is what keeps one step from failing
as FGSM does (catastrophic overfitting); the ball of the budget sets its scale and does not bound it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmard.attacks.pgd import Objective, refuse_leap
from mmard.balls import Budget
from mmard.errors import require


@dataclass(frozen=True)
class NoiseFGSM:
    """A random point around x, then one step.

    Args:
        noise: radius of the noise, as a multiple of eps.
        step_size: length of the step in input units; eps if not given.

    Raises:
        Refused: for a negative radius, or, when called, a step above the ball's diameter.
    """

    noise: float = 2.0
    step_size: float | None = None

    def __post_init__(self) -> None:
        require(self.noise >= 0, "noise", expected="0 or a multiple of eps", got=self.noise)
        step = self.step_size
        require(step is None or step > 0, "step_size", expected="a positive step", got=str(step))

    def check(self, budget: Budget) -> None:
        """Refuse a step that is longer than the ball is wide."""
        if self.step_size is not None:
            refuse_leap("NoiseFGSM", self.step_size, budget)

    def __call__(
        self,
        model: nn.Module,
        objective: Objective,
        x: Tensor,
        budget: Budget,
        *,
        generator: torch.Generator | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """x_adv (B, ...) in [0, 1], without graph; `trace` collects the logits (B, C) at the noisy point."""
        self.check(budget)
        x = x.detach()
        noisy = (x + self.noise * (budget.sample(x, generator) - x)).clamp(0, 1).requires_grad_()
        with torch.enable_grad():
            logits = model(noisy)
            rise = objective(logits, noisy).sum()
        if trace is not None:
            trace.append(logits.detach())
        (gradient,) = torch.autograd.grad(rise, noisy)
        step = budget.eps if self.step_size is None else self.step_size
        noisy = noisy.detach()
        return (noisy + step * budget.steepest(gradient, noisy)).clamp(0, 1)
