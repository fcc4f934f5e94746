"""The command `report`: its options and its help page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmard.cli.app import app
from mmard.cli.help import Page


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard report runs/s
    mmard report runs/a runs/b runs/c --out comparison.html
    mmard report runs/s --watch 30 --open
    """,
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; those that differ in their seed alone go together."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The HTML file; report.html in the run's folder, of several runs in the working directory.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        int | None,
        typer.Option(
            "--watch",
            help="Write it anew every so many seconds until the runs are finished; the page reloads itself.",
            metavar="SECONDS",
            show_default=False,
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.", show_default=False)] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the file's name and nothing else.", show_default=False)
    ] = False,
) -> None:
    """One HTML page about runs: settings, table, curves, images. It needs no network, and computes nothing anew."""
    from mmard.cli.reporting import make_report

    make_report(runs, out, watch=watch, open_=open_, quiet=quiet)
