"""The training loop: how it is stopped, by the user, a full disk, another process, or numbers that are none."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import disk_of
from filelock import FileLock
from little import (
    FACTS,
    RECIPE,
    batches_of,
    run_in,
    same,
    step_of,
    validation,
)
from torch import nn
from trainings import (
    Killed,
    Left,
    at,
    control_c,
    kill,
    left_state,
    plain,
    train,
)

from mmard.batch import Batch, Terms
from mmard.errors import Refused
from mmard.files import load_tensors, save_tensors
from mmard.method import Method
from mmard.ops import ce
from mmard.run import Run
from mmard.training.fit import Diverged, Interrupted, Validation, fit


# interruption -------------------------------------------------------------------------------------
def test_the_second_control_c_interrupts_at_once(tmp_path: Path) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "run", at(1, control_c))
    before = left_state(tmp_path / "run")

    def twice() -> None:
        control_c()
        control_c()

    with pytest.raises(KeyboardInterrupt):
        train(plain, tmp_path / "run", at(2, twice))
    assert same(left_state(tmp_path / "run"), before)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_sigterm_is_a_request_as_well(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "run", at(3, lambda: signal.raise_signal(signal.SIGTERM)))
    assert Run.open(tmp_path / "run").load_state()[1]["position"]["step"] == 3


def test_a_training_in_a_thread_leaves_signals_alone(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(plain, tmp_path / "run"))
    thread.start()
    thread.join()
    assert Left(tmp_path / "run") == whole(plain)


def test_no_space_left(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(plain, folder, at(5, kill), save_seconds=0)
    before = left_state(folder)
    with pytest.raises(Refused, match="no space left; what was saved before is whole"), disk_of(1000):
        train(plain, folder, save_seconds=0)
    assert same(left_state(folder), before)
    train(plain, folder)
    assert Left(folder) == whole(plain)


DAMAGED: tuple[tuple[Callable[[dict[str, Any]], Any], str], ...] = (
    (lambda facts: {}, "expected the state of a training, got a file without counters"),
    (lambda facts: {**facts, "position": 3}, "expected the state of a training, got a file without counters"),
    (
        lambda facts: {**facts, "position": {**facts["position"], "step": "three"}},
        "state, position.step: .*got 'three'",
    ),
    (lambda facts: {**facts, "position": {**facts["position"], "sums": [1]}}, "state, position.sums: expected"),
    (lambda facts: {**facts, "optimizer": [1]}, "state, optimizer: expected"),
    (lambda facts: {**facts, "optimizer": {"momentum": 0.5}}, "state of this run's optimiser, got one with momentum"),
    (lambda facts: {**facts, "optimizer": {"99/step": 1}}, "state of this run's optimiser, got one with 99/step"),
    (lambda facts: {**facts, "averaged": "many"}, "state, averaged: expected"),
    (lambda facts: {**facts, "ranks": None}, "state, ranks: expected"),
    (lambda facts: {**facts, "made_from": ["teacher T"]}, "state, made_from: expected"),
    (lambda facts: [facts], "state.safetensors: expected an object under 'mmard', got a list"),
)


def test_a_damaged_state_is_refused_in_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(plain, folder, at(3, kill), save_seconds=0)
    tensors, facts = Run.open(folder).load_state()
    for change, words in DAMAGED:
        save_tensors(folder / "state.safetensors", tensors, change(facts))
        with pytest.raises(Refused, match=words):
            train(plain, folder)
    save_tensors(folder / "state.safetensors", {**tensors, "optimizer/0/momentum_buffer": torch.ones(2)}, facts)
    with pytest.raises(Refused, match="state of this run's optimiser, got one with 0/momentum_buffer"):
        train(plain, folder)


def test_no_space_left_for_the_log(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    run.append({"kind": "start", "step": 0, "epoch": 0})
    with pytest.raises(Refused, match=r"log\.jsonl.*no space left"), disk_of(run.log_file.stat().st_size + 5):
        run.append({"kind": "step", "step": 1, "epoch": 0})
    assert [e["kind"] for e in run.log()] == ["start"]


# one at a time ------------------------------------------------------------------------------------
def test_a_run_that_somebody_trains_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = run_in(folder)
    with run.lock(), pytest.raises(Refused, match="expected a run that nobody works on, got one that another process"):
        train(plain, folder)
    assert run.log() == []
    with pytest.raises(Killed):
        train(plain, folder, at(1, kill))
    train(plain, folder)
    with run.lock():
        pass


HOLD = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]).acquire(); print(); sys.stdin.read()"


def test_another_process_holds_the_lock_until_it_dies(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Refused, match="another process"):
            run.lock()
        other.kill()
    with run.lock():
        assert FileLock(run.path / ".lock").lock_file


# numbers that are none ----------------------------------------------------------------------------
def poisoned(from_step: int, **terms: float) -> Method:
    """Plain training whose named terms take these values from a step on."""
    steps = 0

    def outer(b: Batch) -> Terms:
        nonlocal steps
        steps += 1
        found = {"label": ce(b.S(b.x), b.y), "good": 0 * b.S(b.x).sum(1)}
        if steps >= from_step:
            found |= {name: found[name] + value for name, value in terms.items()}
        return found

    return Method("poisoned", None, outer, "this test", ("", ""), forwards={"S": ("x",)}, nets=("S",))


@pytest.mark.parametrize(
    ("terms", "culprit"),
    [
        ({"label": math.nan}, "the term label not finite"),
        ({"good": math.inf}, "the term good not finite"),
        ({"label": math.inf, "good": -math.inf}, "the term label, good not finite"),
        ({"label": 3e38, "good": 3e38}, "the sum of finite terms not finite"),
    ],
)
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_culprit(
    terms: dict[str, float], culprit: str, tmp_path: Path
) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Diverged, match=r"epoch 2, step 5: .*" + culprit + ".*the last save is untouched.*--lr"):
        fit(step_of(poisoned(5, **terms)), batches_of(), RECIPE, run, validation, facts=FACTS, save_seconds=0)
    tensors, facts = run.load_state()
    assert facts["position"]["step"] == 4
    assert all(t.isfinite().all() for t in tensors.values())
    resumed = fit(step_of(poisoned(99)), batches_of(), RECIPE, run, validation, facts=FACTS)
    assert resumed.finished


def test_divergence_before_the_first_save_says_so(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Diverged, match="nothing was saved yet"):
        fit(step_of(poisoned(1, label=math.nan)), batches_of(), RECIPE, run, validation, facts=FACTS)
    assert not run.has_state


def steep(from_step: int) -> Method:
    """A loss that is a number with a gradient that is none: the root of zero."""
    steps = 0

    def outer(b: Batch) -> Terms:
        nonlocal steps
        steps += 1
        return {
            "label": ce(b.S(b.x), b.y),
            "root": (0 * b.S(b.x)).sum(1).sqrt() if steps >= from_step else 0 * b.y.float(),
        }

    return Method("steep", None, outer, "this test", ("", ""), forwards={"S": ("x",)}, nets=("S",))


def test_a_weight_that_is_no_number_is_never_saved(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Diverged, match=r"0\.weight of the network not finite; the last save is untouched"):
        fit(step_of(steep(5)), batches_of(), RECIPE, run, validation, facts=FACTS, save_seconds=0)
    assert all(t.isfinite().all() for t in run.load_state()[0].values())
    assert run.load_state()[1]["position"]["step"] == 4


def test_a_weight_that_is_no_number_is_never_validated(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")

    def validate(network: nn.Module) -> Validation:
        assert all(t.isfinite().all() for t in network.state_dict().values())
        return validation(network)

    with pytest.raises(Diverged, match=r"0\.weight of the network"):
        fit(step_of(steep(6)), batches_of(), RECIPE, run, validate, facts=FACTS)
    assert load_tensors(run.weights_file("best"))[1]["epoch"] == 1


def test_a_run_that_died_before_it_noted_its_machine_notes_it_at_its_next_start(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    (noted,) = json.loads(run.environment_file.read_text())
    run.environment_file.unlink()
    train(plain, run.path)
    (again,) = json.loads(run.environment_file.read_text())
    assert again.keys() == noted.keys()
