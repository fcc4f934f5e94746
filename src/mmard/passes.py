"""Passes through each network in one step of a method, counted in the code that trains.

One step runs on toy networks whose forwards and backwards are tapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.method import Method
from mmard.training.step import Step

TOY_CLASSES, TOY_SHAPE, TOY_BATCH = 3, (1, 2, 2), 4


@dataclass
class Passes:
    """Passes of one batch through one network, in one step.

    Attributes:
        forwards: all of them, those in train mode included.
        train_forwards: in train mode.
        input_backwards: gradients taken with respect to the input.
        weight_backwards: gradients taken with respect to the weights.
    """

    forwards: int = 0
    train_forwards: int = 0
    input_backwards: int = 0
    weight_backwards: int = 0

    def __sub__(self, other: Passes | None) -> Passes:
        """What this step has more than another; than none, itself."""
        return Passes(**{key: n - getattr(other or Passes(), key) for key, n in vars(self).items()})


class _Tap(torch.autograd.Function):
    """The identity, which tells when a gradient comes back through it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: Callable[[], None]) -> Tensor:
        ctx.count = count
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.count()
        return gradients[0], None


_tap: Callable[[Tensor, Callable[[], None]], Tensor] = _Tap.apply


class _Tapped(nn.Module):
    """A linear network that counts what passes through it."""

    def __init__(self) -> None:
        super().__init__()
        inputs = torch.Size(TOY_SHAPE).numel()
        self.weight = nn.Parameter(torch.linspace(-1, 1, TOY_CLASSES * inputs).view(TOY_CLASSES, inputs))
        self.passes = Passes()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.forwards += 1
        self.passes.train_forwards += self.training
        x = _tap(x, lambda: self._add("input_backwards"))
        return x.flatten(1) @ _tap(self.weight, lambda: self._add("weight_backwards")).T

    def _add(self, what: str) -> None:
        setattr(self.passes, what, getattr(self.passes, what) + 1)


def count_passes(method: Method, steps: int = 10) -> dict[str, Passes]:
    """Passes in one step of a method whose attack takes `steps` steps, by letter of the network.

    The step is of the last epoch, when every term has set in.

    >>> from mmard.methods import build
    >>> count_passes(build("pgd_at"), steps=10)["S"]
    Passes(forwards=11, train_forwards=1, input_backwards=10, weight_backwards=1)
    """
    nets = {letter: _Tapped() for letter in method.nets}
    for letter in method.forwards:
        nets[letter].train()
    x = torch.linspace(0.1, 0.9, TOY_BATCH * torch.Size(TOY_SHAPE).numel()).view(TOY_BATCH, *TOY_SHAPE)
    y = torch.arange(TOY_BATCH) % TOY_CLASSES
    budget = Budget(0.1)
    loss, _ = Step(method, nets, method.attack(budget, steps, None, method.start), budget)(x, y)
    loss.backward()
    return {letter: net.passes for letter, net in nets.items()}
