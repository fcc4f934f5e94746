"""How far trainings, attacks and studies are: bars in a terminal, lines in a file or a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mmard.screen import PlainConsole, is_terminal, watched
from mmard.words import duration, percent, plural, printable, significant

if TYPE_CHECKING:
    from mmard.study.cell import Site
    from mmard.study.workers import Message


@dataclass(frozen=True)
class BoardRow:
    """One thing that is being done: which share of it is done, a word, and the time that is left."""

    name: str
    share: float
    note: str = ""
    rest: str = ""
    style: str = "quiet"


class Board:
    """What a command is at: lines that stay, and bars that move below them where somebody watches.

    What happens is only noted; a thread of rich's asks for the bars, four times a second.
    """

    def __init__(self, out: Console, moves: bool | None = None) -> None:
        self.out, self.moves = out, is_terminal() if moves is None else moves

    def bars(self) -> Iterable[BoardRow]:
        """What is being done now, the whole first."""
        return ()

    def words(self) -> Iterable[str]:
        """Lines below the bars."""
        return ()

    def say(self, text: str, style: str = "") -> None:
        """A line that stays, whole however long it is."""
        self.out.print(Text(printable(text), style=style), soft_wrap=True)
        self.out.file.flush()

    def picture(self) -> Group:
        """The bars and the lines below them."""
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for ratio in (None, 1, None, None):
            grid.add_column(ratio=ratio, no_wrap=True)
        for bar in self.bars():
            moving = ProgressBar(
                completed=100 * min(bar.share, 1.0), complete_style="command", finished_style="command"
            )
            name = Text(printable(bar.name), bar.style, overflow="ellipsis")
            grid.add_row(name, moving, Text(bar.note, "quiet"), Text(bar.rest, bar.style))
        words = [
            Text(printable(text), style="quiet", no_wrap=True, overflow="ellipsis") for text in self.words() if text
        ]
        return Group(Text(), grid, *words)

    @contextmanager
    def shown(self) -> Iterator[Self]:
        """Redraw it meanwhile, where it moves."""
        if not self.moves:
            yield self
            return
        with Live(get_renderable=self.picture, console=self.out, refresh_per_second=4, transient=True):
            yield self


Event = dict[str, Any]
LINE_EVERY_SECONDS = 60.0
"""Time between lines within an epoch where nothing moves."""


class TrainingBoard(Board):
    """A training, from its events: a line for every epoch, and for long epochs one a minute where nothing moves.

    Args:
        epochs: of the whole run.
        steps: in an epoch.
        attack: that of validation with its budget, e.g. "PGD-10 at linf 8/255".
    """

    def __init__(
        self,
        out: Console,
        epochs: int,
        steps: int,
        attack: str,
        moves: bool | None = None,
        every: float = LINE_EVERY_SECONDS,
    ) -> None:
        super().__init__(out, moves)
        self.epochs, self.steps, self.attack, self.every = epochs, steps, attack, every
        self.now: Event = {}
        self.losses: Event = {}
        self.validated: Event = {}
        self.best: Event = {}
        self.first: Event = {}
        self.headed, self.spoke = False, time.monotonic()

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        if event["kind"] == "note":
            self.say(event["text"], "quiet" if self.moves else "")
            return
        self.see(event)
        if event["kind"] == "epoch":
            self._row(event) if self.moves else self._line(event)
        elif not self.moves and time.monotonic() - self.spoke >= self.every:
            at = f"epoch {event['epoch'] + 1}/{self.epochs}: step {event['epoch_step']}/{self.steps}"
            self._timed(at, event)

    def see(self, event: Event) -> None:
        """Note what an event says."""
        self.now = event
        self.first = self.first or event
        if "loss" in event:
            self.losses = event
        if event["kind"] == "epoch":
            self.validated = event
            if event.get("best"):
                self.best = event

    def recall(self, events: Iterable[Event]) -> None:
        """Note what an earlier process logged, without its pace."""
        for event in events:
            if event["kind"] == "epoch":
                self.see(event)
        self.first, self.now = {}, {}

    def left(self) -> float | None:
        """Seconds to go at the mean pace of this process, validation included; None before there is a pace."""
        now, began = self.now, self.first
        done, spent = (now.get(key, 0.0) - began.get(key, 0.0) for key in ("step", "seconds"))
        return spent / done * (self.epochs * self.steps - now["step"]) if done > 0 and spent > 0 else None

    def bars(self) -> Iterable[BoardRow]:
        """The whole run."""
        now, left = self.now, self.left()
        share = now.get("step", 0) / (self.epochs * self.steps)
        epoch = min(int(now.get("epoch", 0)) + (now.get("kind") != "epoch"), self.epochs)
        validating = now.get("kind") in ("tick", "step") and now["epoch_step"] == self.steps
        rest = "validating" if validating else "" if left is None else f"{duration(left)} left"
        yield BoardRow(f"epoch {epoch}/{self.epochs}", share, f"{share:.0%}", rest, "strong")

    def words(self) -> Iterable[str]:
        """The last known loss with its terms, the last validation, and the best epoch so far."""
        if found := self.losses:
            from mmard.run import terms_of

            terms = [f"{name} {significant(value)}" for name, value in terms_of(found).items()]
            parts = f" = {' + '.join(terms)}" if len(terms) > 1 else ""
            yield f"lr {significant(found['lr'])}   loss {significant(found['loss'])}{parts}"
        if self.validated:
            best = f"; best in epoch {self.best['epoch']}" if self.best else ""
            yield f"validation {self._accuracies(self.validated)}{best}"

    def _accuracies(self, event: Event) -> str:
        return f"{percent(event['clean'])} clean, {percent(event['robust'])} under {self.attack}"

    def _row(self, event: Event) -> None:
        wide = max(20, len(self.attack))
        if not self.headed:
            self.say(f"{'epoch':>9} {'lr':>8}  {'loss':>6}  {'clean':>6}  {self.attack:>{wide}}  {'time':>11}", "quiet")
            self.headed = True
        row = (
            f"{event['epoch']:>4}/{self.epochs:<4} {event['lr']:>8.3g}  {significant(event['loss']):>6}  "
            f"{percent(event['clean']):>6}  {percent(event['robust']):>{wide}}  {duration(event['seconds']):>11}"
        )
        self.out.print(Text.assemble(row, ("  best", "good") if event.get("best") else ""), soft_wrap=True)

    def _line(self, event: Event) -> None:
        loss = f"lr {significant(event['lr'])}, loss {significant(event['loss'])}"
        best = ", best so far" if event.get("best") else ""
        text = f"epoch {event['epoch']}/{self.epochs}: {loss}, validation {self._accuracies(event)}{best}"
        self._timed(text, event)

    def _timed(self, text: str, event: Event) -> None:
        self.spoke = time.monotonic()
        left = self.left()
        rest = f", about {duration(left)} left" if left else ""
        self.say(f"{text} ({duration(event['seconds'])}{rest})")


MOST_BARS = 8
"""Attacks that are shown at a time."""


class AttackBoard(Board):
    """Attacks: how many images are done, and how many of these are still read rightly; bars, or a line now and then."""

    def __init__(self, out: Console, moves: bool = True, every: float = LINE_EVERY_SECONDS) -> None:
        super().__init__(out, moves)
        self.attacks: dict[str, tuple[float, int, int, int]] = {}
        self.every, self.spoke = every, time.monotonic()

    def __call__(self, name: str, done: int, of: int, right: int) -> None:
        """Take in how far an attack is."""
        began, *_ = self.attacks.get(name, (time.monotonic(),))
        self.attacks[name] = (began, done, of, right)
        if not self.moves and time.monotonic() - self.spoke >= self.every:
            self.spoke = time.monotonic()
            row = next(row for row in self.bars() if row.name == name)
            self.say(f"{name}: {row.note}" + (f", about {row.rest}" if row.rest else ""))

    def bars(self) -> Iterable[BoardRow]:
        """The latest attacks."""
        for name, (began, done, of, right) in list(self.attacks.items())[-MOST_BARS:]:
            spent = time.monotonic() - began
            rest = f"{duration(spent / done * (of - done))} left" if 0 < done < of else ""
            yield BoardRow(name, done / max(of, 1), f"{done:,}/{of:,} images, {right:,} right", rest)


@contextmanager
def progress_shown() -> Iterator[AttackBoard]:
    """How far attacks are, on standard error: bars where somebody watches, in a file a line a minute."""
    err = watched()
    with AttackBoard(err or PlainConsole(stderr=True), err is not None).shown() as board:
        yield board


@contextmanager
def shown_to_python(board: Callable[[Console, bool], Board], wanted: bool = True) -> Iterator[list[Any]]:
    """The board of a Python call, in a list: bars in a terminal, lines in a notebook, none where nobody watches.

    Args:
        board: made of a console and of whether it can redraw.
        wanted: False for none at all.
    """
    err = watched()
    notebook = err is None and Console().is_jupyter
    if not wanted or (err is None and not notebook):
        yield []
        return
    with board(err or PlainConsole(), err is not None).shown() as shown:
        yield [shown]


TRAINING_SHARE = 0.7
"""Of a cell's time, before its attacks; for the bars alone."""


class StudyBoard(Board):
    """The cells of a study that are being made, from what workers tell: a line for each that is finished.

    Args:
        site: of the runs, where the figures of a finished cell are read.
        expected: seconds of each cell that is to be made.
        jobs: workers.
    """

    def __init__(self, out: Console, site: Site, expected: Mapping[str, float], jobs: int) -> None:
        super().__init__(out)
        self.site, self.expected, self.jobs = site, dict(expected), max(1, jobs)
        self.done: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.lost: list[str] = []
        self.running: dict[str, tuple[str, float, float]] = {}
        self.began = time.monotonic()

    def __call__(self, message: Message) -> None:
        """Take in what a worker tells."""
        if message.kind in ("began", "training", "attacking"):
            stage = "starting" if message.kind == "began" else message.kind
            past = TRAINING_SHARE if message.kind == "attacking" else 0.0
            rest = 1 - TRAINING_SHARE if message.kind == "attacking" else TRAINING_SHARE
            before = self.running.get(message.cell)
            self.running[message.cell] = (stage, past + rest * message.share, before[2] if before else time.monotonic())
            return
        self.running.pop(message.cell, None)
        if message.kind == "lost":
            self.lost.append(f"worker {message.worker + 1}: {message.text}")
        elif message.kind == "done":
            self.done[message.cell] = message.seconds
            self._line(f"{message.cell}  {self.figures(message.cell)}  {duration(message.seconds)}")
        elif message.kind == "failed":
            self.failed[message.cell] = message.text
            self._line(f"{message.cell}  failed: {message.text}", "strong")

    def _line(self, text: str, style: str = "") -> None:
        over, rest = len(self.done) + len(self.failed), self.left()
        about = "" if self.moves or rest is None else f"; about {duration(rest)} left"
        self.say(f"{over}/{len(self.expected)}  {text}{about}", style)

    def figures(self, cell: str) -> str:
        """Of a cell that has been finished: its last weights."""
        record = self.site.record(cell)
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

    def bars(self) -> Iterable[BoardRow]:
        """The whole, and every cell that is being made."""
        over, rest = len(self.done) + len(self.failed), self.left()
        failed = f", {len(self.failed)} failed" if self.failed else ""
        whole = f"{over}/{plural(len(self.expected), 'cell')}{failed}"
        share = over / max(1, len(self.expected))
        yield BoardRow(f"{whole:<34}", share, " " * 10, "" if rest is None else f"{duration(rest)} left", "strong")
        for name, (stage, share, began) in list(self.running.items()):
            spent = time.monotonic() - began
            yield BoardRow(name, share, stage, f"{duration(spent / share * (1 - share))} left" if share > 0.05 else "")
