"""Tables of a study and how they are written: for the terminal, in Markdown, in LaTeX; and all rows as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmard.balls import Budget
from mmard.study.grid import Row
from mmard.study.reading import CLEAN, ROBUST, SECONDS, Mean, Quantity, Reading, beyond, half, row_name
from mmard.tables.statistics import Difference
from mmard.tables.table import MARK, escaped, latex_table, markdown_table, markdown_text

if TYPE_CHECKING:
    pass

SAYS = {"best": "best weights, chosen on validation images", "last": "last weights"}
MINUS = "\N{MINUS SIGN}"
NOTHING = ""
"""In a cell without a figure."""


@dataclass(frozen=True)
class Entry:
    """What stands in one cell of a table; strong for a difference beyond noise, in bold and with a star."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        heads: of its columns.
        rows: as many cells each.
        caption: what it must say beside what holds for all tables of a study (`foot`).
        words: how many columns are words, at the left.
        main: whether it tells the result; others hold what stands behind it.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str | Entry, ...], ...]
    caption: str
    words: int = 1
    main: bool = True


def text_of(cell: str | Entry) -> str:
    """A cell as plain text.

    >>> text_of(Entry("+1.0", True)), text_of("75.0")
    ('+1.0*', '75.0')
    """
    return cell if isinstance(cell, str) else cell.text + "*" * cell.strong


def number(value: float, quantity: Quantity, *, sign: bool = False) -> str:
    """A quantity as it is shown, with a real minus.

    >>> number(-0.0123, ROBUST, sign=True)
    '−1.2'
    """  # noqa: RUF002
    text = f"{value * quantity.times:{'+' if sign else ''}.{quantity.digits}f}"
    # What rounds to nothing has no sign.
    text = text.lstrip("+-") if float(text) == 0 and sign else text
    return text.replace("-", MINUS)


def mean_text(found: Mean | None, quantity: Quantity) -> str:
    """Mean and standard deviation, and how many seeds where some are missing.

    >>> mean_text(Mean({0: 0.5, 1: 0.52}, 2), ROBUST), mean_text(Mean({0: 0.5}, 3), ROBUST)
    ('51.0 ± 1.4', '50.0 (1 of 3 seeds)')
    """
    if found is None:
        return NOTHING
    spread = "" if found.deviation is None else f" ± {found.deviation * quantity.times:.{quantity.digits}f}"
    seeds = "" if found.n == found.of else f" ({found.n} of {found.of} seeds)"
    return number(found.mean, quantity) + spread + seeds + MARK * bool(found.suspicious)


def gap_entry(gap: Difference | None, quantity: Quantity) -> str | Entry:
    """A difference and half of its interval; strong where it is beyond noise."""
    if gap is None:
        return NOTHING
    spread = half(gap)
    over = "" if spread is None else f" ± {spread * quantity.times:.{quantity.digits}f}"
    images = " (images)" if gap.over_seeds is None and spread is not None else ""
    return Entry(number(gap.mean, quantity, sign=True) + over + images, beyond(gap))


def protocol(reading: Reading) -> str:
    """What stands behind every figure of a study, in a sentence or two."""
    record = next((r for row in reading.grid.rows for r in reading.recorded(row).values()), None)
    if record is None:
        return "No records."
    own = record["figures"].get(reading.which) or next(iter(record["figures"].values()))
    robust, attacks = own["robust"], [own[spec]["label"] for spec in record["attacks"] if spec in own]
    under = f"right under each of {' and '.join(attacks)}" if len(attacks) > 1 else f"right under {attacks[0]}"
    ball = Budget(robust["eps"], robust["norm"])
    return f"Robust: {under}, {ball}, n = {robust['n']:,} test images; {SAYS.get(reading.which, reading.which)}."


def over(reading: Reading) -> str:
    """What the intervals of a study's differences are over."""
    if not any(len(reading.recorded(row)) > 1 for row in reading.grid.rows):
        return (
            "Differences ± half of the 95 % interval over images (paired); one seed of training, so that none is beyond"
            " noise."
        )
    return (
        "Mean ± standard deviation over seeds. Differences ± half of the 95 % interval over seeds (Student's t, paired"
        " by seed) and images (paired) together; bold (*) where beyond it."
    )


def foot(reading: Reading) -> str:
    """What holds for all tables of a study, with the suspicion checks that were raised."""
    raised: dict[str, list[str]] = {}
    for row in reading.grid.rows:
        found = reading.mean(row, ROBUST)
        for mark in () if found is None else found.suspicious:
            raised.setdefault(mark, []).append(row_name(reading, row))
    marks = "; ".join(f"{mark} ({', '.join(names)})" for mark, names in raised.items())
    return " ".join(
        filter(None, (protocol(reading), over(reading), f"{MARK}: suspicion raised: {marks}." if marks else ""))
    )


# how they are written -------------------------------------------------------------------------------------------------
def markdown(sheets: Sequence[Sheet], below: str) -> str:
    """Tables in Markdown with their captions, and what holds for all of them below."""
    return "\n".join([*(markdown_sheet(sheet) for sheet in sheets), markdown_text(below) + "\n"])


def markdown_sheet(sheet: Sheet) -> str:
    """One table in Markdown."""
    body = [[text_of(cell) if c < sheet.words else _marked(cell) for c, cell in enumerate(row)] for row in sheet.rows]
    caption = f"\n{markdown_text(sheet.caption)}\n" if sheet.caption else ""
    return f"{markdown_table(sheet.heads, body, sheet.words)}\n{caption}"


def _marked(cell: str | Entry) -> str:
    if isinstance(cell, str):
        return markdown_text(cell)
    return f"**{markdown_text(cell.text)}**" if cell.strong else markdown_text(cell.text)


def latex(sheets: Sequence[Sheet], below: str, name: str) -> str:
    """Tables in LaTeX, which need the package booktabs and nothing else."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for position, sheet in enumerate(sheets):
        body = [[_typeset(cell) for cell in row] for row in sheet.rows]
        label = f"tab:{name}-{position + 1}"
        caption = f"{sheet.caption} {below}".strip().replace(MINUS, "-")
        parts.append(latex_table(sheet.heads, body, caption, label, sheet.words))
    return "\n".join(parts) + "\n"


def _typeset(cell: str | Entry) -> str:
    text = escaped(cell if isinstance(cell, str) else cell.text).replace(MINUS, "$-$")
    return rf"\textbf{{{text}}}" if isinstance(cell, Entry) and cell.strong else text


# rows as they are -----------------------------------------------------------------------------------------------------
def lines(reading: Reading) -> list[dict[str, Any]]:
    """Every row of the study with its figures, unrounded: what CSV and JSON hold."""
    return [_line(reading, row) for row in reading.grid.rows]


def _line(reading: Reading, row: Row) -> dict[str, Any]:
    made: dict[str, Any] = {
        "scale": reading.grid.scale.name,
        "study": reading.grid.study.name,
        "host": row.host,
        "variant": row.variant,
        "student": row.student,
        "teacher": row.teacher,
        "teacher_robust": reading.teacher_robust(row),
        "axis": row.axis,
        "value": row.value,
        "which": reading.which,
        "seeds": sorted(reading.recorded(row)),
        "seeds_declared": len(row.cells),
    }
    reference = reading.reference(row)
    made["held_beside"] = None if reference is None else reference.variant
    for name, quantity in (("clean", CLEAN), ("robust", ROBUST), ("train_seconds", SECONDS)):
        found = reading.mean(row, quantity)
        gap = reading.gain(row, reference, quantity)
        low, high = (None, None) if found is None or found.interval is None else found.interval
        made |= {
            name: None if found is None else found.mean,
            f"{name}_deviation": None if found is None else found.deviation,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_difference": None if gap is None else gap.mean,
            f"{name}_difference_over_seeds": None if gap is None else gap.over_seeds,
            f"{name}_difference_over_images": None if gap is None else gap.over_images,
        }
    return made


def as_csv(reading: Reading) -> str:
    """The rows as comma-separated values."""
    made = lines(reading)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(made[0]), lineterminator="\n")
    writer.writeheader()
    for each in made:
        writer.writerow({key: " ".join(map(str, v)) if isinstance(v, list) else v for key, v in each.items()})
    return text.getvalue()


def as_json(reading: Reading) -> str:
    """The rows as JSON."""
    return json.dumps(lines(reading), indent=2, ensure_ascii=False)
