"""`mmard compare`: one table over runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmard.cli.options import Options, argument, command, option
from mmard.errors import Refused, unknown
from mmard.screen import busy, commands, console, line, put

if TYPE_CHECKING:
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
