"""`mmard show`: a run from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mmard.cli.next_steps import command_of, next_commands, position_of
from mmard.cli.output import commands, console, line, put, table
from mmard.cli.planned import value_text
from mmard.cli.scores import scores_table
from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.errors import Refused
from mmard.words import duration, percent, plural

if TYPE_CHECKING:
    from mmard.run import Run
    from mmard.training.checkpoint import Position

WHAT = ("method", "inner", "outer", "model", "student", "teacher", "data", "eps", "norm")
"""Settings that say what a run is, which come first."""


def show_run(path: Path, as_json: bool) -> None:
    """Print what a run is, how far it is, its figures, and what to type next.

    Raises:
        Refused: if there is no run.
    """
    from mmard.run import Run

    run = Run.open(path)
    if "method" not in run.config:
        got = f"records of {run.config.get('network', 'a network')}"
        raise Refused(str(path), expected="a run that was trained", got=got, mend=f"mmard compare {path} shows them")
    position = position_of(run)
    events = [event for event in run.log() if event["kind"] == "epoch"]
    if as_json:
        print(json.dumps(facts(run, position, events), indent=2))
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
    for title, records in _by_weights_and_images(run.score_records()):
        out.print()
        line(out, title, "strong")
        put(out, scores_table(records), 2)
    kinds = sorted({f.get("over", f["kind"]) for f in run.findings()})
    if kinds:
        out.print()
        line(out, f"also found: {', '.join(kinds)}; mmard report draws them", "quiet")
    for warning in warnings(run, position, events):
        out.print()
        line(out, f"note: {warning}")
    commands(out, "next", next_commands(run, finished=position is not None and position.finished))


def facts(run: Run, position: Position | None, events: list[dict[str, Any]]) -> dict[str, Any]:
    """The same as JSON holds it."""
    from dataclasses import asdict

    return {
        "run": str(run.path),
        "command": command_of(run.config),
        "config": run.config,
        "position": asdict(position) if position is not None else None,
        "epochs": events,
        "scores": run.score_records(),
        "findings": run.findings(),
        "warnings": warnings(run, position, events),
    }


def warnings(run: Run, position: Position | None, events: list[dict[str, Any]]) -> list[str]:
    """What a reader of the figures should know."""
    found = []
    weights = {which: run.weights_file(which).is_file() for which in ("best", "last")}
    if position is not None and position.finished and not all(weights.values()):
        found.append(
            "the run is finished, but "
            + " and ".join(w for w, there in weights.items() if not there)
            + " weights are missing"
        )
    if events and max(event["robust"] for event in events) - events[-1]["robust"] > 0.05:
        found.append(
            "the last epoch is over 5 points less robust than the best one on validation images: robust overfitting"
        )
    if position is not None and position.finished:
        best = max(events, key=lambda event: (event["robust"], event["clean"])) if events else None
        if best is not None and best["robust"] == 0:
            found.append("no validation image survived the attack in any epoch")
    stale = [r["attack"] for r in run.score_records() if r["split"] == "val"]
    for record in run.findings():
        found += [
            f"suspicious at {record['norm']} {record['eps']:.4g}, {record['which']} weights: {f['check']}: {f['says']}"
            f" (docs/checks.md#{f['check']})"
            for f in record.get("findings", ())
            if f["verdict"] == "suspicious"
        ]
    if stale:
        found.append(f"figures on validation images ({', '.join(stale)}) chose the best weights and flatter them")
    return found


def _status(run: Run, position: Position | None) -> str:
    epochs = run.config.get("epochs", "?")
    if position is None:
        return f"not trained yet: 0 of {epochs} epochs"
    spent = f"{plural(position.step, 'step')}, {duration(position.seconds)}"
    if position.finished:
        return f"finished: {plural(position.epoch, 'epoch')}, {spent}"
    return f"resumable: {position.epoch} of {epochs} epochs are done, {spent}"


def _validation(run: Run) -> str:
    from mmard.attacks import trial
    from mmard.balls import Budget

    budget = Budget(run.config["eps"], run.config["norm"])
    return f"{trial(run.config['val_attack'], budget).label.split(' (')[0]} at {budget}"


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
    kind: type[Settings] = DistillSettings if command_of(config) == "distill" else TrainSettings
    core = {
        name: config[name]
        for name in ("method", "inner", "outer", "preset", "data", "teacher")
        if config.get(name) is not None
    }
    usual = kind.resolve(core)
    settings = kind.resolve(config)
    values = settings.as_config()
    chosen = [
        name for name in values if name not in WHAT and name != "params" and values[name] != usual.as_config()[name]
    ]
    params = method_parameters(settings)
    told = {full: settings.params.get(full, default) for full, default in params.items()}
    moved = [full for full in told if told[full] != usual.params.get(full, params[full])]
    rows = table("setting", "value", "")
    for name in WHAT:
        if values.get(name) is not None:
            rows.add_row(name, value_text(name, values[name]))
    for name in (*chosen, *moved):
        before = usual.as_config()[name] if name in chosen else usual.params.get(name, params[name])
        rows.add_row(
            name,
            value_text(name, values.get(name, told.get(name))),
            Text(f"usually {value_text(name, before)}", style="quiet"),
        )
    put(out, rows, 2)
    rest = [
        f"{n} {value_text(n, values[n])}"
        for n in values
        if n not in (*WHAT, *chosen, "params") and values[n] is not None
    ]
    rest += [f"{full} {value_text(full, told[full])}" for full in told if full not in moved]
    line(out, "  as usual: " + ", ".join(rest), "quiet")
