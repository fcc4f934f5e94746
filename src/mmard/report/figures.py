"""The figures of a run as its folder has them: a record, its verdicts, and the seed that trained what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmard.evaluation.score import Mask
from mmard.run import Run
from mmard.storage import read_json


@dataclass(frozen=True)
class Figure:
    """One record.

    Attributes:
        run: the folder.
        seed: of the run's training; the attack's own is in the record.
        record: all of it, as its file has it.
        file: that file.
        suspicious: slugs of the suspicion checks that these weights raised.
    """

    run: Path
    seed: int
    record: Mapping[str, Any]
    file: Path
    suspicious: tuple[str, ...] = ()

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
        """Share of images that were read rightly."""
        return self.correct / self.n

    @property
    def written(self) -> str:
        """When it was measured, as text that sorts."""
        return str((self.record.get("environment") or {}).get("written", ""))

    @cached_property
    def mask(self) -> Mask | None:
        """Verdicts (n,), or None if the file is gone or is that of other images."""
        file = self.file.with_suffix(".npy")
        if not file.is_file():
            return None
        mask: Mask = np.load(file, allow_pickle=False)
        return mask if mask.shape == (self.n,) and int(mask.sum()) == self.correct else None


def figures_of(run: Run, seed: int) -> tuple[list[Figure], list[str]]:
    """All figures of a run on its present weights, and a line on those that were made on earlier ones.

    "best" weights change while a run goes on: figures on what was best before belong to another network.
    """
    suspicious = _suspicious(run)
    found = []
    for file in sorted(run.scores.glob("*.json")):
        record = read_json(file)
        found.append(Figure(run.path, seed, record, file, suspicious.get(str(record["weights"]), ())))
    latest: dict[str, Figure] = {}
    for figure in sorted(found, key=lambda f: f.written):
        latest[figure.which] = figure
    kept = [f for f in found if f.record["weights"] == latest[f.which].record["weights"]]
    stale = len(found) - len(kept)
    text = f"{run.path}: {stale} figure{'s' * (stale > 1)} of weights that the run has outgrown, left out"
    return kept, [text] if stale else []


def _suspicious(run: Run) -> dict[str, tuple[str, ...]]:
    """The suspicion checks that were raised, by hash of the weights."""
    raised: dict[str, tuple[str, ...]] = {}
    for file in sorted((run.path / "findings").glob("*.json")):
        record = read_json(file)
        if record.get("kind") == "checks":
            slugs = [f["check"] for f in record["findings"] if f["verdict"] == "suspicious"]
            weights = str(record["weights"])
            raised[weights] = tuple(dict.fromkeys((*raised.get(weights, ()), *slugs)))
    return raised
