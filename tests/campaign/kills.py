"""Kills at every moment of every kind of run; each is typed again and must end as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.commands import Case, WriteCounter, fault, files, mmard, spread
from campaign.home import DISTILL, FEW, TRAIN, copy_of

CLOCKS = {"pulled", "seconds", "environment", "started", "finished", "written", "when", "date", "created", "time"}


@dataclass(frozen=True)
class Killed:
    """A command whose process dies at some of its writes.

    `again`: what a user types then, by what the dead command left; None is the same line again.
    `needs`: what of the home the folder holds. `kept`: which files must equal those of a command that was left alone.
    """

    name: str
    line: tuple[str, ...]
    needs: tuple[str, ...]
    result: str
    kills: int
    again: Callable[[Path], tuple[str, ...]] | None = None


def _resume(command: str) -> Callable[[Path], tuple[str, ...]]:
    def again(folder: Path) -> tuple[str, ...]:
        begun = (folder / "new" / "config.json").exists()
        return (command, "--resume", "new") if begun else ()

    return again


RUNS = (
    Killed("train", (*TRAIN, "--out", "new"), (), "new", 12, _resume("train")),
    Killed("distill", (*DISTILL, "--teacher", "t", "--no-teacher-gate", "--out", "new"), ("t",), "new", 10,
           _resume("distill")),
    Killed("evaluate", ("evaluate", "t", "--attack", "pgd-3,cw-3", *FEW, "--batch-size", "20"), ("t",), "t", 6),
    Killed("autoattack", ("evaluate", "t", "--attack", "apgd-ce,fab-t,square", *FEW, "--batch-size", "20"),
           ("t",), "t", 6),
    Killed("findings", ("evaluate", "s", "--also", "classes,margins,eps", "--attack", "pgd-2", *FEW), ("s", "t"),
           "s", 5),
    Killed("transfer", ("transfer", "s", "t", "--attack", "pgd-3", *FEW), ("s", "t"), "s", 5),
    Killed("export", ("export", "s", "--to", "new.onnx", "--first", "20", "--attack", "none"), ("s",), "new.onnx", 4),
    Killed("report", ("report", "s", "t", "--out", "new.html"), ("s", "t"), "new.html", 3),
    Killed("push", ("push", "s", "ada/little", "--to", "new"), ("s",), "new", 5),
    Killed("pull", ("pull", "shared", "--to", "new"), ("shared",), "new", 5),
)  # fmt: skip


def cases(home: Path, rng: random.Random, work: Path) -> Iterator[Case]:
    for each in RUNS:
        whole = work / "whole" / each.name
        whole.mkdir(parents=True)
        if each.needs:
            copy_of(home, whole, *each.needs)
        counter = work / "whole" / f"{each.name}.count"
        done = mmard(*each.line, cwd=whole, before=lambda w=whole, c=counter: _count(w, c))
        if done.code != 0 or not counter.exists():
            yield Case("kill", f"{each.name}, left alone", lambda _, d=done: fault(d, may=(0,)) or "did not count")
            continue
        total = int(counter.read_text())
        for moment in spread(rng, total, each.kills):
            yield Case("kill", f"{each.name} at write {moment} of {total}", _trial(home, each, moment, whole))
    for k in range(3):
        seconds = rng.uniform(2.5, 7)
        yield Case("kill", f"study after {seconds:.1f} s", _study_trial(seconds, work / "whole study", k))


def _count(folder: Path, note: Path) -> None:
    counter = WriteCounter(folder, None, note)
    counter()
    leave = os._exit

    def leaving(status: int) -> None:
        note.write_text(str(counter.count))
        leave(status)

    os._exit = leaving  # type: ignore[assignment]


def _trial(home: Path, each: Killed, moment: int, whole: Path) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        if each.needs:
            copy_of(home, folder, *each.needs)
        killed = mmard(*each.line, cwd=folder, before=WriteCounter(folder, moment, folder / "none"))
        if killed.code != -signal.SIGKILL:
            return fault(killed, may=(0,))  # another order of writes: nothing died
        if (folder / each.result).exists() and each.result in ("new", "s", "t"):
            shown = mmard("show", each.result, cwd=folder)
            if wrong := fault(shown):
                return f"show of what it left: {wrong}"
        line = (each.again(folder) if each.again else ()) or each.line
        done = mmard(*line, cwd=folder)
        if done.code == 2 and each.again and line != each.line:
            done = mmard(*each.line, cwd=folder)  # no weights were kept yet: what is refused says to begin again
        if wrong := fault(done, may=(0,)):
            return f"typed again ({line[0]}): {wrong}"
        return difference(whole / each.result, folder / each.result)

    return run


def difference(expected: Path, found: Path) -> str | None:
    """How two folders differ but for clocks and machines; None where they are equal."""
    if expected.is_file():
        alike = found.is_file() and _timeless(expected.name, expected.read_bytes()) == _timeless(
            found.name, found.read_bytes()
        )
        return None if alike else f"other content: {found.name}"
    ours, theirs = files(found), files(expected)
    if extra := sorted(ours.keys() - theirs.keys()):
        return f"left over: {', '.join(extra[:4])}"
    if lost := sorted(theirs.keys() - ours.keys()):
        return f"lost: {', '.join(lost[:4])}"
    for name, held in theirs.items():
        if held != ours[name] and _timeless(name, held) != _timeless(name, ours[name]):
            return f"other content: {name}"
    return None


def _timeless(name: str, data: bytes) -> object:
    if name.endswith("state.safetensors") or name.startswith("events.") or name.endswith("environment.json"):
        return None  # holds the clock of the training, or the history of starts
    if name.endswith(".json"):
        return _without(json.loads(data))
    if name.endswith(".jsonl"):
        found = [json.loads(line) for line in data.decode().splitlines()]
        return [_without(each) for each in found if each.get("kind") == "epoch"]
    if name.endswith((".html", ".md")):
        return None
    return data


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(each) for key, each in value.items() if key not in CLOCKS}
    if isinstance(value, list):
        return [_without(each) for each in value]
    return value


SCALE = """
name = "little"
title = "a few images"
says = "seconds"
data_says = "digits"
seeds = [0]
student = "cnn-2"
attacks = ["pgd-2"]
attack_images = 60
which = "last"
[every]
data = "digits"
threads = 1
epochs = 2
limit_train = 128
batch_size = 32
teacher_gate = false
steps = 1
[teachers.main]
title = "cnn-4"
model = "cnn-4"
method = "pgd_at"
epochs = 2
"""
STUDY = 'name = "two"\ntitle = "t"\nquestion = "q?"\nreads = "benchmark"\nhosts = ["pgd_at", "ard"]\n'


def _study_trial(seconds: float, whole: Path, number: int) -> Callable[[Path], str | None]:
    line = ("study", "run", "two.toml", "--scale", "little.toml", "--runs", "runs", "--jobs", "2")

    def prepare(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "two.toml").write_text(STUDY)
        (folder / "little.toml").write_text(SCALE)

    def run(folder: Path) -> str | None:
        if not whole.exists():
            prepare(whole)
            if wrong := fault(mmard(*line, cwd=whole), may=(0,)):
                return f"left alone: {wrong}"
        prepare(folder)

        def kill(child: int) -> None:
            def later() -> None:
                time.sleep(seconds)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)

            threading.Thread(target=later, daemon=True).start()

        mmard(*line, cwd=folder, after=kill, limit=120)
        if wrong := fault(mmard("study", "status", *line[2:-2], cwd=folder)):
            return f"status of what it left: {wrong}"
        if wrong := fault(mmard(*line, cwd=folder, limit=180), may=(0,)):
            return f"typed again: {wrong}"
        return difference(whole / "runs", folder / "runs")

    return run
