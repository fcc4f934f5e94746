"""Gradient accumulation: the gradient of a batch from micro-batches that fit into memory one by one.

The attacks of all micro-batches are made first, on the network as it is before the update, from one random start drawn
for the batch. Losses are weighted by images, so for a network whose prediction of an image depends on that image alone
the gradient is the batch's. BatchNorm in train mode normalises each micro-batch by its own statistics, and terms that
couple samples couple those of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.batch import Batch, Point
from mmard.training.outcome import Outcome
from mmard.training.step import Step


@dataclass(frozen=True)
class _Part:
    """What is kept of a micro-batch when its graph is gone."""

    share: float
    loss: Tensor
    terms: dict[str, Tensor]
    y: Tensor
    x_adv: Tensor | None


def descend(
    step: Step,
    x: Tensor,
    y: Tensor,
    progress: float,
    known: Mapping[str, Tensor],
    parts: int = 1,
    look: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Add the gradient of a batch's loss to the weights' `.grad`, and say what was computed.

    Args:
        step: whose loss it is.
        x, y, progress, known: as in `Step.run`.
        parts: micro-batches, each of two images at least; one is the batch itself.
        look: shown each outcome before its backward.

    Returns:
        The step's outcome. With several micro-batches it is put together from theirs, without graph, and its batch has
        images and labels alone.
    """
    seen: list[_Part] = []
    outcome = None
    for outcome in step.in_parts(x, y, progress, known, parts):
        if look is not None:
            look(outcome)
        share = outcome.share
        (outcome.loss if share == 1 else outcome.loss * share).backward()
        if share < 1:
            terms = {name: term.detach() for name, term in outcome.terms.items()}
            x_adv = None if outcome.batch.x_adv is None else outcome.batch.x_adv.value
            seen.append(_Part(share, outcome.loss.detach(), terms, outcome.batch.y, x_adv))
            outcome = None  # or the next micro-batch would have to fit beside this one
    if outcome is not None:
        return outcome
    loss = torch.stack([part.loss * part.share for part in seen]).sum()
    terms = {name: torch.cat([part.terms[name] for part in seen]) for name in seen[0].terms}
    attacked = [part.x_adv for part in seen if part.x_adv is not None]
    point = Point("x_adv", torch.cat(attacked)) if attacked else None
    return Outcome(loss, terms, Batch(Point("x", x), point, torch.cat([part.y for part in seen]), {}, progress))
