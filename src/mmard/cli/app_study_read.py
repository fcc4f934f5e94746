"""The commands of `mmard study` that read records: table, plot, ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmard.cli.app_study import ScaleName, studies
from mmard.cli.help import Page
from mmard.cli.options import AsJson, option

Name = Annotated[str, typer.Argument(metavar="NAME", help="A study of `mmard study list`, or a file of your own.")]
Records = Annotated[
    Path | None,
    option("Read this file, as `records` writes it.", "FILE", shown="results/studies/<scale>.jsonl"),
]
Runs = Annotated[
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
    runs: Runs = None,
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
    from mmard.cli.reading import Source, show_table

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
    runs: Runs = None,
    which: Which = "",
    out: Annotated[
        Path | None,
        option("The file; further plots go beside it.", "FILE.svg", "--out", shown="<scale>-<study>.svg"),
    ] = None,
) -> None:
    """The plots of a study as SVG files, for light and dark pages. Needs the extra mmard[plots]."""
    from mmard.cli.reading import Source, show_plot

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
    from mmard.cli.reading import write_results

    write_results(list(records or ()), out, pictures, which, check, as_json)
