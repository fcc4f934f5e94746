"""Accuracy by class, the worst class, and what is taken for what under attack."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from mmard.evaluation.score import wilson
from mmard.report.pieces import Folded, Gallery, Heat, Heats, Note, Picture, Section, Table
from mmard.report.rows import Bar, bar_rows
from mmard.report.sections.missing import missing
from mmard.report.sections.protocols import Chosen, named
from mmard.report.subject import Group, Record, Shown, Subject
from mmard.report.words import percent, protocol

MOST_BARS = 20
"""Classes that a plot shows; of more, half of these at either end."""
MOST_CELLS = 20
"""Classes of a confusion that is shown whole; of more, the commonest confusions are listed."""
LONGEST_TABLE = 16
"""Rows that are shown unasked."""

LEAD = "A mean over classes hides the one that an attacker would choose."


def section(about: Subject) -> Section:
    """Bars for each group, the worst class of each run under each attack, and the confusions."""
    chosen = Chosen(about, "classes")
    having = chosen.having()
    pieces: list[object] = []
    if having:
        order = _order(chosen.all(having[0])[0])
        groups = [group for group in about.groups if any(run in having for run in group.runs)]
        pieces.append(Gallery([_bars(about, group, order, chosen) for group in groups]))
        pieces += chosen.below("By class")
        worst = _worst(chosen)
        pieces.append(worst if len(worst.rows) <= LONGEST_TABLE else Folded("The worst class of each run", [worst]))
        pieces += _confusions(about)
    pieces += missing(about, [run for run in about.runs if run not in having], "Accuracy by class", "classes")
    return Section("classes", "Classes", LEAD if having else "", pieces)


def _order(found: Record) -> list[str]:
    """Names of the classes, the least robust first, by the first run that has them."""
    shares = {
        name: a / n if n else 0.0
        for name, a, n in zip(found["classes"], found["attacked"], found["count"], strict=True)
    }
    names = sorted(shares, key=lambda name: shares[name])
    if len(names) > MOST_BARS:
        half = MOST_BARS // 2
        names = [*names[:half], *names[-half:]]
    return names


def _bars(about: Subject, group: Group, order: Sequence[str], chosen: Chosen) -> Picture:
    records = [record for run in group.runs if (record := chosen.of(run)) is not None]
    first = records[0]
    records = [record for record in records if chosen.beside(record) == chosen.beside(first)]
    several = len(records) > 1
    bars = []
    rows = []
    for name in [n for n in order if n in first["classes"]]:
        i = first["classes"].index(name)
        alike = [r for r in records if r["classes"] == first["classes"] and r["count"][i]]
        if not alike:
            continue
        clean = [r["clean"][i] / r["count"][i] for r in alike]
        attacked = [r["attacked"][i] / r["count"][i] for r in alike]
        low, high = wilson(first["attacked"][i], first["count"][i])
        bar = Bar(name, statistics.fmean(clean), statistics.fmean(attacked))
        bars.append(replace(bar, seeds=tuple(attacked)) if several else replace(bar, low=low, high=high))
        spread = ", ".join(map(percent, attacked)) if several else f"{percent(low)} to {percent(high)}"
        rows.append((name, percent(bars[-1].outer), percent(bars[-1].inner), spread, str(first["count"][i])))
    title = "By class" if about.single else group.short
    worst = min(bars, key=lambda bar: bar.inner)
    alt = (
        f"Accuracy by class, {len(bars)} classes; least robust: {worst.name}, {percent(worst.outer)} % clean and"
        f" {percent(worst.inner)} % attacked."
    )
    some = "" if len(bars) == len(first["classes"]) else f"{len(bars)} of {len(first['classes'])} classes, both ends. "
    lines = "dots: seeds. " if several else "line: 95 % interval. "
    note = f"{some}Pale: clean; full: attacked; {lines}{chosen.beside(first)}"
    head = ("class", "clean %", "attacked %", "attacked, each seed %" if several else "95 % interval", "images")
    slug = f"classes-{group.index}"
    svg = bar_rows(slug, alt, bars, index=group.index, x="accuracy, %")
    return Picture(slug, title, svg, note, Table(head, rows))


def _worst(chosen: Chosen) -> Table:
    """A row for each run and attack."""
    found = [(run, record) for run in chosen.having() for record in chosen.all(run)]
    name = named([record for _, record in found])
    rows = []
    for run, record in found:
        counted = [i for i, n in enumerate(record["count"]) if n]
        cells: list[str] = []
        for key in ("clean", "attacked"):
            i = min(counted, key=lambda i, key=key: record[key][i] / record["count"][i])  # type: ignore[misc]
            low, high = wilson(record[key][i], record["count"][i])
            share = percent(record[key][i] / record["count"][i])
            cells.append(f"{share} ({percent(low)} to {percent(high)}), {record['classes'][i]}")
        rows.append((run.name, name(record), *cells))
    head = ("run", "attack", "worst class, clean %", "worst class, attacked %")
    return Table(head, rows, "The worst class, with its 95 % interval", 2)


def _confusions(about: Subject) -> list[object]:
    """What is taken for what: of the first seed of each group under attack, the rest when asked for."""
    chosen = Chosen(about, "classes", usable=lambda record: record.get("confusion_attacked") is not None)
    first: list[Heat] = []
    rest: list[Heat] = []
    pieces: list[object] = []
    for group in about.groups:
        own = [(run, record) for run in group.runs if (record := chosen.of(run)) is not None]
        for k, (run, record) in enumerate(own):
            seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
            whole = "" if about.single else f"{group.short}{seed}, "
            if len(record["classes"]) > MOST_CELLS:
                pieces += [_commonest(run, record, "" if about.single else f": {group.short}")] if k == 0 else []
                continue
            beside = chosen.beside(record)
            (rest if k else first).append(
                _heat(record, "confusion_attacked", f"{whole}under attack" if whole else "Under attack", beside)
            )
            if record.get("confusion_clean") is not None:
                rest.append(_heat(record, "confusion_clean", f"{whole}no attack" if whole else "No attack", beside))
    if first:
        told = "" if chosen.several else f" {protocol(chosen.all(chosen.having()[0])[0])}."
        pieces += [Heats(first), Note(f"Rows: the true class; columns: what it is taken for.{told}")]
    if rest:
        others = ", and under attack of the other seeds" if about.seeds > 1 else ""
        pieces.append(Folded(f"Confusion without attack{others}", [Heats(rest)]))
    return pieces


def _heat(record: Record, key: str, title: str, note: str) -> Heat:
    cells = []
    for i, row in enumerate(record[key]):
        whole = sum(row) or 1
        # The root of the share, so that rare confusions are seen as well.
        cells.append([(str(n) if n else "", (n / whole) ** 0.5, i == j) for j, n in enumerate(row)])
    names = record["classes"]
    return Heat(title, "true class", [short(name) for name in names], names, cells, note)


def short(name: str) -> str:
    """A name for the narrow head of a column.

    >>> short("automobile"), short("7")
    ('auto', '7')
    """
    return name if len(name) <= 4 else name[:4]


def _commonest(run: Shown, record: Record, of: str) -> Table:
    """The commonest confusions where there are too many classes to show all."""
    counts, names = record["confusion_attacked"], record["classes"]
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    rows = [
        (names[i], names[j], str(n), f"{percent(n / sum(counts[i]))}") for n, i, j in sorted(pairs, reverse=True)[:15]
    ]
    title = f"The commonest confusions under attack{of}, {run.name}. {protocol(record)}."
    return Table(("true class", "taken for", "images", "of the class %"), rows, title, 2)
