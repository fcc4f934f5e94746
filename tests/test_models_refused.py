"""Names, arguments and outputs of networks that are refused, and with which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import over
from torch import Tensor, nn

from mmard.errors import Refused
from mmard.models import Normalised, build, check_logits

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


@over("name", REFUSED)
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
        whole = isinstance(self.answer, Tensor) and len(self.answer) == 2
        return self.answer[: len(x)] if whole else self.answer  # type: ignore[index]


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


class Around(nn.Module):
    """A network whose answer goes through a function of the module and the logits."""

    def __init__(self, change: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.net, self.change = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0), change

    def forward(self, x: Tensor) -> object:
        return self.change(self, self.net(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, z: z[:, :, None].squeeze(), "got (10,) for one image; keep the first axis"),
        (lambda m, z: z.reshape(2, 10), "images (1, 8, 8) one at a time, got RuntimeError"),
        (lambda m, z: z[:, :1], "expected logits (B, 10), got (2, 1)"),
        (lambda m, z: z.double(), "expected float32 logits, got torch.float64"),
        (
            lambda m, z: (z, z) if m.training else z,
            "Net S in train mode: expected logits, a tensor (B, 10), got a tuple",
        ),
    ],
)
def test_networks_that_fail_only_at_times_are_refused(change: Any, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        check_logits(Around(change), (1, 8, 8), 10, "Net S", trained=True)


def test_what_is_trained_has_weights_to_train() -> None:
    frozen = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0).requires_grad_(False)
    check_logits(frozen, (1, 8, 8), 10, "Net S")
    with pytest.raises(Refused, match="Net S: expected weights to train, got all of them frozen"):
        check_logits(frozen, (1, 8, 8), 10, "Net S", trained=True)
    bare = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
    with pytest.raises(Refused, match="Net S: expected weights to train, got none"):
        check_logits(bare, (1, 8, 8), 10, "Net S", trained=True)


def test_weights_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        net = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0)
    with pytest.raises(Refused, match=r"Net S: expected a network made outside torch\.inference_mode"):
        check_logits(net, (1, 8, 8), 10, "Net S")


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
        return self.norm(x).flatten(1) + torch.randn(len(x), 64)


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
