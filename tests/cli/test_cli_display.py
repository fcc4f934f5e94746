"""What a training shows while it runs, in a terminal, in a file and in TensorBoard."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typed import SMALL, SRC, Typed

from mmard.progress import AttackBoard, Board, TrainingBoard, progress_shown
from mmard.run import Run
from mmard.screen import THEME


# display ------------------------------------------------------------------------------------------
def event(kind: str, step: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "epoch": step // 4, "epoch_step": step % 4, "seconds": seconds, **more}


def an_epoch(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    numbers = {"lr": 0.1, "loss": 1.5, "adv": 1.0, "nat": 0.5, "reach": 0.03, "clean": 0.9, "robust": 0.4}
    return event("epoch", step, seconds, **{**numbers, **more})


def test_time_left_is_of_this_process_alone() -> None:
    watch = TrainingBoard(Console(file=io.StringIO()), epochs=5, steps=4, attack="PGD-1 at linf 0.1", moves=True)
    assert watch.left() is None
    watch.recall([an_epoch(4, 100.0, best=True)])
    watch.see(event("resume", 8, 1000.0))
    assert watch.left() is None
    watch.see(event("tick", 10, 1004.0))
    assert watch.left() == 20.0  # two steps in four seconds, ten to go
    assert watch.best["epoch"] == 1, "the best epoch of an earlier process is not forgotten"


def test_lines_for_a_file() -> None:
    out = io.StringIO()
    screen = Console(file=out, width=30, highlight=False)
    shown = TrainingBoard(screen, epochs=2, steps=4, attack="PGD-1 at linf 0.1", moves=False, every=0.0)
    for each in (event("start", 0, 0.0), event("tick", 3, 3.0), an_epoch(4, 4.0, best=True)):
        shown(each)
    assert out.getvalue() == (
        "epoch 1/2: step 0/4 (0 s)\n"
        "epoch 1/2: step 3/4 (3 s, about 5 s left)\n"
        "epoch 1/2: lr 0.1, loss 1.5, validation 90.0% clean, 40.0% under PGD-1 at linf 0.1, best so far "
        "(4 s, about 4 s left)\n"
    )


def test_the_moving_picture_fits_a_narrow_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, highlight=False, color_system=None, theme=THEME)
    moving = TrainingBoard(console, epochs=200, steps=4, attack="PGD-10 at linf 8/255", moves=True)
    moving(an_epoch(4, 4000.0, best=True))
    console.print(moving.picture())
    moving(event("step", 7, 4100.0, lr=0.1, loss=1.25, **{f"a_long_name_{i}": 0.1 for i in range(9)}))
    console.print(moving.picture())
    for line in out.getvalue().splitlines():
        assert len(line) <= 80, line
    assert "epoch 2/200" in out.getvalue()
    assert "90.0% clean, 40.0% under PGD-10 at linf 8/255; best in epoch 1" in out.getvalue()


def test_a_tick_costs_nothing_to_speak_of() -> None:
    moving = TrainingBoard(Console(file=io.StringIO()), epochs=5, steps=4, attack="PGD-1", moves=True)
    tick = event("tick", 1, 0.1)
    began = time.process_time()
    for _ in range(10_000):
        moving(tick)
    assert time.process_time() - began < 1.0, "0.1 ms a step is a thousandth of the shortest step there is"


def drawn(board: Board) -> str:
    with board.out.capture() as captured:
        board.out.print(board.picture())
    return captured.get()


def test_attacks_show_what_is_left_of_the_images() -> None:
    board = AttackBoard(Console(file=io.StringIO(), width=100, theme=THEME))
    for name in map(str, range(9)):
        board(f"pgd-{name}", 30, 60, 12)
    board("pgd-3", 60, 60, 7)
    text = drawn(board)
    assert "pgd-0" not in text, "the latest eight are shown"
    assert re.search(r"pgd-3 .* 60/60 images, 7 right\s*$", text, re.MULTILINE), "what is done has no time left"
    assert re.search(r"pgd-8 .* 30/60 images, 12 right +\S.* left", text)


def test_a_file_gets_a_line_on_attacks_now_and_then() -> None:
    out = io.StringIO()
    board = AttackBoard(Console(file=out, width=30), moves=False, every=3600.0)
    board("pgd-20", 30, 60, 12)
    assert out.getvalue() == "", "nothing is said before its time"
    board.every = 0.0
    board("pgd-20", 40, 60, 10)
    board("pgd-20", 60, 60, 9)
    first, last = out.getvalue().splitlines()
    assert re.fullmatch(r"pgd-20: 40/60 images, 10 right, about \S.* left", first)
    assert last == "pgd-20: 60/60 images, 9 right"
    with progress_shown() as shown:
        assert (shown.moves, shown.out.stderr) == (False, True), "standard error is no terminal here"


def test_a_terminal_sees_rows_and_gets_its_cursor_back() -> None:
    import pty

    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-m", "mmard", "train", *SMALL, "--model", "cnn-1", "--epochs", "2", "--out", "n"]
    process = subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(timeout=300) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n")
    assert re.search(r"epoch +lr +loss +clean +PGD-2 at linf 0.15 +time", text)
    assert re.search(r"^ +2/2 +\S+ +\S+ +\S+% +\S+% +\S+ s", text, re.MULTILINE)
    assert "mmard evaluate n" in text
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")


# tensorboard --------------------------------------------------------------------------------------
def test_tensorboard_has_what_the_log_has(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (
        Typed(capsys, "train", *SMALL, "--model", "cnn-1", "--epochs", "3", "--out", "n", "--tensorboard").status == 0
    )
    found = EventAccumulator("n/tensorboard")
    found.Reload()
    epochs = [e for e in Run.open("n").log() if e["kind"] == "epoch"]
    for name in ("loss", "clean", "robust", "lr"):
        written = [(s.step, s.value) for s in found.Scalars(f"epoch/{name}")]
        assert written == [(e["step"], pytest.approx(e[name], rel=1e-6)) for e in epochs]
    assert "step/loss" in found.Tags()["scalars"]


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mmard.training.log import TensorBoard

    first = TensorBoard(tmp_path)
    for each in (event("start", 0, 0.0), an_epoch(4, 1.0), an_epoch(8, 2.0, loss=7.0), an_epoch(12, 3.0, loss=7.0)):
        first(each)
    first.close()
    second = TensorBoard(tmp_path)
    for each in (event("resume", 4, 1.0), event("tick", 5, 1.1), an_epoch(8, 2.0)):
        second(each)
    second.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(s.step, s.value) for s in found.Scalars("epoch/loss")] == [(4, 1.5), (8, 1.5)]
