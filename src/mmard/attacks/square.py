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
  3. Several queries are made at once where few small images are left, as if none were to succeed; what was asked
     beyond a success is thrown away.
  4. A window starts at one of H - side places where there are H - side + 1: the last row and column are reached by
     squares as large as the image alone. So it is in theirs, and verdicts are to be the same.
  5. Images of any height that has a pixel, where theirs needs 5 and divides by 0 or fails at some others under l2 and
     l1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmard.attacks.kinds import AttackKind
from mmard.attacks.queries import length, logits_of, prompt, wide
from mmard.balls import Budget, l1_surplus
from mmard.errors import Refused
from mmard.ops import margin
from mmard.words import plural

DROP_EVERY = 50
"""Queries between two droppings on an accelerator, which asking for the number left would stall."""
ROOM = {True: 2**18, False: 2**22}
"""Pixels of all patches that are tried at once, on a CPU and elsewhere: where a larger batch costs little more."""
MOST = 16
"""Queries that are tried at once; more successes would be thrown away."""
EARLY = 50
"""Queries at the beginning, most of which succeed, and which are made one by one."""

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
    """Under linf: the best point of each sample (B, C, H, W), and its margin as `ops.margin` has it (B,).

    The random numbers of all queries are drawn before the search, and those of a query are the same for every sample,
    so each sample may go at its own pace. Where few small images are left, the next queries of each are made in one
    batch, as if none were to succeed; a sample goes on from its first success, and its later answers are thrown away.
    """
    n, c, _, w = x.shape
    asks = prompt(x)
    stripes = (2 * torch.rand((n, c, 1, w), generator=generator, dtype=x.dtype) - 1).sign().to(x.device)
    result = (x + eps * stripes).clamp(0, 1)
    result_gap = margin(logits_of(model, result), y)
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
        """What comes of some queries in turn, for every sample; with `refused`, none whose answer is known.

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
            queried = these[place]
            candidate = self.best[queried]
            edges = ask.sum(1).cumsum(0).tolist() if refused is not None or count > 1 else [len(which)]
            for query, patch, first, last in zip(block, patches, [0, *edges], edges, strict=False):
                candidate[first:last][query.window] = patch[place[first:last]]
            gap = margin(logits_of(model, candidate), self.y[queried])
            better = gap > self.gap[queried]
            success = torch.full_like(self.row, count).scatter_reduce(
                0, queried, torch.where(better, which, count), "amin"
            )
            if refused is not None:
                for k, query in enumerate(block):
                    part = slice(edges[k - 1] if k else 0, edges[k])
                    answered = k <= success[queried[part]]
                    refused.note(query.name, self.row[queried[part]][answered], better[part][answered])
            taken = better & (which == success[queried])
            self.best[queried[taken]], self.gap[queried[taken]] = candidate[taken], gap[taken]
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


TINY = 1e-12  # the constant that the authors add to denominators; part of the verdicts
WITHIN = 1 - 1e-6  # of the l1 ball is used; another of their constants


def search_moving(
    model: Model, x: Tensor, y: Tensor, budget: Budget, sides: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Under l2 and l1: the best point of each sample (B, C, H, W), and its margin as `ops.margin` has it (B,).

    A query takes random numbers for each sample that is left. As long as no sample falls, it is known how many, and the
    next queries can be drawn ahead and made in one batch, as if none were to succeed. When a sample falls, so is thrown
    away all that was drawn and made beyond that query.

    Who is left is looked up before each block of queries, and who succeeded after each round in it: numbers that an
    accelerator must be waited for.
    """
    n, c = x.shape[:2]
    result = _start(x, budget, generator)
    result_gap = margin(logits_of(model, result), y)
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
        pairs: its pyramids, lying or surviving (K, 1, side, side).
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
        both = torch.stack([pyramids(side, surviving, budget.norm, x.dtype) for surviving in (False, True)])
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
            queried = these[place]
            candidate = self._candidates(x[queried], best[queried], which, queried)
            new = margin(logits_of(model, candidate), y[queried])
            better = new > gap[queried]
            success = torch.full_like(nxt, count).scatter_reduce(0, queried, torch.where(better, which, count), "amin")
            taken = better & (which == success[queried])
            at = queried[taken]
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
def pyramids(side: int, surviving: bool, norm: str, dtype: torch.dtype) -> Tensor:
    """Two pyramids of opposite sign that fill a square, of length 1 in the norm; one above the other, or side by side.

    >>> pyramids(3, False, "l2", torch.float64).sign()
    tensor([[ 1.,  1.,  1.],
            [-1., -1., -1.],
            [-1., -1., -1.]], dtype=torch.float64)
    """
    upper = side // 2
    pattern = torch.cat((_pyramid(upper, side, norm, dtype), -_pyramid(side - upper, side, norm, dtype)))
    pattern = pattern / _plane_length(pattern, norm)
    return pattern.T if surviving else pattern


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

    spec = "square"
    title = "Square"
    needs_gradient = False
    stops_at_success = True

    @property
    def label(self) -> str:
        """With its settings."""
        return f"Square (margin, {self.queries:,} queries, random start, {plural(self.restarts, 'restart')})"

    def __call__(self, model: Model, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """As `Attack`, of images (B, C, H, W); the generator, on the CPU, draws the patches."""
        if x.ndim != 4:
            raise Refused("Square", expected="images (B, C, H, W)", got=str(tuple(x.shape)))
        x_adv = x.clone()
        surviving = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            for _ in range(self.restarts):
                if len(surviving) == 0:
                    break
                left, labels, sides = x[surviving], y[surviving], self.sides(x, budget)
                if budget.norm == "linf":
                    best, gap = search_linf(model, left, labels, budget.eps, sides, generator)
                else:
                    best, gap = search_moving(model, left, labels, budget, sides, generator)
                fooled = gap >= 0
                # A projected point may round to a hair beyond the box.
                x_adv[surviving[fooled]] = best[fooled].clamp(0, 1)
                surviving = surviving[~fooled]
        return x_adv


KINDS = {
    "square": AttackKind(
        lambda spec, budget, num_classes: Square(),
        {"square": "Square, 5,000 queries of the logits alone"},
        "Square",
        classes=2,
        backend=True,
    )
}
