"""The optimiser of a run: one SGD over all networks that it trains."""

from __future__ import annotations

from typing import Any

import torch

from mmard.training.recipe import Recipe
from mmard.training.step import Step


def optimizer_of(step: Step, recipe: Recipe) -> torch.optim.SGD:
    """One SGD with a group for each network: by the recipe, or by its tuning for one that has its own."""
    groups: list[dict[str, Any]] = []
    for letter, net in step.trained.items():
        tuning = step.method.tunes.get(letter)
        own = {} if tuning is None else {"momentum": tuning.momentum, "weight_decay": tuning.weight_decay}
        own |= {} if tuning is None else {"nesterov": False}
        groups.append({"letter": letter, "params": [p for p in net.parameters() if p.requires_grad], **own})
    # On a GPU in one kernel for all weights; elsewhere PyTorch chooses.
    fused = all(p.is_cuda for group in groups for p in group["params"]) or None
    return torch.optim.SGD(
        groups, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov, fused=fused
    )
