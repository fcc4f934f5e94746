"""Evaluations shared by processes: the same verdicts, whoever dies."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from little import net, picture_set, protocol
from torch import nn

from mmard.balls import Budget
from mmard.errors import Refused
from mmard.evaluation import multiprocess
from mmard.evaluation.evaluate import Protocol
from mmard.evaluation.journal import PENDING, SURVIVED, Journal
from mmard.evaluation.multiprocess import measure

BUDGET = Budget(0.05)
SAID = {"split": "test", "which": "best"}
SPECS = ["pgd-20", "apgd-ce", "fab-t"]


def measured(processes: int = 1, **more: Any) -> dict[str, list[bool]]:
    how = protocol(SPECS, BUDGET, seed=3, batch_size=7)
    found = measure(net(seed=2), picture_set(60, seed=5), how, **SAID, processes=processes, **more)
    return {each.score.attack: each.mask.tolist() for each in found}


def test_two_processes_give_the_verdicts_of_one(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    alone = measured()
    together = measured(2, folder=tmp_path)
    assert together == alone
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert 0 < sum(alone["fab-t"]) < sum(alone["clean"])
    assert {file.name for file in tmp_path.glob("*/.*")} == {".plan.lock"}
    kept = {file.stem for file in tmp_path.glob("each-*/*.npy")}
    assert kept == {"clean", "pgd-20"}


def test_without_a_folder_processes_meet_in_a_passing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[int, list[str], Path]] = []

    @contextmanager
    def noted(processes: int, model: nn.Module, images: object, how: Protocol, *others: Any) -> Iterator[None]:
        assert others[-1].is_dir()
        met.append((processes, [each.spec for each in how.attacks], others[-1]))
        yield

    monkeypatch.setattr(multiprocess, "shared_work", noted)
    seen: list[str] = []
    alone = measured(3)
    assert alone == measured(3, witness=lambda name, *_: seen.append(name)) == measured()
    assert [each[:2] for each in met] == [(3, SPECS), (3, ["apgd-ce", "fab-t"])], "a witness must see all"
    assert set(seen) == {"clean", "pgd-20"}
    assert not any(folder.exists() for *_, folder in met)


@pytest.mark.parametrize("damage", ["empty", "torn", "text", "shape", "kind", "numbers", "no seconds", "no object"])
def test_a_damaged_journal_is_refused_in_a_line(damage: str, tmp_path: Path) -> None:
    def judged() -> None:
        Journal(tmp_path, {"of": "this test"}, 5).judged("pgd", np.arange(5), 2, lambda rows, _: rows > 2, None)

    judged()
    verdicts, seconds = tmp_path / "pgd.npy", tmp_path / "pgd.json"
    arrays = {"shape": np.zeros(4, np.int8), "kind": np.zeros(5), "numbers": np.full(5, 7, np.int8)}
    whole = verdicts.read_bytes()
    contents = {"empty": b"", "torn": whole[: len(whole) // 2], "text": b"verdicts"}
    if damage in arrays:
        np.save(verdicts, arrays[damage])
    elif damage in contents:
        verdicts.write_bytes(contents[damage])
    else:
        seconds.write_text({"no seconds": "{}", "no object": "[1]"}[damage])
    with pytest.raises(Refused, match=r"pgd\.npy: expected the verdicts of an attack, got .*; remove pgd\.npy"):
        judged()


def test_a_network_that_cannot_be_sent_is_refused() -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3]

    with pytest.raises(Refused, match="2 processes: expected a network that can be copied and sent"):
        measure(Local(), picture_set(10), protocol(["fgsm"], BUDGET), **SAID, processes=2)
    with pytest.raises(Refused, match="processes: expected at least 1, got 0"):
        measured(0)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_processes import measured

def die(name, done, total, left):
    if name == "apgd-ce" and done >= total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    measured(2, folder=Path({folder!r}), progress=die)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_dash_nine_of_two_processes(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "verdicts"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    paths = [str(Path(__file__).parents[1] / "src"), *sys.path]
    died = subprocess.run(  # returns when the other process, which holds the pipe as well, has ended
        [sys.executable, str(script)],
        env={"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert died.returncode == -9, died.stderr.decode()[-2000:]
    assert measured(folder=folder) == measured()


# the journal ---------------------------------------------------------------------------------------------------------
def judge_even(batch: np.ndarray, number: int) -> np.ndarray:
    return batch % 2 == 0


def test_a_batch_that_another_has_taken_is_waited_for_and_the_others_are_done_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"a": 1}, 12)
    theirs = FileLock(tmp_path / ".attack-1.lock", thread_local=False)
    theirs.acquire()
    done: list[int] = []

    def judge(batch: np.ndarray, number: int) -> np.ndarray:
        done.append(number)
        return judge_even(batch, number)

    timer = threading.Timer(0.6, theirs.release)
    told: list[tuple[int, int, int]] = []
    timer.start()
    mask, seconds = journal.judged("attack", np.arange(12), 4, judge, lambda _, *numbers: told.append(numbers))
    timer.join()
    assert done == [0, 2, 1], "what died with its batch is made up for"
    assert mask.tolist() == [True, False] * 6
    assert told == [(4, 12, 2), (8, 12, 4), (12, 12, 6)]
    assert 0 <= seconds < 0.5
    again = Journal(tmp_path, {"a": 1}, 12).judged("attack", np.arange(12), 4, judge, None)
    assert again[0].tolist() == mask.tolist()
    assert len(done) == 3


def test_a_batch_that_another_finished_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    here, there = (Journal(tmp_path, {"a": 1}, 12) for _ in range(2))
    done: list[tuple[str, int]] = []

    def theirs(batch: np.ndarray, number: int) -> np.ndarray:
        done.append(("there", number))
        return judge_even(batch, number)

    def ours(batch: np.ndarray, number: int) -> np.ndarray:
        done.append(("here", number))
        if number == 0:
            # Somebody takes part while we work on the first batch, and leaves before the last.
            class Left(Exception):
                pass

            def leave(*_: object) -> None:
                if done[-1] == ("there", 1):
                    raise Left

            with pytest.raises(Left):
                there.judged("attack", np.arange(12), 4, theirs, leave)
        return judge_even(batch, number)

    mask, _ = here.judged("attack", np.arange(12), 4, ours, None)
    assert done == [("here", 0), ("there", 1), ("here", 2)]
    assert mask.tolist() == [True, False] * 6


def test_who_is_not_attacked_counts_as_misread_and_the_file_says_who_is_pending(tmp_path: Path) -> None:
    class Died(Exception):
        pass

    def judge(batch: np.ndarray, number: int) -> np.ndarray:
        if number == 1:
            raise Died
        return judge_even(batch, number)

    journal = Journal(tmp_path, {"a": 1}, 6)
    with pytest.raises(Died):
        journal.judged("pgd-20@2/255", np.array([0, 1, 4, 5]), 2, judge, None)
    (file,) = tmp_path.glob("*.npy")
    assert file.name == "pgd-20@2_255.npy"
    kept = np.load(file)
    assert kept.dtype == np.int8
    assert kept.tolist() == [SURVIVED, 0, 0, 0, PENDING, PENDING]
    with pytest.raises(Refused, match="got verdicts with other a; choose another folder"):
        Journal(tmp_path, {"a": 2}, 6)
