"""Folded networks answer the same, or are not folded."""

from __future__ import annotations

import pytest
import torch
from nets import generator, images
from torch import Tensor, nn

from mmard.engine.folding import folded
from mmard.models import build


def lively(model: nn.Module) -> nn.Module:
    """In eval mode and in double, with a BatchNorm that does something."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor, low, high in (
                *((m.running_mean, -0.3, 0.3), (m.running_var, 0.5, 2.0)),
                *((m.weight.data, 0.5, 1.5), (m.bias.data, -0.2, 0.2)),
            ):
                tensor.uniform_(low, high, generator=generator(0))
    return model.double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", ["cnn-4", "resnet18", "mobilenet_v2", "wide_resnet-16-4"])
def test_the_same_answers_and_gradients(name: str) -> None:
    model = lively(build(name, num_classes=4, image_shape=(3, 16, 16), seed=0))
    x = images(3, shape=(3, 16, 16))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = folded(model, x[:2])
    assert small is not model
    assert norms(small) < norms(model)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
    slopes = []
    for net in (model, small):
        at = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(net(at).square().sum(), at)[0])
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


class Shared(nn.Module):
    """What the convolution returns is used twice: merging would change the second use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return (self.bn(out) + out).mean((2, 3))


class Peeking(Shared):
    """Reads its BatchNorm otherwise than by calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).mean((2, 3)) * self.bn.weight


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("kind", [Shared, Peeking, Plain])
def test_what_cannot_be_merged_is_left_alone(kind: type[nn.Module]) -> None:
    model = lively(kind())
    assert folded(model, images(2)) is model
