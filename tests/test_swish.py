"""The networks of RobustBench's checkpoints: layouts as published, and forwards beside the formulas written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.errors import Refused
from mmard.models import build
from mmard.models.preact_resnet import PreActBlock
from mmard.models.resnet import Bottleneck
from mmard.models.swish import PreActSwishBlock, SwishBlock, padded

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def bn(prefix: str) -> list[str]:
    return [f"{prefix}.{part}" for part in BN]


def keys(name: str) -> list[str]:
    with torch.device("meta"):
        return list(build(name, num_classes=10, image_shape=(3, 32, 32)).state_dict())


@pytest.mark.parametrize(("name", "count"), [("wide_resnet-28-10-swish", 4), ("wide_resnet-70-16-swish", 11)])
def test_wide_resnet_has_the_deepmind_layout(name: str, count: int) -> None:
    expected = ["init_conv.weight"]
    for group in (0, 1, 2):
        for block in range(count):
            at = f"layer.{group}.block.{block}"
            expected += [*bn(f"{at}.batchnorm_0"), f"{at}.conv_0.weight", *bn(f"{at}.batchnorm_1")]
            expected += [f"{at}.conv_1.weight"] + [f"{at}.shortcut.weight"] * (block == 0)
    assert keys(name) == [*expected, *bn("batchnorm"), "logits.weight", "logits.bias"]


def test_preact_resnet_has_the_deepmind_layout() -> None:
    expected = ["conv_2d.weight"]
    for stage in (0, 1, 2, 3):
        for block in (0, 1):
            at = f"layer_{stage}.{block}"
            expected += [*bn(f"{at}.batchnorm_0"), f"{at}.conv_2d_1.weight", *bn(f"{at}.batchnorm_1")]
            expected += [f"{at}.conv_2d_2.weight"] + [f"{at}.shortcut.weight"] * (stage > 0 and block == 0)
    assert keys("preact_resnet18-swish") == [*expected, *bn("batchnorm"), "logits.weight", "logits.bias"]


@pytest.mark.parametrize("name", ["preact_resnet18-nobn", "preact_resnet18-raw"])
def test_forms_without_a_last_batchnorm_lack_its_keys_alone(name: str) -> None:
    assert keys(name) == [key for key in keys("preact_resnet18") if not key.startswith("bn.")]


def test_a_bottleneck_has_the_kuangliu_layout() -> None:
    found = [key for key in keys("resnet50") if key.startswith("layer1.0.")]
    parts = [part for i in (1, 2, 3) for part in (f"conv{i}.weight", *bn(f"bn{i}"))]
    assert found == [f"layer1.0.{part}" for part in (*parts, "shortcut.0.weight", *bn("shortcut.1"))]


def settled(block: nn.Module, channels: int) -> nn.Module:
    """With statistics of its own in every BatchNorm."""
    block.train()(torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(1)))
    return block.eval()


def image(channels: int) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [8, 16, 32])
def test_same_padding_at_stride_two_is_that_of_the_definition(n: int) -> None:
    """SAME: output ceil(n / 2), all padding needed for it, the odd pixel of it at the end."""
    x = torch.arange(float(n * n)).view(1, 1, n, n)
    needed = (-(-n // 2) - 1) * 2 + 3 - n
    before, after = needed // 2, needed - needed // 2
    assert torch.equal(padded(x, 2), F.pad(x, (before, after, before, after)))
    assert torch.equal(padded(x, 1), F.pad(x, (1, 1, 1, 1)))


def test_the_padding_matters() -> None:
    """A symmetric one, which loads the same keys, gives other numbers."""
    torch.manual_seed(0)
    block = settled(SwishBlock(4, 8, 2), 4)
    x = image(4)
    with torch.no_grad():
        inner = F.conv2d(F.silu(block.batchnorm_0(x)), block.conv_0.weight, None, 2, 1)
        other = block.conv_1(F.silu(block.batchnorm_1(inner))) + block.shortcut(F.silu(block.batchnorm_0(x)))
        assert other.shape == block(x).shape
        assert not torch.allclose(other, block(x), atol=1e-2)


@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (8, 1), (8, 2)])
def test_a_wide_block_is_its_formula(c_out: int, stride: int) -> None:
    torch.manual_seed(0)
    block = settled(SwishBlock(4, c_out, stride), 4)
    x, p = image(4), dict(block.named_parameters())
    with torch.no_grad():
        a = x.sub(block.batchnorm_0.running_mean.view(-1, 1, 1))
        a = a / (block.batchnorm_0.running_var.view(-1, 1, 1) + 1e-5).sqrt()
        a = a * a.sigmoid()
        h = F.conv2d(F.pad(a, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)), p["conv_0.weight"], stride=stride)
        h = block.batchnorm_1(h)
        h = F.conv2d(h * h.sigmoid(), p["conv_1.weight"], padding=1)
        shortcut = x if c_out == 4 else F.conv2d(a, p["shortcut.weight"], stride=stride)
        torch.testing.assert_close(block(x), h + shortcut)


@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (8, 2)])
def test_a_preact_swish_block_is_its_formula(c_out: int, stride: int) -> None:
    torch.manual_seed(0)
    block = settled(PreActSwishBlock(4, c_out, stride), 4)
    x, p = image(4), dict(block.named_parameters())
    around = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
    with torch.no_grad():
        h = F.conv2d(F.pad(F.silu(block.batchnorm_0(x)), around), p["conv_2d_1.weight"], stride=stride)
        h = F.conv2d(F.silu(block.batchnorm_1(h)), p["conv_2d_2.weight"], padding=1)
        shortcut = x if stride == 1 else F.conv2d(F.pad(x, around), p["shortcut.weight"], stride=stride)
        torch.testing.assert_close(block(x), h + shortcut)


@pytest.mark.parametrize("raw", [False, True])
def test_the_shortcut_of_a_preact_block_reads_what_its_form_says(raw: bool) -> None:
    torch.manual_seed(0)
    block = settled(PreActBlock(4, 8, 2, raw), 4)
    x = image(4)
    with torch.no_grad():
        a = F.relu(block.bn1(x))
        inner = block.conv2(F.relu(block.bn2(block.conv1(a))))
        assert block.shortcut is not None
        torch.testing.assert_close(block(x), inner + block.shortcut(x if raw else a))
        assert not torch.allclose(block.shortcut(x), block.shortcut(a), atol=1e-2)


@pytest.mark.parametrize(("name", "last"), [("preact_resnet18", True), ("preact_resnet18-nobn", False)])
def test_the_end_of_a_preact_resnet(name: str, last: bool) -> None:
    net = build(name, num_classes=3, image_shape=(3, 8, 8), seed=0).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = net.layer4(net.layer3(net.layer2(net.layer1(net.conv1(x)))))  # type: ignore[operator, union-attr]
        out = F.relu(net.bn(out)) if last else out  # type: ignore[operator]
        torch.testing.assert_close(net(x), net.linear(out.mean((2, 3))))  # type: ignore[operator]


def test_a_bottleneck_is_its_formula() -> None:
    torch.manual_seed(0)
    block = settled(Bottleneck(4, 16, 2), 4)
    x = image(4)
    with torch.no_grad():
        h = F.relu(block.bn1(F.conv2d(x, block.conv1.weight)))
        h = F.relu(block.bn2(F.conv2d(h, block.conv2.weight, stride=2, padding=1)))
        expected = F.relu(block.bn3(F.conv2d(h, block.conv3.weight)) + block.shortcut(x))
        assert torch.equal(block(x), expected)
        assert block.conv1.out_channels == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wide_resnet-29-10-swish", r"wide_resnet-29-10-swish: expected a depth of 6n \+ 4, got 29"),
        ("wide_resnet-28-0-swish", "a width of 1 or more"),
        ("wide_resnet-swish", "wide_resnet-<depth>-<width>-swish.*for example wide_resnet-28-10-swish"),
        ("wrn-28-10-swish", "did you mean 'wide_resnet-28-10-swish'"),
        ("preact_resnet18-swich", "did you mean 'preact_resnet18-swish'"),
        ("resnet18-swish", "did you mean 'preact_resnet18-swish'"),
    ],
)
def test_what_is_no_form_is_refused(name: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        build(name, num_classes=10, image_shape=(3, 32, 32))
