"""All settings of all runs, those in which they differ first."""

from __future__ import annotations

from markupsafe import Markup

from mmard.config import DistillSettings, TrainSettings
from mmard.report.pieces import NO_NUMBERS, Folded, Note, Section, Table
from mmard.report.subject import Group, Record, Subject
from mmard.report.words import setting

ABSENT = "\N{EN DASH}"


def section(about: Subject) -> Section:
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
            pieces.append(Table(head, rows, "Where runs differ", NO_NUMBERS))
        else:
            pieces.append(Note("The runs have the same settings."))
    same = [key for key in keys if len(set(values[key].values())) == 1]
    describe = {
        name: field.description or ""
        for kind in (TrainSettings, DistillSettings)
        for name, field in kind.model_fields.items()
    }
    first = about.runs[0].name
    table = Table(
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
