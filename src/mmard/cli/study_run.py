"""`mmard study run`: what there is to do, how long it takes, and how it goes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from mmard.cli.screen import INTERRUPTED, Board, busy, commands, complain, console, line, put, rich_table, shown
from mmard.errors import unknown
from mmard.words import duration, plural

if TYPE_CHECKING:
    from mmard.study.cell import Site
    from mmard.study.grid import Cell, Choice
    from mmard.study.progress import Status, TimeEstimate
    from mmard.study.workers import JobLimits


@dataclass(frozen=True)
class Asked:
    """Which cells, and where, as the command line says it.

    Attributes:
        names: of studies, or files; "all".
        scale: a name or a file.
        runs: folder of the runs; None for the scale's own.
        only, seeds: as `choosing.choose` has them.
        data_dir: folder of the data.
    """

    names: list[str]
    scale: str
    runs: Path | None = None
    only: str = ""
    seeds: int | None = None
    data_dir: str | None = None

    def choice(self) -> Choice:
        """The cells."""
        from mmard.study.grid import choose

        return choose(self.names, self.scale, self.only, self.seeds)

    def site(self, choice: Choice) -> Site:
        """Where they are."""
        from mmard.study.cell import Site

        return Site(self.runs or choice.runs, self.data_dir)

    @property
    def words(self) -> str:
        """The same as a part of a command line."""
        said = [*self.names, "--scale", self.scale]
        for flag, value in (("--runs", self.runs), ("--only", self.only), ("--seeds", self.seeds)):
            said += [flag, str(value)] if value else []
        return shlex.join([*said, *(["--data-dir", self.data_dir] if self.data_dir else [])])


def run_studies(
    asked: Asked, jobs: int | None, device: str, launcher: str, limits: JobLimits | None, dry_run: bool
) -> None:
    """Make what is missing, or say what that would be.

    Raises:
        Refused: for anything wrong, before the first cell.
        typer.Exit: with 130 when the user stopped it, with 1 when cells failed.
    """
    screen = console()
    with busy("counting what there is to do"):
        from mmard.study.progress import statuses_of, wall_seconds
        from mmard.study.workers import LAUNCHERS, sites_for

        if launcher not in ("local", *LAUNCHERS):
            raise unknown("launcher", launcher, ("local", *LAUNCHERS))
        choice = asked.choice()
        site = asked.site(choice)
        here = launcher == "local"
        sites = sites_for(site, list(choice.cells.values()), jobs, device) if here else [site] * (jobs or 1)
        statuses = statuses_of(choice.cells, site)
        left = {name: cell for name, cell in choice.cells.items() if statuses[name].state != "done"}
        expected, how = _expected(choice, left, statuses, sites[0]) if left else ({}, "")
    found = f"{plural(len(choice.cells), 'cell')}, {len(choice.cells) - len(left):,} of them finished, in {site.runs}"
    line(screen, f"{found}{'.' if left else '; nothing is left to do.'}")
    if left and any(expected.values()):
        about = duration(wall_seconds(expected, choice.cells, len(sites)))
        line(screen, f"About {about} with {plural(len(sites), 'worker')}, {how}.")
    if dry_run:
        _by_study(choice, left, expected, len(sites), screen)
    if dry_run or not left:
        return
    if launcher != "local":
        assert limits is not None
        _submitted(asked, choice, site, launcher, jobs or 1, limits, screen)
    else:
        line(screen, "Ctrl-C saves and stops; the same command goes on.")
        _made(asked, choice, sites, expected, screen)


def _made(asked: Asked, choice: Choice, sites: list[Site], expected: Mapping[str, float], screen: Console) -> None:
    from mmard.study.progress import statuses_of
    from mmard.study.workers import Work, run_here

    board = Board(sites[0], expected, len(sites), screen)
    began = time.monotonic()
    try:
        with shown(board) as say:
            run_here(Work(choice.cells, sites[0]), sites, say)
    except KeyboardInterrupt:
        complain(f"saved; go on with: mmard study run {asked.words}")
        raise typer.Exit(INTERRUPTED) from None
    statuses = statuses_of(choice.cells, sites[0])
    line(screen, f"{plural(len(board.done), 'cell')} made in {duration(time.monotonic() - began)}.")
    elsewhere = [name for name, each in statuses.items() if each.state == "running"]
    if elsewhere:
        line(screen, f"Another command makes {plural(len(elsewhere), 'cell')}.")
    if len(choice.grids) == 1 and not asked.only:
        _table(choice, sites[0], screen)
    tables = [f"mmard study table {name} --scale {asked.scale}{_runs(asked)}" for name in _studies(choice)]
    commands(screen, "next", tables)
    for text in (*(f"{name}: {why}" for name, why in board.failed.items()), *board.lost):
        complain(text)
    waiting = [name for name, each in statuses.items() if each.state in ("missing", "begun")]
    if waiting:
        # Students of a teacher that another command trains are no fault of this one.
        without = "their teachers" if board.failed or elsewhere else "a worker"
        complain(f"{plural(len(waiting), 'cell')} not made, for want of {without}")
    if board.failed or board.lost or waiting:
        raise typer.Exit(1)


def _table(choice: Choice, site: Site, screen: Console) -> None:
    from mmard.cli.study_read import print_tables
    from mmard.study.reading import Reading
    from mmard.study.records import collect

    reading = Reading(choice.grids[0], collect(site.runs, choice.cells), choice.scale.which)
    if reading.any:
        screen.print()
        print_tables(screen, reading)


def _runs(asked: Asked) -> str:
    return f" --runs {shlex.quote(str(asked.runs))}" if asked.runs else ""


def _studies(choice: Choice) -> list[str]:
    return [grid.study.name for grid in choice.grids]


def _submitted(
    asked: Asked, choice: Choice, site: Site, launcher: str, jobs: int, limits: JobLimits, screen: Console
) -> None:
    from mmard.study.workers import Work, submit

    handles = submit(Work(choice.cells, site), jobs, launcher, limits)
    line(screen, f"{plural(jobs, 'job')} submitted: {', '.join(str(each.job_id) for each in handles)}.")
    if launcher == "slurm":
        commands(screen, "next", [f"mmard study status {asked.words}", "squeue --me"])
        return
    try:
        with busy("waiting for the jobs"):
            made = [each.result() for each in handles]
    except KeyboardInterrupt:
        for each in handles:
            each.cancel()
        complain(f"stopped; go on with: mmard study run {asked.words}")
        raise typer.Exit(INTERRUPTED) from None
    line(screen, f"{plural(sum(each['done'] for each in made), 'cell')} made.")
    failed = sum(each["failed"] for each in made)
    if failed:
        complain(f"{plural(failed, 'cell')} failed; mmard study status {asked.words} says why")
        raise typer.Exit(1)


# time -----------------------------------------------------------------------------------------------------------------
def time_estimate(choice: Choice, statuses: Mapping[str, Status], site: Site) -> TimeEstimate:
    """How long cells take on the device of this site; on a GPU, only what finished cells tell."""
    import torch

    from mmard.networks import pick_device
    from mmard.study.cell import splits_of
    from mmard.study.progress import TimeEstimate

    device, first = pick_device(site.device or "auto"), next(iter(choice.cells.values()))
    torch.set_num_threads(first.settings.threads or site.threads)
    splits = None
    if device.type == "cpu":
        splits = splits_of(first, site)
    records = {name: each.record for name, each in statuses.items() if each.record is not None}
    return TimeEstimate(splits, device, records, choice.cells)


def _expected(
    choice: Choice, left: Mapping[str, Cell], statuses: Mapping[str, Status], site: Site
) -> tuple[dict[str, float], str]:
    """Seconds of each cell that is left, and in words whence they are known."""
    from mmard.study.progress import kind, planned_minutes

    known = time_estimate(choice, statuses, site)
    minutes = planned_minutes(_studies(choice), choice.scale.minutes)
    if known.splits is None and not known.taken and minutes is not None:
        seeds = max(len(row.cells) for grid in choice.grids for row in grid.rows)
        each = 60 * minutes * seeds / len(choice.cells)
        return dict.fromkeys(left, each), f"as planned for {choice.scale.minutes_on}"
    expected = {name: known.seconds(cell) for name, cell in left.items()}
    if all(kind(cell) in known.taken for cell in left.values()):
        return expected, "as finished cells of their kinds took"
    return expected, "from passes counted and networks timed" + (", and from finished cells" if known.taken else "")


def _by_study(
    choice: Choice, left: Mapping[str, Cell], expected: Mapping[str, float], jobs: int, screen: Console
) -> None:
    """A line for each study; a cell that several need is counted in the first of them."""
    screen.print()
    rows = rich_table("study", "cells", "to make", "hours of a worker", right=("cells", "to make", "hours of a worker"))
    seen: set[str] = set()
    for grid in choice.grids:
        own = [name for name in grid.cells if name in choice.cells and name not in seen]
        seen |= set(own)
        todo = [name for name in own if name in left]
        hours = sum(expected.get(name, 0.0) for name in todo) / 3600
        rows.add_row(grid.study.name, f"{len(own):,}", f"{len(todo):,}", f"{hours:.2f}")
    put(screen, rows)
