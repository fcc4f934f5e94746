"""A comparison written down: Markdown and LaTeX for a page or a paper, CSV and JSON for further work."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmard.tables.comparison import Cell, Comparison
from mmard.tables.figures import Column, Sample
from mmard.tables.statistics import Difference
from mmard.tables.table import MARK, escaped, latex_table, markdown_table, markdown_text


def cell_text(cell: Cell) -> tuple[str, str]:
    """A figure in percent and what it may be off by: "±" the deviation over seeds, or the interval of a single one.

    >>> cell_text(Cell(0.4225, 0.0253, (0.2, 0.65), ())), cell_text(Cell(0.5, None, (0.4, 0.6), ()))
    (('42.2', '±2.5'), ('50.0', '40.0-60.0'))
    """
    low, high = cell.interval
    spread = f"{100 * low:.1f}-{100 * high:.1f}" if cell.deviation is None else f"±{100 * cell.deviation:.1f}"
    return f"{100 * cell.mean:.1f}", spread


def difference_text(found: Difference) -> tuple[str, str, str]:
    """A difference in points and half of its intervals, over images and over seeds; "" where one is unknown.

    >>> difference_text(Difference(0.034, 0.023, None, True, (1, 1)))
    ('+3.4', '±2.3', '')
    """
    halves = ("" if half is None else f"±{100 * half:.1f}" for half in (found.over_images, found.over_seeds))
    return (f"{100 * found.mean:+.1f}", *halves)  # type: ignore[return-value]


def caption(made: Comparison, sample: Sample) -> str:
    """What a table must say to be read alone: images, budget, attacks, seeds, weights, and what is in bold."""
    columns = [made.columns[c] for c in sample.columns]
    cells = [(r, cell) for (r, c), cell in made.cells.items() if c in sample.columns]
    budgets = list(dict.fromkeys(column.budget for column in columns if column.budget))
    at = f" at {budgets[0]}" if len(budgets) == 1 else ""
    attacked = [column for column in columns if column.attack != "clean"]
    draws = list(dict.fromkeys(_draw(column) for column in attacked))
    text = [f"Accuracy in %{at}, {sample.images} (split {sample.split}, n = {sample.n:,}, data {sample.data[:8]})."]
    attacks = [_attack(column, not at, len(draws) > 1) for column in attacked if not column.title.startswith("worst")]
    if attacked:
        alike = f", each in {draws[0]}" if len(draws) == 1 else ""
        text.append(f"Attacks: {'; '.join(attacks) or 'as in the heads'}{alike}.")
    several = made.most_seeds(sample) > 1
    if several:
        counts = {len(cell.seeds) for _, cell in cells}
        seeds = made.seeds(sample)
        over = f"over {len(seeds)} seeds of training ({', '.join(map(str, seeds))})"
        over = over if counts == {len(seeds)} else "over seeds of training, as many as the table says"
        text.append(f"Mean ± standard deviation {over}.")
    if any(cell.deviation is None for _, cell in cells):
        text.append(f"{'Of a single seed' if several else 'One seed of training'}: 95 % interval over images.")
    which = dict.fromkeys(made.rows[r].which for r, _ in cells)
    says = {"best": "best: chosen on validation images", "last": "last: end of training"}
    checkpoints = [says[each] for each in which if each in says]
    text += [f"Weights: {'; '.join(checkpoints)}."] if checkpoints else []
    if any(cell.best for _, cell in cells):
        text.append(
            "Bold: better than every other row of the same network by more than both paired 95 % intervals, over images"
            " and over seeds."
        )
    marks = sorted({mark for _, cell in cells for mark in cell.suspicious})
    if marks:
        text.append(f"{MARK}: suspicion raised ({', '.join(marks)}).")
    return " ".join(text)


def difference_caption(made: Comparison, sample: Sample) -> str:
    """What a table of differences must say."""
    found = [gap for (_, c), gap in made.differences.items() if c in sample.columns]
    over = ["images (paired)"] if any(gap.over_images is not None for gap in found) else []
    if any(gap.over_seeds is not None for gap in found):
        pairing = "paired" if all(gap.paired for gap in found) else "paired where seeds are shared"
        over.append(f"seeds (Student's t, {pairing})")
    text = f"points of accuracy above {made.reference}, n = {sample.n:,}"
    return f"{text}; half of the 95 % interval over {', then over '.join(over)}." if over else f"{text}."


def markdown(made: Comparison) -> str:
    """A table for each sample, with its caption, its differences if there are any, and the notes."""
    parts = []
    for sample in made.samples:
        heads = ["", "seeds", *(made.columns[c].title for c in sample.columns)]
        rows = [
            [
                made.rows[r].name,
                _seeds(made, sample, r),
                *(_markdown_cell(made.cells.get((r, c))) for c in sample.columns),
            ]
            for r in made.rows_of(sample)
        ]
        parts += [markdown_table(heads, rows), markdown_text(caption(made, sample))]
        gaps = list(_difference_rows(made, sample))
        if gaps:
            rows = [[name, *(_apart(" ".join(filter(None, found))) for found in texts)] for name, texts in gaps]
            heads = [f"minus {made.reference}", *(made.columns[c].title for c in sample.columns)]
            parts += [markdown_table(heads, rows), markdown_text(difference_caption(made, sample))]
    parts += ["\n".join(f"- {markdown_text(note)}" for note in remarks(made))] if remarks(made) else []
    return "\n\n".join(parts) + "\n"


def latex(made: Comparison) -> str:
    """The same as tables of LaTeX, which need the package booktabs and nothing else; notes as comments."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for number, sample in enumerate(made.samples):
        heads = ["", "seeds", *(made.columns[c].title for c in sample.columns)]
        rows = [
            [
                escaped(made.rows[r].name),
                escaped(_seeds(made, sample, r)),
                *(_latex_cell(made.cells.get((r, c))) for c in sample.columns),
            ]
            for r in made.rows_of(sample)
        ]
        parts.append(latex_table(heads, rows, caption(made, sample), f"tab:accuracy-{number + 1}"))
        gaps = list(_difference_rows(made, sample))
        if gaps:
            rows = [[escaped(name), *(_latex_difference(*found) for found in texts)] for name, texts in gaps]
            heads = [f"minus {made.reference}", *(made.columns[c].title for c in sample.columns)]
            parts.append(latex_table(heads, rows, difference_caption(made, sample), f"tab:difference-{number + 1}"))
    parts += [f"% {note}" for note in remarks(made)]
    return "\n".join(parts) + "\n"


def table_csv(made: Comparison) -> str:
    """One line for each cell, with everything that its figures depend on."""
    text = io.StringIO()
    lines = [_line(made, r, c) for r, c in sorted(made.cells)]
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: " ".join(map(str, v)) if isinstance(v, list) else v for key, v in line.items()})
    return text.getvalue()


def table_json(made: Comparison) -> str:
    """The same lines as JSON, with the figures of each seed, what was refused, the notes and the captions."""
    lines = []
    for r, c in sorted(made.cells):
        figures = [{"run": str(f.run), "seed": f.seed, "correct": f.correct} for f in made.cells[r, c].figures]
        lines.append({**_line(made, r, c), "figures": figures})
    whole = {
        "cells": lines,
        "captions": [caption(made, sample) for sample in made.samples],
        "refused": list(made.refused),
        "notes": list(made.notes),
        "settings": made.settings,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False)


FORMATS = {"markdown": markdown, "latex": latex, "csv": table_csv, "json": table_json}
"""How a comparison can be written down."""
ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
"""Which of them a file's name asks for."""


def format_of(path: Path) -> str | None:
    """The format that a file's name asks for."""
    return ENDINGS.get(path.suffix.lower())


def remarks(made: Comparison) -> list[str]:
    """What stands under the tables: where settings differ beside the method, notes, and what was left out."""
    differ = []
    for key, values in made.settings.items():
        names: dict[str, list[str]] = {}
        for name, value in values.items():
            names.setdefault(value, []).append(name)
        differ.append(f"{key}: " + "; ".join(f"{value} ({' and '.join(who)})" for value, who in names.items()))
    rows_differ = ["rows differ in " + each for each in differ]
    return [*rows_differ, *made.notes, *(f"left out: {each}" for each in made.refused)]


# pieces -----------------------------------------------------------------------------------------------------------
def _line(made: Comparison, r: int, c: int) -> dict[str, Any]:
    row, column, cell, gap = made.rows[r], made.columns[c], made.cells[r, c], made.differences.get((r, c))
    return {
        "row": row.name,
        "method": row.configuration.method,
        "network": row.configuration.network,
        "which": row.which,
        "seeds": list(cell.seeds),
        "attack": column.attack,
        "label": column.label,
        "norm": column.norm,
        "eps": column.eps,
        "split": column.split,
        "n": column.n,
        "images": column.images,
        "data": column.data,
        "attack_seeds": list(column.seeds),
        "batch_sizes": list(column.batch_sizes),
        "mean": cell.mean,
        "deviation": cell.deviation,
        "low": cell.interval[0],
        "high": cell.interval[1],
        "interval_over": "images" if cell.deviation is None else "seeds",
        "best": cell.best,
        "suspicious": list(cell.suspicious),
        "reference": made.reference if gap else None,
        "difference": gap.mean if gap else None,
        "difference_over_images": gap.over_images if gap else None,
        "difference_over_seeds": gap.over_seeds if gap else None,
    }


def _draw(column: Column) -> str:
    """What the random starts of an attack depend on."""
    sizes, seeds = ("/".join(map(str, each)) for each in (column.batch_sizes, column.seeds))
    return f"batches of {sizes} from attack seed {seeds}"


def _attack(column: Column, with_budget: bool, with_draw: bool) -> str:
    budget = f" at {column.budget}" if with_budget else ""
    return column.label + budget + (f", {_draw(column)}" if with_draw else "")


def _seeds(made: Comparison, sample: Sample, r: int) -> str:
    """How many seeds stand behind a row's figures, e.g. "3" or "2 to 3"."""
    counts = sorted({len(made.cells[r, c].seeds) for c in sample.columns if (r, c) in made.cells})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _difference_rows(made: Comparison, sample: Sample) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    for r in made.rows_of(sample):
        if any((r, c) in made.differences for c in sample.columns):
            found = [made.differences.get((r, c)) for c in sample.columns]
            yield made.rows[r].name, [difference_text(gap) if gap else ("", "", "") for gap in found]


def _apart(text: str) -> str:
    """As papers set it, with a space behind the sign."""
    return text.replace("±", "± ")


def _latex_difference(mean: str, *halves: str) -> str:
    # Between dollars a hyphen is a minus.
    return " ".join(filter(None, (f"${mean}$" if mean else "", *(escaped(_apart(half)) for half in halves))))


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    mean, spread = cell_text(cell)
    mean = f"**{mean}**" if cell.best else mean
    spread = _apart(spread) if cell.deviation is not None else f"({spread})"
    return f"{mean} {spread}{MARK if cell.suspicious else ''}"


def _latex_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    mean, spread = cell_text(cell)
    mean = rf"\textbf{{{mean}}}" if cell.best else mean
    spread = escaped(_apart(spread)) if cell.deviation is not None else f"({spread.replace('-', '--')})"
    return f"{mean} {spread}{escaped(MARK) if cell.suspicious else ''}"
