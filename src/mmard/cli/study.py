"""The commands of `mmard study` that make cells: list, run, status, records, rerun."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from mmard.cli.app import FrontPage, app
from mmard.cli.options import MOST_PROCESSES, Json, Options, argument, command, hidden, option
from mmard.progress import StudyBoard
from mmard.screen import INTERRUPTED, busy, commands, complain, console, line, print_json, put, rich_table
from mmard.words import duration, percent, plural, points

if TYPE_CHECKING:
    from mmard.study.cell import Site
    from mmard.study.grid import Cell, Choice
    from mmard.study.progress import Status, TimeEstimate
    from mmard.study.reading import Reading
    from mmard.study.rerun import Repeated
    from mmard.study.workers import JobLimits

MOST = 12
"""Cells, or differences, that are listed one by one."""

studies = typer.Typer(
    cls=FrontPage,
    epilog="""
    mmard study list
    mmard study run all --scale S --jobs 2
    mmard study status all --scale S
    """,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.add_typer(studies, name="study", rich_help_panel="Look")


class Selection(Options):
    """Which cells are meant, and where they are."""

    names: list[str] = argument("NAME...", "Studies of `mmard study list`, files that declare one, or all.")
    scale: str = option("S", "Data, networks, seeds, attacks: a name, or a file.", "S|M|L|FILE")
    runs: Path | None = option(None, "Where the runs are.", "FOLDER", shown="runs/study/<scale>")
    only: str = option("", "Only cells with this in their name, host, variant or student; and teachers.", "TEXT")
    seeds: int | None = option(None, "Only the first so many seeds of the scale.")
    data_dir: Path | None = option(None, "Folder that holds the data; digits need none.", "FOLDER")

    @cached_property
    def choice(self) -> Choice:
        """The cells."""
        from mmard.study.grid import choose

        return choose(self.names, self.scale, self.only, self.seeds)

    @cached_property
    def site(self) -> Site:
        """Where they are."""
        from mmard.study.cell import Site

        return Site(self.runs or self.choice.runs, None if self.data_dir is None else str(self.data_dir))

    @property
    def words(self) -> str:
        """The same as a part of a command line."""
        words = [*map(str, self.names), "--scale", self.scale]
        options = {"--runs": self.runs, "--only": self.only, "--seeds": self.seeds, "--data-dir": self.data_dir}
        return shlex.join([*words, *(word for flag, value in options.items() if value for word in (flag, str(value)))])


@studies.callback(invoke_without_command=True)
def study(context: typer.Context) -> None:
    """Studies: grids of runs, made in pieces and several at a time, and read as tables, plots and claims.

    A cell of a grid is a run folder like another. Its record holds every setting, figure and version, and no path, so
    that anybody can make the same cell again.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@command("Make", "mmard study list", "list", of=studies)
def list_() -> None:
    """Studies and scales that are declared here, and how many cells they have."""
    with busy("reading what is declared"):
        from mmard.study.grid import grid_of, load_scale, load_study, names

        scales = [load_scale(name) for name in names("scales")]
        order = dict.fromkeys([*(name for scale in scales for name in scale.order), *names("studies")])
        cells = {
            name: ", ".join(
                f"{scale.name} {len(grid_of(load_study(name, scale), scale).cells)}"
                for scale in scales
                if name in scale.order
            )
            for name in order
        }
    out = console()
    rows = rich_table("study", "what it asks", "cells at each scale", fold=("what it asks", "cells at each scale"))
    for name in order:
        rows.add_row(Text(name, "command"), load_study(name).question, cells[name])
    line(out, "studies", "strong")
    put(out, rows)
    out.print()
    rows = rich_table("scale", "what it is", "how long", fold=("what it is", "how long"))
    for scale in scales:
        rows.add_row(Text(scale.name, "command"), f"{scale.title}. {scale.data_says}", scale.says)
    line(out, "scales", "strong")
    put(out, rows)
    commands(out, "next", ["mmard study run all --scale S --dry-run"])


class StudyRunOptions(Selection):
    """What `mmard study run` is asked for."""

    jobs: int | None = option(None, "Cells at a time.", shown="as the cores or GPUs allow", le=MOST_PROCESSES)
    device: str = option("auto", "cpu, cuda, cuda:1, or auto.")
    dry_run: bool = option(False, "Say what there is to do and how long; do nothing.")
    launcher: Literal["local", "slurm", "submitit-local"] = option(
        "local", "Where the workers run: here, or as jobs of SLURM.", panel="Cluster"
    )
    partition: str = option("", "Of SLURM.", "NAME", panel="Cluster")
    minutes: int = option(240, "Until a job is ended and queued again.", panel="Cluster", ge=1)
    cpus: int = option(1, "For each job.", panel="Cluster", ge=1, le=1024)
    gpus: int = option(0, "For each job.", panel="Cluster", ge=0, le=64)


@command(
    "Make",
    """
    mmard study run all --scale S --dry-run
    mmard study run plug-and-play boundary --jobs 2
    mmard study run plug-and-play --only rslad --seeds 2
    mmard study run headline --scale L --data-dir D
    mmard study run all --scale L --data-dir D --launcher slurm --jobs 8
    """,
    of=studies,
)
def run(options: StudyRunOptions) -> None:
    """Train and attack what is missing. Ctrl-C saves; the same command goes on.

    What is finished is skipped, and what several studies need is made once. Several commands share the work, also from
    several machines with one file system. A cell that fails does not stop the others: it is told at the end, and the
    exit status is 1.
    """
    screen = console()
    with busy("counting what there is to do"):
        from mmard.study.workers import JobLimits, sites_for

        choice, site, jobs, here = options.choice, options.site, options.jobs, options.launcher == "local"
        sites = sites_for(site, list(choice.cells.values()), jobs, options.device) if here else [site] * (jobs or 1)
    expected = plan(choice, sites, screen)
    if options.dry_run:
        _by_study(choice, expected, screen)
    if options.dry_run or not expected:
        return
    if not here:
        limits = JobLimits(options.partition, options.minutes, options.cpus, options.gpus)
        _submit(options, options.launcher, jobs or 1, limits, screen)
        return
    line(screen, "Ctrl-C saves and stops; the same command goes on.")
    board = make_cells(choice, sites, expected, screen, f"mmard study run {options.words}")
    if len(choice.grids) == 1 and not options.only:
        print_reading(choice, site, screen)
    at = f"--scale {options.scale}" + (f" --runs {shlex.quote(str(options.runs))}" if options.runs else "")
    commands(screen, "next", [f"mmard study table {grid.study.name} {at}" for grid in choice.grids])
    exit_where_unmade(choice, site, board)


def plan(choice: Choice, sites: Sequence[Site], screen: Console) -> dict[str, float]:
    """Say what there is to do and how long it takes; seconds of each cell that is left, 0 where nothing is known."""
    with busy("counting what there is to do"):
        from mmard.study.progress import statuses_of, wall_seconds

        statuses = statuses_of(choice.cells, sites[0])
        left = {name: cell for name, cell in choice.cells.items() if statuses[name].state != "done"}
        expected, how = _expected(choice, left, statuses, sites[0]) if left else ({}, "")
    finished = f"{plural(len(choice.cells), 'cell')}, {len(choice.cells) - len(left):,} of them finished"
    line(screen, f"{finished}, in {sites[0].runs}{'.' if left else '; nothing is left to do.'}")
    if any(expected.values()):
        about = duration(wall_seconds(expected, choice.cells, len(sites)))
        line(screen, f"About {about} with {plural(len(sites), 'worker')}, {how}.")
    return expected


def _expected(
    choice: Choice, left: Mapping[str, Cell], statuses: Mapping[str, Status], site: Site
) -> tuple[dict[str, float], str]:
    """Seconds of each cell that is left, and in words whence they are known."""
    from mmard.study.progress import cell_kind

    known = _time_estimate(choice, statuses, site)
    planned = [choice.scale.minutes.get(grid.study.name) for grid in choice.grids]
    if known.splits is None and not known.taken and None not in planned:
        seeds = max(len(row.cells) for grid in choice.grids for row in grid.rows)
        each = 60 * sum(filter(None, planned)) * seeds / len(choice.cells)
        return dict.fromkeys(left, each), f"as planned for {choice.scale.minutes_on}"
    expected = {name: known.seconds(cell) for name, cell in left.items()}
    if all(cell_kind(cell) in known.taken for cell in left.values()):
        return expected, "as finished cells of their kinds took"
    return expected, "from passes counted and networks timed" + (", and from finished cells" if known.taken else "")


def _time_estimate(choice: Choice, statuses: Mapping[str, Status], site: Site) -> TimeEstimate:
    """How long cells take on the device of this site; on a GPU, only as long as finished cells took."""
    import torch

    from mmard.networks import pick_device
    from mmard.study.cell import splits_of
    from mmard.study.progress import TimeEstimate

    device, first = pick_device(site.device or "auto"), next(iter(choice.cells.values()))
    torch.set_num_threads(first.settings.threads or site.threads)
    records = {name: each.record for name, each in statuses.items() if each.record is not None}
    return TimeEstimate(splits_of(first, site) if device.type == "cpu" else None, device, records, choice.cells)


def _by_study(choice: Choice, expected: Mapping[str, float], screen: Console) -> None:
    """A line for each study; a cell that several need is counted in the first of them."""
    screen.print()
    rows = rich_table("study", "cells", "to make", "hours of a worker", right=("cells", "to make", "hours of a worker"))
    seen: set[str] = set()
    for grid in choice.grids:
        own = [name for name in grid.cells if name in choice.cells and name not in seen]
        seen |= set(own)
        todo = [expected[name] for name in own if name in expected]
        rows.add_row(grid.study.name, f"{len(own):,}", f"{len(todo):,}", f"{sum(todo) / 3600:.2f}")
    put(screen, rows)


def make_cells(
    choice: Choice, sites: Sequence[Site], expected: Mapping[str, float], screen: Console, command: str
) -> StudyBoard:
    """Make what is missing with one worker for each site, and show how it goes.

    Raises:
        typer.Exit: with 130 when the user stopped it; the command that goes on is said.
    """
    from mmard.study.workers import Work, run_here

    board = StudyBoard(screen, sites[0], expected, len(sites))
    began = time.monotonic()
    try:
        with board.shown() as report:
            run_here(Work(choice.cells, sites[0]), sites, report)
    except KeyboardInterrupt:
        complain(f"saved; go on with: {command}")
        raise typer.Exit(INTERRUPTED) from None
    line(screen, f"{plural(len(board.done), 'cell')} made in {duration(time.monotonic() - began)}.")
    return board


def print_reading(choice: Choice, site: Site, screen: Console) -> None:
    """The tables of the one study that was made."""
    from mmard.study.reading import Reading
    from mmard.study.records import collect

    reading = Reading(choice.grids[0], collect(site.runs, choice.cells), choice.scale.which)
    if reading.any:
        screen.print()
        print_tables(screen, reading)


def print_tables(out: Console, reading: Reading) -> None:
    """All tables of a study, what is missing, and what stands behind the figures."""
    from mmard.study.figures import foot
    from mmard.study.reading import missing_rows
    from mmard.study.tables import tables

    for number, table in enumerate(tables(reading)):
        for position, piece in enumerate(table.pieces(out.width)):
            if number or position:
                out.print()
            put(out, piece)
        if table.caption:
            line(out, table.caption, "quiet")
    out.print()
    line(out, foot(reading), "quiet")
    for row in missing_rows(reading):
        line(out, f"missing: {row}")


def exit_where_unmade(choice: Choice, site: Site, board: StudyBoard) -> None:
    """Complain of cells that failed or were not made.

    Raises:
        typer.Exit: with 1 if there are some.
    """
    from mmard.study.progress import statuses_of

    states = {name: each.state for name, each in statuses_of(choice.cells, site).items()}
    elsewhere = [name for name, state in states.items() if state == "running"]
    if elsewhere:
        line(board.out, f"Another command makes {plural(len(elsewhere), 'cell')}.")
    for text in (*(f"{name}: {why}" for name, why in board.failed.items()), *board.lost):
        complain(text)
    waiting = [name for name, state in states.items() if state in ("missing", "begun")]
    if waiting:
        # Students of a teacher that another command trains are no fault of this one.
        without = "their teachers" if board.failed or elsewhere else "a worker"
        complain(f"{plural(len(waiting), 'cell')} not made, for want of {without}")
    if board.failed or board.lost or waiting:
        raise typer.Exit(1)


def _submit(selection: Selection, launcher: str, jobs: int, limits: JobLimits, screen: Console) -> None:
    from mmard.study.workers import Work, submit

    handles = submit(Work(selection.choice.cells, selection.site), jobs, launcher, limits)
    line(screen, f"{plural(jobs, 'job')} submitted: {', '.join(str(each.job_id) for each in handles)}.")
    if launcher == "slurm":
        commands(screen, "next", [f"mmard study status {selection.words}", "squeue --me"])
        return
    try:
        with busy("waiting for the jobs"):
            made = [each.result() for each in handles]
    except KeyboardInterrupt:
        for each in handles:
            each.cancel()
        complain(f"stopped; go on with: mmard study run {selection.words}")
        raise typer.Exit(INTERRUPTED) from None
    line(screen, f"{plural(sum(each['done'] for each in made), 'cell')} made.")
    failed = sum(each["failed"] for each in made)
    if failed:
        complain(f"{plural(failed, 'cell')} failed; mmard study status {selection.words} says why")
        raise typer.Exit(1)


class StatusOptions(Selection, Json):
    """What `mmard study status` is asked for."""

    device: str = option("auto", "cpu, cuda, cuda:1, or auto.")


@command("Make", "mmard study status all --scale S", of=studies)
def status(options: StatusOptions) -> None:
    """What is done, running, failed and missing; hours used and hours left."""
    with busy("looking at run folders"):
        from mmard.study.progress import STATES, spent, statuses_of

        choice, site = options.choice, replace(options.site, device=options.device)
        statuses = statuses_of(choice.cells, site)
        left = {name: cell for name, cell in choice.cells.items() if statuses[name].state != "done"}
        known = _time_estimate(choice, statuses, site) if left else None
        rest = {name: known.seconds(cell) * (1 - statuses[name].share) for name, cell in left.items()} if known else {}
    if options.as_json:
        found = {name: {"state": each.state, "share": each.share, "why": each.why} for name, each in statuses.items()}
        print_json(found)
        return
    out = console()
    line(out, f"scale {choice.scale.name}, in {site.runs}", "strong")
    heads = ["cells", *STATES, "hours used", "hours left"]
    rows = rich_table("study", *heads, right=heads)
    grids = [(grid.study.name, [name for name in grid.cells if name in statuses]) for grid in choice.grids]
    if len(grids) > 1:
        grids.append(("together", list(statuses)))
    for title, cells in grids:
        states = [statuses[name].state for name in cells]
        used = sum(spent(record) for name in cells if (record := statuses[name].record) is not None) / 3600
        hours = sum(rest.get(name, 0.0) for name in cells) / 3600
        counts = [str(states.count(state) or "") for state in STATES]
        rows.add_row(title, str(len(cells)), *counts, f"{used:.2f}", f"{hours:.2f}" if hours else "")
    put(out, rows)
    if len(grids) > 1:
        line(out, "A cell that several studies need is counted in each, and once in the last line.", "quiet")
    running = {name: f"{percent(s.share)} of its epochs" for name, s in statuses.items() if s.state == "running"}
    failed = {name: each.why for name, each in statuses.items() if each.state == "failed"}
    for title, which in (("running", running), ("failed", failed)):
        if which:
            out.print()
            line(out, title, "strong")
            _first(out, [f"  {name}: {text}" for name, text in which.items()])
    if left:
        commands(out, "go on with", [f"mmard study run {options.words}"])


def _first(out: Console, lines: Sequence[str]) -> None:
    """The first lines, and how many more there are."""
    for text in lines[:MOST]:
        line(out, text)
    if len(lines) > MOST:
        line(out, f"  and {len(lines) - MOST} more")


class RecordsOptions(Selection):
    """What `mmard study records` is asked for."""

    out: Path = option(..., "File of records, to be written or added to.", "FILE")
    data_dir: None = hidden(None)


@command("Make", "mmard study records all --scale S --out results/studies/S.jsonl", of=studies)
def records(options: RecordsOptions) -> None:
    """Gather the records of finished cells in one file, a line of JSON each; those that it holds already stay."""
    from mmard.study.records import collect, merged, read, write

    choice, out = options.choice, options.out
    found = collect(options.site.runs, choice.cells)
    both = merged(read(out) if out.is_file() else {}, found)
    write(out, both.records)
    cells = plural(len(choice.cells), "cell")
    added = f"{len(both.added):,} new in {out}, which has {len(both.records):,}"
    line(console(), f"{plural(len(found), 'record')} of {cells}; {added}.")
    for name in both.changed:
        complain(f"{name}: a figure or its weights changed; the later record was taken")


class StudyRerunOptions(Json):
    """What `mmard study rerun` is asked for."""

    cell: str = argument("CELL", "Name of a cell that has a record.")
    records: Path = option(..., "File of records that has it and its teachers.", "FILE")
    runs: Path = option(Path("runs/study/again"), "Where the new runs go; teachers that are there are taken.", "FOLDER")
    device: str = option("auto", "cpu, cuda, cuda:1, or auto.")
    data_dir: Path | None = option(None, "Folder that holds the data; digits need none.", "FOLDER")


RERUN_STATUS = {"bit-equal": 0, "within the spread of seeds": 3, "different": 1}
"""Exit status of a rerun."""


@command("Make", "mmard study rerun rslad-cnn-4-0-e0602fd1 --records results/studies/S.jsonl", of=studies)
def rerun(options: StudyRerunOptions) -> None:
    """Train and attack a recorded cell again, from its record alone, and compare.

    Bits hold on one kind of CPU, with the same build of PyTorch and as many threads; elsewhere accuracies are held
    beside those of the cell over all recorded seeds. The exit status is 0 if weights and figures are the same to the
    bit, 3 if they are not but lie within the spread of seeds, and 1 if they are different.
    """
    cell = options.cell
    with busy("reading the records"):
        from mmard.study.cell import Site
        from mmard.study.records import read
        from mmard.study.rerun import repeat
        from mmard.training.fit import Interrupted

        held = read(options.records)
    try:
        with busy(f"making {cell}"):
            data_dir = None if options.data_dir is None else str(options.data_dir)
            found = repeat(cell, held, Site(options.runs, data_dir, options.device))
    except (Interrupted, KeyboardInterrupt):
        complain("saved; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    if options.as_json:
        each = {cell: found.mismatches, **found.teachers}
        differ = {name: [asdict(mismatch) for mismatch in own] for name, own in each.items()}
        said = {"cell": cell, "same": found.same, "verdict": found.verdict, "differences": differ}
        said |= {"spread": [asdict(each) for each in found.spread], "machine": found.facts}
        print_json(said)
    else:
        _show_repeated(cell, found)
    if status := RERUN_STATUS[found.verdict]:
        raise typer.Exit(status)


def _show_repeated(cell: str, found: Repeated) -> None:
    out = console()
    spread = {(each.which, each.figure): each for each in found.spread}
    heads = ["recorded", "again", *(["seeds"] if spread else [])]
    rows = rich_table("weights", "figure", *heads, right=heads)
    for which, own in found.recorded["figures"].items():
        for name, figure in own.items():
            again = found.again["figures"].get(which, {}).get(name)
            cells = [percent(figure["accuracy"]), "missing" if again is None else percent(again["accuracy"])]
            reach = spread.get((which, name))
            cells += [points(reach.low, reach.high) if reach else ""] if spread else []
            rows.add_row(which, name, *cells)
    put(out, rows)
    out.print()
    for teacher, differ in found.teachers.items():
        if differ:
            more = f", and {len(differ) - 1} more" if len(differ) > 1 else ""
            line(out, f"Its teacher {teacher} is not the same: {differ[0].where}{more}")
    if found.same:
        spent = sum(found.again["seconds"][part] for part in ("train", "evaluate"))
        line(out, f"{cell}: weights and figures are the same to the bit, in {duration(spent)}.", "good")
    else:
        line(out, f"{cell}: {_verdict(found)}; {plural(len(found.mismatches), 'difference')}.", "strong")
        _first(out, [f"  {m.where}: {_short(m.recorded)} recorded, {_short(m.again)} again" for m in found.mismatches])
    for name, (then, now) in found.facts.items():
        was = "was not recorded" if then is None else f"was {_short(then)}"
        line(out, f"  {name} {was}, is {_short(now)}", "quiet")


def _verdict(found: Repeated) -> str:
    """What a cell is that is not the same to the bit, and why."""
    from mmard.study.rerun import FEWEST

    if found.unexplained:
        return f"different: {found.unexplained[0].where} does not follow from rounding"
    if not found.spread:
        return f"different: fewer than {FEWEST} seeds are recorded, so that their spread is not known"
    far = [f"{each.figure} of {each.which}" for each in found.spread if not each.holds]
    if far:
        return f"different: {', '.join(far)} outside the spread of {found.spread[0].seeds} seeds"
    return f"other bits, within the spread of {found.spread[0].seeds} seeds"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
