"""Records of cells: what one must hold, verdicts as text, texts without paths, and files of records.

A file has one line of JSON for each cell, sorted by name, so that a version control shows what a cell changed:

    checked(value, where)      a record, or a refusal that says what it lacks
    collect(runs)              records of the finished cells below a folder
    read(file), write(file)    records by cell, from a file and into it, whole or not at all
    merged(old, new)           both, and what is new and what has changed
"""

from __future__ import annotations

import json
import os
import shlex
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmard.errors import Refused, require
from mmard.files import parse_json, read_json, write_text
from mmard.settings import refusal_of
from mmard.study.grid import Name

FORMAT = 1
RECORD = "cell.json"
NOT_REPEATED = frozenset(("seconds", "environment", "device", "settings"))
"""What is another each time that a cell is made, at whatever depth of a record; and the settings, by which it is made
and to which later versions add."""

Record = dict[str, Any]


class _Form(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


class _Figure(_Form):
    accuracy: float
    label: str
    n: int = Field(ge=1)
    correct: int = Field(ge=0)
    right: str = ""

    @model_validator(mode="after")
    def _agrees(self) -> _Figure:
        """The accuracy, the count and the verdicts of a figure say the same."""
        counted = f"{self.correct} of {self.n} images"
        require(abs(self.accuracy - self.correct / self.n) < 1e-9, "", expected=counted, got=self.accuracy)
        if self.right:
            right = int(unpacked(self.right, self.n).sum())
            require(right == self.correct, "", expected=counted, got=f"{right} by its verdicts")
        return self


class _Environment(_Form):
    written: str
    threads: int = Field(ge=1)


class _Record(_Form):
    """What whoever reads a record relies on; docs/studies.md lists all keys."""

    format: Literal[1]
    cell: Name
    scale: str
    seed: int
    role: str
    teachers: dict[str, Name]
    settings: dict[str, Any]
    attacks: list[str]
    test_images: int = Field(ge=0)
    test_from: int = Field(0, ge=0)
    figures: dict[Literal["last", "best"], dict[str, _Figure]]
    suspicious: dict[str, list[str]] = {}
    boundary: dict[str, Any] | None
    weights: dict[str, str]
    parameters: int
    seconds: dict[str, float | None]
    epochs: int
    train_images: int
    device: str
    environment: _Environment


def checked(record: Any, where: str, name: str = "") -> Record:
    """A record that has what a record must have, of the cell of this name if one is given.

    Raises:
        Refused: in one line that names what is missing, of another kind, or contradicts itself.
    """
    if not isinstance(record, dict) or "cell" not in record:
        raise Refused(where, expected="the record of a cell", got=type(record).__name__)
    if record.get("format") != FORMAT:
        mend = "it was written by another version of mmard"
        raise Refused(where, expected=f"format {FORMAT}", got=repr(record.get("format")), mend=mend)
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        refusal = refusal_of(error, f"{where}, {'.'.join(map(str, first['loc']))}")
        got = refusal.got if len(refusal.got) <= 60 else f"{refusal.got[:57]}..."
        raise Refused(refusal.where, expected=refusal.expected, got=got) from None
    require(name in ("", record["cell"]), where, expected=f"the record of {name}", got=record["cell"])
    return record


def packed(mask: NDArray[np.bool_]) -> str:
    """Verdicts (n,) as text.

    >>> packed(np.array([True, False, True])), unpacked(packed(np.array([True, False, True])), 3)
    ('oA==', array([ True, False,  True]))
    """
    return b64encode(np.packbits(mask).tobytes()).decode()


def unpacked(text: str, n: int) -> NDArray[np.bool_]:
    """Verdicts (n,) out of a figure's "right".

    Raises:
        Refused: for a text that does not hold so many.
    """
    try:
        bits = np.frombuffer(b64decode(text, validate=True), np.uint8)
    except ValueError as error:
        raise Refused("right", expected="verdicts in base64", got=str(error)) from None
    require(len(bits) == -(-n // 8), "right", expected=f"verdicts on {n} images", got=f"{len(bits)} bytes")
    return np.unpackbits(bits, count=n).astype(bool)


def scrubbed(command: str) -> str:
    """A command line in which every absolute path is its last name alone.

    >>> scrubbed("mmard study run all --runs /home/me/runs/S --data-dir=/data/cifar10 --jobs 2")
    'mmard study run all --runs S --data-dir=cifar10 --jobs 2'
    """
    words = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        bare = Path(value).name if value.startswith((os.sep, "~")) else value
        words.append(option + equals + bare)
    if words and words[0] == "__main__.py":
        words[0] = "mmard"
    return shlex.join(words)


def without_paths(value: Any, folders: Iterable[str | Path | None]) -> Any:
    """A JSON value in which no string names one of these folders, the home folder or the working folder.

    >>> without_paths({"got": ["file /data/x/y.bin"]}, ["/data/x"])
    {'got': ['file x/y.bin']}
    """
    named = {str(Path(folder)) for folder in (*folders, Path.cwd(), Path.home()) if folder is not None}
    absolute = {str(Path(each).resolve()) for each in named} | named
    longest = sorted((each for each in absolute if len(Path(each).parts) > 1), key=len, reverse=True)

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(each) for key, each in value.items()}
        if isinstance(value, list):
            return [replaced(each) for each in value]
        for folder in longest if isinstance(value, str) else ():
            value = value.replace(folder, Path(folder).name)
        return value

    return replaced(value)


def collect(runs: str | Path, cells: Iterable[str] | None = None) -> dict[str, Record]:
    """Records of the finished cells below a folder, or of those of them that are asked for."""
    files = Path(runs).glob(f"*/{RECORD}") if cells is None else (Path(runs) / name / RECORD for name in cells)
    found = [checked(read_json(file), str(file)) for file in files if file.is_file()]
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
        record = checked(parse_json(text, where), where)
        found[record["cell"]] = record
    return found


def write(path: str | Path, records: Mapping[str, Record]) -> None:
    """Write records, one a line, by name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(each, ensure_ascii=False, allow_nan=False) + "\n" for each in _sorted(records).values()]
    write_text(path, "".join(lines))


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
