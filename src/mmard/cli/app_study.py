"""The commands of `mmard study` that make cells: list, run, status, rerun, records. Registered by app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmard.cli.app import _option, app
from mmard.cli.help import FrontPage, Page

studies = typer.Typer(
    cls=FrontPage,
    help="Studies: grids of runs that are made in pieces, several at a time, and read as tables, plots and claims.",
    epilog="""
    mmard study list
    mmard study run all --scale S --jobs 2
    mmard study status all --scale S
    """,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.add_typer(studies, name="study", rich_help_panel="Look")


@studies.callback(invoke_without_command=True)
def study(context: typer.Context) -> None:
    """Studies: grids of runs that are made in pieces, several at a time, and read as tables, plots and claims."""
    if context.invoked_subcommand is None:
        print(context.get_help())


Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Studies of `mmard study list`, files of your own, or all.")
]
ScaleName = Annotated[str, _option("Networks, data and attacks: a name, or a file of your own.", "NAME", shown="S")]
Runs = Annotated[Path | None, _option("Folder of the run folders.", "FOLDER", shown="runs/study/<scale>")]
Only = Annotated[
    str, _option("Only cells whose name, host, variant or student has this text; and their teachers.", "TEXT")
]
Seeds = Annotated[int | None, _option("Only the first so many seeds.", "N")]


@studies.command(
    cls=Page, epilog="mmard study run plug-and-play boundary --scale S --jobs 2\nmmard study run all --dry-run"
)
def run(
    names: Names,
    scale: ScaleName = "S",
    runs: Runs = None,
    jobs: Annotated[int | None, _option("Cells at a time; as the cores or GPUs allow if not given.", "N")] = None,
    device: Annotated[str, _option("cpu, cuda, cuda:1, or auto.", "TEXT", shown="auto")] = "auto",
    data_dir: Annotated[Path | None, _option("Folder that holds the data; digits need none.", "FOLDER")] = None,
    only: Only = "",
    seeds: Seeds = None,
    launcher: Annotated[
        str, _option("Where the workers run: here, or jobs of SLURM.", "local|slurm|submitit-local", shown="local")
    ] = "local",
    partition: Annotated[str, _option("Of SLURM.", "NAME")] = "",
    minutes: Annotated[int, _option("Of a job of SLURM.", "N", shown="240")] = 240,
    dry_run: Annotated[bool, _option("Say what there is to do and about how long it takes; do nothing.")] = False,
) -> None:
    """Train and attack what is missing of some studies. Ctrl-C saves; the same command goes on.

    What is finished is skipped, and what two studies have in common is made once. A cell that fails does not stop the
    others; it is told at the end, and the exit status is 1.
    """
    from mmard.cli.studying import Asked, run_studies

    asked = Asked(names, scale, runs, only, seeds, None if data_dir is None else str(data_dir))
    run_studies(asked, jobs, device, launcher, partition, minutes, dry_run)
