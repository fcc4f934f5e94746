"""Accuracy: the table over runs, by class, against the radius and the steps, and of attacks made on other networks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from markupsafe import Markup

from mmard.attacks import TRANSFERRED, attack_title
from mmard.errors import Refused
from mmard.evaluation.findings import FEW_IMAGES, balanced, worst
from mmard.evaluation.score import wilson
from mmard.report.findings import long_or_short, without_names
from mmard.report.palette import swatch
from mmard.report.plots import Bar, Dot, Line, Place, bar_rows, dot_rows, line_plot, trade_off
from mmard.report.runs import (
    Chosen,
    ReportedRuns,
    RunGroup,
    budget,
    named,
    of_255,
    percent,
    protocol,
    setting,
)
from mmard.report.section import Picture, Section
from mmard.tables.comparison import Comparison, comparison
from mmard.tables.figures import ACCURACY, Column, Sample
from mmard.tables.paper import COLUMNS, table_of
from mmard.tables.records import Record
from mmard.tables.table import Entry, Table, entry

MOST_PLOTS = 8
"""Columns of the table that are drawn."""


def results_section(report: ReportedRuns) -> Section:
    """One sentence, clean against robust accuracy, and the table of the images with the most figures."""
    try:
        made = comparison([run.run for run in report.runs if run.run is not None])
    except Refused:
        return Section("Results", "results", ["No accuracy on test images was measured."])
    index = {run.run.path: run.group for run in report.runs if run.run is not None}
    several = len({row.which for row in made.rows}) > 1
    short = [
        report.groups[index[row.configuration.runs[0]]].short + (f", {row.which}" if several else "")
        for row in made.rows
    ]
    first, *others = [_sample(made, sample, index, number, short) for number, sample in enumerate(made.samples)]
    parts = [*first.parts, *(replace(other, title="On other images", sentences=()) for other in others)]
    notes = [*made.notes, *made.refused]
    parts += [Section("Notes", sentences=notes)] if notes else []
    return replace(first, title="Results", slug="results", parts=parts)


def _sample(made: Comparison, sample: Sample, index: dict[Path, int], number: int, short: Sequence[str]) -> Section:
    """What was measured on one set of images."""
    rows = made.rows_of(sample)
    clean = next((c for c in sample.columns if made.columns[c].attack == "clean"), None)
    severe = _severest(made, sample)
    pictures = []
    if clean is not None and severe is not None and len(rows) > 1:
        pictures.append(_trade_off(made, clean, severe, rows, index, f"trade-{number}", short))
    # The first images have the most figures; of others the pair that decides is enough.
    accuracies = [c for c in sample.columns if made.columns[c].measure == ACCURACY]
    dots = []
    for place, c in enumerate([c for c in accuracies if number == 0 or c in (clean, severe)][:MOST_PLOTS]):
        measured = [r for r in rows if (r, c) in made.cells]
        if len(measured) > 1:
            dots.append(_dots(made, c, measured, index, f"dots-{number}-{place}", short))
    parts = [Section("Each attack", pictures=dots, folded=True)] if dots else []
    sentence = _sentence(made, rows, clean, severe, sample)
    return Section("", "", [sentence], pictures, [_results(made, sample, index)], parts=parts)


def _sentence(made: Comparison, rows: Sequence[int], clean: int | None, severe: int | None, sample: Sample) -> str:
    """The result."""
    if severe is None:
        return f"No attack was measured; without one, {sample.images}."
    measured = [r for r in rows if (r, severe) in made.cells]
    lead = max(measured, key=lambda r: made.cells[r, severe].mean)
    robust = f"{percent(made.cells[lead, severe].mean)} % under {_under(made.columns[severe])}"
    plain = made.cells.get((lead, clean)) if clean is not None else None
    without = f", {percent(plain.mean)} % without attack" if plain is not None else ""
    if len(measured) == 1:
        return f"{made.rows[lead].name}: {robust}{without}, of {sample.images}."
    best = made.cells[lead, severe].best
    noise = "That is beyond noise of every other row" if best else "Its lead over the next is not beyond noise"
    return f"Most robust: {made.rows[lead].name}, {robust}{without}. {noise}."


def _results(made: Comparison, sample: Sample, index: dict[Path, int]) -> Table:
    """The table of `mmard compare`, with the colours of the page, and marks of suspicion beside attacked figures."""
    whole = table_of(made, sample)
    rows: list[list[str | Entry]] = []
    for r, (name, *row) in zip(made.rows_of(sample), whole.rows, strict=True):
        beside, cells = row[: -len(sample.columns)], row[-len(sample.columns) :]
        mine = [cell for (at, c), cell in made.cells.items() if at == r and c in sample.columns]
        marks = tuple(dict.fromkeys(slug for cell in mine for slug in cell.suspicious))
        colour = swatch(index[made.rows[r].configuration.runs[0]])
        named_row = Markup('<span class="named">{} {}</span>').format(colour, entry(name).text)
        several = made.most_seeds(sample) > 1
        said = [(head, entry(each).text) for head, each in zip(COLUMNS, beside, strict=True)]
        facts = [f"{text} {head.removesuffix('s') if text == '1' else head}" for head, text in said]
        under = ", ".join(facts) if several else ""
        columns = zip(sample.columns, map(entry, cells), strict=True)
        figures = [each if made.columns[c].norm is not None else replace(each, marks=()) for c, each in columns]
        rows.append([Entry(entry(name).text, spread=under, marks=marks, markup=named_row), *figures])
    heads = [Entry(made.columns[c].title, below=made.columns[c].budget) for c in sample.columns]
    caption = whole.caption.replace("†: suspicion", "Red mark: suspicion")
    return Table(["run", *heads], rows, caption, kind="results")


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
    draw = partial(trade_off, slug, alt, places, x="accuracy without attack, %", y=f"accuracy under {said}, %")
    note = "Right is more accurate, up is more robust."
    note += " Large: mean over seeds; small: each seed." if any(len(place.seeds) > 1 for place in places) else ""
    whole = Table(("run", "clean %", f"{made.columns[severe].title} %"), table)
    return Picture(slug, "Accuracy and robustness together", draw, note, whole)


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
    draw = partial(dot_rows, slug, alt, names, dots, x="accuracy, %", means=means, numbers=texts)
    bars = "Bar: mean over seeds; line:" if any(mean is not None for mean in means) else "Line:"
    attack = "" if column.attack == "clean" else f" {column.label[:1].upper()}{column.label[1:]}."
    note = f"{bars} 95 % interval over {column.n:,} images.{attack}"
    table = Table(("run", "seed", "accuracy %", "95 % interval", "images"), lines)
    return Picture(slug, column.title, draw, note, table)


# by class, and what is taken for what under attack
MOST_CLASSES = 20
"""Classes that a plot shows, half of them at either end, and of a confusion that is shown whole."""
CLASSES_LEAD = "A mean over classes hides the one that an attacker would choose."


def classes_section(report: ReportedRuns) -> Section:
    """Bars for each group, the worst class of each run under each attack, and the confusions."""
    chosen = Chosen(report, "classes")
    having = chosen.having()
    if not having:
        return Section("Classes", "classes")
    order = _order(chosen.all(having[0])[0])
    groups = [group for group in report.groups if any(run in having for run in group.runs)]
    few = max(sum(0 < n < FEW_IMAGES for n in chosen.all(run)[0]["count"]) for run in having)
    sentences = [CLASSES_LEAD, *chosen.below("By class")]
    if few:
        classes = "class has" if few == 1 else "classes have"
        sentences.append(f"{few} {classes} fewer than {FEW_IMAGES} images: their accuracies are hardly known.")
    parts = [long_or_short(_worst(report, chosen), "The worst class of each run"), *_confusions(report)]
    pictures = [_bars(report, group, order, chosen) for group in groups]
    return Section("Classes", "classes", sentences, pictures, parts=parts)


def _order(found: Record) -> list[str]:
    """Names of the classes, the least robust first, by the first run that has them."""
    shares = {
        name: a / n if n else 0.0
        for name, a, n in zip(found["classes"], found["attacked"], found["count"], strict=True)
    }
    names = sorted(shares, key=lambda name: shares[name])
    half = MOST_CLASSES // 2
    return names if len(names) <= MOST_CLASSES else [*names[:half], *names[-half:]]


def _bars(report: ReportedRuns, group: RunGroup, order: Sequence[str], chosen: Chosen) -> Picture:
    records = [record for run in group.runs if (record := chosen.of(run)) is not None]
    first = records[0]
    records = [record for record in records if chosen.beside(record) == chosen.beside(first)]
    several = len(records) > 1
    bars = []
    rows: list[tuple[str, ...]] = []
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
    title = "By class" if report.single else group.short
    least = min(bars, key=lambda bar: bar.inner)
    alt = (
        f"Accuracy by class, {len(bars)} classes; least robust: {least.name}, {percent(least.outer)} % clean and"
        f" {percent(least.inner)} % attacked."
    )
    some = "" if len(bars) == len(first["classes"]) else f"{len(bars)} of {len(first['classes'])} classes, both ends. "
    lines = "dots: seeds. " if several else "line: 95 % interval. "
    note = f"{some}Pale: clean; full: attacked; {lines}{chosen.beside(first)}"
    head = ["class", "clean %", "attacked %", "attacked, each seed %" if several else "95 % interval", "images"]
    for other in [] if several else [r for r in chosen.all(group.first) if r is not first]:
        if other["classes"] == first["classes"]:
            head.append(f"{attack_title(str(other['attack'])) or other['label']} %")
            right = dict(zip(other["classes"], zip(other["attacked"], other["count"], strict=True), strict=True))
            rows = [(*row, percent(right[row[0]][0] / max(right[row[0]][1], 1))) for row in rows]
    slug = f"classes-{group.index}"
    draw = partial(bar_rows, slug, alt, bars, index=group.index, x="accuracy, %")
    return Picture(slug, title, draw, note, Table(head, rows), printed=True)


def _worst(report: ReportedRuns, chosen: Chosen) -> Table:
    """The worst class and the mean over classes, a row for each run and attack."""
    found = [(run, record) for run in chosen.having() for record in chosen.all(run)]
    name = named([record for _, record in found])
    rows = []
    for run, record in found:
        cells: list[str] = []
        for key in ("clean", "attacked"):
            mean, i = balanced(record[key], record["count"]), worst(record[key], record["count"])
            if mean is None or i is None:
                cells += ["", ""]
                continue
            right, n = record[key][i], record["count"][i]
            low, high = map(percent, wilson(right, n))
            cells += [percent(mean), f"{percent(right / n)} ({low} to {high}), {record['classes'][i]}"]
        rows.append((run.name, name(record), *cells))
    head = ("run", "attack", "balanced, clean %", "worst class, clean %", "balanced, attacked %",
            "worst class, attacked %")  # fmt: skip
    caption = "Mean over classes, and the worst class with its 95 % interval"
    return without_names(report, Table(head, rows, caption, 2))


def _confusions(report: ReportedRuns) -> list[Section]:
    """What is taken for what: of the first seed of each group under attack, the rest when asked for."""
    chosen = Chosen(report, "classes", usable=lambda record: record.get("confusion_attacked") is not None)
    first: list[Table] = []
    rest: list[Table] = []
    for group in report.groups:
        own = [(run, record) for run in group.runs if (record := chosen.of(run)) is not None]
        for k, (run, record) in enumerate(own):
            seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
            whole = "" if report.single else f"{group.short}{seed}, "
            beside = f" {chosen.beside(record)}".rstrip()
            if len(record["classes"]) > MOST_CLASSES:
                first += [_commonest(record, whole + "under attack", beside)] if k == 0 else []
                continue
            (rest if k else first).append(_confusion(record, "confusion_attacked", f"{whole}under attack.{beside}"))
            if record.get("confusion_clean") is not None:
                rest.append(_confusion(record, "confusion_clean", f"{whole}no attack.{beside}"))
    parts = []
    if first:
        how = "" if chosen.several else f" {protocol(chosen.all(chosen.having()[0])[0])}."
        said = f"Rows: the true class; columns: what it is taken for.{how}"
        parts.append(Section("What is taken for what", sentences=[said], tables=first, folded=not report.single))
    if rest:
        others = ", and under attack of the other seeds" if report.seeds > 1 else ""
        parts.append(Section(f"Confusion without attack{others}", tables=rest, folded=True))
    return parts


def _confusion(record: Record, key: str, caption: str) -> Table:
    rows: list[list[str | Entry]] = []
    for i, (name, row) in enumerate(zip(record["classes"], record[key], strict=True)):
        whole = sum(row) or 1
        # The root of the share, so that rare confusions are seen as well.
        tints = [Entry(str(n) if n else "", n, tint=(n / whole) ** 0.5, strong=i == j) for j, n in enumerate(row)]
        rows.append([name, *tints])
    heads = ["true class", *(name[:4] for name in record["classes"])]
    return Table(heads, rows, caption[:1].upper() + caption[1:], kind="heat")


def _commonest(record: Record, of: str, beside: str) -> Table:
    """The commonest confusions where there are too many classes to show all."""
    counts, names = record["confusion_attacked"], record["classes"]
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    rows = [
        (names[i], names[j], str(n), f"{percent(n / sum(counts[i]))}") for n, i, j in sorted(pairs, reverse=True)[:15]
    ]
    return Table(
        ("true class", "taken for", "images", "of the class %"), rows, f"The commonest confusions {of}.{beside}", 2
    )


# against the radius of the ball and the steps of the attack
RADIUS_LEAD = (
    "Accuracy must fall as the radius grows, to about nothing where the ball holds any image, and must settle as steps"
    " are added. A curve that does not is a sign of gradients that mislead."
)
FAR = 2.5
"""A last radius so many times the one before it is said beside the plot, which it would flatten."""

Curves = dict[int, list[tuple[str, Record]]]
"""By index of the group: names of runs and their findings."""


def radius_section(report: ReportedRuns) -> Section:
    """Curves over eps and over steps, a plot for each protocol."""
    pictures = [p for over in ("eps", "steps") for p in _curves(report, over)]
    return Section("Radius and steps", "radius", [RADIUS_LEAD] if pictures else [], pictures)


def _curves(report: ReportedRuns, over: str) -> list[Picture]:
    protocols: dict[tuple[str, ...], Curves] = {}
    for run in report.runs:
        for found in run.found("curve", over=over):
            keys = ("label", "norm", "which", "split", "n", "data", *(("eps",) if over == "steps" else ()))
            key = tuple(str(found.get(k)) for k in keys)
            protocols.setdefault(key, {}).setdefault(run.group, []).append((run.name, found))
    return [_curve(report, over, own, f"{over}-{i}") for i, own in enumerate(protocols.values())]


def _curve(report: ReportedRuns, over: str, own: Curves, slug: str) -> Picture:
    first = next(iter(own.values()))[0][1]
    eps = [p["value"] for rows in own.values() for _, record in rows for p in record["points"]] if over == "eps" else []
    shown = _near(sorted(set(eps)))
    by = 1 / 255 if over == "eps" and of_255(shown) else 1.0
    lines: list[Line] = []
    for index, rows in own.items():
        label = "" if report.single else report.groups[index].short
        lines.append(_line(index, label, [record for _, record in rows], set(shown), by))
    trained = {run.config.get("eps") for run in report.runs} if over == "eps" else set()
    mark = trained.pop() if len(trained) == 1 else None
    x = f"radius, {first['norm']}" + (" in 1/255" if by != 1 else "") if over == "eps" else "steps"
    title = "Accuracy against the radius" if over == "eps" else "Accuracy against steps"
    draw = partial(
        line_plot, slug, _alt(report, own, title, over), lines, x=x, y="accuracy, %", fractions=True,
        upright=mark / by if mark is not None else None, x_log=over == "steps",
    )  # fmt: skip
    at = f" at {budget(first)}" if over == "steps" else ""
    note = f"{first['label']}{at}; {first['n']:,} images, {first['which']} weights. {_band(own)}"
    note += " Dotted: the radius trained for." if mark is not None else ""
    for value in sorted({value for value in eps if value not in shown}):
        there = [
            p["correct"] / p["n"]
            for rows in own.values() for _, record in rows for p in record["points"] if p["value"] == value
        ]  # fmt: skip
        low, high = percent(min(there)), percent(max(there))
        note += f" At radius {setting('eps', value)}, beyond the plot: {low if low == high else f'{low} to {high}'} %."
    return Picture(slug, title, draw, note, _curve_table(report, own, over), printed=True)


def _near(values: Sequence[float]) -> list[float]:
    kept = list(values)
    while len(kept) > 2 and kept[-1] > FAR * kept[-2]:
        kept.pop()
    return kept


def _band(own: Curves) -> str:
    sizes = [len(rows) for rows in own.values()]
    if max(sizes) == 1:
        return "Band: 95 % interval over images."
    alone = " (of one seed: 95 % interval over images)" if min(sizes) == 1 else ""
    return f"Line: mean over seeds; band: smallest to largest{alone}."


def _line(index: int, name: str, records: Sequence[Record], shown: set[float], by: float) -> Line:
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
    return Line([x / by for x in xs], [statistics.fmean(s) for s in shares], index, name, low, high, marks=True)


def _alt(report: ReportedRuns, own: Curves, title: str, over: str) -> str:
    texts = []
    for index, rows in own.items():
        points = rows[0][1]["points"]
        ends = " to ".join(
            f"{percent(p['correct'] / p['n'])} % at {setting('eps', p['value']) if over == 'eps' else p['value']}"
            for p in (points[0], points[-1])
        )
        texts.append(f"{report.groups[index].short}: {ends}")
    return f"{title}. {'; '.join(texts)}."


def _curve_table(report: ReportedRuns, own: Curves, over: str) -> Table:
    rows = []
    for runs in own.values():
        for name, record in runs:
            for p in record["points"]:
                low, high = wilson(p["correct"], p["n"])
                at = setting("eps", float(p["value"])) if over == "eps" else f"{p['value']:g}"
                rows.append(
                    (name, at, percent(p["correct"] / p["n"]), f"{percent(low)} to {percent(high)}", f"{p['n']:,}")
                )
    heads = ("run", "radius" if over == "eps" else "steps", "accuracy %", "95 % interval", "images")
    return without_names(report, Table(heads, rows, words=2))


# what attacks made on one network do to another
TRANSFER_LEAD = "Accuracy in percent of the network of the row on images made against the network of the column."


def transfer_section(report: ReportedRuns) -> Section:
    """A matrix for each attack."""
    tables: dict[tuple[str, ...], dict[str, dict[str, Record]]] = {}
    for run in report.runs:
        for score in run.scores:
            if str(score["attack"]).startswith(TRANSFERRED) and score.get("made_on"):
                keys = ("attack", "norm", "eps", "split", "n", "data")
                of = tables.setdefault(tuple(str(score[key]) for key in keys), {})
                of.setdefault(run.name, {})[str(score["made_on"])] = score
    made = []
    for (attack, *_), rows in tables.items():
        sources = sorted({source for own in rows.values() for source in own})
        one = next(iter(next(iter(rows.values())).values()))
        cells: list[list[str | Entry]] = []
        for name, by_source in rows.items():
            run = next(run for run in report.runs if run.name == name)
            own = next(
                (s for s in run.scores if s["attack"] == attack.removeprefix(TRANSFERRED) and _alike(s, one)), None
            )
            line = [_share(by_source.get(source), own=False) for source in sources]
            cells.append([name, _share(own, own=True), *line])
        title = f"{attack_title(attack) or attack} at {budget(one)}, {one['split']}, {one['n']:,} images"
        made.append(Table(["attacked network", "itself", *sources], cells, title, kind="heat"))
    return Section("Transfer", "transfer", [TRANSFER_LEAD] if made else [], tables=made)


def _alike(score: Record, other: Record) -> bool:
    return all(score[key] == other[key] for key in ("norm", "eps", "split", "n", "data", "which"))


def _share(score: Record | None, own: bool) -> Entry:
    if score is None:
        return Entry()
    share = score["correct"] / score["n"]
    return Entry(percent(share), share, tint=share, strong=own)
