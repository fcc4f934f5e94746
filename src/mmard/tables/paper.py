"""A comparison written down: Markdown and LaTeX for a page or a paper, CSV and JSON for further work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmard.attacks import WORST
from mmard.tables import table
from mmard.tables.comparison import Accuracy, Comparison
from mmard.tables.figures import ACCURACY, BALANCED, WORST_CLASS, Column, Sample
from mmard.tables.statistics import Difference, mean_interval
from mmard.tables.table import MARK, Entry, Table, off_by


def spread(one: Accuracy) -> str:
    """What a figure may be off by: the deviation over seeds, or of a single seed the interval over images, in percent.

    >>> spread(Accuracy(0.4225, 0.0253, (0.2, 0.65), ())), spread(Accuracy(0.5, None, (0.4, 0.6), ()))
    ('±2.5', '40.0-60.0')
    """
    low, high = one.interval
    return f"{100 * low:.1f}-{100 * high:.1f}" if one.deviation is None else off_by(one.deviation)


def halves(gap: Difference) -> str:
    """Half of the intervals of a difference in points, over images and over seeds, as far as they are known.

    >>> halves(Difference(0.034, 0.023, None, True, (1, 1)))
    '±2.3'
    """
    return " ".join(filter(None, map(off_by, (gap.over_images, gap.over_seeds))))


def caption(made: Comparison, sample: Sample) -> str:
    """What a table must say to be read alone: images, budget, attacks, seeds, weights, and what is in bold."""
    columns = [made.columns[c] for c in sample.columns]
    cells = [(r, cell) for (r, c), cell in made.cells.items() if c in sample.columns]
    budgets = list(dict.fromkeys(column.budget for column in columns if column.budget))
    at = f" at {budgets[0]}" if len(budgets) == 1 else ""
    attacked = [column for column in columns if column.attack != "clean" and column.measure == ACCURACY]
    draws = list(dict.fromkeys(_draw(column) for column in attacked))
    text = [f"Accuracy in %{at}, {sample.images} (split {sample.split}, n = {sample.n:,}, data {sample.data[:8]})."]
    attacks = [_attack(column, not at, len(draws) > 1) for column in attacked if not column.attack.startswith(WORST)]
    if attacked:
        alike = f", each in {draws[0]}" if len(draws) == 1 else ""
        text.append(f"Attacks: {'; '.join(attacks) or 'as in the heads'}{alike}.")
    measures = {column.measure for column in columns}
    text += ["Balanced: mean over classes."] if BALANCED in measures else []
    text += ["Worst class: that of the lowest accuracy, of each seed its own."] if WORST_CLASS in measures else []
    several = made.most_seeds(sample) > 1
    if several:
        counts = {len(cell.seeds) for _, cell in cells}
        every = made.seeds(sample)
        over = f"over {len(every)} seeds of training ({', '.join(map(str, every))})"
        over = over if counts == {len(every)} else "over seeds of training, as many as the table says"
        text.append(f"Mean ± standard deviation {over}.")
    if any(cell.deviation is None for _, cell in cells):
        text.append(f"{'Of a single seed' if several else 'One seed of training'}: 95 % interval over images.")
    which = dict.fromkeys(made.rows[r].which for r, _ in cells)
    says = {"best": "best: chosen on validation images", "last": "last: end of training"}
    checkpoints = [says[each] for each in which if each in says]
    text += [f"Weights: {'; '.join(checkpoints)}."] if checkpoints else []
    if any(cell.best for _, cell in cells):
        text.append(
            "Bold: better than every other row of the same network by more than the paired 95 % interval over images"
            " and seeds together."
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


def seeds(made: Comparison, sample: Sample, r: int) -> str:
    """How many seeds stand behind a row's figures, e.g. "3" or "2 to 3"."""
    counts = sorted({len(made.cells[r, c].seeds) for c in sample.columns if (r, c) in made.cells})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


COLUMNS = {
    "seeds": seeds,
}
"""What a table says of a row beside its figures: head -> (comparison, sample, index of the row) -> text."""


def table_of(made: Comparison, sample: Sample, number: int = 1, *, with_differences: bool = False) -> Table:
    """The table of one sample.

    Args:
        number: of its label.
        with_differences: those from the reference as second lines.
    """
    rows: list[list[str | Entry]] = []
    for r in made.rows_of(sample):
        entries = [_entry(made.cells.get((r, c))) for c in sample.columns]
        if with_differences:
            gaps = [made.differences.get((r, c)) for c in sample.columns]
            entries = [
                e if gap is None else replace(e, below=_gap(gap).plain) for e, gap in zip(entries, gaps, strict=True)
            ]
        rows.append([made.rows[r].name, *(column(made, sample, r) for column in COLUMNS.values()), *entries])
    heads = ["", *COLUMNS, *(made.columns[c].title for c in sample.columns)]
    return Table(heads, rows, caption(made, sample), label=f"accuracy-{number}")


def difference_table(made: Comparison, sample: Sample, number: int = 1) -> Table | None:
    """The differences from the reference; None where there are none."""
    rows: list[list[str | Entry]] = [
        [made.rows[r].name, *(_gap(made.differences.get((r, c))) for c in sample.columns)]
        for r in made.rows_of(sample)
        if any((r, c) in made.differences for c in sample.columns)
    ]
    heads = [f"minus {made.reference}", *(made.columns[c].title for c in sample.columns)]
    return Table(heads, rows, difference_caption(made, sample), label=f"difference-{number}") if rows else None


def tables_of(made: Comparison) -> list[Table]:
    """For each sample its table, and that of the differences."""
    found = [
        each(made, sample, number) for number, sample in enumerate(made.samples, start=1)
        for each in (table_of, difference_table)
    ]  # fmt: skip
    return [table for table in found if table is not None]


def markdown(made: Comparison) -> str:
    """A table for each sample, with its caption, its differences if there are any, and the notes."""
    return table.markdown(tables_of(made), notes=remarks(made))


def latex(made: Comparison) -> str:
    """The same as tables of LaTeX, which need the package booktabs and nothing else; notes as comments."""
    return table.latex(tables_of(made), notes=remarks(made))


def table_csv(made: Comparison) -> str:
    """One line for each cell, with everything that its figures depend on."""
    return Table.of_records([_line(made, r, c) for r, c in sorted(made.cells)]).csv()


def table_json(made: Comparison) -> str:
    """The same lines as JSON, with the figures of each seed, what was refused, the notes and the captions."""
    lines = []
    for r, c in sorted(made.cells):
        figures = [{"run": str(f.run), "seed": f.seed, "correct": f.correct} for f in made.cells[r, c].figures]
        if made.columns[c].measure != ACCURACY:
            figures = [{"run": str(f.run), "seed": f.seed, "share": f.accuracy} for f in made.cells[r, c].figures]
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


def _line(made: Comparison, r: int, c: int) -> dict[str, Any]:
    row, column, cell, gap = made.rows[r], made.columns[c], made.cells[r, c], made.differences.get((r, c))
    several = any(each.measure != ACCURACY for each in made.columns)
    return {
        "row": row.name,
        "method": row.configuration.method,
        "network": row.configuration.network,
        "which": row.which,
        "seeds": list(cell.seeds),
        "attack": column.attack,
        **({"measure": column.measure} if several else {}),
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
        "interval_over": "images" if mean_interval([each.accuracy for each in cell.figures]) is None else "seeds",
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


def _entry(one: Accuracy | None) -> Entry:
    if one is None:
        return Entry()
    return Entry(f"{100 * one.mean:.1f}", one.mean, spread(one), strong=one.best, marks=one.suspicious)


def _gap(gap: Difference | None) -> Entry:
    return Entry() if gap is None else Entry(f"{100 * gap.mean:+.1f}", gap.mean, halves(gap))
