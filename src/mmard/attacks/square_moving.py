"""The search of Square under l2 and l1, with several patches tried at once. What it searches and why: `square.py`.

A query takes random numbers for each sample that is left. As long as no sample falls, it is known how many, and the
next queries can be drawn ahead and asked in one batch, as if none were to succeed. A sample goes on from its first
success, and its later answers are thrown away. When a sample falls, so is all that was drawn and asked beyond that
query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmard.attacks.rows import length, prompt, wide
from mmard.attacks.square_linf import EARLY, Model
from mmard.balls import Budget, l1_surplus
from mmard.ops import margin

TINY = 1e-12  # the constant that the authors add to denominators; part of the verdicts
WITHIN = 1 - 1e-6  # of the l1 ball is used; another of their constants
ROOM = {True: 2**18, False: 2**22}
"""Pixels of all patches that are tried at once, on a CPU and elsewhere: where a larger batch costs little more."""
MOST = 16
"""Queries that are tried at once; more successes would be thrown away."""


def search_moving(
    model: Model, x: Tensor, y: Tensor, budget: Budget, sides: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The best point of each sample (B, C, H, W), and its margin as `ops.margin` has it (B,).

    Who is left is asked for before each block of queries, and who succeeded after each round in it: numbers that an
    accelerator must be waited for.
    """
    n, c = x.shape[:2]
    result = _start(x, budget, generator)
    result_gap = margin(model(result), y)
    row, best, gap = torch.arange(n, device=x.device), result.clone(), result_gap.clone()
    q = 0
    while q < len(sides):
        alive = gap < 0
        if not bool(alive.all()):
            result[row[~alive]], result_gap[row[~alive]] = best[~alive], gap[~alive]
            row, x, y, best, gap = (v[alive] for v in (row, x, y, best, gap))
            if len(row) == 0:
                return result, result_gap
        ahead = min(max(ROOM[prompt(x)] // x.numel(), 1), MOST) if q >= EARLY else 1
        count = len([side for side in sides[q : q + ahead] if side == sides[q]])
        drawn, after = [], []
        for _ in range(count):
            drawn.append(torch.rand(5 + len(x) * c, generator=generator, dtype=x.dtype))
            after.append(generator.get_state())
        block = Block.of(sides[q], torch.stack(drawn), x, budget)
        best, gap, done = block.attempt(model, x, y, best, gap)
        generator.set_state(after[done - 1])
        q += done
    result[row], result_gap[row] = best, gap
    return result, result_gap


def _start(x: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
    """A tiling by pairs of pyramids, with a sign for each sample, channel and tile."""
    n, c, h, w = x.shape
    side = max(h // 5, 1)
    delta = torch.zeros_like(x)
    first = (h - 5 * side) // 2 if h >= 5 else 0
    for top in range(first, first + h // side * side, side):
        for left in range(first, first + w // side * side, side):
            drawn = torch.rand(1 + n * c, generator=generator, dtype=x.dtype)
            signs = (2 * drawn[1:].view(n, c, 1, 1) - 1).sign().to(x.device)
            tile = delta[:, :, top : top + side, left : left + side]
            pair = pyramids(side, bool(drawn[0] > 0.5), budget.norm, x.dtype).to(x.device) * signs
            tile += pair[:, :, : tile.shape[2], : tile.shape[3]]
    return _within(x, delta, budget)


@dataclass(frozen=True)
class Block:
    """Queries with squares of one size, for the samples that are left.

    Attributes:
        budget: the ball.
        into, out_of: masks of the window that each query fills and of the one it empties (K, 1, H, W).
        place: rows and columns of the former (K, side, 1) and (K, 1, side).
        pairs: its pyramids, lying or standing (K, 1, side, side).
        signs: of them, for each sample and channel (K, B, C, 1, 1).
    """

    budget: Budget
    into: Tensor
    out_of: Tensor
    place: tuple[Tensor, Tensor]
    pairs: Tensor
    signs: Tensor

    @classmethod
    def of(cls, side: int, drawn: Tensor, x: Tensor, budget: Budget) -> Block:
        """From the numbers drawn for each query (K, 5 + B C), on the CPU."""
        _, c, h, w = x.shape
        room = torch.tensor([h - side, w - side] * 2, dtype=x.dtype)
        corners = (room * drawn[:, :4]).long()
        rows, columns = torch.arange(h).view(1, 1, h, 1), torch.arange(w).view(1, 1, 1, w)

        def window(top: Tensor, left: Tensor) -> Tensor:
            top, left = top.view(-1, 1, 1, 1), left.view(-1, 1, 1, 1)
            return (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)

        steps = torch.arange(side)
        place = (corners[:, 0, None] + steps)[:, :, None], (corners[:, 1, None] + steps)[:, None]
        both = torch.stack([pyramids(side, standing, budget.norm, x.dtype) for standing in (False, True)])
        pairs = both[(drawn[:, 4] > 0.5).long()][:, None]
        signs = (2 * drawn[:, 5:].view(len(drawn), -1, c, 1, 1) - 1).sign()
        into, out_of = window(corners[:, 0], corners[:, 1]), window(corners[:, 2], corners[:, 3])
        down, across, *rest = (v.to(x.device) for v in (*place, into, out_of, pairs, signs))
        return cls(budget, rest[0], rest[1], (down, across), rest[2], rest[3])

    def attempt(self, model: Model, x: Tensor, y: Tensor, best: Tensor, gap: Tensor) -> tuple[Tensor, Tensor, int]:
        """Best points and margins after as many of the queries as count, and how many these are: up to the first at
        which a sample falls."""
        count, device = len(self.pairs), x.device
        before = best, gap
        best, gap = best.clone(), gap.clone()
        these, nxt = torch.arange(len(x), device=device), torch.zeros(len(x), dtype=torch.int64, device=device)
        successes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        last = count - 1
        while len(these):
            ask = torch.arange(last + 1, device=device)[:, None] >= nxt[these]
            which, place = ask.nonzero().T
            if len(which) == 0:
                break
            asked = these[place]
            candidate = self._candidates(x[asked], best[asked], which, asked)
            new = margin(model(candidate), y[asked])
            better = new > gap[asked]
            success = torch.full_like(nxt, count).scatter_reduce(0, asked, torch.where(better, which, count), "amin")
            taken = better & (which == success[asked])
            at = asked[taken]
            best[at], gap[at] = candidate[taken], new[taken]
            successes.append((at, which[taken], candidate[taken], new[taken]))
            if count == 1:
                return best, gap, 1
            fallen = new[taken] >= 0
            last = min(last, int(torch.where(fallen, which[taken], count).amin())) if len(at) else last
            nxt = success + 1
            these = these[nxt[these] <= last]
        if last == count - 1:
            return best, gap, count
        best, gap = before[0].clone(), before[1].clone()
        for at, which, candidate, new in successes:
            counts = which <= last
            best[at[counts]], gap[at[counts]] = candidate[counts], new[counts]
        return best, gap, last + 1

    def _candidates(self, x: Tensor, best: Tensor, which: Tensor, sample: Tensor) -> Tensor:
        """What queries `which` (P,) propose for points `best` (P, C, H, W) of these samples."""
        c, norm, eps = x.shape[1], self.budget.norm, self.budget.eps
        delta = best - x
        into, out_of = self.into[which], self.out_of[which]
        mass = _plane_length(delta * (into | out_of).to(x.dtype), norm)
        if norm == "l2":
            spare = (torch.full_like(mass[:, 0, 0, 0], eps) ** 2 - length(delta) ** 2).clamp_min(0)
            mass = (wide(spare, x) / c + mass**2).sqrt()
        else:
            spare = (eps - delta.abs().flatten(1).sum(1)).clamp_min(0)
            mass = wide(spare, x) / c + mass
        down, across = (v[which][:, None] for v in self.place)
        index = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1), torch.arange(c, device=x.device).view(-1, 1, 1)
        there = delta[*index, down, across]
        new = self.pairs[which] * self.signs[which, sample] + there / (TINY + _plane_length(there, norm))
        new = new / (TINY + _plane_length(new, norm)) * mass
        delta = delta.masked_fill(out_of, 0)
        delta[*index, down, across] = new if norm == "l2" else new * c
        return _within(x, delta, self.budget)


@cache
def pyramids(side: int, standing: bool, norm: str, dtype: torch.dtype) -> Tensor:
    """Two pyramids of opposite sign that fill a square, of length 1 in the norm; one above the other, or side by side.

    >>> pyramids(3, False, "l2", torch.float64).sign()
    tensor([[ 1.,  1.,  1.],
            [-1., -1., -1.],
            [-1., -1., -1.]], dtype=torch.float64)
    """
    upper = side // 2
    pattern = torch.cat((_pyramid(upper, side, norm, dtype), -_pyramid(side - upper, side, norm, dtype)))
    pattern = pattern / _plane_length(pattern, norm)
    return pattern.T if standing else pattern


def _pyramid(height: int, width: int, norm: str, dtype: torch.dtype) -> Tensor:
    """The bump of section 3.4: every square of radius k around the centre adds 1 / (k + 1)^2, under l1 the square of
    that."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    bump = torch.zeros(height, width, dtype=dtype)
    for k in range(max(height, width) // 2 + 1):
        bump += (distance <= k).to(dtype) / (k + 1) ** (2 if norm == "l2" else 4)
    return bump / _plane_length(bump, norm)


def _within(x: Tensor, delta: Tensor, budget: Budget) -> Tensor:
    """x + delta, stretched or cut to the l2 sphere and then to the box, or projected onto the l1 ball and the box."""
    if budget.norm == "l2":
        return (x + delta / (wide(length(delta), delta) + TINY) * budget.eps).clamp(0, 1)
    return x + delta - l1_surplus(delta, x, budget.eps * WITHIN)


def _plane_length(v: Tensor, norm: str) -> Tensor:
    """Length of each channel, (..., H, W) -> (..., 1, 1)."""
    if norm == "l2":
        return (v**2).sum(dim=(-2, -1), keepdim=True).sqrt()
    return v.abs().sum(dim=(-2, -1), keepdim=True)
