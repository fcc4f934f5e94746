"""The commands of `mmard study` that read records: table, plot, ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmard.cli.options import Json, Options, argument, command, option
from mmard.cli.study import print_tables, studies
from mmard.errors import Refused, require, unknown
from mmard.screen import busy, commands, complain, console, line, print_json
from mmard.words import plural

if TYPE_CHECKING:
    from mmard.study.reading import Reading

ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".txt": "text"}

WHICH = option("", "Which weights are spoken of.", "best|last", shown="what the scale says")


class RecordSource(Options):
    """Where the figures of a study are; without records and runs, the scale's own runs, or else its records here."""

    name: str = argument("NAME", "A study of `mmard study list`, or a file of your own.")
    scale: str = option("S", "Data, networks, seeds, attacks: a name, or a file.", "S|M|L|FILE")
    records: Path | None = option(
        None, "Read this file, as `records` writes it.", "FILE", shown="results/studies/<scale>.jsonl"
    )
    runs: Path | None = option(None, "Read this folder of runs.", "FOLDER", shown="runs/study/<scale>, if it has some")
    which: str = WHICH

    def read(self) -> tuple[Reading, str]:
        """The study with its records, and where those are from.

        Raises:
            Refused: if there is no record of it.
        """
        from mmard.study.grid import choose
        from mmard.study.ledger import RECORDS
        from mmard.study.reading import Reading
        from mmard.study.records import collect, read

        if self.records is not None and self.runs is not None:
            raise Refused("--records and --runs", expected="one of them", got="both")
        _check_which(self.which)
        choice = choose([self.name], self.scale)
        require(len(choice.grids) == 1, "NAME", expected="one study", got=self.name, mend="mmard study list")
        grid, runs = choice.grids[0], self.runs or choice.runs
        file = self.records or RECORDS / f"{choice.scale.name}.jsonl"
        found, source = ({} if self.records is not None else collect(runs, grid.cells)), str(runs)
        if not found and self.runs is None and (self.records is not None or file.is_file()):
            found, source = read(file), str(file)
        reading = Reading(grid, found, self.which or choice.scale.which)
        mend = f"mmard study run {self.name} --scale {self.scale}"
        where = f"study {grid.study.name}"
        require(reading.any, where, expected="records of its cells", got=f"none in {source}", mend=mend)
        return reading, source


def _check_which(which: str) -> None:
    from mmard.study.reading import WHICH

    require(which in ("", *WHICH), "--which", expected=" or ".join(WHICH), got=which)


class TableOptions(RecordSource):
    """What `mmard study table` is asked for."""

    form: str | None = option(None, "Print it as this.", "text|markdown|latex|csv|json", "--format", shown="text")
    out: Path | None = option(None, "Write it into a file; .md, .tex, .csv, .json or .txt says as what.", "FILE")


@command(
    "Read",
    """
    mmard study table plug-and-play --scale S
    mmard study table benchmark --records results/studies/S.jsonl --which last
    mmard study table saturation --out table.tex
    """,
    of=studies,
)
def table(options: TableOptions) -> None:
    """The tables of a study: means over seeds, differences paired by seed, and what is missing."""
    from mmard.study.tables import written

    out, form = options.out, _format(options.form, options.out)
    with busy("reading records"):
        reading, source = options.read()
    if form == "text" and out is None:
        screen, study, at = console(), reading.grid.study, reading.grid.scale
        line(screen, f"{study.title}; scale {at.name}: {at.title}", "strong")
        line(screen, study.question)
        screen.print()
        print_tables(screen, reading)
        line(screen, f"From {source}.", "quiet")
        commands(screen, "the same as a picture", [f"mmard study plot {options.name} --scale {options.scale}"])
        return
    text = _text(reading) if form == "text" else written(reading, form)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    from mmard.files import write_text

    write_text(out, text)
    line(console(), f"{out}: {plural(len(reading.grid.rows), 'row')} as {form}")


def _format(form: str | None, out: Path | None) -> str:
    if form is not None and form not in ENDINGS.values():
        raise unknown("format", form, tuple(ENDINGS.values()))
    if form is not None or out is None:
        return form or "text"
    if out.suffix.lower() not in ENDINGS:
        got = f"a name that ends in {out.suffix!r}"
        expected = f"a name ending in {', '.join(ENDINGS)}"
        raise Refused("--out", expected=expected, got=got, mend="or give --format")
    return ENDINGS[out.suffix.lower()]


def _text(reading: Reading) -> str:
    screen = console()
    with screen.capture() as captured:
        print_tables(screen, reading)
    return captured.get()


class PlotOptions(RecordSource):
    """What `mmard study plot` is asked for."""

    out: Path | None = option(None, "The file; further plots go beside it.", "FILE.svg", shown="<scale>-<study>.svg")


@command(
    "Read",
    """
    mmard study plot plug-and-play --scale S --out gains.svg
    mmard study plot benchmark --runs runs/study/S
    """,
    of=studies,
)
def plot(options: PlotOptions) -> None:
    """The plots of a study as SVG files, for light and dark pages. Needs the extra mmard[plots]."""
    from mmard.report.drawing import need_plots

    need_plots()
    with busy("drawing"):
        from mmard.files import write_text
        from mmard.study.tables import charts

        reading, _ = options.read()
        first = options.out or Path(f"{reading.grid.scale.name}-{reading.grid.study.name}.svg")
        require(first.suffix.lower() == ".svg", "--out", expected="a name ending in .svg", got=str(first))
        plots = {first.with_stem(f"{first.stem}-{p.slug}") if p.slug else first: p for p in charts(reading)}
        drawn = {file: plot.draw() for file, plot in plots.items()}
    for file, svg in drawn.items():
        write_text(file, svg)
        line(console(), f"{file}: {plots[file].alt}")


class LedgerOptions(Json):
    """What `mmard study ledger` is asked for."""

    records: tuple[Path, ...] = option(
        (), "Files of records, or folders of such files.", "FILE|FOLDER", shown="results/studies", many=True
    )
    out: Path = option(Path("RESULTS.md"), "The page.", "FILE")
    pictures: Path | None = option(None, "Folder of the pictures.", "FOLDER", shown="results/pictures beside it")
    which: str = WHICH
    check: bool = option(False, "Write nothing; exit with 1 where page or pictures lag behind.")


@command(
    "Read",
    """
    mmard study ledger
    mmard study ledger --records results/studies/S.jsonl --out S.md
    mmard study ledger --check
    """,
    of=studies,
)
def ledger(options: LedgerOptions) -> None:
    """RESULTS.md: every study of every scale that has records, the paper's claims judged, published figures apart."""
    from mmard.report.drawing import need_plots
    from mmard.study.ledger import PICTURES, RECORDS, results_page, stale, write_page
    from mmard.study.records import merged, read

    out, check, which = options.out, options.check, options.which
    _check_which(which)
    if not check:
        need_plots()
    found: dict[str, dict[str, Any]] = {}
    for path in options.records or [RECORDS]:
        for file in _record_files(path):
            found = merged(found, read(file)).records
    folder = options.pictures or out.parent / PICTURES
    shown = folder.relative_to(out.parent) if folder.is_relative_to(out.parent) else folder
    with busy("reading and drawing"):
        page = results_page(found, which=which, pictures=shown, draw=not check)
    if check:
        late = stale(page, out, folder)
        for name in late:
            complain(f"{name} is not as the records have it; mmard study ledger writes it")
        if late:
            raise typer.Exit(1)
        line(console(), f"{out} and {plural(len(page.stamps), 'picture')} are as the records have it")
        return
    write_page(page, out, folder)
    if options.as_json:
        print_json({"page": str(out), "pictures": sorted(str(folder / name) for name in page.pictures)})
        return
    line(console(), f"{out}: {plural(len(found), 'record')}, {plural(len(page.pictures), 'picture')} in {folder}")


def _record_files(path: Path) -> list[Path]:
    """A file of records, or those of a folder."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.is_file() else []
    mend = "mmard study records all --out results/studies/S.jsonl writes one"
    require(bool(files), str(path), expected="a file of records, or a folder with some", got="none", mend=mend)
    return files
