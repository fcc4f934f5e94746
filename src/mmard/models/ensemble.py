"""Several networks that answer as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mmard.errors import require, unknown

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
