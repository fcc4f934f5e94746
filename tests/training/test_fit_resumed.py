"""The training loop: stopped anywhere and gone on with, it ends where it would have ended, to the bit.

What a run leaves is compared as a whole: state, best and last weights, and the log's lines of epochs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from little import (
    EPOCHS,
    FACTS,
    STEPS,
    same,
    state,
)
from trainings import (
    CASES,
    Killed,
    Left,
    at,
    control_c,
    kill,
    left_state,
    memory,
    plain,
    swa,
    train,
)

from mmard.run import Run
from mmard.training.fit import Interrupted


@pytest.mark.parametrize("case", CASES)
def test_two_runs_are_equal(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    train(case, tmp_path / "run", save_seconds=0)
    assert Left(tmp_path / "run") == whole(case)


@pytest.mark.parametrize("case", CASES)
def test_stopped_by_control_c_after_every_step(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for done in range(1, EPOCHS * STEPS + 1):
        with pytest.raises(Interrupted, match=f"stopped after step {done} and saved"):
            train(case, folder, at(1, control_c))
        _, facts = Run.open(folder).load_state()
        assert facts["position"]["step"] == done
    train(case, folder)
    assert Left(folder) == whole(case)


@pytest.mark.parametrize("case", CASES)
def test_killed_after_every_step(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    deaths = 0
    while True:
        try:
            train(case, folder, at(2, kill), save_seconds=0)
            break
        except Killed:
            deaths += 1
    assert deaths == EPOCHS * STEPS - 1
    assert Left(folder) == whole(case)


@pytest.mark.parametrize("case", CASES)
def test_killed_between_the_best_weights_and_the_state(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    """The line of the epoch is in the log and its weights are kept, and then the state of before is gone on with."""
    folder = tmp_path / "run"
    for death in range(EPOCHS):
        # The epoch that the last death cut off is told first.
        with pytest.raises(Killed):
            train(case, folder, at(1 if death == 0 else 2, kill, ("epoch",)), save_seconds=0)
    train(case, folder)
    assert Left(folder) == whole(case)


@pytest.mark.parametrize("case", [plain, swa])
def test_killed_in_a_save_of_the_state(
    case: Any, whole: Callable[[Any], Left], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = whole(case)
    folder = tmp_path / "run"
    save = Run.save_state
    calls = 0

    def failing(self: Run, tensors: Any, facts: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise Killed
        save(self, tensors, facts)

    monkeypatch.setattr(Run, "save_state", failing)
    deaths = 0
    while True:
        try:
            train(case, folder, save_seconds=0)
            break
        except Killed:
            deaths += 1
    assert deaths >= EPOCHS * STEPS
    assert Left(folder) == undisturbed


def test_killed_before_anything_was_saved(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(plain, folder, at(5, kill))
    assert not Run.open(folder).has_state
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"kind": "epo')
    train(plain, folder)
    assert Left(folder) == whole(plain)
    assert [e["kind"] for e in Run.open(folder).log()].count("start") == 1
    assert len(json.loads((folder / "environment.json").read_text())) == 2


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path

import torch
torch.set_num_threads(1)
from trainings import plain, train
import safetensors.torch

written = 0
write = safetensors.torch.save_file

def torn(tensors, path, metadata):
    global written
    written += "position" in metadata["mmard"]
    write(tensors, path, metadata=metadata)
    if written == 5:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

safetensors.torch.save_file = torn
train(plain, Path(sys.argv[1]), save_seconds=0)
"""


def test_killed_for_good_in_the_middle_of_a_file(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert list(folder.glob(".state.safetensors.*")), "the half of a file"
    train(plain, folder)
    assert Left(folder) == whole(plain)
    assert not list(folder.glob(".state.safetensors.*"))


def test_a_finished_run_has_nothing_left_to_do(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    train(plain, tmp_path / "run")
    _, found = train(plain, tmp_path / "run", at(1, kill))
    assert found.finished
    assert Left(tmp_path / "run") == whole(plain)


def test_the_weights_in_memory_are_those_on_disk(tmp_path: Path) -> None:
    step, found = train(plain, tmp_path / "run")
    last, facts = Run.open(tmp_path / "run").load_weights("last")
    assert same(state(step.nets["S"]), last)
    assert facts == {**FACTS, "epoch": EPOCHS, "step": EPOCHS * STEPS}
    assert found.step == step.count == EPOCHS * STEPS


def test_a_method_is_told_of_every_epochs_end_once(tmp_path: Path) -> None:
    step, _ = train(memory, tmp_path / "run")
    kept = left_state(tmp_path / "run")
    assert kept["memory/epochs"] == EPOCHS
    assert kept["memory/weights"].sum() == pytest.approx(2.5)  # three halves, and shares that add up to one
    assert not kept["memory/sums"].any()
    assert any(key.startswith("P/") for key in kept)
    assert step.method.memory is not None
    assert same(state(step.method.memory), {k.removeprefix("memory/"): v for k, v in kept.items() if "memory/" in k})
