"""Averages of weights over training: exponential per step, or equal over epoch ends.

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson. "Averaging Weights Leads to Wider Optima and Better Generalization",
UAI 2018 (SWA); Gowal, Qin, Uesato, Mann, Kohli. "Uncovering the Limits of Adversarial Training against Norm-Bounded
Adversarial Examples", 2020, arXiv:2010.03593 (EMA in adversarial training).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mmard.training.recipe import Recipe


class Average:
    """A second copy of a network that holds the average of the first, in eval mode.

    Under "ema" BatchNorm's statistics are averaged with the weights. Under "swa" they belong to no average and are
    estimated anew from training images whenever the average is about to be used.

    Attributes:
        module: the averaged copy. Before anything was averaged it equals the network.
        count: epoch ends averaged so far ("swa"), or steps ("ema").
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.count = 0

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the weights of this step into an exponential average."""
        if self.recipe.average == "ema":
            # A young average leans on the present: the decay grows to its value over the first steps.
            self.count += 1
            self._blend(1 - min(self.recipe.ema_decay, self.count / (self.count + 10)))

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        """Let the weights of this epoch's end (0-based) into an equal average."""
        if self.recipe.average == "swa" and epoch >= self.recipe.swa_epoch():
            self.count += 1
            self._blend(1 / self.count)

    def ready(self, images: Iterable[Tensor]) -> nn.Module:
        """The network to evaluate: the average, once there is one.

        Args:
            images: training batches (B, C, H, W), from which an equal average takes its BatchNorm statistics.
        """
        if self.count == 0:
            return self.network
        if self.recipe.average == "swa":
            update_bn(images, self.module)
            self.module.eval()
        return self.module

    def _blend(self, share: float) -> None:
        # Not by the state dict, which names a shared weight as often as it is used.
        for mine, theirs in zip(_tensors(self.module), _tensors(self.network), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, share)
            else:
                mine.copy_(theirs)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
