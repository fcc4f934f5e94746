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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmard.errors import Refused, unknown
from mmard.run import Run
from mmard.settings import TAUGHT, Settings, teachers_text
from mmard.tables.figures import ACCURACY, Column, Figure, Sample, columns_of, figures_of
from mmard.tables.statistics import Difference, deviation, difference, mean_interval
from mmard.words import as_fraction

# configurations -------------------------------------------------------------------------------------------------------
# Run folders that differ in their seed alone are one configuration; how configurations are told apart, and named.


NO_MATTER = frozenset({"seed", "preset", "data_dir", "on_disk", "device", "threads", "save_seconds", "tensorboard"})
"""Settings by which runs may differ and still be repetitions of each other. What a preset says stands in the others."""
NAMED_BY = ("method", "inner", "outer", "network")
"""Settings that a row's name begins with; `Configuration.method` and `.network` have them."""
RADII = ("eps", "step_size")


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed alone.

    Attributes:
        name: short, and different from that of every other configuration beside it.
        method: with plug-ins, e.g. "trades"; "" for a network that was not trained here.
        network: the name of the network.
        settings: what the runs share, parameters of methods under their full names; what does not matter is left out.
        runs: their folders, by seed.
        seeds: their seeds of training, in the same order.
    """

    name: str
    method: str
    network: str
    settings: Mapping[str, Any]
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]


def configurations(runs: Sequence[Run]) -> tuple[list[Configuration], list[str]]:
    """Group runs, in the order in which their configurations first occur.

    Students of several seeds whose teacher was trained for each seed anew (teacher-0, teacher-1, ...) are repetitions
    as well: the teacher then counts as a part of what is repeated.

    Returns:
        The configurations, and a line for each run that is left out because another one repeats it to the seed.
    """
    groups: dict[str, list[tuple[Run, int]]] = {}
    shared: dict[str, dict[str, Any]] = {}
    refused = []
    configs = [run.config for run in runs]
    own_teacher = _teachers_by_seed(configs)
    for run, config, own in zip(runs, configs, own_teacher, strict=True):
        settings = _settings(config, own)
        key = repr(sorted(settings.items()))
        seed = int(config.get("seed", 0))
        twin = next((other for other, theirs in groups.get(key, []) if theirs == seed), None)
        if twin is not None:
            if twin.path.resolve() != run.path.resolve():
                refused.append(f"{run.path}: has the settings and the seed of {twin.path}, and is left out")
            continue
        shared.setdefault(key, settings)
        groups.setdefault(key, []).append((run, seed))
    names = _names([shared[key] for key in groups], [found[0][0] for found in groups.values()])
    made = []
    for name, (key, found) in zip(names, groups.items(), strict=True):
        ordered = sorted(found, key=lambda pair: pair[1])
        paths, seeds = tuple(run.path for run, _ in ordered), tuple(seed for _, seed in ordered)
        settings = shared[key]
        made.append(Configuration(name, _method(settings), _network(settings), settings, paths, seeds))
    return made, refused


def differing(found: Sequence[Configuration]) -> dict[str, dict[str, str]]:
    """Settings beside the method in which configurations differ: setting -> name of the configuration -> value."""
    keys = dict.fromkeys(key for each in found for key in each.settings)
    rest: dict[str, dict[str, str]] = {}
    for key in keys:
        # A parameter belongs to a method, which the rows name; teachers are what students alone have.
        with_it = [each for each in found if key in each.settings]
        values = {each.name: shown(key, each.settings[key]) for each in with_it}
        if key not in NAMED_BY and "." not in key and len(set(values.values())) > 1:
            rest[key] = values
    return rest


def shown(key: str, value: Any) -> str:
    """A setting's value as people read it."""
    if key == "teachers":
        return teachers_text(value)
    if key in RADII and isinstance(value, float):
        return as_fraction(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={shown(name, each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(shown("", each) for each in value)
    return "none" if value is None else str(value)


def _settings(config: Mapping[str, Any], own_teacher: bool) -> dict[str, Any]:
    """What matters of a config, flat; settings that a config is too old to know have their default."""
    trained = "method" in config
    usual = {name: field.default for name, field in Settings.model_fields.items()}
    whole = {**(_plain(usual) if trained else {}), **_plain(config)}
    nobody = NO_MATTER | {"params"} | (TAUGHT if not whole.get("teachers") else set())
    found = {key: value for key, value in whole.items() if key not in nobody}
    found |= dict(whole.get("params") or {})
    if trained and found.get("step_size") is None and isinstance(found.get("eps"), float):
        found["step_size"] = found["eps"] / 4
    if own_teacher:
        (teacher,) = config["teachers"]["T"]
        found["teachers"] = {"T": [teacher.removesuffix(str(config["seed"])) + "<seed>"]}
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: no tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _teachers_by_seed(configs: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether a run's teacher bears the run's own seed, and teaches no other run of the same settings."""
    ends = [
        "seed" in c
        and len(t := c.get("teachers") or {}) == len(t.get("T", ())) == 1
        and t["T"][0].endswith(f"-{c['seed']}")
        for c in configs
    ]
    with_whom = [repr(sorted(_settings(config, False).items())) for config in configs]
    taught: dict[str, int] = {}
    for settings in with_whom:
        taught[settings] = taught.get(settings, 0) + 1
    return [end and taught[settings] == 1 for end, settings in zip(ends, with_whom, strict=True)]


def _method(settings: Mapping[str, Any]) -> str:
    halves = [f"{half} {settings[half]}" for half in ("inner", "outer") if settings.get(half)]
    return ", ".join(halves) if len(halves) == 2 else ", ".join([str(settings.get("method", "")), *halves])


def _network(settings: Mapping[str, Any]) -> str:
    return str(settings.get("network") or "")


def _names(found: Sequence[Mapping[str, Any]], first: Sequence[Run]) -> list[str]:
    """The method; the network where there are several; then whatever else tells a row from others of that name."""
    one_network = len({_network(settings) for settings in found}) == 1
    plain = []
    for settings, run in zip(found, first, strict=True):
        parts = [_method(settings), "" if one_network and _method(settings) else _network(settings)]
        plain.append(" on ".join(part for part in parts if part) or run.path.name)
    names = []
    for name, settings in zip(plain, found, strict=True):
        like = [other for other, theirs in zip(found, plain, strict=True) if theirs == name]
        keys = dict.fromkeys(key for other in like for key in other if key not in NAMED_BY)
        telling = [key for key in keys if len({repr(other.get(key)) for other in like}) > 1]
        values = [f"{key} {shown(key, settings[key])}" for key in telling if key in settings]
        names.append(", ".join([name, *values]))
    return names


# comparison -----------------------------------------------------------------------------------------------------------


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
        columns: see `columns.Column`.
        cells: by (index of the row, index of the column); absent where nothing was measured.
        reference: index of the configuration that the others are compared with, in `rows`; None for none.
        differences: by (row, column): the row minus the reference with the same `which`; see `spread.Difference`.
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
