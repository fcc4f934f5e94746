"""Many cells: who makes which, what a failure costs, and what a stopped or killed worker leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from little_study import little

from mmard.errors import Refused
from mmard.settings import TrainSettings
from mmard.study import workers as running
from mmard.study.cell import Place
from mmard.study.grid import Cell
from mmard.study.progress import standing, standings
from mmard.study.records import collect, differences
from mmard.study.workers import Told, Work, failure, places_for, run_here, take_part
from mmard.training.fit import Interrupted

# without training ----------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """Stands in for `make`, and for what run folders say: which cells were made, in which order."""

    order: list[str] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    before: Callable[[str], None] = lambda name: None

    def make(self, cell: Cell, place: Place, tell: Any) -> dict[str, Any]:
        self.before(cell.name)
        tell("training", 0.5)
        if cell.name in self.fails:
            raise Refused(cell.name, expected="luck", got="none")
        self.order.append(cell.name)
        return {}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    told = Made()
    monkeypatch.setattr(running, "make", told.make)
    monkeypatch.setattr(running, "is_whole", lambda cell, record: cell.name in told.order)
    monkeypatch.setattr(running, "is_trained", lambda place, name: name in told.order)
    monkeypatch.setattr(running, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(Place, "record", lambda place, name: None)
    return told


def cells_of(**teachers: str) -> dict[str, Cell]:
    """Cells by name, each with the name of its teacher or ""."""
    return {
        name: Cell(name, TrainSettings(), {"T": teacher} if teacher else {}, "", "little", ("pgd-2",))
        for name, teacher in teachers.items()
    }


def test_a_student_comes_after_its_teacher_and_others_do_not_wait(made: Made, tmp_path: Path) -> None:
    heard: list[Told] = []
    take_part(Work(cells_of(s="t", a="", t="", u="s"), Place(tmp_path)), heard.append)
    assert made.order == ["a", "t", "s", "u"]
    assert [(told.kind, told.cell) for told in heard if told.kind != "training"] == [
        (kind, name) for name in made.order for kind in ("began", "done")
    ]


def test_a_failure_stops_no_other_and_is_not_tried_twice_in_a_session(made: Made, tmp_path: Path) -> None:
    made.fails = {"t"}
    work, heard = Work(cells_of(t="", s="t", u="s", a=""), Place(tmp_path)), list[Told]()
    take_part(work, heard.append)
    assert made.order == ["a"]
    assert [told.text for told in heard if told.kind == "failed"] == ["t: expected luck, got none"]
    why = failure(work.place, "t")
    assert why is not None
    assert why["error"] == "t: expected luck, got none"
    again: list[Told] = []
    take_part(work, again.append)
    assert again == [], "another worker of the session leaves it alone"
    made.fails = set()
    take_part(replace(work, session="the next day"), again.append)
    assert made.order == ["a", "t", "s", "u"]
    assert failure(work.place, "t") is None


def test_a_fault_of_ours_is_kept_with_its_traceback(made: Made, tmp_path: Path) -> None:
    def fault(name: str) -> None:
        raise ZeroDivisionError("of ours")

    made.before = fault
    work = Work(cells_of(a=""), Place(tmp_path))
    take_part(work, lambda told: None)
    why = failure(work.place, "a")
    assert why is not None
    assert why["error"] == "ZeroDivisionError: of ours"
    assert "in fault" in why["traceback"]


def test_what_another_process_holds_is_passed_over_and_looked_at_again(made: Made, tmp_path: Path) -> None:
    place = Place(tmp_path)
    work = Work(cells_of(a="", b="", c=""), place)
    held = place.lock("a")
    with held:
        assert place.held("a")
        take_part(work, lambda told: None)
        assert made.order == ["b", "c"], "a worker does not wait for what is made elsewhere"
    take_part(work, lambda told: None)
    assert made.order == ["b", "c", "a"]


def test_a_student_waits_for_a_teacher_that_another_process_trains(made: Made, tmp_path: Path) -> None:
    place = Place(tmp_path)
    looks = 0
    held = place.lock("t")

    def released(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            made.order.append("t")
            held.__exit__(None, None, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.time, "sleep", released)
        take_part(Work(cells_of(t="", s="t"), place), lambda told: None)
    assert made.order == ["t", "s"]


def test_ctrl_c_ends_the_worker(made: Made, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        raise Interrupted("stopped")

    made.before = stop
    heard: list[Told] = []
    work = Work(cells_of(a="", b=""), Place(tmp_path))
    with pytest.raises(Interrupted):
        take_part(work, heard.append)
    assert [told.kind for told in heard] == ["began", "interrupted"]
    assert failure(work.place, "a") is None, "to be stopped is no failure"
    assert not work.place.held("a")


def test_how_many_workers_have_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    place = Place(tmp_path)
    one = {"a": Cell("a", TrainSettings(threads=1), {}, "", "x", ())}
    cells = list(one.values())
    assert [p.threads for p in places_for(place, cells, None, "cpu")] == [1] * 6
    assert [p.threads for p in places_for(place, cells, 2, "cpu")] == [3, 3], "for cells that say no threads"
    free = [Cell("a", TrainSettings(), {}, "", "x", ())]
    assert [p.threads for p in places_for(place, free, None, "cpu")] == [6]
    assert {p.device for p in places_for(place, cells, 2, "cpu")} == {"cpu"}
    with pytest.raises(Refused, match="at least 1"):
        places_for(place, cells, 0, "cpu")


# with training -------------------------------------------------------------------------------------------------------
def test_workers_of_two_commands_share_the_work_and_make_what_one_makes(tmp_path: Path) -> None:
    cells = little(tmp_path, hosts='["ard"]', boundary="false").cells
    alone, shared = Place(tmp_path / "alone"), Place(tmp_path / "shared")
    alone.runs.mkdir()
    take_part(Work(cells, alone), lambda told: None)
    heard: list[Told] = []
    run_here(Work(cells, shared), [shared, shared], heard.append)
    assert sorted(told.cell for told in heard if told.kind == "done") == sorted(cells)
    assert {told.worker for told in heard if told.kind == "began"} <= {0, 1}
    one, two = collect(alone.runs), collect(shared.runs)
    assert one.keys() == two.keys() == cells.keys()
    for name in cells:
        assert differences(one[name], two[name]) == []
    assert {each.state for each in standings(cells, shared).values()} == {"done"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_runs_that_go_on(tmp_path: Path, how: signal.Signals) -> None:
    choice = little(tmp_path, hosts='["pgd_at"]', batch_size=8, epochs=12)
    runs = tmp_path / "runs"
    said = [str(tmp_path / "two.toml"), "--scale", str(tmp_path / "little.toml"), "--runs", str(runs), "--jobs", "2"]
    command = [sys.executable, "-m", "mmard", "study", "run", *said]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and not list(runs.glob("*/log.jsonl")):
        time.sleep(0.05)
    process.send_signal(how)
    text, _ = process.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert process.returncode == 130, text
        assert "go on with: mmard study run" in text
    place = Place(runs)
    while time.monotonic() < until and any(place.held(name) for name in choice.cells):
        time.sleep(0.05)  # workers whose parent was killed save and end
    begun = [name for name, cell in choice.cells.items() if standing(cell, place).state == "begun"]
    assert begun, "it was ended in the middle"
    whole = Place(tmp_path / "whole")
    whole.runs.mkdir()
    for here in (place, whole):
        take_part(Work(choice.cells, here), lambda told: None)
    for name in choice.cells:
        assert differences(collect(whole.runs)[name], collect(runs)[name]) == []


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_cell_alone(tmp_path: Path) -> None:
    cells = little(tmp_path, hosts='["pgd_at"]', batch_size=8, epochs=12).cells
    place, heard, killed = Place(tmp_path / "runs"), list[Told](), list[str]()

    def kill_the_first(told: Told) -> None:
        heard.append(told)
        if told.kind == "training" and not killed:
            killed.append(told.cell)
            found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True)
            for pid in map(int, found.stdout.split()):
                if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)

    run_here(Work(cells, place), [place], kill_the_first)
    failed = [told for told in heard if told.kind == "failed"]
    assert [told.cell for told in failed] == killed
    assert "signal 9" in failed[0].text
    stood = standings(cells, place)
    assert [name for name, each in stood.items() if each.state == "failed"] == killed
    assert all(each.state == "done" for name, each in stood.items() if name not in killed)
