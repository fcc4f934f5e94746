"""WideResNet for small images: depth 6n + 4, width a multiple of 16 channels.

Zagoruyko, Komodakis. "Wide Residual Networks", BMVC 2016, arXiv:1605.07146, in the form of TRADES (Zhang et al., ICML
2019, arXiv:1901.08573), whose WRN-34-10 is the teacher of ARD, RSLAD and many papers after them. Layout of the weights:
`conv1, block1.layer.0.bn1, ..., block3.layer.4.conv2, bn1, fc`.

Differences from the paper:
  1. no dropout between the convolutions, which the paper leaves open.
  2. the weights of the classifier are drawn as PyTorch draws them by default; its bias starts at zero.

Differences from the TRADES code (yaodongyu/TRADES, 9ee26f4):
  1. its constructor also makes a `sub_block1` that no forward reads (2.1 million weights at width 10, 48.3 million in
     all); it is left out here, and its keys are to be dropped when such a checkpoint is loaded.
  2. pooling is global for every image size. A fixed 8x8 window there turns one 64x64 image into four rows of logits.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from mmard.errors import Refused


class WideBlock(nn.Module):
    """F(x) + shortcut(x), BatchNorm and ReLU before each of two 3x3 convolutions: (B, c_in, H, W) -> (B, c_out, ...).

    The shortcut projects the activated input, and only where the number of channels changes.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.convShortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class WideStage(nn.Module):
    """`count` blocks in a row, under the key `layer` that TRADES gave them."""

    def __init__(self, c_in: int, c_out: int, count: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(c_in, c_out, stride)
        self.layer = nn.Sequential(first, *(WideBlock(c_out, c_out, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Three stages of wide blocks: images (B, channels, H, W) -> logits (B, num_classes).

    Raises:
        Refused: if the depth is not 6n + 4 with n >= 1, or the width is not positive.
    """

    def __init__(self, depth: int, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        blocks = blocks_of(f"wide_resnet-{depth}-{width}", depth, width)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(16, 16 * width, blocks, 1)
        self.block2 = WideStage(16 * width, 32 * width, blocks, 2)
        self.block3 = WideStage(32 * width, 64 * width, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def blocks_of(name: str, depth: int, width: int) -> int:
    """Blocks in each of the three stages.

    Raises:
        Refused: if the depth is not 6n + 4 with n >= 1, or the width is not positive.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        mend = f"the nearest are {6 * blocks + 4} and {6 * blocks + 10}" if blocks >= 1 else "the least is 10"
        raise Refused(name, expected="a depth of 6n + 4", got=str(depth), mend=mend)
    if width < 1:
        raise Refused(name, expected="a width of 1 or more", got=str(width))
    return blocks


def wide_resnet(depth: int, width: int, *, num_classes: int, channels: int) -> WideResNet:
    """WideResNet. Parameters for ten classes, three channels: 16-4 2,748,890; 28-10 36,479,194; 34-10 46,160,474."""
    return WideResNet(depth, width, num_classes, channels)
