"""Runs that are repeated, killed, gone on with, and planned."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from started import Started, mmard
from typed import SMALL, SRC, Typed, everything

from mmard.methods import PLUGINS, every_parameter
from mmard.run import Run
from mmard.settings import Settings


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
    usual = every_parameter(["rslad+mmard"])
    assert config["params"] == usual | {"mmard.guide": 0.7, "mmard.beta": 0, "rslad.alpha": 0.25}
    assert config["batch_size"] == 64, "the preset's, for digits"


def test_another_method_leaves_the_parameters_of_the_one_that_it_replaces(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"rslad.alpha", "mmard.edges"} <= Run.open("s").config["params"].keys()
    flags = ("--method", "adaad+mmard", "--param", "mmard.guide=0.5")
    assert Typed(capsys, "distill", "--config", "s/config.json", *flags, "--out", "n").status == 0
    assert Run.open("n").config["params"] == every_parameter(["adaad+mmard"], {"mmard.guide": 0.5})
    # What no method of the file has is a slip, and stays one.
    Path("c.toml").write_text('method = "rslad+mmard"\nteacher = "t"\n[params]\n"mmrad.guide" = 0.7\n')
    done = Typed(capsys, "distill", "--config", "c.toml", "--method", "adaad+mmard", "--out", "m")
    assert done.status == 2
    assert "parameter 'mmrad.guide'" in done.err
    assert "did you mean 'mmard.guide'" in done.err


def test_a_run_keeps_its_parameters_when_a_default_moves(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Run.open("s").config
    Run.create("a", said)
    Run.create("b", said | {"params": {"rslad.alpha": 0.5}})  # as by a version that did not write defaults down
    monkeypatch.setitem(PLUGINS, "mmard", partial(PLUGINS["mmard"], edges="nq"))
    done = Typed(capsys, "distill", "--resume", "a")
    assert (done.status, "today's defaults" in done.out) == (0, False)
    assert Path("a/last.safetensors").read_bytes() == Path("s/last.safetensors").read_bytes()
    done = Typed(capsys, "distill", "--resume", "b")
    assert done.status == 0
    told = " ".join(done.out.split())
    assert "config.json does not say these parameters, and today's defaults are taken: rslad.scale 1" in told
    assert "mmard.edges nq" in told


def test_resume_takes_no_other_setting(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in (("--lr", "0.3"), ("--out", "n"), ("--config", "s/config.json"), ("--param", "mmard.guide=1")):
        done = Typed(capsys, "distill", "--resume", "s", *extra)
        assert done.status == 2
        assert done.err == (
            f"mmard: --resume: expected no other setting than --epochs, which lengthens the run, got {extra[0]}; "
            "a run resumes with the settings it began with\n"
        )


def test_a_finished_run_is_lengthened(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("s", "longer")
    done = Typed(capsys, "distill", "--resume", "longer", "--epochs", "2")
    assert (done.status, "longer, --epochs: expected more than its 2, got 2" in done.err) == (2, True)
    assert Typed(capsys, "distill", "--resume", "longer", "--epochs", "3").status == 0
    assert Run.open("longer").config["epochs"] == 3
    assert [e["epoch"] for e in Run.open("longer").log() if e["kind"] == "epoch"] == [1, 2, 3]


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
    processes = []

    def start(*arguments: str) -> Started:
        processes.append(mmard(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.end()


def wait_for(what: str, process: Started) -> None:
    for line in process.stdout:
        if line.startswith(what):
            return
    raise AssertionError(f"it ended before it printed {what!r}: {process.communicate()[1]}")


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


def test_output_to_a_full_device_is_refused_in_a_line(home: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mmard", "show", str(home / "s")],
            env=env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr == "mmard: standard output: expected to write to it, got No space left on device\n"
    assert done.returncode == 2


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
    assert re.search(r"teacher +t \(best, epoch \d\) +15,554 +1 +0 +1 +0\n", done.out), "differentiated once"
    for told in ("images/s", "to go for 7 epochs", "<grad CE(T(x), argmax T(x)), x' - x>", "Nothing was written"):
        assert told in done.out, told
    for row in (r"epochs +7 +said", r"eps +0.15 +preset"):
        assert re.search(row, done.out), row
    (by_default,) = re.findall(r"^  by default: (.*)$", done.out, re.MULTILINE)
    assert {"seed 0", "mmard.guide 1", "device auto"} <= set(by_default.split(", "))
    shown = set(re.findall(r"^  (\w+) +\S.* (?:said|preset)$", done.out, re.MULTILINE))
    assert shown | {each.split()[0] for each in by_default.split(", ")} >= set(Settings.model_fields) - {"params"}


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
