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


def check_loss(outcome: Outcome, where: str, saved: bool) -> None:
    """Look at a step's loss, for which a GPU has to be waited for.

    Args:
        where: run, epoch and step, for the message.
        saved: whether there is a save to go back to.

    Raises:
        Diverged: if it is not finite, with the terms that are to blame.
    """
    if math.isfinite(outcome.loss.item()):
        return
    terms = [name for name, term in outcome.terms.items() if not torch.isfinite(term).all()]
    raise _diverged("the term " + ", ".join(terms) if terms else "the sum of finite terms", where, saved)


def check_weights(nets: Iterable[nn.Module], where: str, saved: bool) -> None:
    """Look at all weights and statistics of networks; arguments and error as in `check_loss`."""
    for net in nets:
        for name, tensor in net.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise _diverged(f"{name} of the network", where, saved)


def _diverged(culprit: str, where: str, saved: bool) -> Diverged:
    kept = "the last save is untouched" if saved else "nothing was saved yet"
    return Diverged(
        where,
        expected="finite losses and weights",
        got=f"{culprit} not finite",
        mend=f"{kept}; try a smaller --lr or --grad-clip 1",
    )
