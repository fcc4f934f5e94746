"""A loss or a weight that has ceased to be a number ends the training, before it is written over what was good."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from mmard.errors import Refused
from mmard.training.outcome import Outcome


class Diverged(Refused):
    """The loss or a weight is no longer a number."""


def lost_in(outcome: Outcome) -> str:
    """What in a step's loss is not finite, in words; empty where all is. A GPU has to be waited for."""
    if math.isfinite(outcome.loss.item()):
        return ""
    terms = [name for name, term in outcome.terms.items() if not torch.isfinite(term).all()]
    return "the term " + ", ".join(terms) if terms else "the sum of finite terms"


def lost_weight(nets: Iterable[nn.Module]) -> str:
    """The first weight or statistic of networks that is not finite, in words; empty where all are."""
    named = (each for net in nets for each in net.state_dict().items())
    return next((f"{name} of the network" for name, tensor in named if not torch.isfinite(tensor).all()), "")


def diverged(culprit: str, where: str, saved: bool) -> Diverged:
    """The error for what is not finite, at a step of a run that has been saved or not."""
    kept = "the last save is untouched" if saved else "nothing was saved yet"
    return Diverged(
        where,
        expected="finite losses and weights",
        got=f"{culprit} not finite",
        mend=f"{kept}; try a smaller --lr or --grad-clip 1",
    )
