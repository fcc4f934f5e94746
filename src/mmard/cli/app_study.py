"""The commands of `mmard study` that make cells: list, run, status, rerun, records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmard.cli.app import app
from mmard.cli.help import FrontPage, Page
from mmard.cli.options import AsJson, option

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
    from mmard.cli.study_told import show_list

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
    dry_run: Annotated[bool, option("Say what there is to do and how long; do nothing.", None, "--dry-run")] = False,
) -> None:
    """Train and attack what is missing. Ctrl-C saves; the same command goes on.

    What is finished is skipped, and what several studies need is made once. Several commands share the work, also from
    several machines with one file system. A cell that fails does not stop the others: it is told at the end, and the
    exit status is 1.
    """
    from mmard.cli.studying import Asked, run_studies
    from mmard.study.cluster import Wishes

    asked = Asked(names, scale, runs, only, seeds, None if data_dir is None else str(data_dir))
    run_studies(asked, jobs, device, launcher, Wishes(partition, minutes, cpus, gpus), dry_run)


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
    from mmard.cli.study_told import show_status
    from mmard.cli.studying import Asked

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
    from mmard.cli.study_told import gather_records
    from mmard.cli.studying import Asked

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
    from mmard.cli.study_told import rerun_cell

    rerun_cell(cell, records, runs, device, None if data_dir is None else str(data_dir), as_json)
