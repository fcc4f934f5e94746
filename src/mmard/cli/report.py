"""`mmard report`: one page about runs."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmard.cli.options import Options, argument, command, option
from mmard.screen import INTERRUPTED, busy, complain, console, line
from mmard.words import plural

if TYPE_CHECKING:
    from mmard.report.runs import ReportedRuns


class Report(Options):
    """What `mmard report` is asked for."""

    runs: list[Path] = argument("RUN...", "Run folders; those that differ in their seed alone go together.")
    out: Path | None = option(
        None, "The HTML file; report.html in the run's folder, of several runs in the working directory.", "FILE"
    )
    watch: int | None = option(
        None,
        "Write it anew every so many seconds until the runs are finished; the page reloads itself.",
        "SECONDS",
        le=86_400,
    )
    open_: bool = option(False, "Open it in a browser.", flag="--open")
    quiet: bool = option(False, "Print the file's name and nothing else.", flag="--quiet,-q")


@command(
    "Look",
    """
    mmard report runs/s
    mmard report runs/a runs/b runs/c --out comparison.html
    mmard report runs/s --watch 30 --open
    """,
)
def report(options: Report) -> None:
    """One HTML page about runs: settings, table, curves, images. It needs no network, and computes nothing anew."""
    make_report(options.runs, options.out, watch=options.watch, open_=options.open_, quiet=options.quiet)


def make_report(runs: Sequence[Path], out: Path | None, *, watch: int | None, open_: bool, quiet: bool) -> None:
    """Write the report, and say where it is.

    Raises:
        Refused: for folders without a run, a file that is something else, or no matplotlib.
        typer.Exit: with 130 when the user stopped a watch.
    """
    with busy("reading runs"):
        from mmard.report.page import write_report
    tell = _Teller(open_, quiet, live=watch is not None)
    try:
        if watch is None:
            with busy("drawing"):
                file = write_report(runs, out)
            tell.once(file)
        else:
            file = write_report(runs, out, watch=watch, written=tell)
    except KeyboardInterrupt:
        complain("stopped watching; the page stands as it is and reloads itself no longer")
        raise typer.Exit(INTERRUPTED) from None
    if watch is not None and not quiet:
        line(console(), "The runs are finished; the page reloads itself no longer.", "quiet")


class _Teller:
    """Says where the page is when it is first there, and how far the runs are when that changes."""

    def __init__(self, open_: bool, quiet: bool, live: bool) -> None:
        self.open, self.quiet, self.live = open_, quiet, live
        self.said = ""

    def once(self, file: Path) -> None:
        """The page is written."""
        if self.quiet:
            print(file)
        else:
            from mmard.report.runs import size

            line(console(), f"{file}: {size(file.stat().st_size)}, opens without a network", "strong")
        if self.open:
            _show_report(webbrowser.open, file)

    def __call__(self, file: Path, report: ReportedRuns) -> None:
        """The page is written again."""
        if not self.said:
            self.once(file)
        state = "; ".join(f"{run.name}: {run.progress}" for run in report.runs if not run.finished)
        state = state or f"{plural(len(report.runs), 'run')} finished"
        if state != self.said and not self.quiet:
            line(console(), f"  {time.strftime('%H:%M:%S')}  {state}", "quiet")
        self.said = state


def _show_report(show: Callable[[str], bool], file: Path) -> None:
    if not show(file.resolve().as_uri()):
        complain(f"no browser could be opened; the page is {file}")
