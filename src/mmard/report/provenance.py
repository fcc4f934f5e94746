"""Where the figures come from: commands, versions, hardware, files and their hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from mmard.errors import Refused
from mmard.methods import compose
from mmard.report.runs import ReportedRun, ReportedRuns, RunGroup, listed, quoted, setting, size
from mmard.report.section import Section
from mmard.settings import Settings, command_of, teachers_text
from mmard.tables.records import Record
from mmard.tables.table import Entry, Table
from mmard.words import plural, printable

HASHED = 64_000_000
"""Bytes up to which a file is hashed; what weights were measured is in the records at any size."""
PAGES = re.compile(r"report.*\.html")


def reproduce(report: ReportedRuns) -> Section:
    """Commands, as they were typed."""
    parts = []
    for run in report.runs:
        made = _commands(run.environments)
        measured = _commands([record.get("environment") or {} for record in _by_time([*run.scores, *run.findings])])
        lines = [*made, *(line for line in measured if line not in made)]
        if lines:
            parts.append(Section(f"{run.name}, as it was made", commands=lines))
    trained = [run for run in report.runs if run.trained][:1]
    again = [f"mmard {command_of(run.config)} --config {quoted(run)} --out runs/again" for run in trained]
    parts += [Section("Any run again, from its settings alone", commands=again)] if again else []
    sentence = (
        "On a CPU with the same number of threads and the same versions, a run trained again has the same weights,"
        " bit for bit, and an attack with the same seed and batch size gives the same verdicts."
    )
    return Section("How to reproduce", "reproduce", [sentence], parts=parts, folded=True)


def _by_time(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: str((record.get("environment") or {}).get("written", "")))


def _commands(environments: list[Record]) -> list[str]:
    said = [str(each["command"]) for each in environments if each.get("command")]
    return list(dict.fromkeys(re.sub(r"^(__main__\.py|mmard)(?=\s|$)", "mmard", line) for line in said))


def environment(report: ReportedRuns) -> Section:
    """What every process ran on."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in report.runs:
        for place in [*run.environments, *(record.get("environment") or {} for record in [*run.scores, *run.findings])]:
            if place:
                names = rows.setdefault(_row(place), [])
                if run.name not in names:
                    names.append(run.name)
    table = [(names[0] if len(names) == 1 else _several(names, report), *row) for row, names in sorted(rows.items())]
    head = ("runs", "mmard", "Python", "packages", "machine", "threads")
    sentences = ["Of training and of every evaluation." if table else "No run has noted its environment."]
    dirty = sorted({name for row, names in rows.items() if "+dirty" in row[0] for name in names})
    sentences += [f"Made from a checkout with changes that no commit has: {listed(dirty)}."] if dirty else []
    tables = [Table(head, table, words=len(head))] if table else []
    return Section("Environment", "environment", sentences, tables=tables, folded=True)


def _several(names: list[str], report: ReportedRuns) -> str:
    return f"all {len(names)} runs" if len(names) == len(report.runs) else ", ".join(names)


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


def files(report: ReportedRuns) -> Section:
    """All files of all runs with their hashes."""
    heads = ("file", "size", "SHA-256")
    parts = [
        Section(
            f"{run.name}: {plural(len(rows), 'file')}",
            tables=[Table(heads, rows, words=3)],
            folded=len(report.runs) > 1,
        )
        for run in report.runs
        if (rows := _files(run))
    ]
    sentence = (
        "What this page was read from. The hash of a file is that of its bytes; records name weights by their tensors."
    )
    return Section("Files", "files", [sentence], parts=parts, folded=True)


def _files(run: ReportedRun) -> list[tuple[str, str, str]]:
    rows = []
    root = Path(run.folder)
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
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


ABSENT = "\N{EN DASH}"


def settings_section(report: ReportedRuns) -> Section:
    """A row for every setting; a column for every group."""
    flat = {run.name: _flat(run.config) for run in report.runs}
    keys = list(dict.fromkeys(key for config in flat.values() for key in config))
    values = {key: {name: _text(config, key) for name, config in flat.items()} for key in keys}
    differ = [key for key in keys if len(set(values[key].values())) > 1]
    # That one kind of run lacks a setting which the other leaves open is no difference.
    differ = [key for key in differ if set(values[key].values()) != {ABSENT, setting(key, None)}]
    sentences = ["Every setting, defaults included, as config.json has it."]
    tables = []
    if not report.single and differ:
        head = ("setting", *(group.name for group in report.groups))
        rows = [(key, *(_of_group(group, values[key]) for group in report.groups)) for key in differ]
        tables.append(Table(head, rows, "Where runs differ", len(head)))
    sentences += ["The runs have the same settings."] if not report.single and not differ else []
    same = [key for key in keys if len(set(values[key].values())) == 1]
    describe = {name: field.description or "" for name, field in Settings.model_fields.items()}
    first = report.runs[0].name
    shared = [(key, values[key][first], _code(describe.get(key, ""))) for key in same]
    if shared:
        caption = "" if report.single else "What all runs share"
        tables.append(Table(("setting", "value", "what it is"), shared, caption, 3))
    return Section("Settings", "settings", sentences, tables=tables, folded=True)


def _code(sentence: str) -> Entry:
    """A sentence with what stands in backticks as code.

    >>> _code("see `mmard methods` & more").markup
    Markup('see <code>mmard methods</code> &amp; more')
    """
    parts = [
        Markup("<code>{}</code>" if i % 2 else "{}").format(part)
        for i, part in enumerate(printable(sentence).split("`"))
    ]
    return Entry(sentence, markup=Markup("").join(parts))


def _flat(config: Record) -> Record:
    """Parameters of methods under their full names, beside the settings."""
    return {key: value for key, value in config.items() if key != "params"} | dict(config.get("params") or {})


def _text(config: Record, key: str) -> str:
    return setting(key, config[key]) if key in config else ABSENT


def _of_group(group: RunGroup, values: dict[str, str]) -> str:
    return ", ".join(dict.fromkeys(values[run.name] for run in group.runs))


def runs_section(report: ReportedRuns) -> Section:
    """What all runs share, and each group with its two formulas."""
    own = [dict(_facts(group.first.config)) for group in report.groups]
    shared = {key: value for key, value in own[0].items() if all(each.get(key) == value for each in own)}
    parts = []
    for group, facts in zip(report.groups, own, strict=True):
        rest = {key: value for key, value in facts.items() if key not in shared}
        parts.append(Section(group.name, tables=[_fact_table(_group_facts(group, rest))], index=group.index))
    tables = [_fact_table(list(shared.items()))] if shared else []
    return Section("What was run", "what", report.left_out, tables=tables, parts=parts)


def _fact_table(facts: Sequence[tuple[str, str | Entry]]) -> Table:
    return Table(("what", "how"), facts, words=2, kind="pairs")


def _group_facts(group: RunGroup, facts: Record) -> list[tuple[str, str | Entry]]:
    config = group.first.config
    pairs: list[tuple[str, str | Entry]] = []
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
        pairs.append(("runs", "; ".join(lines)))
    return pairs


def _formula(text: str) -> Entry:
    return Entry(text, markup=Markup('<span class="formula">{}</span>').format(printable(text)))


def _formulas(config: Record) -> tuple[str, str, str] | None:
    """The two formulas as the method says them, and its source; None for what no name builds."""
    if not config.get("method"):
        return None
    try:
        made = compose(str(config["method"]), config.get("inner"), config.get("outer"), config.get("params") or {})
    except Refused:
        return None
    return (*made.says, made.source)


def _facts(config: Record) -> list[tuple[str, str]]:
    """What a run was, in the words of its settings."""
    facts: list[tuple[str, str]] = []
    if network := config.get("network"):
        facts.append(("student" if config.get("teachers") else "network", str(network)))
    if config.get("teachers"):
        teacher = teachers_text(config["teachers"])
        which = f", {config['teacher_which']} weights" if config.get("teacher_which") else ""
        facts.append(("teacher", f"{teacher}{which}"))
    if config.get("data"):
        limit = config.get("limit_train")
        share = f"; {limit:,} images train" if isinstance(limit, int) else ""
        augment = f", augmentation {config['augment']}" if config.get("augment") else ""
        facts.append(("data", f"{config['data']}{share}{augment}"))
    if config.get("eps") is not None:
        facts.append(("budget", f"{config.get('norm', 'linf')} {setting('eps', config['eps'])}, inputs in [0, 1]"))
    if config.get("steps") is not None and config.get("eps") is not None:
        step = config.get("step_size") or float(config["eps"]) / 4
        start = f", {config['start']} start" if config.get("start") else ""
        facts.append(
            ("training attack", f"{plural(int(config['steps']), 'step')} of {setting('step_size', step)}{start}")
        )
    if config.get("epochs") is not None:
        facts.append(
            (
                "recipe",
                f"{plural(int(config['epochs']), 'epoch')}, batch {config.get('batch_size')}, lr "
                f"{setting('lr', config.get('lr'))} {config.get('schedule')}, weight decay "
                f"{setting('', config.get('weight_decay'))}",
            )
        )
    if config.get("val_attack"):
        facts.append(("best weights", f"chosen on validation images under {config['val_attack']}"))
    if config.get("preset"):
        facts.append(("preset", str(config["preset"])))
    return facts
