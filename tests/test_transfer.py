"""Examples made on one network and shown to another, and networks that nobody can differentiate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import BUDGET, CLASSES, SHAPE, Matcher, matcher, measured, patterns, picture_set, protocol
from torch import Tensor, nn

from mmard import api, load_network
from mmard.attacks import read_attack, refuse_white_box
from mmard.attacks.autoattack import standard
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.cli import answer
from mmard.errors import Refused
from mmard.evaluation.transfer import (
    Member,
    Surrogate,
    Transferred,
    measure_transfer,
    transfer,
    transfer_matrix,
    transferable,
)
from mmard.files import read_json
from mmard.networks import network_facts
from mmard.run import Run

IMAGES = picture_set(40)
FEW = {"split": "test", "which": "given"}
PROTOCOL = protocol(["pgd-5"], BUDGET, batch_size=16)
ATTACK = read_attack("pgd-5", BUDGET)


class Flat(nn.Module):
    """The same predictions, and a gradient of zero: logits are rounded so coarsely that no step changes them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).detach() + 0 * x.sum()


class Asked(nn.Module):
    """A network that can be asked and not differentiated."""

    black_box = True

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


def turned(seed: int = 0) -> Matcher:
    """Another reader of the pictures, from noisy means: some of its mistakes are shared, some are not."""
    noise = torch.rand(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return Matcher(0.6 * patterns() + 0.4 * noise)


def test_examples_made_on_a_linear_network_are_the_exact_worst_case_there() -> None:
    """For two linear classes, one step of eps is the worst case; its verdict on another network is known too."""
    weight, other = torch.tensor([[1.0, -2.0, 0.5, 1.5]]), torch.tensor([[0.5, 1.0, 1.0, 2.0]])

    def linear(w: Tensor) -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        net[1].weight.data = torch.cat([w, -w])
        net[1].bias.data.zero_()
        return net

    images = picture_set(40)
    images = type(images)(images.x[:, :, :2, :2].contiguous(), images.y % 2, ("a", "b"), "corners")
    budget = Budget(0.1)
    found = transfer(
        {"o": linear(other)}, Surrogate(linear(weight), "w"), images, protocol(["fgsm"], budget),
        split="test", which={"o": "given"},
    )["o"]  # fmt: skip
    x, sign = images.x.double().flatten(1) / 255, 1 - 2 * images.y.double()[:, None]
    x_adv = (x - 0.1 * sign * weight.double().sign()).clamp(0, 1)
    right = [(sign[:, 0] * (v @ other.double()[0]) > 0).numpy() for v in (x, x_adv)]
    np.testing.assert_array_equal(found.mask, right[0] & right[1])
    assert 0 < found.score.accuracy < 1


def test_the_record_says_on_what_the_examples_were_made() -> None:
    source = Surrogate(turned(), "the other (best, epoch 3)")
    clean, found = measure_transfer(matcher(), source, IMAGES, PROTOCOL, **FEW)
    assert clean.score.attack == "clean"
    assert found.score.attack == "transfer-pgd-5"
    assert found.score.label == f"{ATTACK.label} made on the other (best, epoch 3)"
    record = found.score.record()
    assert record["made_on"] == "the other (best, epoch 3)"
    assert len(record["made_on_weights"]) == 64
    assert found.score.correct == found.mask.sum() <= clean.score.correct


def test_several_attacks_have_a_worst_case_that_says_it_as_well() -> None:
    source = Surrogate(turned(), "the other")
    *each, worst = measure_transfer(
        matcher(), source, IMAGES, protocol(["pgd-5", "cw-5"], BUDGET, batch_size=16), **FEW
    )
    np.testing.assert_array_equal(worst.mask, np.logical_and.reduce([m.mask for m in each]))
    assert worst.score.attack == "worst_of_transfer-pgd-5,transfer-cw-5"
    assert worst.score.label.endswith("made on the other")


def test_two_sources_of_one_name_have_two_records() -> None:
    slugs = set()
    for seed in range(2):
        _, found = measure_transfer(matcher(), Surrogate(turned(seed), "t"), IMAGES, PROTOCOL, **FEW)
        slugs.add(found.score.slug)
    assert len(slugs) == 2


def test_the_same_call_gives_the_same_record() -> None:
    source = Surrogate(turned(), "t")
    one, two = (measure_transfer(matcher(), source, IMAGES, PROTOCOL, **FEW)[1] for _ in range(2))
    np.testing.assert_array_equal(one.mask, two.mask)
    assert one.score.slug == two.score.slug


def test_examples_do_not_depend_on_who_reads_them() -> None:
    source, targets = Surrogate(turned(), "t"), {"a": matcher(), "b": turned(7)}
    both = transfer(targets, source, IMAGES, PROTOCOL, split="t", which={"a": "", "b": ""})
    alone = transfer({"b": targets["b"]}, source, IMAGES, PROTOCOL, split="t", which={"b": ""})
    np.testing.assert_array_equal(both["b"].mask, alone["b"].mask)


def test_networks_are_put_back_as_they_were() -> None:
    target, source = turned(1).train(), turned(2).train()
    transfer({"": target}, Surrogate(source, "t"), IMAGES, PROTOCOL, split="t", which={"": ""})
    assert target.training
    assert source.training
    assert all(p.requires_grad and p.grad is None for net in (target, source) for p in net.parameters())


@pytest.mark.parametrize("spec", ["aa", "square", "apgd-ce", "fab-t"])
def test_attacks_that_stop_at_success_do_not_transfer(spec: str) -> None:
    with pytest.raises(Refused, match="goes on after its first success"):
        transferable([spec], BUDGET)


def test_nothing_is_made_on_a_black_box() -> None:
    with pytest.raises(Refused, match="with a gradient"):
        Surrogate(Asked(matcher()), "x.onnx")


# black boxes ----------------------------------------------------------------------------------------------------------
def test_what_needs_a_gradient() -> None:
    whole = standard(BUDGET, 10)
    assert whole.needs_gradient
    assert ATTACK.needs_gradient
    assert not whole.only("square").needs_gradient
    assert not Square().needs_gradient
    refuse_white_box(matcher(), [ATTACK])
    refuse_white_box(Asked(matcher()), [Square()])


def test_white_box_attacks_on_a_black_box_are_refused_before_the_first() -> None:
    told: list[Any] = []
    with pytest.raises(Refused, match="got pgd-5, aa; use --attack square, or --from RUN --attack pgd-5,aa"):
        measured(Asked(matcher()), IMAGES, ["square", "pgd-5", "aa"], BUDGET, progress=lambda *a: told.append(a))
    assert told == []


def test_a_black_box_can_be_shown_examples() -> None:
    open_box, black_box = turned(3), Asked(turned(3))
    found = transfer(
        {"open": open_box, "black": black_box}, Surrogate(open_box, "t"), IMAGES, PROTOCOL,
        split="t", which={"open": "", "black": ""},
    )  # fmt: skip
    np.testing.assert_array_equal(found["open"].mask, found["black"].mask)


# the matrix -----------------------------------------------------------------------------------------------------------
def members() -> list[Member]:
    return [Member("a", matcher(), ""), Member("b", turned(), ""), Member("c", Asked(turned(2)), "")]


def test_a_matrix_has_every_cell_but_those_made_on_a_black_box() -> None:
    found = transfer_matrix(members(), IMAGES, PROTOCOL, split="t")
    assert set(found.cells) == {(i, j) for i in range(2) for j in range(3)}
    for (i, j), cell in found.cells.items():
        assert isinstance(cell.score, Transferred)
        assert cell.score.made_on == members()[i].name
        assert cell.score.correct <= found.clean[j].score.correct
    (clean,) = measured(matcher(), IMAGES, [], BUDGET)
    np.testing.assert_array_equal(found.clean[0].mask, clean.mask)


def test_what_is_known_is_not_measured_again() -> None:
    first: dict[tuple[int, str], Any] = {}
    transfer_matrix(members(), IMAGES, PROTOCOL, split="t", keep=lambda j, m: first.update({(j, m.score.slug): m}))
    made: list[str] = []
    missing = next(key for key, m in first.items() if m.score.attack != "clean" and key[0] == 1)
    again = transfer_matrix(
        members(), IMAGES, PROTOCOL, split="t",
        known=lambda j, score: first.get((j, score.slug)) if (j, score.slug) != missing else None,
        keep=lambda j, m: made.append(m.score.attack),
    )  # fmt: skip
    assert made.count("transfer-pgd-5") == 1
    assert len(again.cells) == 6


def test_a_hidden_gradient_shows_in_its_column() -> None:
    budget = Budget(0.3)
    hiding = [Member("honest", turned(4), ""), Member("hiding", Flat(turned(4)), "")]
    found = transfer_matrix(hiding, IMAGES, protocol(["pgd-5"], budget), split="t")
    assert found.hidden() == [(0, 1)]


# the commands ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two runs on digits, of networks that nobody trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    from mmard.data import load
    from mmard.networks import new_network

    images = load("digits").test
    for seed, name in enumerate("ab"):
        run = Run.create(name, {"method": "pgd_at", "model": "cnn-4", "data": "digits", "eps": 0.1, "norm": "linf"})
        module = new_network("cnn-4", images, "none", seed)
        run.save_weights("best", module.state_dict(), {**network_facts("cnn-4", module, images), "epoch": 1})
    return ["a", "b"]


def test_evaluate_from_another_run(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["evaluate", "a", "--attack", "pgd-2", "--from", "b", "--first", "20", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["scores"]
    kept = {r["attack"]: r for r in Run.open("a").score_records()}
    assert [r["attack"] for r in printed] == ["clean", "transfer-pgd-2"]
    assert kept["transfer-pgd-2"]["made_on"] == "b (best, epoch 1)"
    assert Run.open("b").score_records() == []


def test_a_matrix_keeps_its_figures_and_goes_on(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call = ["transfer", "a", "b", "--attack", "pgd-2", "--first", "20"]
    assert answer(call) == 0
    first = capsys.readouterr().out
    assert "made on the row's network" in first
    assert "Diagonal" in first
    files = sorted(Path().glob("?/scores/*transfer-pgd-2*.json"))
    assert len(files) == 4
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    assert answer(call) == 0
    assert capsys.readouterr().out == first
    after = {file: file.stat().st_mtime_ns for file in files}
    assert [before[file] == after[file] for file in files] == [False, True, True, True]
    assert answer([*call, "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert len(held["cells"]) == 4
    assert held["networks"] == ["a (best, epoch 1)", "b (best, epoch 1)"]


def test_figures_of_a_network_without_a_run_go_into_a_folder(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    call = [
        "evaluate",
        "little:digits_matcher",
        "--data",
        "digits",
        "--eps",
        "0.1",
        "--attack",
        "pgd-2",
        "--first",
        "20",
    ]
    assert answer([*call, "--out", "theirs"]) == 0
    assert read_json(Path("theirs/config.json"))["network"] == "little:digits_matcher"
    assert len(Run.open("theirs").score_records()) == 2
    assert answer(["evaluate", "a", "--attack", "pgd-2", "--first", "20"]) == 0
    capsys.readouterr()
    assert answer(["compare", "a", "theirs", "--strict"]) == 0
    assert "little:digits_matcher" in capsys.readouterr().out
    assert answer(["show", "theirs"]) == 2
    assert "mmard compare theirs" in capsys.readouterr().err
    assert answer(["evaluate", "a", "--out", "elsewhere"]) == 2
    assert answer(["evaluate", "b/best.safetensors", *call[2:], "--out", "theirs"]) == 2
    assert "records of best.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (["transfer", "a"], "two networks or more"),
        (["transfer", "a", "b", "--attack", "pgd-2,cw-2"], "one attack"),
        (["transfer", "a", "b", "--attack", "aa"], "goes on after"),
        (["evaluate", "a", "--from-weights", "x.pt"], "--from NAME"),
        (["evaluate", "a", "--from", "cnn-4"], "--from-weights"),
        (["evaluate", "a", "--from", "b", "--attack", "aa"], "goes on after"),
    ],
)
def test_wrong_calls_are_refused(
    runs: list[str], call: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(call) == 2
    assert says in capsys.readouterr().err


def test_evaluate_in_python_from_a_run_and_from_a_module(runs: list[str]) -> None:
    from mmard.data import load

    images = load("digits").test.take(slice(0, 20))
    module = load_network("b").module
    by_name, by_module = (api.evaluate("a", images, "pgd-2", budget=0.1, made_on=other) for other in ("b", module))
    assert [s.correct for s in by_name] == [s.correct for s in by_module]
    assert by_name[1].label.endswith("made on b (best, epoch 1)")
