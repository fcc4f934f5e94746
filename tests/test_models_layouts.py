"""Names and shapes of weights are those of the code that published them, and so is what the networks compute."""

from __future__ import annotations

import pytest
import torch
from settled import images, settle
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.models import build
from mmard.models.preact_resnet import PreActBlock
from mmard.models.wide_resnet import WideBlock


def keys(name: str) -> list[str]:
    with torch.device("meta"):
        return list(build(name, num_classes=10, image_shape=(3, 32, 32)).state_dict())


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def bn(prefix: str) -> list[str]:
    return [f"{prefix}.{part}" for part in BN]


@pytest.mark.parametrize(("name", "counts"), [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_resnet_has_the_kuangliu_layout(name: str, counts: tuple[int, ...]) -> None:
    expected = ["conv1.weight", *bn("bn1")]
    for stage, count in enumerate(counts, start=1):
        for block in range(count):
            at = f"layer{stage}.{block}"
            expected += [f"{at}.conv1.weight", *bn(f"{at}.bn1"), f"{at}.conv2.weight", *bn(f"{at}.bn2")]
            if stage > 1 and block == 0:
                expected += [f"{at}.shortcut.0.weight", *bn(f"{at}.shortcut.1")]
    assert keys(name) == [*expected, "linear.weight", "linear.bias"]


def test_preact_resnet_has_the_layout_of_rice_et_al() -> None:
    expected = ["conv1.weight"]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            expected += [*bn(f"{at}.bn1"), f"{at}.conv1.weight", *bn(f"{at}.bn2"), f"{at}.conv2.weight"]
            if stage > 1 and block == 0:
                expected += [f"{at}.shortcut.0.weight"]
    assert keys("preact_resnet18") == [*expected, *bn("bn"), "linear.weight", "linear.bias"]


@pytest.mark.parametrize(("name", "count"), [("wide_resnet-16-4", 2), ("wide_resnet-34-10", 5)])
def test_wide_resnet_has_the_trades_layout_without_its_dead_block(name: str, count: int) -> None:
    expected = ["conv1.weight"]
    for stage in (1, 2, 3):
        for block in range(count):
            at = f"block{stage}.layer.{block}"
            expected += [*bn(f"{at}.bn1"), f"{at}.conv1.weight", *bn(f"{at}.bn2"), f"{at}.conv2.weight"]
            if block == 0:
                expected += [f"{at}.convShortcut.weight"]
    assert keys(name) == [*expected, *bn("bn1"), "fc.weight", "fc.bias"]


def test_mobilenet_has_the_kuangliu_layout() -> None:
    met = keys("mobilenet_v2")
    assert met[:6] == ["conv1.weight", *bn("bn1")]
    assert met[-8:] == ["conv2.weight", *bn("bn2"), "linear.weight", "linear.bias"]
    # Seventeen blocks: of stride 1 with other channels they project, of stride 2 they have no shortcut.
    assert {int(key.split(".")[1]) for key in met if key.startswith("layers.")} == set(range(17))
    assert sorted({int(key.split(".")[1]) for key in met if ".shortcut." in key}) == [0, 1, 10, 16]
    with torch.device("meta"):
        net = build("mobilenet_v2", num_classes=10, image_shape=(3, 32, 32))
    assert [i for i, block in enumerate(net.layers) if block.shortcut is None] == [3, 6, 13]
    assert [i for i, block in enumerate(net.layers) if block.conv2.stride == (2, 2)] == [3, 6, 13]


@pytest.mark.parametrize("block", [PreActBlock(3, 5, 2), WideBlock(3, 5, 2)], ids=lambda b: type(b).__name__)
def test_a_projecting_shortcut_reads_the_activated_input(block: PreActBlock | WideBlock) -> None:
    nn.init.zeros_(block.conv2.weight)
    x = images((3, 8, 8)) - 0.5
    projection = block.shortcut if isinstance(block, PreActBlock) else block.convShortcut
    assert projection is not None
    torch.testing.assert_close(block.eval()(x), projection(F.relu(block.bn1(x))))


class Stored:
    """The functions of the papers' repositories, written on their state dicts alone."""

    def __init__(self, net: nn.Module) -> None:
        self.w = {key: value.double() for key, value in net.state_dict().items()}

    def conv(self, at: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.w[f"{at}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, None, stride, padding=weight.shape[-1] // 2, groups=groups)

    def norm(self, at: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (self.w[f"{at}.{k}"].view(-1, 1, 1) for k in BN[:4])
        return weight * (x - mean) / (var + 1e-5).sqrt() + bias

    def act(self, at: str, x: Tensor) -> Tensor:
        return self.norm(at, x).clamp_min(0)

    def head(self, at: str, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.w[f"{at}.weight"].T + self.w[f"{at}.bias"]

    def resnet18(self, x: Tensor) -> Tensor:
        x = self.act("bn1", self.conv("conv1", x))
        for stage, stride in enumerate((1, 2, 2, 2), start=1):
            for at, s in ((f"layer{stage}.0", stride), (f"layer{stage}.1", 1)):
                out = self.act(f"{at}.bn1", self.conv(f"{at}.conv1", x, s))
                out = self.norm(f"{at}.bn2", self.conv(f"{at}.conv2", out))
                x = x if s == 1 else self.norm(f"{at}.shortcut.1", self.conv(f"{at}.shortcut.0", x, s))
                x = (out + x).clamp_min(0)
        return self.head("linear", x)

    def preact(self, at: str, x: Tensor, stride: int, projection: str) -> Tensor:
        first = self.act(f"{at}.bn1", x)
        out = self.conv(f"{at}.conv2", self.act(f"{at}.bn2", self.conv(f"{at}.conv1", first, stride)))
        return out + (self.conv(f"{at}.{projection}", first, stride) if f"{at}.{projection}.weight" in self.w else x)

    def preact_resnet18(self, x: Tensor) -> Tensor:
        x = self.conv("conv1", x)
        for stage, stride in enumerate((1, 2, 2, 2), start=1):
            x = self.preact(f"layer{stage}.0", x, stride, "shortcut.0")
            x = self.preact(f"layer{stage}.1", x, 1, "shortcut.0")
        return self.head("linear", self.act("bn", x))

    def wide_resnet(self, x: Tensor, blocks: int) -> Tensor:
        x = self.conv("conv1", x)
        for stage, stride in enumerate((1, 2, 2), start=1):
            for block in range(blocks):
                x = self.preact(f"block{stage}.layer.{block}", x, 1 if block else stride, "convShortcut")
        return self.head("fc", self.act("bn1", x))

    def mobilenet_v2(self, x: Tensor) -> Tensor:
        x = self.act("bn1", self.conv("conv1", x))
        for block in range(17):
            at, stride = f"layers.{block}", 2 if block in (3, 6, 13) else 1
            out = self.act(f"{at}.bn1", self.conv(f"{at}.conv1", x))
            out = self.act(f"{at}.bn2", self.conv(f"{at}.conv2", out, stride))
            out = self.norm(f"{at}.bn3", self.conv(f"{at}.conv3", out))
            if f"{at}.shortcut.0.weight" in self.w:
                x = self.norm(f"{at}.shortcut.1", self.conv(f"{at}.shortcut.0", x))
            x = out + x if stride == 1 else out
        return self.head("linear", self.act("bn2", self.conv("conv2", x)))


@pytest.mark.parametrize(
    "name", ["resnet18", "preact_resnet18", "mobilenet_v2", "wide_resnet-10-2", "wide_resnet-16-1"]
)
def test_a_network_is_the_function_that_its_layout_stands_for(name: str) -> None:
    net = settle(build(name, num_classes=10, image_shape=(3, 32, 32), seed=0), (3, 32, 32)).double()
    x = images((3, 32, 32), count=2).double()
    stored = Stored(net)
    family, *numbers = name.split("-")
    expected = stored.wide_resnet(x, (int(numbers[0]) - 4) // 6) if numbers else getattr(stored, family)(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


def test_wide_resnet_weights_are_drawn_as_in_trades() -> None:
    net = build("wide_resnet-16-4", num_classes=10, image_shape=(3, 32, 32), seed=0)
    weight = net.block3.layer[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-3
    assert net.fc.bias.count_nonzero() == 0
