"""MobileNetV3-Small and -Large for small images.

Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le, Adam. "Searching for MobileNetV3", ICCV 2019,
arXiv:1905.02244, tables 1 and 2.

Layout of the weights: `conv1, bn1, layers.0.conv1, ..., conv2, bn2, hidden, linear`.

Differences from the paper:
  1. the stem and the first stage that halves have stride 1, so that a 32x32 image is 4x4 at the end.
  2. no dropout before the last layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Rows = tuple[tuple[int, int, int, bool, bool, int], ...]
# Filter, hidden channels, channels, squeeze and excite, hard swish (or ReLU), stride.
SMALL: Rows = (
    (3, 16, 16, True, False, 1),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
LARGE: Rows = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 1),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


class SqueezeExcite(nn.Module):
    """Each channel times a factor in [0, 1] that the means of all channels decide: (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)  # a quarter in whole eights, and hardly less
        squeezed += 8 if squeezed < 0.9 * channels / 4 else 0
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.up(F.relu(self.down(means))))


class Bneck(nn.Module):
    """Expand by 1x1, filter each channel, squeeze and excite, project by 1x1: (B, c_in, H, W) -> (B, c_out, ...)."""

    def __init__(self, c_in: int, size: int, hidden: int, c_out: int, se: bool, hard_swish: bool, stride: int) -> None:
        super().__init__()
        self.act = nn.Hardswish() if hard_swish else nn.ReLU()
        expand = hidden != c_in
        self.conv1 = nn.Conv2d(c_in, hidden, 1, bias=False) if expand else nn.Identity()
        self.bn1 = nn.BatchNorm2d(hidden) if expand else nn.Identity()
        self.conv2 = nn.Conv2d(hidden, hidden, size, stride, size // 2, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.se = SqueezeExcite(hidden) if se else nn.Identity()
        self.conv3 = nn.Conv2d(hidden, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.expand, self.added = expand, stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x))) if self.expand else x
        out = self.bn3(self.conv3(self.se(self.act(self.bn2(self.conv2(out))))))
        return out + x if self.added else out


class MobileNetV3(nn.Module):
    """Images (B, channels, H, W) -> logits (B, num_classes)."""

    def __init__(self, rows: Rows, hidden: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        layers, c_in = [], 16
        for size, wide, c_out, se, hard_swish, stride in rows:
            layers.append(Bneck(c_in, size, wide, c_out, se, hard_swish, stride))
            c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.conv2 = nn.Conv2d(c_in, 6 * c_in, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(6 * c_in)
        self.hidden, self.linear = nn.Linear(6 * c_in, hidden), nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.hardswish(self.bn1(self.conv1(x)))
        out = F.hardswish(self.bn2(self.conv2(self.layers(out))))
        return self.linear(F.hardswish(self.hidden(F.adaptive_avg_pool2d(out, 1).flatten(1))))


def mobilenet_v3_small(*, num_classes: int, channels: int) -> MobileNetV3:
    """MobileNetV3-Small for small images: 1,528,106 parameters for ten classes and three channels."""
    return MobileNetV3(SMALL, 1024, num_classes, channels)


def mobilenet_v3_large(*, num_classes: int, channels: int) -> MobileNetV3:
    """MobileNetV3-Large for small images: 4,214,842 parameters for ten classes and three channels."""
    return MobileNetV3(LARGE, 1280, num_classes, channels)
