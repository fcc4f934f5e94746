"""The teacher tables of a training: for which teachers they save a forward, and how predictions reach the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.data.augment import Augmentation, Views
from mmard.data.batches import Batches
from mmard.engine.table import TeacherTable, Unsteady, cache_folder
from mmard.method import Method
from mmard.modes import kept_state
from mmard.training.step import Step

OFF, MEMORY, CACHE = "off", "memory", "cache"
TELL_EVERY_SECONDS = 10.0


class Addressed(Batches, Protocol):
    """Batches that can say which images they hold, in which views."""

    augmentation: Augmentation | None

    def rows(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Views | None]]:
        """For each batch from step `start` on: its rows of the set, int64 (B,), and its views."""

    def batch(self, rows: Tensor, views: Views | None) -> tuple[Tensor, Tensor]:
        """The images at these rows in these views, and their labels, on the device."""


def addressed(batches: Batches) -> TypeGuard[Addressed]:
    """Whether batches can say which images they hold."""
    return hasattr(batches, "rows") and hasattr(batches, "batch") and hasattr(batches, "augmentation")


@dataclass(frozen=True)
class Tables:
    """The teacher tables of a training.

    Args:
        by_letter: the tables that are in use.
        notes: a line on each teacher, for plans: its table, or why it has none.
    """

    by_letter: Mapping[str, TeacherTable]
    notes: tuple[str, ...] = ()

    def epoch(self, batches: Batches, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """The batches of an epoch from step `start` on, each with the predictions at x that are known, by letter."""
        if not self.by_letter:
            for x, y in batches.epoch(epoch, start):
                yield x, y, {}
            return
        assert addressed(batches)
        for rows, views in batches.rows(epoch, start):
            x, y = batches.batch(rows, views)
            yield x, y, {letter: table.look_up(rows, views, x) for letter, table in self.by_letter.items()}

    def fill(self, batches: Batches, tell: Callable[[str], None], rank: int = 0, ranks: int = 1) -> None:
        """Make every prediction that is not known yet, saying now and then how far it has come."""
        spoke = time.monotonic()

        def report(done: int, of: int) -> None:
            nonlocal spoke
            if done == of or time.monotonic() - spoke >= TELL_EVERY_SECONDS:
                spoke = time.monotonic()
                tell(f"teacher table: {done / of:.0%} of {of:,} predictions are known")

        for table in self.by_letter.values():
            assert addressed(batches)
            table.fill(lambda rows, views: batches.batch(rows, views)[0], report, rank, ranks)

    def close(self) -> None:
        """Write what is still on its way to a file."""
        for table in self.by_letter.values():
            table.close()


NO_TABLES = Tables({})


def tables_for(
    where: str, method: Method, nets: Mapping[str, nn.Module], images: ImageSet | None, batches: Batches
) -> Tables:
    """The tables that a training could use.

    Args:
        where: "off", "memory", "cache" for the user's cache folder, or a folder.
        method: whose formulas read the predictions.
        nets: the networks by letter.
        images: the training images; None for a loader of the user's own.
        batches: as training will see them.

    Raises:
        Refused: if there is no room.
    """
    if where == OFF or not method.teachers:
        return NO_TABLES
    if images is None or not addressed(batches):
        return Tables({}, ("teacher table off: a loader does not say which images it gives",))
    folder = {MEMORY: None, CACHE: cache_folder()}.get(where, Path(where).expanduser())
    useful, found, notes = saves_a_forward(method), {}, []
    for letter in method.teachers:
        if letter not in useful:
            why = "it is trained further" if letter in method.tunes else "knowing its predictions at x saves nothing"
            notes.append(f"teacher table for {letter} off: {why}")
            continue
        try:
            found[letter] = TeacherTable(nets[letter], images, batches.augmentation, folder)
        except Unsteady as reason:
            notes.append(f"teacher table for {letter} off: {reason}")
        else:
            notes.append(f"teacher table for {letter}: {found[letter]}, {found[letter].filled():.0%} filled")
    return Tables(found, tuple(notes))


class _Counted(nn.Module):
    """A linear network of three classes that counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return x.flatten(1) @ self.weight.T


def saves_a_forward(method: Method) -> set[str]:
    """The teachers that a step asks less often if their predictions at x are known, by letter.

    Found by running toy steps early and late in a run. A method that does not run on toys is taken to gain.
    """
    fixed = {letter for letter in method.teachers if letter not in (*method.tunes, *method.forwards)}
    x, y = torch.linspace(0.1, 0.9, 16).view(4, 1, 2, 2), torch.arange(4) % 3

    def forwards(known: dict[str, Tensor], progress: float) -> dict[str, int]:
        nets = {letter: _Counted() for letter in method.nets}
        with kept_state(method.memory):
            step = Step(method, nets, PGD(2, 0.01, method.start), Budget(0.02))
            step.run(x, y, progress, known)
            step.settle()
        return {letter: net.forwards for letter, net in nets.items()}

    gains = set()
    for progress in (0.01, 1.0):
        try:
            without = forwards({}, progress)
            known = forwards({letter: torch.zeros(4, 3) for letter in fixed}, progress)
        except Exception:
            return fixed
        gains |= {letter for letter in fixed if known[letter] < without[letter]}
    return gains
