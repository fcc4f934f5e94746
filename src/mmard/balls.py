"""What the adversary may do: a norm, a radius, and inputs in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmard.errors import Refused, unknown
from mmard.words import as_fraction, radius

NORMS = ("linf", "l2", "l1")
SPARSITY = 0.01
"""Share of the coordinates that one step of steepest ascent under l1 moves."""


def _length(v: Tensor) -> Tensor:
    """L2 length per sample, (B, ...) -> (B, 1, ...)."""
    return v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))


@dataclass(frozen=True)
class Budget:
    """The ball around a clean input that an attack must stay in, cut with the box [0, 1].

    Args:
        eps: radius, in input units. Inputs live in [0, 1], so a radius of 8 grey levels is 8/255.
        norm: "linf", "l2" or "l1".

    Raises:
        Refused: for eps outside (0, 1] under linf (did you mean 8/255?), eps <= 0, or an unknown norm.
    """

    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.norm == "linf" and not 0 < self.eps <= 1:
            mend = f"inputs live in [0, 1]; did you mean {self.eps:g}/255?" if self.eps > 1 else ""
            raise Refused(f"Budget(eps={self.eps:g})", expected="eps in (0, 1]", got=f"{self.eps:g}", mend=mend)
        if not 0 < self.eps < float("inf"):
            raise Refused(f"Budget(eps={self.eps:g})", expected="a positive radius", got=f"{self.eps:g}")

    @classmethod
    def of(cls, budget: Budget | str | float) -> Budget:
        """A budget as it is, or a radius of linf as a number or a fraction.

        >>> Budget.of("8/255") == Budget(8 / 255)
        True
        """
        return budget if isinstance(budget, Budget) else cls(radius(budget))

    def __str__(self) -> str:
        return f"{self.norm} {as_fraction(self.eps)}"

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the ball around x, then of the box [0, 1]; both (B, ...).

        Clamping to the box moves every coordinate toward x, so the result is in the ball as well. Under linf and l1 it
        is the nearest point that is in both; under l2 it need not be.
        """
        delta = x_adv - x
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "l2":
            delta = delta * (self.eps / _length(delta).clamp_min(self.eps))
        else:
            delta = delta - l1_surplus(delta, x, self.eps)
        return (x + delta).clamp(0, 1)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A point of the ball around x drawn uniformly, (B, ...) -> (B, ...), before the box is applied."""
        if self.norm == "linf":
            return x + self.eps * (2 * _rand(x, generator) - 1)
        if self.norm == "l1":
            # The shares of D + 1 exponential waiting times in their sum are uniform on a simplex.
            waits = _exponential(x.shape[0], x[0].numel() + 1, x, generator)
            shares = (waits[:, :-1] / waits.sum(1, keepdim=True)).view(x.shape).to(x.dtype)
            return x + self.eps * shares * (2 * _rand(x, generator) - 1).sign()
        direction = _randn(x, generator)
        share = torch.rand(x.shape[0], generator=generator, device=x.device, dtype=x.dtype)
        share = share.pow(1 / x[0].numel()).view(-1, *[1] * (x.ndim - 1))
        return x + self.eps * share * direction / _length(direction)

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The unit step along which a linear function of this gradient rises most, (B, ...) -> (B, ...).

        Under l1 that step would move the single coordinate of the largest slope. As Tramer and Boneh ("Adversarial
        training and robustness for multiple perturbations", NeurIPS 2019) do, it is spread over the `SPARSITY` of the
        coordinates with the largest slopes, alike on each; those that cannot move further from `at` because they stand
        at the edge of the box are not counted among them, but are pushed as well, so that a projection which takes from
        all alike leaves them where they are.

        Zero where the gradient is zero, never NaN.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l1":
            return _sparse(gradient, at)
        # Divide by the largest entry first: the squares of a float32 gradient of 1e-25 underflow to a zero length.
        tiny = torch.finfo(gradient.dtype).tiny
        largest = gradient.flatten(1).abs().amax(1).view(-1, *[1] * (gradient.ndim - 1))
        scaled = gradient / largest.clamp_min(tiny)
        return scaled / _length(scaled).clamp_min(tiny)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distance of x_adv from x in this norm, (B, ...) and (B, ...) -> (B,)."""
        delta = (x_adv - x).flatten(1)
        if self.norm == "linf":
            return delta.abs().amax(1)
        return delta.norm(dim=1) if self.norm == "l2" else delta.abs().sum(1)


def l1_surplus(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """What x + delta has too much for the l1 ball of radius eps around x and for the box, all (B, ...) -> (B, ...).

    x + (delta - surplus) is the nearest point that is in both (Croce and Hein, "Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers", ICML 2021, arXiv:2103.01208, proposition 1). With `over` the part of a
    coordinate's move that leads out of the box, the surplus is

        sign(delta) clamp(t, over, |delta|)        for the smallest t >= 0 with sum(|delta| - surplus) <= eps

    The sum falls with t, linearly between the 2 D places where a coordinate begins to shrink or has vanished. Sorting
    these gives the sum at each, and t in the piece where it passes eps.
    """
    kind = torch.promote_types(delta.dtype, torch.float32)
    move, centre = delta.flatten(1).to(kind), x.flatten(1).to(kind)
    length = move.abs()
    over = torch.minimum(1 - centre - move, centre + move).neg().clamp_min(0)
    places, order = ranked(torch.cat((over, length), 1))
    shrinking = (2 * (order < over.shape[1]).to(kind) - 1).cumsum(1)[:, :-1]
    removed = over.sum(1, keepdim=True)
    removed = torch.cat((removed, removed + ((places[:, 1:] - places[:, :-1]) * shrinking).cumsum(1)), 1)
    spare = eps - length.sum(1, keepdim=True)  # negative where something must go
    piece = ((removed + spare < 0).sum(1, keepdim=True) - 1).clamp(0, shrinking.shape[1] - 1)
    left = -removed.gather(1, piece) - spare
    t = left / shrinking.gather(1, piece).clamp_min(1) + places.gather(1, piece)
    t = torch.where(left > 0, t, 0)
    return (move.sign() * torch.minimum(torch.maximum(over, t), length)).to(delta.dtype).view(delta.shape)


def ranked(v: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers that are not negative, rising in each row, and where they stood; (B, D) -> (B, D) and (B, D).

    As `Tensor.sort` but for the order of equal numbers. On a CPU that one costs more than the network of a small image;
    NumPy sorts integers many times faster, and floats of one sign are in the order of their bits.
    """
    if v.device.type != "cpu" or v.dtype != torch.float32 or torch.compiler.is_compiling():
        return v.sort(dim=1)
    bits = (v.detach() + 0.0).numpy().view(np.uint32)  # adding 0 makes -0 a 0
    keys = (bits.astype(np.uint64) << np.uint64(32)) | np.arange(v.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    values, order = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32), keys & np.uint64(2**32 - 1)
    return torch.from_numpy(values), torch.from_numpy(order.astype(np.int64))


def _sparse(gradient: Tensor, at: Tensor | None) -> Tensor:
    """The step of `Budget.steepest` under l1."""
    slope = gradient.flatten(1)
    size = slope.abs()
    moving = max(math.ceil(SPARSITY * size.shape[1]), 1)
    rising, order = ranked(size)
    largest, order = rising.flip(1), order.flip(1)
    free = largest > 0
    if at is not None:
        place = at.flatten(1).gather(1, order)
        edge = 4 * torch.finfo(at.dtype).eps  # a projection may end a hair inside
        free &= torch.where(slope.gather(1, order) > 0, place < 1 - edge, place > edge)
    # As far down the ranking as it takes to meet so many that can move, or to its end.
    chosen = (free.cumsum(1) - free.to(torch.int64) < moving) & (largest > 0)
    count = (free & chosen).sum(1, keepdim=True).clamp_min(1)
    step = torch.zeros_like(slope).scatter(1, order, chosen.to(slope.dtype) / count)
    return (step * slope.sign()).view(gradient.shape)


def _rand(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _exponential(n: int, d: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Waiting times (n, d), in float32 at least: their sum over an image would overflow the half types."""
    return torch.empty(n, d, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)).exponential_(
        generator=generator
    )


def _randn(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def gaussian(x: Tensor, sd: float, generator: torch.Generator | None = None) -> Tensor:
    """x plus normal noise of standard deviation `sd` per coordinate, (B, ...) -> (B, ...)."""
    return x + sd * _randn(x, generator)
