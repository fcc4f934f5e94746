"""One table over runs: a row for each configuration and checkpoint, a column for each protocol.

    comparison(runs)  ->  Comparison
        rows       a configuration (runs that differ in their seed alone) with its best or its last weights
        samples    the sets of images that figures are on; each is a table of its own, with its columns
        columns    one attack with one budget and one protocol on one sample; never two protocols in one column
        cells      mean, standard deviation over seeds, interval, and the figures that they are made of
        refused    what was left out, and why; notes: what a reader must know

It computes from records and masks alone; `paper.py` writes it down, the command line and the report show it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmard.errors import Refused, unknown
from mmard.run import Run
from mmard.tables.configurations import Configuration, configurations, differing
from mmard.tables.figures import ACCURACY, Column, Figure, Sample, columns_of, figures_of
from mmard.tables.statistics import Difference, deviation, difference, mean_interval


@dataclass(frozen=True)
class ComparisonRow:
    """One configuration with its best or its last weights.

    Attributes:
        configuration: the runs.
        which: "best" or "last" (or the file that was measured).
        name: that of the configuration, with `which` where the table has both.
    """

    configuration: Configuration
    which: str
    name: str


@dataclass(frozen=True)
class Accuracy:
    """The figures of one row under one protocol.

    Attributes:
        mean: of the accuracies over seeds, a share in [0, 1].
        deviation: standard deviation over seeds (n - 1 in the denominator); None for one seed.
        interval: 95 %: of one figure by Wilson over images, of several by Student's t over seeds.
        figures: one for each seed, by seed.
        best: whether it is better than every other row of the same network and `which` by more than the noise over
            images and over seeds, both of which must be known.
        suspicious: slugs of the suspicion checks that these weights raised; see docs/checks.md.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float]
    figures: tuple[Figure, ...]
    best: bool = False
    suspicious: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of training that it has figures of."""
        return tuple(figure.seed for figure in self.figures)


@dataclass(frozen=True)
class Comparison:
    """A table over runs. Rows, columns and cells are in the order in which they are to be shown.

    Attributes:
        rows: see `ComparisonRow`.
        samples: the sets of images, those with the most figures first; `sample.columns` are indices into `columns`.
        columns: see `figures.Column`.
        cells: by (index of the row, index of the column); absent where nothing was measured.
        reference: index of the configuration that the others are compared with, in `rows`; None for none.
        differences: by (row, column): the row minus the reference with the same `which`; see `statistics.Difference`.
        refused: what was left out of the table, a line each.
        notes: what a reader of the table must know, a line each.
        settings: settings beside the method in which rows differ: setting -> name of the configuration -> value.
    """

    rows: tuple[ComparisonRow, ...]
    samples: tuple[Sample, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[int, int], Accuracy]
    reference: str | None = None
    differences: dict[tuple[int, int], Difference] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: dict[str, dict[str, str]] = field(default_factory=dict)

    def seeds(self, sample: Sample) -> list[int]:
        """The seeds of training behind a table, in order."""
        return sorted({seed for (_, c), cell in self.cells.items() if c in sample.columns for seed in cell.seeds})

    def most_seeds(self, sample: Sample) -> int:
        """The largest number of seeds behind one of its cells: 1 if nothing is said about seeds."""
        return max((len(cell.seeds) for (_, c), cell in self.cells.items() if c in sample.columns), default=0)

    def rows_of(self, sample: Sample) -> list[int]:
        """Indices of the rows that have a figure on these images."""
        return [r for r in range(len(self.rows)) if any((r, c) in self.cells for c in sample.columns)]


def comparison(
    runs: Sequence[Run | Path | str],
    *,
    attacks: Sequence[str] = (),
    which: Sequence[str] = (),
    n: int | None = None,
    split: str | None = None,
    against: str | None = None,
    parts: bool = False,
    strict: bool = False,
) -> Comparison:
    """Read the records of runs and set them side by side.

    Args:
        runs: run folders.
        attacks: short spellings to keep, e.g. ["clean", "aa"]; all if empty.
        which: "best" and/or "last"; all if empty.
        n, split: keep figures on so many images of this split alone.
        against: the row that the others are compared with: its name, its method, or one of its run folders.
        parts: also the figures after each attack of an ensemble.
        strict: refuse where figures of one attack were made by several protocols, rather than give each a column.

    Raises:
        Refused: if no run has a record that is asked for; for an unknown reference; if `strict`, for two protocols.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if not opened:
        raise Refused("compare", expected="run folders", got="none")
    found, refused = configurations(opened)
    figures: list[Figure] = []
    for each in found:
        for path, seed in zip(each.runs, each.seeds, strict=True):
            own, left_out = figures_of(Run.open(path), seed)
            figures += own
            refused += left_out
    if not figures:
        mend = f"mmard evaluate {opened[0].path}"
        raise Refused(
            "compare",
            expected="runs with records",
            got="; ".join(refused) or "runs that were never evaluated",
            mend=mend,
        )
    kept = [
        figure
        for figure in figures
        if (not attacks or figure.attack in attacks)
        and (not which or figure.which in which)
        and n in (None, figure.n)
        and split in (None, figure.split)
    ]
    if not kept:
        known = sorted({figure.attack for figure in figures})
        missing = [attack for attack in attacks if attack not in known]
        if missing:
            raise unknown("attack", missing[0], known)
        raise Refused("compare", expected="records with this split, n and which", got="none of them")
    columns, samples, notes = columns_of(kept, parts=parts or bool(attacks), strict=strict)
    rows = _rows(found, kept)
    cells, repeated = _once(_cells(rows, columns, kept))
    made = Comparison(
        rows=rows,
        samples=samples,
        columns=columns,
        cells=_with_best(rows, columns, cells),
        refused=(*refused, *repeated),
        notes=(*notes, *_notes(rows, columns, cells)),
        settings=differing(found),
    )
    return made if against is None else _against(made, against)


def _rows(found: Sequence[Configuration], figures: Sequence[Figure]) -> tuple[ComparisonRow, ...]:
    order = {"best": 0, "last": 1}
    # A network that was not trained here has one checkpoint, which its name says.
    several = {"best", "last"} <= {figure.which for figure in figures}
    rows = []
    for each in found:
        own = {figure.which for figure in figures if figure.run in each.runs}
        for which in sorted(own, key=lambda w: (order.get(w, 2), w)):
            rows.append(
                ComparisonRow(each, which, f"{each.name} ({which})" if several and which in order else each.name)
            )
    return tuple(rows)


def _cells(
    rows: Sequence[ComparisonRow], columns: Sequence[Column], figures: Sequence[Figure]
) -> dict[tuple[int, int], list[Figure]]:
    """Figures by cell."""
    cells: dict[tuple[int, int], list[Figure]] = {}
    for r, row in enumerate(rows):
        own = [f for f in figures if f.run in row.configuration.runs and f.which == row.which]
        for c, column in enumerate(columns):
            inside = sorted((f for f in own if column.holds(f)), key=lambda f: (f.seed, f.written))
            if inside:
                cells[r, c] = inside
    return cells


def _once(cells: dict[tuple[int, int], list[Figure]]) -> tuple[dict[tuple[int, int], Accuracy], list[str]]:
    """One figure for each seed: the latest where the same was measured twice."""
    made, refused = {}, []
    for where, figures in cells.items():
        latest = {figure.seed: figure for figure in figures}
        for figure in figures:
            if figure.measure == ACCURACY and figure.correct != latest[figure.seed].correct:
                text = f"{figure.attack} measured again on {figure.n:,} images with another result"
                refused.append(f"{figure.run}: {text}; the earlier one is left out")
        values = [figure.accuracy for figure in latest.values()]
        one = next(iter(latest.values()))
        made[where] = Accuracy(
            mean=statistics.fmean(values),
            deviation=deviation(values),
            # Seeds that agree to the image say nothing of their spread; what is known is that over images.
            interval=mean_interval(values) or one.interval,
            figures=tuple(latest.values()),
            suspicious=tuple(dict.fromkeys(mark for figure in latest.values() for mark in figure.suspicious)),
        )
    return made, refused


def _difference(ours: Accuracy, theirs: Accuracy) -> Difference:
    masks = [{f.seed: f.mask for f in cell.figures if f.mask is not None} for cell in (ours, theirs)]
    return difference({f.seed: f.accuracy for f in ours.figures}, {f.seed: f.accuracy for f in theirs.figures}, *masks)


def _with_best(
    rows: Sequence[ComparisonRow], columns: Sequence[Column], cells: dict[tuple[int, int], Accuracy]
) -> dict[tuple[int, int], Accuracy]:
    """Mark the cell that leads its rivals clearly: rows of the same network and checkpoint, in one column."""
    marked = dict(cells)
    kinds = [(row.configuration.network, row.which) for row in rows]
    for c in range(len(columns)):
        for kind in dict.fromkeys(kinds):
            rivals = [r for r in range(len(rows)) if kinds[r] == kind and (r, c) in cells]
            if len(rivals) < 2:
                continue
            lead = max(rivals, key=lambda r: cells[r, c].mean)
            gaps = [_difference(cells[lead, c], cells[r, c]) for r in rivals if r != lead]
            if all(gap.mean > 0 and gap.clear for gap in gaps):
                marked[lead, c] = replace(cells[lead, c], best=True)
    return marked


def _against(made: Comparison, name: str) -> Comparison:
    """With the differences from one configuration."""
    reference = _named(name, [row.configuration for row in made.rows])
    differences = {}
    for (r, c), cell in made.cells.items():
        for other, row in enumerate(made.rows):
            same = row.configuration is reference and row.which == made.rows[r].which
            if same and other != r and (other, c) in made.cells:
                differences[r, c] = _difference(cell, made.cells[other, c])
    return replace(made, reference=reference.name, differences=differences)


def _named(name: str, found: Iterable[Configuration]) -> Configuration:
    each = list({id(configuration): configuration for configuration in found}.values())
    ways = (
        lambda c: c.name == name,
        lambda c: name in {path.name for path in c.runs} or Path(name) in c.runs,
        lambda c: c.method == name,
    )
    for way in ways:
        matches = [configuration for configuration in each if way(configuration)]
        if len(matches) == 1:
            return matches[0]
    raise unknown("row", name, [configuration.name for configuration in each])


def _notes(
    rows: Sequence[ComparisonRow], columns: Sequence[Column], cells: dict[tuple[int, int], Accuracy]
) -> list[str]:
    notes = []
    for r, row in enumerate(rows):
        absent: dict[str, list[str]] = {}
        for c, column in enumerate(columns):
            cell = cells.get((r, c))
            if cell is not None and column.measure == ACCURACY and cell.seeds != row.configuration.seeds:
                gone = ", ".join(str(seed) for seed in row.configuration.seeds if seed not in cell.seeds)
                absent.setdefault(gone, []).append(f"{column.title} (n = {column.n:,})")
        notes += [f"{row.name}: no figure of seed {gone} under {'; '.join(titles)}" for gone, titles in absent.items()]
    if any(column.split == "val" for column in columns):
        notes.append("figures on validation images chose the best weights and flatter them")
    return notes
