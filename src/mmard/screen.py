"""Consoles, lines, tables, JSON: how a command writes, to a terminal or to a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from mmard.words import printable

if TYPE_CHECKING:
    from mmard.report.section import Section
    from mmard.tables.table import Table as TextTable


THEME = Theme({"quiet": "dim", "strong": "bold", "command": "cyan", "good": "green"})


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class PlainConsole(Console):
    """A console to which text is text: no markup in square brackets, and nothing that steers a terminal."""

    def __init__(self, **how: Any) -> None:
        super().__init__(theme=THEME, highlight=False, markup=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Strings, those in tables among them."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **how)


def console() -> Console:
    """Where results go: standard output. Lines that are no table are never broken when it is not a terminal."""
    return PlainConsole()


def is_terminal() -> bool:
    """Whether somebody watches standard output in a terminal that can redraw."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def watched() -> Console | None:
    """Where passing progress goes: standard error, if somebody watches it in a terminal that can redraw."""
    err = PlainConsole(stderr=True)
    return err if sys.stderr.isatty() and not err.is_dumb_terminal else None


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """A passing word on what takes a moment, in a terminal; what it yields shows another word behind it."""
    err = watched()
    if err is None:
        yield lambda text: None
        return
    with err.status(what, spinner="dots", spinner_style="quiet") as status:
        yield lambda text: status.update(f"{what}: {text}")


def complain(message: str) -> None:
    """One line on standard error."""
    print("mmard: " + printable(" ".join(message.split())), file=sys.stderr)


def print_json(found: Any) -> None:
    """What a command found, for programs."""
    print(json.dumps(found, indent=2))


def line(out: Console, text: str = "", style: str = "") -> None:
    """One line, which a file gets whole however long it is, and a terminal folded under its own indent."""
    text = printable(text)
    if out.is_terminal:
        indent = len(text) - len(text.lstrip())
        out.print(Padding(Text(text.strip(), style=style), (0, 0, 0, indent)))
    else:
        out.print(Text(text, style=style), soft_wrap=True)


def put(out: Console, table: Table, indent: int = 0, *, breaks: bool = False) -> None:
    """A table, without blanks at the ends of its lines where they would stay in a file.

    Args:
        breaks: whether a file has common blanks for those that keep a figure on one line of a terminal.
    """
    padded = Padding(table, (0, 0, 0, indent), expand=False)
    if out.is_terminal:
        out.print(padded)
        return
    with out.capture() as captured:
        out.print(padded)
    for text in captured.get().splitlines():
        out.print(Text((text.replace("\u00a0", " ") if breaks else text).rstrip()), soft_wrap=True)


def rich_table(*columns: str, right: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """A table without rules: quiet heads, numbers at the right, long text folded."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="quiet", show_edge=False)
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name not in fold,
            overflow="fold" if name in fold else "ellipsis",
        )
    return made


def show_section(out: Console, section: Section, *, whole: bool = False) -> None:
    """A section of a report (`report/section.py`), without its drawings.

    Args:
        whole: with its folded parts.
    """
    out.print()
    if section.title:
        line(out, section.title, "strong")
    for place, sentence in enumerate(section.sentences):
        line(out, f"  {sentence}", "bold red" if section.alarm and place == 0 else "quiet")
    for picture in section.pictures:
        if picture.printed and picture.table is not None:
            if picture.title != section.title:
                line(out, f"  {picture.title}. {picture.note}".rstrip(), "quiet")
            show_table(out, picture.table)
    for table in section.tables:
        if table.caption:
            line(out, f"  {table.caption}", "quiet")
        show_table(out, table)
    for part in section.parts:
        if whole or not part.folded:
            show_section(out, part, whole=whole)


def show_table(out: Console, table: TextTable) -> None:
    """A table of `mmard.tables`, in as many pieces as the width of the console takes."""
    for piece in table.pieces(out.width - 2):
        put(out, piece, 2, breaks=True)


def commands(out: Console, title: str, lines: Iterable[str]) -> None:
    """Commands to type next, each on one line that can be copied."""
    out.print()
    out.print(Text(title, style="quiet"))
    for each in lines:
        out.print(Text("  " + printable(each), style="command"), soft_wrap=True)
