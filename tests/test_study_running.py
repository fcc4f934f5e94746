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
from mmard.settings import Settings
from mmard.study import workers
from mmard.study.cell import Site
from mmard.study.grid import Cell
from mmard.study.progress import status_of, statuses_of
from mmard.study.records import collect, mismatches
from mmard.study.workers import Message, Work, failure, run_here, sites_for, take_part
from mmard.training.fit import Interrupted

# without training ----------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """Stands in for `make`, and for what run folders say: which cells were made, in which order."""

    order: list[str] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    before: Callable[[str], None] = lambda name: None

    def make(self, cell: Cell, site: Site, tell: Any) -> dict[str, Any]:
        self.before(cell.name)
        tell("training", 0.5)
        if cell.name in self.fails:
            raise Refused(cell.name, expected="luck", got="none")
        self.order.append(cell.name)
        return {}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    stand_in = Made()
    monkeypatch.setattr(workers, "make", stand_in.make)
    monkeypatch.setattr(workers, "is_complete", lambda cell, record: cell.name in stand_in.order)
    monkeypatch.setattr(workers, "is_trained", lambda site, name: name in stand_in.order)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(Site, "record", lambda site, name: None)
    return stand_in


def cells_of(**teachers: str) -> dict[str, Cell]:
    """Cells by name, each with the name of its teacher or ""."""
    return {
        name: Cell(name, Settings(), {"T": teacher} if teacher else {}, "", "little", ("pgd-2",))
        for name, teacher in teachers.items()
    }


def test_a_student_comes_after_its_teacher_and_others_do_not_wait(made: Made, tmp_path: Path) -> None:
    heard: list[Message] = []
    take_part(Work(cells_of(s="t", a="", t="", u="s"), Site(tmp_path)), heard.append)
    assert made.order == ["a", "t", "s", "u"]
    assert [(message.kind, message.cell) for message in heard if message.kind != "training"] == [
        (kind, name) for name in made.order for kind in ("began", "done")
    ]


def test_a_failure_stops_no_other_and_is_not_tried_twice_in_a_session(made: Made, tmp_path: Path) -> None:
    made.fails = {"t"}
    work, heard = Work(cells_of(t="", s="t", u="s", a=""), Site(tmp_path)), list[Message]()
    take_part(work, heard.append)
    assert made.order == ["a"]
    assert [message.text for message in heard if message.kind == "failed"] == ["t: expected luck, got none"]
    why = failure(work.site, "t")
    assert why is not None
    assert why["error"] == "t: expected luck, got none"
    again: list[Message] = []
    take_part(work, again.append)
    assert again == [], "another worker of the session leaves it alone"
    made.fails = set()
    take_part(replace(work, session="the next day"), again.append)
    assert made.order == ["a", "t", "s", "u"]
    assert failure(work.site, "t") is None


def test_a_fault_of_ours_is_kept_with_its_traceback(made: Made, tmp_path: Path) -> None:
    def fault(name: str) -> None:
        raise ZeroDivisionError("of ours")

    made.before = fault
    work = Work(cells_of(a=""), Site(tmp_path))
    take_part(work, lambda message: None)
    why = failure(work.site, "a")
    assert why is not None
    assert why["error"] == "ZeroDivisionError: of ours"
    assert "in fault" in why["traceback"]


def test_what_another_process_holds_is_passed_over_and_looked_at_again(made: Made, tmp_path: Path) -> None:
    site = Site(tmp_path)
    work = Work(cells_of(a="", b="", c=""), site)
    held = site.lock("a")
    with held:
        assert site.is_locked("a")
        take_part(work, lambda message: None)
        assert made.order == ["b", "c"], "a worker does not wait for what is made elsewhere"
    take_part(work, lambda message: None)
    assert made.order == ["b", "c", "a"]


def test_a_student_waits_for_a_teacher_that_another_process_trains(made: Made, tmp_path: Path) -> None:
    site = Site(tmp_path)
    looks = 0
    held = site.lock("t")

    def released(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            made.order.append("t")
            held.__exit__(None, None, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.time, "sleep", released)
        take_part(Work(cells_of(t="", s="t"), site), lambda message: None)
    assert made.order == ["t", "s"]


def test_ctrl_c_ends_the_worker(made: Made, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        raise Interrupted("stopped")

    made.before = stop
    heard: list[Message] = []
    work = Work(cells_of(a="", b=""), Site(tmp_path))
    with pytest.raises(Interrupted):
        take_part(work, heard.append)
    assert [message.kind for message in heard] == ["began", "interrupted"]
    assert failure(work.site, "a") is None, "to be stopped is no failure"
    assert not work.site.is_locked("a")


def test_how_many_workers_have_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    site = Site(tmp_path)
    one = {"a": Cell("a", Settings(threads=1), {}, "", "x", ())}
    cells = list(one.values())
    assert [p.threads for p in sites_for(site, cells, None, "cpu")] == [1] * 6
    assert [p.threads for p in sites_for(site, cells, 2, "cpu")] == [3, 3], "for cells that say no threads"
    free = [Cell("a", Settings(), {}, "", "x", ())]
    assert [p.threads for p in sites_for(site, free, None, "cpu")] == [6]
    assert {p.device for p in sites_for(site, cells, 2, "cpu")} == {"cpu"}
    with pytest.raises(Refused, match="at least 1"):
        sites_for(site, cells, 0, "cpu")


# with training -------------------------------------------------------------------------------------------------------
def test_workers_of_two_commands_share_the_work_and_make_what_one_makes(tmp_path: Path) -> None:
    cells = little(tmp_path, hosts='["ard"]', boundary="false").cells
    alone, shared = Site(tmp_path / "alone"), Site(tmp_path / "shared")
    alone.runs.mkdir()
    take_part(Work(cells, alone), lambda message: None)
    heard: list[Message] = []
    run_here(Work(cells, shared), [shared, shared], heard.append)
    assert sorted(message.cell for message in heard if message.kind == "done") == sorted(cells)
    assert {message.worker for message in heard if message.kind == "began"} <= {0, 1}
    one, two = collect(alone.runs), collect(shared.runs)
    assert one.keys() == two.keys() == cells.keys()
    for name in cells:
        assert mismatches(one[name], two[name]) == []
    assert {each.state for each in statuses_of(cells, shared).values()} == {"done"}


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
    site = Site(runs)
    while time.monotonic() < until and any(site.is_locked(name) for name in choice.cells):
        time.sleep(0.05)  # workers whose parent was killed save and end
    begun = [name for name, cell in choice.cells.items() if status_of(cell, site).state == "begun"]
    assert begun, "it was ended in the middle"
    whole = Site(tmp_path / "whole")
    whole.runs.mkdir()
    for here in (site, whole):
        take_part(Work(choice.cells, here), lambda message: None)
    for name in choice.cells:
        assert mismatches(collect(whole.runs)[name], collect(runs)[name]) == []


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_cell_alone(tmp_path: Path) -> None:
    cells = little(tmp_path, hosts='["pgd_at"]', batch_size=8, epochs=12).cells
    site, heard, killed = Site(tmp_path / "runs"), list[Message](), list[str]()

    def kill_the_first(message: Message) -> None:
        heard.append(message)
        if message.kind == "training" and not killed:
            killed.append(message.cell)
            found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True)
            for pid in map(int, found.stdout.split()):
                if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)

    run_here(Work(cells, site), [site], kill_the_first)
    failed = [message for message in heard if message.kind == "failed"]
    assert [message.cell for message in failed] == killed
    assert "signal 9" in failed[0].text
    statuses = statuses_of(cells, site)
    assert [name for name, each in statuses.items() if each.state == "failed"] == killed
    assert all(each.state == "done" for name, each in statuses.items() if name not in killed)
