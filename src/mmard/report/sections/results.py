"""The table over runs, and its figures as dots with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmard.errors import Refused
from mmard.report.columns import Column, Sample
from mmard.report.comparison import Cell, Comparison, comparison
from mmard.report.paper import caption, cell_text
from mmard.report.pieces import Gallery, Mark, Missing, Note, Number, Picture, Results, Section, Table
from mmard.report.rows import Dot, dot_rows
from mmard.report.scatter import Place, trade_off
from mmard.report.subject import Subject
from mmard.report.words import percent, quoted

LEAD = (
    "Accuracy in percent of the images that are classified rightly, without attack and under each attack alone. Robust"
    " accuracy is an upper bound: a stronger attack can only lower it. Figures of different attacks, budgets or images"
    " stand in different columns."
)

MOST_PLOTS = 8


def section(about: Subject) -> Section:
    """The results."""
    unmeasured = [run for run in about.runs if not run.scores]
    pieces: list[object] = []
    try:
        made = comparison([run.run for run in about.runs])
    except Refused:
        made = None
    if made is not None:
        index = {run.run.path: run.group for run in about.runs}
        several = len({row.which for row in made.rows}) > 1
        short = [
            about.groups[index[row.configuration.runs[0]]].short + (f", {row.which}" if several else "")
            for row in made.rows
        ]
        for number, sample in enumerate(made.samples):
            pieces.append(_table(made, sample, index))
            pictures = _pictures(made, sample, index, number, short)
            if pictures:
                pieces.append(Gallery(pictures))
        pieces += [Note(line) for line in (*made.notes, *made.refused)]
    if unmeasured:
        names = "This run" if about.single else ", ".join(run.name for run in unmeasured)
        pieces.append(
            Missing(
                f"{names}: no accuracy on test images",
                [f"mmard evaluate {quoted(run)} --attack pgd-20,cw-30" for run in unmeasured],
            )
        )
    weak = [run for run in about.runs if run.scores and not any(s["attack"] == "aa" for s in run.scores)]
    if weak:
        names = "" if len(weak) == len(about.runs) else f" of {', '.join(run.name for run in weak)}"
        pieces.append(Missing(f"AutoAttack{names}", [f"mmard evaluate {quoted(run)} --attack aa" for run in weak]))
    return Section("results", "Results", LEAD if made is not None else "", pieces)


def _table(made: Comparison, sample: Sample, index: dict[Path, int]) -> Results:
    head = [(made.columns[c].title, made.columns[c].budget) for c in sample.columns]
    rows = []
    for r in made.rows_of(sample):
        row = made.rows[r]
        cells = [_number(made.cells.get((r, c)), made.columns[c].norm is not None) for c in sample.columns]
        doubts = dict.fromkeys(slug for (at, _), cell in made.cells.items() if at == r for slug in cell.suspicious)
        seeds = {len(cell.seeds) for (at, c), cell in made.cells.items() if at == r and c in sample.columns}
        count = max(seeds, default=1)
        runs = f"{count} seed{'s' * (count != 1)}" if made.most_seeds(sample) > 1 else ""
        rows.append((index[row.configuration.runs[0]], row.name, runs, [_mark(slug) for slug in doubts], cells))
    # The mark of the caption is one for paper; here it is red, and beside the number.
    return Results(caption(made, sample).replace("†: suspicion", "Red mark: suspicion"), head, rows)


def _mark(slug: str) -> Mark:
    return Mark(f"check-{slug}", slug.replace("-", " "))


def _number(cell: Cell | None, attacked: bool) -> Number | None:
    if cell is None:
        return None
    value, spread = cell_text(cell)
    marks = [_mark(slug) for slug in cell.suspicious] if attacked else []
    return Number(value, spread, cell.best, marks)


def _pictures(
    made: Comparison, sample: Sample, index: dict[Path, int], number: int, short: Sequence[str]
) -> list[Picture]:
    """A row of dots for every column, and clean against robust accuracy."""
    rows = made.rows_of(sample)
    pictures = []
    clean = next((c for c in sample.columns if made.columns[c].attack == "clean"), None)
    severe = _severest(made, sample)
    if clean is not None and severe is not None and len(rows) > 1:
        pictures.append(_trade_off(made, clean, severe, rows, index, f"trade-{number}", short))
    # The first images have the most figures; of others the pair that decides is enough.
    wanted = [c for c in sample.columns if number == 0 or c in (clean, severe)][:MOST_PLOTS]
    for place, c in enumerate(wanted):
        measured = [r for r in rows if (r, c) in made.cells]
        if len(measured) > 1:
            pictures.append(_dots(made, c, measured, index, f"dots-{number}-{place}", short))
    return pictures


def _severest(made: Comparison, sample: Sample) -> int | None:
    """The column to judge by: AutoAttack, else the worst case, else the attack that left least; that most rows have."""
    robust = [c for c in sample.columns if made.columns[c].norm is not None]

    def rank(c: int) -> tuple[int, int, float]:
        own = [cell.mean for (_, at), cell in made.cells.items() if at == c]
        attack = made.columns[c].attack
        kind = 0 if attack == "aa" else 1 if attack.startswith("worst") else 2
        return (-len(own), kind, min(own))

    return min(robust, key=rank, default=None)


def _under(column: Column) -> str:
    return "no attack" if column.attack == "clean" else f"{column.title} at {column.budget}"


def _trade_off(
    made: Comparison, clean: int, severe: int, rows: list[int], index: dict[Path, int], slug: str,
    short: Sequence[str],
) -> Picture:  # fmt: skip
    places = []
    table = []
    for r in rows:
        if (r, clean) not in made.cells or (r, severe) not in made.cells:
            continue
        x, y = made.cells[r, clean], made.cells[r, severe]
        robust = {f.run: f for f in y.figures}
        pairs = [(f.accuracy, robust[f.run].accuracy) for f in x.figures if f.run in robust]
        places.append(Place(index[made.rows[r].configuration.runs[0]], short[r], (x.mean, y.mean), pairs))
        table.append((made.rows[r].name, percent(x.mean), percent(y.mean)))
    said = _under(made.columns[severe])
    best = max(places, key=lambda place: place.mean[1])
    alt = (
        f"Scatter of clean against robust accuracy, {len(places)} rows. Most robust: {best.name}, "
        f"{percent(best.mean[0])} % clean and {percent(best.mean[1])} % under {said}."
    )
    svg = trade_off(slug, alt, places, x="accuracy without attack, %", y=f"accuracy under {said}, %")
    note = "Right is more accurate, up is more robust."
    note += " Large: mean over seeds; small: each seed." if any(len(place.seeds) > 1 for place in places) else ""
    whole = Table(("run", "clean %", f"{made.columns[severe].title} %"), table)
    return Picture(slug, "Accuracy and robustness together", svg, note, whole, tall=True)


def _dots(
    made: Comparison, c: int, rows: list[int], index: dict[Path, int], slug: str, short: Sequence[str]
) -> Picture:
    column = made.columns[c]
    dots, means, lines = [], [], []
    for at, r in enumerate(rows):
        cell = made.cells[r, c]
        several = len(cell.figures)
        for k, figure in enumerate(cell.figures):
            low, high = figure.record["interval"]
            shift = 0.0 if several == 1 else (k - (several - 1) / 2) * min(0.22, 0.6 / several)
            dots.append(Dot(at, figure.accuracy, low, high, index[made.rows[r].configuration.runs[0]], shift=shift))
            lines.append(
                (
                    made.rows[r].name, str(figure.seed), percent(figure.accuracy),
                    f"{percent(low)} to {percent(high)}", f"{figure.n:,}",
                )
            )  # fmt: skip
        means.append(cell.mean if several > 1 else None)
    names = [short[r] for r in rows]
    texts = [percent(made.cells[r, c].mean) for r in rows]
    alt = f"Dot plot of accuracy under {_under(column)}: " + ", ".join(
        f"{name} {text} %" for name, text in zip(names, texts, strict=True)
    )
    svg = dot_rows(slug, alt, names, dots, x="accuracy, %", means=means, numbers=texts)
    bars = "Bar: mean over seeds; line:" if any(mean is not None for mean in means) else "Line:"
    attack = "" if column.attack == "clean" else f" {column.label[:1].upper()}{column.label[1:]}."
    note = f"{bars} 95 % interval over {column.n:,} images.{attack}"
    table = Table(("run", "seed", "accuracy %", "95 % interval", "images"), lines)
    return Picture(slug, column.title, svg, note, table)
