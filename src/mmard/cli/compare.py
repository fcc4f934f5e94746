"""`mmard compare` and `mmard report`: one table over runs, and one page about them."""

from __future__ import annotations

import shlex
import time
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmard.cli.options import Options, argument, command, option
from mmard.cli.screen import INTERRUPTED, busy, commands, complain, console, line, put
from mmard.errors import Refused, unknown
from mmard.words import plural

if TYPE_CHECKING:
    from mmard.report.runs import ReportedRuns
    from mmard.tables.comparison import Comparison


class Compare(Options):
    """What `mmard compare` is asked for."""

    runs: list[Path] = argument("RUN...", "Run folders that were evaluated.")
    attack: str = option("", "Only figures under these attacks, as evaluate spells them.", "LIST")
    which: str = option("", "Only figures of these weights.", "best|last")
    n: int | None = option(None, "Only figures on so many images.", flag="--n")
    split: str | None = option(None, "Only figures on this split.", "test|val|train")
    against: str | None = option(None, "Differences from this row: its name, its method, or one of its runs.", "ROW")
    parts: bool = option(False, "Also what stands after each attack of AutoAttack.")
    strict: bool = option(False, "Refuse figures of one attack by two protocols, rather than two columns.")
    form: str | None = option(
        None, "Print it as this.", "markdown|latex|csv|json", "--format", shown="a table to look at"
    )
    out: Path | None = option(None, "Write it into a file; .md, .tex, .csv or .json says as what.", "FILE")


@command(
    "Look",
    """
    mmard compare runs/rslad-* runs/rslad+mmard-*
    mmard compare runs/* --against rslad --attack clean,pgd-20,aa
    mmard compare runs/* --out table.tex
    """,
)
def compare(options: Compare) -> None:
    """One table over runs: mean and deviation over seeds, never two protocols in one column."""
    show_comparison(options)


def show_comparison(options: Compare) -> None:
    """Print a comparison, or write it into a file.

    Raises:
        Refused: for anything that cannot be compared or written.
    """
    with busy("reading records"):
        from mmard.tables.comparison import comparison
        from mmard.tables.paper import ENDINGS, FORMATS, format_of

        form = options.form or (format_of(options.out) if options.out is not None else None)
        if options.form is not None and options.form not in FORMATS:
            raise unknown("format", options.form, FORMATS)
        if options.out is not None and form is None:
            got = f"a name that ends in {options.out.suffix!r}"
            raise Refused("--out", expected=f"a name ending in {', '.join(ENDINGS)}", got=got, mend="or give --format")
        made = comparison(
            options.runs,
            attacks=_words(options.attack),
            which=_words(options.which),
            n=options.n,
            split=options.split,
            against=options.against,
            parts=options.parts,
            strict=options.strict,
        )
    if form is None:
        _show(made, options.runs)
        return
    text = FORMATS[form](made)
    if options.out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    from mmard.files import write_text

    write_text(options.out, text)
    line(console(), f"{options.out}: {len(made.rows)} rows, {len(made.cells)} figures as {form}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _show(made: Comparison, runs: Sequence[Path]) -> None:
    from mmard.tables.paper import difference_caption, remarks, table_of

    out = console()
    for number, sample in enumerate(made.samples):
        if number:
            out.print()
        table = table_of(made, sample, with_differences=True)
        for piece in table.pieces(out.width):
            put(out, piece)
            out.print()
        line(out, table.caption, "quiet")
        if any(c in sample.columns for _, c in made.differences):
            line(out, "Second lines: " + difference_caption(made, sample), "quiet")
    notes = remarks(made)
    if notes:
        out.print()
    for note in notes:
        line(out, f"note: {note}")
    commands(out, "for a paper", [f"mmard compare {shlex.join(map(str, runs))} --format latex"])


# report ---------------------------------------------------------------------------------------------------------------
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
