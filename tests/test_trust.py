"""Code that a file names runs only where a person has typed its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from little import picture_set, picture_splits
from torch import nn

import mmard
from mmard.cli import answer
from mmard.errors import Refused
from mmard.files import load_tensors, save_tensors
from mmard.trust import VARIABLE, refuse_untrusted, trust_typed

calls: list[str] = []


def marked(num_classes: int = 3) -> nn.Module:
    """A network that tells that somebody has called it."""
    calls.append("called")
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


@pytest.fixture(autouse=True)
def _nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    calls.clear()


NAME = "test_trust:marked"
QUICK = {"epochs": 1, "batch_size": 16, "steps": 1, "val_attack": "fgsm", "budget": 0.1}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run as somebody else may hand it over: its settings and its weights name code."""
    mmard.train("cnn-4", data=picture_splits(), out=tmp_path / "r", **QUICK)  # type: ignore[arg-type]
    for which in ("best", "last"):
        tensors, facts = load_tensors(tmp_path / "r" / f"{which}.safetensors")
        save_tensors(tmp_path / "r" / f"{which}.safetensors", tensors, {**facts, "network": NAME})
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    (tmp_path / "r" / "config.json").write_text(json.dumps({**config, "network": NAME, "data": "digits"}))
    return tmp_path / "r"


def test_no_file_decides_which_code_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"got {NAME}, code that a file names; to run that code, say --trust-code {NAME}"
    for spec in (run, run / "best.safetensors"):
        with pytest.raises(Refused, match=words):
            mmard.evaluate(spec, picture_set(9), "fgsm", budget=0.1)
        with pytest.raises(Refused, match=words):
            mmard.distill("cnn-4", str(spec), data=picture_splits(), out=run.parent / "s", **QUICK)  # type: ignore[arg-type]
    with pytest.raises(Refused, match=words):
        mmard.train("cnn-4", data=picture_splits(), out=run, resume=True)
    for line in (
        ["evaluate", str(run), "--attack", "fgsm"],
        ["train", "--config", str(run), "--out", str(run.parent / "n")],
    ):
        assert answer(line) == 2
        assert words.split(";")[0] in capsys.readouterr().err
    assert calls == []


def test_a_typed_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ([NAME], [f"--model={NAME}"], ["--teacher", f"T_nat={NAME}"], ["--teacher", f"runs/a,{NAME}"]):
        with pytest.raises(Refused):
            refuse_untrusted(NAME, "here")
        trust_typed(line)
        refuse_untrusted(NAME, "here")
        with pytest.raises(Refused):
            refuse_untrusted("os:abort", "here")
        monkeypatch.setenv(VARIABLE, "")
    done = mmard.train(NAME, data=picture_splits(), out=tmp_path / "r", **QUICK)  # type: ignore[arg-type]
    assert calls
    assert mmard.evaluate(done.run.path, picture_set(9), "fgsm", budget=0.1)[0].n == 9


def test_the_flag_lets_a_name_in(run: Path) -> None:
    for which in ("best", "last"):
        file = run / f"{which}.safetensors"
        _, facts = load_tensors(file)
        save_tensors(file, marked().state_dict(), {**facts, "normalised": False})
    calls.clear()
    assert answer(["--trust-code", NAME, "show", str(run)]) == 0
    assert mmard.evaluate(run, picture_set(9), "fgsm", budget=0.1)[0].n == 9
    assert calls == ["called"]


def test_names_of_ours_and_paths_are_no_code() -> None:
    for name in (
        "cnn-4",
        "robustbench:Chen2021LTD_WRN34_10",
        "given:Net",
        "runs/s",
        "C:\\runs",
        "a:b:c",
        "https://x.y/z",
    ):
        refuse_untrusted(name, "here")
