"""A climb of APGD under l1, where the shape of the ball asks for sparse steps.

Croce, Hein. "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021, arXiv:2103.01208,
algorithm 1 and section 3.3 (larger radii first).

    z = project( x_k + step * sign(g) / |sign(g)|_1 )    g = grad loss(x_k), all but its `share` of largest entries cut

`project` is exact for the ball and the box together (`balls.l1_surplus`), and there is no momentum. At a checkpoint the
share becomes that of the pixels that the best point differs in, over 1.5. Where this number fell by more than 5 % the
step is eps again and the sample goes back to its best point; elsewhere the step is divided by 1.5, down to eps / 10.

With `shrink`, 30 % of the steps are spent in the ball of radius 3 eps, 30 % in that of 2 eps, and the others in the
ball itself; each part begins at the best point of the one before it, projected.

The order of sums, and which differences are taken of rounded numbers, are those of the authors' code: whether a pixel
differs from the clean one hangs on the last bit, and with it the share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.attacks.climb import Fallen, Slope
from mmard.attacks.rows import wide
from mmard.balls import Budget, l1_surplus, ranked

FIRST_SHARE = 0.2
"""Of the coordinates, moved by the first step of a climb that starts anywhere in the ball."""
STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Radii over eps and shares of the steps of a climb that shrinks its ball."""


def sparse_start(x: Tensor, budget: Budget, shrink: bool, generator: torch.Generator) -> Tensor:
    """A random point of the ball, or of the largest one with `shrink`, around each x (B, ...).

    Drawn on the CPU in the order of the authors' code. With `shrink` theirs draws once more for every stage, and does
    not use it.
    """
    drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    if not shrink:
        return _onto(x, drawn, budget.eps)
    for _ in STAGES:
        torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return _into(x, x + drawn, STAGES[0][0] * budget.eps)


def sparse_climb(
    slope: Slope, x: Tensor, y: Tensor, target: Tensor, run: Tensor, start: Tensor, *, steps: int, shrink: bool
) -> Fallen:
    """What was found on climbs from `start`, under l1."""
    eps, fallen = slope.budget.eps, None
    if not shrink:
        _, fallen = _stage(slope, x, y, target, run, start, eps, steps, first=True, last=True)
    else:
        spent, best = 0, start
        for factor, share in STAGES:
            last = factor == 1
            taken = max(steps - spent, 0) if last else math.ceil(share * steps)
            spent += taken
            entered = _into(x, best, factor * eps)
            best, fallen = _stage(slope, x, y, target, run, entered, factor * eps, taken, first=False, last=last)
    assert fallen is not None
    # The sum that makes a projected point may round to a hair beyond the box.
    fallen.found.clamp_(0, 1)
    return fallen


def _stage(
    slope: Slope,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    run: Tensor,
    start: Tensor,
    eps: float,
    steps: int,
    *,
    first: bool,
    last: bool,
) -> tuple[Tensor, Fallen]:
    """The best points of a climb in the ball of radius eps, and, where this is the last one, what was found in it."""
    size = x[0].numel()
    at = start.clamp(0, 1)
    misread, loss, gradient = slope.look(at, y, target, flat=steps == 0)
    fallen = Fallen(at, misread, run, last and slope.eot == 1)
    moved = torch.full_like(loss, size) if first else _moved(at, x)
    share = torch.full_like(loss, FIRST_SHARE) if first else moved / size / 1.5
    s = _Climbers(
        row=torch.arange(len(x), device=x.device),
        x=x,
        y=y,
        target=target,
        x_adv=at,
        gradient=gradient,
        best=at,
        best_gradient=gradient,
        best_loss=loss,
        step_size=torch.full_like(loss, eps),
        share=share,
        moved=moved,
    )
    period, since = max(int(0.04 * steps), 1), 0
    for step in range(steps):
        if last and (these := fallen.remaining(s.row, since == 0)) is not None:
            s.keep(these)
            if len(s.row) == 0:
                break
        towards = _largest(s.gradient, s.share)
        count = towards.abs().flatten(1).sum(1)
        z = s.x_adv + wide(s.step_size, x) * towards / wide(count + 1e-10, x)
        z = _onto(s.x, z - s.x, eps)
        misread, loss, gradient = slope.look(z, s.y, s.target, flat=step == steps - 1)
        if last:
            fallen.note(s.row, misread, z)
        s.move(z, loss, gradient)
        since += 1
        if since == period:
            s.check(eps)
            since = 0
    return s.best, fallen


@dataclass
class _Climbers:
    """What a climb knows of the samples that still climb; one row for each in every field."""

    row: Tensor  # in the batch
    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor
    gradient: Tensor  # at x_adv
    best: Tensor  # the iterate of the highest loss
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor
    share: Tensor  # of the coordinates that a step moves
    moved: Tensor  # coordinates in which the best point differed at the last checkpoint

    def keep(self, these: Tensor) -> None:
        """Go on with the samples of a mask (B,) bool."""
        for name, value in vars(self).items():
            setattr(self, name, value[these])

    def move(self, z: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Take a step to z."""
        better = loss > self.best_loss
        self.x_adv, self.gradient = z, gradient
        self.best = torch.where(wide(better, z), z, self.best)
        self.best_gradient = torch.where(wide(better, z), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, eps: float) -> None:
        """Adapt share and step; go back to the best point where it became sparser."""
        moved = _moved(self.best, self.x)
        sparser = moved / self.moved < 0.95
        self.share = moved / self.x[0].numel() / 1.5
        self.step_size = torch.where(sparser, eps, self.step_size / 1.5).clamp(eps / 10, eps)
        back = wide(sparser, self.x)
        self.x_adv = torch.where(back, self.best, self.x_adv)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.moved = moved


def _largest(gradient: Tensor, share: Tensor) -> Tensor:
    """Signs of the entries that are among the share of the largest, and of their equals; 0 elsewhere."""
    size = gradient.flatten(1).abs()
    place = ((1 - share) * size.shape[1]).clamp(0, size.shape[1] - 1).long()
    least = ranked(size)[0].gather(1, place[:, None])
    return (gradient * (size >= least).to(gradient.dtype).view(gradient.shape)).sign()


def _moved(at: Tensor, x: Tensor) -> Tensor:
    """In how many coordinates two points differ, (B, ...) and (B, ...) -> (B,)."""
    return (at - x != 0).flatten(1).sum(1).to(x.dtype)


def _onto(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    """x + delta without what is too much."""
    return x + delta - l1_surplus(delta, x, eps)


def _into(x: Tensor, z: Tensor, eps: float) -> Tensor:
    """z without what is too much."""
    return z - l1_surplus(z - x, x, eps)
