"""MobileNetV2 for small images.

Sandler, Howard, Zhu, Zhmoginov, Chen. "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv:1801.04381, in the form for 32x32 images of the repository kuangliu/pytorch-cifar: the second student of ARD,
RSLAD and MTARD. Layout of the weights: `conv1, bn1, layers.0.conv1, ..., conv2, bn2, linear`.

Differences from the paper:
  1. the stem and the second stage have stride 1, so that a 32x32 image is 4x4 at the end.
  2. ReLU instead of ReLU6.
  3. a block of stride 1 that changes the number of channels has a projecting shortcut with BatchNorm, where the paper
     has none. Blocks of stride 2 have no shortcut, as in the paper.
  4. the block of expansion 1 has a 1x1 convolution before its filter, which the authors' code leaves out.

Difference from that repository:
  1. pooling is global for every image size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# Expansion, channels, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1: (B, c_in, H, W) -> (B, c_out, ...)."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * c_in
        self.conv1 = nn.Conv2d(c_in, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Sequential | None = None
        if stride == 1:
            projection = (nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)) if c_in != c_out else ()
            self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals: images (B, channels, H, W) -> logits (B, num_classes)."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        layers, c_in = [], 32
        for expansion, c_out, count, stride in STAGES:
            for block in range(count):
                layers.append(InvertedResidual(c_in, c_out, expansion, stride if block == 0 else 1))
                c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.conv2 = nn.Conv2d(c_in, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(self.layers(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def mobilenet_v2(*, num_classes: int, channels: int) -> MobileNetV2:
    """MobileNetV2 for small images: 2,296,922 parameters for ten classes and three channels."""
    return MobileNetV2(num_classes, channels)
