"""The commands of `mmard study` that make cells: list, run, status, rerun, records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from mmard.cli.app import FrontPage, Page, app
from mmard.cli.options import AsJson, option
from mmard.cli.screen import INTERRUPTED, busy, commands, complain, console, line, put, rich_table
from mmard.cli.study_run import Asked, time_estimate
from mmard.words import duration, percent, plural

if TYPE_CHECKING:
    from mmard.study.records import Mismatch, Repeated


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


def _cluster(text: str, metavar: str, *flags: str, shown: str = "") -> Any:
    return option(text, metavar, *flags, panel="Cluster", shown=shown)


Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...", help="Studies of `mmard study list`, files that declare one, or all.", show_default=False
    ),
]
ScaleName = Annotated[str, option("Data, networks, seeds, attacks: a name, or a file.", "S|M|L|FILE", shown="S")]
Runs = Annotated[Path | None, option("Where the runs are.", "FOLDER", shown="runs/study/<scale>")]
Only = Annotated[str, option("Only cells with this in their name, host, variant or student; and teachers.", "TEXT")]
Seeds = Annotated[int | None, option("Only the first so many seeds of the scale.", "N")]
DataDir = Annotated[Path | None, option("Folder that holds the data; digits need none.", "FOLDER", "--data-dir")]
Device = Annotated[str, option("cpu, cuda, cuda:1, or auto.", "TEXT", shown="auto")]


@studies.callback(invoke_without_command=True)
def study(context: typer.Context) -> None:
    """Studies: grids of runs, made in pieces and several at a time, and read as tables, plots and claims.

    A cell of a grid is a run folder like another. Its record holds every setting, figure and version, and no path, so
    that anybody can make the same cell again.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@studies.command("list", cls=Page, rich_help_panel="Make", epilog="mmard study list")
def list_() -> None:
    """Studies and scales that are declared here, and how many cells they have."""

    show_list()


@studies.command(
    cls=Page,
    rich_help_panel="Make",
    epilog="""
    mmard study run all --scale S --dry-run
    mmard study run plug-and-play boundary --jobs 2
    mmard study run plug-and-play --only rslad --seeds 2
    mmard study run headline --scale L --data-dir D
    mmard study run all --scale L --data-dir D --launcher slurm --jobs 8
    """,
)
def run(
    names: Names,
    scale: ScaleName = "S",
    runs: Runs = None,
    jobs: Annotated[int | None, option("Cells at a time.", "N", shown="as the cores or GPUs allow")] = None,
    device: Device = "auto",
    data_dir: DataDir = None,
    only: Only = "",
    seeds: Seeds = None,
    launcher: Annotated[
        str,
        _cluster("Where the workers run: here, or as jobs of SLURM.", "local|slurm|submitit-local", shown="local"),
    ] = "local",
    partition: Annotated[str, _cluster("Of SLURM.", "NAME")] = "",
    minutes: Annotated[int, _cluster("Until a job is ended and queued again.", "N", shown="240")] = 240,
    cpus: Annotated[int, _cluster("For each job.", "N", shown="1")] = 1,
    gpus: Annotated[int, _cluster("For each job.", "N", shown="0")] = 0,
    dry_run: Annotated[bool, option("Report what there is to do and how long; do nothing.", None, "--dry-run")] = False,
) -> None:
    """Train and attack what is missing. Ctrl-C saves; the same command goes on.

    What is finished is skipped, and what several studies need is made once. Several commands share the work, also from
    several machines with one file system. A cell that fails does not stop the others: it is told at the end, and the
    exit status is 1.
    """
    from mmard.cli.study_run import Asked, run_studies
    from mmard.study.workers import JobLimits

    asked = Asked(names, scale, runs, only, seeds, None if data_dir is None else str(data_dir))
    run_studies(asked, jobs, device, launcher, JobLimits(partition, minutes, cpus, gpus), dry_run)


@studies.command(cls=Page, rich_help_panel="Make", epilog="mmard study status all --scale S")
def status(
    names: Names,
    scale: ScaleName = "S",
    runs: Runs = None,
    only: Only = "",
    seeds: Seeds = None,
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What is done, running, failed and missing; hours used and hours left."""
    from mmard.cli.study_run import Asked

    asked = Asked(names, scale, runs, only, seeds, None if data_dir is None else str(data_dir))
    show_status(asked, device, as_json)


@studies.command(
    cls=Page,
    rich_help_panel="Make",
    epilog="""
    mmard study records all --scale S --out results/studies/S.jsonl
    """,
)
def records(
    names: Names,
    out: Annotated[Path, option("File of records, to be written or added to.", "FILE")],
    scale: ScaleName = "S",
    runs: Runs = None,
    only: Only = "",
    seeds: Seeds = None,
) -> None:
    """Gather the records of finished cells in one file, a line of JSON each; those that it holds already stay."""
    from mmard.cli.study_run import Asked

    gather_records(Asked(names, scale, runs, only, seeds), out)


@studies.command(
    cls=Page,
    rich_help_panel="Make",
    epilog="""
    mmard study rerun rslad-cnn-4-0-e0602fd1 --records results/studies/S.jsonl
    """,
)
def rerun(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Name of a cell that has a record.", show_default=False)],
    records: Annotated[Path, option("File of records that has it and its teachers.", "FILE")],
    runs: Annotated[Path, option("Where the new runs go; teachers that are there are taken.", "FOLDER")] = Path(
        "runs/study/again"
    ),
    device: Device = "auto",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Train and attack a recorded cell again, from its record alone, and compare.

    The exit status is 0 if weights and figures are the same to the bit, which on a CPU of the same kind they are, and 1
    with every difference listed if they are not.
    """

    rerun_cell(cell, records, runs, device, None if data_dir is None else str(data_dir), as_json)


# app study read -------------------------------------------------------------------------------------------------------
# The commands of `mmard study` that read records: table, plot, ledger.


Name = Annotated[str, typer.Argument(metavar="NAME", help="A study of `mmard study list`, or a file of your own.")]
Records = Annotated[
    Path | None,
    option("Read this file, as `records` writes it.", "FILE", shown="results/studies/<scale>.jsonl"),
]
RunsRead = Annotated[
    Path | None,
    option("Read this folder of runs.", "FOLDER", shown="runs/study/<scale>, if it has some"),
]
Which = Annotated[str, option("Which weights are spoken of.", "best|last", shown="what the scale says")]


@studies.command(
    cls=Page,
    rich_help_panel="Read",
    epilog="""
    mmard study table plug-and-play --scale S
    mmard study table benchmark --records results/studies/S.jsonl --which last
    mmard study table saturation --out table.tex
    """,
)
def table(
    name: Name,
    scale: ScaleName = "S",
    records: Records = None,
    runs: RunsRead = None,
    which: Which = "",
    form: Annotated[
        str | None,
        option("Print it as this.", "text|markdown|latex|csv|json", "--format", shown="text"),
    ] = None,
    out: Annotated[
        Path | None, option("Write it into a file; .md, .tex, .csv, .json or .txt says as what.", "FILE", "--out")
    ] = None,
) -> None:
    """The tables of a study: means over seeds, differences paired by seed, and what is missing."""
    from mmard.cli.study_read import Source, show_table

    show_table(Source(name, scale, records, runs, which), form, out)


@studies.command(
    cls=Page,
    rich_help_panel="Read",
    epilog="""
    mmard study plot plug-and-play --scale S --out gains.svg
    mmard study plot benchmark --runs runs/study/S
    """,
)
def plot(
    name: Name,
    scale: ScaleName = "S",
    records: Records = None,
    runs: RunsRead = None,
    which: Which = "",
    out: Annotated[
        Path | None,
        option("The file; further plots go beside it.", "FILE.svg", "--out", shown="<scale>-<study>.svg"),
    ] = None,
) -> None:
    """The plots of a study as SVG files, for light and dark pages. Needs the extra mmard[plots]."""
    from mmard.cli.study_read import Source, show_plot

    show_plot(Source(name, scale, records, runs, which), out)


@studies.command(
    cls=Page,
    rich_help_panel="Read",
    epilog="""
    mmard study ledger
    mmard study ledger --records results/studies/S.jsonl --out S.md
    mmard study ledger --check
    """,
)
def ledger(
    records: Annotated[
        list[Path] | None,
        option("Files of records, or folders of such files.", "FILE|FOLDER", "--records", shown="results/studies"),
    ] = None,
    out: Annotated[Path, option("The page.", "FILE", "--out", shown="RESULTS.md")] = Path("RESULTS.md"),
    pictures: Annotated[
        Path | None, option("Folder of the pictures.", "FOLDER", "--pictures", shown="results/pictures beside it")
    ] = None,
    which: Which = "",
    check: Annotated[
        bool, option("Write nothing; exit with 1 where page or pictures lag behind.", None, "--check")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """RESULTS.md: every study of every scale that has records, the paper's claims judged, published figures apart."""
    from mmard.cli.study_read import write_results

    write_results(list(records or ()), out, pictures, which, check, as_json)


# study told -----------------------------------------------------------------------------------------------------------
# `mmard study list`, `status`, `records` and `rerun`: what is shown.


MOST = 12
"""Cells, or differences, that are listed one by one."""


def show_list() -> None:
    """Every study and every scale."""
    with busy("reading what is declared"):
        from mmard.study.grid import grid_of, load_scale, load_study, names

        scales = [load_scale(name) for name in names("scales")]
        studies = names("studies")
        order = [*dict.fromkeys([*(name for scale in scales for name in scale.order), *studies])]
        counts = {
            (name, scale.name): len(grid_of(load_study(name, scale), scale).cells) if name in scale.order else None
            for name in order
            for scale in scales
        }
    out = console()
    rows = rich_table("study", "what it asks", "cells at each scale", fold=("what it asks", "cells at each scale"))
    for name in order:
        cells = {scale.name: counts[name, scale.name] for scale in scales}
        said = ", ".join(f"{scale} {n}" for scale, n in cells.items() if n is not None)
        rows.add_row(Text(name, "command"), load_study(name).question, said)
    line(out, "studies", "strong")
    put(out, rows)
    out.print()
    line(out, "scales", "strong")
    rows = rich_table("scale", "what it is", "how long", fold=("what it is", "how long"))
    for scale in scales:
        rows.add_row(Text(scale.name, "command"), f"{scale.title}. {scale.data_says}", scale.says)
    put(out, rows)
    commands(out, "next", ["mmard study run all --scale S --dry-run"])


def show_status(asked: Asked, device: str, as_json: bool) -> None:
    """How far the cells of some studies are."""
    with busy("looking at run folders"):
        from dataclasses import replace

        from mmard.study.progress import STATES, hours_used, statuses_of

        choice = asked.choice()
        site = replace(asked.site(choice), device=device)
        statuses = statuses_of(choice.cells, site)
        left = {name: cell for name, cell in choice.cells.items() if statuses[name].state != "done"}
        known = time_estimate(choice, statuses, site) if left else None
        expected = (
            {name: known.seconds(cell) * (1 - statuses[name].share) for name, cell in left.items()} if known else {}
        )
    if as_json:
        found = {name: {"state": each.state, "share": each.share, "why": each.why} for name, each in statuses.items()}
        print(json.dumps(found, indent=2))
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
        used = hours_used(record for name in cells if (record := statuses[name].record) is not None)
        rest = sum(expected.get(name, 0.0) for name in cells) / 3600
        counts = [str(states.count(state) or "") for state in STATES]
        rows.add_row(title, str(len(cells)), *counts, f"{used:.2f}", f"{rest:.2f}" if rest else "")
    put(out, rows)
    if len(grids) > 1:
        line(out, "A cell that several studies need is counted in each, and once in the last line.", "quiet")
    _show_cells(
        out, {n: f"{percent(s.share)} of its epochs" for n, s in statuses.items() if s.state == "running"}, "running"
    )
    _show_cells(out, {name: each.why for name, each in statuses.items() if each.state == "failed"}, "failed")
    if left:
        commands(out, "go on with", [f"mmard study run {asked.words}"])


def _show_cells(out: Console, cells: dict[str, str], title: str) -> None:
    if not cells:
        return
    out.print()
    line(out, title, "strong")
    for name, says in list(cells.items())[:MOST]:
        line(out, f"  {name}: {says}")
    if len(cells) > MOST:
        line(out, f"  and {len(cells) - MOST} more")


def gather_records(asked: Asked, out: Path) -> None:
    """Write the records of finished cells into a file, among those that it has."""
    from mmard.study.records import collect, merged, read, write

    choice = asked.choice()
    found = collect(asked.site(choice).runs, choice.cells)
    both = merged(read(out) if out.is_file() else {}, found)
    write(out, both.records)
    screen = console()
    said = f"{plural(len(found), 'record')} of {plural(len(choice.cells), 'cell')}; {len(both.added):,} new in {out}"
    line(screen, f"{said}, which has {len(both.records):,}.")
    for name in both.changed:
        complain(f"{name}: a figure or its weights changed; the later record was taken")


def rerun_cell(cell: str, records: Path, runs: Path, device: str, data_dir: str | None, as_json: bool) -> None:
    """Make a recorded cell again, and say what is not the same.

    Raises:
        typer.Exit: with 1 where something is not, with 130 when the user stopped it.
    """
    with busy("reading the records"):
        from mmard.study.cell import Site
        from mmard.study.records import read, repeat
        from mmard.training.fit import Interrupted

        held = read(records)
    try:
        with busy(f"making {cell}"):
            found = repeat(cell, held, Site(runs, data_dir, device))
    except (Interrupted, KeyboardInterrupt):
        complain("saved; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps({"cell": cell, "same": found.same, "differences": _plain(found)}, indent=2))
    else:
        _show_repeated(cell, found)
    if not found.same:
        raise typer.Exit(1)


def _plain(found: Repeated) -> dict[str, list[dict[str, Any]]]:
    each = {found.recorded["cell"]: found.mismatches, **found.teachers}
    return {name: [asdict(difference) for difference in own] for name, own in each.items()}


def _show_repeated(cell: str, found: Repeated) -> None:
    out = console()
    rows = rich_table("weights", "figure", "recorded", "again", right=("recorded", "again"))
    for which, own in found.recorded["figures"].items():
        for name, figure in own.items():
            again = found.again["figures"].get(which, {}).get(name)
            now = "missing" if again is None else percent(again["accuracy"])
            rows.add_row(which, name, percent(figure["accuracy"]), now)
    put(out, rows)
    out.print()
    spent = sum(found.again["seconds"][part] for part in ("train", "evaluate"))
    for teacher, differ in found.teachers.items():
        if differ:
            line(out, f"Its teacher {teacher} is not the same: {_first(differ)}")
    if found.same:
        line(out, f"{cell}: weights and figures are the same to the bit, in {duration(spent)}.", "good")
        return
    line(out, f"{cell}: {plural(len(found.mismatches), 'difference')}.", "strong")
    for each in found.mismatches[:MOST]:
        line(out, f"  {each.where}: {_short(each.recorded)} recorded, {_short(each.again)} again")
    if len(found.mismatches) > MOST:
        line(out, f"  and {len(found.mismatches) - MOST} more")
    for name in ("mmard", "commit", "cpu", "threads", "python", "versions", "gpus"):
        then, now = (record["environment"].get(name) for record in (found.recorded, found.again))
        if then != now:
            line(out, f"  {name} was {_short(then)}, is {_short(now)}", "quiet")


def _first(differ: list[Mismatch]) -> str:
    return f"{differ[0].where}, and {len(differ) - 1} more" if len(differ) > 1 else differ[0].where


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
