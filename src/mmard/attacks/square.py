"""Square Attack: random search with square patches, knowing logits alone.

Andriushchenko, Croce, Flammarion, Hein. "Square Attack: a query-efficient black-box adversarial attack via random
search", ECCV 2020, arXiv:1912.00049, algorithms 1 (the search), 2 (linf patches) and 3 (l2 patches). Under l1: Croce,
Hein, "Mind the box", ICML 2021, arXiv:2103.01208, section 4.2.

    linf   start: each column of pixels at +eps or -eps, by channel
           patch: a square moved by 2 eps, with one sign for each channel
    l2     start: a tiling by pairs of pyramids
           patch: the mass of one window, and what is left of the ball, moves into another as a pair of pyramids
    l1     the same with steeper pyramids, projected onto the ball and the box

A patch is kept where the margin (true logit - largest other) falls, and the search ends where it is no longer positive.
The side of the square is sqrt(p H W), and p halves from `p_init` after 10, 50, 200, 500, 1000, 2000, 4000 ... queries.

Differences from the authors' code (fra31/auto-attack, a392200):
  1. linf: a patch that changes no pixel of a sample, because all stand at the edge of the ball or the box, is not
     asked, and neither is one that was refused for this sample since its last improvement. Both have a known answer.
     They count as queries all the same, so the schedule is theirs. On an accelerator, small batches cost what large
     ones do, and everything is asked.
  2. linf: the random numbers of the whole search are drawn before it. How many a query takes is known, so the stream
     is theirs. An l2 or l1 patch takes some for each sample left, so there they are drawn as one goes.
  3. Several queries are asked at once where few small images are left, as if none were to succeed; what was asked
     beyond a success is thrown away.
  4. A window starts at one of H - side places where there are H - side + 1: the last row and column are reached by
     squares as large as the image alone. So it is in theirs, and verdicts are to be the same.
  5. Images of any height that has a pixel, where theirs needs 5 and divides by 0 or fails at some others under l2 and
     l1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.attacks.square_linf import Model, search_linf
from mmard.attacks.square_moving import search_moving
from mmard.balls import NORMS, Budget
from mmard.errors import Refused

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square:
    """Looks for one misread point of the ball for each sample, without a gradient.

    Args:
        queries: patches tried for each sample, after the start.
        restarts: searches; samples that were fooled do not start again.
        p_init: share of the pixels that the first squares cover.

    Raises:
        Refused: for counts below 1, p_init outside (0, 1], or, when called, for inputs that are not images
            (B, C, H, W).
    """

    queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8

    def __post_init__(self) -> None:
        for name in ("queries", "restarts"):
            if getattr(self, name) < 1:
                raise Refused(
                    f"Square({name}={getattr(self, name)})", expected="at least 1", got=str(getattr(self, name))
                )
        if not 0 < self.p_init <= 1:
            raise Refused(f"Square(p_init={self.p_init:g})", expected="a share in (0, 1]", got=f"{self.p_init:g}")

    def side(self, query: int, x: Tensor) -> int:
        """Side of the square at a query, before it is fitted to the norm."""
        p = self.p_init / 2 ** sum(query > limit for limit in HALVINGS)
        return round(math.sqrt(p * x.shape[2] * x.shape[3]))

    def sides(self, x: Tensor, budget: Budget) -> list[int]:
        """Sides of the squares of all queries; under l2 and l1 odd and at least 3, where the image is larger."""
        sides = (self.side(q, x) for q in range(self.queries))
        least = (max(side, 1) if budget.norm == "linf" else max(side, 3) | 1 for side in sides)
        return [min(side, *x.shape[2:]) for side in least]

    def __call__(self, model: Model, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """A misread point of the ball where one was found, else x; (B, C, H, W) -> (B, C, H, W).

        Args:
            model: (B, C, H, W) in [0, 1] to logits (B, classes); its mode and its parameters belong to the caller.
            x: inputs that are read rightly.
            y: their labels (B,).
            budget: the ball.
            generator: of the patches, on the CPU.
        """
        assert budget.norm in NORMS
        if x.ndim != 4:
            raise Refused("Square", expected="images (B, C, H, W)", got=str(tuple(x.shape)))
        x_adv = x.clone()
        standing = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            for _ in range(self.restarts):
                if len(standing) == 0:
                    break
                left, labels, sides = x[standing], y[standing], self.sides(x, budget)
                if budget.norm == "linf":
                    best, gap = search_linf(model, left, labels, budget.eps, sides, generator)
                else:
                    best, gap = search_moving(model, left, labels, budget, sides, generator)
                fooled = gap >= 0
                # A projected point may round to a hair beyond the box.
                x_adv[standing[fooled]] = best[fooled].clamp(0, 1)
                standing = standing[~fooled]
        return x_adv
