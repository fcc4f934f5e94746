"""PreActResNet-18 for small images.

He, Zhang, Ren, Sun. "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv:1603.05027, in the form that Rice,
Wong, Kolter ("Overfitting in adversarially robust deep learning", ICML 2020, arXiv:2002.11569) and AT-AWP train: with a
BatchNorm before the pooling. Layout of the weights: `conv1, layer1.0.bn1, layer1.0.conv1, ..., bn, linear`.

Two other forms are in use, 11,171,146 parameters without `bn` keys each:
  1. `preact_resnet18-nobn`, of kuangliu/pytorch-cifar: no BatchNorm and no ReLU before the pooling.
  2. `preact_resnet18-raw`, of Wong, Rice, Kolter ("Fast is better than free", ICLR 2020, arXiv:2001.03994): that, and
     a projecting shortcut reads the raw input, where the others feed it the activated one, as He et al. do. No key of
     a checkpoint tells it from the first.
The form with SiLU and another layout is in swish.py.

Differences from the paper:
  1. the stem is one 3x3 convolution of stride 1, without the 7x7 stride and without max pooling.
  2. weights are drawn as PyTorch draws them by default.

Difference from Rice et al.:
  1. pooling is global for every image size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """F(x) + shortcut(x), BatchNorm and ReLU before each of two convolutions: (B, c_in, H, W) -> (B, c_out, ...)."""

    def __init__(self, c_in: int, c_out: int, stride: int, raw: bool = False) -> None:
        super().__init__()
        self.raw = raw
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(x if self.raw else activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


def _stage(c_in: int, c_out: int, count: int, stride: int, raw: bool) -> nn.Sequential:
    first = PreActBlock(c_in, c_out, stride, raw)
    return nn.Sequential(first, *(PreActBlock(c_out, c_out, 1) for _ in range(count - 1)))


class PreActResNet(nn.Module):
    """Four stages of pre-activation blocks, then BatchNorm: images (B, channels, H, W) -> logits (B, num_classes).

    Args:
        raw: projecting shortcuts read the raw input.
        last_norm: whether there is the BatchNorm before the pooling.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        channels: int,
        *,
        raw: bool = False,
        last_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = _stage(64, 64, blocks[0], 1, raw)
        self.layer2 = _stage(64, 128, blocks[1], 2, raw)
        self.layer3 = _stage(128, 256, blocks[2], 2, raw)
        self.layer4 = _stage(256, 512, blocks[3], 2, raw)
        self.bn = nn.BatchNorm2d(512) if last_norm else None
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def preact_resnet18(*, num_classes: int, channels: int) -> PreActResNet:
    """PreActResNet-18 with a last BatchNorm: 11,172,170 parameters for ten classes and three channels."""
    return PreActResNet((2, 2, 2, 2), num_classes, channels)


def preact_resnet18_nobn(*, num_classes: int, channels: int) -> PreActResNet:
    """PreActResNet-18 without a last BatchNorm: 11,171,146 parameters for ten classes and three channels."""
    return PreActResNet((2, 2, 2, 2), num_classes, channels, last_norm=False)


def preact_resnet18_raw(*, num_classes: int, channels: int) -> PreActResNet:
    """That, with projecting shortcuts of the raw input."""
    return PreActResNet((2, 2, 2, 2), num_classes, channels, raw=True, last_norm=False)
