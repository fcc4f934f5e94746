"""The command line as it is typed: what is printed, what is written, and how it ends."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from mmard.balls import Budget
from mmard.cli import answer
from mmard.cli.catalogue import argument_sentences
from mmard.cli.live import Lines, Moving, Watch
from mmard.cli.output import THEME
from mmard.config import DistillSettings, TrainSettings
from mmard.evaluation.ensemble import Ensemble, named, shortened
from mmard.evaluation.score import Score
from mmard.methods import METHODS, PLUGINS
from mmard.models import build
from mmard.networks import network_facts
from mmard.run import Run
from mmard.weights import save_tensors

SRC = Path(__file__).resolve().parents[1] / "src"
SMALL = ("--data", "digits", "--limit-train", "128", "--steps", "2", "--val-attack", "pgd-2", "--threads", "1")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test types its commands in a folder of its own, 140 columns wide and without colours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher in `t` and a student distilled from it in `s`; not to be written to."""
    folder = tmp_path_factory.mktemp("home")
    here = Path.cwd()
    os.chdir(folder)
    try:
        teacher = ("--method", "pgd_at", "--model", "cnn-8", "--epochs", "8", "--lr", "0.05", "--limit-train", "512")
        assert answer(["train", *SMALL, *teacher, "--out", "t", "--quiet"]) == 0
        student = ("--teacher", "t", "--student", "cnn-4", "--epochs", "2")
        assert answer(["distill", *SMALL, *student, "--out", "s", "--quiet"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def runs(home: Path, tmp_path: Path) -> Path:
    """Copies of the teacher and the student in the folder of the test."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return tmp_path


class Typed:
    """What a command came to."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.status = answer(list(arguments))
        self.out, self.err = capsys.readouterr()
        assert not CONTROL.search(self.out + self.err), "control characters where there is no terminal"


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# the main job -------------------------------------------------------------------------------------
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
    def less(spec: str, budget: Budget, num_classes: int) -> Ensemble:
        whole = named(spec, budget, num_classes)
        few = shortened(whole, steps=3, queries=5, targets=2)
        return Ensemble(whole.spec, few.label if spec == "square" else "AutoAttack (made short)", few.attacks)

    monkeypatch.setattr("mmard.evaluation.suite.named", less)
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
        "shortened AutoAttack: Square",
        "right under each",
    ]
    assert [row.startswith(words) for row, words in zip(rows, told, strict=True)] == [True] * 8, done.out
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
    assert re.findall("^  (mmard .*)$", done.out, re.MULTILINE) == ["mmard show n"]
    done = Typed(capsys, "evaluate", "n")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "expected --data, got a run on data that was handed over in Python" in done.err
    state = Run.open("n").load_state()
    state[1]["position"]["finished"] = False
    Run.open("n").save_state(*state)
    done = Typed(capsys, "train", "--resume", "n")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "this run was made in Python" in done.err


# repeat and resume --------------------------------------------------------------------------------
def test_a_run_is_repeated_from_its_config_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Typed(capsys, "distill", "--config", "s/config.json", "--out", "again").status == 0
    assert Path("again/last.safetensors").read_bytes() == Path("s/last.safetensors").read_bytes()
    assert Path("again/best.safetensors").read_bytes() == Path("s/best.safetensors").read_bytes()
    assert json.loads(Path("again/config.json").read_text()) == json.loads(Path("s/config.json").read_text())


def test_flags_go_over_a_file_and_the_file_over_the_preset(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text(
        'method = "rslad+mmard"\nstudent = "cnn-1"\nteacher = "t"\nlimit_train = 128\nsteps = 1\nepochs = 3\n'
        'lr = 0.03\nval_attack = "pgd-1"\nmilestones = [0.5]\n[params]\n"mmard.guide" = 0.7\n"mmard.beta" = 2\n'
    )
    flags = ("--epochs", "1", "--param", "mmard.beta=0", "--param", "rslad.alpha=0.25", "--nesterov", "--eps", "4/255")
    assert Typed(capsys, "distill", "--config", "c.toml", *flags, "--out", "n").status == 0
    config = Run.open("n").config
    assert (config["epochs"], config["lr"], config["nesterov"], config["eps"]) == (1, 0.03, True, 4 / 255)
    assert config["milestones"] == [0.5]
    assert config["params"] == {"mmard.guide": 0.7, "mmard.beta": 0, "rslad.alpha": 0.25}
    assert config["batch_size"] == 64, "the preset's, for digits"


def test_resume_takes_no_other_setting(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in (("--epochs", "3"), ("--out", "n"), ("--config", "s/config.json"), ("--param", "mmard.guide=1")):
        done = Typed(capsys, "distill", "--resume", "s", *extra)
        assert done.status == 2
        assert done.err == (
            f"mmard: --resume: expected no other setting, got {extra[0]}; "
            "a run resumes with the settings it began with\n"
        )


def test_resume_works_with_the_command_that_began(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, "train", "--resume", "s")
    assert done.status == 2
    assert "go on with: mmard distill --resume s" in done.err
    done = Typed(capsys, "distill", "--resume", "s")
    assert done.status == 0
    assert "s is finished: 2 epochs" in done.out


LONG = (*SMALL, "--model", "cnn-2", "--epochs", "20", "--save-seconds", "0.05", "--average", "ema")


@pytest.fixture
def typed_elsewhere() -> Iterator[Any]:
    """Start a command in a process of its own; whatever is left of it is ended."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "mmard", *arguments]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(what: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(what):
            return
    raise AssertionError(f"it ended before it printed {what!r}: {process.stderr.read() if process.stderr else ''}")


def test_killed_and_interrupted_runs_end_in_the_same_bits(
    typed_elsewhere: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Typed(capsys, "train", *LONG, "--out", "whole").status == 0

    # kill -9 somewhere behind the third epoch: whatever the process was doing then, half a save included.
    process = typed_elsewhere("train", *LONG, "--out", "broken")
    wait_for("epoch 3/20", process)
    time.sleep(torch.rand(()).item() / 5)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert "finished" not in Typed(capsys, "show", "broken").out

    # Ctrl-C: the step is finished, the run saved, and the user told how to go on.
    process = typed_elsewhere("train", "--resume", "broken")
    wait_for("epoch ", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err == "mmard: saved; go on with: mmard train --resume broken\n"
    shown = Typed(capsys, "show", "broken").out
    assert "resumable: " in shown
    assert "mmard train --resume broken" in shown

    assert Typed(capsys, "train", "--resume", "broken").status == 0
    assert Path("broken/last.safetensors").read_bytes() == Path("whole/last.safetensors").read_bytes()
    assert Path("broken/best.safetensors").read_bytes() == Path("whole/best.safetensors").read_bytes()
    told = [{k: v for k, v in e.items() if k != "seconds"} for e in Run.open("broken").log() if e["kind"] == "epoch"]
    assert told == [
        {k: v for k, v in e.items() if k != "seconds"} for e in Run.open("whole").log() if e["kind"] == "epoch"
    ]
    assert len(Run.open("broken").path.joinpath("environment.json").read_text().split('"written"')) == 4


def test_a_closed_pipe_ends_quietly(home: Path) -> None:
    command = f"{sys.executable} -m mmard show {home / 's'} | head -n 1; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str(home / "s")
    assert done.stderr == ""
    assert done.returncode in (0, 1)


# dry run ------------------------------------------------------------------------------------------
def test_a_dry_run_leaves_nothing_behind(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmard.plan.SECONDS", 0.0)
    before = everything(runs)
    done = Typed(
        capsys, "distill", *SMALL, "--teacher", "t", "--student", "cnn-4", "--epochs", "7", "--dry-run", "--out", "n"
    )
    assert (done.status, done.err) == (0, "")
    assert everything(runs) == before
    assert re.search(r"student +cnn-4 +4,038 +4 +2 +2 +2\n", done.out), "12 forwards would be of 10 steps, these are 2"
    assert re.search(r"teacher +t \(best, epoch \d\) +15,554 +2 +0 +1 +0\n", done.out), "differentiated once"
    for told in ("images/s", "to go for 7 epochs", "<grad CE(T(x), argmax T(x)), x' - x>", "Nothing was written"):
        assert told in done.out, told
    for row in (r"epochs +7 +said", r"eps +0.15 +preset", r"seed +0 +default", r"mmard.guide +1 +default"):
        assert re.search(row, done.out), row
    assert set(re.findall(r"^  (\w+) +\S.* (?:said|preset|default)$", done.out, re.MULTILINE)) >= (
        set(DistillSettings.model_fields) - {"params"}
    )


def test_the_plan_of_a_run_that_is_half_done(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmard.plan.SECONDS", 0.0)
    state = Run.open("s").load_state()
    state[1]["position"] |= {"finished": False, "epoch": 1, "step": 2, "epoch_step": 0}
    Run.open("s").save_state(*state)
    before = everything(runs)
    done = Typed(capsys, "distill", "--resume", "s", "--dry-run")
    assert "to go for 1 epoch (1 of 2 are done)" in done.out
    assert everything(runs) == before


# bad input ----------------------------------------------------------------------------------------
def weights_of(path: str, name: str = "cnn-4", classes: int = 10, shape: tuple[int, ...] = (1, 8, 8)) -> None:
    """A file as `distill` reads it, of an untrained network."""
    net = build(name, num_classes=classes, image_shape=shape, seed=0)
    facts = {"network": name, "normalised": False, "num_classes": classes, "image_shape": list(shape)}
    save_tensors(Path(path), net.state_dict(), facts)


def arrays(x: Any = None, y: Any = None) -> None:
    """A small set of grey images in the file set.npz, wrong where the test says so."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (40, 8, 8), dtype=np.uint8) if x is None else x
    y = np.arange(40) % 4 if y is None else y
    np.savez("set.npz", x_train=x, y_train=y, x_test=x, y_test=y)


class Planted:
    """Would write a file if it were unpickled without restriction."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("planted"), "")


TRAIN = ("train", *SMALL, "--model", "cnn-1", "--epochs", "1", "--out", "n")
DISTILL = ("distill", *SMALL, "--student", "cnn-1", "--epochs", "1", "--out", "n", "--teacher")
MINE = (
    "train",
    "--data",
    "npz",
    "--data-dir",
    "set.npz",
    "--model",
    "cnn-1",
    "--epochs",
    "1",
    "--batch-size",
    "4",
    "--out",
    "n",
)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ((*TRAIN, "--method", "tradse"), "method 'tradse': expected one of .*; did you mean 'trades'\\?"),
        ((*DISTILL, "t", "--method", "rslad+mmrd"), "plug-in 'mmrd': .*; did you mean 'mmard'\\?"),
        ((*DISTILL, "t", "--method", "trades"), "expected one that reads a teacher, got one without; use mmard train"),
        ((*TRAIN, "--method", "rslad"), "got one that reads T; use mmard distill --teacher"),
        ((*TRAIN, "--model", "resnet81"), "network 'resnet81': .*; did you mean 'resnet18'\\?"),
        ((*TRAIN, "--val-attack", "pdg-10"), "attack 'pdg': .*; did you mean 'pgd'\\?"),
        (("evaluate", "s", "--attack", "cv-30"), "attack 'cv': .*aa, aa-rand, .*; did you mean 'cw'\\?"),
        (("evaluate", "s", "--attack", "pgd-2,sqare"), "attack 'sqare': .*; did you mean 'square'\\?"),
        (("evaluate", "s", "--attack", "apgd-dt"), "attack 'apgd-dt': .*apgd-ce, apgd-t, .*; did you mean 'apgd-t'\\?"),
        ((*TRAIN, "--data", "digts"), "data 'digts': .*; did you mean 'digits'\\?"),
        ((*TRAIN, "--data", "cifar10"), "data 'cifar10': .*--data-dir"),
        ((*TRAIN, "--data", "cifar10", "--data-dir", "."), "get them with: mmard fetch cifar10 --data-dir \\."),
        ((*TRAIN, "--preset", "offical"), "preset 'offical': .*; did you mean 'official'\\?"),
        ((*TRAIN, "--schedule", "cosin"), "schedule 'cosin': .*; did you mean 'cosine'\\?"),
        (
            (*DISTILL, "five.safetensors"),
            "expected 10 classes, as the data has, got a network for 5; is it for other data\\?",
        ),
        (
            (*DISTILL, "large.safetensors"),
            "expected images \\(1, 8, 8\\), as the data has, got a network for \\(3, 32, 32\\)",
        ),
        (
            (*DISTILL, "untrained.safetensors"),
            "expected a clean accuracy .*above chance .*; are these its weights, .* in \\[0, 1\\]",
        ),
        ((*DISTILL, "nowhere/at/all"), "teacher nowhere/at/all: expected a run folder or a file, got no such path"),
        (
            (*DISTILL, "torn.safetensors"),
            "torn.safetensors: expected a whole safetensors file, got .*; is it truncated\\?",
        ),
        (
            (*DISTILL, "cnn-4", "--teacher-weights", "planted.pt"),
            "planted.pt: expected a checkpoint that holds tensors alone, got",
        ),
        (
            (*DISTILL, "cnn-4", "--teacher-weights", "page.pt"),
            "got an HTML page.*; download it again",
        ),
        (
            (*DISTILL, "cnn-8", "--teacher-weights", "untrained.safetensors"),
            "of another shape .*; this looks like cnn-4",
        ),
        (
            ("distill", *SMALL, "--out", "n"),
            "expected --teacher with a run folder or a file of weights, got none; train one: mmard",
        ),
        ((*TRAIN, "--eps", "8"), "Budget\\(eps=8\\): expected eps in \\(0, 1\\], got 8; .* did you mean 8/255\\?"),
        ((*TRAIN, "--eps", "eight"), "eps.*expected .*a number or a fraction such as 8/255.*got 'eight'"),
        ((*TRAIN, "--step-size", "80/255"), "expected a step within the diameter .*; are eps and step_size swapped\\?"),
        ((*TRAIN, "--epochs", "ten"), "setting epochs: .*got 'ten'"),
        ((*TRAIN, "--norm", "l3"), "setting norm: .*got 'l3'"),
        ((*TRAIN, "--batch-size", "129"), "batch_size: expected 1 to 128, the images in .*, got 129"),
        ((*TRAIN, "--param", "pgd_at.foo=1"), "parameter 'pgd_at.foo'"),
        ((*TRAIN, "--param", "foo"), "--param: expected NAME=VALUE"),
        ((*TRAIN, "--device", "cuda:99"), "device cuda:99: expected a GPU that PyTorch sees"),
        ((*TRAIN, "--out", "t"), "t: expected a new folder, got one that holds a run; resume it with --resume t"),
        ((*TRAIN, "--out", "full"), "full: expected a new or empty folder, got one with other files"),
        ((*TRAIN, "--config", "typo.toml"), "typo.toml, setting 'epoch': .*; did you mean 'epochs'\\?"),
        ((*TRAIN, "--config", "torn.json"), "torn.json: expected JSON"),
        ((*TRAIN, "--config", "none.toml"), "none.toml: expected a file of settings, got No such file"),
        (
            (*TRAIN, "--config", "s/config.json"),
            "got 'student', one of mmard distill; run it with: mmard distill --config s/config",
        ),
        (("train", "--resume", "full"), "full: expected a run folder, got a folder without config.json"),
        (("show", "nowhere"), "nowhere: expected a run folder, got no such folder"),
        (("methods", "mmard+rslad"), "expected a method first, got the plug-in 'mmard'; write e.g. rslad\\+mmard"),
        (("fetch", "cifar11", "--data-dir", "d"), "'cifar11': .*; did you mean 'cifar10'"),
        (("evaluate", "s", "--split", "tset"), "split 'tset': .*; did you mean 'test'\\?"),
        (("evaluate", "s", "--first", "0"), "--first: expected at least 1, got 0"),
        (("distil", "--teacher", "t"), "command 'distil': .*; did you mean 'distill'\\?"),
        ((*TRAIN, "--epoch", "3"), "train: expected an option that it has, got --epoch; did you mean --epochs\\?"),
        (("evaluate",), "evaluate: missing argument"),
        (("demo", "--seeds", "0"), "--seeds: expected at least 1, got 0"),
    ],
)
def test_bad_input(typed: tuple[str, ...], says: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights_of("five.safetensors", classes=5)
    weights_of("large.safetensors", shape=(3, 32, 32))
    weights_of("untrained.safetensors")
    Path("torn.safetensors").write_bytes(Path("untrained.safetensors").read_bytes()[:-100])
    Path("planted.pt").write_bytes(pickle.dumps(Planted()))
    Path("page.pt").write_text("<!DOCTYPE html><html>Sign in</html>")
    Path("typo.toml").write_text("epoch = 3\n")
    Path("torn.json").write_text('{"epochs": ')
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = everything(runs)
    done = Typed(capsys, *typed)
    assert done.status == 2
    assert done.out == ""
    assert re.fullmatch(r"mmard: [^\n]+\n", done.err), f"not one line: {done.err}"
    assert re.search(says, done.err), done.err
    assert everything(runs) == before, "something was written"


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (
            np.linspace(-1, 2, 40 * 64).reshape(40, 8, 8),
            None,
            "expected floats in \\[0, 1\\], got min -1, max 2; .*not normalised",
        ),
        (np.linspace(0, 255, 40 * 64).reshape(40, 8, 8), None, "got min 0, max 255; divide by 255"),
        (None, np.arange(40) % 4 - 1, "label -1"),
        (None, np.repeat([0, 1, 3, 3], 10), "expected a training image of every class, got none of '2'"),
        (None, np.arange(39) % 4, "expected as many labels as images, 40, got 39"),
    ],
)
def test_bad_images(x: Any, y: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays(x, y)
    before = everything(tmp_path)
    done = Typed(capsys, *MINE)
    assert done.status == 2
    assert re.fullmatch(r"mmard: [^\n]+\n", done.err)
    assert re.search(says, done.err), done.err
    assert everything(tmp_path) == before


def test_good_images_train(capsys: pytest.CaptureFixture[str]) -> None:
    """What the bad ones differ from is accepted."""
    arrays()
    assert Typed(capsys, *MINE).status == 0


def test_no_space_left(capsys: pytest.CaptureFixture[str]) -> None:
    """What was saved stays valid, and the run goes on once there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, hard))
    try:
        done = Typed(capsys, "train", *SMALL, "--model", "cnn-4", "--epochs", "2", "--save-seconds", "0", "--out", "n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.status == 2
    assert re.fullmatch(r"mmard: n/state.safetensors: expected to write this file, got no space left; .*\n", done.err)
    assert Typed(capsys, "show", "n").status == 0
    assert Typed(capsys, "train", "--resume", "n").status == 0
    assert "finished: 2 epochs" in Typed(capsys, "show", "n").out


def test_a_loss_that_diverges(capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, *TRAIN[:-2], "--lr", "1e30", "--epochs", "9", "--out", "n")
    assert done.status == 1
    assert re.fullmatch(
        r"mmard: n, epoch \d, step \d+: expected finite .*; try a smaller --lr or --grad-clip 1\n", done.err
    )


def test_an_error_of_ours_keeps_its_traceback(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("mmard.job.prepare", broken)
    with pytest.raises(RuntimeError, match="ours"):
        answer(list(TRAIN))


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = Typed(capsys, *TRAIN, "--tensorboard")
    assert (done.status, everything(tmp_path)) == (2, set())
    assert 'pip install "mmard[tb]"' in done.err


# tables -------------------------------------------------------------------------------------------
def test_methods_are_all_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = Typed(capsys, "methods").out
    for name in (*METHODS, *PLUGINS):
        assert len(re.findall(rf"^{name} ", out, re.MULTILINE)) == 1, name
    assert re.search(r"^rslad +Zi et al., ICCV 2021 +S +12 +2 +10 +2$", out, re.MULTILINE)
    assert re.search(r"^mmard .* S +0 +0 +0 +0\n +.* T +1 +0 +1 +0$", out, re.MULTILINE)


@pytest.mark.parametrize("name", [*METHODS, *(f"rslad+{plugin}" for plugin in PLUGINS)])
def test_a_method_in_detail(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mmard.methods import parameters

    out = Typed(capsys, "methods", name).out
    for part in name.split("+"):
        make = METHODS.get(part) or PLUGINS[part]
        sentences = argument_sentences(make.__doc__ or "")
        for key in parameters(part):
            assert f"{part}.{key}" in out
            assert sentences.get(key), f"{part} has no sentence for {key}"
            assert " ".join(sentences[key].split()[:3]) in out
    assert "Differences from" in out


def test_models_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"^resnet18 +11,173,962$", Typed(capsys, "models").out, re.MULTILINE)
    out = Typed(capsys, "data").out
    assert "mmard fetch cifar10 --data-dir D" in out
    assert re.search(r"digits .*comes with the package", out)


def test_fetch_says_what_next(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmard.data.fetch.fetch", lambda name, folder, tell: (tell("a file"), folder / name)[1])
    out = Typed(capsys, "fetch", "cifar10", "--data-dir", "my data").out
    assert out.startswith("a file\ncomplete and checked: my data/cifar10\n")
    assert "--data cifar10 --data-dir 'my data'" in out


# help ---------------------------------------------------------------------------------------------
def test_help_is_quick_and_knows_no_torch() -> None:
    code = "import sys, mmard.cli\ncode = mmard.cli.answer(sys.argv[1:])\nprint('torch' in sys.modules, code)"
    for arguments in (("--help",), ("distill", "--help"), ("--version",), ("train", "--nonsense")):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": str(SRC)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout.splitlines()[-1] == f"False {2 if '--nonsense' in arguments else 0}", done.stderr
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize(("command", "kind"), [("train", TrainSettings), ("distill", DistillSettings)])
def test_every_setting_is_in_help_once(command: str, kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = Typed(capsys, command, "--help").out
    whole = " ".join(out.split())
    for name, info in kind.model_fields.items():
        flag = "param" if name == "params" else name.replace("_", "-")
        shown = rf"^  --\[no-\]{flag}( |$)" if info.annotation is bool else rf"^  --{flag} "
        assert len(re.findall(shown, out, re.MULTILINE)) == 1, name
        assert info.description
        assert info.description in whole, name
    assert "[8/255]" in whole
    panels = [line for line in out.splitlines() if line and not line.startswith((" ", "mmard"))]
    assert panels == ["Examples", "Run", "Method", "Data", "Attack", "Training", "Machine", "Options"]


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    front = Typed(capsys, "--help").out
    assert Typed(capsys).out == front, "no command at all is a question for help"
    commands = ("demo", "train", "distill", "evaluate", "methods", "models", "data", "show", "fetch")
    for command in commands:
        assert re.search(rf"^  {command} ", front, re.MULTILINE)
        page = Typed(capsys, command, "--help").out
        assert re.search(rf"^Examples\n  mmard {command}", page, re.MULTILINE)
        assert page == Typed(capsys, command, "-h").out
    os.environ["COLUMNS"] = "80"
    wide = [line for line in Typed(capsys, "distill", "--help").out.splitlines() if len(line) > 80]
    assert all(line.startswith("  mmard ") for line in wide), "only what is copied may be longer than the terminal"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from mmard import __version__

    assert Typed(capsys, "--version").out == f"mmard {__version__}\n"


# display ------------------------------------------------------------------------------------------
def event(kind: str, step: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "epoch": step // 4, "epoch_step": step % 4, "seconds": seconds, **more}


def an_epoch(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    numbers = {"lr": 0.1, "loss": 1.5, "adv": 1.0, "nat": 0.5, "reach": 0.03, "clean": 0.9, "robust": 0.4}
    return event("epoch", step, seconds, **{**numbers, **more})


def test_time_left_is_of_this_process_alone() -> None:
    watch = Watch(epochs=5, steps=4, attack="PGD-1 at linf 0.1")
    assert watch.left() is None
    watch.recall([an_epoch(4, 100.0, best=True)])
    watch.see(event("resume", 8, 1000.0))
    assert watch.left() is None
    watch.see(event("tick", 10, 1004.0))
    assert watch.left() == 20.0  # two steps in four seconds, ten to go
    assert watch.best["epoch"] == 1, "the best epoch of an earlier process is not forgotten"


def test_lines_for_a_file() -> None:
    out = io.StringIO()
    watch = Watch(epochs=2, steps=4, attack="PGD-1 at linf 0.1")
    shown = Lines(watch, Console(file=out, width=30, highlight=False), every=0.0)
    for each in (event("start", 0, 0.0), event("tick", 3, 3.0), an_epoch(4, 4.0, best=True)):
        shown(each)
    assert out.getvalue() == (
        "epoch 1/2: step 0/4 (0 s)\n"
        "epoch 1/2: step 3/4 (3 s, about 5 s left)\n"
        "epoch 1/2: lr 0.1, loss 1.5, validation 90.0% clean, 40.0% under PGD-1 at linf 0.1, best so far "
        "(4 s, about 4 s left)\n"
    )


def test_the_moving_picture_fits_a_narrow_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, highlight=False, color_system=None, theme=THEME)
    moving = Moving(Watch(epochs=200, steps=4, attack="PGD-10 at linf 8/255"), console)
    moving(an_epoch(4, 4000.0, best=True))
    console.print(moving.picture())
    moving(event("step", 7, 4100.0, lr=0.1, loss=1.25, **{f"a_long_name_{i}": 0.1 for i in range(9)}))
    console.print(moving.picture())
    for line in out.getvalue().splitlines():
        assert len(line) <= 80, line
    assert "epoch 2/200" in out.getvalue()
    assert "90.0% clean, 40.0% under PGD-10 at linf 8/255; best in epoch 1" in out.getvalue()


def test_a_tick_costs_nothing_to_speak_of() -> None:
    moving = Moving(Watch(epochs=5, steps=4, attack="PGD-1"), Console(file=io.StringIO()))
    tick = event("tick", 1, 0.1)
    began = time.process_time()
    for _ in range(10_000):
        moving(tick)
    assert time.process_time() - began < 1.0, "0.1 ms a step is a thousandth of the shortest step there is"


# tensorboard --------------------------------------------------------------------------------------
def test_tensorboard_has_what_the_log_has(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert Typed(capsys, *TRAIN[:-4], "--epochs", "3", "--out", "n", "--tensorboard").status == 0
    found = EventAccumulator("n/tensorboard")
    found.Reload()
    epochs = [e for e in Run.open("n").log() if e["kind"] == "epoch"]
    for name in ("loss", "clean", "robust", "lr"):
        written = [(s.step, s.value) for s in found.Scalars(f"epoch/{name}")]
        assert written == [(e["step"], pytest.approx(e[name], rel=1e-6)) for e in epochs]
    assert "step/loss" in found.Tags()["scalars"]


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mmard.training.tensorboard import TensorBoard

    first = TensorBoard(tmp_path)
    for each in (event("start", 0, 0.0), an_epoch(4, 1.0), an_epoch(8, 2.0, loss=7.0), an_epoch(12, 3.0, loss=7.0)):
        first(each)
    first.close()
    second = TensorBoard(tmp_path)
    for each in (event("resume", 4, 1.0), event("tick", 5, 1.1), an_epoch(8, 2.0)):
        second(each)
    second.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(s.step, s.value) for s in found.Scalars("epoch/loss")] == [(4, 1.5), (8, 1.5)]


def test_facts_are_those_that_weights_carry() -> None:
    """`weights_of` above writes what a run would, so that the refusals are of what differs and not of the form."""
    from mmard.data import load

    images = load("digits").test
    ours = network_facts("cnn-4", build("cnn-4", num_classes=10, image_shape=(1, 8, 8)), images)
    assert {"network", "normalised", "num_classes", "image_shape"} <= set(ours)


def test_a_terminal_sees_rows_and_gets_its_cursor_back() -> None:
    import pty

    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-m", "mmard", "train", *SMALL, "--model", "cnn-1", "--epochs", "2", "--out", "n"]
    process = subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(timeout=300) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n")
    assert re.search(r"epoch +lr +loss +clean +PGD-2 at linf 0.15 +time", text)
    assert re.search(r"^ +2/2 +\S+ +\S+ +\S+% +\S+% +\S+ s", text, re.MULTILINE)
    assert "mmard evaluate n" in text
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
