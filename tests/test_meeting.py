"""Several processes of one launch evaluate and validate: the verdicts of one, and a word when one is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import rank_evaluating
import started
import torch
from test_distributed import launched, said, together

from mmard.api import train
from mmard.cli.evaluate import Evaluate, evaluate, refuse_apart
from mmard.errors import Refused
from mmard.run import Run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    out = tmp_path_factory.mktemp("ranks")
    processes = started.ranks(2, rank_evaluating.leave_verdicts, out)
    text = started.said(processes)
    assert [each.returncode for each in processes] == [0, 0], text
    return [torch.load(out / f"{number}.pt", weights_only=True) for number in range(2)]


def test_validation_is_dealt_out_and_gives_the_verdicts_of_one(two):
    alone = rank_evaluating.validated(None)
    assert two[0]["validated"] == two[1]["validated"] == alone
    clean, robust = alone["accuracies"]
    assert 0 < robust < clean
    # 9 batches of 60 images, and 3 to 9 of those who stand, for each of the two attacks and once more.
    assert two[0]["validating"] + two[1]["validating"] == _batches(alone)
    assert 0 <= two[0]["validating"] - two[1]["validating"] <= 5


def _batches(found: dict[str, object]) -> int:
    of_all, standing = -(-60 // 7), -(-sum(found["clean"]) // 7)
    return 2 * of_all + 3 * standing


def test_an_evaluation_is_shared_and_gives_the_verdicts_of_one(two):
    images = rank_evaluating.picture_set(60, seed=5)
    model = rank_evaluating.net(seed=2)
    how = rank_evaluating.protocol(rank_evaluating.SPECS, rank_evaluating.BUDGET, **rank_evaluating.HOW)
    alone = rank_evaluating.measure(model, images, how, **rank_evaluating.SAID)
    assert two[0]["evaluated"] == rank_evaluating.masks(alone)
    assert min(each["evaluating"] for each in two) > 0
    assert two[0]["left behind"] is False


def test_other_weights_in_another_process_are_refused(two):
    for each in two:
        assert "weights in process 1 of 2: expected" in each["refusal"]


# the command line --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train("cnn-4", data="digits", method="natural", epochs=1, limit_train=256, budget=0.05, out=out, threads=1)
    return out


REQUEST = Evaluate(target="", attacks="pgd-3,apgd-ce", first=200, batch_size=60, device="cpu")


def asked(run: Path, attacks: str, *, first: int) -> tuple[str, ...]:
    """What `REQUEST` asks for."""
    return ("evaluate", str(run), "--attack", attacks, "--first", str(first), "--batch-size", "60", "--device", "cpu")


def test_the_command_under_the_launcher_leaves_what_one_process_leaves(trained, tmp_path):
    runs = [shutil.copytree(trained, tmp_path / name) for name in ("one", "two")]
    evaluate(REQUEST.model_copy(update={"target": str(runs[0])}))
    codes, text = together(*asked(runs[1], REQUEST.attacks, first=200))
    assert codes == [0, 0], text
    assert text.count("Records are in") == 1, "both processes spoke"
    names = sorted(file.name for file in Run.open(runs[0]).scores.glob("*.npy"))
    assert len(names) == 4
    assert names == sorted(file.name for file in Run.open(runs[1]).scores.glob("*.npy"))
    for name in names:
        one, both = (np.load(run / "scores" / name) for run in runs)
        assert np.array_equal(one, both), name
    for name in names:
        one, both = (json.loads((run / "scores" / name).with_suffix(".json").read_text()) for run in runs)
        assert {**one, "seconds": 0, "environment": 0} == {**both, "seconds": 0, "environment": 0}


def test_a_lost_process_ends_the_evaluation_with_a_word_on_what_is_kept(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    process = launched(*asked(run, "pgd-20000", first=500))
    try:
        deadline = time.monotonic() + 200
        while not list(Run.open(run).autoattack.glob("each-*/clean.npy")):
            assert process.poll() is None, said(process)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        began = time.monotonic()
        os.kill(int(children[1]), signal.SIGKILL)
        text = said(process)
        assert process.returncode != 0
        assert time.monotonic() - began < 60
        assert "process 0 of 2: expected the other processes at their work, got a signal to stop" in text
        assert "the verdicts so far are kept; see why it died, and type the same command again" in text
    finally:
        process.kill()


@pytest.mark.parametrize(("said", "flag"), [({"processes": 3}, "--processes"), ({"made_on": "elsewhere"}, "--from")])
def test_what_processes_of_a_launch_cannot_do_is_refused(trained, said, flag):
    with pytest.raises(Refused, match=f"{flag}: expected"):
        refuse_apart(REQUEST.model_copy(update={"target": str(trained), **said}))
