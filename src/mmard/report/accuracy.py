"""The table over runs, and its figures as dots with their intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmard.errors import Refused
from mmard.evaluation.score import wilson
from mmard.report.blocks import (
    Folded,
    Gallery,
    Heat,
    Heats,
    Mark,
    Missing,
    Note,
    Number,
    Picture,
    Results,
    Section,
    TableBlock,
)
from mmard.report.plots import Bar, Dot, Line, Place, bar_rows, dot_rows, line_plot, trade_off
from mmard.report.subject import (
    Chosen,
    Group,
    Shown,
    Subject,
    budget,
    missing,
    named,
    of_255,
    percent,
    protocol,
    quoted,
    setting,
)
from mmard.tables.comparison import Accuracy, Comparison, comparison
from mmard.tables.figures import ACCURACY, Column, Record, Sample
from mmard.tables.paper import caption, spread

RESULTS_LEAD = (
    "Accuracy in percent of the images that are classified rightly, without attack and under each attack alone. Robust"
    " accuracy is an upper bound: a stronger attack can only lower it. Figures of different attacks, budgets or images"
    " stand in different columns."
)

MOST_PLOTS = 8


def results_section(about: Subject) -> Section:
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
    return Section("results", "Results", RESULTS_LEAD if made is not None else "", pieces)


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


def _number(cell: Accuracy | None, attacked: bool) -> Number | None:
    if cell is None:
        return None
    marks = [_mark(slug) for slug in cell.suspicious] if attacked else []
    return Number(percent(cell.mean), spread(cell), cell.best, marks)


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
    accuracies = [c for c in sample.columns if made.columns[c].measure == ACCURACY]
    wanted = [c for c in accuracies if number == 0 or c in (clean, severe)][:MOST_PLOTS]
    for place, c in enumerate(wanted):
        measured = [r for r in rows if (r, c) in made.cells]
        if len(measured) > 1:
            pictures.append(_dots(made, c, measured, index, f"dots-{number}-{place}", short))
    return pictures


def _severest(made: Comparison, sample: Sample) -> int | None:
    """The column to judge by: AutoAttack, else the worst case, else the attack that left least; that most rows have."""
    robust = [c for c in sample.columns if made.columns[c].norm is not None and made.columns[c].measure == ACCURACY]

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
    whole = TableBlock(("run", "clean %", f"{made.columns[severe].title} %"), table)
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
    table = TableBlock(("run", "seed", "accuracy %", "95 % interval", "images"), lines)
    return Picture(slug, column.title, svg, note, table)


# classes --------------------------------------------------------------------------------------------------------------
# Accuracy by class, the worst class, and what is taken for what under attack.


MOST_BARS = 20
"""Classes that a plot shows; of more, half of these at either end."""
MOST_CELLS = 20
"""Classes of a confusion that is shown whole; of more, the commonest confusions are listed."""
CLASSES_LONGEST_TABLE = 16
"""Rows that are shown unasked."""

CLASSES_LEAD = "A mean over classes hides the one that an attacker would choose."


def classes_section(about: Subject) -> Section:
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
        pieces.append(
            worst if len(worst.rows) <= CLASSES_LONGEST_TABLE else Folded("The worst class of each run", [worst])
        )
        pieces += _confusions(about)
    pieces += missing(about, [run for run in about.runs if run not in having], "Accuracy by class", "classes")
    return Section("classes", "Classes", CLASSES_LEAD if having else "", pieces)


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
    return Picture(slug, title, svg, note, TableBlock(head, rows))


def _worst(chosen: Chosen) -> TableBlock:
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
    return TableBlock(head, rows, "The worst class, with its 95 % interval", 2)


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


def _commonest(run: Shown, record: Record, of: str) -> TableBlock:
    """The commonest confusions where there are too many classes to show all."""
    counts, names = record["confusion_attacked"], record["classes"]
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    rows = [
        (names[i], names[j], str(n), f"{percent(n / sum(counts[i]))}") for n, i, j in sorted(pairs, reverse=True)[:15]
    ]
    title = f"The commonest confusions under attack{of}, {run.name}. {protocol(record)}."
    return TableBlock(("true class", "taken for", "images", "of the class %"), rows, title, 2)


# radius ---------------------------------------------------------------------------------------------------------------
# Accuracy against the radius of the ball and against the steps of the attack.


RADIUS_LEAD = (
    "Accuracy must fall as the radius grows, to about nothing where the ball holds any image, and must settle as steps"
    " are added. A curve that does not is a sign of gradients that mislead."
)
FAR = 2.5
"""A last radius so many times the one before it is told beside the plot, which it would flatten."""

Key = tuple[str, ...]


def radius_section(about: Subject) -> Section:
    """Curves over eps and over steps, a plot for each protocol."""
    pictures = [p for over in ("eps", "steps") for p in _radius_pictures(about, over)]
    pieces: list[object] = [Gallery(pictures)] if pictures else []
    pieces += [
        piece
        for over, what in (("eps", "Accuracy against the radius"), ("steps", "Accuracy against steps of the attack"))
        for piece in missing(about, [run for run in about.runs if not run.found("curve", over=over)], what, over)
    ]
    return Section("radius", "Radius and steps", RADIUS_LEAD if pictures else "", pieces)


def _radius_pictures(about: Subject, over: str) -> list[Picture]:
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
    return Picture(slug, title, svg, note, _radius_table(own, over))


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


def _radius_table(own: dict[int, list[tuple[str, Record]]], over: str) -> TableBlock:
    rows = []
    for runs in own.values():
        for name, record in runs:
            for p in record["points"]:
                low, high = wilson(p["correct"], p["n"])
                at = setting("eps", float(p["value"])) if over == "eps" else f"{p['value']:g}"
                rows.append(
                    (name, at, percent(p["correct"] / p["n"]), f"{percent(low)} to {percent(high)}", f"{p['n']:,}")
                )
    return TableBlock(("run", "radius" if over == "eps" else "steps", "accuracy %", "95 % interval", "images"), rows)


# transfer -------------------------------------------------------------------------------------------------------------
# What attacks made on one network do to another.


TRANSFER_LEAD = "Accuracy in percent of the network of the row on images made against the network of the column."
PREFIX = "transfer-"


def transfer_section(about: Subject) -> Section:
    """A matrix for each attack, or what would make one."""
    tables: dict[tuple[str, ...], dict[str, dict[str, Record]]] = {}
    for run in about.runs:
        for score in run.scores:
            if str(score["attack"]).startswith(PREFIX) and score.get("made_on"):
                key = _key(score, str(score["attack"]).removeprefix(PREFIX))
                tables.setdefault(key, {}).setdefault(run.name, {})[str(score["made_on"])] = score
    heats = []
    for (attack, _, eps, split, n, _), rows in tables.items():
        sources = sorted({source for own in rows.values() for source in own})
        one = next(iter(next(iter(rows.values())).values()))
        cells = []
        for name in rows:
            run = next(run for run in about.runs if run.name == name)
            own = next((s for s in run.scores if s["attack"] == attack and _alike(s, one)), None)
            line = [
                ("", 0.0, False) if source not in rows[name] else _cell(rows[name][source], same=False)
                for source in sources
            ]
            cells.append([("", 0.0, False) if own is None else _cell(own, same=True), *line])
        title = f"{attack} at {budget(one)}, {split}, {int(n):,} images" if eps else attack
        heats.append(Heat(title, "attacked network", ["itself", *sources], list(rows), cells))
    pieces: list[object] = [Heats(heats)] if heats else []
    if not heats:
        runs = " ".join(quoted(group.first) for group in about.groups)
        command = (
            f"mmard transfer {runs}" if len(about.groups) > 1 else f"mmard evaluate {runs} --attack pgd-20 --from OTHER"
        )
        pieces.append(Missing("What attacks made on one network do to another", [command]))
    return Section("transfer", "Transfer", TRANSFER_LEAD if heats else "", pieces)


def _key(score: Record, attack: str) -> tuple[str, ...]:
    return (attack, str(score["norm"]), str(score["eps"]), str(score["split"]), str(score["n"]), str(score["data"]))


def _alike(score: Record, other: Record) -> bool:
    return all(score[key] == other[key] for key in ("norm", "eps", "split", "n", "data", "which"))


def _cell(score: Record, same: bool) -> tuple[str, float, bool]:
    share = score["correct"] / score["n"]
    return percent(share), share, same
