"""What a report is about: runs as their folders have them, set into groups that differ in their seed alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mmard.attacks import attack_title
from mmard.errors import Refused
from mmard.files import read_json
from mmard.run import Run, terms_of
from mmard.tables.configurations import configurations, shown
from mmard.tables.figures import severity
from mmard.tables.records import Record, findings_of, outgrown, present, scores_of, written
from mmard.words import as_fraction


@dataclass(frozen=True)
class ReportedRun:
    """A run, read once.

    Attributes:
        run: its folder; None for records that have none.
        name: the folder's name, with its parents' where two would be alike.
        folder: as the caller wrote it, for commands.
        group: index of its group.
        config, environments, events, scores, findings: what its files hold.
        left_out: lines on findings of weights that the run has outgrown.
    """

    run: Run | None
    name: str
    folder: str
    group: int
    config: Record
    environments: list[Record]
    events: list[Record]
    scores: list[Record]
    findings: list[Record]
    left_out: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.config.get("seed", 0))

    @property
    def trained(self) -> bool:
        """Whether it was trained here, rather than measured alone."""
        return "method" in self.config

    @cached_property
    def epochs(self) -> list[Record]:
        """The events at the ends of epochs."""
        return [event for event in self.events if event.get("kind") == "epoch"]

    @cached_property
    def steps(self) -> list[Record]:
        """The events within epochs."""
        return [event for event in self.events if event.get("kind") == "step"]

    @property
    def terms(self) -> list[str]:
        """Terms of its loss by name, as they were first logged."""
        source = self.epochs or self.steps
        return list(dict.fromkeys(key for event in source for key in terms_of(event)))

    @property
    def wanted_epochs(self) -> int | None:
        """Epochs that it is to have, if its settings say so."""
        epochs = self.config.get("epochs")
        return int(epochs) if isinstance(epochs, int | float) else None

    @property
    def finished(self) -> bool:
        """Whether its training is over."""
        if not self.trained:
            return True
        last = self.epochs[-1]["epoch"] if self.epochs else 0
        return self.wanted_epochs is not None and last >= self.wanted_epochs

    @property
    def progress(self) -> str:
        """How far it is, in words.

        E.g. "finished, 14 epochs", "7 of 14 epochs so far".
        """
        last = self.epochs[-1]["epoch"] if self.epochs else 0
        if not self.trained:
            return "not trained here"
        if self.finished:
            return f"finished, {last} epoch" + "s" * (last != 1)
        return f"unfinished: {last} of {self.wanted_epochs or '?'} epochs so far"

    def arrays(self, found: Record) -> Mapping[str, NDArray[Any]]:
        """The arrays of a finding; none where there is no folder."""
        return {} if self.run is None or "slug" not in found else self.run.finding_arrays(str(found["slug"]))

    def found(self, kind: str, **where: Any) -> list[Record]:
        """Its findings of a kind, those on the best weights first."""
        own = [f for f in self.findings if f["kind"] == kind and all(f.get(k) == v for k, v in where.items())]
        return sorted(own, key=lambda f: (f["which"] != "best", str(f["which"]), -int(f["n"])))


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed alone.

    Attributes:
        index: decides its colour, dash and marker.
        name: different from that of every other group.
        short: the same for plots, without the network if that is not needed to tell groups apart.
        runs: by seed.
    """

    index: int
    name: str
    short: str
    runs: tuple[ReportedRun, ...]

    @property
    def first(self) -> ReportedRun:
        """The run that stands for the others where one must."""
        return self.runs[0]


@dataclass(frozen=True)
class ReportedRuns:
    """All that a report is report.

    Attributes:
        groups: in the order in which their runs were given.
        left_out: a line on each thing that is not shown, and why.
    """

    groups: tuple[RunGroup, ...]
    left_out: tuple[str, ...] = field(default=())

    @property
    def runs(self) -> list[ReportedRun]:
        """All runs, by group."""
        return [run for group in self.groups for run in group.runs]

    @property
    def single(self) -> bool:
        """Whether there is one run alone."""
        return len(self.runs) == 1

    @property
    def seeds(self) -> int:
        """The largest number of seeds of one group."""
        return max(len(group.runs) for group in self.groups)


def read_runs(paths: Sequence[str | Path]) -> ReportedRuns:
    """Read runs from their folders.

    Raises:
        Refused: if a folder holds no run, or a file in it cannot be read.
    """
    if not paths:
        raise Refused("report", expected="run folders", got="none", mend="mmard report runs/a runs/b")
    runs = [Run.open(path) for path in paths]
    found, left_out = configurations(runs)
    if not found:
        raise Refused("report", expected="runs", got="none that can be shown")
    names = _names([run.path for run in runs])
    shorter = [each.name.replace(f" on {each.network}", "") for each in found]
    short = shorter if len(set(shorter)) == len(shorter) else [each.name for each in found]
    groups = []
    for index, each in enumerate(found):
        own = tuple(_shown(Run.open(path), names[path], index) for path in each.runs)
        groups.append(RunGroup(index, each.name, short[index], own))
    stale = [line for group in groups for run in group.runs for line in run.left_out]
    return ReportedRuns(tuple(groups), (*left_out, *stale))


def of_records(name: str, findings: Sequence[Record]) -> ReportedRuns:
    """Findings that were just made, as those of one run without a folder."""
    run = ReportedRun(None, name, name, 0, {}, [], [], [], list(findings))
    return ReportedRuns((RunGroup(0, name, name, (run,)),))


def _shown(run: Run, name: str, group: int) -> ReportedRun:
    environments = run.path / "environment.json"
    every = scores_of(run)
    scores, early = present(run, every)
    found, stale = present(run, findings_of(run), every)
    texts = [f"{name}: {outgrown(n, what)}, not shown" for n, what in ((early, "figure"), (stale, "finding")) if n]
    return ReportedRun(
        run=run,
        name=name,
        folder=str(run.path),
        group=group,
        config=run.config,
        environments=read_json(environments) if environments.is_file() else [],
        events=_events(run),
        scores=scores,
        findings=_once(found),
        left_out=tuple(texts),
    )


def _events(run: Run) -> list[Record]:
    """The log; of a published run the lines of its epochs, which is all that was kept."""
    if not run.log_file.exists() and (run.path / "epochs.jsonl").is_file():
        published = Run(run.path)
        published.log_file = run.path / "epochs.jsonl"
        return published.log()
    return run.log()


def _once(findings: Sequence[Record]) -> list[Record]:
    """The latest where the same was looked for twice."""
    protocol = ("kind", "over", "which", "split", "n", "data", "attack", "label", "norm", "eps")
    last = {tuple(str(f.get(key)) for key in protocol): f for f in sorted(findings, key=written)}
    return [f for f in findings if any(f is each for each in last.values())]


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Folder names, with as many parents as it takes to tell them apart."""
    whole = {path: path.resolve().parts for path in paths}
    names = {}
    for path, parts in whole.items():
        depth = 1
        others = [theirs for other, theirs in whole.items() if theirs != parts]
        while depth < len(parts) and any(theirs[-depth:] == parts[-depth:] for theirs in others):
            depth += 1
        names[path] = "/".join(parts[-depth:])
    return names


RAISED = {"2": "₂", "inf": "∞"}


def percent(share: float) -> str:
    """A share in [0, 1], in percent without the sign, which stands in the head.

    >>> percent(0.2251)
    '22.5'
    """
    return f"{100 * share:.1f}"


def number(value: object) -> str:
    """A number with four significant digits; text as it is, nothing as a dash.

    >>> number(0.000123456), number(None), number("a")
    ('0.0001235', '–', 'a')
    """  # noqa: RUF002
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if isinstance(value, float) else str(value)


def budget(record: Record) -> str:
    """The budget of a record.

    >>> budget({"norm": "linf", "eps": 8 / 255}), budget({"norm": None, "eps": None})
    ('linf 8/255', 'no attack')
    """
    if record.get("norm") is None:
        return "no attack"
    if record.get("eps") is None:
        return str(record["norm"])
    return f"{record['norm']} {as_fraction(float(record['eps']))}"


def of_255(values: Iterable[float]) -> bool:
    """Whether radii are said in grey levels: multiples of a quarter of one, and not all of them short decimals.

    >>> of_255([0.0, 2 / 255, 0.5 / 255]), of_255([0.0, 0.15])
    (True, False)
    """
    radii = list(values)
    grey = all(abs(v * 255 * 4 - round(v * 255 * 4)) < 1e-6 for v in radii)
    return grey and any(float(f"{v:.3g}") != v for v in radii)


def protocol(record: Record) -> str:
    """How a finding was made, in one line: attack, budget, images, weights."""
    attack = record.get("label") or "no attack"
    at = f" at {budget(record)}" if record.get("norm") else ""
    return f"{attack}{at}; {record['images']}; {record['which']} weights, attack seed {record['seed']}"


def quoted(run: ReportedRun) -> str:
    """A run's folder as a shell takes it."""
    return shlex.quote(run.folder)


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def size(n: int) -> str:
    """A number of bytes.

    >>> size(512), size(20_480), size(5_000_000)
    ('512 B', '20.5 kB', '5.0 MB')
    """
    for above, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= above:
            return f"{n / above:.1f} {unit}"
    return f"{n} B"


def setting(name: str, value: Any) -> str:
    """A setting's value as it would be said on the command line."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(setting("", each) for each in value)
    return str(value) if isinstance(value, dict) else shown(name, value)


def missing(report: ReportedRuns) -> tuple[list[str], list[str]]:
    """What was not measured, in words, and for each run the command that measures it."""
    said: dict[str, list[ReportedRun]] = {}
    commands = []
    for run in report.runs:
        attacks = [] if run.scores else ["pgd-20", "cw-30"]
        attacks += [] if any(score["attack"] == "aa" for score in run.scores) else ["aa"]
        also = [name for name in WORDS if not _has(run, name)]
        for what in [*(("AutoAttack",) if "aa" in attacks else ()), *(WORDS[name] for name in also)]:
            said.setdefault(what, []).append(run)
        if attacks or also:
            options = [f"--attack {','.join(attacks)}"] if attacks else []
            options += [f"--also {','.join(also)}"] if also else []
            commands.append(f"mmard evaluate {quoted(run)} {' '.join(options)}")
    if not any(score.get("made_on") for run in report.runs for score in run.scores):
        said["attacks made on other networks"] = report.runs
        firsts = " ".join(quoted(group.first) for group in report.groups)
        single = len(report.groups) == 1
        commands.append(
            f"mmard evaluate {firsts} --attack pgd-20 --from OTHER" if single else f"mmard transfer {firsts}"
        )
    whole = len(report.runs)
    texts = [
        what + ("" if len(of) == whole else f" of {listed([run.name for run in of])}") for what, of in said.items()
    ]
    return texts, commands


WORDS = {
    "checks": "suspicion checks",
    "classes": "accuracy by class",
    "margins": "margins and confidence",
    "calibration": "calibration",
    "examples": "images under attack",
    "boundary": "nearness to the boundary",
    "eps": "accuracy against the radius",
    "steps": "accuracy against the steps of the attack",
}
"""What `mmard evaluate --also` can find, by how it is spelled."""


def _has(run: ReportedRun, name: str) -> bool:
    if name in ("eps", "steps"):
        return bool(run.found("curve", over=name))
    return bool(run.found(name)) or (name == "boundary" and not run.config.get("teachers"))


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
    return -1 if record["attack"] == TRAINING else severity(str(record["attack"]))


class Chosen:
    """The findings of one kind that are shown first, one for each run: by the protocol that most runs have.

    Args:
        report: the runs.
        kinds: kinds of findings that are shown together.
        usable: which of them will do; all if not given.

    Attributes:
        several: whether those shown first were made by several protocols after all.
    """

    def __init__(self, report: ReportedRuns, *kinds: str, usable: Callable[[Record], bool] | None = None) -> None:
        self.runs = report.runs
        self._found = {
            (run.name, kind): [found for found in run.found(kind) if usable is None or usable(found)]
            for run in report.runs
            for kind in kinds
        }
        self.kind = kinds[0]
        held: dict[Key, list[Record]] = {}
        for records in self._found.values():
            for record in records:
                held.setdefault(key_of(record), []).append(record)
        self.keys = sorted(held, key=lambda key: (key[0] == TRAINING, -len(held[key]), -_severity(held[key][0]), key))
        first = [shown for kind in kinds for run in report.runs if (shown := self.of(run, kind)) is not None]
        self.protocols = list(dict.fromkeys(protocol(record) for record in first))
        self.several = len({key_of(record) for record in first}) > 1

    def all(self, run: ReportedRun, kind: str = "") -> list[Record]:
        """The findings of a run, the one to show first at the front."""
        own = self._found[run.name, kind or self.kind]
        return sorted(own, key=lambda record: self.keys.index(key_of(record)))

    def of(self, run: ReportedRun, kind: str = "") -> Record | None:
        """The finding of a run that is shown first."""
        return next(iter(self.all(run, kind)), None)

    def having(self, kind: str = "") -> list[ReportedRun]:
        """The runs that have one."""
        return [run for run in self.runs if self.all(run, kind)]

    def by_protocol(self) -> list[list[tuple[ReportedRun, Record]]]:
        """All findings, those of one protocol together."""
        made = [
            [(run, record) for run in self.runs for record in self.all(run) if key_of(record) == key]
            for key in self.keys
        ]
        return [rows for rows in made if rows]

    def beside(self, record: Record) -> str:
        """What to say beside one finding: its protocol, where others have another."""
        return f"{protocol(record)}." if self.several else ""

    def below(self, what: str) -> list[str]:
        """What to say once for all: the protocol, or that there are several."""
        if self.several:
            return [f"{what}: by several protocols, said beside each figure; do not compare across them."]
        return [f"{what}: {protocol}." for protocol in self.protocols[:1]]


def named(records: Sequence[Record]) -> Callable[[Record], str]:
    """A short name for the protocol of each: the attack's, or all of it where that would not tell them apart."""
    by_name: dict[str, set[Key]] = {}
    for record in records:
        by_name.setdefault(_short(record), set()).add(key_of(record))
    return lambda record: _short(record) if len(by_name[_short(record)]) == 1 else protocol(record)


def _short(record: Record) -> str:
    if record["attack"] == TRAINING:
        return "the training's own attack"
    return attack_title(str(record["attack"])) or str(record.get("label") or "no attack")
