"""What a user sees while a network trains: a line for every epoch, and in a terminal a bar and the state of things."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mmard.cli.output import console, is_terminal
from mmard.words import duration, percent, significant

Event = dict[str, Any]
Observer = Callable[[Event], None]

NOT_TERMS = frozenset(
    ("kind", "step", "epoch", "epoch_step", "seconds", "lr", "loss", "reach", "clean", "robust", "best")
)
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
        terms = [f"{name} {significant(value)}" for name, value in self.losses.items() if name not in NOT_TERMS]
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
