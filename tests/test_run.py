"""The run folder: made once, never over something else, and readable after any death."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import net, same, state

from mmard.errors import Refused
from mmard.files import UNFINISHED
from mmard.run import LIMITS, Run, commit, environment, kernels, now


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"epochs": 3, "method": "rslad"})


# making and opening ---------------------------------------------------------------------------------------------------
def test_the_build_of_pytorch_is_said_where_its_metadata_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.13.0")
    run = Run.create(tmp_path / "run", {})
    (here,) = json.loads(run.environment_file.read_text())
    assert here["versions"]["torch"] == str(torch.__version__)


def test_a_new_run_holds_its_config_and_where_it_was_made(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "deep" / "er" / "run", {"epochs": 3})
    assert sorted(file.name for file in run.path.iterdir()) == ["config.json", "environment.json"]
    assert Run.open(str(run.path)).config == {"epochs": 3}
    (here,) = json.loads((run.path / "environment.json").read_text())
    assert here["versions"]["torch"] == torch.__version__
    assert not run.has_state
    assert run.log() == run.score_records() == []


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert Run.create(tmp_path, {}).config == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("config.json", "expected a new folder, got one that holds a run; resume it with --resume .*run, or choose"),
        ("thesis.tex", "expected a new or empty folder, got one with other files; choose another --out"),
        (None, "expected a new or empty folder, got a file; choose another --out"),
    ],
)
def test_a_folder_in_use_is_refused_and_untouched(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if content is None:
        path.write_text("mine")
    else:
        path.mkdir()
        (path / content).write_text("mine")
    for make in (Run.refuse_taken, lambda path: Run.create(path, {})):
        with pytest.raises(Refused, match=words):
            make(path)
    assert (path if content is None else path / content).read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == (1 if content is None else 2)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="expected to make this folder, got Not a directory"):
        Run.create(tmp_path / "file" / "run", {})


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"expected a run folder, got a folder without config\.json; mmard train and"):
        Run.open(tmp_path)
    with pytest.raises(Refused, match="expected a run folder, got no such folder"):
        Run.open(tmp_path / "absent")


def test_a_broken_config_is_named(run: Run) -> None:
    (run.path / "config.json").write_text("[1]")
    with pytest.raises(Refused, match=r"config\.json: expected an object of settings, got list"):
        _ = Run.open(run.path).config


# environment ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", ["mmard", "__main__.py"], ids=["mmard", "python -m mmard"])
def test_every_process_is_noted(program: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{program}", "distill", "--out", "a folder"])
    run.note_environment()
    first, second = json.loads((run.path / "environment.json").read_text())
    assert second["command"] == "mmard distill --out 'a folder'"
    assert first.keys() == second.keys()


def test_the_environment_says_where_a_number_was_made() -> None:
    here = environment()
    assert json.loads(json.dumps(here)) == here
    assert here["threads"] == torch.get_num_threads()
    assert here["cores"] == os.cpu_count()
    assert here["commit"] is None or len(here["commit"].removesuffix("+dirty")) == 40
    assert set(here) >= {"mmard", "python", "versions", "platform", "cpu", "gpus", "written"}
    chosen_by = here["kernels"]
    assert chosen_by["capability"] == torch.backends.cpu.get_cpu_capability()
    assert chosen_by["build"].startswith(f"PyTorch {torch.version.git_version}")
    assert chosen_by["limits"] == {name: os.environ[name] for name in LIMITS if name in os.environ}


def test_what_keeps_kernels_from_instructions_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert environment()["kernels"]["limits"]["ONEDNN_MAX_CPU_ISA"] == "SSE41"


def test_the_processor_is_read_as_linux_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nvendor_id\t: Acme\ncpu family\t: 6\nmodel\t\t: 85\nstepping\t: 7\n"
    text += "model name\t: Acme One\nflags\t\t: fpu sse4_1 avx2 avx512f rdrand\n\nprocessor\t: 1\nflags\t: none\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    here = kernels()
    assert (here["processor"], here["instructions"]) == ("Acme 6 85 7", "avx2 avx512f sse4_1")
    assert now() == now()[:19] + "+00:00"


# log ------------------------------------------------------------------------------------------------------------------
def test_events_come_back_in_order(run: Run) -> None:
    events = [{"kind": "step", "step": n, "epoch": 0, "loss": n / 3} for n in range(5)]
    for event in events:
        run.append(event)
    assert run.log() == events


def test_a_torn_last_line_is_dropped_and_what_follows_it_is_read(run: Run) -> None:
    run.append({"kind": "step", "step": 1, "epoch": 0})
    with run.log_file.open("a") as log:
        log.write('{"kind": "step", "step": 2, "ep')
    assert run.log() == [{"kind": "step", "step": 1, "epoch": 0}]
    run.rewind_log(1, 0)
    run.append({"kind": "step", "step": 2, "epoch": 0})
    assert run.log() == [{"kind": "step", "step": 1, "epoch": 0}, {"kind": "step", "step": 2, "epoch": 0}]


def test_rewinding_drops_what_came_later(run: Run) -> None:
    places = [(0, 0), (3, 0), (3, 1), (4, 1), (6, 1), (6, 2)]
    for step, epoch in places:
        run.append({"kind": "step", "step": step, "epoch": epoch})
    for step, epoch in reversed(places):
        run.rewind_log(step, epoch)
        kept = [(e["step"], e["epoch"]) for e in run.log()]
        assert kept == [place for place in places if place <= (step, epoch)]
    run.rewind_log(-1, -1)
    assert run.log() == []


# weights, state, scores -----------------------------------------------------------------------------------------------
def test_weights_and_state_come_back(run: Run) -> None:
    run.save_weights("best", state(net(1)), {"epoch": 2})
    run.save_weights("last", state(net(2)), {"epoch": 3})
    run.save_state(state(net(3)), {"position": {"step": 9}})
    again = Run.open(run.path)
    assert again.has_state
    for (tensors, facts), seed, expected in (
        (again.load_weights("best"), 1, {"epoch": 2}),
        (again.load_weights("last"), 2, {"epoch": 3}),
        (again.load_state(), 3, {"position": {"step": 9}}),
    ):
        assert same(tensors, state(net(seed)))
        assert facts == expected


@pytest.mark.parametrize("which", ["best", "last"])
def test_weights_that_were_never_saved_are_refused(run: Run, which: str) -> None:
    with pytest.raises(Refused, match=f"expected {which} weights, got a run without any; has it been trained"):
        run.load_weights(which)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "expected JSON"),
        ("config.json", "[]", "expected an object of settings"),
        ("config.json", '{"method": []}', "setting method: expected"),
        ("config.json", '{"method": "ard", "teachers": {"T": [[]]}}', "setting teachers: expected"),
        ("config.json", '{"method": "ard", "eps": NaN}', "setting eps: expected"),
        ("engine.json", "[1]", "expected twin, precision and why of each network"),
        ("engine.json", '{"S": 1}', "expected twin, precision and why of each network"),
        ("engine.json", '{"S": {"twin": false, "why": ""}}', "expected twin, precision and why of each network"),
        ("engine.json", '{"S": {"twin": true, "precision": "float32", "why": ""}}', "expected twin, precision"),
        ("environment.json", "{}", "expected a list of environments"),
        ("environment.json", "\xff", "expected JSON"),
    ],
)
def test_damaged_files_are_refused_in_a_line(run: Run, name: str, content: str, words: str) -> None:
    (run.path / name).write_bytes(content.encode("latin1"))
    read = {"config.json": lambda: run.config, "engine.json": lambda: run.engine}.get(name, run.note_environment)
    with pytest.raises(Refused, match=f"{name}.*{words}"):
        read()


def test_lines_of_the_log_that_are_no_events_are_left_out(run: Run) -> None:
    run.log_file.write_bytes(
        b'[1]\n{"step": 1}\n{"kind": 3}\n{"kind": "step", "step": "three"}\n'
        b'\xff\xfe\n7\n{"kind": "epoch", "step": 3}\n{"kind'
    )
    assert run.log() == [{"kind": "epoch", "step": 3}]
    run.rewind_log(3, 0)
    assert run.log_file.read_text() == '{"kind": "epoch", "step": 3}\n'


def test_what_a_killed_start_left_blocks_no_other(tmp_path: Path) -> None:
    (tmp_path / f".config.json.x{UNFINISHED}").write_text("")
    (tmp_path / ".lock").write_text("")
    run = Run.create(tmp_path, {"seed": 0})
    assert sorted(file.name for file in run.path.iterdir()) == [".lock", "config.json", "environment.json"]


def test_scores_are_records_with_masks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([True, False, True])
    run.save_score("a", {"attack": "clean", "correct": 2}, mask)
    run.save_score("b", {"attack": "pgd-20", "correct": 3}, ~mask)
    run.save_score("b", {"attack": "pgd-20", "correct": 1}, ~mask)
    written: list[Path] = []

    def dying(opened: Any, _: object) -> None:
        written.append(Path(opened.name))
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        run.save_score("c", {"attack": "cw-30", "correct": 2}, mask)
    assert [file.name.startswith(".c.npy.") for file in written] == [True], "the mask first, under a name nobody reads"
    assert not any(run.scores.glob("*c.*"))
    assert run.score_records() == [{"attack": "clean", "correct": 2}, {"attack": "pgd-20", "correct": 1}]
    assert np.array_equal(np.load(run.scores / "a.npy"), mask)
    assert np.array_equal(np.load(run.scores / "b.npy"), ~mask)


def test_a_commit_is_dirty_where_code_differs_and_where_it_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "environment.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr("mmard.run.__file__", str(package / "environment.py"))
    clean = commit()
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "result.json").write_text("{}")
    assert commit() == clean, "a result beside the package is no code"
    (package / "new.py").write_text("")
    assert commit() == clean + "+dirty"
    (package / "new.py").unlink()
    (package / "environment.py").write_text("changed = True\n")
    assert commit() == clean + "+dirty"
