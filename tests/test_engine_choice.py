"""Which module stands for a network, in which precision, and how a run remembers it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from little import digits_matcher, matcher, net, picture_splits, same
from nets import conv, images, step_of
from test_twin import lively, needs_bf16
from torch import Tensor, nn
from trainings import Left, at, control_c

from mmard import run as environment
from mmard.api import distill, train, training_step
from mmard.engine import twin as choosing
from mmard.engine.packed import CL
from mmard.engine.twin import PLAIN, Engine, Twins, described, has_bf16, lay_out
from mmard.errors import Refused
from mmard.job import prepare
from mmard.models import build
from mmard.plan import plan
from mmard.run import Run
from mmard.settings import Settings
from mmard.training.fit import Interrupted

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"epochs": 2, "steps": 2, "batch_size": 32, "val_attack": "fgsm", "lr": 0.05}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(environment, "commit", lambda: None)


def packed_net(seed: int = 0) -> nn.Module:
    """Large enough to be packed, in float32."""
    return lively(build("cnn-32", num_classes=10, image_shape=(1, 8, 8), seed=seed))


def x_of(n: int = 4) -> Tensor:
    return images(n, shape=(1, 8, 8), dtype=torch.float32)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("fastest", "fp32"), "engine 'fastest'"),
        (("fast", "fp16"), "precision 'fp16'"),
        (("plain", "bf16"), "engine plain: expected precision fp32, got bf16"),
        (("plain", "auto"), "leave out --engine plain"),
    ],
)
def test_what_is_no_engine_is_refused(settings: tuple[str, str], match: str) -> None:
    with pytest.raises(Refused, match=match):
        Engine(*settings)


def test_bfloat16_is_refused_where_the_hardware_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_bf16", lambda device: False)
    Engine("fast", "auto").check(CPU)
    with pytest.raises(Refused, match="precision bf16: expected a cpu with bfloat16"):
        Engine("fast", "bf16").check(CPU)
    with pytest.raises(Refused, match="precision bf16"):
        prepare(Settings.resolve({"model": "cnn-4", "precision": "bf16"}), data=picture_splits())
    twins = Twins(Engine("fast", "auto"), {"S": packed_net()})
    assert twins.ready(x_of())["S"]["precision"] == "fp32"
    assert twins.record["S"]["why"] == "no bfloat16 here"


def test_the_names_are_those_of_the_settings() -> None:
    for name, known in (("engine", choosing.ENGINES), ("precision", choosing.PRECISIONS)):
        for value in known:
            assert getattr(Settings.resolve({name: value}), name) == value
        with pytest.raises(Refused, match=f"setting {name}"):
            Settings.resolve({name: "other"})


# --- choice ---------------------------------------------------------------------------------------


@needs_bf16
@pytest.mark.parametrize(("gain", "precision"), [(3.0, "bf16"), (1.02, "fp32"), (0.4, "fp32")])
def test_auto_takes_what_is_clearly_faster(gain: float, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_bf16", lambda device: True)
    monkeypatch.setattr(choosing, "_ratio", lambda *_: gain)
    twins = Twins(Engine("fast", "auto"), {"S": packed_net(), "T": conv()})
    record = twins.ready(x_of())
    assert record["S"]["precision"] == precision
    assert f"{gain:.2f} times as fast" in record["S"]["why"]

    def never(*_: Any) -> float:
        raise AssertionError("timed again")

    monkeypatch.setattr(choosing, "_ratio", never)
    again = Twins(Engine("fast", "auto"), {"S": packed_net(seed=5)})
    again.keep(json.loads(json.dumps(record)))
    assert again.ready(x_of())["S"]["precision"] == precision


@needs_bf16
def test_the_timing_is_of_both_twins() -> None:
    half, full = (choosing.Twin(packed_net(), (1, 8, 8), dtype) for dtype in (torch.bfloat16, None))
    assert 0.05 < choosing._ratio(full, half, (1, 8, 8), 4) < 20
    assert all(p.requires_grad for p in full.source.parameters())


def test_a_record_that_cannot_be_followed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_bf16", lambda device: False)
    for kept in ({"twin": True, "precision": "bf16", "why": ""}, {"twin": True, "precision": "fp32", "why": ""}):
        twins = Twins(Engine("fast"), {"S": packed_net() if kept["precision"] == "bf16" else nn.Flatten()})
        twins.keep({"S": kept})
        with pytest.raises(Refused, match="as this run had so far"):
            twins.ready(x_of())


def test_a_network_that_was_called_itself_stays_itself() -> None:
    net = packed_net()
    twins = Twins(Engine("fast"), {"S": net})
    twins.keep({"S": {"twin": False, "precision": "float32", "why": "it has hooks"}})
    assert twins.serving(x_of())["S"] is net
    assert described(twins.record["S"]) == "itself (it has hooks)"


def test_another_dtype_or_device_makes_another_twin() -> None:
    net = packed_net()
    twins = Twins(Engine("fast"), {"S": net}, changing={"S"})
    first = twins.serving(x_of())["S"]
    assert twins.serving(x_of())["S"] is first
    net.double()
    second = twins.serving(x_of().double())["S"]
    assert second is not first
    assert second(x_of().double()).dtype == torch.float64
    assert twins.record["S"]["precision"] == "float64"


# --- memory format of the update ------------------------------------------------------------------


class Viewing(nn.Module):
    """Fails channels last, as networks with `.view` on feature maps do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(16, 16, 3, groups=2), nn.Linear(16 * 196, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).view(len(x), -1))


def test_networks_with_large_convolutions_are_trained_channels_last() -> None:
    net = build("mobilenet_v2", num_classes=4, image_shape=(3, 32, 32), seed=0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    drawn = torch.random.get_rng_state()
    assert lay_out(net, (3, 32, 32))
    assert net.conv1.weight.is_contiguous(memory_format=CL)
    assert same(before, {k: v.contiguous() for k, v in net.state_dict().items()})
    assert torch.equal(torch.random.get_rng_state(), drawn)
    viewing = Viewing()
    assert not lay_out(viewing, (16, 16, 16))
    assert viewing.conv.weight.is_contiguous()
    for left in (conv(), conv().float(), nn.Flatten()):
        assert not lay_out(left, (2, 3, 3))


# --- runs -----------------------------------------------------------------------------------------

PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16), pytest.param("auto", marks=needs_bf16)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_is_equal_to_the_bit(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "auto" the timing of the second start says the contrary, and is not asked."""
    if precision != "fp32" and not has_bf16(CPU):
        pytest.skip("no bfloat16 here")
    gains = iter([2.0, 2.0, 0.5, 0.5])
    monkeypatch.setattr(choosing, "_ratio", lambda *_: next(gains))

    def go(out: str, resume: bool = False, observers: Any = ()) -> None:
        settings = {**QUICK, "limit_train": 96, "precision": precision}
        teacher = packed_net(seed=3).eval() if out == "none" else digits_matcher()
        distill(
            "cnn-32", teacher, data="digits", method="rslad", out=out, resume=resume, observers=observers, **settings
        )

    go("whole")
    gains = iter([2.0, 2.0])
    for stop in (1, 2):
        with pytest.raises(Interrupted):
            go("stopped", resume=stop > 1, observers=[at(stop, control_c)])
    gains = iter([0.5, 0.5])
    go("stopped", resume=True)
    assert Left(Path("stopped")) == Left(Path("whole"))
    record = Run.open("whole").engine
    assert record is not None
    assert record["S"]["precision"] == ("bf16" if precision == "auto" else precision)
    assert record["T"] == {"twin": False, "precision": "float32", "why": "it calls no convolution"}


def test_engines_agree_and_say_what_they_were() -> None:
    """A short training, fast and plain: close, not equal, and each repeatable."""
    left = {}
    for name in ("fast", "plain", "fast again"):
        settings: dict[str, Any] = {**QUICK, "limit_train": 64, "engine": name.split()[0]}
        train("cnn-32", data="digits", method="trades", out=name, **settings)
        left[name] = Left(Path(name))
    assert left["fast"] == left["fast again"]
    far = [
        (left["fast"].tensors[k] - v).abs().max().item()
        for k, v in left["plain"].tensors.items()
        if k.startswith("S/") and v.is_floating_point()
    ]
    assert 0 < max(far) < 0.1
    assert Run.open("plain").engine == {"S": {"twin": False, "precision": "float32", "why": "engine plain"}}


def test_a_run_from_before_there_were_twins_goes_on_without() -> None:
    def go(out: str, **more: Any) -> None:
        train("cnn-32", data="digits", method="pgd_at", out=out, limit_train=64, **QUICK, **more)

    go("whole", engine="plain")
    with pytest.raises(Interrupted):
        go("old", engine="plain", observers=[at(2, control_c)])
    config = json.loads(Path("old/config.json").read_text())
    del config["engine"], config["precision"]
    Path("old/config.json").write_text(json.dumps(config))
    Path("old/engine.json").unlink()
    go("old", resume=True)
    whole, old = Left(Path("whole")), Left(Path("old"))
    assert same(whole.tensors, old.tensors)
    assert whole.epochs == old.epochs


def test_the_plan_says_what_stands_for_each_network() -> None:
    told = {"student": "cnn-32", "teacher": "given:Matcher", "data": "digits", "method": "rslad", "limit_train": 64}
    settings = Settings.resolve({**told, **QUICK})
    made = plan(prepare(settings, teacher=digits_matcher()), seconds=0.0)
    assert described(made.engine["S"]).startswith("a twin in fp32, 4 of 4 BatchNorms folded")
    assert described(made.engine["T"]) == "itself (it calls no convolution)"


def test_a_loop_of_ones_own_has_twins_unless_it_says_plain() -> None:
    settings: dict[str, Any] = {"method": "rslad", "budget": 0.1, "steps": 2}
    student, teacher = net(), matcher()
    fast = training_step(student, teacher, **settings)
    plain = training_step(student, teacher, engine="plain", **settings)
    assert fast.twins.engine == Engine("fast")
    assert plain.twins.engine == PLAIN == step_of("rslad", conv()).twins.engine
    with pytest.raises(Refused, match="precision"):
        training_step(student, teacher, precision="half", **settings)
