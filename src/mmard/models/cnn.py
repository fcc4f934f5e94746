"""A family of small convolutional networks, for digits and for experiments that must end in minutes.

Four 3x3 convolutions of `width`, 2, 4 and 4 times `width` channels, each with BatchNorm and ReLU; the second and the
third halve the image. Then the mean over the image, and a linear classifier. Weights are drawn as PyTorch draws them.

Parameters for ten classes:

    width                     4       8       16       32
    one channel           4,038  15,554   61,050  241,898
    three channels        4,110  15,698   61,338  242,474
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from mmard.errors import Refused


def cnn(width: int, *, num_classes: int, channels: int) -> nn.Sequential:
    """Images (B, channels, H, W) -> logits (B, num_classes); keys `conv1, bn1, ..., conv4, bn4, linear`.

    Raises:
        Refused: if the width is not positive.
    """
    if width < 1:
        raise Refused(f"cnn-{width}", expected="a width of 1 or more", got=str(width))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    c_in = channels
    for i, (times, stride) in enumerate(((1, 1), (2, 2), (4, 2), (4, 1)), start=1):
        layers[f"conv{i}"] = nn.Conv2d(c_in, times * width, 3, stride, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(times * width)
        layers[f"relu{i}"] = nn.ReLU()
        c_in = times * width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(c_in, num_classes)
    return nn.Sequential(layers)
