"""The figures of a run as its folder has them, and the columns that they may stand in.

    scores_of(run), findings_of(run)    records, each held against what a record must be and against its own verdicts
    present(run, records)               those on the weights that the folder holds now
    figures_of(run, seed)               the same as figures, each with the seed that trained what was measured
    columns_of(figures)                 which figures may stand under each other

What reads a run folder goes through here: a run that was measured early and trained on has no early figures as its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmard.balls import NORMS, Budget
from mmard.errors import Refused, require
from mmard.evaluation.score import Z_95, Mask, wilson
from mmard.evaluation.spellings import attack_settings, attack_title
from mmard.files import load_tensors, read_json, tensors_hash
from mmard.run import Run

Record = dict[str, Any]

# records --------------------------------------------------------------------------------------------------------------
_NUMBER = (int, float)
_HEAD: dict[str, Any] = {"which": str, "split": str, "n": int, "weights": str, "seed": int}
SCORE = _HEAD | {
    "data": str, "images": str, "batch_size": int, "attack": str, "label": str, "correct": int, "accuracy": _NUMBER,
    "interval": list, "norm": (str, type(None)), "eps": (*_NUMBER, type(None)),
}  # fmt: skip
"""What every record of an accuracy has, by type."""
FINDINGS: dict[str, dict[str, Any]] = {
    "checks": {"findings": list},
    "curve": {"over": str, "points": list},
    "classes": {"classes": list, "count": list, "clean": list, "attacked": list},
    "margins": {"edges": list, "clean": list, "attacked": list},
    "calibration": {"clean": list, "attacked": list},
    "boundary": {"clean": dict, "attacked": dict, "histograms": dict, "teacher": str},
    "examples": {"items": list, "classes": list},
}
"""What a finding of each kind has beside its head, by type."""
_ITEMS: dict[tuple[str, str], dict[str, Any]] = {
    ("checks", "findings"): {"check": str, "verdict": str, "says": str},
    ("curve", "points"): {"value": _NUMBER, "correct": int, "n": int},
    ("calibration", "clean"): {"n": int},
    ("calibration", "attacked"): {"n": int},
    ("examples", "items"): {"true": int, "adv_pred": int, "clean_pred": int},
}
_SAVED = re.compile(r"(best|last)[A-Za-z0-9-]*")
"""Names of weights that a run saves; other records name a file of somebody else."""


def scores_of(run: Run) -> list[Record]:
    """All records of accuracies, by file name.

    Raises:
        Refused: for a record that lacks something, contradicts itself, or contradicts the verdicts beside it.
    """
    return [_score(file) for file in sorted(run.scores.glob("*.json"))]


def findings_of(run: Run) -> list[Record]:
    """All findings, by file name, each with its "slug".

    Raises:
        Refused: for one that lacks something.
    """
    return [_finding(file) | {"slug": file.stem} for file in sorted(run.findings_folder.glob("*.json"))]


def present(run: Run, records: Sequence[Record], among: Sequence[Record] = ()) -> tuple[list[Record], int]:
    """The records on the weights that the folder holds now, and how many are on others.

    Where the weights themselves are gone, as from a published run, those are meant that were measured last.

    Args:
        among: more records that say which weights were measured last.
    """
    latest = {str(r["which"]): str(r["weights"]) for r in sorted([*among, *records], key=written)}
    held = {which: _hash_of(run, which) or weights for which, weights in latest.items()}
    kept = [record for record in records if held[str(record["which"])] == record["weights"]]
    return kept, len(records) - len(kept)


def written(record: Mapping[str, Any]) -> str:
    """When a record was made, as text that sorts."""
    return str((record.get("environment") or {}).get("written", ""))


def _score(file: Path) -> Record:
    record = _typed(file, read_json(file), SCORE)
    n, correct, eps = record["n"], record["correct"], record["eps"]
    require(n >= 1, f"{file}: n", expected="at least one image", got=n)
    require(0 <= correct <= n, f"{file}: correct", expected=f"0 to {n} images", got=correct)
    require(eps is None or 0 <= eps < float("inf"), f"{file}: eps", expected="a radius", got=eps)
    require(record["norm"] in (None, *NORMS), f"{file}: norm", expected=" or ".join(NORMS), got=record["norm"])
    require((record["norm"] is None) == (eps is None), str(file), expected="a norm and a radius, or neither", got=eps)
    share = record["accuracy"]
    require(abs(share - correct / n) < 1e-6, f"{file}: accuracy", expected=f"{correct} of {n}", got=share)
    low, high = _pair(file, record["interval"])
    require(
        0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1,
        f"{file}: interval",
        expected=f"one around {share:g}",
        got=[low, high],
    )
    verdicts = file.with_suffix(".npy")
    if verdicts.is_file():
        mask = _mask(verdicts)
        told = f"{int(mask.sum())} of {mask.size}" if mask.dtype == np.bool_ else f"numbers of type {mask.dtype}"
        whole = mask.dtype == np.bool_ and mask.shape == (n,) and int(mask.sum()) == correct
        require(whole, str(verdicts), expected=f"{correct} of {n} images read rightly, as its record says", got=told)
    return record


def _finding(file: Path) -> Record:
    record = _typed(file, read_json(file), {"kind": str})
    kind = record["kind"]
    require(kind in FINDINGS, f"{file}: kind", expected=" or ".join(FINDINGS), got=kind)
    _typed(file, record, _HEAD | FINDINGS[kind])
    for (of, key), wanted in _ITEMS.items():
        for each in record[key] if of == kind else ():
            _typed(file, each, wanted)
    if kind == "classes":
        lengths = {len(record[key]) for key in FINDINGS["classes"]}
        require(len(lengths) == 1, str(file), expected="as many counts as classes", got=sorted(lengths))
        for key in ("clean", "attacked"):
            fit = all(0 <= right <= n for right, n in zip(record[key], record["count"], strict=True))
            require(fit, f"{file}: {key}", expected="no more right than images of a class", got="more")
    return record


def _typed(file: Path, record: Any, wanted: Mapping[str, Any]) -> Record:
    """A record that has what it must have; true and false are no numbers."""
    require(isinstance(record, dict), str(file), expected="a record, which is an object", got=type(record).__name__)
    for key, kind in wanted.items():
        value = record.get(key)
        fits = key in record and isinstance(value, kind) and not isinstance(value, bool)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(dict.fromkeys("nothing" if k is type(None) else k.__name__ for k in kinds))
        require(fits, f"{file}: {key}", expected=names, got=type(value).__name__ if key in record else "no such entry")
    return dict(record)


def _pair(file: Path, value: list[Any]) -> tuple[float, float]:
    fits = len(value) == 2 and all(isinstance(each, _NUMBER) for each in value)
    require(fits, f"{file}: interval", expected="two numbers", got=value)
    return float(value[0]), float(value[1])


def _mask(file: Path) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Refused(str(file), expected="verdicts, a .npy file", got=str(error)) from None


def _hash_of(run: Run, which: str) -> str | None:
    """Of the tensors that a run has under this name; None where it has none."""
    file = run.weights_file(which)
    if not _SAVED.fullmatch(which) or not file.is_file():
        return None
    stat = file.stat()
    return _hash(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _hash(file: Path, _changed: int, _size: int) -> str:
    return tensors_hash(load_tensors(file)[0])


# figures --------------------------------------------------------------------------------------------------------------
ACCURACY, BALANCED, WORST_CLASS = "accuracy", "balanced", "worst class"
"""What a figure says of verdicts: the share of images, its mean over classes, or that of the class with the least."""


@dataclass(frozen=True)
class Figure:
    """One record, or what the finding of its classes says of the same verdicts.

    Attributes:
        run: the folder.
        seed: of the run's training; the attack's own is in the record.
        record: all of it, as its file has it.
        file: that file.
        suspicious: slugs of the suspicion checks that these weights raised.
        measure: `ACCURACY`, `BALANCED` or `WORST_CLASS`.
        by_class: (images read rightly, images) of each class that has images; needed by the last two.
    """

    run: Path
    seed: int
    record: Mapping[str, Any]
    file: Path
    suspicious: tuple[str, ...] = ()
    measure: str = ACCURACY
    by_class: tuple[tuple[int, int], ...] = ()

    @property
    def attack(self) -> str:
        """Short spelling of the attack."""
        return str(self.record["attack"])

    @property
    def which(self) -> str:
        """The weights that were measured."""
        return str(self.record["which"])

    @property
    def split(self) -> str:
        """The split that its images are of."""
        return str(self.record["split"])

    @property
    def n(self) -> int:
        """Images."""
        return int(self.record["n"])

    @property
    def correct(self) -> int:
        """Images that were read rightly."""
        return int(self.record["correct"])

    @property
    def accuracy(self) -> float:
        """Share of images that were read rightly, or that of classes, as `measure` says."""
        shares = [right / n for right, n in self.by_class]
        if self.measure == BALANCED:
            return sum(shares) / len(shares)
        return min(shares) if self.measure == WORST_CLASS else self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % over the choice of images: by Wilson, of the mean over classes by the variances of their shares."""
        if self.measure == WORST_CLASS:
            return wilson(*min(self.by_class, key=lambda each: each[0] / each[1]))
        if self.measure == BALANCED:
            variances = [right * (n - right) / n**3 for right, n in self.by_class]
            half = Z_95 * math.sqrt(sum(variances)) / len(variances)
            return max(0.0, self.accuracy - half), min(1.0, self.accuracy + half)
        return wilson(self.correct, self.n)

    @property
    def written(self) -> str:
        """When it was measured, as text that sorts."""
        return written(self.record)

    @cached_property
    def mask(self) -> Mask | None:
        """Verdicts (n,), or None if the file is gone, and of classes."""
        if self.measure != ACCURACY:
            return None
        file = self.file.with_suffix(".npy")
        return _mask(file) if file.is_file() else None


def figures_of(run: Run, seed: int) -> tuple[list[Figure], list[str]]:
    """All figures of a run on its present weights, and a line on those that were made on earlier ones.

    "best" weights change while a run goes on: figures on what was best before belong to another network.
    """
    findings = findings_of(run)
    suspicious = _suspicious(findings)
    files = sorted(run.scores.glob("*.json"))
    made = list(zip(files, (_score(file) for file in files), strict=True))
    kept, stale = present(run, [record for _, record in made])
    figures = [
        Figure(run.path, seed, record, file, suspicious.get(str(record["weights"]), ()))
        for file, record in made
        if any(record is each for each in kept)
    ]
    figures += [each for figure in figures for each in _of_classes(figure, findings)]
    return figures, [f"{run.path}: {outgrown(stale, 'figure')}, left out"] if stale else []


def outgrown(stale: int, what: str) -> str:
    """What is said of records on earlier weights."""
    return f"{stale} {what}{'s' * (stale != 1)} of weights that the run has outgrown"


def _of_classes(figure: Figure, findings: Sequence[Record]) -> list[Figure]:
    """What the finding of classes on the same verdicts says: the worst class; the mean where classes are unequal."""
    keys = ["weights", "data", "n", "which", "split"]
    keys += [] if figure.attack == "clean" else ["attack", "label", "norm", "eps", "seed", "batch_size"]
    right = "clean" if figure.attack == "clean" else "attacked"
    for found in findings:
        if found["kind"] == "classes" and all(found.get(key) == figure.record[key] for key in keys):
            counts = tuple((k, n) for k, n in zip(found[right], found["count"], strict=True) if n)
            if sum(k for k, _ in counts) == figure.correct:
                unequal = len({n for _, n in counts}) > 1
                measures = (BALANCED, WORST_CLASS) if unequal else (WORST_CLASS,)
                return [replace(figure, measure=measure, by_class=counts) for measure in measures]
    return []


def _suspicious(findings: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The suspicion checks that were raised, by hash of the weights."""
    raised: dict[str, tuple[str, ...]] = {}
    for record in findings:
        if record["kind"] == "checks":
            slugs = [f["check"] for f in record["findings"] if f["verdict"] == "suspicious"]
            weights = str(record["weights"])
            raised[weights] = tuple(dict.fromkeys((*raised.get(weights, ()), *slugs)))
    return raised


# columns --------------------------------------------------------------------------------------------------------------
# Which figures may stand under each other: one attack, one budget, one protocol, the same images.
#
# Two figures are comparable if the attack's full description, the norm, the radius, the split, the number of images
# and the hash of images and labels agree, and for a transferred attack the weights that it was made on. The attack's
# own seed and batch size decide its random starts: where they differ between runs the figures share a column, and a
# note says so; where one run has figures of several, each has a column of its own.


NOT_RANDOM = ("clean", "fgsm")
SEVERITY = ("clean", "fgsm", "pgd", "cw", "apgd", "fab", "square", "transfer", "aa", "worst")
"""From the plain to the severe, by how the spelling begins: the one order of attacks in tables."""


def severity(attack: str) -> int:
    """Where an attack stands in the order of columns and rows, by its short spelling; what is not in it comes last.

    >>> severity("clean") < severity("pgd-20") < severity("aa") < severity("worst_of_pgd-20,cw-30")
    True
    """
    return next((rank for rank, begin in enumerate(SEVERITY) if attack.startswith(begin)), len(SEVERITY))


Protocol = tuple[str, int, str, str, str, str | None, float | None, tuple[str, str] | None, str]
"""Split, n, data, attack, label, norm, eps, made on, measure."""


@dataclass(frozen=True)
class Column:
    """One protocol.

    Attributes:
        attack: short spelling, e.g. "pgd-20".
        title: short, and different from that of every other column of its sample, e.g. "PGD-20".
        label: the attack in full.
        norm, eps: the budget; None without an attack.
        split, n, data, images: which images, how many, their hash, and a line on where they come from.
        seeds, batch_sizes: of the attacks; several only where runs differ in them.
        made_on: where a transferred attack was made: (source, hash of the weights); None for any other.
        part: the spelling of the ensemble whose verdicts so far this column has; "" for a figure in its own right.
        measure: what its figures say of the verdicts, e.g. `ACCURACY`.
    """

    attack: str
    title: str
    label: str
    norm: str | None
    eps: float | None
    split: str
    n: int
    data: str
    images: str
    seeds: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    made_on: tuple[str, str] | None
    part: str = ""
    measure: str = ACCURACY

    @property
    def budget(self) -> str:
        """E.g. "linf 8/255"; "" without an attack."""
        return "" if self.norm is None or self.eps is None else str(Budget(self.eps, self.norm))

    def holds(self, figure: Figure) -> bool:
        """Whether a figure was made by this protocol."""
        return _protocol(figure) == self._protocol and (
            self.attack in NOT_RANDOM
            or (figure.record["seed"] in self.seeds and figure.record["batch_size"] in self.batch_sizes)
        )

    @property
    def _protocol(self) -> Protocol:
        where = (self.split, self.n, self.data)
        return (*where, self.attack, self.label, self.norm, self.eps, self.made_on, self.measure)


@dataclass(frozen=True)
class Sample:
    """One set of images, and the columns that are on it."""

    split: str
    n: int
    data: str
    images: str
    columns: tuple[int, ...]


def columns_of(
    figures: Sequence[Figure], *, parts: bool, strict: bool
) -> tuple[tuple[Column, ...], tuple[Sample, ...], list[str]]:
    """The columns that these figures need, by sample, and notes on what differs inside of them.

    Args:
        parts: keep columns of the verdicts after each attack of an ensemble.
        strict: refuse several protocols of one attack.

    Raises:
        Refused: if `strict` and there are.
    """
    made, notes = _columns(figures)
    if not parts:
        made = [column for column in made if not column.part]
    if strict:
        _refuse_several(made)
    sizes: dict[tuple[str, int, str], int] = {}
    for figure in figures:
        if figure.measure == ACCURACY and (parts or not _part(figure.attack, figures)):
            key = (figure.split, figure.n, str(figure.record["data"]))
            sizes[key] = sizes.get(key, 0) + 1
    ordered: list[Column] = []
    samples = []
    for split, n, data in sorted(sizes, key=lambda key: (-sizes[key], -key[1], key)):
        here = sorted((c for c in made if (c.split, c.n, c.data) == (split, n, data)), key=_rank)
        if here:
            first = len(ordered)
            ordered += _titled(here)
            samples.append(Sample(split, n, data, here[0].images, tuple(range(first, len(ordered)))))
    return tuple(ordered), tuple(samples), notes


def _protocol(figure: Figure) -> Protocol:
    record = figure.record
    weights = record.get("made_on_weights")
    made_on = (str(record["made_on"]), str(weights)) if weights else None
    attack, label = figure.attack, str(record["label"])
    where = (figure.split, figure.n, str(record["data"]))
    return (*where, attack, label, record["norm"], record["eps"], made_on, figure.measure)


def _columns(figures: Sequence[Figure]) -> tuple[list[Column], list[str]]:
    by_protocol: dict[Protocol, list[Figure]] = {}
    for figure in figures:
        by_protocol.setdefault(_protocol(figure), []).append(figure)
    made, notes = [], []
    for (split, n, data, attack, label, norm, eps, made_on, measure), own in by_protocol.items():
        images = str(own[0].record["images"])
        column = Column(attack, "", label, norm, eps, split, n, data, images, (), (), made_on)
        column = replace(column, part=_part(attack, figures), measure=measure)
        draws: dict[tuple[int, int], set[tuple[str, str]]] = {}
        for figure in own:
            draw = (int(figure.record["seed"]), int(figure.record["batch_size"]))
            draws.setdefault(draw, set()).add((str(figure.run), figure.which))
        of_a_row = [who for whose in draws.values() for who in whose]
        apart = len(of_a_row) > len(set(of_a_row)) and attack not in NOT_RANDOM
        for together in [[draw] for draw in draws] if apart else [list(draws)]:
            seeds = tuple(sorted({seed for seed, _ in together}))
            sizes = tuple(sorted({size for _, size in together}))
            made.append(replace(column, seeds=seeds, batch_sizes=sizes))
            if len(together) > 1 and attack not in NOT_RANDOM and measure == ACCURACY:
                differ = [f"seeds {_listed(seeds)}"] if len(seeds) > 1 else []
                differ += [f"batch sizes {_listed(sizes)}"] if len(sizes) > 1 else []
                notes.append(f"{attack} on {n:,} images: runs were attacked with different {' and '.join(differ)}")
    return made, notes


def _part(attack: str, figures: Sequence[Figure]) -> str:
    whole, dot, _ = attack.partition(".")
    return whole if dot and any(figure.attack == whole for figure in figures) else ""


def _refuse_several(columns: Sequence[Column]) -> None:
    by_attack: dict[str, list[Column]] = {}
    for column in columns:
        if column.measure == ACCURACY:
            by_attack.setdefault(column.attack, []).append(column)
    for attack, several in by_attack.items():
        if len(several) > 1:
            facts = [_facts(column) for column in several]
            telling = [key for key in facts[0] if len({fact.get(key) for fact in facts}) > 1]
            got = " and ".join(", ".join(f"{key} {fact[key]}" for key in telling) for fact in facts)
            mend = "measure alike, or choose by attack, split or number of images"
            raise Refused(f"figures under {attack}", expected="one protocol", got=got, mend=mend)


def _facts(column: Column) -> dict[str, str]:
    return {
        "attack": column.label,
        "budget": column.budget,
        "split": column.split,
        "n": f"{column.n:,}",
        "data": column.data[:8],
        "attack seed": _listed(column.seeds),
        "batch size": _listed(column.batch_sizes),
        "made on": column.made_on[1][:8] if column.made_on else "",
    }


def _rank(column: Column) -> tuple[object, ...]:
    return (
        severity(column.part or column.attack),
        column.norm or "",
        column.eps or 0.0,
        not column.part,
        column.attack,
        column.seeds,
        (ACCURACY, BALANCED, WORST_CLASS).index(column.measure),
    )


def _titled(columns: Sequence[Column]) -> list[Column]:
    """With short titles; where two would be alike, with what tells them apart, if need be the whole label."""
    plain = [(_title(column), column.measure) for column in columns]
    several_budgets = len({column.budget for column in columns if column.budget}) > 1
    titles = []
    for title, column in zip(plain, columns, strict=True):
        like = [other for other, theirs in zip(columns, plain, strict=True) if theirs == title]
        shared = set.intersection(*(set(_details(other)) for other in like))
        more = [detail for detail in _details(column) if detail not in shared]
        if several_budgets and column.budget and column.budget not in more:
            more.insert(0, column.budget)
        titles.append((", ".join([title[0], *more]), column.measure))
    titled = []
    for title, column in zip(titles, columns, strict=True):
        name = column.label if titles.count(title) > 1 else title[0]
        titled.append(replace(column, title=name if column.measure == ACCURACY else f"{name}: {column.measure}"))
    return titled


def _title(column: Column) -> str:
    """As the spelling of the attack says; the label of an attack that has its own settings."""
    name = attack_title(column.attack) or column.label
    return f"{name} made on {column.made_on[0].partition(' (')[0]}" if column.made_on else name


def _details(column: Column) -> list[str]:
    details = [*attack_settings(column.attack, column.eps), *([column.budget] if column.budget else [])]
    if column.attack not in NOT_RANDOM:
        details += [f"attack seed {_listed(column.seeds)}", f"batch {_listed(column.batch_sizes)}"]
    if column.made_on:
        details.append(f"{column.made_on[0]}, {column.made_on[1][:8]}")
    return details


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
