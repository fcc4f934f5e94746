"""ConvNeXt for small images: large filters for each channel, LayerNorm and GELU in place of BatchNorm and ReLU.

Liu, Mao, Wu, Feichtenhofer, Darrell, Xie. "A ConvNet for the 2020s", CVPR 2022, arXiv:2201.03545.

Layout of the weights: `stem, stages.0.0.filter, stages.0.0.norm, ..., norm, linear`.

Differences from the paper:
  1. the stem takes patches of 2 pixels instead of 4, so that a 32x32 image is 2x2 at the end.
  2. 2, 2, 6 and 2 blocks, the form with few weights that timm calls "atto" at width 40.
  3. no stochastic depth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (2, 2, 6, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place: (B, C, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Halved(nn.Conv2d):
    """A convolution of 2x2 pixels at a time, behind a zero at the right and below where a side is odd."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class ConvNeXtBlock(nn.Module):
    """Filter each channel by 7x7, then a perceptron at each place, scaled and added: (B, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = ChannelNorm(width, eps=1e-6)
        self.up = nn.Conv2d(width, 4 * width, 1)
        self.down = nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(self.filter(x)))))


class ConvNeXt(nn.Module):
    """Four stages, each twice as wide and half as large as the one before: images (B, channels, H, W) -> logits."""

    def __init__(self, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(Halved(channels, width), ChannelNorm(width, eps=1e-6))
        stages: list[nn.Module] = []
        for number, blocks in enumerate(BLOCKS):
            own = width * 2**number
            smaller = (ChannelNorm(own // 2, eps=1e-6), Halved(own // 2, own)) if number else ()
            stages.append(nn.Sequential(*smaller, *(ConvNeXtBlock(own) for _ in range(blocks))))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width * 2 ** (len(BLOCKS) - 1), eps=1e-6)
        self.linear = nn.Linear(self.norm.normalized_shape[0], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out = self.stages(self.stem(x))
        return self.linear(self.norm(out.mean((2, 3))))


def convnext(width: int, *, num_classes: int, channels: int) -> ConvNeXt:
    """ConvNeXt with so many channels in its first stage: 3,376,290 parameters with 40."""
    return ConvNeXt(width, num_classes, channels)
