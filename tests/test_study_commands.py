"""`mmard study` as it is typed: what there is to do, how it goes, how it stands, what failed; and as jobs."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import invented_cells
import pytest
import torch
from little_study import in_this_process, little

from mmard.cli import answer
from mmard.cli.study import Selection
from mmard.data import load
from mmard.errors import Refused
from mmard.progress import StudyBoard
from mmard.screen import console
from mmard.study import boundary
from mmard.study.cell import Site
from mmard.study.grid import choose
from mmard.study.progress import TimeEstimate, cell_kind, statuses_of, wall_seconds
from mmard.study.records import collect, read
from mmard.study.workers import JobLimits, Message, Work, submit


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(boundary, "IMAGES", 64)
    monkeypatch.setattr(boundary, "NEAREST", 4)


def typed(*words: str) -> int:
    return answer(["study", *words])


def test_what_there_is_to_do_is_said_and_nothing_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    little(tmp_path)
    assert typed("run", "two.toml", "--scale", "little.toml", "--runs", "r", "--jobs", "2", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "5 cells, 0 of them finished, in r" in text
    assert "with 2 workers, from passes counted and networks timed" in text
    assert "two" in text
    assert not (tmp_path / "r").exists()


def test_a_study_as_it_is_typed_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher and a student of seed 0: run, a failure, status, records, rerun."""
    in_this_process(monkeypatch)
    choice = little(tmp_path, hosts='["ard"]', boundary="false")
    where = ("two.toml", "--scale", "little.toml", "--runs", "r", "--seeds", "1")
    (tmp_path / "r" / list(choice.cells)[1]).mkdir(parents=True)
    (tmp_path / "r" / list(choice.cells)[1] / "notes.txt").write_text("somebody's own")
    assert typed("run", *where, "--jobs", "1") == 1, "one of two cells cannot be made"
    out, err = capsys.readouterr()
    assert "2/2" in out
    assert "one with other files" in err
    assert typed("status", *where) == 0
    text = capsys.readouterr().out
    assert "failed" in text
    assert "one with other files" in text
    assert "mmard study run two.toml --scale little.toml --runs r --seeds 1" in text
    (tmp_path / "r" / list(choice.cells)[1] / "notes.txt").unlink()
    assert typed("run", *where, "--jobs", "1") == 0
    text = capsys.readouterr().out
    assert "2 cells, 1 of them finished, in r." in text
    assert "last weights" in " ".join(text.split()), "it ends with the table, of the weights that the scale speaks of"
    assert typed("run", *where) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert typed("status", *where, "--json") == 0
    assert {each["state"] for each in json.loads(capsys.readouterr().out).values()} == {"done"}
    for new in ("2 new", "0 new"):
        assert typed("records", *where, "--out", "r.jsonl") == 0
        assert f"2 records of 2 cells; {new} in r.jsonl, which has 2." in capsys.readouterr().out
    assert read(tmp_path / "r.jsonl") == collect(tmp_path / "r")
    student = list(choice.cells)[1]
    assert typed("rerun", student, "--records", "r.jsonl", "--runs", "again") == 0
    assert "the same to the bit" in capsys.readouterr().out
    lines = (tmp_path / "r.jsonl").read_text().replace('"best_epoch": ', '"best_epoch": 1')
    (tmp_path / "r.jsonl").write_text(lines)
    assert typed("rerun", student, "--records", "r.jsonl", "--runs", "again") == 1
    text = capsys.readouterr().out
    assert "different: fewer than 3 seeds are recorded, so that their spread is not known; 1 difference." in text
    lines = re.sub(r'"threads": 1, "kernels"', '"threads": 1, "no"', lines)
    (tmp_path / "r.jsonl").write_text(lines)
    assert typed("rerun", student, "--records", "r.jsonl", "--runs", "again", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["same"], said["verdict"], said["spread"]) == (False, "different", [])
    assert said["machine"]["capability"] == [None, torch.backends.cpu.get_cpu_capability()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "two.toml", "--scale", "little.toml", "--only", "zzz"), "--only: expected a part of"),
        (("run", "plug-and-pray"), "did you mean 'plug-and-play'?"),
        (("run", "all", "--scale", "XL"), "expected one of C8, C16, L, M, S"),
        (("run", "two.toml", "--scale", "little.toml", "--jobs", "0"), "jobs: expected at least 1"),
        (("run", "two.toml", "--scale", "little.toml", "--launcher", "pbs"), "expected one of local, slurm"),
        (("run", "two.toml", "--scale", "little.toml", "--device", "tpu"), "device 'tpu'"),
        (("runn",), "did you mean 'run'?"),
        (("rerun", "x", "--records", "none.jsonl"), "none.jsonl: expected a file of records"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str) -> None:
    little(tmp_path)
    assert typed(*words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_what_is_declared_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("list") == 0
    text = capsys.readouterr().out
    assert "plug-and-play" in text
    assert re.search(r"S \d+", text)


# choosing ------------------------------------------------------------------------------------------------------------
def test_only_some_cells_come_with_their_teachers(tmp_path: Path) -> None:
    whole = choose(["plug-and-play"], "S")
    some = choose(["plug-and-play"], "S", only="adaad", seeds=2)
    assert {cell.settings.host for cell in some.cells.values() if not cell.role} == {"adaad"}
    assert [cell.role for cell in some.cells.values() if cell.role] == ["teacher main"]
    assert {cell.seed for cell in some.cells.values()} == {0, 1}
    assert list(some.cells) == [name for name in whole.cells if name in some.cells]
    several = choose(["all"], "S")
    assert [grid.study.name for grid in several.grids] == list(several.scale.order)
    assert len(several.cells) < sum(len(grid.cells) for grid in several.grids), "what is shared is made once"
    both = choose(["plug-and-play", "boundary"], "S")
    assert any(cell.boundary for cell in both.cells.values())


# time ----------------------------------------------------------------------------------------------------------------
def test_a_cell_is_expected_to_take_what_its_kind_took() -> None:
    grid = invented_cells.little("plug-and-play", ("rslad", "ard"))
    made = invented_cells.records(grid)
    first, second = (row.cells for row in grid.rows)
    known = {name: made[name] for name in first[:2]}
    splits = load("digits")
    expected = TimeEstimate(splits, torch.device("cpu"), known, grid.cells)
    assert expected.seconds(grid.cells[first[2]]) == pytest.approx(64.0), "60 of training and 4 of attacks"
    other = grid.cells[second[0]]
    assert cell_kind(other) != cell_kind(grid.cells[first[0]])
    ratio = 64.0 / expected.guess(grid.cells[first[0]])
    assert expected.seconds(other) == pytest.approx(expected.guess(other) * ratio), "guesses are corrected"
    bare = TimeEstimate(None, torch.device("cpu"), {}, grid.cells)
    assert bare.seconds(other) == 0.0, "nothing is known, and nothing made up"


def test_a_guess_grows_with_what_there_is_to_do() -> None:
    grid = invented_cells.little("plug-and-play", ("rslad",))
    cell = grid.cells[grid.rows[0].cells[0]]
    expected = TimeEstimate(load("digits"), torch.device("cpu"), {}, grid.cells)
    longer = replace(cell, settings=cell.settings.model_copy(update={"epochs": 10 * cell.settings.epochs}))
    assert expected.guess(longer) > 5 * expected.guess(cell)
    assert expected.guess(replace(cell, attacks=("pgd-500",))) > expected.guess(cell)


def test_workers_share_the_time_but_not_a_teacher() -> None:
    grid = invented_cells.little("plug-and-play", ("rslad",))
    teacher, *students = grid.cells
    expected = {teacher: 100.0, **dict.fromkeys(students, 10.0)}
    assert wall_seconds(expected, grid.cells, 1) == 100 + 10 * len(students)
    assert wall_seconds(expected, grid.cells, 50) == 110.0, "a student waits for its teacher"


def test_what_is_left_follows_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = console()
    site = SimpleNamespace(record=lambda name: None)
    board = StudyBoard(screen, site, {"a": 10.0, "b": 10.0, "c": 20.0}, 2)  # type: ignore[arg-type]
    assert board.left() == 20.0
    board(Message(0, "began", "a"))
    board(Message(0, "training", "a", share=0.5))
    assert board.left() == pytest.approx((40 - 0.35 * 10) / 2)
    board(Message(0, "done", "a", 1.0, 20.0))
    assert board.left() == pytest.approx(30.0), "twice as slow as expected, of a quarter of it"
    board(Message(1, "failed", "b", text="no luck"))
    board(Message(1, "lost", "", text="signal 9"))
    assert board.failed == {"b": "no luck"}
    assert board.lost == ["worker 2: signal 9"]
    assert board.left() == pytest.approx(20.0)
    with screen.capture() as captured:
        screen.print(board.picture())
    assert "2/3 cells, 1 failed" in captured.get()


# jobs ----------------------------------------------------------------------------------------------------------------
def test_jobs_make_what_a_worker_makes(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    choice = little(tmp_path, hosts='["pgd_at"]')
    work = Work(choice.cells, Site(tmp_path / "r"))
    handles = submit(work, 1, "submitit-local", JobLimits(minutes=5))
    assert [each.result() for each in handles] == [{"done": 2, "failed": 0}]
    assert {each.state for each in statuses_of(choice.cells, work.site).values()} == {"done"}
    assert str(tmp_path) not in json.dumps(collect(tmp_path / "r"))


def test_a_job_that_is_ended_is_queued_again_as_the_same_work(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from mmard.study.workers import ClusterJob

    part = ClusterJob(Work({}, Site(tmp_path)))
    again: Any = part.checkpoint()
    assert again.function == part
    assert part() == {"done": 0, "failed": 0}


def test_where_there_is_no_cluster_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work({}, Site(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="no srun here"):
        submit(work, 1, "slurm", JobLimits())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(Refused, match=r'pip install "mmard\[cluster\]"'):
        submit(work, 1, "slurm", JobLimits())


def test_the_command_to_go_on_with_is_whole() -> None:
    selection = Selection(
        names=["all", "my own.toml"], scale="M", runs=Path("a b"), only="rslad", seeds=2, data_dir=Path("/data")
    )
    assert selection.words == "all 'my own.toml' --scale M --runs 'a b' --only rslad --seeds 2 --data-dir /data"
