"""How near the attacked images lie to the boundaries of the teacher and of the student."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mmard.report.histogram import histogram
from mmard.report.pieces import Folded, Gallery, Heading, Note, Picture, Section, Table
from mmard.report.rows import Dot, dot_rows
from mmard.report.sections.missing import missing
from mmard.report.sections.protocols import TRAINING, Chosen, named
from mmard.report.subject import Record, Shown, Subject
from mmard.report.words import number, of_255, percent, protocol

LEAD = (
    "The margin here is log p(y) minus the largest other log-probability, in nats: below zero a network is wrong."
    " Robust information of the teacher lies near its boundary; examples for which its margin stays large teach little."
)

LONGEST_TABLE = 8
"""Rows that are shown unasked."""


def section(about: Subject) -> Section:
    """Histograms of margins of both networks, and distances to both boundaries."""
    students = [run for run in about.runs if "teacher" in run.config]
    chosen = Chosen(about, "boundary")
    having = chosen.having()
    if not students and not having:
        return Section("boundary", "Nearness to the boundary", "", [Note("No run here has a teacher to compare with.")])
    pieces: list[object] = []
    others: list[Picture] = []
    for place, rows in enumerate(chosen.by_protocol()):
        training = rows[0][1]["attack"] == TRAINING
        pieces.append(Heading(_heading(rows[0][1])))
        if len(rows) > 1:
            pieces.append(Gallery(_overview(about, rows, place)))
        shown: list[Picture] = []
        seen: set[int] = set()
        for run, record in rows:
            (others if run.group in seen else shown).extend(_histograms(about, run, record, place))
            seen.add(run.group)
        gallery = Gallery(shown, pairs=True)
        pieces.append(Folded("Histograms", [gallery]) if place and len(rows) > 1 else gallery)
        told = dict.fromkeys(str(record["label"]) for _, record in rows) if training else {}
        attack = f" Attacks: {'; '.join(told)}." if told else ""
        pieces.append(Note(f"{protocol(rows[0][1])}.{attack}" if not training else f"{_images(rows[0][1])}.{attack}"))
    if others:
        pieces.append(Folded("The other seeds", [Gallery(others, pairs=True)]))
    if having:
        table = _figures(chosen)
        long = len(table.rows) > LONGEST_TABLE
        pieces.append(Folded("Means and distances of every run", [table]) if long else table)
    pieces += missing(about, [r for r in students if r not in having], "Nearness to the boundary", "boundary")
    return Section("boundary", "Nearness to the boundary", LEAD if having else "", pieces)


def _heading(record: Record) -> str:
    images = {"test": "Test images", "val": "Validation images", "train": "Training images"}[record["split"]]
    return f"{images}, under the attack that trained" if record["attack"] == TRAINING else f"{images}, attacked"


def _images(record: Record) -> str:
    """How a finding under the training's own attack was made."""
    images = str(record["images"])
    return f"{images[:1].upper()}{images[1:]}; {record['which']} weights, attack seed {record['seed']}"


def _overview(about: Subject, found: Sequence[tuple[Shown, Record]], place: int) -> list[Picture]:
    """Margins and distances of all runs of one protocol, clean and attacked."""
    grey = of_255([record.get("eps") or 0.0 for _, record in found])
    unit, by = ("1/255", 255.0) if grey else ("input units", 1.0)
    wanted: list[tuple[str, str, str, float]] = [
        ("teacher", "mean_margin", "margin, nats", 1.0),
        ("teacher", "distance_first_order", f"first-order distance, {unit}", by),
        ("student", "mean_margin", "margin, nats", 1.0),
    ]
    made = []
    groups = [group for group in about.groups if any(run.group == group.index for run, _ in found)]
    for whose, key, what, scale in wanted:
        dots, lines = [], []
        for row, group in enumerate(groups):
            own = [(run, record) for run, record in found if run.group == group.index]
            for k, (run, record) in enumerate(own):
                before, after = (float(record[state][whose][key]) * scale for state in ("clean", "attacked"))
                shift = (k - (len(own) - 1) / 2) * min(0.22, 0.6 / len(own))
                dots.append(Dot(row, before, before, after, group.index, hollow=True, shift=shift))
                dots.append(Dot(row, after, None, None, group.index, shift=shift))
                lines.append((run.name, number(before), number(after)))
        title = f"{'Teacher' if whose == 'teacher' else 'Student'}: {what.split(',')[0]}"
        slug = f"near-{place}-{whose}-{key.replace('_', '-')}"
        alt = f"{title}, clean and attacked: " + "; ".join(f"{n} {a} to {b}" for n, a, b in lines) + "."
        svg = dot_rows(slug, alt, [g.short for g in groups], dots, x=what, fractions=False, zero=key == "mean_margin")
        table = Table(("run", f"clean ({what.split(', ')[-1]})", "attacked"), lines)
        made.append(Picture(slug, title, svg, "Hollow: clean; filled: attacked.", table))
    return made


def _histograms(about: Subject, run: Shown, found: Record, place: int) -> list[Picture]:
    held: Record = found["histograms"]
    made = []
    limits = _busy(held)
    name = "" if about.single else f": {about.groups[run.group].short}"
    seed = f", seed {run.seed}" if len(about.groups[run.group].runs) > 1 else ""
    for whose in ("teacher", "student"):
        slug, title = f"boundary-{place}-{whose}-{run.group}-{run.seed}", f"Margin of the {whose}{name}{seed}"
        clean, attacked = (found[state][whose] for state in ("clean", "attacked"))
        alt = (
            f"{title}, histogram: mean {number(clean['mean_margin'])} nats without attack, "
            f"{number(attacked['mean_margin'])} under it; wrong on {percent(attacked['wrong'])} % of attacked images."
        )
        svg = histogram(
            slug, alt, held["edges"], held[f"{whose}_attacked"], held[f"{whose}_clean"], index=run.group,
            x="margin, nats", y="images", split=(0.0, "wrong", "right"), limits=limits,
        )  # fmt: skip
        pairs = zip(held["edges"], held["edges"][1:], held[f"{whose}_clean"], held[f"{whose}_attacked"], strict=False)
        rows = [(f"{number(a)} to {number(b)}", str(c), str(d)) for a, b, c, d in pairs if c or d]
        note = f"Teacher: {found['teacher']}." if whose == "teacher" else ""
        made.append(Picture(slug, title, svg, note, Table(("from, to", "clean", "attacked"), rows)))
    return made


def _busy(held: Record) -> tuple[float, float]:
    """The bins that some network uses, and zero."""
    keys = [key for key in held if key != "edges"]
    used = [i for i in range(len(held["edges"]) - 1) if any(held[key][i] for key in keys)]
    if not used:
        return float(held["edges"][0]), float(held["edges"][-1])
    low, high = float(held["edges"][used[0]]), float(held["edges"][used[-1] + 1])
    return min(low, -0.02 * (high - low)), max(high, 0.02 * (high - low))


def _figures(chosen: Chosen) -> Table:
    """Rows for each run, protocol, state and network."""
    found = [(run, record) for run in chosen.having() for record in chosen.all(run)]
    name = named([record for _, record in found])
    rows = []
    for run, record in found:
        for state, whose in itertools.product(("clean", "attacked"), ("teacher", "student")):
            one: dict[str, Any] = record[state][whose]
            least = one.get("distance_minimal")
            minimal = "\N{EN DASH}" if least is None else f"{number(least)} ({one['n_minimal']})"
            rows.append(
                (run.name, name(record), f"{whose}, {state}", number(one["mean_margin"]), percent(one["wrong"]),
                 number(one["entropy"]), number(one["distance_first_order"]), minimal)
            )  # fmt: skip
    head = ("run", "attack", "network, images", "margin (nats)", "wrong %", "entropy (nats)", "first-order distance",
            "minimal distance (images)")  # fmt: skip
    return Table(head, rows, "Means over images; distances in input units", 3)
