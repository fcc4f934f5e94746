"""What methods remember from step to step: modules of buffers, so that they ride in the checkpoint.

A memory changes inside an outer formula, which the trainer asks once a step, or at the end of an epoch, and nowhere
else. An outer formula sees the whole batch, so processes that share one remember the same.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from mmard.errors import Refused, require
from mmard.ops import entropy

SOFTEST = 10.0
"""Bound of the temperatures of `EntropyBalance`, from below 1."""


def shares_of_run(text: str, where: str) -> tuple[Fraction, ...]:
    """Shares of a run as text: "1/2,3/4", "215/300", or "" for none.

    >>> shares_of_run("1/2, 0.75", "mtard.cool_at")
    (Fraction(1, 2), Fraction(3, 4))

    Raises:
        Refused: for anything but numbers in (0, 1).
    """
    try:
        found = tuple(Fraction(part.strip()) for part in text.split(",") if part.strip())
    except (ValueError, ZeroDivisionError):
        raise Refused(where, expected="shares of the run such as 1/2,3/4", got=repr(text)) from None
    require(all(0 < share < 1 for share in found), where, expected="shares of the run in (0, 1)", got=repr(text))
    return found


def cooled(rate: float, progress: float, at: tuple[Fraction, ...]) -> float:
    """A controller's rate, a tenth of what it was after each of these shares of the run.

    >>> [cooled(1.0, epoch / 4, (Fraction(1, 2),)) for epoch in (1, 2, 3, 4)]
    [1.0, 1.0, 0.1, 0.1]
    """
    return rate * 0.1 ** sum(progress > float(share) + 1e-9 for share in at)


class LossBalance(nn.Module):
    """Two weights that follow how far two losses have come: the one that lags gains.

    With L0 the losses of the very first batch, r = (L / L0) / sum(L / L0) and w <- w + rate (r - w), before the losses
    of the same step are weighted (Zhao et al., ECCV 2022).

    Args:
        rate: share of the way to r that a step goes.
        cool_at: shares of the run after which the rate is a tenth of what it was.
    """

    w: Tensor
    first: Tensor
    met: Tensor

    def __init__(self, rate: float, cool_at: tuple[Fraction, ...] = ()) -> None:
        super().__init__()
        self.rate, self.cool_at = rate, cool_at
        # In double precision: a cooled rate is too small for what single precision has left.
        self.register_buffer("w", torch.tensor([0.5, 0.5], dtype=torch.float64))
        self.register_buffer("first", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("met", torch.tensor(0))

    def forward(self, one: Tensor, other: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The weights for two losses, given their means (constant scalars)."""
        # A loss of zero has a share too, and a first one of zero divides nothing.
        now = torch.stack([one, other]).to(self.w) + 1e-12
        self.first.copy_(torch.where(self.met > 0, self.first, now))
        self.met.fill_(1)
        ratio = now / self.first
        w = self.w + cooled(self.rate, progress, self.cool_at) * (ratio / ratio.sum() - self.w)
        w = w.clamp_min(0)
        self.w.copy_(w / w.sum())
        return self.w[0].clone(), self.w[1].clone()


class EntropyBalance(nn.Module):
    """Two temperatures of teachers that draw their mean entropies together (Zhao, Wang, Wei, TPAMI 2024).

    The teacher with more entropy is sharpened by `rate` a step, the other softened, each within [1, 10].

    Args:
        start: the two temperatures at the start.
        rate: length of a step.
        cool_at: shares of the run after which the rate is a tenth of what it was.
    """

    tau: Tensor

    def __init__(self, start: tuple[float, float], rate: float, cool_at: tuple[Fraction, ...] = ()) -> None:
        super().__init__()
        self.rate, self.cool_at = rate, cool_at
        self.register_buffer("tau", torch.tensor(start, dtype=torch.float64))

    def temperatures(self) -> tuple[Tensor, Tensor]:
        """The two temperatures as they are now, scalars."""
        return self.tau[0].clone(), self.tau[1].clone()

    def see(self, one: Tensor, other: Tensor, progress: float) -> None:
        """Move the temperatures after a step whose teachers said these logits (B, C)."""
        h = torch.stack([entropy(z.detach() / tau).mean() for z, tau in zip((one, other), self.tau, strict=True)])
        step = cooled(self.rate, progress, self.cool_at) * (h - h.flip(0)).sign()
        self.tau.copy_((self.tau - step.to(self.tau)).clamp(1.0, SOFTEST))


class ByClass(nn.Module):
    """Buffers with one number for each class, of a length that the first batch decides.

    Args:
        start: name of each buffer and the number it begins with.
    """

    def __init__(self, **start: float) -> None:
        super().__init__()
        self.start = start
        for name, value in start.items():
            self.register_buffer(name, torch.full((0,), value))

    def sized(self, logits: Tensor) -> None:
        """Make room for the classes of these logits (B, C), once."""
        for name, value in self.start.items():
            if self._buffers[name].shape != (logits.shape[1],):  # type: ignore[union-attr]
                kind = self._buffers[name].dtype  # type: ignore[union-attr]
                self._buffers[name] = torch.full((logits.shape[1],), value, device=logits.device, dtype=kind)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.start:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                self._buffers[name] = saved.new_zeros(saved.shape, device=self._buffers[name].device)  # type: ignore[union-attr]
        super()._load_from_state_dict(state_dict, prefix, *rest)
