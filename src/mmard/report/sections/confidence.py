"""Margins, confidence and calibration, without attack and under it."""

from __future__ import annotations

from collections.abc import Sequence

from mmard.evaluation.score import wilson
from mmard.report.histogram import histogram
from mmard.report.pieces import Folded, Gallery, Picture, Section, Table
from mmard.report.reliability import Bin, reliability
from mmard.report.sections.missing import missing
from mmard.report.sections.protocols import Chosen, named
from mmard.report.subject import Record, Shown, Subject
from mmard.report.words import number, percent, protocol

LEAD = (
    "The margin is the probability of the true class minus the largest other: right of zero an image is classified"
    " rightly. A network is calibrated where it is right as often as it is sure."
)

LONGEST_TABLE = 16
"""Rows that are shown unasked."""
HISTOGRAMS = (("", "Margin", "margin"), ("confidence_", "Confidence", "probability of the predicted class"))
"""What their keys in a record begin with, their title, and their axis."""


def section(about: Subject) -> Section:
    """Histograms of margin and confidence, reliability, and the numbers behind them."""
    chosen = Chosen(about, "margins", "calibration")
    first: list[Picture] = []
    seeds: list[Picture] = []
    attacks: list[Picture] = []
    for group in about.groups:
        own = [run for run in group.runs if chosen.all(run, "margins") or chosen.all(run, "calibration")]
        for k, run in enumerate(own):
            for place, found in enumerate(chosen.all(run, "margins")[: 1 if k else None]):
                (attacks if place else seeds if k else first).extend(_margins(about, run, found, chosen, place))
            for place, found in enumerate(chosen.all(run, "calibration")[: 1 if k else None]):
                picture = _calibration(about, run, found, chosen, place)
                (attacks if place else seeds if k else first).append(picture)
    pieces: list[object] = [Gallery(first), *chosen.below("Attacked")] if first else []
    if seeds:
        pieces.append(Folded("The other seeds", [Gallery(seeds)]))
    if attacks:
        pieces.append(Folded("Other attacks", [Gallery(attacks)]))
    margin, calibrated = chosen.having("margins"), chosen.having("calibration")
    if calibrated:
        table = _errors(chosen)
        pieces.append(table if len(table.rows) <= LONGEST_TABLE else Folded("Errors of calibration", [table]))
    pieces += missing(about, [r for r in about.runs if r not in margin], "Margins and confidence", "margins")
    pieces += missing(about, [r for r in about.runs if r not in calibrated], "Calibration", "calibration")
    return Section("confidence", "Confidence", LEAD if first else "", pieces)


def _title(about: Subject, run: Shown, what: str) -> str:
    group = about.groups[run.group]
    if about.single:
        return what
    seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
    return f"{what}: {group.short}{seed}"


def _margins(about: Subject, run: Shown, found: Record, chosen: Chosen, place: int) -> list[Picture]:
    made = []
    for key, what, x in HISTOGRAMS:
        edges, clean, attacked = (found[f"{key}{part}"] for part in ("edges", "clean", "attacked"))
        slug, title = f"{what.lower()}-{run.group}-{run.seed}-{place}", _title(about, run, what)
        alt = f"{title}, histogram of {found['n']:,} images: {_said(key, edges, clean, attacked)}."
        split = None if key else (0.0, "wrong", "right")
        svg = histogram(slug, alt, edges, attacked, clean, index=run.group, x=x, y="images", split=split)
        note = f"{protocol(found)}." if place else chosen.beside(found)
        made.append(Picture(slug, title, svg, note, _bins(edges, clean, attacked)))
    return made


def _said(key: str, edges: Sequence[float], clean: Sequence[int], attacked: Sequence[int]) -> str:
    if key:
        tops = [edges[max(range(len(c)), key=lambda i, c=c: c[i])] for c in (clean, attacked)]  # type: ignore[misc]
        return f"commonest near {number(tops[0])} without attack and near {number(tops[1])} under it"
    shares = [sum(n for e, n in zip(edges, c, strict=False) if e >= 0) / max(sum(c), 1) for c in (clean, attacked)]
    return f"{percent(shares[0])} % right of zero without attack, {percent(shares[1])} % under it"


def _bins(edges: Sequence[float], clean: Sequence[int], attacked: Sequence[int]) -> Table:
    rows = [
        (f"{number(round(a, 6))} to {number(round(b, 6))}", str(c), str(d))
        for a, b, c, d in zip(edges, edges[1:], clean, attacked, strict=False)
        if c or d
    ]
    return Table(("from, to", "clean", "attacked"), rows)


def _calibration(about: Subject, run: Shown, found: Record, chosen: Chosen, place: int) -> Picture:
    slug, title = f"calibration-{run.group}-{run.seed}-{place}", _title(about, run, "Calibration")
    alt = (
        f"{title}: accuracy against confidence. Expected calibration error {percent(found['ece_clean'])} % without "
        f"attack and {percent(found['ece_attacked'])} % under it."
    )
    svg = reliability(slug, alt, _points(found["clean"]), _points(found["attacked"]), index=run.group)
    rows = [
        (f"{number(b['lower'])} to {number(b['upper'])}", state, str(b["n"]), percent(b["confidence"]),
         percent(b["accuracy"]))
        for state in ("clean", "attacked") for b in found[state] if b["n"]
    ]  # fmt: skip
    table = Table(("confidence", "images are", "images", "mean confidence %", "accuracy %"), rows, numbers=2)
    note = "Below the diagonal: surer than right. Line: 95 % interval; bins of fewer than 5 images are left out. "
    return Picture(slug, title, svg, note + (f"{protocol(found)}." if place else chosen.beside(found)), table)


def _points(bins: Sequence[Record]) -> list[Bin]:
    made = []
    for each in bins:
        if each["n"] >= 5:
            low, high = wilson(round(each["accuracy"] * each["n"]), each["n"])
            made.append(Bin(each["confidence"], each["accuracy"], low, high))
    return made


def _errors(chosen: Chosen) -> Table:
    """A row for each run and attack."""
    found = [(run, record) for run in chosen.having("calibration") for record in chosen.all(run, "calibration")]
    name = named([record for _, record in found])
    rows = [
        (run.name, name(record), percent(record["ece_clean"]), percent(record["ece_attacked"]),
         number(float(record["nll_clean"])), number(float(record["nll_attacked"])))
        for run, record in found
    ]  # fmt: skip
    head = ("run", "attack", "ECE, clean %", "ECE, attacked %", "NLL, clean (nats)", "NLL, attacked (nats)")
    return Table(head, rows, "Expected calibration error and negative log-likelihood", 2)
