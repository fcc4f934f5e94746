"""The gate in front of a training: a teacher is held to what is claimed of it, within what chance allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmard import teachers as table
from mmard.balls import Budget
from mmard.data import ImageSet, Splits
from mmard.errors import Refused
from mmard.gate import FAR, ClaimedAccuracy, pass_gate
from mmard.job import prepare
from mmard.models import build
from mmard.settings import Settings
from mmard.teachers import find

CLASSES = 4
BUDGET = Budget(1 / 1000)


class Reader(nn.Module):
    """Reads its answer in the first pixel: the class in grey levels of 40."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        grey = x.flatten(1)[:, :1] * 255 / 40
        return -10 * self.scale * (grey - torch.arange(CLASSES, device=x.device)).square()


def answered(right: int, n: int = 500) -> ImageSet:
    """Images of which `Reader` gets so many right, the wrong ones spread evenly."""
    y = torch.arange(n) % CLASSES
    said = y.clone()
    wrong = torch.linspace(0, n - 1, n - right).long()
    said[wrong] = (said[wrong] + 1) % CLASSES
    x = torch.zeros(n, 1, 4, 4, dtype=torch.uint8)
    x[:, 0, 0, 0] = (40 * said).to(torch.uint8)
    return ImageSet(x, y, tuple("abcd"), "images that tell their class")


def gate(right: int, claim: ClaimedAccuracy | None, n: int = 500) -> str:
    return pass_gate(Reader(), answered(right, n), BUDGET, "theirs", claim=claim)


CLAIM = ClaimedAccuracy("a paper", 0.85)
SLACK = CLAIM.slack(500)


def test_the_slack_is_three_standard_deviations() -> None:
    assert pytest.approx(3 * (0.85 * 0.15 / 500) ** 0.5) == SLACK
    assert CLAIM.slack(5000) == pytest.approx(SLACK / 10**0.5)


@pytest.mark.parametrize("right", [500, 425, int(500 * (0.85 - SLACK)) + 1])
def test_what_is_claimed_or_more_passes(right: int) -> None:
    note = gate(right, CLAIM)
    assert note.endswith("; 85.0% claimed (a paper)")
    assert f"{right / 500:.1%} clean" in note


@pytest.mark.parametrize("right", [int(500 * (0.85 - SLACK)), int(500 * (0.85 - SLACK - FAR)) + 1])
def test_less_than_chance_allows_is_told_with_causes(right: int) -> None:
    note = gate(right, CLAIM)
    assert "85.0% claimed (a paper)" in note
    for cause in ("short of by more than chance", "encoded anew (JPEG)", "normalisation", "weights", "other data"):
        assert cause in note


def test_far_less_is_refused_with_causes_unless_it_binds_nobody() -> None:
    right = int(500 * (0.85 - SLACK - FAR))
    says = r"^teacher theirs: expected a clean accuracy of 80\.2% or more on 500 validation images, 85\.0% being "
    with pytest.raises(Refused, match=says + r"claimed \(a paper\), got 70\.2%; is this its data set, are these its"):
        gate(right, CLAIM)
    assert "short of" in gate(right, replace(CLAIM, binding=False))
    assert gate(right, None).endswith("500 validation images")


def test_few_images_excuse_more() -> None:
    assert gate(9, CLAIM, 12).endswith("claimed (a paper)")
    with pytest.raises(Refused, match=r"92\.1% or more on 500 .*got 48\.4%"):
        pass_gate(Reader(), answered(600, 1200), BUDGET, "theirs", claim=replace(CLAIM, clean=0.95))


def test_guessing_is_refused_before_any_claim() -> None:
    with pytest.raises(Refused, match=r"guessing \(25.0%\)"):
        gate(125, CLAIM)


def test_the_bound_that_is_said_is_the_bound() -> None:
    """Four classes of 125 images: guessing gets 25 %, and 30.8 % by three standard deviations."""
    least = 0.25 + 3 * (0.25 * 0.75 / 500) ** 0.5
    with pytest.raises(Refused, match=rf"above {least:.1%}, which is guessing \(25.0%\)"):
        gate(int(500 * least), None)
    assert gate(int(500 * least) + 1, None).startswith("teacher theirs")


def test_few_images_are_told_and_refuse_only_what_guesses() -> None:
    assert "what guessing (25.0%) gets by luck on so few images" in gate(4, None, 12)
    with pytest.raises(Refused, match="three standard deviations"):
        gate(3, None, 12)


def test_without_the_gate_everything_is_told() -> None:
    def let(right: int, claim: ClaimedAccuracy | None) -> str:
        return pass_gate(Reader(), answered(right), BUDGET, "theirs", claim=claim, bind=False)

    assert "not above 30.8%" in let(125, None)
    assert "falls short of" in let(int(500 * (0.85 - SLACK - FAR)), CLAIM)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, None),
        ({"clean": 0.5, "robust": 0.25}, ClaimedAccuracy("its run's validation", 0.5, binding=False)),
        ({"claim": {"by": "X", "clean": 0.8}, "clean": 0.1}, ClaimedAccuracy("X", 0.8)),
    ],
)
def test_a_claim_is_read_from_the_facts(facts: dict[str, Any], expected: ClaimedAccuracy | None) -> None:
    assert ClaimedAccuracy.of(facts) == expected


@pytest.mark.parametrize(("flipped", "says"), [(0, None), (60, "expected a clean accuracy of")])
def test_a_known_teacher_is_held_to_its_record(
    flipped: int, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are labelled by the network itself, so that it is right on all but those whose label is changed."""
    spec = "robustbench:Zhang2019Theoretically"
    teacher = replace(find(spec)[0], network="wide_resnet-10-1")
    monkeypatch.setattr(table, "teachers", lambda: (teacher,))
    net = build(teacher.network, num_classes=10, image_shape=(3, 32, 32), seed=5).eval()
    x = (255 * torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    with torch.no_grad():
        logits = net(x.float() / 255)
        # Centred, so that every class is met.
        net.fc.bias.data -= logits.mean(0)  # type: ignore[union-attr, operator]
        y = net(x.float() / 255).argmax(1)
    torch.save({"state_dict": {"module." + k: v for k, v in net.state_dict().items()}}, tmp_path / "w.pt")
    said = y.clone()
    said[:flipped] = (said[:flipped] + 1) % 10
    names = tuple("0123456789")
    part = ImageSet(x, said, names, "its own answers")
    settings = Settings.resolve(
        {"method": "rslad", "student": "cnn-4", "teacher": spec, "teacher_weights": str(tmp_path / "w.pt"),
         "eps": 1 / 1000, "epochs": 1, "batch_size": 100, "device": "cpu"}
    )  # fmt: skip
    splits = Splits(part, part.take(torch.arange(150)), part)
    if says is None:
        notes = prepare(settings, data=splits).notes
        assert any("100.0% clean" in n and "84.9% claimed (RobustBench, Zhang2019Theoretically)" in n for n in notes)
    else:
        with pytest.raises(Refused, match=says):
            prepare(settings, data=splits)
