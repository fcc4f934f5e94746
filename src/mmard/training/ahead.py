"""Weights that stand elsewhere while a loss is descended: what `Method.around` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from mmard.modes import kept_random_state, kept_state, quiet_statistics


class Moved:
    """Weights that something was added to, and where they were."""

    def __init__(self) -> None:
        self._moved: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, weights: Mapping[str, Tensor], steps: Mapping[str, Tensor]) -> None:
        """Add each step to the weight of its name."""
        with torch.no_grad():
            for name, step in steps.items():
                before = weights[name].clone()
                weights[name].add_(step)
                self._moved.append((weights[name], before, weights[name].clone()))

    def take_back(self) -> None:
        """Take back what was added; what an optimiser did in between stays."""
        with torch.no_grad():
            for weight, before, moved in self._moved:
                # Where nothing was added, no rounding either.
                weight.copy_(torch.where(moved == before, weight, before + (weight - moved)))
        self._moved = []


def looked_ahead(
    loss: Callable[[], Tensor], weights: Mapping[str, Tensor], trained: Iterable[nn.Module], memory: nn.Module | None
) -> dict[str, Tensor]:
    """Gradients of a loss by weights, under their names, zero where it does not depend on them.

    It leaves no trace: the running statistics of the trained networks, the memory and random states are as they were.
    """
    with kept_state(memory), kept_random_state(weights.values()), ExitStack() as quiet:
        for net in trained:
            quiet.enter_context(quiet_statistics(net))
        found = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    pairs = zip(weights.items(), found, strict=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in pairs}
