"""What was run: what all runs share, and a card for each group with its two formulas."""

from __future__ import annotations

from markupsafe import Markup

from mmard.errors import Refused
from mmard.methods import compose
from mmard.report.pieces import Cards, Facts, Note, Section, Text
from mmard.report.subject import Group, Record, Subject
from mmard.report.words import listed, setting
from mmard.words import plural


def section(about: Subject) -> Section:
    """What was run."""
    own = [dict(_facts(group.first.config)) for group in about.groups]
    shared = {key: value for key, value in own[0].items() if all(each.get(key) == value for each in own)}
    cards = [
        Facts(_card(group, {key: value for key, value in facts.items() if key not in shared}), group.name, group.index)
        for group, facts in zip(about.groups, own, strict=True)
    ]
    pieces: list[object] = []
    if shared:
        pieces.append(Facts(list(shared.items()), "All runs" if not about.single else ""))
    pieces.append(Cards(cards))
    pieces += [Note(line) for line in about.left_out]
    return Section("what", "What was run", "", pieces)


def _card(group: Group, facts: Record) -> list[tuple[Text, Text]]:
    config = group.first.config
    pairs: list[tuple[Text, Text]] = []
    formulas = _formulas(config)
    if config.get("method"):
        halves = [f"{half} of {config[half]}" for half in ("inner", "outer") if config.get(half)]
        pairs.append(("method", ", ".join([str(config["method"]), *halves])))
    if formulas is not None:
        inner, outer, source = formulas
        pairs += [("attack climbs", _formula(inner)), ("loss descends", _formula(outer)), ("source", source)]
    if config.get("params"):
        said = ", ".join(f"{name} = {setting(name, value)}" for name, value in config["params"].items())
        pairs.append(("parameters", said))
    pairs += list(facts.items())
    if len(group.runs) == 1:
        run = group.first
        pairs.append(("run", f"{run.name}, seed {run.seed}, {run.progress}"))
    else:
        pairs.append(("seeds", listed([str(run.seed) for run in group.runs])))
        states = dict.fromkeys(run.progress for run in group.runs)
        lines = [f"{listed([run.name for run in group.runs if run.progress == state])}: {state}" for state in states]
        pairs.append(("runs", Markup("<br>").join(lines)))
    return pairs


def _formula(text: str) -> Markup:
    return Markup('<span class="formula">{}</span>').format(text)


def _formulas(config: Record) -> tuple[str, str, str] | None:
    """The two formulas as the method says them, and its source; None for what no name builds."""
    if not config.get("method"):
        return None
    try:
        made = compose(str(config["method"]), config.get("inner"), config.get("outer"), config.get("params") or {})
    except Refused:
        return None
    return (*made.says, made.source)


def _facts(config: Record) -> list[tuple[str, Text]]:
    """What a run was, in the words of its settings."""
    told: list[tuple[str, Text]] = []
    if network := config.get("student") or config.get("model") or config.get("network"):
        told.append(("student" if "student" in config else "network", str(network)))
    if teacher := config.get("teacher"):
        which = f", {config['teacher_which']} weights" if config.get("teacher_which") else ""
        told.append(("teacher", f"{teacher}{which}"))
    if config.get("data"):
        limit = config.get("limit_train")
        share = f"; {limit:,} images train" if isinstance(limit, int) else ""
        augment = f", augmentation {config['augment']}" if config.get("augment") else ""
        told.append(("data", f"{config['data']}{share}{augment}"))
    if config.get("eps") is not None:
        told.append(("budget", f"{config.get('norm', 'linf')} {setting('eps', config['eps'])}, inputs in [0, 1]"))
    if config.get("steps") is not None and config.get("eps") is not None:
        step = config.get("step_size") or float(config["eps"]) / 4
        start = f", {config['start']} start" if config.get("start") else ""
        told.append(
            ("training attack", f"{plural(int(config['steps']), 'step')} of {setting('step_size', step)}{start}")
        )
    if config.get("epochs") is not None:
        told.append(
            (
                "recipe",
                f"{plural(int(config['epochs']), 'epoch')}, batch {config.get('batch_size')}, lr "
                f"{setting('lr', config.get('lr'))} {config.get('schedule')}, weight decay "
                f"{setting('', config.get('weight_decay'))}",
            )
        )
    if config.get("val_attack"):
        told.append(("best weights", f"chosen on validation images under {config['val_attack']}"))
    if config.get("preset"):
        told.append(("preset", str(config["preset"])))
    return told
