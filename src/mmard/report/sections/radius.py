"""Accuracy against the radius of the ball and against the steps of the attack."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mmard.evaluation.score import wilson
from mmard.report.lines import Line, line_plot
from mmard.report.pieces import Gallery, Picture, Section, Table
from mmard.report.sections.missing import missing
from mmard.report.subject import Record, Subject
from mmard.report.words import budget, of_255, percent, setting

LEAD = (
    "Accuracy must fall as the radius grows, to about nothing where the ball holds any image, and must settle as steps"
    " are added. A curve that does not is a sign of gradients that mislead."
)
FAR = 2.5
"""A last radius so many times the one before it is told beside the plot, which it would flatten."""

Key = tuple[str, ...]


def section(about: Subject) -> Section:
    """Curves over eps and over steps, a plot for each protocol."""
    pictures = [p for over in ("eps", "steps") for p in _pictures(about, over)]
    pieces: list[object] = [Gallery(pictures)] if pictures else []
    pieces += [
        piece
        for over, what in (("eps", "Accuracy against the radius"), ("steps", "Accuracy against steps of the attack"))
        for piece in missing(about, [run for run in about.runs if not run.found("curve", over=over)], what, over)
    ]
    return Section("radius", "Radius and steps", LEAD if pictures else "", pieces)


def _pictures(about: Subject, over: str) -> list[Picture]:
    protocols: dict[Key, dict[int, list[tuple[str, Record]]]] = {}
    for run in about.runs:
        for found in run.found("curve", over=over):
            keys = ("label", "norm", "which", "split", "n", "data", *(("eps",) if over == "steps" else ()))
            key = tuple(str(found.get(k)) for k in keys)
            protocols.setdefault(key, {}).setdefault(run.group, []).append((run.name, found))
    return [_picture(about, over, own, f"{over}-{i}") for i, own in enumerate(protocols.values())]


def _picture(about: Subject, over: str, own: dict[int, list[tuple[str, Record]]], slug: str) -> Picture:
    first = next(iter(own.values()))[0][1]
    eps = [p["value"] for rows in own.values() for _, record in rows for p in record["points"]] if over == "eps" else []
    shown = _near(sorted(set(eps)))
    grey = over == "eps" and of_255(shown)
    by = 1 / 255 if grey else 1.0
    lines: list[Line] = []
    for index, rows in own.items():
        lines += _lines(index, about.groups[index].short, [record for _, record in rows], set(shown), by)
    if about.single:
        lines = [Line(**{**vars(line), "label": ""}) for line in lines]
    trained = {run.config.get("eps") for run in about.runs} if over == "eps" else set()
    mark = trained.pop() if len(trained) == 1 else None
    x = f"radius, {first['norm']}" + (" in 1/255" if grey else "") if over == "eps" else "steps"
    title = "Accuracy against the radius" if over == "eps" else "Accuracy against steps"
    svg = line_plot(
        slug, _alt(about, own, title, over), lines, x=x, y="accuracy, %", fractions=True,
        upright=mark / by if mark is not None else None, x_log=over == "steps",
    )  # fmt: skip
    at = f" at {budget(first)}" if over == "steps" else ""
    note = f"{first['label']}{at}; {first['n']:,} images, {first['which']} weights. {_band(own)}"
    note += " Dotted: the radius trained for." if mark is not None else ""
    far = sorted({value for value in eps if value not in shown})
    for value in far:
        there = [
            p["correct"] / p["n"]
            for rows in own.values() for _, record in rows for p in record["points"] if p["value"] == value
        ]  # fmt: skip
        low, high = percent(min(there)), percent(max(there))
        note += f" At radius {setting('eps', value)}, beyond the plot: {low if low == high else f'{low} to {high}'} %."
    return Picture(slug, title, svg, note, _table(own, over))


def _near(values: Sequence[float]) -> list[float]:
    kept = list(values)
    while len(kept) > 2 and kept[-1] > FAR * kept[-2]:
        kept.pop()
    return kept


def _band(own: dict[int, list[tuple[str, Record]]]) -> str:
    sizes = [len(rows) for rows in own.values()]
    if max(sizes) == 1:
        return "Band: 95 % interval over images."
    alone = " (of one seed: 95 % interval over images)" if min(sizes) == 1 else ""
    return f"Line: mean over seeds; band: smallest to largest{alone}."


def _lines(index: int, name: str, records: Sequence[Record], shown: set[float], by: float) -> list[Line]:
    curves = [
        {p["value"]: (int(p["correct"]), int(p["n"])) for p in r["points"] if not shown or p["value"] in shown}
        for r in records
    ]
    xs = [x for x in curves[0] if all(x in curve for curve in curves)]
    shares = [[curve[x][0] / curve[x][1] for curve in curves] for x in xs]
    if len(curves) == 1:
        bounds = [wilson(*curves[0][x]) for x in xs]
    else:
        bounds = [(min(s), max(s)) for s in shares]
    low, high = [b[0] for b in bounds], [b[1] for b in bounds]
    return [Line([x / by for x in xs], [statistics.fmean(s) for s in shares], index, name, low, high, marks=True)]


def _alt(about: Subject, own: dict[int, list[tuple[str, Record]]], title: str, over: str) -> str:
    told = []
    for index, rows in own.items():
        points = rows[0][1]["points"]
        ends = " to ".join(
            f"{percent(p['correct'] / p['n'])} % at {setting('eps', p['value']) if over == 'eps' else p['value']}"
            for p in (points[0], points[-1])
        )
        told.append(f"{about.groups[index].short}: {ends}")
    return f"{title}. {'; '.join(told)}."


def _table(own: dict[int, list[tuple[str, Record]]], over: str) -> Table:
    rows = []
    for runs in own.values():
        for name, record in runs:
            for p in record["points"]:
                low, high = wilson(p["correct"], p["n"])
                at = setting("eps", float(p["value"])) if over == "eps" else f"{p['value']:g}"
                rows.append(
                    (name, at, percent(p["correct"] / p["n"]), f"{percent(low)} to {percent(high)}", f"{p['n']:,}")
                )
    return Table(("run", "radius" if over == "eps" else "steps", "accuracy %", "95 % interval", "images"), rows)
