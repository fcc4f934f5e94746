"""The command line as it is typed: what is printed, what is written, and how it ends."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from little import short
from typed import SMALL, Typed

from mmard.attacks import Attack, AutoAttack, named
from mmard.balls import Budget
from mmard.evaluation.score import Score
from mmard.models import build
from mmard.run import Run


def test_train_distill_evaluate_show(capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, "train", *SMALL, "--method", "trades", "--model", "cnn-8", "--epochs", "6", "--out", "t")
    assert (done.status, done.err) == (0, "")
    assert "trades: cnn-8 with 15,554 weights" in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 6
    assert all("under PGD-2 at linf 0.15" in line for line in lines), "a robust accuracy without attack and budget"
    assert "mmard evaluate t --attack pgd-20,cw-30" in done.out
    next_command = next(line for line in done.out.splitlines() if line.startswith("  mmard distill"))

    # The command that was printed works as it stands; what is added only makes it short.
    typed = [*next_command.split()[1:], *SMALL, "--epochs", "1", "--out", "s"]
    assert Typed(capsys, *typed).status == 0
    done = Typed(capsys, "evaluate", "s", "--attack", "pgd-2,cw-2", "--first", "100")
    assert (done.status, done.err) == (0, "")
    rows = [line for line in done.out.splitlines() if "linf 0.15" in line]
    assert len(rows) == 3, "two attacks and their worst case, each with its budget"
    assert "(CE, step 0.0375, uniform start, 1 restart)" in done.out
    assert "AutoAttack" not in done.out, "only the standard set is told from AutoAttack"
    done = Typed(capsys, "show", "s")
    assert (done.status, done.err) == (0, "")
    for told in ("finished: 1 epoch", "rslad+mmard", "cnn-4", "best epoch 1", "PGD-2", "CW-PGD-2", "mmard evaluate s"):
        assert told in done.out, told
    assert re.search(r"limit_train +128 +usually not set", done.out)


def test_the_log_of_a_training_is_plain_whole_lines(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["COLUMNS"] = "40"
    done = Typed(capsys, "distill", *SMALL, "--teacher", "t", "--student", "cnn-4", "--epochs", "2", "--out", "n")
    assert done.status == 0
    assert len([line for line in done.out.splitlines() if re.match(r"epoch [12]/2: lr .* s\)?.*\)$", line)]) == 2


def test_quiet_prints_the_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, "train", *SMALL, "--model", "cnn-1", "--epochs", "1", "--quiet")
    assert (done.status, done.err) == (0, "")
    (folder,) = done.out.split()
    assert re.fullmatch(r"runs/\d{8}-pgd_at-cnn-1-0", folder)
    again = Typed(capsys, "train", *SMALL, "--model", "cnn-1", "--epochs", "1", "-q")
    assert again.out.strip() == f"{folder}-2", "a default folder is never refused"


def test_records_are_complete(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, "evaluate", "s", "--attack", "fgsm,pgd-2@0.01", "--first", "60", "--which", "last", "--json")
    printed = json.loads(done.out)
    written = [json.loads(file.read_text()) for file in sorted(Path("s/scores").glob("*.json"))]
    assert sorted(printed["scores"], key=str) == sorted(written, key=str)
    assert [f["kind"] for f in printed["findings"]] == ["checks"]
    assert printed["findings"] == [json.loads(file.read_text()) for file in Path("s/findings").glob("*.json")]
    assert {r["attack"] for r in written} == {"clean", "fgsm", "pgd-2@0.01", "worst_of_fgsm,pgd-2@0.01"}
    for record in written:
        assert set(Score.__dataclass_fields__) | {"accuracy", "interval", "environment"} == set(record)
        assert (record["n"], record["split"], record["which"]) == (60, "test", "last")
        assert "the first 60 of digits" in record["images"]
        assert record["environment"]["versions"]["torch"] == torch.__version__
    masks = {file.stem: np.load(file) for file in Path("s/scores").glob("*.npy")}
    for file in Path("s/scores").glob("*.json"):
        assert masks[file.stem].dtype == bool
        assert masks[file.stem].sum() == json.loads(file.read_text())["correct"]


def test_an_evaluation_may_ask_for_another_budget_and_split(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in (("--eps", "8/255"), ("--split", "val"), ("--norm", "l2"), ("--seed", "3")):
        assert Typed(capsys, "evaluate", "s", "--attack", "pgd-1", "--first", "20", *extra).status == 0
    records = Run.open("s").score_records()
    assert {(r["norm"], r["eps"]) for r in records if r["eps"]} == {("linf", 8 / 255), ("linf", 0.15), ("l2", 0.15)}
    assert {r["split"] for r in records} == {"test", "val"}
    done = Typed(capsys, "show", "s")
    assert "validation images (clean, pgd-1) chose the best weights" in " ".join(done.out.split())


def test_a_limit_on_training_images_binds_no_other_split(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A student of 10,000 images may be measured on a folder that has fewer."""
    config = json.loads((runs / "s" / "config.json").read_text())
    (runs / "s" / "config.json").write_text(json.dumps({**config, "limit_train": 10**6}))
    measured = ("evaluate", "s", "--attack", "pgd-1", "--first", "20", "--split")
    assert Typed(capsys, *measured, "test").status == 0
    refused = Typed(capsys, *measured, "train")
    assert refused.status == 2
    assert "limit_train" in refused.err


def test_a_file_of_weights_is_evaluated_without_its_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = ("--data", "digits", "--eps", "0.15", "--attack", "pgd-1", "--first", "40", "--json")
    of_file = json.loads(Typed(capsys, "evaluate", "s/best.safetensors", *ours).out)
    of_run = json.loads(Typed(capsys, "evaluate", "s", *ours[4:]).out)
    assert [r["correct"] for r in of_file["scores"]] == [r["correct"] for r in of_run["scores"]]
    assert of_file["scores"][0]["which"] == "best.safetensors"
    torch.save({"state_dict": build("cnn-4", num_classes=10, image_shape=(1, 8, 8)).state_dict()}, "their.pt")
    assert Typed(capsys, "evaluate", "cnn-4", "--weights", "their.pt", *ours).status == 0
    done = Typed(capsys, "evaluate", "s/best.safetensors", "--data", "digits")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "expected --eps" in done.err


def test_the_standard_set_says_what_it_is_not(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, "evaluate", "s", "--first", "10")
    assert "PGD-20 (CE" in " ".join(done.out.split())
    assert "not AutoAttack" in done.out


def test_autoattack_beside_other_attacks(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def less(spec: str, budget: Budget, num_classes: int) -> Attack | AutoAttack:
        whole = named(spec, budget, num_classes)
        few = short(whole, steps=3, queries=5, targets=2)
        return replace(few, label="AutoAttack (made short)") if isinstance(few, AutoAttack) else few

    monkeypatch.setattr("mmard.attacks.named", less)
    typed = ("evaluate", "s", "--attack", "pgd-2,aa,square", "--first", "60", "--eps", "0.05")
    done = Typed(capsys, *typed)
    assert (done.status, done.err) == (0, "")
    records = {r["attack"]: r for r in Run.open("s").score_records()}
    parts = [f"aa.{name}" for name in ("apgd-ce", "apgd-t", "fab-t", "square")]
    assert set(records) == {"clean", "pgd-2", *parts, "aa", "square", "worst_of_pgd-2,aa,square"}
    rows = [line for line in done.out.splitlines() if "linf 0.05" in line]
    told = [
        "PGD-2",
        *["right after"] * 4,
        "AutoAttack (made short)",
        "Square (margin, 5 queries",
        "right under each",
    ]
    assert [row.strip().startswith(words) for row, words in zip(rows, told, strict=True)] == [True] * 8, done.out
    for row, name in zip(rows[1:6], (*parts, "aa"), strict=True):
        assert f"{100 * records[name]['accuracy']:.1f}%" in row
    assert "not AutoAttack" not in done.out
    kept = {p: p.stat().st_mtime_ns for p in Path("s/scores/aa").rglob("*")}
    assert {p.name.split("-linf")[0] for p in Path("s/scores/aa").iterdir()} == {"aa", "each", "square"}
    assert Typed(capsys, *typed).status == 0
    assert {p: p.stat().st_mtime_ns for p in Path("s/scores/aa").rglob("*")} == kept, "verdicts were made again"
    assert "AutoAttack (made short)" in Typed(capsys, "show", "s").out


def test_a_run_made_of_objects_is_shown_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mmard

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    images = mmard.load("digits", limit_train=128)
    few = {"epochs": 1, "steps": 1, "val_attack": "pgd-1", "batch_size": 64}
    mmard.train(net, data=images, method=mmard.pgd_at(), budget=0.1, out="n", **few)
    done = Typed(capsys, "show", "n")
    assert done.status == 0
    assert not re.findall("^  (mmard .*)$", done.out, re.MULTILINE), "show leads to itself"
    done = Typed(capsys, "evaluate", "n")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "expected --data, got a run on data that was handed over in Python" in done.err
    state = Run.open("n").load_state()
    state[1]["position"]["finished"] = False
    Run.open("n").save_state(*state)
    done = Typed(capsys, "train", "--resume", "n")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "this run was made in Python" in done.err
