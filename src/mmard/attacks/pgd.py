"""Projected gradient ascent from a random start, and its one-step form.

Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
Goodfellow, Shlens, Szegedy. "Explaining and harnessing adversarial examples", ICLR 2015 (FGSM).

    x_0 = start(x);    x_{k+1} = project( x_k + step_size * steepest( grad objective(x_k) ) )
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mmard.attacks.kinds import AttackKind, counts
from mmard.attacks.queries import logits_of, outside_inference_mode
from mmard.balls import Budget, gaussian
from mmard.errors import Refused, require, unknown
from mmard.ops import ce, correct, margin
from mmard.words import as_fraction

STARTS = ("gaussian", "uniform", "none")
GAUSSIAN_SD = 0.001


class Objective(Protocol):
    """What an attack climbs: (logits (B, C), x_adv (B, ...)) -> (B,)."""

    def __call__(self, logits: Tensor, x_adv: Tensor, /) -> Tensor: ...


class TrainingAttack(Protocol):
    """From a clean batch to an attacked one that raises an objective; a pure function of its arguments."""

    def __call__(
        self,
        model: nn.Module,
        objective: Objective,
        x: Tensor,
        budget: Budget,
        *,
        generator: torch.Generator | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor: ...


def starting_point(start: str, x: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
    """The first iterate, in the ball and the box: "gaussian" noise of 0.001, "uniform" in the ball, or "none".

    Training against a divergence from S(x) or T(x) needs a start away from x: at x the gradient of TRADES is zero.
    """
    if start == "none":
        return x
    drawn = gaussian(x, GAUSSIAN_SD, generator) if start == "gaussian" else budget.sample(x, generator)
    return budget.project(drawn, x)


_SWAPPED = "are eps and step_size swapped?"


def refuse_leap(attack: str, step_size: float, budget: Budget) -> None:
    """Refuse a step that jumps across the ball.

    Raises:
        Refused: naming the attack, the step and the diameter.
    """
    if step_size > 2 * budget.eps:
        raise Refused(
            f"{attack}(step_size={as_fraction(step_size)})",
            expected=f"a step within the diameter {as_fraction(2 * budget.eps)} of the ball {budget}",
            got=as_fraction(step_size),
            mend=f"did you mean {step_size:g}/255?" if 1 <= step_size <= 510 * budget.eps else _SWAPPED,
        )


@dataclass(frozen=True)
class PGD:
    """`steps` projected ascent steps; returns the last iterate, as every method of this family trains on.

    The model is called as it is: its mode and its parameters belong to the caller. No parameter collects a gradient.

    Args:
        steps: number of gradients taken, at least 1.
        step_size: length of a step in input units; refused when it jumps across the ball.
        start: "gaussian", "uniform" or "none".
        restarts: with more than one, each sample keeps the last iterate that ranks highest: one that fools the model
            (where the objective can tell, see `Untargeted`) before one that does not, then by objective.

    Raises:
        Refused: for steps or restarts below 1, an unknown start, or, when called, a step above the ball's diameter.
    """

    steps: int
    step_size: float
    start: str = "uniform"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise Refused(f"PGD({name}={getattr(self, name)})", expected="at least 1", got=str(getattr(self, name)))
        if not self.step_size > 0:
            raise Refused(f"PGD(step_size={self.step_size:g})", expected="a positive step", got=f"{self.step_size:g}")

    def check(self, budget: Budget) -> None:
        """Refuse a step that jumps across the ball of this budget."""
        refuse_leap("PGD", self.step_size, budget)

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
        """x_adv (B, ...), without graph; `trace` collects the logits (B, C) at all iterates but the last."""
        self.check(budget)
        x = x.detach()
        if self.restarts == 1:
            return self.climb(model, objective, x, self.begin(x, budget, generator), budget, trace)
        best, best_rank = x, torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        for _ in range(self.restarts):
            x_adv = self.climb(model, objective, x, self.begin(x, budget, generator), budget, trace)
            with torch.no_grad():
                rank = _rank(objective, logits_of(model, x_adv), x_adv)
            better = rank > best_rank
            best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), x_adv, best)
            best_rank = torch.where(better, rank, best_rank)
        return best

    def begin(self, x: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
        """The first iterate (B, ...): all that is random in one climb."""
        return starting_point(self.start, x.detach(), budget, generator)

    def climb(
        self,
        model: nn.Module,
        objective: Objective,
        x: Tensor,
        first: Tensor,
        budget: Budget,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """x_adv (B, ...) from a first iterate on: a function of tensors alone, and of each sample alone if the
        objective is, so a batch may be climbed in slices, or the whole climb be recorded and played back."""
        x, x_adv = x.detach(), first
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            with torch.enable_grad():
                logits = logits_of(model, x_adv)
                rise = objective(logits, x_adv).sum()
            if trace is not None:
                trace.append(logits.detach())
            (gradient,) = torch.autograd.grad(rise, x_adv)
            x_adv = x_adv.detach()
            x_adv = budget.project(x_adv + self.step_size * budget.steepest(gradient, x_adv), x)
        return x_adv.detach()


def fgsm(budget: Budget) -> PGD:
    """One step of length eps from the clean input."""
    return PGD(steps=1, step_size=budget.eps, start="none")


def _rank(objective: Objective, logits: Tensor, x_adv: Tensor) -> Tensor:
    rank = objective(logits, x_adv).detach().to(x_adv.dtype)
    fooled = getattr(objective, "fooled", None)
    if fooled is None:
        return rank
    # arctan keeps the order and is bounded: fooled samples rank above all others whatever the objective's scale.
    # An objective that is no number ranks lowest among its like; its logits count as fooled already.
    return rank.atan().nan_to_num(nan=-2.0) + 4 * fooled(logits)


@dataclass(frozen=True, eq=False)
class Untargeted:
    """The objective of an evaluation: a loss of the true labels, which also tells who is fooled.

    Args:
        y: true labels (B,).
        loss: (logits (B, C), y (B,)) -> (B,), e.g. `ops.ce` or `ops.margin`.
    """

    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, logits: Tensor, x_adv: Tensor) -> Tensor:
        """The loss (B,), climbed."""
        return self.loss(logits, self.y)

    def fooled(self, logits: Tensor) -> Tensor:
        """Who is misread, (B, C) -> (B,) bool."""
        return ~correct(logits, self.y)


LOSSES = {"ce": (ce, "CE"), "margin": (margin, "CW margin")}
"""What an evaluation climbs by PGD, with its name in labels."""


@dataclass(frozen=True)
class UntargetedPGD:
    """PGD on a loss of the true labels: FGSM, PGD and CW-PGD of an evaluation (an `Attack`).

    Attributes:
        spec: short spelling, e.g. "pgd-20".
        name: "FGSM", "PGD" or "CW-PGD".
        climb: the steps.
        loss: one of `LOSSES`.
    """

    spec: str
    name: str
    climb: PGD
    loss: str = "ce"

    needs_gradient = True
    stops_at_success = False

    @property
    def title(self) -> str:
        """E.g. "PGD-20"."""
        return self.name if self.name == "FGSM" else f"{self.name}-{self.climb.steps}"

    @property
    def label(self) -> str:
        """E.g. "PGD-20 (CE, step 2/255, uniform start, 1 restart)"."""
        return self.described(self.title)

    def described(self, title: str, step: str = "", restarts: int | None = None) -> str:
        """The label under another title, with another spelling of the step, or with so many restarts."""
        begins = f"{'no' if self.climb.start == 'none' else self.climb.start} start"
        n = self.climb.restarts if restarts is None else restarts
        again = "" if self.climb.start == "none" else f", {n} restart" + "s" * (n > 1)
        step = step or as_fraction(self.climb.step_size)
        return f"{title} ({LOSSES[self.loss][1]}, step {step}, {begins}{again})"

    @outside_inference_mode
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: Budget,
        *,
        generator: torch.Generator,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """As `Attack`; `trace` collects the logits (B, C) at all iterates but the last."""
        objective = Untargeted(y, LOSSES[self.loss][0])
        return self.climb(model, objective, x, budget, generator=generator, trace=trace)


def _of_one_step(spec: str, budget: Budget, num_classes: int) -> UntargetedPGD:
    return UntargetedPGD(spec, "FGSM", fgsm(budget))


def _of_steps(name: str, title: str, loss: str) -> Callable[[str, Budget, int], UntargetedPGD]:
    def make(spec: str, budget: Budget, num_classes: int) -> UntargetedPGD:
        steps, restarts, step = counts(spec, name, budget)
        climb = PGD(steps, step, "uniform", restarts)
        climb.check(budget)
        return UntargetedPGD(spec, title, climb, loss)

    return make


KINDS = {
    "fgsm": AttackKind(_of_one_step, {"fgsm": "one step of eps on cross-entropy, from x"}, "FGSM"),
    "pgd": AttackKind(
        _of_steps("pgd", "PGD", "ce"),
        {
            "pgd-20": "20 steps of eps/4 on cross-entropy from a uniform start: the 2/255 of the field at 8/255",
            "pgd-20@0.003": "with another step, here the second published setting of PGD-20",
            "pgd-100x10": "100 steps, 10 restarts; an image counts as broken if any restart breaks it",
        },
        "PGD",
        counted=True,
        also=("bim", "ifgsm"),
    ),
    "cw": AttackKind(
        _of_steps("cw", "CW-PGD", "margin"),
        {"cw-30": "30 steps of eps/4 on the margin of Carlini and Wagner, from a uniform start, in the same ball"},
        "CW-PGD",
        counted=True,
        also=("cwpgd", "pgdcw", "carliniwagner"),
    ),
}


@dataclass(frozen=True)
class NoiseFGSM:
    """One step from strong noise, without projection: a cheap attack to train on, and none to evaluate with.

    De Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania. "Make Some Noise: Reliable and Efficient Single-Step
    Adversarial Training", NeurIPS 2022, arXiv:2202.01181.

        z  = clip( x + k eps u ),  u uniform in the unit ball
        x' = clip( z + step_size * steepest( grad objective(z) ) )

    The noise is not taken back, so x' may be (k + 1) eps away from x under linf. That is what keeps one step from
    failing as FGSM does (catastrophic overfitting); the ball of the budget sets its scale and does not bound it.

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
            logits = logits_of(model, noisy)
            rise = objective(logits, noisy).sum()
        if trace is not None:
            trace.append(logits.detach())
        (gradient,) = torch.autograd.grad(rise, noisy)
        step = budget.eps if self.step_size is None else self.step_size
        noisy = noisy.detach()
        return (noisy + step * budget.steepest(gradient, noisy)).clamp(0, 1)
