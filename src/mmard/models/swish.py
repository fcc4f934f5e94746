"""WideResNet and PreActResNet-18 with SiLU: the networks of Gowal et al. and of most strong teachers after them.

Gowal, Qin, Uesato, Mann, Kohli. "Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial
Examples", arXiv:2010.03593; the PreActResNet is that of Rebuffi, Gowal, Calian, Stimberg, Wiles, Mann. "Fixing Data
Augmentation to Improve Adversarial Robustness", arXiv:2103.01946. Layouts of the weights: `init_conv,
layer.0.block.0.batchnorm_0, ..., layer.2.block.3.conv_1, batchnorm, logits` and `conv_2d, layer_0.0.batchnorm_0,
layer_0.0.conv_2d_1, ..., batchnorm, logits`.

Differences from the ReLU networks of the same names, beside activation and keys:
  1. a convolution of stride 2 pads its input below and to the right alone, by one, as "SAME" does for even sizes.
  2. the shortcut of the PreActResNet is a 3x3 convolution of the raw input; 12,548,426 parameters for ten classes.

Differences from the published code (deepmind-research, adversarial_robustness):
  1. mean and std are not buffers in here; `Normalised` has them around the network, as around any other.
  2. its padding of the image, 2 for MNIST and 0 for CIFAR, is left out.
  3. pooling is global for every image size, and weights are drawn as PyTorch draws them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mmard.models.wide_resnet import blocks_of


class SwishBlock(nn.Module):
    """F(x) + shortcut(x), BatchNorm and SiLU before each 3x3 convolution: (B, c_in, H, W) -> (B, c_out, ...).

    The shortcut projects the activated input, and only where the number of channels changes.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(c_in)
        self.conv_0 = nn.Conv2d(c_in, c_out, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(c_out)
        self.conv_1 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.silu(self.batchnorm_0(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        inner = self.conv_0(padded(activated, self.stride))
        return self.conv_1(F.silu(self.batchnorm_1(inner))) + shortcut


class SwishGroup(nn.Module):
    """`count` blocks in a row, under the key `block`."""

    def __init__(self, c_in: int, c_out: int, count: int, stride: int) -> None:
        super().__init__()
        first = SwishBlock(c_in, c_out, stride)
        self.block = nn.Sequential(first, *(SwishBlock(c_out, c_out, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class WideSwishNet(nn.Module):
    """Three groups of wide blocks: images (B, channels, H, W) -> logits (B, num_classes).

    Raises:
        Refused: if the depth is not 6n + 4 with n >= 1, or the width is not positive.
    """

    def __init__(self, depth: int, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        count = blocks_of(f"wide_resnet-{depth}-{width}-swish", depth, width)
        self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            SwishGroup(16, 16 * width, count, 1),
            SwishGroup(16 * width, 32 * width, count, 2),
            SwishGroup(32 * width, 64 * width, count, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.batchnorm(self.layer(self.init_conv(x))))
        return self.logits(F.adaptive_avg_pool2d(out, 1).flatten(1))


class PreActSwishBlock(nn.Module):
    """F(x) + shortcut(x); where the shape changes the shortcut is a 3x3 convolution of the raw input."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(c_in)
        self.conv_2d_1 = nn.Conv2d(c_in, c_out, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(c_out)
        self.conv_2d_2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Conv2d(c_in, c_out, 3, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(padded(x, self.stride))
        inner = self.conv_2d_1(padded(F.silu(self.batchnorm_0(x)), self.stride))
        return self.conv_2d_2(F.silu(self.batchnorm_1(inner))) + shortcut


class PreActSwishNet(nn.Module):
    """Four stages of two blocks, then BatchNorm: images (B, channels, H, W) -> logits (B, num_classes)."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv_2d = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer_0 = _stage(64, 64, 1)
        self.layer_1 = _stage(64, 128, 2)
        self.layer_2 = _stage(128, 256, 2)
        self.layer_3 = _stage(256, 512, 2)
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
        out = F.silu(self.batchnorm(out))
        return self.logits(F.adaptive_avg_pool2d(out, 1).flatten(1))


def padded(x: Tensor, stride: int) -> Tensor:
    """The input of a 3x3 convolution: one pixel on all sides, at stride 2 below and to the right alone."""
    return F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))


def _stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreActSwishBlock(c_in, c_out, stride), PreActSwishBlock(c_out, c_out, 1))


def wide_resnet_swish(depth: int, width: int, *, num_classes: int, channels: int) -> WideSwishNet:
    """WideResNet with SiLU; as many parameters as with ReLU."""
    return WideSwishNet(depth, width, num_classes, channels)


def preact_resnet18_swish(*, num_classes: int, channels: int) -> PreActSwishNet:
    """PreActResNet-18 with SiLU: 12,548,426 parameters for ten classes and three channels."""
    return PreActSwishNet(num_classes, channels)
