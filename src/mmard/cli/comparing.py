"""`mmard compare`: one table over runs, in the terminal or in the form of a paper."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from mmard.cli.output import busy, commands, console, line, put, table
from mmard.errors import Refused, unknown

if TYPE_CHECKING:
    from mmard.evaluation.spread import Difference
    from mmard.report.columns import Sample
    from mmard.report.comparison import Cell, Comparison

NAME_WIDTH = 34
"""Columns that a row's name takes at most before it is folded."""


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
        from mmard.report.comparison import comparison
        from mmard.report.paper import ENDINGS, FORMATS, format_of

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
    from mmard.storage import write_whole

    write_whole(wanted.out, lambda temporary: _write(temporary, text))
    line(console(), f"{wanted.out}: {len(made.rows)} rows, {len(made.cells)} figures as {form}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _show(made: Comparison, runs: Sequence[Path]) -> None:
    from mmard.report.paper import caption, difference_caption, remarks

    out = console()
    for number, sample in enumerate(made.samples):
        if number:
            out.print()
        for piece in comparison_tables(made, sample, out.width):
            put(out, piece)
            out.print()
        line(out, caption(made, sample), "quiet")
        if any(c in sample.columns for _, c in made.differences):
            line(out, "Second lines: " + difference_caption(made, sample), "quiet")
    notes = remarks(made)
    if notes:
        out.print()
    for note in notes:
        line(out, f"note: {note}")
    commands(out, "for a paper", [f"mmard compare {shlex.join(map(str, runs))} --format latex"])


def comparison_tables(made: Comparison, sample: Sample, width: int) -> list[Table]:
    """The table of one sample, in several pieces one below the other where it would be wider than the terminal."""
    rows = made.rows_of(sample)
    name_width = min(NAME_WIDTH, max(len(made.rows[r].name) for r in rows))
    columns = list(sample.columns)
    widths = {c: _width(made, rows, c) + 2 for c in columns}
    pieces: list[list[int]] = [[]]
    for c in columns:
        if pieces[-1] and name_width + 2 + 7 + sum(widths[each] for each in pieces[-1]) + widths[c] > width:
            pieces.append([])
        pieces[-1].append(c)
    return [_table(made, rows, piece) for piece in pieces]


def _table(made: Comparison, rows: Sequence[int], columns: Sequence[int]) -> Table:
    found = table("network", "seeds", right=("seeds",), fold=("network",))
    found.columns[0].max_width = NAME_WIDTH
    for c in columns:
        least = _width(made, rows, c)
        found.add_column(made.columns[c].title, justify="right", no_wrap=False, overflow="fold", min_width=least)
    for r in rows:
        cells = [made.cells.get((r, c)) for c in columns]
        counts = sorted({len(cell.seeds) for cell in cells if cell is not None})
        texts = [_cell(cell, made.differences.get((r, c))) for c, cell in zip(columns, cells, strict=True)]
        seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else ""
        found.add_row(made.rows[r].name, seeds, *texts)
    return found


def _cell(cell: Cell | None, gap: Difference | None) -> Text:
    from mmard.report.paper import cell_text, difference_text
    from mmard.report.tabular import MARK

    if cell is None:
        return Text("")
    mean, spread = cell_text(cell)
    # No-break spaces: a cell is folded between its lines alone.
    text = Text.assemble((mean, "strong" if cell.best else ""), (f"\u00a0{spread}", "quiet"))
    if cell.suspicious:
        text.append(MARK, "bold red")
    if gap is not None:
        text.append("\n" + "\u00a0".join(filter(None, difference_text(gap))), "quiet")
    return text


def _width(made: Comparison, rows: Sequence[int], c: int) -> int:
    """Of a column: its widest cell, or the longest word of its head, which may be folded at spaces."""
    words = max(len(word) for word in made.columns[c].title.split())
    title = math.ceil(len(made.columns[c].title) / 3)
    cells = (_cell(made.cells.get((r, c)), made.differences.get((r, c))) for r in rows)
    return max(words, title, *(len(text) for cell in cells for text in cell.plain.split("\n")))
