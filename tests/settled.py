"""Pictures for networks, and networks in which every layer shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def images(shape: tuple[int, int, int], count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def settle(net: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Give every BatchNorm statistics and a scale of its own, so that a layer left out or swapped would show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.75 + 0.5 * torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
        net(images(shape, count=8, seed=2))
    return net.eval()
