"""Networks around networks: one that standardises its own input, and several that answer as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mmard.errors import Refused, require, unknown


class Normalised(nn.Module):
    """A network that standardises its own input: net((x - mean) / std), images (B, C, H, W) in [0, 1] -> logits.

    `mean` and `std` are buffers (C, 1, 1), saved with the weights: a checkpoint cannot be read with another set's
    numbers. The network itself is `net`, and its keys in the state dict begin so. Both numbers are in input units.

    Raises:
        Refused: for lists of different length, a mean outside [0, 1] or a std outside (0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise Refused("Normalised", expected="one mean and one std per channel", got=f"{len(mean)} and {len(std)}")
        _in_input_units("mean", mean, all(0 <= m <= 1 for m in mean), "in [0, 1]")
        _in_input_units("std", std, all(0 < s <= 1 for s in std), "in (0, 1]")
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def _in_input_units(what: str, values: Sequence[float], holds: bool, where: str) -> None:
    if not holds:
        grey = all(math.isfinite(v) for v in values) and max(values) > 1
        raise Refused(
            f"Normalised({what}={tuple(values)})",
            expected=f"every {what} {where}",
            got=str(tuple(values)),
            mend="inputs live in [0, 1]; divide grey levels by 255" if grey else "",
        )


MIXES = ("probs", "logits")


class Ensemble(nn.Module):
    """The average of several networks' answers, as logits.

    Args:
        members: networks from images (B, C, H, W) to logits (B, classes).
        mix: "probs" returns the logarithm of the mean probabilities; "logits" the mean of the centred logits, which is
            the geometric mean of the probabilities.

    Raises:
        Refused: for no members, or an unknown mix.
    """

    def __init__(self, members: Sequence[nn.Module], mix: str = "probs") -> None:
        super().__init__()
        require(len(members) > 0, "ensemble", expected="at least one network", got="none")
        if mix not in MIXES:
            raise unknown("mix", mix, MIXES)
        self.members, self.mix = nn.ModuleList(members), mix

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        log_probs = torch.stack([cast(Tensor, member(x)).log_softmax(1) for member in self.members])
        if self.mix == "logits":
            return log_probs.mean(0)
        return log_probs.logsumexp(0) - math.log(len(self.members))
