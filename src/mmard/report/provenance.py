"""Where the figures come from: commands, versions, hardware, files and their hashes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from markupsafe import Markup

from mmard.errors import Refused
from mmard.methods import compose
from mmard.report.blocks import NO_NUMBERS, Cards, Commands, Facts, Folded, Note, Section, TableBlock, Text
from mmard.report.subject import Group, Shown, Subject, listed, quoted, setting, size
from mmard.settings import Settings, command_of, teachers_text
from mmard.tables.figures import Record
from mmard.words import plural

HASHED = 64_000_000
"""Bytes up to which a file is hashed; what weights were measured is in the records at any size."""
PAGES = re.compile(r"report.*\.html")


def reproduce(about: Subject) -> Section:
    """Commands, as they were typed."""
    pieces: list[object] = []
    for run in about.runs:
        made = _commands(run.environments)
        measured = _commands([record.get("environment") or {} for record in _by_time([*run.scores, *run.findings])])
        lines = [*made, *(line for line in measured if line not in made)]
        if lines:
            pieces.append(Commands(f"{run.name}, as it was made", lines))
    if len(pieces) > 3:
        pieces = [*pieces[:1], Folded(f"Commands of the other {len(pieces) - 1} runs", pieces[1:])]
    trained = [run for run in about.runs if run.trained]
    if trained:
        again = [f"mmard {command_of(run.config)} --config {quoted(run)} --out runs/again" for run in trained[:1]]
        pieces.append(Commands("Any run again, from its settings alone", again))
    pieces.append(
        Note(
            "On a CPU with the same number of threads and the same versions, a run trained again has the same weights,"
            " bit for bit, and an attack with the same seed and batch size gives the same verdicts."
        )
    )
    return Section("reproduce", "How to reproduce", "", pieces)


def _by_time(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: str((record.get("environment") or {}).get("written", "")))


def _commands(environments: list[Record]) -> list[str]:
    said = [str(each["command"]) for each in environments if each.get("command")]
    return list(dict.fromkeys(re.sub(r"^(__main__\.py|mmard)(?=\s|$)", "mmard", line) for line in said))


def environment(about: Subject) -> Section:
    """What every process ran on."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in about.runs:
        for place in [*run.environments, *(record.get("environment") or {} for record in [*run.scores, *run.findings])]:
            if place:
                names = rows.setdefault(_row(place), [])
                if run.name not in names:
                    names.append(run.name)
    table = [(names[0] if len(names) == 1 else _several(names, about), *row) for row, names in sorted(rows.items())]
    head = ("runs", "mmard", "Python", "packages", "machine", "threads")
    pieces: list[object] = (
        [TableBlock(head, table, "", NO_NUMBERS)] if table else [Note("No run has noted its environment.")]
    )
    dirty = sorted({name for row, names in rows.items() if "+dirty" in row[0] for name in names})
    if dirty:
        pieces.append(Note(f"Made from a checkout with changes that no commit has: {listed(dirty)}."))
    return Section("environment", "Environment", "Of training and of every evaluation.", pieces)


def _several(names: list[str], about: Subject) -> str:
    return f"all {len(names)} runs" if len(names) == len(about.runs) else ", ".join(names)


def _row(place: Record) -> tuple[str, ...]:
    commit = str(place.get("commit") or "")
    head, dirty, _ = commit.partition("+")
    version = f"{place.get('mmard', '?')}" + (f", commit {head[:10]}{'+dirty' * bool(dirty)}" if commit else "")
    versions = ", ".join(f"{name} {version}" for name, version in (place.get("versions") or {}).items() if version)
    gpus = ", ".join(place.get("gpus") or [])
    machine = f"{place.get('platform', '?')}, {place.get('cpu', '?')}, {place.get('cores', '?')} cores"
    return (
        version,
        str(place.get("python", "?")),
        versions,
        f"{machine}{', ' * bool(gpus)}{gpus}",
        str(place.get("threads", "?")),
    )


def files(about: Subject) -> Section:
    """All files of all runs with their hashes."""
    pieces = [
        Folded(
            f"{run.name}: {plural(len(rows), 'file')}",
            [TableBlock(("file", "size", "SHA-256"), rows, "", 1)],
        )
        for run in about.runs
        if (rows := _files(run))
    ]
    lead = (
        "What this page was read from. The hash of a file is that of its bytes; records name weights by their tensors."
    )
    return Section("files", "Files", lead, pieces)


def _files(run: Shown) -> list[tuple[str, str, str]]:
    rows = []
    for file in sorted(run.run.path.rglob("*")):
        name = file.relative_to(run.run.path)
        if not file.is_file() or any(part.startswith(".") for part in name.parts) or PAGES.fullmatch(file.name):
            continue
        rows.append((name.as_posix(), size(file.stat().st_size), _hash(file)))
    return rows


def _hash(file: Path) -> str:
    try:
        if file.stat().st_size > HASHED:
            return "not hashed, over 64 MB"
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return "gone while this page was written"


# settings -------------------------------------------------------------------------------------------------------------
# All settings of all runs, those in which they differ first.


ABSENT = "\N{EN DASH}"


def settings_section(about: Subject) -> Section:
    """A row for every setting; a column for every group."""
    flat = {run.name: _flat(run.config) for run in about.runs}
    keys = list(dict.fromkeys(key for config in flat.values() for key in config))
    values = {key: {name: _text(config, key) for name, config in flat.items()} for key in keys}
    differ = [key for key in keys if len(set(values[key].values())) > 1]
    # That one kind of run lacks a setting which the other leaves open is no difference.
    differ = [key for key in differ if set(values[key].values()) != {ABSENT, setting(key, None)}]
    pieces: list[object] = []
    if not about.single:
        head = ("setting", *(group.name for group in about.groups))
        rows = [(key, *(_of_group(group, values[key]) for group in about.groups)) for key in differ]
        if rows:
            pieces.append(TableBlock(head, rows, "Where runs differ", NO_NUMBERS))
        else:
            pieces.append(Note("The runs have the same settings."))
    same = [key for key in keys if len(set(values[key].values())) == 1]
    describe = {name: field.description or "" for name, field in Settings.model_fields.items()}
    first = about.runs[0].name
    table = TableBlock(
        ("setting", "value", "what it is"),
        [(key, values[key][first], _code(describe.get(key, ""))) for key in same],
        "",
        NO_NUMBERS,
    )
    if same:
        pieces.append(table if about.single else Folded("What all runs share", [table]))
    return Section("settings", "Settings", "Every setting, defaults included, as config.json has it.", pieces)


def _code(sentence: str) -> Markup:
    """A sentence with what stands in backticks as code.

    >>> _code("see `mmard methods` & more")
    Markup('see <code>mmard methods</code> &amp; more')
    """
    parts = sentence.split("`")
    return Markup("").join(Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(parts))


def _flat(config: Record) -> Record:
    """Parameters of methods under their full names, beside the settings."""
    return {key: value for key, value in config.items() if key != "params"} | dict(config.get("params") or {})


def _text(config: Record, key: str) -> str:
    return setting(key, config[key]) if key in config else ABSENT


def _of_group(group: Group, values: dict[str, str]) -> str:
    return ", ".join(dict.fromkeys(values[run.name] for run in group.runs))


# subject matter -------------------------------------------------------------------------------------------------------
# What was run: what all runs share, and a card for each group with its two formulas.


def subject_matter_section(about: Subject) -> Section:
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
    if network := config.get("network"):
        told.append(("student" if config.get("teachers") else "network", str(network)))
    if config.get("teachers"):
        teacher = teachers_text(config["teachers"])
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
