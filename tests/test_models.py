"""Every registered network by one battery, its golden numbers, and what is refused with which words."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import over
from safetensors.torch import load, save
from settled import images, settle
from torch import fx, nn
from torch.nn import functional as F

from mmard.errors import Refused
from mmard.models import MODELS, Normalised, build, check_logits, names, parameter_count

CIFAR, DIGITS, TINY = ((3, 32, 32), 10), ((1, 8, 8), 10), ((3, 64, 64), 200)


# Parameters at 3x32x32 and ten classes. Those of the papers' students and teachers are published: kuangliu's
# pytorch-cifar, TRADES and RobustBench print or imply them; MobileNetV3's are torchvision's less 990 classes; the
# cnn's are 9 (3w + 2ww + 8ww + 16ww) + 22w + 40w + 10 by hand, as are those of ConvNeXt and ViT. A 3x3 shortcut in
# place of 1x1 adds 8 (64 * 128 + 128 * 256 + 256 * 512) to the PreActResNet with SiLU.


def convnext(w: int) -> int:
    """Stem, halvings, blocks and head, with norms and biases."""
    found = 12 * w + 3 * w + 2 * 8 * w + 10 * 8 * w + 10
    for stage, blocks in enumerate((2, 2, 6, 2)):
        own = w * 2**stage
        found += blocks * (8 * own**2 + 58 * own) + (2 * own**2 + 2 * own if stage else 0)
    return found


GOLDEN = {
    "cnn-4": 4_110,
    "cnn-8": 15_698,
    "cnn-16": 61_338,
    "cnn-32": 242_474,
    "convnext-40": convnext(40),
    "convnext-64": convnext(64),
    "convnext-96": convnext(96),
    "mobilenet_v2": 2_296_922,
    "mobilenet_v3_large": 5_483_032 - 990 * 1281,
    "mobilenet_v3_small": 2_542_856 - 990 * 1025,
    "preact_resnet18": 11_172_170,
    "preact_resnet18-nobn": 11_171_146,
    "preact_resnet18-raw": 11_171_146,
    "preact_resnet18-swish": 11_172_170 + 8 * (64 * 128 + 128 * 256 + 256 * 512),
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "vit_small-4": 12 * (12 * 384**2 + 13 * 384) + 49 * 384 + 2 * 384 + 385 * 10,
    "vit_small-8": 12 * (12 * 384**2 + 13 * 384) + 193 * 384 + 2 * 384 + 385 * 10,
    "vit_tiny-4": 12 * (12 * 192**2 + 13 * 192) + 49 * 192 + 2 * 192 + 193 * 10,
    "vit_tiny-8": 12 * (12 * 192**2 + 13 * 192) + 193 * 192 + 2 * 192 + 193 * 10,
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
    "cnn-4", "convnext-8", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "vit_small-8", "vit_tiny-4",
    "preact_resnet18", "preact_resnet18-nobn", "preact_resnet18-raw", "preact_resnet18-swish",
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


def test_the_battery_covers_every_row_of_the_table() -> None:
    assert {re.sub(r"(-\d+)+(?=-|$)", "", name) for name in ROWS} == set(MODELS)


@over(("name", "shape", "num_classes"), BATTERY, ids=lambda v: str(v).replace(" ", ""))
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


@over("name", sorted(GOLDEN))
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
