"""What the engine changes beside the plain path, as the benchmark's agreement finds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little import matcher, net, picture_set

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.bench import agreement as agreeing
from mmard.bench.agreement import SameStart, TrainedPair, agreement, compared, pairings
from mmard.cli import answer
from mmard.engine.twin import Twin
from mmard.errors import Refused

CPU = torch.device("cpu")


def subject() -> TrainedPair:
    images = picture_set(24, seed=3)
    student = net(0).eval()
    with torch.no_grad():
        student.train()(picture_set(40).x.float() / 255)
    return TrainedPair({"S": student.eval(), "T": matcher()}, images, Budget(0.1), 3, None, "little")


def test_the_engine_agrees_in_float64() -> None:
    of = {pair.name: pair for pair in pairings(CPU)}
    for spec in ("rslad", "adaad+mmard", "natural"):
        row = compared(spec, subject(), of["fp64: plain, engine"], 16, 0, CPU)
        assert row["loss_difference"] < 1e-10
        assert row["update_difference"] < 1e-10
        if spec == "natural":
            assert "equal_x_adv" not in row
            continue
        assert row["equal_x_adv"] == row["equal_signs"] == 1.0
        assert row["attack_loss_ratio"] == pytest.approx(1, abs=1e-12)
        assert row["attack_loss"]["reference"] > row["attack_loss"]["start"]


def test_a_wrong_engine_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Twin.forward
    monkeypatch.setattr(Twin, "forward", lambda self, x: -right(self, x))
    monkeypatch.setattr(Twin, "_check", lambda self, x: None)  # which would refuse it
    pair = next(p for p in pairings(CPU) if p.name == "fp64: plain, engine")
    row = compared("pgd_at", subject(), pair, 16, 0, CPU)
    assert row["equal_signs"] < 0.9
    assert row["attack_loss_ratio"] < 0.99


def test_both_precisions_start_at_one_point() -> None:
    attack = SameStart(PGD(2, 0.02, "uniform"))
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def begun(x: torch.Tensor) -> torch.Tensor:
        return attack.begin(x, Budget(0.1), torch.Generator().manual_seed(1))

    assert torch.equal(begun(x).double(), begun(x.double()))


def test_agreement_is_a_record_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreeing, "on_digits", lambda device: subject())
    found = agreement(only=["rslad"], images=12, out=tmp_path, device="cpu")
    held = json.loads(Path(found["files"][0]).read_text(encoding="utf-8"))
    assert (held["kind"], held["format"]) == ("agreement", 2)
    assert [row["pairing"] for row in held["rows"]] == [pair.name for pair in pairings(CPU)]
    assert held["subject"]["n"] == 12
    with pytest.raises(Refused, match="T_nat"):
        agreement(only=["mtard"], device="cpu")


@pytest.mark.parametrize(
    "call",
    [lambda: agreement("nowhere"), lambda: agreement(only=["rlsad"]), lambda: agreement(images=1)],
    ids=["run", "method", "images"],
)
def test_what_cannot_be_compared_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(Refused):
        call()


def test_a_run_of_ones_own(tmp_path: Path) -> None:
    """A student and its teacher from their run folders, under the run's ball."""
    import mmard

    how: dict[str, Any] = {"data": "digits", "epochs": 1, "limit_train": 128, "steps": 2, "val_attack": "pgd-2"}
    mmard.train("cnn-4", method="pgd_at", out=tmp_path / "t", lr=0.05, **{**how, "epochs": 6, "limit_train": 512})
    mmard.distill("cnn-2", tmp_path / "t", method="rslad", out=tmp_path / "s", **how)
    found = agreement(tmp_path / "s", only=["rslad+mmard"], images=16, device="cpu")
    assert set(found["subject"]["weights"]) == {"S", "T"}
    assert (found["subject"]["attack_steps"], found["subject"]["eps"]) == (2, 0.15)
    exact = next(row for row in found["rows"] if row["pairing"] == "fp64: plain, engine")
    assert exact["update_difference"] < 1e-10
    alone = agreement(tmp_path / "t", images=16, device="cpu")
    assert {row["method"] for row in alone["rows"]} == {"pgd_at", "trades"}


def test_the_command_shows_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agreeing, "on_digits", lambda device: subject())
    assert answer(["bench", "--agreement", "--only", "rslad", "--device", "cpu", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "fp64: plain, engine" in out
    assert "100.00%" in out
    assert "…" not in out
    assert len(list(tmp_path.glob("agreement-*.json"))) == 1
