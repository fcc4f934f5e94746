"""`mmard study table`, `plot` and `ledger`: what records say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from mmard.cli.screen import busy, commands, complain, console, line, put, rich_table
from mmard.errors import Refused, require, unknown
from mmard.study.sheets import Entry, Sheet, text_of
from mmard.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from mmard.study.reading import Reading


ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".txt": "text"}
FORMATS = ("text", "markdown", "latex", "csv", "json")


@dataclass(frozen=True)
class Source:
    """Where the figures of a study are looked for, as the command line says it.

    Attributes:
        study, scale: by name or file.
        records: a file of records; `runs`: a folder of runs; neither: the scale's own runs, or else its records here.
        which: "best" or "last"; what the scale says if empty.
    """

    study: str
    scale: str
    records: Path | None
    runs: Path | None
    which: str

    def read(self) -> tuple[Reading, str]:
        """The study with its records, and where those are from.

        Raises:
            Refused: if there is no record of it.
        """
        from mmard.study.grid import choose
        from mmard.study.ledger import RECORDS
        from mmard.study.reading import WHICH, Reading
        from mmard.study.records import collect, read

        if self.records is not None and self.runs is not None:
            raise Refused("--records and --runs", expected="one of them", got="both")
        require(self.which in ("", *WHICH), "--which", expected=" or ".join(WHICH), got=self.which)
        choice = choose([self.study], self.scale)
        require(len(choice.grids) == 1, "NAME", expected="one study", got=self.study, mend="mmard study list")
        grid, name = choice.grids[0], choice.scale.name
        file = self.records or RECORDS / f"{name}.jsonl"
        found = {} if self.records is not None else collect(self.runs or choice.runs, grid.cells)
        position = str(self.runs or choice.runs)
        if not found and self.runs is None and (self.records is not None or file.is_file()):
            found, position = read(file), str(file)
        reading = Reading(grid, found, self.which or choice.scale.which)
        if not reading.any:
            mend = f"mmard study run {self.study} --scale {self.scale}"
            raise Refused(
                f"study {grid.study.name}", expected="records of its cells", got=f"none in {position}", mend=mend
            )
        return reading, position


def print_tables(out: Console, reading: Reading) -> None:
    """All tables of a study, what is missing, and what stands behind the figures."""
    from mmard.study.reading import missing_rows
    from mmard.study.sheets import foot
    from mmard.study.tables import tables

    for number, sheet in enumerate(tables(reading)):
        for position, piece in enumerate(for_terminal(sheet, out.width)):
            if number or position:
                out.print()
            put(out, piece)
        if sheet.caption:
            line(out, sheet.caption, "quiet")
    out.print()
    line(out, foot(reading), "quiet")
    for gap in missing_rows(reading):
        line(out, f"missing: {gap}")


def show_table(source: Source, form: str | None, out: Path | None) -> None:
    """Print the tables of a study, or write them into a file."""
    form = _format(form, out)
    with busy("reading records"):
        reading, position = source.read()
    if form == "text" and out is None:
        screen = console()
        study, scale = reading.grid.study, reading.grid.scale
        line(screen, f"{study.title}; scale {scale.name}: {scale.title}", "strong")
        line(screen, study.question)
        screen.print()
        print_tables(screen, reading)
        line(screen, f"From {position}.", "quiet")
        commands(screen, "the same as a picture", [f"mmard study plot {source.study} --scale {source.scale}"])
        return
    text = written(reading, form)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    _write(out, text)
    line(console(), f"{out}: {plural(len(reading.grid.rows), 'row')} as {form}")


def written(reading: Reading, form: str) -> str:
    """The tables of a study in one of `FORMATS`."""
    from mmard.study.reading import missing_rows
    from mmard.study.sheets import as_csv, as_json, foot, latex, markdown
    from mmard.study.tables import tables

    if form == "csv":
        return as_csv(reading)
    if form == "json":
        return as_json(reading)
    if form == "text":
        screen = console()
        with screen.capture() as captured:
            print_tables(screen, reading)
        return captured.get()
    below = " ".join([foot(reading), *(f"Missing: {gap}." for gap in missing_rows(reading))])
    sheets = tables(reading)
    return markdown(sheets, below) if form == "markdown" else latex(sheets, below, reading.grid.study.name)


def _format(form: str | None, out: Path | None) -> str:
    if form is not None and form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if form is not None or out is None:
        return form or "text"
    if out.suffix.lower() not in ENDINGS:
        got = f"a name that ends in {out.suffix!r}"
        expected = f"a name ending in {', '.join(ENDINGS)}"
        raise Refused("--out", expected=expected, got=got, mend="or give --format")
    return ENDINGS[out.suffix.lower()]


def show_plot(source: Source, out: Path | None) -> None:
    """Write the plots of a study."""
    from mmard.report.drawing import need_plots

    need_plots()
    with busy("drawing"):
        from mmard.study.tables import charts

        reading, _ = source.read()
        first = out or Path(f"{reading.grid.scale.name}-{reading.grid.study.name}.svg")
        if first.suffix.lower() != ".svg":
            raise Refused("--out", expected="a name ending in .svg", got=str(first))
        drawn = {first.with_stem(f"{first.stem}-{p.slug}") if p.slug else first: p for p in charts(reading)}
        files = {file: plot.draw() for file, plot in drawn.items()}
    for file, svg in files.items():
        _write(file, svg)
        line(console(), f"{file}: {drawn[file].alt}")


def write_results(
    records: list[Path], out: Path, pictures: Path | None, which: str, check: bool, as_json: bool
) -> None:
    """Write RESULTS.md and its pictures, or say whether they are as the records have it."""
    import json

    from mmard.report.drawing import need_plots
    from mmard.study.ledger import PICTURES, RECORDS, ledger, stale, write_ledger
    from mmard.study.reading import WHICH
    from mmard.study.records import merged, read

    require(which in ("", *WHICH), "--which", expected=" or ".join(WHICH), got=which)
    if not check:
        need_plots()
    files = [file for position in records or [RECORDS] for file in _record_files(position)]
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        found = merged(found, read(file)).records
    folder = pictures or out.parent / PICTURES
    shown = folder.relative_to(out.parent) if folder.is_relative_to(out.parent) else folder
    with busy("reading and drawing"):
        page = ledger(found, which=which, pictures=shown, draw=not check)
    if check:
        late = stale(page, out, folder)
        for name in late:
            complain(f"{name} is not as the records have it; mmard study ledger writes it")
        if late:
            raise typer.Exit(1)
        line(console(), f"{out} and {plural(len(page.stamps), 'picture')} are as the records have it")
        return
    write_ledger(page, out, folder)
    if as_json:
        print(json.dumps({"page": str(out), "pictures": sorted(str(folder / name) for name in page.pictures)}))
        return
    line(console(), f"{out}: {plural(len(found), 'record')}, {plural(len(page.pictures), 'picture')} in {folder}")


def _record_files(position: Path) -> list[Path]:
    """A file of records, or those of a folder."""
    if position.is_dir():
        files = sorted(position.glob("*.jsonl"))
        if files:
            return files
    elif position.is_file():
        return [position]
    mend = "mmard study records all --out results/studies/S.jsonl writes one"
    raise Refused(str(position), expected="a file of records, or a folder with some", got="none", mend=mend)


def _write(path: Path, text: str) -> None:
    from mmard.files import write_whole

    write_whole(path, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# study sheet ----------------------------------------------------------------------------------------------------------
# A sheet of a study on a console, in pieces below each other where it is wider.


GAP = 2
"""Blanks between columns of a terminal."""


def for_terminal(sheet: Sheet, width: int) -> list[Table]:
    """One table for a console, in pieces below each other where it is wider; a star stands for bold."""
    columns = list(range(sheet.words, len(sheet.heads)))
    widths = [_wide(sheet, c) for c in range(len(sheet.heads))]
    named = sum(widths[: sheet.words])
    pieces: list[list[int]] = [[]]
    for c in columns:
        if pieces[-1] and named + sum(widths[each] for each in pieces[-1]) + widths[c] > width:
            pieces.append([])
        pieces[-1].append(c)
    made = []
    for piece in pieces:
        shown = [*range(sheet.words), *piece]
        heads = [sheet.heads[c] for c in shown]
        found = rich_table(*heads, right=heads[sheet.words :], fold=heads)
        for column, c in zip(found.columns, shown, strict=True):
            column.width = widths[c] - GAP
        for row in sheet.rows:
            # No-break spaces: a figure keeps its interval beside it.
            cells = [(text_of(row[c]).replace(" ", "\u00a0"), _strong(row[c])) for c in shown]
            found.add_row(*(Text(text, "bold" if strong else "") for text, strong in cells))
        made.append(found)
    return made


def _wide(sheet: Sheet, c: int) -> int:
    """Of a column: its widest cell, or the longest word of its head, which is folded above figures."""
    head = sheet.heads[c]
    words = len(head) if c < sheet.words else max((len(word) for word in head.split()), default=0)
    return GAP + max(words, *(len(text_of(row[c])) for row in sheet.rows), 0)


def _strong(cell: str | Entry) -> bool:
    return isinstance(cell, Entry) and cell.strong
