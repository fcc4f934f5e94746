"""Square Attack: random search with square patches, knowing logits alone.

Andriushchenko, Croce, Flammarion, Hein. "Square Attack: a query-efficient black-box adversarial attack via random
search", ECCV 2020, arXiv:1912.00049, algorithms 1 (the search), 2 (linf patches) and 3 (l2 patches).

    linf   start: each column of pixels at +eps or -eps, by channel
           patch: a square moved by 2 eps, with one sign for each channel
    l2     start: a tiling by pairs of pyramids
           patch: the mass of one window, and what is left of the ball, moves into another as a pair of pyramids

A patch is kept where the margin (true logit - largest other) falls, and the search ends where it is no longer positive.
The side of the square is sqrt(p H W), and p halves from `p_init` after 10, 50, 200, 500, 1000, 2000, 4000 ... queries.

Differences from the authors' code (fra31/auto-attack, a392200):
  1. linf: a patch that changes no pixel of a sample, because all stand at the edge of the ball or the box, is not
     asked, and neither is one that was refused for this sample since its last improvement. Both have a known answer.
     They count as queries all the same, so the schedule is theirs. On an accelerator, small batches cost what large
     ones do, and everything is asked.
  2. linf: the random numbers of the whole search are drawn before it. How many a query takes is known, so the stream
     is theirs. An l2 patch takes one for each sample left, so there they are drawn as one goes.
  3. A window starts at one of H - side places where there are H - side + 1: the last row and column are reached by
     squares as large as the image alone. So it is in theirs, and verdicts are to be the same.
  4. Images of any height that has a pixel, where theirs needs 5 and divides by 0 or fails at some others under l2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmard.attacks.rows import length, prompt, wide
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.ops import margin

TINY = 1e-12  # the constant that the authors add to denominators; part of the verdicts
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
DROP_EVERY = 50  # queries between two droppings on an accelerator, which asking for the number left would stall

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Square:
    """Looks for one misread point of the ball for each sample, without a gradient.

    Args:
        queries: patches tried for each sample, after the start.
        restarts: searches; samples that were fooled do not start again.
        p_init: share of the pixels that the first squares cover.

    Raises:
        Refused: for counts below 1, p_init outside (0, 1], or, when called, for a norm other than linf and l2 or inputs
            that are not images (B, C, H, W).
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

    def __call__(self, model: Model, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """A misread point of the ball where one was found, else x; (B, C, H, W) -> (B, C, H, W).

        Args:
            model: (B, C, H, W) in [0, 1] to logits (B, classes); its mode and its parameters belong to the caller.
            x: inputs that are read rightly.
            y: their labels (B,).
            budget: the ball.
            generator: of the patches, on the CPU.
        """
        searches = {"linf": self._search_linf, "l2": self._search_l2}
        if budget.norm not in searches:
            raise Refused("Square", expected="the norm linf or l2", got=budget.norm)
        if x.ndim != 4:
            raise Refused("Square", expected="images (B, C, H, W)", got=str(tuple(x.shape)))
        x_adv = x.clone()
        standing = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            for _ in range(self.restarts):
                if len(standing) == 0:
                    break
                best, gap = searches[budget.norm](model, x[standing], y[standing], budget.eps, generator)
                fooled = gap >= 0
                x_adv[standing[fooled]] = best[fooled]
                standing = standing[~fooled]
        return x_adv

    def _search_linf(
        self, model: Model, x: Tensor, y: Tensor, eps: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The best point of each sample (B, C, H, W), and its margin as `ops.margin` has it (B,)."""
        n, c, h, w = x.shape
        asks = prompt(x)
        stripes = (2 * torch.rand((n, c, 1, w), generator=generator, dtype=x.dtype) - 1).sign().to(x.device)
        result = (x + eps * stripes).clamp(0, 1)
        result_gap = margin(model(result), y)
        drawn = torch.rand((self.queries, 2 + c), generator=generator, dtype=x.dtype)
        sides = [min(max(self.side(q, x), 1), h, w) for q in range(self.queries)]
        room = torch.tensor([[h - side, w - side] for side in sides], dtype=x.dtype)
        corners = (room * drawn[:, :2]).long().tolist()
        signs = (2 * drawn[:, 2:] - 1).sign()
        moves = signs.to(x.device).view(-1, 1, c, 1, 1) * (2 * eps)
        codes = _codes(signs)

        row = torch.arange(n, device=x.device)
        best, gap, refused = result.clone(), result_gap.clone(), _Refused(n)
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        for q, (side, (top, left)) in enumerate(zip(sides, corners, strict=True)):
            if asks or q % DROP_EVERY == 0:
                alive = gap < 0
                if not bool(alive.all()):
                    result[row[~alive]], result_gap[row[~alive]] = best[~alive], gap[~alive]
                    row, y, best, gap, low, high = (v[alive] for v in (row, y, best, gap, low, high))
                    if len(row) == 0:
                        return result, result_gap
            window = (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
            patch = torch.clamp(best[window] + moves[q], low[window], high[window])
            if asks:
                move = (side, top, left, codes[q])
                ask = (patch != best[window]).flatten(1).any(1) & ~refused.was(move, row)
                asked = ask.nonzero()[:, 0]
                if len(asked) == 0:
                    continue
                candidate = best[asked]
                candidate[window] = patch[asked]
                new_gap = margin(model(candidate), y[asked])
                better = new_gap > gap[asked]
                best[asked[better]], gap[asked[better]] = candidate[better], new_gap[better]
                refused.note(move, row[asked], better)
            else:
                candidate = best.clone()
                candidate[window] = patch
                new_gap = margin(model(candidate), y)
                better = new_gap > gap
                best, gap = torch.where(wide(better, x), candidate, best), torch.where(better, new_gap, gap)
        result[row], result_gap[row] = best, gap
        return result, result_gap

    def _search_l2(
        self, model: Model, x: Tensor, y: Tensor, eps: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """As `_search_linf`, in the l2 ball."""
        n, c, h, w = x.shape

        def signed_pyramids(side: int, count: int) -> Tensor:
            """One pattern for all, lying or standing, with a sign for each sample and channel."""
            standing = bool(torch.rand(1, generator=generator, dtype=x.dtype) > 0.5)
            signs = (2 * torch.rand((count, c, 1, 1), generator=generator, dtype=x.dtype) - 1).sign()
            return pyramids(side, standing, x.dtype).to(x.device) * signs.to(x.device)

        def place(extent: int) -> int:
            return int(extent * torch.rand(1, generator=generator, dtype=x.dtype))

        side = max(h // 5, 1)
        delta = torch.zeros_like(x)
        first = (h - 5 * side) // 2 if h >= 5 else 0
        for top in range(first, first + h // side * side, side):
            for left in range(first, first + w // side * side, side):
                tile = delta[:, :, top : top + side, left : left + side]
                tile += signed_pyramids(side, n)[:, :, : tile.shape[2], : tile.shape[3]]
        result = (x + _unit(delta) * eps).clamp(0, 1)
        result_gap = margin(model(result), y)

        row = torch.arange(n, device=x.device)
        best, gap = result.clone(), result_gap.clone()
        for q in range(self.queries):
            alive = gap < 0
            if not bool(alive.all()):
                result[row[~alive]], result_gap[row[~alive]] = best[~alive], gap[~alive]
                row, x, y, best, gap = (v[alive] for v in (row, x, y, best, gap))
                if len(row) == 0:
                    return result, result_gap
            side = min(max(self.side(q, x), 3) | 1, h, w)
            target, source = (
                (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
                for top, left in ((place(h - side), place(w - side)) for _ in range(2))
            )
            delta = best - x
            there = delta[target]
            both = torch.zeros_like(delta[:1])
            both[target] = both[source] = 1
            spare = (torch.full_like(gap, eps) ** 2 - length(delta) ** 2).clamp_min(0)
            mass = (wide(spare, x) / c + _plane_length(delta * both) ** 2).sqrt()
            new = signed_pyramids(side, len(x)) + there / (TINY + _plane_length(there))
            new = new / (TINY + _plane_length(new)) * mass
            delta[source] = 0
            delta[target] = new
            candidate = (x + _unit(delta) * eps).clamp(0, 1)
            new_gap = margin(model(candidate), y)
            better = new_gap > gap
            best, gap = torch.where(wide(better, x), candidate, best), torch.where(better, new_gap, gap)
        result[row], result_gap[row] = best, gap
        return result, result_gap


class _Refused:
    """Which moves were refused for which samples since their last improvement."""

    def __init__(self, n: int) -> None:
        self._improved = torch.zeros(n, dtype=torch.int64)  # how often each sample did
        self._refused_at: dict[tuple[int, ...], Tensor] = {}  # by move: that count when it was refused, or -1
        self._side = 0

    def was(self, move: tuple[int, ...], row: Tensor) -> Tensor:
        """For each of these samples, (B,) bool."""
        if move[0] != self._side:  # squares only shrink
            self._side, self._refused_at = move[0], {}
        at = self._refused_at.get(move)
        return torch.zeros_like(row, dtype=torch.bool) if at is None else at[row] == self._improved[row]

    def note(self, move: tuple[int, ...], row: Tensor, better: Tensor) -> None:
        """What came of a move for the samples that were asked."""
        at = self._refused_at.setdefault(move, torch.full_like(self._improved, -1))
        at[row] = torch.where(better, -1, self._improved[row])
        self._improved[row] += better


def _codes(signs: Tensor) -> list[int]:
    """A number for each row of signs (Q, C)."""
    return ((signs.long() + 1) * 3 ** torch.arange(signs.shape[1])).sum(1).tolist()


@cache
def pyramids(side: int, standing: bool, dtype: torch.dtype) -> Tensor:
    """Two pyramids of opposite sign that fill a square, of l2 length 1; one above the other, or side by side.

    >>> pyramids(3, False, torch.float64).sign()
    tensor([[ 1.,  1.,  1.],
            [-1., -1., -1.],
            [-1., -1., -1.]], dtype=torch.float64)
    """
    upper = side // 2
    pattern = torch.cat((_pyramid(upper, side, dtype), -_pyramid(side - upper, side, dtype)))
    pattern = pattern / (pattern**2).sum().sqrt()
    return pattern.T if standing else pattern


def _pyramid(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """The bump of section 3.4, of l2 length 1: every square of radius k around the centre adds 1 / (k + 1)^2."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    bump = torch.zeros(height, width, dtype=dtype)
    for k in range(max(height, width) // 2 + 1):
        bump += (distance <= k).to(dtype) / (k + 1) ** 2
    return bump / (bump**2).sum().sqrt()


def _unit(delta: Tensor) -> Tensor:
    return delta / (wide(length(delta), delta) + TINY)


def _plane_length(v: Tensor) -> Tensor:
    """L2 length of each channel, (B, C, H, W) -> (B, C, 1, 1)."""
    return (v**2).sum(dim=(-2, -1), keepdim=True).sqrt()
