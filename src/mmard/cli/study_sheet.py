"""A sheet of a study on a console, in pieces below each other where it is wider."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from mmard.cli.output import table
from mmard.study.sheets import Entry, Sheet, text_of

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
        found = table(*heads, right=heads[sheet.words :], fold=heads)
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
