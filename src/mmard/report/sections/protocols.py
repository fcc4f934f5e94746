"""Which of a run's findings are shown: those that can stand beside the other runs', and how each was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmard.report.columns import ORDER
from mmard.report.pieces import Note
from mmard.report.subject import Record, Shown, Subject
from mmard.report.words import protocol

TRAINING = "training"
"""The attack that each run was trained with: one protocol, though methods spell it in their own way."""

Key = tuple[str, ...]


def key_of(record: Record) -> Key:
    """What two findings must share to be compared."""
    label = "" if record["attack"] == TRAINING else record["label"]
    parts = (record["attack"], label, record["norm"], record["eps"], record["which"], record["split"], record["n"])
    return tuple(str(part) for part in (*parts, record["data"], record["seed"]))


def _severity(record: Record) -> int:
    """Where an attack stands from the plain to the severe; the training's own comes before all."""
    attack = str(record["attack"])
    return next((i for i, begin in enumerate(ORDER) if attack.startswith(begin)), -1)


class Chosen:
    """The findings of one kind that are shown first, one for each run: by the protocol that most runs have.

    Args:
        about: the runs.
        kinds: kinds of findings that are shown together.
        usable: which of them will do; all if not given.

    Attributes:
        several: whether those shown first were made by several protocols after all.
    """

    def __init__(self, about: Subject, *kinds: str, usable: Callable[[Record], bool] | None = None) -> None:
        self.runs = about.runs
        self._found = {
            (run.name, kind): [found for found in run.found(kind) if usable is None or usable(found)]
            for run in about.runs
            for kind in kinds
        }
        self.kind = kinds[0]
        held: dict[Key, list[Record]] = {}
        for records in self._found.values():
            for record in records:
                held.setdefault(key_of(record), []).append(record)
        self.keys = sorted(held, key=lambda key: (key[0] == TRAINING, -len(held[key]), -_severity(held[key][0]), key))
        first = [shown for kind in kinds for run in about.runs if (shown := self.of(run, kind)) is not None]
        self.told = list(dict.fromkeys(protocol(record) for record in first))
        self.several = len({key_of(record) for record in first}) > 1

    def all(self, run: Shown, kind: str = "") -> list[Record]:
        """The findings of a run, the one to show first at the front."""
        own = self._found[run.name, kind or self.kind]
        return sorted(own, key=lambda record: self.keys.index(key_of(record)))

    def of(self, run: Shown, kind: str = "") -> Record | None:
        """The finding of a run that is shown first."""
        return next(iter(self.all(run, kind)), None)

    def having(self, kind: str = "") -> list[Shown]:
        """The runs that have one."""
        return [run for run in self.runs if self.all(run, kind)]

    def by_protocol(self) -> list[list[tuple[Shown, Record]]]:
        """All findings, those of one protocol together."""
        made = [
            [(run, record) for run in self.runs for record in self.all(run) if key_of(record) == key]
            for key in self.keys
        ]
        return [rows for rows in made if rows]

    def beside(self, record: Record) -> str:
        """What to say beside one finding: its protocol, where others have another."""
        return f"{protocol(record)}." if self.several else ""

    def below(self, what: str) -> list[Note]:
        """What to say once for all: the protocol, or that there are several."""
        if self.several:
            return [Note(f"{what}: by several protocols, said beside each figure; do not compare across them.")]
        return [Note(f"{what}: {told}.") for told in self.told[:1]]


def named(records: Sequence[Record]) -> Callable[[Record], str]:
    """A short name for the protocol of each: the attack's, or all of it where that would not tell them apart."""
    by_name: dict[str, set[Key]] = {}
    for record in records:
        by_name.setdefault(_short(record), set()).add(key_of(record))
    return lambda record: _short(record) if len(by_name[_short(record)]) == 1 else protocol(record)


def _short(record: Record) -> str:
    label = str(record.get("label") or "no attack")
    if record["attack"] == TRAINING:
        return "the training's own attack"
    return label if str(record["attack"]).startswith(("aa", "worst")) else label.partition(" (")[0]
