"""A climb of APGD under linf and l2, and what climbs under every norm share. The algorithm stands in `apgd.py`.

Several climbs are made side by side where their batches are small. They follow each other: each is for the samples
that those before it left, and its start is drawn for them. Made at once they are a guess that no sample falls; as soon
as one does, what was guessed after its own climb is dropped, and `Fallen.last` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmard.attacks.asking import ascent
from mmard.attacks.rows import length, prompt, wide
from mmard.balls import Budget

TINY = 1e-12  # the constant that the authors add to denominators; part of the verdicts

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (B, C), y (B,), target (B,)) -> (B,), climbed."""


@dataclass(frozen=True)
class Slope:
    """What is climbed: the loss of a network, and how it is asked.

    Attributes:
        model: (B, ...) in [0, 1] to logits (B, C).
        loss: of logits, labels and targets.
        budget: the ball.
        eot: forwards whose gradients are averaged.
    """

    model: nn.Module
    loss: Loss
    budget: Budget
    eot: int

    def look(self, at: Tensor, y: Tensor, target: Tensor, *, flat: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Who is misread at a point (B,), its loss (B,), and its gradient (B, ...), which is zero where `flat` says
        that nobody needs it."""

        def loss(logits: Tensor, part: slice) -> Tensor:
            return self.loss(logits, y[part], target[part])

        if flat:
            with torch.no_grad():
                logits = self.model(at)
                return logits.argmax(1) != y, loss(logits, slice(None)), torch.zeros_like(at)
        logits, values, gradient = ascent(self.model, at, loss)
        for _ in range(self.eot - 1):
            logits, values, more = ascent(self.model, at, loss)
            gradient = gradient + more
        return logits.argmax(1) != y, values, gradient if self.eot == 1 else gradient / self.eot


class Fallen:
    """The last misread iterate of each row of a batch, and which of the climbs side by side still count.

    Args:
        start: (R, ...).
        misread: who is misread there (R,).
        run: the climb that each row belongs to (R,), rising from 0.
        final: whether one misreading decides; not for a random network.
    """

    def __init__(self, start: Tensor, misread: Tensor, run: Tensor, final: bool) -> None:
        self.found, self.fooled = start.clone(), misread.clone()
        self._run, self._final, self._asks, self._news = run, final, prompt(start), misread

    def note(self, row: Tensor, misread: Tensor, z: Tensor) -> None:
        """Keep the misread iterates of these rows."""
        self._news = misread
        if self._asks and not bool(misread.any()):
            return
        self.found[row] = torch.where(wide(misread, z), z, self.found[row])
        self.fooled[row] |= misread

    def remaining(self, row: Tensor, checkpoint: bool) -> Tensor | None:
        """Which of these rows must go on, (R,) bool; None for all.

        Asking an accelerator how many were misread would stall it, so there it is done at checkpoints alone.
        """
        if not self._final or not (self._asks or checkpoint):
            return None
        if not bool(self._news.any() if self._asks else self.fooled[row].any()):
            return None
        return ~self.fooled[row] & (self._run[row] <= self.last())

    def last(self) -> Tensor:
        """The last climb that counts, a number without dimensions: the first in which a sample fell, or the last."""
        return torch.where(self.fooled, self._run, self._run[-1]).amin()


def climb(
    slope: Slope, x: Tensor, y: Tensor, target: Tensor, run: Tensor, start: Tensor, *, steps: int, rho: float
) -> Fallen:
    """What was found on climbs from `start`, under linf and l2."""
    budget = slope.budget
    misread, loss, gradient = slope.look(start, y, target)
    fallen = Fallen(start, misread, run, slope.eot == 1)
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
    period, since = max(int(0.22 * steps), 1), 0
    for step in range(steps):
        if (these := fallen.remaining(s.row, since == 0)) is not None:
            s.keep(these)
            if len(s.row) == 0:
                break
        ahead = 0.75 if step else 1.0
        z = _project(s.x_adv + s.step_size * _steepest(s.gradient, budget), s, budget)
        z = _project(s.x_adv + (z - s.x_adv) * ahead + (s.x_adv - s.before) * (1 - ahead), s, budget)
        misread, loss, gradient = slope.look(z, s.y, s.target, flat=step == steps - 1)
        fallen.note(s.row, misread, z)
        s.move(z, loss, gradient)
        since += 1
        if since == period:
            s.check(rho * period)
            period, since = max(period - max(int(0.03 * steps), 1), int(0.06 * steps), 1), 0
    return fallen


@dataclass
class _Climbers:
    """What a climb knows of the samples that still climb; one row for each in every field."""

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
    """A random point on the linf or l2 sphere around each x (B, ...), then clamped to the box.

    Drawn on the CPU in the order of the authors' code, whatever the device.
    """
    if budget.norm == "linf":
        drawn = (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1).to(x.device)
        size = drawn.abs().flatten(1).amax(1)
    else:
        drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        size = length(drawn)
    return (x + budget.eps * (drawn / (wide(size, x) + TINY))).clamp(0, 1)


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
