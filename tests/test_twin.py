"""A twin answers as its source does, follows it in place, and refuses to answer for what has changed."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from nets import generator, images
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.engine import packed as packing
from mmard.engine.folding import folded
from mmard.engine.packed import CL, Conv, packable
from mmard.engine.twin import Stale, Twin, Unfit
from mmard.models import Normalised, build

SIDE = (3, 16, 16)
MODELS = ("cnn-4", "resnet18", "preact_resnet18", "mobilenet_v2", "wide_resnet-10-2")
OF_OTHER_KINDS = ("mobilenet_v3_small", "convnext-8", "vit_tiny-8")
"""Without BatchNorm, or with convolutions that it does not pay to pack."""
needs_packing = pytest.mark.skipif(not packable(torch.float32), reason="this PyTorch has no oneDNN operators")
needs_bf16 = pytest.mark.skipif(not packable(torch.bfloat16), reason="no bfloat16 operators here")


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """With a BatchNorm that does something, in train mode as a student is."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor, low, high in (
                *((m.running_mean, -0.2, 0.2), (m.running_var, 0.5, 1.5)),
                *((m.weight.data, 0.7, 1.3), (m.bias.data, -0.1, 0.1)),
            ):
                tensor.uniform_(low, high, generator=generator(seed))
    return net.train()


def model(name: str, **settings: Any) -> nn.Module:
    return lively(build(name, num_classes=4, image_shape=SIDE, seed=0, **settings))


def answers(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the input gradient of a sum of them."""
    at = x.clone().requires_grad_()
    logits = net(at)
    pull = torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).view_as(logits)
    (slope,) = torch.autograd.grad((logits * pull).sum(), at)
    return logits.detach(), slope


def same_answers(twin: nn.Module, source: nn.Module, x: Tensor, within: float) -> None:
    asleep = copy.deepcopy(source).eval()
    for got, expected in zip(answers(twin, x), answers(asleep, x), strict=True):
        assert (got - expected).norm() <= within * expected.norm()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("normalised", [False, True])
def test_in_float64_it_is_the_network_to_thirteen_digits(name: str, normalised: bool) -> None:
    mean_std = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2)} if normalised else {}
    source = model(name, **mean_std).double()
    twin = Twin(source, SIDE)
    same_answers(twin, source, images(3, shape=SIDE), 1e-12)
    assert twin.facts.traced
    assert twin.facts.folded > 0
    assert all(m.training for m in source.modules()), "the source's modes are as they were"
    assert all(p.requires_grad for p in source.parameters())
    assert not any(p.requires_grad for p in twin.parameters())


def distance(got: Tensor, exact: Tensor) -> float:
    """Of a tensor to the exact one, in the exact one's length."""
    return float((got.double() - exact).norm() / exact.norm())


def worth_of_gates(exact: nn.Module, x: Tensor) -> float:
    """How far the input gradient goes, relatively, when ReLUs open or shut whose input is zero but for rounding.

    In float64, with what every norm puts out moved up and down by a few roundings of float32.
    """
    few = 16 * torch.finfo(torch.float32).eps
    slopes = []
    for sign in (0, 1, -1):
        hooks = [
            norm.register_forward_hook(lambda _, __, out, sign=sign: out + sign * few * out.abs().max())
            for norm in exact.modules()
            if isinstance(norm, nn.BatchNorm2d)
        ]
        slopes.append(answers(exact, x)[1])
        for hook in hooks:
            hook.remove()
    return max(distance(moved, slopes[0]) for moved in slopes[1:])


@needs_packing
@pytest.mark.parametrize("name", [*MODELS[1:], *OF_OTHER_KINDS])
def test_in_float32_it_is_the_network_up_to_rounding(name: str) -> None:
    """It is as far from the network in float64 as the network in float32 is, within a small factor."""
    source = model(name)
    twin = Twin(source, SIDE)
    assert name in OF_OTHER_KINDS or twin.facts.packed == twin.facts.convs
    plain, exact = copy.deepcopy(source).eval(), copy.deepcopy(source).double().eval()
    for x in (images(3, shape=SIDE, dtype=torch.float32), images(5, seed=4, shape=(3, 20, 12), dtype=torch.float32)):
        gates = (0.0, worth_of_gates(exact, x.double()))
        for got, own, true, gate in zip(
            answers(twin, x), answers(plain, x), answers(exact, x.double()), gates, strict=True
        ):
            allowed = 8 * max(min(distance(own, true), 1e-6), torch.finfo(torch.float32).eps) + 2 * gate
            assert distance(got, true) <= allowed


@needs_bf16
@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_inputs_and_logits_stay_in_float32(name: str) -> None:
    source = model(name)
    twin = Twin(source, SIDE, torch.bfloat16)
    x = images(8, shape=SIDE, dtype=torch.float32)
    asleep = copy.deepcopy(source).eval()
    (logits, slope), (expected, _) = answers(twin, x), answers(asleep, x)
    assert logits.dtype == slope.dtype == torch.float32
    assert slope.is_contiguous()
    assert 0 < (logits - expected).abs().max() < 0.05 * expected.abs().max()
    dtypes = [m.conv.weight.dtype for m in twin.modules() if isinstance(m, Conv)]
    assert dtypes.count(torch.float32) == 1, "the first convolution reads x as it is"
    assert dtypes.count(torch.bfloat16) == len(dtypes) - 1


def test_preact_folds_what_only_its_norm_reads() -> None:
    """The stem's result goes into the first norm and around it; merging there would change the shortcut."""
    source = model("preact_resnet18").double().eval()
    twin = Twin(source, SIDE)
    assert (twin.facts.folded, twin.facts.norms) == (8, 17)
    assert folded(source, images(2, shape=SIDE)) is not source


# --- following the source -------------------------------------------------------------------------


def small(dtype: torch.dtype = torch.float64) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return lively(net).to(dtype)


def step(net: nn.Module, **settings: Any) -> None:
    """An update, batch statistics included."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, **settings)
    net(images(6, shape=(2, 5, 5), dtype=next(net.parameters()).dtype)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"fused": True}])
def test_refreshed_in_place_it_follows_an_update(settings: dict[str, Any]) -> None:
    source, x = small(), images(3, shape=(2, 5, 5))
    twin = Twin(source, (2, 5, 5))
    where = [t.data_ptr() for t in (*twin.parameters(), *twin.buffers())]
    before, _ = answers(twin, x)
    step(source, **settings)
    twin.refresh()
    assert not torch.allclose(twin(x), before)
    same_answers(twin, source, x, 1e-12)
    assert where == [t.data_ptr() for t in (*twin.parameters(), *twin.buffers())]


def another_weight(net: nn.Module) -> None:
    net[3].weight = nn.Parameter(net[3].weight.detach() + 1)


def another_layer(net: nn.Module) -> None:
    net[4] = nn.Tanh()


def a_buffer(net: nn.Module) -> None:
    net[1].running_mean.add_(1)


def a_weight(net: nn.Module) -> None:
    with torch.no_grad():
        net[8].bias.add_(1)


def elsewhere(net: nn.Module) -> None:
    net[8].weight.data = net[8].weight.data + 1


@pytest.mark.parametrize("change", [step, a_buffer, a_weight, elsewhere, another_weight, another_layer])
def test_a_stale_twin_refuses_to_answer(change: Any) -> None:
    source, x = small(), images(2, shape=(2, 5, 5))
    twin = Twin(source, (2, 5, 5))
    twin(x)
    change(source)
    with pytest.raises(Stale):
        twin(x)
    if change in (another_weight, another_layer):
        assert not twin.fits(x)
        with pytest.raises(Stale, match="replaced"):
            twin.refresh()
    else:
        twin.refresh()
        same_answers(twin, source, x, 1e-12)


# --- networks of users ----------------------------------------------------------------------------


class Odd(nn.Module):
    """A layer under two names, a layer called twice, a branch on values, a buffer and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.again = self.conv
        self.twice = nn.Conv2d(2, 2, 1)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor(0.25))
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.again(x)) * self.gain + self.shift
        out = self.twice(self.twice(out).relu())
        return self.linear(out.mean((2, 3)) if out.sum() > -1e9 else out.amax((2, 3)))


class InPlace(nn.Module):
    """ReLUs in place, a sum in place, a shortcut that reads what is overwritten later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        deep = self.bn2(self.conv2(out))
        deep += out
        return self.linear(F.relu_(deep).mean((2, 3)))


@pytest.mark.parametrize("kind", [Odd, InPlace])
def test_users_networks(kind: type[nn.Module]) -> None:
    source, x = lively(kind()).double(), images(3, shape=(2, 5, 5))
    twin = Twin(Normalised(source, (0.4, 0.5), (0.2, 0.2)).double(), (2, 5, 5))
    assert twin.facts.traced == (kind is InPlace)
    assert twin.facts.folded == (1 if kind is Odd else 2)
    same_answers(twin, twin.source, x, 1e-12)
    with torch.no_grad():
        for p in source.parameters():
            p.mul_(1.1)
    twin.refresh()
    same_answers(twin, twin.source, x, 1e-12)


def hooked() -> nn.Module:
    net = small()
    net[2].register_forward_hook(lambda *_: None)
    return net


class Uncopied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def __deepcopy__(self, memo: Any) -> Uncopied:
        raise TypeError("one of a kind")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Peeking(Uncopied):
    """Reads a norm otherwise than by calling it."""

    def __deepcopy__(self, memo: Any) -> Peeking:
        made = Peeking()
        made.net = copy.deepcopy(self.net, memo)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.net[1].weight.sum()


class Aside(nn.Module):
    """Holds a layer where no walk over submodules finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aside = nn.Conv2d(2, 3, 3), [nn.Linear(3, 3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.aside[0](self.conv(x.float()).mean((2, 3)))


def shut(net: nn.Module) -> nn.Module:
    with torch.inference_mode():
        return net.double()


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (hooked, "hooks"),
        (Uncopied, "copied"),
        (Peeking, "fails"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double(), "no convolution"),
        (lambda: nn.Flatten(), "no weights"),
        (lambda: nn.Conv2d(2, 3, 3).double(), "something else than logits"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(9, 3)).double(), "fails on two images"),
    ],
)
def test_what_has_no_twin_says_why(net: Any, why: str) -> None:
    with pytest.raises(Unfit, match=why):
        Twin(net(), (2, 5, 5))


class Drawing(Uncopied):
    """Answers at random, by a generator that is not torch's; the noise is small beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = np.random.default_rng(0)

    def __deepcopy__(self, memo: Any) -> Drawing:
        made = Drawing()
        made.net = copy.deepcopy(self.net, memo)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1 + 1e-3 * self.draw.standard_normal())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_is_random_by_another_generator_has_no_twin(dtype: torch.dtype | None) -> None:
    with pytest.raises(Unfit, match="does not answer the same images alike"):
        Twin(Drawing().float(), (2, 5, 5), dtype)


class Viewing(nn.Module):
    """Flattens by `view`, which fails on the layout that torch.fx tries it in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.out = nn.Linear(64 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x).relu()).relu()
        return self.out(x.view(x.size(0), -1))


@needs_packing
def test_a_trace_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with suppress(Unfit):
        Twin(Viewing(), (3, 8, 8))
    assert capfd.readouterr() == ("", "")


# --- packed layers --------------------------------------------------------------------------------

SHAPES = [(3, 8, 3, 1, 1, 1, 1), (8, 8, 3, 2, 1, 1, 8), (8, 8, 3, 1, 1, 1, 8), (8, 16, 1, 2, 0, 1, 1),
          (8, 12, 5, 1, 4, 2, 2), (8, 8, 3, 1, 3, 1, 1), (4, 6, 3, 2, 1, 1, 2)]  # fmt: skip


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_is_the_convolution_and_what_follows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Called twice, with and without a sum: each call has its own gradient."""
    if not packable(dtype):
        pytest.skip("no bfloat16 operators here")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(*shape).requires_grad_(False)
    conv.weight.data = conv.weight.to(dtype).float()
    layer = Conv(copy.deepcopy(conv).to(dtype).to(memory_format=CL), packed=True, gives=torch.float32)
    layer.relu = True
    x = images(4, shape=(shape[0], 9, 9), dtype=torch.float32).to(dtype).float() - 0.5
    other = images(4, seed=1, shape=tuple(conv(x).shape[1:]), dtype=torch.float32) - 0.5
    found = []
    for call in (lambda at, o: layer(at, o) + 2 * layer(at), lambda at, o: (conv(at) + o).relu() + 2 * conv(at).relu()):
        at, o = x.clone().requires_grad_(), other.clone().requires_grad_()
        out = call(at, o)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), (at, o))))
    for got, expected in zip(*found, strict=True):
        assert (got - expected).norm() <= (1e-5 if dtype == torch.float32 else 0.06) * expected.norm()


@needs_packing
def test_bits_do_not_depend_on_the_batch_that_weights_were_packed_for() -> None:
    source, x = model("wide_resnet-10-2"), images(12, shape=SIDE, dtype=torch.float32)
    small_first, large_first = Twin(source, SIDE), Twin(source, SIDE)
    answers(small_first, x[:3])
    answers(large_first, x)
    for got, expected in zip(answers(small_first, x), answers(large_first, x), strict=True):
        assert torch.equal(got, expected)


def test_without_the_private_operators_the_public_ones_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packing, "_pack", gone)
    packable.cache_clear()
    try:
        source = model("wide_resnet-10-2")
        twin = Twin(source, SIDE)
        assert twin.facts.packed == 0
        same_answers(twin, source, images(3, shape=SIDE, dtype=torch.float32), 1e-4)
        assert not packable(torch.float32)
    finally:
        monkeypatch.undo()
        packable.cache_clear()


def test_operators_that_answer_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = packing._run
    monkeypatch.setattr(packing, "_run", lambda *args, **named: right(*args, **named) + 0.5)
    packable.cache_clear()
    try:
        assert not packable(torch.float32)
    finally:
        monkeypatch.undo()
        packable.cache_clear()
