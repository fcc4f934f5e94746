"""APGD: projected ascent that chooses its own step size.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, arXiv:2003.01690, algorithm 1 and equations 6 (DLR) and 7 (targeted DLR). Under l1: Croce, Hein, "Mind the
box", ICML 2021, arXiv:2103.01208; that climb is `sparse_climb`. Under linf and l2:

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
  5. Targets and restarts are climbed side by side where few small images are left; a climb whose start was drawn for
     more samples than the climb before it left is made again, from the start that theirs draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.attacks.kinds import STANDARD_TARGETS, AttackKind
from mmard.attacks.queries import ascent, length, logits_of, outside_inference_mode, prompt, wide
from mmard.balls import Budget, l1_surplus, ranked
from mmard.errors import Refused, unknown
from mmard.ops import correct
from mmard.words import plural

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
                logits = logits_of(self.model, at)
                return ~correct(logits, y), loss(logits, slice(None)), torch.zeros_like(at)
        logits, values, gradient = ascent(self.model, at, loss)
        for _ in range(self.eot - 1):
            logits, values, more = ascent(self.model, at, loss)
            gradient = gradient + more
        return ~correct(logits, y), values, gradient if self.eot == 1 else gradient / self.eot


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
    """What was found on climbs from `start`, under linf and l2.

    Several climbs are made side by side where their batches are small. They follow each other: each is for the samples
    that those before it left, and its start is drawn for them. Made at once they are a guess that no sample falls; as
    soon as one does, what was guessed after its own climb is dropped, and `Fallen.last` says so.
    """
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
    """What was found on climbs from `start`, under l1 ("Mind the box", algorithm 1, and section 3.3 for `shrink`).

        z = project( x_k + step * sign(g) / |sign(g)|_1 )    g = grad loss(x_k), all but its `share` of largest cut

    `project` is exact for the ball and the box together (`balls.l1_surplus`), and there is no momentum. At a checkpoint
    the share becomes that of the pixels that the best point differs in, over 1.5. Where this number fell by more than
    5 % the step is eps again and the sample goes back to its best point; elsewhere the step is divided by 1.5, down to
    eps / 10. With `shrink`, 30 % of the steps are spent in the ball of radius 3 eps, 30 % in that of 2 eps, and the
    others in the ball itself; each part begins at the best point of the one before it, projected.

    The order of sums, and which differences are taken of rounded numbers, are those of the authors' code: whether a
    pixel differs from the clean one hangs on the last bit, and with it the share.
    """
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
    s = _SparseClimbers(
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
class _SparseClimbers:
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


ROOM = {True: 2**14, False: 2**22}
"""Pixels of all climbs that are made side by side, on a CPU and elsewhere: where a larger batch costs little more."""


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


class NamedLoss(NamedTuple):
    """A loss of APGD, its spelling and its name in labels, and the number of classes that it needs."""

    of: Loss
    spec: str
    name: str
    classes: int


LOSSES = {
    "ce": NamedLoss(lambda logits, y, target: F.cross_entropy(logits, y, reduction="none"), "ce", "CE", 2),
    "dlr": NamedLoss(lambda logits, y, target: dlr(logits, y), "dlr", "DLR", 3),
    "targeted-dlr": NamedLoss(targeted_dlr, "t", "targeted DLR", 4),
}


@dataclass(frozen=True)
class APGD:
    """Looks for one misread point of the ball for each sample.

    Args:
        loss: "ce", "dlr" or "targeted-dlr".
        steps: gradients taken from each start.
        restarts: random starts for each target; samples that were fooled do not start again.
        targets: wrong classes tried, those with the highest clean logits first; of "targeted-dlr" alone.
        eot: forwards whose gradients are averaged, for random networks (expectation over transformations).
        rho: share of rising steps up to which a sample counts as oscillating, under linf and l2.
        shrink: under l1, spend 60 % of the steps in larger balls first.

    Raises:
        Refused: for counts below 1 or an unknown loss, or, when called, for more targets than wrong classes or a loss
            that needs more classes than there are.
    """

    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 1
    eot: int = 1
    rho: float = 0.75
    shrink: bool = True

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

    @property
    def spec(self) -> str:
        """ "apgd-ce", "apgd-dlr" or "apgd-t"."""
        return f"apgd-{LOSSES[self.loss].spec}"

    needs_gradient = True
    stops_at_success = True

    @property
    def title(self) -> str:
        """ "APGD-CE", "APGD-DLR" or "APGD-T"."""
        return self.spec.upper()

    @property
    def label(self) -> str:
        """With its settings.

        >>> APGD("targeted-dlr", targets=9).label
        'APGD-T (targeted DLR, 100 steps x 9 targets, random start, 1 restart)'
        """
        steps = f"{self.steps} steps" + (f" x {plural(self.targets, 'target')}" * (self.loss == "targeted-dlr"))
        averaged = f", mean of {self.eot} gradients" if self.eot > 1 else ""
        restarts = plural(self.restarts, "restart")
        return f"{self.title} ({LOSSES[self.loss].name}, {steps}, random start, {restarts}{averaged})"

    @outside_inference_mode
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """As `Attack`; each start is drawn by the generator, on the CPU, for the samples that no climb has fooled."""
        with torch.no_grad():
            ranking = logits_of(model, x).sort(dim=1).indices
        classes = ranking.shape[1]
        if classes < LOSSES[self.loss].classes:
            raise Refused(f"APGD({self.loss})", expected=f"{LOSSES[self.loss].classes} classes", got=str(classes))
        if self.targets >= classes:
            raise Refused(
                f"APGD(targets={self.targets})", expected=f"up to {classes - 1} wrong classes", got=str(self.targets)
            )
        slope = Slope(model, LOSSES[self.loss].of, budget, self.eot)
        x_adv = x.clone()
        surviving = torch.arange(len(x), device=x.device)
        ranks = [rank for rank in range(2, self.targets + 2) for _ in range(self.restarts)]
        guess = 1  # climbs that are expected to lead nowhere
        while ranks and len(surviving):
            n = len(surviving)
            runs = min(len(ranks), guess, max(ROOM[prompt(x)] // x[surviving].numel(), 1)) if self.eot == 1 else 1
            starts, after = [], []
            for _ in range(runs):
                starts.append(self._start(x[surviving], budget, generator))
                after.append(generator.get_state())
            row, target = surviving.repeat(runs), torch.cat([ranking[surviving, -rank] for rank in ranks[:runs]])
            run = torch.arange(runs, device=x.device).repeat_interleave(n)
            start = torch.cat(starts)
            if budget.norm == "l1":
                fallen = sparse_climb(slope, x[row], y[row], target, run, start, steps=self.steps, shrink=self.shrink)
            else:
                fallen = climb(slope, x[row], y[row], target, run, start, steps=self.steps, rho=self.rho)
            last = int(fallen.last())
            generator.set_state(after[last])
            these = slice(last * n, (last + 1) * n)
            fooled = fallen.fooled[these]
            x_adv[surviving[fooled]] = fallen.found[these][fooled]
            surviving, ranks = surviving[~fooled], ranks[last + 1 :]
            guess = 4 * guess if len(surviving) == n else 1
        return x_adv

    def _start(self, x: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        if budget.norm == "l1":
            return sparse_start(x, budget, self.shrink, generator)
        return starting_point(x, budget, generator)


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None])[:, 0]


L1_TARGETS, L1_STARTS = 5, 5
"""Of APGD under l1, in the standard whole."""


def _ce(spec: str, budget: Budget, num_classes: int) -> APGD:
    return APGD("ce", restarts=L1_STARTS if budget.norm == "l1" else 1)


def _targeted(spec: str, budget: Budget, num_classes: int) -> APGD:
    return APGD("targeted-dlr", targets=min(L1_TARGETS if budget.norm == "l1" else STANDARD_TARGETS, num_classes - 1))


KINDS = {
    "apgd-ce": AttackKind(
        _ce, {"apgd-ce": "APGD on cross-entropy, 100 steps; under l1 from 5 starts"}, "APGD-CE", classes=2, backend=True
    ),
    "apgd-dlr": AttackKind(
        lambda spec, budget, num_classes: APGD("dlr"),
        {"apgd-dlr": "APGD on the DLR loss without a target, 100 steps; needs three classes"},
        "APGD-DLR",
        classes=LOSSES["dlr"].classes,
        backend=True,
    ),
    "apgd-t": AttackKind(
        _targeted,
        {"apgd-t": "APGD on the targeted DLR loss, 100 steps for each of 9 targets, 5 under l1; needs four classes"},
        "APGD-T",
        classes=LOSSES["targeted-dlr"].classes,
        backend=True,
    ),
}
