"""How long cells take: as others of their kind took, or by passes counted and networks timed.

A guess from passes leaves out what methods do beside them, so it is corrected by how such guesses have fared on the
cells that are finished. It is a matter of planning, and no figure rests on it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mmard.attacks import UntargetedPGD, named, read_attack
from mmard.balls import Budget
from mmard.data import Splits
from mmard.job import method_of
from mmard.networks import new_network
from mmard.passes import Passes, count_passes
from mmard.run import Run
from mmard.settings import Settings
from mmard.study.cell import Site, is_complete
from mmard.study.grid import Cell
from mmard.study.workers import failure

SURVIVING = 0.7
"""Share of images that an attack of the evaluation is spent on: a network of a study reads about so many rightly."""
ENSEMBLE_STEPS = 1000
"""Passes of AutoAttack on an image that survives it, forwards and backwards of all stages together."""
BOUNDARY_STEPS = 60
"""Passes of the boundary part on each of the test images, as a share of them is looked at."""
TIMED_SECONDS = 0.1


@dataclass
class TimeEstimate:
    """Seconds of cells, trained and attacked.

    Args:
        splits: data of the cells; None where nothing is to be timed, so that only what is finished tells.
        device: where the networks are timed.
        records: of finished cells, by name.
        cells: all cells of the studies, by name, finished ones too.
    """

    splits: Splits | None
    device: torch.device
    records: Mapping[str, Mapping[str, Any]]
    cells: Mapping[str, Cell]
    _passes: dict[str, dict[str, Passes]] = field(default_factory=dict)
    _units: dict[str, tuple[float, float]] = field(default_factory=dict)

    def seconds(self, cell: Cell) -> float:
        """Of a cell."""
        known = self.taken.get(cell_kind(cell))
        if known is None and self.splits is None:
            every = [seconds for each in self.taken.values() for seconds in each]
            return statistics.median(every) if every else 0.0
        return statistics.median(known) if known else self.guess(cell) * self.correction

    @cached_property
    def taken(self) -> dict[str, list[float]]:
        """Seconds of finished cells, by kind."""
        found: dict[str, list[float]] = {}
        for name, record in self.records.items():
            if name in self.cells:
                found.setdefault(cell_kind(self.cells[name]), []).append(spent(record))
        return found

    @cached_property
    def correction(self) -> float:
        """By which guesses are multiplied: the median over what is finished; 1 where nothing is."""
        done = [(self.cells[name], record) for name, record in self.records.items() if name in self.cells]
        shares = [spent(record) / max(self.guess(cell), 1e-3) for cell, record in done[:20]]
        return statistics.median(shares) if shares else 1.0

    def guess(self, cell: Cell) -> float:
        """From passes alone."""
        assert self.splits is not None
        settings, test = cell.settings, len(self.splits.test)
        name = settings.network
        passes = self._counted(settings)
        images = settings.epochs * len(self.splits.train)
        total = 0.0
        for letter, count in passes.items():
            teacher = self.cells.get(cell.teachers.get(letter, ""))
            forward, backward = self._unit(name if teacher is None else teacher.settings.network, settings)
            backwards = count.input_backwards + count.weight_backwards
            total += images * (count.forwards * forward + backwards * backward)
        both = sum(self._unit(name, settings))
        budget = Budget(settings.eps, settings.norm)
        total += (
            settings.epochs * len(self.splits.val) * (1 + read_attack(settings.val_attack, budget).climb.steps) * both
        )
        # Last and best weights.
        return total + 2 * min(cell.images or test, test) * SURVIVING * _steps(cell, budget) * both

    def _counted(self, settings: Settings) -> dict[str, Passes]:
        said = (
            settings.method,
            settings.inner,
            settings.outer,
            settings.attack,
            settings.steps,
            *settings.params.items(),
        )
        key = " ".join(map(str, said))
        if key not in self._passes:
            self._passes[key] = count_passes(method_of(settings), settings.steps)
        return self._passes[key]

    def _unit(self, name: str, settings: Settings) -> tuple[float, float]:
        """Seconds of one image forward, and backward."""
        assert self.splits is not None
        if name not in self._units:
            network = new_network(name, self.splits.train, settings.normalise, 0).to(self.device).eval()
            x = torch.rand(settings.batch_size, *self.splits.train.image_shape, device=self.device)
            forward, both = (_timed(network, x, backward) for backward in (False, True))
            self._units[name] = (forward / len(x), max(both - forward, 0.0) / len(x))
        return self._units[name]


def cell_kind(cell: Cell) -> str:
    """Cells of one kind take equally long: they differ in seed and parameters alone."""
    s = cell.settings
    parts = (s.method, s.inner, s.outer, s.peer, s.network, s.epochs, s.steps, s.batch_size, s.limit_train)
    return " ".join(map(str, (*parts, cell.boundary, cell.role)))


def spent(record: Mapping[str, Any]) -> float:
    """Seconds that a finished cell took."""
    return float(record["seconds"]["train"] + record["seconds"]["evaluate"])


def wall_seconds(expected: Mapping[str, float], cells: Mapping[str, Cell], jobs: int) -> float:
    """Wall-clock seconds of cells that so many workers share: their sum over the workers, or the longest wait.

    >>> from mmard.settings import Settings
    >>> cells = {name: Cell(name, Settings(), {}, "", "S", ()) for name in "abcd"}
    >>> wall_seconds(dict.fromkeys("abcd", 10.0), cells, jobs=2), wall_seconds({"a": 10.0}, cells, jobs=2)
    (20.0, 10.0)
    """

    def chain(name: str) -> float:
        own = expected.get(name, 0.0)
        return own + max((chain(teacher) for teacher in cells[name].teachers.values() if teacher in cells), default=0.0)

    return max(sum(expected.values()) / jobs, max(map(chain, expected), default=0.0))


def _steps(cell: Cell, budget: Budget) -> float:
    """Forwards and backwards together that an image costs which survives all attacks."""
    total = 1.0 + (BOUNDARY_STEPS if cell.boundary else 0)
    for spec in cell.attacks:
        attack = named(spec, budget, num_classes=10)
        climb = attack.climb if isinstance(attack, UntargetedPGD) else None
        total += climb.steps * climb.restarts if climb else ENSEMBLE_STEPS
    return total


def _timed(network: nn.Module, x: torch.Tensor, backward: bool) -> float:
    """Seconds of a pass; the least of a few."""
    least, began = float("inf"), time.perf_counter()
    while least == float("inf") or time.perf_counter() - began < TIMED_SECONDS:
        at = time.perf_counter()
        with torch.set_grad_enabled(backward):
            out = network(x.requires_grad_(backward)).sum()
            if backward:
                torch.autograd.grad(out, x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        least = min(least, time.perf_counter() - at)
    return least


STATES = ("done", "running", "begun", "failed", "missing")


@dataclass(frozen=True)
class Status:
    """How far one cell is.

    Attributes:
        state: "done"; "running" while a process holds it; "begun" where one left it; "failed" where it did not run to
            its end the last time; "missing" where nothing is there.
        share: of its epochs that are over.
        record: of a finished cell.
        why: of a failed cell.
    """

    state: str
    share: float = 0.0
    record: dict[str, Any] | None = None
    why: str = ""


def status_of(cell: Cell, site: Site) -> Status:
    """How far a cell is."""
    record = site.record(cell.name)
    if record is not None and is_complete(cell, record):
        return Status("done", 1.0, record)
    share = _share(cell, site)
    if site.is_locked(cell.name):
        return Status("running", share)
    failed = failure(site, cell.name)
    if failed is not None:
        return Status("failed", share, why=failed["error"])
    return Status("begun" if (site.folder(cell.name) / "config.json").is_file() else "missing", share)


def statuses_of(cells: Mapping[str, Cell], site: Site) -> dict[str, Status]:
    """How far each of some cells is."""
    return {name: status_of(cell, site) for name, cell in cells.items()}


def _share(cell: Cell, site: Site) -> float:
    folder = site.folder(cell.name)
    if not (folder / "config.json").is_file():
        return 0.0
    epochs = [event["epoch"] for event in Run.open(folder).log() if event["kind"] == "epoch"]
    return max(epochs, default=0) / cell.settings.epochs
