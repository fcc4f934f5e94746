"""ResNet-18, ResNet-34 and ResNet-50 for small images.

He, Zhang, Ren, Sun. "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, in the form for 32x32
images that the repository kuangliu/pytorch-cifar made common. It is the student of ARD, RSLAD, AdaAD, SAAD and most
papers beside them, and the layout of its weights, `conv1, bn1, layer1.0.conv1, ..., linear`, is that of their
checkpoints.

Differences from the paper:
  1. the stem is one 3x3 convolution of stride 1, without the 7x7 stride and without max pooling.
  2. a shortcut that changes shape is a 1x1 convolution with BatchNorm (the paper's option B).
  3. weights are drawn as PyTorch draws them by default, as in that repository.

Difference from that repository:
  1. pooling is global for every image size; its fixed 4x4 window fails on any other than 32x32.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """relu(F(x) + shortcut(x)), F being two 3x3 convolutions with BatchNorm: (B, c_in, H, W) -> (B, c_out, ...)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """relu(F(x) + shortcut(x)), F being convolutions of 1x1, 3x3 and 1x1: (B, c_in, H, W) -> (B, c_out, ...)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        inner = c_out // 4
        self.conv1 = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


Block = type[BasicBlock] | type[Bottleneck]


def _stage(block: Block, c_in: int, c_out: int, count: int, stride: int) -> nn.Sequential:
    return nn.Sequential(block(c_in, c_out, stride), *(block(c_out, c_out, 1) for _ in range(count - 1)))


class ResNet(nn.Module):
    """Four stages of blocks: images (B, channels, H, W) -> logits (B, num_classes).

    Args:
        wide: channels of a stage's output for each of 64, 128, 256 and 512.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        channels: int,
        block: Block = BasicBlock,
        wide: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64 * wide, blocks[0], 1)
        self.layer2 = _stage(block, 64 * wide, 128 * wide, blocks[1], 2)
        self.layer3 = _stage(block, 128 * wide, 256 * wide, blocks[2], 2)
        self.layer4 = _stage(block, 256 * wide, 512 * wide, blocks[3], 2)
        self.linear = nn.Linear(512 * wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def resnet18(*, num_classes: int, channels: int) -> ResNet:
    """ResNet-18 for small images: 11,173,962 parameters for ten classes and three channels."""
    return ResNet((2, 2, 2, 2), num_classes, channels)


def resnet34(*, num_classes: int, channels: int) -> ResNet:
    """ResNet-34 for small images: 21,282,122 parameters for ten classes and three channels."""
    return ResNet((3, 4, 6, 3), num_classes, channels)


def resnet50(*, num_classes: int, channels: int) -> ResNet:
    """ResNet-50 for small images: 23,520,842 parameters for ten classes and three channels."""
    return ResNet((3, 4, 6, 3), num_classes, channels, Bottleneck, 4)
