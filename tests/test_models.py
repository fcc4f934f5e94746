"""Every registered network by one battery, its golden numbers, and what is refused with which words."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mmard.errors import Refused
from mmard.models import MODELS, Normalised, build, check_logits, names, parameter_count
from mmard.models.preact_resnet import PreActBlock
from mmard.models.wide_resnet import WideBlock

CIFAR, DIGITS, TINY = ((3, 32, 32), 10), ((1, 8, 8), 10), ((3, 64, 64), 200)

# Parameters at 3x32x32 and ten classes. All but the cnn's are published: kuangliu/pytorch-cifar, TRADES and RobustBench
# print or imply them; the cnn's are 9 (3w + 2ww + 8ww + 16ww) + 22w + 40w + 10 by hand. A 3x3 shortcut in place of 1x1
# adds 8 (64 * 128 + 128 * 256 + 256 * 512) to the PreActResNet with SiLU.
GOLDEN = {
    "cnn-4": 4_110,
    "cnn-8": 15_698,
    "cnn-16": 61_338,
    "cnn-32": 242_474,
    "mobilenet_v2": 2_296_922,
    "preact_resnet18": 11_172_170,
    "preact_resnet18-nobn": 11_171_146,
    "preact_resnet18-raw": 11_171_146,
    "preact_resnet18-swish": 11_172_170 + 8 * (64 * 128 + 128 * 256 + 256 * 512),
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "wide_resnet-16-4": 2_748_890,
    "wide_resnet-28-10": 36_479_194,
    "wide_resnet-34-10": 46_160_474,
    "wide_resnet-34-20": 184_531_674,
    "wide_resnet-70-16": 266_796_506,
    "wide_resnet-28-10-swish": 36_479_194,
    "wide_resnet-34-10-swish": 46_160_474,
    "wide_resnet-34-20-swish": 184_531_674,
    "wide_resnet-70-16-swish": 266_796_506,
}

# One network of every row of the table, the smallest of each family: forward code is shared within a family.
ROWS = [
    "cnn-4", "mobilenet_v2", "preact_resnet18", "preact_resnet18-nobn", "preact_resnet18-raw", "preact_resnet18-swish",
    "resnet18", "resnet34", "resnet50", "wide_resnet-10-1", "wide_resnet-10-1-swish",
]  # fmt: skip
BATTERY = [
    *((name, *CIFAR) for name in ROWS),
    *((name, *DIGITS) for name in ROWS if name not in ("resnet34", "resnet50")),
    *((name, *TINY) for name in ("cnn-4", "mobilenet_v2", "wide_resnet-10-1")),
    ("wide_resnet-16-4", *DIGITS),
    ("cnn-32", *DIGITS),
    ("cnn-4", (2, 9, 13), 3),
]


def images(shape: tuple[int, int, int], count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def settle(net: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Give every BatchNorm statistics and a scale of its own, so that a layer left out or swapped would show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.75 + 0.5 * torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
        net(images(shape, count=8, seed=2))
    return net.eval()


def test_the_battery_covers_every_row_of_the_table() -> None:
    assert {re.sub(r"(-\d+)+(?=-|$)", "", name) for name in ROWS} == set(MODELS)


@pytest.mark.parametrize(("name", "shape", "num_classes"), BATTERY, ids=lambda v: str(v).replace(" ", ""))
def test_battery(name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    net = settle(build(name, num_classes=num_classes, image_shape=shape, seed=3), shape)
    check_logits(net, shape, num_classes, name)
    x = images(shape)

    x.requires_grad_()
    logits = net(x)
    assert logits.shape == (3, num_classes)
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    # No pixel is left unread, not even at the border of a strided convolution.
    assert (gradient != 0).any(0).all()

    x = x.detach()
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        # Batch kernels sum in another order, which the depth of the network amplifies.
        tolerance = {"rtol": 1e-3, "atol": 1e-3 * float(logits.detach().abs().max())}
        torch.testing.assert_close(net(x[1:2])[0], logits[1].detach(), **tolerance)
        torch.testing.assert_close(net(x.flip(0)), logits.detach().flip(0), **tolerance)

        torch.testing.assert_close(fx.symbolic_trace(net)(x), logits.detach(), **tolerance)

        other = build(name, num_classes=num_classes, image_shape=shape, seed=4).eval()
        assert not torch.allclose(other(x), logits)
        other.load_state_dict(load(save(net.state_dict())), strict=True)
        assert torch.equal(other(x), net(x))

    F.cross_entropy(net.train()(x), torch.arange(3)).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        assert parameter_count(build(name, num_classes=10, image_shape=(3, 32, 32))) == GOLDEN[name]


def test_golden_counts_cover_every_name() -> None:
    assert set(names()) == set(GOLDEN)


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(3, 3, bias=False)
    assert parameter_count(nn.Sequential(layer, layer, nn.BatchNorm1d(3))) == 9 + 6


@pytest.mark.parametrize("name", ROWS)
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(name, num_classes=10, image_shape=(3, 32, 32), seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = build(name, num_classes=10, image_shape=(3, 32, 32), seed=0).state_dict()
    other = build(name, num_classes=10, image_shape=(3, 32, 32), seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    stem = next(iter(first))
    assert not torch.equal(first[stem], other[stem])


def test_without_a_seed_the_global_generator_decides() -> None:
    torch.manual_seed(5)
    first = build("cnn-4", num_classes=10, image_shape=(1, 8, 8)).state_dict()
    second = build("cnn-4", num_classes=10, image_shape=(1, 8, 8)).state_dict()
    torch.manual_seed(5)
    again = build("cnn-4", num_classes=10, image_shape=(1, 8, 8)).state_dict()
    assert torch.equal(first["conv1.weight"], again["conv1.weight"])
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


def test_a_seed_wins_over_a_default_device() -> None:
    with torch.device("meta"):
        net = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0)
    assert {p.device.type for p in net.parameters()} == {"cpu"}


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


@pytest.mark.parametrize("name", ROWS)
def test_the_last_feature_map_is_pooled_over_its_whole_area(name: str) -> None:
    """At four times the area the network still gives one row per image: the head sees a mean, not a window."""
    net = build(name, num_classes=10, image_shape=(1, 16, 16), seed=0).eval()
    with torch.no_grad():
        assert net(images((1, 16, 16))).shape == net(images((1, 40, 24))).shape == (3, 10)


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@pytest.mark.parametrize("name", ["cnn-4", "wide_resnet-10-1"])
def test_normalised_network_is_the_plain_one_on_standardised_input(name: str) -> None:
    plain = build(name, num_classes=10, image_shape=(3, 32, 32), seed=0).eval()
    net = build(name, num_classes=10, image_shape=(3, 32, 32), seed=0, mean=MEAN, std=STD).eval()
    x = images((3, 32, 32))
    by_hand = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(by_hand), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fx.symbolic_trace(net)(x), net(x))
        assert not torch.allclose(net(x), plain(x))


def test_mean_and_std_travel_with_the_weights() -> None:
    net = build("cnn-4", num_classes=10, image_shape=(3, 32, 32), seed=0, mean=MEAN, std=STD)
    plain = build("cnn-4", num_classes=10, image_shape=(3, 32, 32), seed=0)
    assert list(net.state_dict()) == ["mean", "std", *(f"net.{key}" for key in plain.state_dict())]
    assert parameter_count(net) == parameter_count(plain)
    other = build("cnn-4", num_classes=10, image_shape=(3, 32, 32), seed=1, mean=(0.5,) * 3)
    assert isinstance(other, Normalised)
    assert other.std.flatten().tolist() == [1.0] * 3
    other.load_state_dict(load(save(net.state_dict())))
    assert other.mean.flatten().tolist() == pytest.approx(MEAN)
    assert other.std.flatten().tolist() == pytest.approx(STD)


def test_without_mean_and_std_there_is_no_wrapper() -> None:
    assert not isinstance(build("cnn-4", num_classes=10, image_shape=(3, 32, 32)), Normalised)


@pytest.mark.parametrize("spelling", ["wide_resnet-16-4", "Wide-ResNet-16-4", " WIDE_RESNET_16_4 "])
def test_case_and_hyphens_do_not_matter(spelling: str) -> None:
    with torch.device("meta"):
        assert parameter_count(build(spelling, num_classes=10, image_shape=(3, 32, 32))) == 2_748_890


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(0, 200), width=st.integers(0, 12))
def test_wide_resnet_takes_exactly_the_depths_6n_plus_4(depth: int, width: int) -> None:
    valid = depth >= 10 and depth % 6 == 4
    name = f"wide_resnet-{depth}-{width}"
    if valid and width:
        with torch.device("meta"):
            net = build(name, num_classes=2, image_shape=(1, 8, 8))
        # A stem and 3n blocks of two convolutions; the paper counts the classifier and two projections as well.
        assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules()) == depth - 3
        return
    with pytest.raises(Refused) as refusal:
        build(name, num_classes=2, image_shape=(1, 8, 8))
    for near in map(int, re.findall(r"(?:nearest are|and|least is) (\d+)", refusal.value.mend)):
        assert near % 6 == 4
        assert near >= 10
        assert abs(near - depth) < 6 or near == 10


REFUSED = {
    "wrn-34-10": "did you mean 'wide_resnet-34-10'?",
    "WRN-40-2": "did you mean 'wide_resnet-40-2'?",
    "resnet-18": "did you mean 'resnet18'?",
    "preactresnet18": "did you mean 'preact_resnet18'?",
    "mobilenetv2": "did you mean 'mobilenet_v2'?",
    "cnn": "network 'cnn': expected cnn-<width>, got 'cnn'; for example cnn-4",
    "wide_resnet-16": "expected wide_resnet-<depth>-<width>, got 'wide_resnet-16'; for example wide_resnet-16-4",
    "resnet18-2": "network 'resnet18-2': expected resnet18, got 'resnet18-2'",
    "cnn-0": "cnn-0: expected a width of 1 or more, got 0",
    "wide_resnet-32-10": "wide_resnet-32-10: expected a depth of 6n + 4, got 32; the nearest are 28 and 34",
    "wide_resnet-4-1": "wide_resnet-4-1: expected a depth of 6n + 4, got 4; the least is 10",
    "wide_resnet-16-0": "wide_resnet-16-0: expected a width of 1 or more, got 0",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_name_is_refused_with_the_right_one(name: str) -> None:
    with pytest.raises(Refused, match=re.escape(REFUSED[name])):
        build(name, num_classes=10, image_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"image_shape": (32, 32, 3)}, "got (32, 32, 3); channels come first: did you mean (3, 32, 32)?"),
        ({"image_shape": (8, 8)}, "expected an image shape (C, H, W), got (8, 8)"),
        ({"image_shape": (3, 0, 32)}, "expected an image shape (C, H, W), got (3, 0, 32)"),
        ({"num_classes": 1}, "network 'cnn-4': expected at least 2 classes, got 1"),
        ({"mean": (0.5,)}, "expected 3 numbers as mean, got 1"),
        ({"std": (0.5, 0.5)}, "expected 3 numbers as std, got 2"),
        ({"mean": (125.3, 123.0, 113.9)}, "inputs live in [0, 1]; divide grey levels by 255"),
        ({"std": (0.2, 0.0, 0.2)}, "expected every std in (0, 1], got (0.2, 0.0, 0.2)"),
        ({"std": (0.2, float("nan"), 0.2)}, "expected every std in (0, 1], got (0.2, nan, 0.2)"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(given_: dict[str, object], words: str) -> None:
    arguments = {"num_classes": 10, "image_shape": (3, 32, 32)} | given_
    with pytest.raises(Refused, match=re.escape(words)):
        build("cnn-4", **arguments)


def test_normalised_refuses_lists_of_different_length() -> None:
    with pytest.raises(Refused, match="expected one mean and one std per channel, got 2 and 1"):
        Normalised(nn.Identity(), (0.5, 0.5), (0.5,))


# check_logits


class Answers(nn.Module):
    """Returns what it was told to, whatever it is shown."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.randn(2, 100), "Net T: expected logits (B, 10), got (2, 100); is this network for CIFAR-100?"),
        (torch.randn(2, 7), "Net T: expected logits (B, 10), got (2, 7)"),
        (torch.randn(8, 10), "got (8, 10); each image must give one row"),
        (torch.randn(2, 10, 1, 1), "got (2, 10, 1, 1); flatten it to one row per image"),
        ((torch.randn(2, 10), torch.randn(2, 64)), "logits, a tensor (B, 10), got a tuple; return the logits alone"),
        (torch.full((2, 10), torch.nan), "Net T: expected finite logits, got NaN or infinity"),
        (torch.randn(2, 10).softmax(1), "got softmax outputs"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_outputs_are_refused(answer: object, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        check_logits(Answers(answer), (3, 32, 32), 10, "Net T")


def test_log_probabilities_and_zeros_are_logits() -> None:
    check_logits(Answers(torch.randn(2, 10).log_softmax(1)), (3, 32, 32), 10, "Net T")
    check_logits(Answers(torch.zeros(2, 10)), (3, 32, 32), 10, "Net T")


def test_a_network_that_fails_is_refused_with_its_cause() -> None:
    net = build("cnn-4", num_classes=10, image_shape=(1, 8, 8))
    words = r"Net S: expected a network for images \(3, 8, 8\), got RuntimeError: .*3 channels"
    with pytest.raises(Refused, match=words):
        check_logits(net, (3, 8, 8), 10, "Net S")
    with pytest.raises(Refused, match=r"images are float32; call \.float\(\) on the network"):
        check_logits(net.double(), (1, 8, 8), 10, "Net S")


class Restless(nn.Module):
    """Counts its calls in a buffer, draws from the global generator, and fails on demand."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        assert not self.fails
        assert not self.training
        return self.norm(x).flatten(1) + torch.randn(2, 64)


@pytest.mark.parametrize("fails", [False, True])
def test_the_probe_leaves_no_trace(fails: bool) -> None:
    net = Restless(fails)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state, modes = torch.get_rng_state(), [m.training for m in net.modules()]
    if fails:
        with pytest.raises(Refused, match="got AssertionError"):
            check_logits(net, (1, 8, 8), 64, "Net S")
    else:
        check_logits(net, (1, 8, 8), 64, "Net S")
    assert [m.training for m in net.modules()] == modes == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


# Networks from other people's code

STRANGERS = """
import torch
from torch import nn

def both(num_classes, image_shape):
    c, h, w = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, num_classes))

def anything(**settings):
    return both(**settings)

def classes(num_classes):
    return nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))

def alone():
    return both(10, (1, 8, 8))

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

def softmax():
    return nn.Sequential(alone(), nn.Softmax(1))

def hundred():
    return both(100, (1, 8, 8))

def demanding(depth):
    return alone()

def broken():
    raise KeyError("weights.pt")

def nothing():
    pass

ready = alone()
number = 3
"""


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "strangers.py").write_text(STRANGERS)
    (tmp_path / "needy.py").write_text("import a_package_that_nobody_has")
    (tmp_path / "faulty.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for module in ("strangers", "needy", "faulty"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("function", ["both", "anything", "alone", "Net"])
def test_a_function_of_somebody_elses_code_makes_a_network(strangers: None, function: str) -> None:
    name = f"strangers:{function}"
    net = build(name, num_classes=10, image_shape=(1, 8, 8), seed=0, mean=(0.5,), std=(0.5,)).eval()
    assert isinstance(net, Normalised)
    assert net(images((1, 8, 8))).shape == (3, 10)
    again = build(name, num_classes=10, image_shape=(1, 8, 8), seed=0)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_package.part:f", "got No module named 'no_such_package'; is its folder on PYTHONPATH?"),
        ("needy:f", "got No module named 'a_package_that_nobody_has'; needy itself needs it: install it"),
        ("faulty:f", "expected a module 'faulty' that can be imported, got ZeroDivisionError: division by zero"),
        ("strangers:bothh", "expected a function 'bothh' in strangers, got no such name there; did you mean"),
        ("strangers:number", "expected a function or class that makes a network, got an object of type int"),
        ("strangers:ready", "got an object of type Sequential; wrap it in a function that returns a new network"),
        ("strangers:demanding", "got missing a required argument: 'depth'; wrap it in a function"),
        ("strangers:broken", "expected a call that returns a network, got KeyError: 'weights.pt'"),
        ("strangers:nothing", "expected an nn.Module from the call, got a NoneType"),
        ("strangers:softmax", "got softmax outputs"),
        ("strangers:hundred", "network 'strangers:hundred': expected logits (B, 10), got (2, 100)"),
        (":f", "expected package.module:function, got ':f'"),
        ("strangers:", "expected package.module:function, got 'strangers:'"),
    ],
)
def test_a_wrong_stranger_is_refused_with_its_cause(strangers: None, name: str, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        build(name, num_classes=10, image_shape=(1, 8, 8))


def test_a_lazy_network_is_made_whole_by_the_probe(strangers: None) -> None:
    net = build("strangers:classes", num_classes=10, image_shape=(1, 8, 8), seed=0)
    assert parameter_count(net) == 2 + 65 * 10
    again = build("strangers:classes", num_classes=10, image_shape=(1, 8, 8), seed=0)
    assert torch.equal(net[2].weight, again[2].weight)
