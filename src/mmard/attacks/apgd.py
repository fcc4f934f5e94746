"""APGD: projected ascent that chooses its own step size.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, arXiv:2003.01690, algorithm 1 and equations 6 (DLR) and 7 (targeted DLR). Under l1: Croce, Hein, "Mind the
box", ICML 2021, arXiv:2103.01208; that climb is told in `sparse_climb.py`. Under linf and l2:

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

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.attacks.climb import TINY, Loss, Slope, climb, starting_point
from mmard.attacks.rows import prompt
from mmard.attacks.sparse_climb import sparse_climb, sparse_start
from mmard.balls import NORMS, Budget
from mmard.errors import Refused, unknown

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

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """A misread point of the ball where one was found, else x; (B, ...) -> (B, ...).

        Args:
            model: (B, ...) in [0, 1] to logits (B, C); its mode and its parameters belong to the caller.
            x: inputs that are read rightly.
            y: their labels (B,).
            budget: the ball.
            generator: of random starts, on the CPU: each start is drawn for the samples still standing.
        """
        assert budget.norm in NORMS
        with torch.no_grad():
            ranking = model(x).sort(dim=1).indices
        classes = ranking.shape[1]
        if classes < LOSSES[self.loss][1]:
            raise Refused(f"APGD({self.loss})", expected=f"{LOSSES[self.loss][1]} classes", got=str(classes))
        if self.targets >= classes:
            raise Refused(
                f"APGD(targets={self.targets})", expected=f"up to {classes - 1} wrong classes", got=str(self.targets)
            )
        slope = Slope(model, LOSSES[self.loss][0], budget, self.eot)
        x_adv = x.clone()
        standing = torch.arange(len(x), device=x.device)
        ranks = [rank for rank in range(2, self.targets + 2) for _ in range(self.restarts)]
        guess = 1  # climbs that are expected to lead nowhere
        while ranks and len(standing):
            n = len(standing)
            runs = min(len(ranks), guess, max(ROOM[prompt(x)] // x[standing].numel(), 1)) if self.eot == 1 else 1
            starts, after = [], []
            for _ in range(runs):
                starts.append(self._start(x[standing], budget, generator))
                after.append(generator.get_state())
            row, target = standing.repeat(runs), torch.cat([ranking[standing, -rank] for rank in ranks[:runs]])
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
            x_adv[standing[fooled]] = fallen.found[these][fooled]
            standing, ranks = standing[~fooled], ranks[last + 1 :]
            guess = 4 * guess if len(standing) == n else 1
        return x_adv

    def _start(self, x: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        if budget.norm == "l1":
            return sparse_start(x, budget, self.shrink, generator)
        return starting_point(x, budget, generator)


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None])[:, 0]
