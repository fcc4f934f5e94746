"""APGD: projected ascent with momentum that chooses its own step size.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, arXiv:2003.01690, algorithm 1 and equations 6 (DLR) and 7 (targeted DLR).

    z       = project( x_k + step * steepest( grad loss(x_k) ) )
    x_{k+1} = project( x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1}) )            a = 3/4, and 1 at the first step

The step starts at 2 eps. At checkpoints, after 22 % of the steps and then ever sooner, it is halved for each sample
that oscillated (the loss rose in at most `rho` of the steps since the last checkpoint) or that is stuck (neither its
step nor its best loss changed between the last two checkpoints); that sample goes back to its best point.

Differences from the authors' code (fra31/auto-attack, a392200):
  1. A sample is dropped from the batch as soon as one of its iterates is misread. Theirs climbs on and returns the last
     misread iterate; every quantity is kept per sample, so the verdicts are the same. With `eot` above 1 the network is
     random, one misreading decides nothing, and we climb on too.
  2. The gradient at the last iterate, which nothing uses, is not computed.
  3. Clean logits, which rank the targets, are computed once rather than once for each target.
  4. Theirs compares the first loss of a run with zero to tell whether it rose, where the paper has the loss of the
     start. Verdicts are to be the same, so we do as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.attacks.rows import length, prompt, wide
from mmard.balls import Budget
from mmard.errors import Refused, unknown

TINY = 1e-12  # the constant that the authors add to denominators; part of the verdicts

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (B, C), y (B,), target (B,)) -> (B,), climbed."""


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (B, C) and (B,) -> (B,): the margin over the distance from first to third logit.

    Shifting or scaling the logits does not change it, so a network cannot hide its gradients in a large temperature.
    Needs three classes.
    """
    ranked, order = logits.sort(dim=1)
    rival = torch.where(order[:, -1] == y, ranked[:, -2], ranked[:, -1])
    return -(_pick(logits, y) - rival) / (ranked[:, -1] - ranked[:, -3] + TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same toward one wrong class, (B, C), (B,) and (B,) -> (B,). Needs four classes."""
    ranked = logits.sort(dim=1).values
    return -(_pick(logits, y) - _pick(logits, target)) / (ranked[:, -1] - 0.5 * (ranked[:, -3] + ranked[:, -4]) + TINY)


LOSSES: dict[str, tuple[Loss, int]] = {
    "ce": (lambda logits, y, target: F.cross_entropy(logits, y, reduction="none"), 2),
    "dlr": (lambda logits, y, target: dlr(logits, y), 3),
    "targeted-dlr": (targeted_dlr, 4),
}
"""Losses by name, with the number of classes that each needs."""


@dataclass(frozen=True)
class APGD:
    """Looks for one misread point of the ball for each sample.

    Args:
        loss: "ce", "dlr" or "targeted-dlr".
        steps: gradients taken from each start.
        restarts: random starts for each target; samples that were fooled do not start again.
        targets: wrong classes tried, those with the highest clean logits first; of "targeted-dlr" alone.
        eot: forwards whose gradients are averaged, for random networks (expectation over transformations).
        rho: share of rising steps up to which a sample counts as oscillating.

    Raises:
        Refused: for counts below 1 or an unknown loss, or, when called, for more targets than wrong classes, a loss
            that needs more classes than there are, or a norm other than linf and l2.
    """

    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 1
    eot: int = 1
    rho: float = 0.75

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        for name in ("steps", "restarts", "targets", "eot"):
            if getattr(self, name) < 1:
                raise Refused(
                    f"APGD({name}={getattr(self, name)})", expected="at least 1", got=str(getattr(self, name))
                )
        if self.targets > 1 and self.loss != "targeted-dlr":
            raise Refused(f"APGD(targets={self.targets})", expected="the loss targeted-dlr", got=repr(self.loss))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """A misread point of the ball where one was found, else x; (B, ...) -> (B, ...).

        Args:
            model: (B, ...) in [0, 1] to logits (B, C); its mode and its parameters belong to the caller.
            x: inputs that are read rightly.
            y: their labels (B,).
            budget: the ball.
            generator: of random starts, on the CPU: each start is drawn for the samples still standing.
        """
        if budget.norm not in ("linf", "l2"):
            raise Refused("APGD", expected="the norm linf or l2", got=budget.norm)
        with torch.no_grad():
            ranking = model(x).sort(dim=1).indices
        classes = ranking.shape[1]
        if classes < LOSSES[self.loss][1]:
            raise Refused(f"APGD({self.loss})", expected=f"{LOSSES[self.loss][1]} classes", got=str(classes))
        if self.targets >= classes:
            raise Refused(
                f"APGD(targets={self.targets})", expected=f"up to {classes - 1} wrong classes", got=str(self.targets)
            )
        x_adv = x.clone()
        standing = torch.arange(len(x), device=x.device)
        for rank in range(2, self.targets + 2):
            for _ in range(self.restarts):
                if len(standing) == 0:
                    return x_adv
                start = starting_point(x[standing], budget, generator)
                found, fooled = self._climb(model, x[standing], y[standing], ranking[standing, -rank], start, budget)
                x_adv[standing[fooled]] = found[fooled]
                standing = standing[~fooled]
        return x_adv

    def _climb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor, start: Tensor, budget: Budget
    ) -> tuple[Tensor, Tensor]:
        """The last misread iterate of each sample on one run from `start`, and whether there was one (B,)."""
        loss_of = LOSSES[self.loss][0]
        misread, loss, gradient = _look(model, loss_of, start, y, target, self.eot)
        found, fooled = start.clone(), misread.clone()
        s = _Climbers(
            row=torch.arange(len(x), device=x.device),
            x=x,
            y=y,
            target=target,
            low=(x - budget.eps).clamp(0, 1),
            high=(x + budget.eps).clamp(0, 1),
            x_adv=start,
            before=start,
            gradient=gradient,
            loss=torch.zeros_like(loss),  # difference 4
            best=start,
            best_gradient=gradient,
            best_loss=loss,
            step_size=torch.full_like(wide(loss, x), 2 * budget.eps, dtype=x.dtype),
            rises=torch.zeros_like(loss),
            checked_loss=loss,
            halved=torch.ones_like(misread),
        )
        # Asking an accelerator how many were misread would stall it, so there it is done at checkpoints alone.
        asks = prompt(x)
        period, since = max(int(0.22 * self.steps), 1), 0
        for step in range(self.steps):
            if self.eot == 1 and (asks or since == 0) and bool(misread.any() if asks else fooled[s.row].any()):
                s.keep(~fooled[s.row])
                if len(s.row) == 0:
                    break
            ahead = 0.75 if step else 1.0
            z = _project(s.x_adv + s.step_size * _steepest(s.gradient, budget), s, budget)
            z = _project(s.x_adv + (z - s.x_adv) * ahead + (s.x_adv - s.before) * (1 - ahead), s, budget)
            misread, loss, gradient = _look(model, loss_of, z, s.y, s.target, self.eot if step < self.steps - 1 else 0)
            if not asks or bool(misread.any()):
                found[s.row] = torch.where(wide(misread, z), z, found[s.row])
                fooled[s.row] |= misread
            s.move(z, loss, gradient)
            since += 1
            if since == period:
                s.check(self.rho * period)
                period, since = max(period - max(int(0.03 * self.steps), 1), int(0.06 * self.steps), 1), 0
        return found, fooled


@dataclass
class _Climbers:
    """What a run knows of the samples that still climb; one row for each in every field."""

    row: Tensor  # in the batch
    x: Tensor
    y: Tensor
    target: Tensor
    low: Tensor  # faces of the linf ball within the box
    high: Tensor
    x_adv: Tensor
    before: Tensor  # the iterate before x_adv
    gradient: Tensor  # at x_adv
    loss: Tensor  # at x_adv
    best: Tensor  # the iterate of the highest loss
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor
    rises: Tensor  # steps since the last checkpoint at which the loss rose
    checked_loss: Tensor  # best_loss at the last checkpoint
    halved: Tensor  # whether the step was halved then

    def keep(self, these: Tensor) -> None:
        """Go on with the samples of a mask (B,) bool."""
        for name, value in vars(self).items():
            setattr(self, name, value[these])

    def move(self, z: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Take a step to z."""
        better = loss > self.best_loss
        self.rises = self.rises + (loss > self.loss)
        self.before, self.x_adv, self.loss, self.gradient = self.x_adv, z, loss, gradient
        self.best = torch.where(wide(better, z), z, self.best)
        self.best_gradient = torch.where(wide(better, z), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, enough: float) -> None:
        """Halve the step and go back to the best point, where the climb oscillates or is stuck."""
        self.halved = (self.rises <= enough) | (~self.halved & (self.checked_loss >= self.best_loss))
        back = wide(self.halved, self.x)
        self.step_size = torch.where(back, self.step_size / 2, self.step_size)
        self.x_adv = torch.where(back, self.best, self.x_adv)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.rises, self.checked_loss = torch.zeros_like(self.rises), self.best_loss


def starting_point(x: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
    """A random point on the sphere around each x (B, ...), then clamped to the box.

    Drawn on the CPU in the order of the authors' code, whatever the device.
    """
    if budget.norm == "linf":
        drawn = (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1).to(x.device)
        size = drawn.abs().flatten(1).amax(1)
    else:
        drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        size = length(drawn)
    return (x + budget.eps * (drawn / (wide(size, x) + TINY))).clamp(0, 1)


def _look(
    model: nn.Module, loss_of: Loss, at: Tensor, y: Tensor, target: Tensor, gradients: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Who is misread at a point (B,), its loss (B,), and its gradient (B, ...), the mean of so many; none if 0."""
    if gradients == 0:
        with torch.no_grad():
            logits = model(at)
            return logits.argmax(1) != y, loss_of(logits, y, target), torch.zeros_like(at)
    at = at.detach().requires_grad_()
    total = torch.zeros_like(at, requires_grad=False)
    for _ in range(gradients):
        with torch.enable_grad():
            logits = model(at)
            loss = loss_of(logits, y, target)
        total += torch.autograd.grad(loss.sum(), at)[0]
    return logits.detach().argmax(1) != y, loss.detach(), total / gradients


def _steepest(gradient: Tensor, budget: Budget) -> Tensor:
    """As `Budget.steepest`, but rounded, and small gradients cut off, as in the authors' code."""
    if budget.norm == "linf":
        return gradient.sign()
    return gradient / (wide(length(gradient), gradient) + TINY)


def _project(z: Tensor, s: _Climbers, budget: Budget) -> Tensor:
    """As `Budget.project`, but rounded as in the authors' code: near a kink of the network one bit leads elsewhere."""
    if budget.norm == "linf":
        return torch.clamp(z, s.low, s.high)
    delta = z - s.x
    size = wide(length(delta), z)
    return (s.x + delta / (size + TINY) * size.clamp_max(budget.eps)).clamp(0, 1)


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None])[:, 0]
