"""`mmard report`: the page, once or while training goes on."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmard.cli.output import INTERRUPTED, busy, complain, console, line
from mmard.words import plural

if TYPE_CHECKING:
    from mmard.report.subject import Subject


def make_report(runs: Sequence[Path], out: Path | None, *, watch: int | None, open_: bool, quiet: bool) -> None:
    """Write the report, and say where it is.

    Raises:
        Refused: for folders without a run, a file that is something else, or no matplotlib.
        typer.Exit: with 130 when the user stopped a watch.
    """
    with busy("reading runs"):
        from mmard.report.writing import write_report
    tell = _Teller(open_, quiet, live=watch is not None)
    try:
        if watch is None:
            with busy("drawing"):
                file = write_report(runs, out)
            tell.once(file)
        else:
            file = write_report(runs, out, watch=watch, told=tell)
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
            from mmard.report.words import size

            line(console(), f"{file}: {size(file.stat().st_size)}, opens without a network", "strong")
        if self.open:
            _show(webbrowser.open, file)

    def __call__(self, file: Path, about: Subject) -> None:
        """The page is written again."""
        if not self.said:
            self.once(file)
        told = "; ".join(f"{run.name}: {run.progress}" for run in about.runs if not run.finished)
        told = told or f"{plural(len(about.runs), 'run')} finished"
        if told != self.said and not self.quiet:
            line(console(), f"  {time.strftime('%H:%M:%S')}  {told}", "quiet")
        self.said = told


def _show(show: Callable[[str], bool], file: Path) -> None:
    if not show(file.resolve().as_uri()):
        complain(f"no browser could be opened; the page is {file}")
