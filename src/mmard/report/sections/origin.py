"""Where the figures come from: commands, versions, hardware, files and their hashes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mmard.report.pieces import NO_NUMBERS, Commands, Folded, Note, Section, Table
from mmard.report.subject import Record, Shown, Subject
from mmard.report.words import listed, quoted, size
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
        again = [
            f"mmard {'distill' if 'student' in run.config else 'train'} --config {quoted(run)} --out runs/again"
            for run in trained[:1]
        ]
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
        [Table(head, table, "", NO_NUMBERS)] if table else [Note("No run has noted its environment.")]
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
            [Table(("file", "size", "SHA-256"), rows, "", 1)],
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
