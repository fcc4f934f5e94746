"""What a user sees while cells are made: a table that moves in a terminal, a line for each cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mmard.cli.output import is_terminal, line
from mmard.words import duration, percent, plural

if TYPE_CHECKING:
    from mmard.study.place import Place
    from mmard.study.running import Told

TRAINING_SHARE = 0.7
"""Of a cell's time, before its attacks; for the bars alone."""


class Board:
    """What is known of the cells that are being made, from what workers tell.

    Args:
        place: of the runs, where the figures of a finished cell are read.
        expected: seconds of each cell that is to be made.
        jobs: workers.
        screen: where lines go.
    """

    def __init__(self, place: Place, expected: Mapping[str, float], jobs: int, screen: Console) -> None:
        self.place, self.expected, self.jobs, self.screen = place, dict(expected), max(1, jobs), screen
        self.done: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.lost: list[str] = []
        self.running: dict[str, tuple[str, float, float]] = {}
        self.began = time.monotonic()

    def __call__(self, told: Told) -> None:
        """Take in what a worker tells."""
        if told.kind in ("began", "training", "attacking"):
            stage = "starting" if told.kind == "began" else told.kind
            past = TRAINING_SHARE if told.kind == "attacking" else 0.0
            rest = 1 - TRAINING_SHARE if told.kind == "attacking" else TRAINING_SHARE
            before = self.running.get(told.cell)
            self.running[told.cell] = (stage, past + rest * told.share, before[2] if before else time.monotonic())
            return
        self.running.pop(told.cell, None)
        if told.kind == "lost":
            self.lost.append(f"worker {told.worker + 1}: {told.text}")
        elif told.kind == "done":
            self.done[told.cell] = told.seconds
            self._line(f"{told.cell}  {self.figures(told.cell)}  {duration(told.seconds)}")
        elif told.kind == "failed":
            self.failed[told.cell] = told.text
            self._line(f"{told.cell}  failed: {told.text}", "strong")

    def _line(self, text: str, style: str = "") -> None:
        over = len(self.done) + len(self.failed)
        rest = self.left()
        about = "" if is_terminal() or rest is None else f"; about {duration(rest)} left"
        line(self.screen, f"{over}/{len(self.expected)}  {text}{about}", style)
        self.screen.file.flush()

    def figures(self, cell: str) -> str:
        """Of a cell that has been finished: its last weights."""
        record = self.place.record(cell)
        if record is None:
            return ""
        own = record["figures"]["last"]
        return f"{percent(own['clean']['accuracy'])} clean, {percent(own['robust']['accuracy'])} robust"

    def left(self) -> float | None:
        """Seconds to go: what was expected, corrected by how it has held so far; None where nothing is known."""
        whole = sum(self.expected.values())
        over = sum(self.expected.get(name, 0.0) for name in (*self.done, *self.failed))
        part = sum(self.expected.get(name, 0.0) * share for name, (_, share, _) in self.running.items())
        if whole <= 0:
            spent, n = time.monotonic() - self.began, len(self.done)
            return spent / n * (len(self.expected) - n - len(self.failed)) if n else None
        known = sum(self.expected.get(name, 0.0) for name in self.done)
        # The estimate rules at the start; what was seen since takes over as it grows.
        trust = min(1.0, 4 * known / whole)
        pace = (1 - trust) + trust * sum(self.done.values()) / known if known > 0 else 1.0
        return max(whole - over - part, 0.0) * pace / self.jobs

    def picture(self) -> Group:
        """The whole, and a bar for every cell that is being made."""
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for ratio, wide in ((None, 34), (1, None), (None, 10), (None, 18)):
            grid.add_column(ratio=ratio, no_wrap=True, min_width=wide)
        over, rest = len(self.done) + len(self.failed), self.left()
        failed = f", {len(self.failed)} failed" if self.failed else ""
        grid.add_row(
            Text(f"{over}/{plural(len(self.expected), 'cell')}{failed}", style="strong"),
            _bar(over / max(1, len(self.expected))),
            "",
            "" if rest is None else f"{duration(rest)} left",
        )
        for name, (stage, share, began) in list(self.running.items()):
            spent = time.monotonic() - began
            left = f"{duration(spent / share * (1 - share))} left" if share > 0.05 else ""
            grid.add_row(Text(name, overflow="ellipsis"), _bar(share), Text(stage, "quiet"), Text(left, "quiet"))
        return Group(Text(), grid)


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=min(share, 1.0), complete_style="command", finished_style="command")


@contextmanager
def shown(board: Board) -> Iterator[Callable[[Told], None]]:
    """The board, redrawn in a terminal."""
    if not is_terminal():
        yield board
        return
    with Live(get_renderable=board.picture, console=board.screen, refresh_per_second=4, transient=True):
        yield board
