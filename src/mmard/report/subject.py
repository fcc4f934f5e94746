"""What a report is about: runs as their folders have them, set into groups that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmard.errors import Refused
from mmard.report.configurations import configurations
from mmard.run import Run
from mmard.storage import read_json

Record = dict[str, Any]

NOT_TERMS = frozenset(
    ("kind", "step", "epoch", "epoch_step", "seconds", "lr", "loss", "reach", "clean", "robust", "best", "images")
)
"""Numbers of an epoch that are no terms of its loss."""


@dataclass(frozen=True)
class Shown:
    """A run, read once.

    Attributes:
        run: its folder.
        name: the folder's name, with its parents' where two would be alike.
        said: the folder as the caller wrote it, for commands.
        group: index of its group.
        config, environments, events, scores, findings: what its files hold.
        left_out: lines on findings of weights that the run has outgrown.
    """

    run: Run
    name: str
    said: str
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
        return list(dict.fromkeys(key for event in source for key in event if key not in NOT_TERMS))

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

    def found(self, kind: str, **where: Any) -> list[Record]:
        """Its findings of a kind, those on the best weights first."""
        own = [f for f in self.findings if f["kind"] == kind and all(f.get(k) == v for k, v in where.items())]
        return sorted(own, key=lambda f: (f["which"] != "best", str(f["which"]), -int(f["n"])))


@dataclass(frozen=True)
class Group:
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
    runs: tuple[Shown, ...]

    @property
    def first(self) -> Shown:
        """The run that stands for the others where one must."""
        return self.runs[0]


@dataclass(frozen=True)
class Subject:
    """All that a report is about.

    Attributes:
        groups: in the order in which their runs were given.
        left_out: a line on each thing that is not shown, and why.
    """

    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = field(default=())

    @property
    def runs(self) -> list[Shown]:
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


def subject(paths: Sequence[str | Path]) -> Subject:
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
        groups.append(Group(index, each.name, short[index], own))
    stale = [line for group in groups for run in group.runs for line in run.left_out]
    return Subject(tuple(groups), (*left_out, *stale))


def _shown(run: Run, name: str, group: int) -> Shown:
    environments = run.path / "environment.json"
    scores = run.score_records()
    findings, stale = _present(run.findings(), scores)
    text = f"{name}: {stale} finding{'s' * (stale != 1)} on weights that the run has outgrown, not shown"
    return Shown(
        run=run,
        name=name,
        said=str(run.path),
        group=group,
        config=run.config,
        environments=read_json(environments) if environments.is_file() else [],
        events=_events(run),
        scores=scores,
        findings=findings,
        left_out=(text,) if stale else (),
    )


def _events(run: Run) -> list[Record]:
    """The log; of a published run the lines of its epochs, which is all that was kept."""
    if not run.log_file.exists() and (run.path / "epochs.jsonl").is_file():
        published = Run(run.path)
        published.log_file = run.path / "epochs.jsonl"
        return published.log()
    return run.log()


def _written(record: Record) -> str:
    return str((record.get("environment") or {}).get("written", ""))


def _present(findings: Iterable[Record], scores: Iterable[Record]) -> tuple[list[Record], int]:
    """Findings on the present weights, the latest where the same was looked for twice; and how many are on others."""
    findings = list(findings)
    latest: dict[str, str] = {}
    for record in sorted([*scores, *findings], key=_written):
        latest[str(record["which"])] = str(record["weights"])
    kept = [f for f in findings if latest[str(f["which"])] == f["weights"]]
    protocol = ("kind", "over", "which", "split", "n", "data", "attack", "label", "norm", "eps")
    last = {tuple(str(f.get(key)) for key in protocol): f for f in sorted(kept, key=_written)}
    return [f for f in kept if any(f is each for each in last.values())], len(findings) - len(kept)


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
