"""FAB-T: walks along the decision boundary toward the nearest misread point, one wrong class at a time.

Croce, Hein. "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
arXiv:1907.02044, algorithm 1; its targeted form is that of Croce and Hein, arXiv:2003.01690, section 4.

With the boundary to the target class linearised at the iterate z, as the hyperplane h(u) = f(z) + g . (u - z) = 0,
f = logit of the target - true logit, g its gradient:

    d_z, d_x = the shortest ways, within the box, from z and from x to the hyperplane
    a        = min( |d_z| / (|d_z| + |d_x|), alpha_max )
    z       <- clamp( (1 - a) (z + eta d_z) + a (x + eta d_x) )
    z       <- x + beta (z - x)                                       where z is misread: back toward x, and on

The attack knows no radius: a sample counts as broken when a misread iterate lies within eps.

Differences from the authors' code (fra31/auto-attack, a392200):
  1. A sample is dropped from the batch as soon as a misread iterate lies within eps. Theirs goes on to come closer; the
     verdicts are the same, the points returned are not the nearest.
  2. Only the gradient in the input is computed; theirs fills the gradients of all weights as well.
  3. Under linf and l2 the shortest way is one number per sample, found by Newton's method on a piecewise linear
     function, where theirs sorts all coordinates and bisects. Both are exact up to rounding.
  4. Clean logits, which rank the targets, are computed once rather than three times for each target.
  5. One run for each target and no random restarts, as the standard ensemble has it.
  6. Nothing here is random, so where few small images are left, targets are walked to side by side; a sample ends on
     all its ways as soon as one has led to a misread point within eps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.attacks.kinds import STANDARD_TARGETS, AttackKind
from mmard.attacks.queries import ascent, length, logits_of, outside_inference_mode, prompt, wide
from mmard.balls import Budget, ranked
from mmard.errors import Refused
from mmard.ops import correct
from mmard.words import plural

SHORTEST = 1e-8  # lengths below this count as this; l2 and l1 ignore coordinates with a gradient below it
NEWTON_STEPS = 24  # where asking whether all have converged would stall an accelerator
DROP_EVERY = 10  # steps between two droppings there
ROOM = {True: 2**18, False: 2**24}
"""Pixels of all ways that are walked side by side, on a CPU and elsewhere: where a larger batch costs little more."""

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FAB:
    """Looks for one misread point of the ball for each sample.

    Args:
        steps: hyperplanes for each target.
        targets: wrong classes tried, those with the highest clean logits first.
        alpha_max: largest share of the way from x.
        eta: how far to step past the hyperplane; 1 ends on it.
        beta: where to go on from a misread iterate, 1 at it and 0 at x.

    Raises:
        Refused: for counts below 1 or, when called, for more targets than wrong classes.
    """

    steps: int = 100
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        for name in ("steps", "targets"):
            if getattr(self, name) < 1:
                raise Refused(f"FAB({name}={getattr(self, name)})", expected="at least 1", got=str(getattr(self, name)))

    spec = "fab-t"
    title = "FAB-T"
    needs_gradient = True
    stops_at_success = True

    @property
    def label(self) -> str:
        """With its settings."""
        return f"FAB-T (margin, {self.steps} steps x {plural(self.targets, 'target')}, no random start)"

    @outside_inference_mode
    def __call__(
        self, model: Model, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """As `Attack`; the generator is not used, nothing here is random."""
        del generator
        with torch.no_grad():
            ranking = logits_of(model, x).sort(dim=1).indices
        if self.targets >= ranking.shape[1]:
            expected = f"up to {ranking.shape[1] - 1} wrong classes"
            raise Refused(f"FAB(targets={self.targets})", expected=expected, got=str(self.targets))
        x_adv = x.clone()
        surviving = torch.arange(len(x), device=x.device)
        ranks = list(range(2, self.targets + 2))
        while ranks and len(surviving):
            n, ways = len(surviving), max(ROOM[prompt(x)] // x[surviving].numel(), 1)
            now, ranks = ranks[:ways], ranks[ways:]
            row, target = surviving.repeat(len(now)), torch.cat([ranking[surviving, -rank] for rank in now])
            one = torch.arange(n, device=x.device).repeat(len(now))
            found, broken = self.walk(model, x[row], y[row], target, budget, stop=True, one=one)
            x_adv[row[broken]] = found[broken]
            surviving = surviving[~broken.view(len(now), n).any(0)]
        return x_adv

    def walk(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        target: Tensor,
        budget: Budget,
        *,
        stop: bool = False,
        one: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The nearest misread point met on the way to one target (x where none was), and whether it is within eps.

        With `stop`, a sample ends at its first misread point within eps. Rows of which `one` (B,) says the same number
        are of one sample and end together.
        """
        result, broken = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        row = torch.arange(len(x), device=x.device)
        one = row if one is None else one
        over = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # by sample
        nearest, distance = x.clone(), torch.full_like(x.flatten(1)[:, 0], torch.inf)
        z = x
        for step in range(self.steps):
            if stop and (prompt(x) or step % DROP_EVERY == 0):
                within = distance <= budget.eps
                if bool(within.any()):
                    result[row[within]], broken[row[within]] = nearest[within], True
                    over[one[within]] = True
                    on = ~over[one]
                    row, one, x, y, target, z, nearest, distance = (
                        v[on] for v in (row, one, x, y, target, z, nearest, distance)
                    )
                    if len(row) == 0:
                        return result, broken
            z = self._step(model, x, y, target, z, budget)
            with torch.no_grad():
                misread = ~correct(logits_of(model, z), y)
            reach = _size(z - x, budget.norm)
            nearer = misread & (reach < distance)
            nearest, distance = torch.where(wide(nearer, z), z, nearest), torch.where(nearer, reach, distance)
            z = torch.where(wide(misread, z), x + (z - x) * self.beta, z)
        result[row], broken[row] = nearest, distance <= budget.eps
        return result, broken

    def _step(self, model: Model, x: Tensor, y: Tensor, target: Tensor, z: Tensor, budget: Budget) -> Tensor:
        """The next iterate from z, before it is asked whether it is misread."""

        def lead(logits: Tensor, part: slice) -> Tensor:
            return (logits.gather(1, target[part, None]) - logits.gather(1, y[part, None]))[:, 0]

        _, gap, gradient = ascent(model, z, lead)
        n, w = len(x), gradient.flatten(1)
        # h(u) = w . u - level, and both starts go to the same hyperplane.
        level = (gradient * z).flatten(1).sum(1) - gap
        starts = torch.stack((z.flatten(1), x.flatten(1)))
        ways = shortest_way(starts, w, level, budget.norm).flatten(0, 1)
        from_z, from_x = ways[:n].view_as(x), ways[n:].view_as(x)
        lengths = _size(ways, budget.norm).clamp_min(SHORTEST)
        share = wide((lengths[:n] / (lengths[:n] + lengths[n:])).clamp_max(self.alpha_max), x)
        return ((z + self.eta * from_z) * (1 - share) + (x + self.eta * from_x) * share).clamp(0, 1)


def shortest_way(u: Tensor, w: Tensor, level: Tensor, norm: str) -> Tensor:
    """The shortest d with u + d in [0, 1] on the hyperplane w . (u + d) = level; (..., B, D), (B, D), (B,) -> as u.

    Where the box does not reach the hyperplane, d goes to the corner nearest to it. Under linf and l2, each coordinate
    moves against w by min(t g, room), where g is 1 under linf and |w| under l2 and room is what the box leaves; the one
    unknown t solves

        sum over i of |w_i| min(t g_i, room_i) = |w . u - level|

    whose left side is concave and piecewise linear in t. Newton's method from t = 0 rises to the solution and reaches
    it after as many steps as sets of full coordinates are met. Under l1, coordinates move one after the other, that of
    the largest |w| first, each as far as the box leaves room.
    """
    excess = (w * u).sum(-1) - level
    # On the hyperplane itself either side will do; the authors take this one.
    w = torch.where(excess >= 0, 1, -1)[..., None] * w
    missing = excess.abs()
    room = torch.where(w < 0, 1 - u, u)
    weight = w.abs()
    # What cannot move: where w is zero or, under l2 and l1, so small that the quotient room / |w| means nothing.
    weight = weight * (weight > (0 if norm == "linf" else SHORTEST))
    filled = weight * room
    if norm == "l1":
        moved = _one_by_one(missing, weight, room, filled)
    else:
        moved = _side_by_side(missing, weight, room, filled, (weight > 0).to(u.dtype) if norm == "linf" else weight)
    return -w.sign() * torch.where(weight > 0, moved, 0)


def _side_by_side(missing: Tensor, weight: Tensor, room: Tensor, filled: Tensor, pace: Tensor) -> Tensor:
    """How far each coordinate moves where all do at once."""
    slope = weight * pace
    tiny = torch.finfo(room.dtype).tiny  # a quotient is then infinite, never 0 / 0
    t = missing / slope.sum(-1).clamp_min(tiny)
    full = torch.zeros_like(room, dtype=torch.bool)
    for _ in range(room.shape[-1] if prompt(room) else NEWTON_STEPS):
        before, full = full, t[..., None] * pace > room
        if prompt(room) and torch.equal(before, full):
            break
        left = missing - torch.where(full, filled, 0).sum(-1)
        t = torch.maximum(t, left / torch.where(full, 0, slope).sum(-1).clamp_min(tiny))
    unreachable = filled.sum(-1) <= missing
    return torch.minimum(torch.where(unreachable[..., None], torch.inf, t[..., None]) * pace, room)


def _one_by_one(missing: Tensor, weight: Tensor, room: Tensor, filled: Tensor) -> Tensor:
    """How far each coordinate moves where the heaviest do first."""
    # Both points that a way is sought from have the same weights.
    order = ranked(weight.view(-1, *weight.shape[-2:])[0])[1].flip(-1).expand_as(weight)
    done = filled.gather(-1, order).cumsum(-1)
    ahead = torch.cat((torch.zeros_like(done[..., :1]), done[..., :-1]), -1)  # by the coordinates before this one
    left = (missing[..., None] - ahead).clamp_min(0)
    moved = left / weight.gather(-1, order).clamp_min(torch.finfo(room.dtype).tiny)
    return torch.minimum(torch.zeros_like(room).scatter(-1, order, moved), room)


def _size(v: Tensor, norm: str) -> Tensor:
    """Length of each sample in the norm, (B, ...) -> (B,), rounded as in the authors' code."""
    if norm == "linf":
        return v.abs().flatten(1).amax(1)
    return length(v) if norm == "l2" else v.abs().flatten(1).sum(1)


KINDS = {
    "fab-t": AttackKind(
        lambda spec, budget, num_classes: FAB(targets=min(STANDARD_TARGETS, num_classes - 1)),
        {"fab-t": "targeted FAB, 100 steps for each of 9 targets"},
        "FAB-T",
        classes=2,
        backend=True,
    )
}
