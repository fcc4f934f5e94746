"""Records of cells: collected from run folders, kept in one file, and a cell made again from its record alone.

The file has one line of JSON for each cell, sorted by name, so that a version control shows what a cell changed:

    collect(runs)              records of the finished cells below a folder
    read(file), write(file)    records by cell, from a file and into it, whole or not at all
    merged(old, new)           both, and what is new and what has changed
    repeat(cell, records, ...) trained and measured again, its teachers first, and every difference
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmard.errors import Refused, unknown
from mmard.files import parse_json, read_json, write_text
from mmard.settings import Settings
from mmard.study.cell import FORMAT, RECORD, OnProgress, Site, make
from mmard.study.grid import Cell, added

Record = dict[str, Any]
NOT_REPEATED = frozenset(("seconds", "environment", "device", "settings"))
"""What is another each time that a cell is made, at whatever depth of a record; and the settings, by which it is made
and to which later versions add."""


# files ----------------------------------------------------------------------------------------------------------------
def collect(runs: str | Path, cells: Iterable[str] | None = None) -> dict[str, Record]:
    """Records of the finished cells below a folder, or of those of them that are asked for."""
    files = Path(runs).glob(f"*/{RECORD}") if cells is None else (Path(runs) / name / RECORD for name in cells)
    found = [_checked(read_json(file), str(file)) for file in files if file.is_file()]
    return _sorted({record["cell"]: record for record in found})


def read(path: str | Path) -> dict[str, Record]:
    """Records by cell, from a file that `write` wrote.

    Raises:
        Refused: if there is no such file, or a line of it is no record.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        mend, got = "mmard study records writes one", str(getattr(error, "strerror", None) or error)
        raise Refused(str(path), expected="a file of records", got=got, mend=mend) from None
    found = {}
    for number, text in enumerate(lines, 1):
        where = f"{path}, line {number}"
        record = _checked(parse_json(text, where), where)
        found[record["cell"]] = record
    return found


def write(path: str | Path, records: Mapping[str, Record]) -> None:
    """Write records, one a line, by name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(each, ensure_ascii=False, allow_nan=False) + "\n" for each in _sorted(records).values()]
    write_text(path, "".join(lines))


def _checked(record: Any, where: str) -> Record:
    if not isinstance(record, dict) or "cell" not in record:
        raise Refused(where, expected="the record of a cell", got=type(record).__name__)
    if record.get("format") != FORMAT:
        mend = "it was written by another version of mmard"
        raise Refused(where, expected=f"format {FORMAT}", got=repr(record.get("format")), mend=mend)
    return record


def _sorted(records: Mapping[str, Record]) -> dict[str, Record]:
    return {name: records[name] for name in sorted(records)}


@dataclass(frozen=True)
class Merged:
    """Records of two sites.

    Attributes:
        records: of both; of a cell that is in both, the one that holds more, or else the later one.
        added: cells that only the new ones have.
        changed: cells of which the new one says something else about the same.
    """

    records: dict[str, Record]
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def merged(old: Mapping[str, Record], new: Mapping[str, Record]) -> Merged:
    """Old records with new ones among them."""
    records, changed = dict(old), []
    for name, record in new.items():
        held = old.get(name)
        if held is None:
            records[name] = record
            continue
        # A part that one of them lacks is no contradiction.
        both = [key for key in held if held[key] is not None and record.get(key) is not None]
        if mismatches({key: held[key] for key in both}, {key: record[key] for key in both}):
            changed.append(name)
            later = record["environment"]["written"] >= held["environment"]["written"]
            records[name] = record if later else held
        elif _filled(record) > _filled(held):
            records[name] = record
    return Merged(_sorted(records), tuple(sorted(new.keys() - old.keys())), tuple(sorted(changed)))


def _filled(record: Record) -> int:
    return sum(value is not None for value in record.values())


# again ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mismatch:
    """A part of two records that is not the same.

    Attributes:
        where: its keys, joined by dots.
        recorded, again: what the two say.
    """

    where: str
    recorded: Any
    again: Any


def mismatches(recorded: Any, again: Any, where: str = "") -> list[Mismatch]:
    """What two records of a cell say that is not the same to the bit; times and machines do not count.

    >>> mismatches({"seconds": 1, "figures": {"n": 5}}, {"seconds": 2, "figures": {"n": 6}})
    [Mismatch(where='figures.n', recorded=5, again=6)]
    """
    if isinstance(recorded, dict) and isinstance(again, dict):
        keys = [key for key in {**recorded, **again} if key not in NOT_REPEATED]
        return [d for key in keys for d in mismatches(recorded.get(key), again.get(key), f"{where}.{key}".strip("."))]
    return [] if recorded == again else [Mismatch(where, recorded, again)]


def cell_of(record: Record) -> Cell:
    """The cell that a record is of.

    Raises:
        Refused: if this version does not know one of its settings.
    """
    said = {**added(), **record["settings"]}
    named = {part for key in ("method", "inner", "outer") for part in (said[key] or "").split("+")}
    younger = {key: said.pop(key) for key in added() if "." in key}
    said["params"] = {**{key: v for key, v in younger.items() if key.split(".")[0] in named}, **said["params"]}
    return Cell(
        record["cell"],
        Settings.resolve(said),
        dict(record["teachers"]),
        record["role"],
        record["scale"],
        tuple(record["attacks"]),
        record["test_images"],
        # A cell whose boundary was not asked for has none to compare.
        record["boundary"] is not None,
        record.get("test_from", 0),
    )


@dataclass(frozen=True)
class Repeated:
    """A cell that was made again.

    Attributes:
        recorded, again: the two records.
        mismatches: what is not the same.
        teachers: the same of its teachers, by cell; where those differ, the cell cannot be the same.
    """

    recorded: Record
    again: Record
    mismatches: list[Mismatch]
    teachers: dict[str, list[Mismatch]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every figure and all weights are the same to the bit."""
        return not self.mismatches


def repeat(
    name: str, records: Mapping[str, Record], site: Site, progress: OnProgress = lambda stage, share: None
) -> Repeated:
    """Train and measure a recorded cell again; its teachers first, unless they are there already.

    Args:
        name: of the cell.
        records: that hold it and its teachers.
        site: a folder where the cell was not made yet. Cells take as many threads as they took then.
        progress: called with how far the cell is.

    Raises:
        Refused: for a cell without a record, or a folder that holds the very run that the record is of.
    """
    for needed in (name, *_teachers(name, records)):
        if needed not in records:
            raise unknown("cell", needed, records)
    made: dict[str, Record] = {}
    for each in (*reversed(_teachers(name, records)), name):
        recorded = records[each]
        held = site.record(each)
        if each == name and held is not None and held["environment"] == recorded["environment"]:
            mend = "choose another --runs"
            raise Refused(str(site.runs), expected="a folder where this cell was not made", got=each, mend=mend)
        with site.lock(each):
            here = replace(site, threads=recorded["environment"]["threads"])
            made[each] = make(cell_of(recorded), here, progress)
    compared = {each: mismatches(records[each], again) for each, again in made.items()}
    return Repeated(records[name], made[name], compared.pop(name), compared)


def _teachers(name: str, records: Mapping[str, Record]) -> list[str]:
    """Cells that a cell needs, the nearest first."""
    found: list[str] = []
    asked = [name]
    while asked:
        for teacher in records.get(asked.pop(0), {}).get("teachers", {}).values():
            if teacher in found:
                found.remove(teacher)
            found.append(teacher)
            asked.append(teacher)
    return found
