"""How training went: validation, the loss and its terms, the learning rate, time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmard.errors import require
from mmard.report.drawing import need_plots
from mmard.report.plots import Line, line_plot
from mmard.report.runs import ReportedRun, ReportedRuns, number, percent, quoted, setting
from mmard.report.section import Picture, Section
from mmard.run import Run, terms_of
from mmard.settings import command_of
from mmard.tables.records import Record
from mmard.tables.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING_LONGEST_TABLE = 40
"""Epochs that a table shows; of longer runs it has every second, third, ..., and the best."""


def training_section(report: ReportedRuns) -> Section:
    """The curves of every run that was trained here."""
    trained = [run for run in report.runs if run.trained]
    if not trained:
        return Section("Training", "training", ["These networks were trained elsewhere; nothing is known of it."])
    sentences = [f"{run.name} is {run.progress}." for run in trained if not run.finished]
    lost = [run for run in trained if not run.events]
    sentences += [f"No log of {', '.join(run.name for run in lost)}."] if lost else []
    begun = [run for run in trained if run.epochs]
    if begun:
        sentences.append("Fractions are of the validation images, on which the best weights were chosen.")
    pictures = _validation(report) + _losses(report) + _rate_and_time(report) + _terms(report)
    tables = [_epochs(run) for run in begun]
    parts = [Section("Every epoch as numbers", tables=tables, folded=True)] if tables else []
    commands = [f"mmard {command_of(run.config)} --resume {quoted(run)}" for run in lost]
    return Section("Training", "training", sentences, pictures, commands=commands, parts=parts)


def plot(run: Run | str | Path) -> Figure:
    """How a run's training went, as a matplotlib figure: validation accuracy and the loss, epoch by epoch.

    Raises:
        Refused: if there is no run, it has no epoch yet, or matplotlib is not installed.
    """
    need_plots()
    from matplotlib.figure import Figure

    found = run if isinstance(run, Run) else Run.open(run)
    epochs = [event for event in found.log() if event["kind"] == "epoch"]
    require(bool(epochs), str(found.path), expected="at least one finished epoch", got="none so far")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    xs = [event["epoch"] for event in epochs]
    for key, label, style in (("clean", "clean", "--"), ("robust", str(found.config["val_attack"]), "-")):
        accuracy.plot(xs, [100 * event[key] for event in epochs], style, marker=".", label=label)
    accuracy.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 100))
    accuracy.legend()
    loss.plot(xs, [event["loss"] for event in epochs], marker=".", label="loss")
    for name in terms_of(epochs[-1]):
        loss.plot(xs, [terms_of(event).get(name, float("nan")) for event in epochs], linewidth=1, label=name)
    loss.set(xlabel="epoch", ylabel="training loss")
    loss.legend()
    figure.suptitle(found.path.name)
    return figure


def _attacks(report: ReportedRuns) -> str:
    """The attack of validation, if one was everybody's."""
    said = {str(run.config["val_attack"]) for run in report.runs if run.config.get("val_attack")}
    return said.pop() if len(said) == 1 else "the attack of validation"


def _validation(report: ReportedRuns) -> list[Picture]:
    attack = _attacks(report)
    if report.single:
        run = report.runs[0]
        if not run.epochs:
            return []
        lines = [
            _line(run, "clean", 0, "clean", dashed=1),
            _line(run, "robust", 0, attack),
        ]
        best = _best(run)
        alt = f"Validation accuracy over {len(run.epochs)} epochs. {_ends(run)}"
        draw = partial(
            line_plot, "validation", alt, lines, x="epoch", y="% of validation images", fractions=True, whole=True
        )
        note = f"Best epoch {best['epoch']}: {percent(best['clean'])} % clean, {percent(best['robust'])} % robust."
        return [Picture("validation", "Validation accuracy", draw, note, _two(run))]
    made = []
    for key, title in (("robust", f"Validation accuracy under {attack}"), ("clean", "Validation accuracy, no attack")):
        lines = _by_group(report, lambda run, key=key: _points(run, key))  # type: ignore[misc]
        if lines:
            last = [f"{g.short} {percent(g.first.epochs[-1][key])} %" for g in report.groups if g.first.epochs]
            alt = f"{title} over epochs; at the end of the first seed: {', '.join(last)}."
            draw = partial(
                line_plot, f"validation-{key}", alt, lines, x="epoch", y="% of validation images", fractions=True,
                whole=True, bottom=_bottom(lines),
            )  # fmt: skip
            made.append(Picture(f"validation-{key}", title, draw, _seeds_note(report), _ends_table(report, key)))
    return made


def _bottom(lines: Sequence[Line]) -> float | None:
    """Where the axis of a long comparison begins: what the first sixth of training looked like tells nothing apart."""
    late = [y for line in lines for x, y in zip(line.xs, line.ys, strict=True) if x > max(line.xs) / 6]
    if min((len(line.xs) for line in lines), default=0) < 12:
        return None
    return max(0.0, min(late) - 0.15 * (max(late) - min(late)))


def _best(run: ReportedRun) -> Record:
    """The epoch whose weights are the best ones: by robust accuracy, then by clean."""
    return max(run.epochs, key=lambda event: (event["robust"], event["clean"]))


def _ends(run: ReportedRun) -> str:
    last = run.epochs[-1]
    return f"Last epoch: {percent(last['clean'])} % clean, {percent(last['robust'])} % robust."


def _two(run: ReportedRun) -> Table:
    rows = [(str(e["epoch"]), percent(e["clean"]), percent(e["robust"])) for e in _thinned(run)]
    return Table(("epoch", "clean %", "robust %"), rows)


def _ends_table(report: ReportedRuns, key: str) -> Table:
    rows = []
    for run in report.runs:
        if run.epochs:
            best = _best(run)
            rows.append((run.name, str(best["epoch"]), percent(best[key]), percent(run.epochs[-1][key])))
    return Table(("run", "best epoch", "at the best epoch %", "at the last %"), rows)


def _seeds_note(report: ReportedRuns) -> str:
    return "Thin: each seed; bold: their mean." if report.seeds > 1 else ""


Points = tuple[list[float], list[float]]


def _points(run: ReportedRun, key: str) -> Points:
    own = [event for event in run.epochs if isinstance(event.get(key), int | float)]
    return [float(event["epoch"]) for event in own], [float(event[key]) for event in own]


def _line(run: ReportedRun, key: str, index: int, label: str, dashed: int | None = None) -> Line:
    xs, ys = _points(run, key)
    return Line(xs, ys, index, label, dashed=dashed, marks=len(xs) <= 3)


def _by_group(report: ReportedRuns, points: Callable[[ReportedRun], Points], label: bool = True) -> list[Line]:
    """A line for each group: of its one run, or of the mean over seeds as far as all have come, before each of them."""
    lines = []
    for group in report.groups:
        own = [found for run in group.runs if (found := points(run))[0]]
        if not own:
            continue
        if len(own) > 1:
            lines += [Line(xs, ys, group.index, faint=True) for xs, ys in own]
        xs, ys = _mean(own)
        lines.append(Line(xs, ys, group.index, group.short if label else "", marks=len(xs) <= 3))
    return lines


def _mean(own: Sequence[Points]) -> Points:
    shared = [x for x in own[0][0] if all(x in xs for xs, _ in own)]
    values = [dict(zip(xs, ys, strict=True)) for xs, ys in own]
    return shared, [statistics.fmean(value[x] for value in values) for x in shared]


def _losses(report: ReportedRuns) -> list[Picture]:
    young = all(len(run.epochs) < 2 for run in report.runs)
    lines = _by_group(report, _step_losses if young else lambda run: _points(run, "loss"))
    if not lines:
        return []
    x = "step" if young else "epoch"
    log = _wide([y for line in lines for y in line.ys])
    ends = ", ".join(f"{line.label or 'run'} {number(line.ys[-1])}" for line in lines if not line.faint)
    alt = f"Loss over each {x}; at the end: {ends}."
    lines = [_unnamed(line) for line in lines] if report.single else lines
    draw = partial(
        line_plot, "loss", alt, lines, x=x, y="loss, mean over the epoch" if not young else "loss", whole=True, log=log
    )
    note = "Losses of different methods are different sums; compare their course, not their height. "
    rows = [
        (run.name, number(run.epochs[0]["loss"]), number(run.epochs[-1]["loss"])) for run in report.runs if run.epochs
    ]
    table = Table(("run", "first epoch", "last epoch"), rows) if rows else None
    return [Picture("loss", "Loss", draw, "" if report.single else note + _seeds_note(report), table)]


def _unnamed(line: Line) -> Line:
    return Line(line.xs, line.ys, line.index, faint=line.faint, marks=line.marks)


def _wide(values: Sequence[float]) -> bool:
    """Whether values span so much that only a logarithmic axis shows them."""
    return min(values) > 0 and max(values) / min(values) > 30


def _step_losses(run: ReportedRun) -> Points:
    own = [event for event in run.steps if "loss" in event]
    return [float(event["step"]) for event in own], [float(event["loss"]) for event in own]


def _terms(report: ReportedRuns) -> list[Picture]:
    """For each group the terms of its loss, one line each, known by its dash."""
    made = []
    for group in report.groups:
        run = group.first
        lines = []
        for place, term in enumerate(run.terms):
            xs, ys = _points(run, term)
            if xs:
                lines.append(Line(xs, ys, group.index, term, dashed=place, marks=len(xs) <= 3))
        if len(lines) < 2:
            continue
        title = "Terms of the loss" + ("" if report.single else f": {group.short}")
        ends = ", ".join(f"{line.label} {number(line.ys[-1])}" for line in lines)
        draw = partial(
            line_plot,
            f"terms-{group.index}", f"{title} over epochs; at the end: {ends}.", lines, x="epoch", whole=True,
            y="weighted, mean over the epoch", from_zero=min(min(line.ys) for line in lines) >= 0,
        )  # fmt: skip
        rows = [(line.label, number(line.ys[0]), number(line.ys[-1])) for line in lines]
        note = f"Seed {run.seed}." if len(group.runs) > 1 else ""
        made.append(
            Picture(f"terms-{group.index}", title, draw, note, Table(("term", "first epoch", "last epoch"), rows))
        )
    return made


def _rate_and_time(report: ReportedRuns) -> list[Picture]:
    made = []
    rates = {run.name: _points(run, "lr") for run in report.runs if run.epochs}
    if rates:
        same = len({repr(points) for points in rates.values()}) == 1
        xs, ys = next(iter(rates.values()))
        lines = [Line(xs, ys, 0 if report.single else 5, "" if report.single else "all runs", marks=len(xs) <= 3)]
        if not same:
            lines = _by_group(report, lambda run: _points(run, "lr"))
        alt = f"Learning rate over epochs, at most {number(max(max(p[1]) for p in rates.values()))}."
        draw = partial(line_plot, "rate", alt, lines, x="epoch", y="learning rate at the end of the epoch", whole=True)
        rows = [(name, setting("", max(p[1])), setting("", p[1][-1])) for name, p in rates.items()]
        made.append(Picture("rate", "Learning rate", draw, "", Table(("run", "largest", "last"), rows)))
    longest = max((run.epochs[-1]["seconds"] for run in report.runs if run.epochs), default=0.0)
    if longest:
        unit, by = next(
            (u, s) for u, s in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if longest >= 2 * s or s == 1
        )

        def spent(run: ReportedRun) -> Points:
            xs, ys = _points(run, "seconds")
            return xs, [y / by for y in ys]

        lines = _by_group(report, spent, label=not report.single)
        totals = [(g.short, f"{g.first.epochs[-1]['seconds'] / by:.3g}") for g in report.groups if g.first.epochs]
        alt = f"Time spent training in {unit}: " + ", ".join(f"{name} {total}" for name, total in totals) + "."
        draw = partial(line_plot, "time", alt, lines, x="epoch", y=f"{unit} since the start", whole=True)
        spans = [(run.name, f"{run.epochs[-1]['seconds']:,.1f}") for run in report.runs if run.epochs]
        note = "Wall clock as the log has it, validation and other load of the machine included."
        made.append(Picture("time", "Time", draw, note, Table(("run", "seconds in all"), spans)))
    return made


def _thinned(run: ReportedRun) -> list[Record]:
    every = -(-len(run.epochs) // TRAINING_LONGEST_TABLE)
    best = _best(run)
    return [e for i, e in enumerate(run.epochs) if (i + 1) % every == 0 or e is best or i in (0, len(run.epochs) - 1)]


def _epochs(run: ReportedRun) -> Table:
    """An epoch a row, all that was logged."""
    keys = ["epoch", "lr", "loss", *run.terms, "reach", "clean", "robust", "seconds"]
    keys = [key for key in keys if any(key in event for event in run.epochs)]
    heads = {"clean": "clean %", "robust": "robust %", "reach": "reach (largest |x_adv - x|)"}
    best = _best(run)
    rows = []
    for event in _thinned(run):
        cells = [
            percent(event[key]) if key in ("clean", "robust") and key in event else number(event.get(key))
            for key in keys
        ]
        cells[0] += " (best)" if event is best else ""
        rows.append(cells)
    shown = "" if len(rows) == len(run.epochs) else f", {len(rows)} of {len(run.epochs)} epochs; all are in log.jsonl"
    return Table([heads.get(key, key) for key in keys], rows, f"{run.name}{shown}")
