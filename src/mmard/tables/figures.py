"""The figures of a run, and the columns that they may stand in: one attack, one budget, one protocol, the same images.

Two figures are comparable if the attack with its settings, the norm, the radius, the split, the number of images and
the hash of images and labels agree, and for a transferred attack the weights that it was made on. The attack's own seed
and batch size decide its random starts: where they differ between runs the figures share a column, and a note says so;
where one run has figures of several, each has a column of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmard.attacks import attack_settings, attack_title
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.evaluation.score import Z_95, Mask, wilson
from mmard.run import Run
from mmard.tables.records import Record, findings_of, outgrown, present, scores_of, verdicts_of, written

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
        return verdicts_of(file) if file.is_file() else None


def figures_of(run: Run, seed: int) -> tuple[list[Figure], list[str]]:
    """All figures of a run on its present weights, and a line on those that were made on earlier ones.

    "best" weights change while a run goes on: figures on what was best before belong to another network.
    """
    findings = findings_of(run)
    suspicious = _suspicious(findings)
    files = sorted(run.scores.glob("*.json"))
    made = list(zip(files, scores_of(run), strict=True))
    kept, stale = present(run, [record for _, record in made])
    figures = [
        Figure(run.path, seed, record, file, suspicious.get(str(record["weights"]), ()))
        for file, record in made
        if any(record is each for each in kept)
    ]
    figures += [each for figure in figures for each in _of_classes(figure, findings)]
    return figures, [f"{run.path}: {outgrown(stale, 'figure')}, left out"] if stale else []


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
