"""Consoles, lines and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from mmard.words import duration, percent, plural, printable, significant

if TYPE_CHECKING:
    from mmard.study.cell import Site
    from mmard.study.workers import Message


THEME = Theme({"quiet": "dim", "strong": "bold", "command": "cyan", "good": "green"})


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class PlainConsole(Console):
    """A console to which text is text: no markup in square brackets, and nothing that steers a terminal."""

    def __init__(self, **how: Any) -> None:
        super().__init__(theme=THEME, highlight=False, markup=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Strings, those in tables among them."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **how)


def console() -> Console:
    """Where results go: standard output. Lines that are no table are never broken when it is not a terminal."""
    return PlainConsole()


def is_terminal() -> bool:
    """Whether somebody watches standard output in a terminal that can redraw."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def watched() -> Console | None:
    """Where passing progress goes: standard error, if somebody watches it in a terminal that can redraw."""
    err = PlainConsole(stderr=True)
    return err if sys.stderr.isatty() and not err.is_dumb_terminal else None


def busy(what: str) -> AbstractContextManager[object]:
    """A passing word on what takes a moment, in a terminal."""
    err = watched()
    return err.status(what, spinner="dots", spinner_style="quiet") if err is not None else nullcontext()


def complain(message: str) -> None:
    """One line on standard error."""
    print("mmard: " + printable(" ".join(message.split())), file=sys.stderr)


def line(out: Console, text: str = "", style: str = "") -> None:
    """One line, which a file gets whole however long it is, and a terminal folded under its own indent."""
    text = printable(text)
    if out.is_terminal:
        indent = len(text) - len(text.lstrip())
        out.print(Padding(Text(text.strip(), style=style), (0, 0, 0, indent)))
    else:
        out.print(Text(text, style=style), soft_wrap=True)


def put(out: Console, table: Table, indent: int = 0) -> None:
    """A table, without blanks at the ends of its lines where they would stay in a file."""
    padded = Padding(table, (0, 0, 0, indent), expand=False)
    if out.is_terminal:
        out.print(padded)
        return
    with out.capture() as captured:
        out.print(padded)
    for text in captured.get().splitlines():
        out.print(Text(text.rstrip()), soft_wrap=True)


def rich_table(*columns: str, right: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """A table without rules: quiet heads, numbers at the right, long text folded."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="quiet", show_edge=False)
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name not in fold,
            overflow="fold" if name in fold else "ellipsis",
        )
    return made


def commands(out: Console, title: str, lines: Iterable[str]) -> None:
    """Commands to type next, each on one line that can be copied."""
    out.print()
    out.print(Text(title, style="quiet"))
    for each in lines:
        out.print(Text("  " + printable(each), style="command"), soft_wrap=True)


# live -----------------------------------------------------------------------------------------------------------------
# What a user sees while a network trains: a line for every epoch, and in a terminal a bar and the state of things.


Event = dict[str, Any]
Observer = Callable[[Event], None]

LINE_EVERY_SECONDS = 60.0
"""Time between lines within an epoch where nothing can be redrawn."""


@dataclass
class Watch:
    """What is known about a training, from its events.

    Args:
        epochs: of the whole run.
        steps: in an epoch.
        attack: that of validation with its budget, e.g. "PGD-10 at linf 8/255".
    """

    epochs: int
    steps: int
    attack: str
    now: Event = field(default_factory=dict)
    losses: Event = field(default_factory=dict)
    validated: Event = field(default_factory=dict)
    best: Event = field(default_factory=dict)
    first: Event = field(default_factory=dict)

    def see(self, event: Event) -> None:
        """Take in one event."""
        self.now = event
        self.first = self.first or event
        if "loss" in event:
            self.losses = event
        if event["kind"] == "epoch":
            self.validated = event
            if event.get("best"):
                self.best = event

    def recall(self, events: Iterable[Event]) -> None:
        """Take in what an earlier process logged, without its pace."""
        for event in events:
            if event["kind"] == "epoch":
                self.see(event)
        self.first, self.now = {}, {}

    @property
    def done(self) -> int:
        """Steps done of the whole run."""
        return int(self.now.get("step", 0))

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps

    @property
    def validating(self) -> bool:
        """Whether the epoch's steps are over and its end has not been told yet."""
        return self.now.get("kind") in ("tick", "step") and self.now["epoch_step"] == self.steps

    def left(self) -> float | None:
        """Seconds to go at the mean pace of this process, validation included; None before there is a pace."""
        done = self.done - self.first.get("step", 0)
        spent = self.now.get("seconds", 0.0) - self.first.get("seconds", 0.0)
        return spent / done * (self.total - self.done) if done > 0 and spent > 0 else None

    def terms(self) -> str:
        """The last known learning rate, loss and terms."""
        if not self.losses:
            return ""
        from mmard.run import terms_of

        terms = [f"{name} {significant(value)}" for name, value in terms_of(self.losses).items()]
        parts = f" = {' + '.join(terms)}" if len(terms) > 1 else ""
        return f"lr {significant(self.losses['lr'])}   loss {significant(self.losses['loss'])}{parts}"

    def accuracy(self) -> str:
        """The last validation, and the best epoch so far."""
        if not self.validated:
            return ""
        best = f"; best in epoch {self.best['epoch']}" if self.best else ""
        found = self.validated
        return f"validation {percent(found['clean'])} clean, {percent(found['robust'])} under {self.attack}{best}"


@contextmanager
def watching(watch: Watch, quiet: bool = False) -> Iterator[list[Observer]]:
    """Observers that show a training: redrawn in a terminal, whole lines in a file, none when quiet."""
    if quiet:
        yield []
    elif is_terminal():
        out = console()
        moving = Moving(watch, out)
        with Live(get_renderable=moving.picture, console=out, refresh_per_second=4, transient=True):
            yield [moving]
    else:
        yield [Lines(watch, console())]


class Moving:
    """A line for every epoch, and below them what changes. A tick only stores the event; a thread of rich's draws."""

    def __init__(self, watch: Watch, out: Console) -> None:
        self.watch, self.out, self.headed = watch, out, False

    def __call__(self, event: Event) -> None:
        if event["kind"] == "note":
            self.out.print(Text(event["text"], style="quiet"), soft_wrap=True)
            return
        self.watch.see(event)
        if event["kind"] == "epoch":
            self._row(event)

    def _row(self, event: Event) -> None:
        wide = max(20, len(self.watch.attack))
        if not self.headed:
            head = f"{'epoch':>9} {'lr':>8}  {'loss':>6}  {'clean':>6}  {self.watch.attack:>{wide}}  {'time':>11}"
            self.out.print(Text(head, style="quiet"), soft_wrap=True)
            self.headed = True
        row = (
            f"{event['epoch']:>4}/{self.watch.epochs:<4} {event['lr']:>8.3g}  {significant(event['loss']):>6}  "
            f"{percent(event['clean']):>6}  {percent(event['robust']):>{wide}}  {duration(event['seconds']):>11}"
        )
        self.out.print(Text.assemble(row, ("  best", "good") if event.get("best") else ""), soft_wrap=True)

    def picture(self) -> Group:
        """The bar, the losses and the last validation."""
        watch = self.watch
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for ratio in (None, 1, None, None):
            grid.add_column(ratio=ratio, no_wrap=True)
        left = watch.left()
        epoch = min(int(watch.now.get("epoch", 0)) + (watch.now.get("kind") != "epoch"), watch.epochs)
        grid.add_row(
            Text(f"epoch {epoch}/{watch.epochs}", style="strong"),
            ProgressBar(total=watch.total, completed=watch.done, complete_style="command", finished_style="command"),
            f"{watch.done / watch.total:.0%}",
            Text("validating" if watch.validating else "" if left is None else f"{duration(left)} left"),
        )
        lines = [
            Text(text, style="quiet", no_wrap=True, overflow="ellipsis")
            for text in (watch.terms(), watch.accuracy())
            if text
        ]
        return Group(Text(), grid, *lines)


class Lines:
    """One whole line for every epoch, and for long epochs one a minute; no control characters."""

    def __init__(self, watch: Watch, out: Console, every: float = LINE_EVERY_SECONDS) -> None:
        self.watch, self.out, self.every = watch, out, every
        self.spoke = time.monotonic()

    def __call__(self, event: Event) -> None:
        if event["kind"] == "note":
            self.out.print(Text(event["text"]), soft_wrap=True)
            self.out.file.flush()
            return
        self.watch.see(event)
        if event["kind"] == "epoch":
            best = ", best so far" if event.get("best") else ""
            loss = f"lr {significant(event['lr'])}, loss {significant(event['loss'])}"
            found = f"{percent(event['clean'])} clean, {percent(event['robust'])} under {self.watch.attack}"
            self._line(f"epoch {event['epoch']}/{self.watch.epochs}: {loss}, validation {found}{best}", event)
        elif time.monotonic() - self.spoke >= self.every:
            self._line(
                f"epoch {event['epoch'] + 1}/{self.watch.epochs}: step {event['epoch_step']}/{self.watch.steps}", event
            )

    def _line(self, text: str, event: Event) -> None:
        self.spoke = time.monotonic()
        left = self.watch.left()
        rest = f", about {duration(left)} left" if left else ""
        self.out.print(Text(f"{text} ({duration(event['seconds'])}{rest})"), soft_wrap=True)
        self.out.file.flush()


# study board ----------------------------------------------------------------------------------------------------------
# What a user sees while cells are made: a table that moves in a terminal, a line for each cell elsewhere.


TRAINING_SHARE = 0.7
"""Of a cell's time, before its attacks; for the bars alone."""


class Board:
    """What is known of the cells that are being made, from what workers tell.

    Args:
        site: of the runs, where the figures of a finished cell are read.
        expected: seconds of each cell that is to be made.
        jobs: workers.
        screen: where lines go.
    """

    def __init__(self, site: Site, expected: Mapping[str, float], jobs: int, screen: Console) -> None:
        self.site, self.expected, self.jobs, self.screen = site, dict(expected), max(1, jobs), screen
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
        over = len(self.done) + len(self.failed)
        rest = self.left()
        about = "" if is_terminal() or rest is None else f"; about {duration(rest)} left"
        line(self.screen, f"{over}/{len(self.expected)}  {text}{about}", style)
        self.screen.file.flush()

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
def shown(board: Board) -> Iterator[Callable[[Message], None]]:
    """The board, redrawn in a terminal."""
    if not is_terminal():
        yield board
        return
    with Live(get_renderable=board.picture, console=board.screen, refresh_per_second=4, transient=True):
        yield board
