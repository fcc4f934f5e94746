"""The search of Square under linf, with several patches tried at once. What it searches and why stands in `square.py`.

The random numbers of all queries are drawn before the search, and those of a query are the same for every sample, so
each sample may go at its own pace. Where few small images are left, the next queries of each are asked in one batch, as
if none were to succeed; a sample goes on from its first success, and its later answers in the batch are thrown away.
Most patches fail, so little is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.attacks.rows import prompt
from mmard.ops import margin

DROP_EVERY = 50
"""Queries between two droppings on an accelerator, which asking for the number left would stall."""
ROOM = {True: 2**18, False: 2**22}
"""Pixels of all patches that are tried at once, on a CPU and elsewhere: where a larger batch costs little more."""
MOST = 16
"""Queries that are tried at once; more successes would be thrown away."""
EARLY = 50
"""Queries at the beginning, most of which succeed, and which are asked one by one."""

Model = Callable[[Tensor], Tensor]
Window = tuple[slice, slice, slice, slice]


@dataclass(frozen=True)
class Query:
    """One patch, the same for every sample.

    Attributes:
        move: what is added inside, (1, C, 1, 1).
        name: its place, size and signs.
        window: where it lies in a batch.
    """

    move: Tensor
    name: tuple[int, ...]
    window: Window


def queries_of(sides: Sequence[int], x: Tensor, eps: float, generator: torch.Generator) -> list[Query]:
    """The patches of a whole search, in the order and from the stream of the authors' code."""
    _, c, h, w = x.shape
    drawn = torch.rand((len(sides), 2 + c), generator=generator, dtype=x.dtype)
    room = torch.tensor([[h - side, w - side] for side in sides], dtype=x.dtype)
    corners = (room * drawn[:, :2]).long().tolist()
    signs = (2 * drawn[:, 2:] - 1).sign()
    codes = ((signs.long() + 1) * 3 ** torch.arange(c)).sum(1).tolist()
    moves = signs.to(x.device).view(-1, 1, c, 1, 1) * (2 * eps)
    return [
        Query(
            move, (side, top, left, code), (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
        )
        for side, (top, left), code, move in zip(sides, corners, codes, moves, strict=True)
    ]


def search_linf(
    model: Model, x: Tensor, y: Tensor, eps: float, sides: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The best point of each sample (B, C, H, W), and its margin as `ops.margin` has it (B,)."""
    n, c, _, w = x.shape
    asks = prompt(x)
    stripes = (2 * torch.rand((n, c, 1, w), generator=generator, dtype=x.dtype) - 1).sign().to(x.device)
    result = (x + eps * stripes).clamp(0, 1)
    result_gap = margin(model(result), y)
    queries = queries_of(sides, x, eps, generator)
    s = Searchers(
        row=torch.arange(n, device=x.device),
        y=y,
        best=result.clone(),
        gap=result_gap.clone(),
        low=(x - eps).clamp(0, 1),
        high=(x + eps).clamp(0, 1),
    )
    refused = Refusals(n) if asks else None
    q = dropped = 0
    while q < len(queries):
        if asks or q == 0 or q - dropped >= DROP_EVERY:
            dropped = q
            alive = s.gap < 0
            if not bool(alive.all()):
                result[s.row[~alive]], result_gap[s.row[~alive]] = s.best[~alive], s.gap[~alive]
                s.keep(alive)
                if len(s.row) == 0:
                    return result, result_gap
        ahead = min(max(ROOM[asks] // s.best.numel(), 1), MOST) if q >= EARLY else 1
        block = [each for each in queries[q : q + ahead] if each.name[0] == queries[q].name[0]]
        s.attempt(model, block, refused)
        q += len(block)
    result[s.row], result_gap[s.row] = s.best, s.gap
    return result, result_gap


@dataclass
class Searchers:
    """What the search knows of the samples that are left; one row for each in every field."""

    row: Tensor  # in the batch
    y: Tensor
    best: Tensor  # the point of the highest margin
    gap: Tensor  # that margin
    low: Tensor  # faces of the ball within the box
    high: Tensor

    def keep(self, these: Tensor) -> None:
        """Go on with the samples of a mask (B,) bool."""
        for name, value in vars(self).items():
            setattr(self, name, value[these])

    def attempt(self, model: Model, block: Sequence[Query], refused: Refusals | None) -> None:
        """What comes of some queries in turn, for every sample; with `refused`, nothing is asked whose answer is known.

        On an accelerator, a look at who succeeded ends each round: one for all queries of the block, and one more for
        every success that is the most of any sample.
        """
        count, device = len(block), self.row.device
        these = torch.arange(len(self.row), device=device)
        nxt = torch.zeros_like(these)  # the first query that is still open, by sample
        while len(these):
            some = these if len(these) < len(self.row) else slice(None)
            row, before = self.row[some], [self.best[query.window][some] for query in block]
            patches = [
                torch.clamp(old + query.move, self.low[query.window][some], self.high[query.window][some])
                for query, old in zip(block, before, strict=True)
            ]
            ask = torch.arange(count, device=device)[:, None] >= nxt[some]
            if refused is not None:
                new = [
                    (patch != old).flatten(1).any(1) & ~refused.was(query.name, row)
                    for query, old, patch in zip(block, before, patches, strict=True)
                ]
                ask = ask & torch.stack(new)
            which, place = ask.nonzero().T
            if len(which) == 0:
                return
            asked = these[place]
            candidate = self.best[asked]
            edges = ask.sum(1).cumsum(0).tolist() if refused is not None or count > 1 else [len(which)]
            for query, patch, first, last in zip(block, patches, [0, *edges], edges, strict=False):
                candidate[first:last][query.window] = patch[place[first:last]]
            gap = margin(model(candidate), self.y[asked])
            better = gap > self.gap[asked]
            success = torch.full_like(self.row, count).scatter_reduce(
                0, asked, torch.where(better, which, count), "amin"
            )
            if refused is not None:
                for k, query in enumerate(block):
                    part = slice(edges[k - 1] if k else 0, edges[k])
                    answered = k <= success[asked[part]]
                    refused.note(query.name, self.row[asked[part]][answered], better[part][answered])
            taken = better & (which == success[asked])
            self.best[asked[taken]], self.gap[asked[taken]] = candidate[taken], gap[taken]
            nxt = success + 1
            these = these[(success[these] < count - 1) & (self.gap[these] < 0)] if count > 1 else these[:0]


class Refusals:
    """Which queries were refused for which samples since their last improvement."""

    def __init__(self, n: int) -> None:
        self._improved = torch.zeros(n, dtype=torch.int64)  # how often each sample did
        self._refused_at: dict[tuple[int, ...], Tensor] = {}  # by query: that count when it was refused, or -1
        self._side = 0

    def was(self, name: tuple[int, ...], row: Tensor) -> Tensor:
        """For each of these samples, (B,) bool."""
        if name[0] != self._side:  # squares only shrink
            self._side, self._refused_at = name[0], {}
        at = self._refused_at.get(name)
        return torch.zeros_like(row, dtype=torch.bool) if at is None else at[row] == self._improved[row]

    def note(self, name: tuple[int, ...], row: Tensor, better: Tensor) -> None:
        """What came of a query for the samples that were asked."""
        at = self._refused_at.setdefault(name, torch.full_like(self._improved, -1))
        at[row] = torch.where(better, -1, self._improved[row])
        self._improved[row] += better
