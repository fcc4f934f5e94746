"""`mmard evaluate --also` and `mmard.examine`: what is printed, what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmard
from mmard.cli import answer
from mmard.evaluation.findings import ALSO
from mmard.run import Run

FEW = ("--data", "digits", "--limit-train", "128", "--steps", "1", "--val-attack", "pgd-1", "--threads", "1")
KINDS = {"checks", "classes", "margins", "calibration", "examples", "boundary", "curve"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher in `t` and a student in `s`, hardly trained; not to be written to."""
    folder, here = tmp_path_factory.mktemp("home"), Path.cwd()
    os.chdir(folder)
    try:
        teacher = ("--method", "pgd_at", "--model", "cnn-8", "--epochs", "8", "--lr", "0.05", "--limit-train", "512")
        assert answer(["train", *FEW, *teacher, "--out", "t", "--quiet"]) == 0
        student = ("--method", "rslad", "--teacher", "t", "--student", "cnn-4", "--epochs", "2")
        assert answer(["distill", *FEW, *student, "--out", "s", "--quiet"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test types its commands beside copies of its own, 140 columns wide and without colours."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("mmard.evaluation.boundary.STEPS", 3)
    monkeypatch.setattr("mmard.evaluation.checks.attacks.QUERIES", 20)
    for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = answer(list(arguments))
    return status, *capsys.readouterr()


def test_everything_is_printed_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = typed(capsys, "evaluate", "s", "--attack", "pgd-2,cw-2", "--first", "30", "--also", "all")
    assert (status, err) == (0, "")
    findings = Run.open("s").findings()
    assert {f["kind"] for f in findings} == KINDS
    assert sorted(f["split"] for f in findings if f["kind"] == "boundary") == ["test", "train"]
    own = next(f for f in findings if f["split"] == "train")
    assert own["attack"] == "training"
    assert own["label"].startswith("the attack of rslad: PGD-1 on KL(T(x) || S(x')) (step 0.0375")
    assert (own["n"], own["norm"], own["eps"]) == (30, "linf", 0.15)
    assert own["attacked"]["student"]["mean_margin"] != own["clean"]["student"]["mean_margin"]
    for told in (
        "docs/checks.md",
        "huge radius",
        "By class",
        "CW-PGD-2 %",
        "worst class, attacked %",
        "Means over images",
        "Test images, attacked",
        "PGD-2 (CE, step 0.0375, uniform start, 1 restart) at linf 0.15; ",
        "Training images, under the attack that trained",
        "Attacks: the attack of rslad",
        "Teacher: t (best, epoch",
        "Accuracy against the radius. PGD-2 (CE, step eps/4, uniform start, 1 restart)",
        "Accuracy against steps. PGD (CE, step 0.0375, uniform start, 1 restart) at linf 0.15",
        "broken, ",
        "Records are in s/scores and s/findings.",
    ):
        assert told in out, told
    assert "left out" not in out
    classes = next(f for f in findings if f["kind"] == "classes" and f["attack"] == "pgd-2")
    scores = {r["attack"]: r for r in Run.open("s").score_records()}
    assert sum(classes["attacked"]) == scores["pgd-2"]["correct"]
    assert re.search(rf"^  0 .* {classes['count'][0]} ", out, re.MULTILINE)
    example = next(f for f in findings if f["kind"] == "examples")
    arrays = Run.open("s").finding_arrays(example["slug"])
    assert arrays["x"].shape == arrays["x_adv"].shape == (len(example["items"]), 1, 8, 8)
    assert {item["teacher_adv_pred"] for item in example["items"]} <= set(range(10))
    # The same on another day replaces what is there and adds nothing.
    names = {p.name for p in Path("s/findings").iterdir()}
    assert typed(capsys, "evaluate", "s", "--attack", "pgd-2,cw-2", "--first", "30", "--also", "all")[0] == 0
    assert {p.name for p in Path("s/findings").iterdir()} == names


def test_without_also_the_checks_are_named_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = typed(capsys, "evaluate", "s", "--attack", "pgd-2", "--first", "30")
    assert re.search(r"^  \d suspicion checks? passed: randomised, ", out, re.MULTILINE)
    assert re.search(r"^  Not made: .*huge-radius.*--also checks", out, re.MULTILINE)
    assert "needs attacks of its own" not in out
    assert {f["kind"] for f in Run.open("s").findings()} == {"checks"}


def test_a_suspicious_network_is_told_in_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("dice.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Dice(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        z = super().forward(x.flatten(1))\n        return z + torch.randn_like(z)\n\n\n"
        "def dice(num_classes, image_shape):\n    return Dice(64, 10)\n"
    )
    monkeypatch.syspath_prepend(".")
    typed_in = ("evaluate", "dice:dice", "--data", "digits", "--eps", "0.1", "--attack", "pgd-1", "--first", "30")
    status, out, err = typed(capsys, *typed_in)
    assert (status, err) == (0, "")
    assert re.search(r"^  Suspicious: randomised\.$", out, re.MULTILINE)
    assert re.search(r"^  randomised +suspicious +", out, re.MULTILINE)


def test_json_has_figures_and_findings(capsys: pytest.CaptureFixture[str]) -> None:
    typed_in = ("evaluate", "s", "--attack", "pgd-2", "--first", "30", "--also", "classes,steps", "--json")
    status, out, err = typed(capsys, *typed_in)
    assert (status, err) == (0, "")
    printed = json.loads(out)
    assert [f["kind"] for f in printed["findings"]] == ["checks", "classes", "curve"]
    held = {f["slug"]: f for f in Run.open("s").findings()}
    assert sorted(({k: v for k, v in f.items() if k != "slug"} for f in held.values()), key=str) == sorted(
        printed["findings"], key=str
    )
    for record in (*printed["scores"], *printed["findings"]):
        assert record["environment"]["command"]
        assert record["environment"]["cpu"]


@pytest.mark.parametrize(
    ("also", "more", "says"),
    [
        ("epss", (), "also 'epss': expected one of .*; did you mean 'eps'"),
        ("margins", ("--attack", "square"), "also margins: expected an attack that hands out its examples"),
        ("steps", ("--attack", "fgsm"), "also steps: expected an attack of several steps, got fgsm"),
        ("boundary", ("--teacher", "no/such"), "teacher no/such: expected a run folder or a file, got no such path"),
        ("eps", ("--from", "t"), "--also: expected attacks on the network itself, got --from"),
    ],
)
def test_what_cannot_be_found_is_refused(
    also: str, more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = typed(capsys, "evaluate", "s", "--first", "10", "--also", also, *more)
    assert (status, out) == (2, "")
    assert re.search(says, err), err
    assert re.fullmatch(r"mmard: [^\n]+\n", err)
    assert not Path("s/findings").exists()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("runs/absent", "network runs/absent: expected a run folder or a file, got no such path"),
        ("absent.pt", "network absent.pt: expected a run folder or a file, got no such path"),
        ("cnn16", "expected a run folder, a file, or one of .*, got nothing of that name; did you mean 'cnn-16'"),
        ("Engstrom2019Robustness", "got the bare name of a teacher; write robustbench:"),
        ("cnn-16", "evaluate cnn-16: expected --data, since no run says it"),
    ],
)
def test_a_target_that_is_nowhere_is_refused_before_data_are_asked_for(
    target: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = typed(capsys, "evaluate", target)
    assert (status, out) == (2, "")
    assert re.search(says, err), err


def test_a_network_without_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = typed(capsys, "evaluate", "t", "--first", "10", "--attack", "pgd-1", "--also", "boundary")
    assert status == 2
    assert "also boundary: expected a teacher, got a network without one; name one with --teacher" in err
    status, out, _ = typed(capsys, "evaluate", "t", "--first", "10", "--attack", "pgd-1", "--also", "all")
    assert status == 0
    assert "left out: boundary: it needs a teacher" in out
    boundary = ("--also", "boundary", "--teacher", "s")
    status, out, _ = typed(capsys, "evaluate", "t", "--first", "10", "--attack", "pgd-1", *boundary)
    assert status == 0
    assert "Teacher: s (best, epoch" in out


def test_a_teacher_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("t")
    few = ("--first", "10", "--attack", "pgd-1")
    status, _, err = typed(capsys, "evaluate", "s", *few, "--also", "boundary")
    assert (status, err.count("\n")) == (2, 1)
    status, out, _ = typed(capsys, "evaluate", "s", *few, "--also", "all")
    assert status == 0
    assert "left out: the teacher: " in out
    (example,) = (f for f in Run.open("s").findings() if f["kind"] == "examples")
    assert {item["teacher_clean_pred"] for item in example["items"]} <= {None}


def test_ctrl_c_keeps_what_is_finished(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmard.evaluation.examine.over_eps", stop)
    status, out, err = typed(
        capsys, "evaluate", "s", "--attack", "pgd-2", "--first", "10", "--also", "classes,eps,steps"
    )
    assert (status, out) == (130, "")
    assert err == "mmard: interrupted; 2 figures and 2 findings were finished and are in s\n"
    assert len(Run.open("s").score_records()) == 2
    assert {f["kind"] for f in Run.open("s").findings()} == {"checks", "classes"}
    file = ("evaluate", "s/best.safetensors", "--data", "digits", "--eps", "0.1", "--attack", "pgd-1", "--first", "10")
    status, _, err = typed(capsys, *file, "--also", "eps")
    assert (status, err) == (
        130, "mmard: interrupted after 2 figures and 1 finding, which are lost; --out FOLDER keeps them\n"
    )  # fmt: skip
    assert typed(capsys, *file, "--also", "eps", "--out", "kept")[0] == 130
    assert len(Run.open("kept").score_records()) == 2


def test_only_the_split_that_is_asked_for_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = mmard.data.into_memory

    def noting(part: Any, order: Any) -> Any:
        read.append(len(order))
        return real(part, order)

    monkeypatch.setattr("mmard.data.into_memory", noting)
    assert typed(capsys, "evaluate", "s", "--attack", "pgd-1", "--first", "10")[0] == 0
    assert read == [500]


# Python ---------------------------------------------------------------------------------------------------------------
def test_python_finds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "evaluate", "s", "--attack", "pgd-2", "--first", "30", "--also", "all")[0] == 0
    typed_in = {f["slug"]: f for f in Run.open("s").findings()}
    images = mmard.load("digits").test
    images = images.take(slice(0, 30), f"the first 30 of {images.origin}")
    found = mmard.examine("s", images, "pgd-2", budget=0.15, split="test", out="mine")
    assert {f.slug for f in found.findings} == set(typed_in)
    for finding in found.findings:
        mine, theirs = finding.record(), typed_in[finding.slug]
        assert {k: v for k, v in mine.items() if k not in ("seconds",)}.items() <= theirs.items()
    assert {r["slug"] for r in Run(Path("mine")).findings()} == set(typed_in)
    assert [s.attack for s in found.scores] == ["clean", "pgd-2"]
    assert found.scores[1].correct == mmard.evaluate("s", images, "pgd-2", budget=0.15)[1].correct
    assert found.left_out == ()


def test_python_takes_modules(home: Path) -> None:
    images = mmard.load("digits").test.take(slice(0, 20))
    student, teacher = (mmard.build("cnn-2", num_classes=10, image_shape=(1, 8, 8), seed=seed) for seed in (0, 1))
    found = mmard.examine(student, images, ["pgd-1"], budget="8/255", also=["boundary", "examples"], teacher=teacher)
    assert [f.kind for f in found.findings] == ["checks", "examples", "boundary"]
    assert found.findings[2].body["teacher"] == "given:Sequential"
    alone = mmard.examine(student, images, ["pgd-2"], budget="8/255")
    assert found.scores[0].correct == alone.scores[0].correct
    assert [text.partition(":")[0] for text in alone.left_out] == ["boundary"]
    assert len(ALSO) == len({f.kind for f in alone.findings} | {"boundary"}) + 1, "two kinds of curve"


def test_one_split_is_that_of_all() -> None:
    """The images of `load`, their labels and the line on where they come from."""
    for more in ({}, {"limit_train": 100, "split_seed": 3, "val_share": 0.2}):
        splits = mmard.load("digits", **more)
        for name in ("train", "val", "test"):
            alone, beside = mmard.data.load_split("digits", name, **more), getattr(splits, name)
            assert (alone.fingerprint(), alone.origin, alone.classes) == (
                beside.fingerprint(), beside.origin, beside.classes
            )  # fmt: skip
            assert np.array_equal(alone.x, beside.x)
    with pytest.raises(mmard.Refused, match=r"split 'tset': .*; did you mean 'test'"):
        mmard.data.load_split("digits", "tset")
