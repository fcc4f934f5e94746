"""A cell made again from its record alone, and what the two records say of each other.

    repeat(cell, records, site)    trained and measured again, its teachers first
    Repeated.verdict               bit-equal, within the spread of seeds, or different

A CPU of another kind, another build of PyTorch or another number of threads adds in another order. Training magnifies
that rounding until the weights are others, as those of another seed are. So where bits differ, accuracies are held
beside those of the same cell over all recorded seeds: `SeedSpread` has the rule.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmard.errors import Refused, require, unknown
from mmard.settings import Settings
from mmard.study.cell import Site, make
from mmard.study.grid import Cell, added, cell_name
from mmard.study.records import Mismatch, Record, mismatches
from mmard.tables.statistics import LEVEL, t_at

MEASURED = ("figures", "weights", "curve", "boundary", "suspicious", "best_epoch")
"""Parts of a record that follow from the weights; what else differs, rounding does not explain."""
COUNTED = ("accuracy", "correct", "right")
"""Of a figure, what follows from the weights."""
ROUNDING = 1e-12
JUDGED = ("clean", "robust")
FEWEST = 3
"""Seeds below which their spread is not known."""


def cell_of(record: Record) -> Cell:
    """The cell that a record is of.

    Raises:
        Refused: if this version does not know one of its settings.
    """
    said = {**added(), **record["settings"]}
    named = {part for key in ("method", "inner", "outer") for part in (said.get(key) or "").split("+")}
    younger = {key: said.pop(key) for key in added() if "." in key}
    said["params"] = {**{key: v for key, v in younger.items() if key.split(".")[0] in named}, **said.get("params", {})}
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
class SeedSpread:
    """An accuracy made again, beside those of the same cell over the seeds that are recorded.

    A further seed lies in [low, high] with probability 1 - 0.05 / (how many accuracies are judged), so that all of them
    do with 95 %: mean -/+ t deviation sqrt(1 + 1 / seeds), by Student's t with seeds - 1 degrees of freedom.

    Attributes:
        which, figure: of which weights, and "clean" or "robust".
        again: what was measured now.
        low, high: the interval.
        seeds: how many are in it, that of the recorded cell among them.
    """

    which: str
    figure: str
    again: float
    low: float
    high: float
    seeds: int

    @property
    def holds(self) -> bool:
        """Whether it lies within."""
        return self.low <= self.again <= self.high


@dataclass(frozen=True)
class Repeated:
    """A cell that was made again.

    Attributes:
        recorded, again: the two records.
        mismatches: what is not the same.
        teachers: the same of its teachers, by cell; where those differ, the cell cannot be the same.
        spread: of its accuracies; empty where fewer than `FEWEST` seeds are recorded.
    """

    recorded: Record
    again: Record
    mismatches: list[Mismatch]
    teachers: dict[str, list[Mismatch]] = field(default_factory=dict)
    spread: list[SeedSpread] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether every figure and all weights are the same to the bit."""
        return not self.mismatches

    @property
    def unexplained(self) -> list[Mismatch]:
        """What differs and does not follow from the weights: other data, other attacks, another length."""
        return [each for each in self.mismatches if not _follows(each.where.split("."))]

    @property
    def verdict(self) -> Literal["bit-equal", "within the spread of seeds", "different"]:
        """What the two records are to each other."""
        if self.same:
            return "bit-equal"
        within = self.spread and all(each.holds for each in self.spread) and not self.unexplained
        return "within the spread of seeds" if within else "different"

    @property
    def facts(self) -> dict[str, tuple[Any, Any]]:
        """What of the machine and the program was another: (then, now) by name; None for what was not recorded."""
        kernels = [each["environment"].get("kernels") or {} for each in (self.recorded, self.again)]
        then, now = self.recorded["environment"] | kernels[0], self.again["environment"] | kernels[1]
        names = (
            "mmard",
            "commit",
            "python",
            "versions",
            "platform",
            "cpu",
            "threads",
            "gpus",
            *kernels[0],
            *kernels[1],
        )
        found = {name: (then.get(name), now.get(name)) for name in names}
        found["device"] = self.recorded["device"], self.again["device"]
        return {name: both for name, both in found.items() if both[0] != both[1]}


def _follows(keys: Sequence[str]) -> bool:
    """Whether a part of a record follows from the weights; a figure that one of the records lacks does not."""
    return keys[0] in MEASURED and (keys[0] != "figures" or keys[-1] in COUNTED)


def repeat(
    name: str,
    records: Mapping[str, Record],
    site: Site,
    progress: Callable[[str, float], None] = lambda stage, share: None,
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
    made: dict[str, Record] = {}
    for each in dict.fromkeys(_in_order(name, records)):
        recorded = records[each]
        held = site.record(each)
        if each == name and held is not None and held["environment"] == recorded["environment"]:
            mend = "choose another --runs"
            raise Refused(str(site.runs), expected="a folder where this cell was not made", got=each, mend=mend)
        with site.lock(each):
            here = replace(site, threads=recorded["environment"]["threads"])
            made[each] = make(cell_of(recorded), here, progress)
    compared = {each: mismatches(records[each], again) for each, again in made.items()}
    differ = compared.pop(name)
    spread = spread_of(made[name], list(over_seeds(name, records).values())) if differ else []
    return Repeated(records[name], made[name], differ, compared, spread)


def _in_order(name: str, records: Mapping[str, Record], taught: tuple[str, ...] = ()) -> Iterator[str]:
    """The teachers that a cell needs, each before what it teaches, and the cell.

    Raises:
        Refused: where one has no record, or they teach each other in a circle.
    """
    if name not in records:
        raise unknown("cell", name, records)
    circle = " taught by ".join((*taught, name))
    require(name not in taught, f"cell {name}", expected="teachers that were there before it", got=circle)
    for teacher in records[name]["teachers"].values():
        yield from _in_order(teacher, records, (*taught, name))
    yield name


def over_seeds(name: str, records: Mapping[str, Record]) -> dict[int, Record]:
    """Records of a cell and of those that differ from it in their seed alone, by seed."""

    def but_for_seed(record: Record) -> tuple[Any, ...]:
        cell = cell_of(record)
        alike = cell_name(cell.settings.model_copy(update={"seed": 0}), cell.settings.network, cell.teachers, cell.role)
        return alike, cell.attacks, cell.images, cell.first, record["data"], record["train_data"]

    mine = records[name]
    network = mine["parameters"], mine["role"], mine["settings"].get("method")
    alike = [r for r in records.values() if (r["parameters"], r["role"], r["settings"].get("method")) == network]
    return {record["seed"]: record for record in alike if but_for_seed(record) == but_for_seed(mine)}


def spread_of(again: Record, seeds: Sequence[Record]) -> list[SeedSpread]:
    """Clean and robust accuracy of both weights, made again, beside those over seeds; none for fewer than `FEWEST`."""
    if len(seeds) < FEWEST:
        return []
    judged = [(which, name) for which in again["figures"] for name in JUDGED]
    found = []
    for which, name in judged:
        values = [record["figures"][which][name]["accuracy"] for record in seeds]
        mean, n = statistics.fmean(values), len(values)
        reach = t_at(LEVEL / len(judged), n - 1) * statistics.stdev(values) * math.sqrt(1 + 1 / n) + ROUNDING
        found.append(SeedSpread(which, name, again["figures"][which][name]["accuracy"], mean - reach, mean + reach, n))
    return found
