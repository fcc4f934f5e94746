"""`mmard study list`, `run`, `status`, `rerun` and `records`: what is shown."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmard.cli.output import INTERRUPTED, complain, console, duration, line, percent, plural

if TYPE_CHECKING:
    from mmard.study.cell import Place
    from mmard.study.choosing import Choice
    from mmard.study.running import Told


@dataclass(frozen=True)
class Asked:
    """Which cells, as the command line says it; `runs` None is the scale's own folder."""

    names: list[str]
    scale: str
    runs: Path | None
    only: str
    seeds: int | None
    data_dir: str | None

    def choice(self) -> Choice:
        """The cells."""
        from mmard.study.choosing import choose

        return choose(self.names, self.scale, self.only, self.seeds)


def run_studies(
    asked: Asked, jobs: int | None, device: str, launcher: str, partition: str, minutes: int, dry_run: bool
) -> None:
    """Make what is missing."""
    from mmard.study.cell import Place, is_whole
    from mmard.study.running import Work, run_here

    screen = console()
    choice = asked.choice()
    place = Place(asked.runs or choice.runs, asked.data_dir)
    left = [name for name, cell in choice.cells.items() if not is_whole(cell, place.record(name))]
    line(
        screen,
        f"{plural(len(choice.cells), 'cell')}, {len(choice.cells) - len(left)} of them finished; in {place.runs}.",
    )
    if not left:
        return
    from mmard.study.running import places_for

    places = places_for(place, list(choice.cells.values()), jobs, device)
    lines = _Lines(place, len(left), screen)
    try:
        run_here(Work(choice.cells, place), places, lines)
    except KeyboardInterrupt:
        complain("saved; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    lines.end()
    if lines.failed:
        raise typer.Exit(1)


class _Lines:
    """A line for every cell."""

    def __init__(self, place: Place, total: int, screen: Any) -> None:
        self.place, self.total, self.screen = place, total, screen
        self.done, self.failed, self.began = 0, dict[str, str](), time.monotonic()

    def __call__(self, told: Told) -> None:
        if told.kind == "done":
            self.done += 1
            record = self.place.record(told.cell)
            assert record is not None
            own = record["figures"]["last"]
            found = f"{percent(own['clean']['accuracy'])} clean, {percent(own['robust']['accuracy'])} robust"
            spent = time.monotonic() - self.began
            left = spent / self.done * (self.total - self.done)
            text = (
                f"{self.done}/{self.total} {told.cell}: {found}, {duration(told.seconds)}; about {duration(left)} left"
            )
        elif told.kind == "failed":
            self.failed[told.cell] = told.text
            text = f"FAILED {told.cell}: {told.text}"
        else:
            return
        line(self.screen, text)
        self.screen.file.flush()

    def end(self) -> None:
        """What is to be said when all is over."""
        line(self.screen, f"{plural(self.done, 'cell')} in {duration(time.monotonic() - self.began)}.")
        for name, text in self.failed.items():
            complain(f"{name}: {text}")
