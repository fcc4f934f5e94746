"""What `mmard show` says of a run: its own figures alone, and every text as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import invented_runs
import pytest
import torch
from typed import Typed

from mmard.files import read_json, write_json
from mmard.run import Run


def made(folder: Path, **how: Any) -> Path:
    return invented_runs.run(folder, teacher_which="best", **how)


def test_text_in_square_brackets_is_shown_and_nothing_dies_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path / "a[red]run[/red]", data="[bold]set[/bold] [/]", data_dir="[/x]")
    (file,) = (path / "scores").glob("best-aa.json")
    write_json(file, read_json(file) | {"label": "[link=x]Auto[/link] [/]\x1b[31m", "images": "[b]\x1b]0;pictures"})
    done = Typed(capsys, "show", str(path))
    assert done.status == 0, done.err
    for text in ("[bold]set[/bold] [/]", "[/x]", "[link=x]Auto[/link] [/]", "a[red]run[/red]", "[b]"):
        assert text in done.out
    assert "\x1b" not in done.out


def test_figures_of_weights_that_were_trained_on_are_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path / "a", suspicious=("more-steps",))
    before = Typed(capsys, "show", str(path)).out
    assert "AutoAttack" in before
    assert "suspicious" in before
    Run(path).save_weights("best", {"w": torch.ones(2)}, {})
    done = Typed(capsys, "show", str(path))
    assert done.status == 0, done.err
    assert "AutoAttack" not in done.out
    assert "suspicious" not in done.out
    assert "4 figures of weights that the run has outgrown" in done.out
    held = json.loads(Typed(capsys, "show", str(path), "--json").out)
    assert held["scores"] == held["findings"] == []


@pytest.mark.parametrize("command", ["show", "compare", "report"])
def test_a_record_that_cannot_be_true_is_refused_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path / "a", kinds=("checks",))
    file = path / "scores" / "best-aa.json"
    whole = read_json(file)
    for change in ({"correct": whole["correct"] + 1, "accuracy": None}, {"n": "many"}):
        write_json(file, whole | change)
        done = Typed(capsys, command, str(path))
        assert done.status == 2
        assert str(file) in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("left", [0, 100, -1])
def test_cut_weights_are_named_and_not_shared(runs: Path, capsys: pytest.CaptureFixture[str], left: int) -> None:
    file = runs / "s" / "best.safetensors"
    assert "is damaged" not in Typed(capsys, "show", "s").out
    file.write_bytes(file.read_bytes()[:left])
    shown = Typed(capsys, "show", "s")
    assert shown.status == 0, shown.err
    assert "best.safetensors is damaged" in " ".join(shown.out.split())
    for line in (("push", "s", "ada/x", "--to", "new"), ("evaluate", "s", "--first", "5")):
        done = Typed(capsys, *line)
        assert (done.status, "expected a whole safetensors file" in done.err) == (2, True), done.err
    assert not (runs / "new").exists()


def test_a_student_is_proposed_that_the_images_suffice_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def proposed(**other: object) -> str:
        (runs / "t" / "config.json").write_text(json.dumps({**config, **other}))
        return re.findall(r"mmard distill --teacher t --student (\S+)", Typed(capsys, "show", "t").out)[0]

    config = json.loads((runs / "t" / "config.json").read_text())
    assert proposed() == "cnn-4"
    assert proposed(network="wide_resnet-16-4") == "cnn-16"
    assert proposed(network="wide_resnet-16-4", batch_size=5000) == "resnet18"
