"""`mmard show`: a run from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mmard.cli.options import Json, argument, command
from mmard.cli.train import next_commands, position_of, value_text
from mmard.errors import Refused
from mmard.screen import commands, console, line, print_json, show_section, show_table
from mmard.settings import Settings, command_of
from mmard.tables.table import Entry, Table
from mmard.words import as_fraction, duration, percent, plural, points

if TYPE_CHECKING:
    from mmard.evaluation.evaluate import Measured
    from mmard.run import Run
    from mmard.training.checkpoint import Position


Record = dict[str, Any]


class Show(Json):
    """What `mmard show` is asked for."""

    run: Path = argument("RUN", "A run folder.")


@command(
    "Look",
    """
    mmard show runs/s
    mmard show runs/s --json
    """,
)
def show(options: Show) -> None:
    """What was run, how far it is, how good it is, and what to do next."""
    from mmard.run import Run

    path = options.run
    run = Run.open(path)
    from mmard.tables.records import findings_of, outgrown, present, scores_of

    if "method" not in run.config:
        got = f"records of {run.config.get('network', 'a network')}"
        raise Refused(str(path), expected="a run that was trained", got=got, mend=f"mmard compare {path} shows them")
    every = scores_of(run)
    scores, early = present(run, every)
    findings, stale = present(run, findings_of(run), every)
    position = position_of(run)
    events = [event for event in run.log() if event["kind"] == "epoch"]
    notes = warnings(run, position, events, scores, findings)
    notes += [f"{outgrown(n, what)}, not shown" for n, what in ((early, "figure"), (stale, "finding")) if n]
    if options.as_json:
        print_json(facts(run, position, events) | {"scores": scores, "findings": findings, "warnings": notes})
        return
    out = console()
    line(out, str(run.path), "strong")
    line(out, f"  {_status(run, position)}")
    if events:
        best = max(events, key=lambda event: (event["robust"], event["clean"]))
        attack = _validation(run)
        for name, event in (("best", best), ("last", events[-1])):
            found = f"{percent(event['clean'])} clean, {percent(event['robust'])} under {attack}"
            line(out, f"  {name} epoch {event['epoch']}: {found}, on validation images")
    out.print()
    _show_settings(run)
    for title, records in _by_weights_and_images(scores):
        out.print()
        line(out, title, "strong")
        show_table(out, scores_table(records))
    kinds = sorted({str(f.get("over", f["kind"])) for f in findings})
    if kinds:
        out.print()
        line(out, f"also found: {', '.join(kinds)}; mmard report draws them", "quiet")
    for note in notes:
        out.print()
        line(out, f"note: {note}")
    others = next_commands(run, finished=position is not None and position.finished)
    if others := [each for each in others if not each.startswith("mmard show ")]:
        commands(out, "next", others)


def scores_table(records: Sequence[dict[str, Any]]) -> Table:
    """Records as rows: the attack in full, its budget, accuracy, interval, images and seconds."""
    rows = [
        (
            record["label"],
            "none" if record["eps"] is None else f"{record['norm']} {as_fraction(record['eps'])}",
            Entry(percent(record["accuracy"]), record["accuracy"], strong=True),
            points(*record["interval"]),
            f"{record['n']:,}",
            f"{record['seconds']:.1f}",
        )
        for record in records
    ]
    return Table(("attack", "budget", "accuracy", "95% interval", "images", "seconds"), rows, words=2)


def keep(measured: Sequence[Measured], run: Run | None) -> list[dict[str, Any]]:
    """The records of some figures; with a run, written into its folder with their masks."""
    from mmard.evaluation.examine import Recorder

    keeper = Recorder(run)
    for each in measured:
        keeper.score(each)
    return keeper.scores


WHAT = ("method", "inner", "outer", "network", "teachers", "data", "eps", "norm")
"""Settings that say what a run is, which come first."""


def facts(run: Run, position: Position | None, events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run is, as JSON holds it."""
    from dataclasses import asdict

    return {
        "run": str(run.path),
        "command": command_of(run.config),
        "config": run.config,
        "position": asdict(position) if position is not None else None,
        "epochs": events,
    }


def warnings(
    run: Run, position: Position | None, events: list[Record], scores: list[Record], findings: list[Record]
) -> list[str]:
    """What a reader of the figures should know."""
    from mmard.files import is_whole

    found = []
    weights = {which: run.weights_file(which).is_file() for which in ("best", "last")}
    if position is not None and position.finished and not all(weights.values()):
        found.append(
            "the run is finished, but "
            + " and ".join(w for w, there in weights.items() if not there)
            + " weights are missing"
        )
    found += [
        f"{run.weights_file(which)} is damaged: it is no whole safetensors file, so that nothing can be measured on it"
        for which, there in weights.items()
        if there and not is_whole(run.weights_file(which))
    ]
    if events and max(event["robust"] for event in events) - events[-1]["robust"] > 0.05:
        found.append(
            "the last epoch is over 5 points less robust than the best one on validation images: robust overfitting"
        )
    if position is not None and position.finished:
        best = max(events, key=lambda event: (event["robust"], event["clean"])) if events else None
        if best is not None and best["robust"] == 0:
            found.append("no validation image survived the attack in any epoch")
    flattered = [r["attack"] for r in scores if r["split"] == "val"]
    for record in findings:
        found += [
            f"suspicious{_at(record)}, {record['which']} weights: {f['check']}: {f['says']}"
            f" (docs/checks.md#{f['check']})"
            for f in record.get("findings", ())
            if f["verdict"] == "suspicious"
        ]
    if flattered:
        found.append(f"figures on validation images ({', '.join(flattered)}) chose the best weights and flatter them")
    return found


def _at(record: Record) -> str:
    return "" if record.get("eps") is None else f" at {record['norm']} {record['eps']:.4g}"


def _status(run: Run, position: Position | None) -> str:
    epochs = run.config.get("epochs", "?")
    if position is None:
        return f"not trained yet: 0 of {epochs} epochs"
    spent = f"{plural(position.step, 'step')}, {duration(position.seconds)}"
    if position.finished:
        return f"finished: {plural(position.epoch, 'epoch')}, {spent}"
    return f"resumable: {position.epoch} of {epochs} epochs are done, {spent}"


def _validation(run: Run) -> str:
    from mmard.attacks import read_attack
    from mmard.balls import Budget

    budget = Budget(run.config["eps"], run.config["norm"])
    return f"{read_attack(run.config['val_attack'], budget).title} at {budget}"


def _by_weights_and_images(records: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Records that can be read beside each other, the clean one first and the worst case last."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(
        records, key=lambda r: (r["which"], r["split"], r["eps"] or 0, r["attack"].startswith("worst"))
    ):
        groups.setdefault(f"{record['which']} weights, {record['images']}", []).append(record)
    return list(groups.items())


def _show_settings(run: Run) -> None:
    """What a run is, then what somebody chose, then the rest in one quiet paragraph."""
    from mmard.job import method_parameters

    out, config = console(), run.config
    core = {
        name: config[name]
        for name in ("method", "inner", "outer", "preset", "data", "teachers")
        if config.get(name) is not None
    }
    usual, settings = Settings.resolve(core), Settings.resolve(config)
    values = settings.as_config()
    chosen = [
        name for name in values if name not in WHAT and name != "params" and values[name] != usual.as_config()[name]
    ]
    params = method_parameters(settings)
    mine = {full: settings.params.get(full, default) for full, default in params.items()}
    moved = [full for full in mine if mine[full] != usual.params.get(full, params[full])]
    rows: list[list[str | Entry]] = [
        [name, value_text(name, values[name]), ""] for name in WHAT if values.get(name) is not None
    ]
    for name in (*chosen, *moved):
        before = usual.as_config()[name] if name in chosen else usual.params.get(name, params[name])
        now = value_text(name, values.get(name, mine.get(name)))
        rows.append([name, now, Entry(f"usually {value_text(name, before)}", emphasis="quiet")])
    show_table(out, Table(("setting", "value", ""), rows, words=3))
    rest = [
        f"{n} {value_text(n, values[n])}"
        for n in values
        if n not in (*WHAT, *chosen, "params") and values[n] is not None
    ]
    rest += [f"{full} {value_text(full, mine[full])}" for full in mine if full not in moved]
    line(out, "  as usual: " + ", ".join(rest), "quiet")


def show_findings(out: Console, findings: Sequence[Record], left_out: Sequence[str], *, asked: bool = False) -> None:
    """Print findings that were just made as the report tells them.

    Args:
        asked: whether the suspicion checks were asked for, so that each has its line.
    """
    from mmard.report.page import findings_sections
    from mmard.report.runs import of_records

    for section in findings_sections(of_records("", findings)):
        show_section(out, section, whole=asked and section.slug == "checks")
    for text in left_out:
        out.print()
        line(out, f"left out: {text}", "quiet")
