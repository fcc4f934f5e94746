"""The commands that look at several networks or take one elsewhere: compare, transfer, export."""

from __future__ import annotations

import shlex
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmard.cli.app import Page, app
from mmard.cli.options import AsJson, option
from mmard.cli.screen import INTERRUPTED, busy, commands, complain, console, line, put
from mmard.errors import Refused, unknown
from mmard.words import plural

if TYPE_CHECKING:
    from mmard.report.subject import Subject
    from mmard.tables.comparison import Comparison


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard compare runs/rslad-* runs/rslad+mmard-*
    mmard compare runs/* --against rslad --attack clean,pgd-20,aa
    mmard compare runs/* --out table.tex
    """,
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that were evaluated.")],
    attack: Annotated[str, option("Only figures under these attacks, as evaluate spells them.", "LIST")] = "",
    which: Annotated[str, option("Only figures of these weights.", "best|last")] = "",
    n: Annotated[int | None, option("Only figures on so many images.", "N", "--n")] = None,
    split: Annotated[str | None, option("Only figures on this split.", "test|val|train")] = None,
    against: Annotated[
        str | None, option("Differences from this row: its name, its method, or one of its runs.", "ROW")
    ] = None,
    parts: Annotated[bool, option("Also what stands after each attack of AutoAttack.", None, "--parts")] = False,
    strict: Annotated[
        bool, option("Refuse figures of one attack by two protocols, rather than two columns.", None, "--strict")
    ] = False,
    form: Annotated[
        str | None, option("Print it as this.", "markdown|latex|csv|json", "--format", shown="a table to look at")
    ] = None,
    out: Annotated[
        Path | None, option("Write it into a file; .md, .tex, .csv or .json says as what.", "FILE", "--out")
    ] = None,
) -> None:
    """One table over runs: mean and deviation over seeds, never two protocols in one column."""

    show_comparison(Wanted(runs, attack, which, n, split, against, parts, strict, form, out))


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard transfer runs/t runs/a runs/b
    mmard transfer runs/* --attack cw-30 --first 1000
    """,
)
def transfer(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RUN|FILE...", help="Runs, files of weights that mmard wrote, or ONNX files."),
    ],
    attack: Annotated[str, option("The attack that is made on each.", "NAME", shown="pgd-20")] = "pgd-20",
    eps: Annotated[str | None, option("Radius of the ball: 8/255; the first run's if not given.", "X")] = None,
    norm: Annotated[str | None, option("Norm of the ball; the first run's if not given.", "linf|l2|l1")] = None,
    which: Annotated[str, option("Which weights of the runs.", "best|last", shown="best")] = "best",
    data: Annotated[str | None, option("Data set; the first run's if not given.", "NAME")] = None,
    data_dir: Annotated[Path | None, option("Folder that holds the data.", "FOLDER")] = None,
    split: Annotated[str, option("Which images.", "test|val|train", shown="test")] = "test",
    first: Annotated[int | None, option("Only the first N of them.", "N")] = None,
    batch_size: Annotated[int, option("Images attacked at once.", "N", shown="250")] = 250,
    seed: Annotated[int, option("Seed of random starts.", "N", shown="0")] = 0,
    device: Annotated[str, option("cpu, cuda, cuda:1, or auto.", "TEXT", shown="auto")] = "auto",
    as_json: AsJson = False,
) -> None:
    """A matrix: examples made on each network, shown to all. Called again, it measures what is missing."""
    from mmard.cli.evaluate import show_matrix
    from mmard.cli.options import Request

    request = Request(
        target=targets[0],
        attacks=attack,
        eps=eps,
        norm=norm,
        which=which,
        weights=None,
        data=data,
        data_dir=data_dir,
        split=split,
        first=first,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    show_matrix(targets, request, as_json)


@app.command(
    cls=Page,
    rich_help_panel="Use",
    epilog="""
    mmard export runs/s --to student.onnx
    mmard export resnet18 --weights their.pt --data cifar10 --data-dir D --eps 8/255 --to theirs.onnx
    """,
)
def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN|FILE|NAME", help="A run, a file of weights that mmard wrote, or a name.")
    ],
    to: Annotated[Path, option("The file to write; one that is there is replaced.", "FILE.onnx", "--to")],
    which: Annotated[str, option("Which weights of a run.", "best|last", shown="best")] = "best",
    weights: Annotated[Path | None, option("Weights for a network given by name (.safetensors, .pt).", "FILE")] = None,
    mean: Annotated[str | None, option("What --weights want their input normalised with.", "X,X,X", "--mean")] = None,
    std: Annotated[str | None, option("The same: deviation of each channel.", "X,X,X", "--std")] = None,
    attack: Annotated[
        str, option("Show the file examples of this attack, or none, made on the network.", "LIST", shown="pgd-20")
    ] = "pgd-20",
    eps: Annotated[str | None, option("Radius of the ball: 8/255; the run's if not given.", "X")] = None,
    norm: Annotated[str | None, option("Norm of the ball; the run's if not given.", "linf|l2|l1")] = None,
    data: Annotated[str | None, option("Data set to check it on; the run's if not given.", "NAME")] = None,
    data_dir: Annotated[Path | None, option("Folder that holds the data.", "FOLDER")] = None,
    first: Annotated[int, option("Check on the first N test images.", "N", shown="1000")] = 1000,
    opset: Annotated[int, option("Version of the ONNX operators.", "N", shown="20")] = 20,
    as_json: AsJson = False,
) -> None:
    """Write a network as an ONNX file, normalisation inside and any batch size, and check it on real images."""
    from mmard.cli.options import Request
    from mmard.cli.share import export_network

    request = Request(
        target=target,
        attacks=attack,
        eps=eps,
        norm=norm,
        which=which,
        weights=weights,
        data=data,
        data_dir=data_dir,
        split="test",
        first=first,
        batch_size=250,
        seed=0,
        device="cpu",
        mean=mean,
        std=std,
    )
    export_network(request, to, opset, as_json)


# comparing ------------------------------------------------------------------------------------------------------------
# `mmard compare`: one table over runs, in the terminal or in the form of a paper.


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for."""

    runs: Sequence[Path]
    attacks: str
    which: str
    n: int | None
    split: str | None
    against: str | None
    parts: bool
    strict: bool
    form: str | None
    out: Path | None


def show_comparison(wanted: Wanted) -> None:
    """Print a comparison, or write it into a file.

    Raises:
        Refused: for anything that cannot be compared or written.
    """
    with busy("reading records"):
        from mmard.tables.comparison import comparison
        from mmard.tables.paper import ENDINGS, FORMATS, format_of

        form = wanted.form or (format_of(wanted.out) if wanted.out is not None else None)
        if wanted.form is not None and wanted.form not in FORMATS:
            raise unknown("format", wanted.form, FORMATS)
        if wanted.out is not None and form is None:
            got = f"a name that ends in {wanted.out.suffix!r}"
            raise Refused("--out", expected=f"a name ending in {', '.join(ENDINGS)}", got=got, mend="or give --format")
        made = comparison(
            wanted.runs,
            attacks=_words(wanted.attacks),
            which=_words(wanted.which),
            n=wanted.n,
            split=wanted.split,
            against=wanted.against,
            parts=wanted.parts,
            strict=wanted.strict,
        )
    if form is None:
        _show(made, wanted.runs)
        return
    text = FORMATS[form](made)
    if wanted.out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    from mmard.files import write_whole

    write_whole(wanted.out, lambda temporary: _write(temporary, text))
    line(console(), f"{wanted.out}: {len(made.rows)} rows, {len(made.cells)} figures as {form}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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


# app report -----------------------------------------------------------------------------------------------------------
# The command `report`: its options and its help page.


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

    make_report(runs, out, watch=watch, open_=open_, quiet=quiet)


# reporting ------------------------------------------------------------------------------------------------------------
# `mmard report`: the page, once or while training goes on.


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
            from mmard.report.subject import size

            line(console(), f"{file}: {size(file.stat().st_size)}, opens without a network", "strong")
        if self.open:
            _show_report(webbrowser.open, file)

    def __call__(self, file: Path, about: Subject) -> None:
        """The page is written again."""
        if not self.said:
            self.once(file)
        told = "; ".join(f"{run.name}: {run.progress}" for run in about.runs if not run.finished)
        told = told or f"{plural(len(about.runs), 'run')} finished"
        if told != self.said and not self.quiet:
            line(console(), f"  {time.strftime('%H:%M:%S')}  {told}", "quiet")
        self.said = told


def _show_report(show: Callable[[str], bool], file: Path) -> None:
    if not show(file.resolve().as_uri()):
        complain(f"no browser could be opened; the page is {file}")
