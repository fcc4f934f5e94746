"""What one step computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.batch import Batch, Terms


@dataclass(frozen=True)
class Outcome:
    """What a step computed.

    Attributes:
        loss: the sum of the means of the terms, with graph.
        terms: every term per sample (B,), with graph.
        batch: the batch as the outer formula saw it, with x_adv and all predictions.
        share: of the step's images that are in this batch; below 1 for a micro-batch.
    """

    loss: Tensor
    terms: Terms
    batch: Batch
    share: float = 1.0


def total(terms: Terms) -> Tensor:
    """The loss: the sum of the means of the terms, a scalar with graph."""
    return torch.stack([term.mean() for term in terms.values()]).sum()
