"""What the adversary may do: a norm, a radius, and inputs in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.errors import Refused, unknown

NORMS = ("linf", "l2")


def radius(text: str | float) -> float:
    """Read a radius or a step size: a number, or a fraction such as "8/255".

    >>> radius("8/255") == 8 / 255
    True

    Raises:
        Refused: if the text is neither a number nor a fraction of two.
    """
    if isinstance(text, (int, float)):
        return float(text)
    try:
        above, slash, below = text.partition("/")
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise Refused(f"radius {text!r}", expected="a number or a fraction such as 8/255", got=repr(text)) from None


def as_fraction(value: float) -> str:
    """Write a radius as the field does: a short decimal as it is, otherwise in 255ths where that is exact to 1e-9.

    >>> as_fraction(8 / 255), as_fraction(0.15), as_fraction(0.5 / 255)
    ('8/255', '0.15', '0.5/255')
    """
    n = value * 255
    if float(f"{value:.3g}") != value and abs(n - round(n, 1)) < 1e-9:
        return f"{round(n, 1):g}/255"
    return f"{value:.10g}"


def _length(v: Tensor) -> Tensor:
    """L2 length per sample, (B, ...) -> (B, 1, ...)."""
    return v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))


@dataclass(frozen=True)
class Budget:
    """The ball around a clean input that an attack must stay in, cut with the box [0, 1].

    Args:
        eps: radius, in input units. Inputs live in [0, 1], so a radius of 8 grey levels is 8/255.
        norm: "linf" or "l2".

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

    def __str__(self) -> str:
        return f"{self.norm} {as_fraction(self.eps)}"

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the ball around x, then of the box [0, 1]; both (B, ...).

        Clamping to the box moves every coordinate toward x, so the result is in the ball as well.
        """
        delta = x_adv - x
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / _length(delta).clamp_min(self.eps))
        return (x + delta).clamp(0, 1)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A point of the ball around x drawn uniformly, (B, ...) -> (B, ...), before the box is applied."""
        if self.norm == "linf":
            return x + self.eps * (2 * _rand(x, generator) - 1)
        direction = _randn(x, generator)
        share = torch.rand(x.shape[0], generator=generator, device=x.device, dtype=x.dtype)
        share = share.pow(1 / x[0].numel()).view(-1, *[1] * (x.ndim - 1))
        return x + self.eps * share * direction / _length(direction)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The unit step along which a linear function of this gradient rises most, (B, ...) -> (B, ...).

        Zero where the gradient is zero, never NaN.
        """
        if self.norm == "linf":
            return gradient.sign()
        # Divide by the largest entry first: the squares of a float32 gradient of 1e-25 underflow to a zero length.
        tiny = torch.finfo(gradient.dtype).tiny
        largest = gradient.flatten(1).abs().amax(1).view(-1, *[1] * (gradient.ndim - 1))
        scaled = gradient / largest.clamp_min(tiny)
        return scaled / _length(scaled).clamp_min(tiny)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distance of x_adv from x in this norm, (B, ...) and (B, ...) -> (B,)."""
        delta = (x_adv - x).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)


def _rand(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _randn(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def gaussian(x: Tensor, sd: float, generator: torch.Generator | None = None) -> Tensor:
    """x plus normal noise of standard deviation `sd` per coordinate, (B, ...) -> (B, ...)."""
    return x + sd * _randn(x, generator)
