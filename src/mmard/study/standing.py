"""How far cells are, from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmard.run import Run
from mmard.study.grid import Cell
from mmard.study.place import Place, is_whole
from mmard.study.running import failure

STATES = ("done", "running", "begun", "failed", "missing")


@dataclass(frozen=True)
class Standing:
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


def standing(cell: Cell, place: Place) -> Standing:
    """How far a cell is."""
    record = place.record(cell.name)
    if record is not None and is_whole(cell, record):
        return Standing("done", 1.0, record)
    share = _share(cell, place)
    if place.held(cell.name):
        return Standing("running", share)
    failed = failure(place, cell.name)
    if failed is not None:
        return Standing("failed", share, why=failed["error"])
    return Standing("begun" if (place.folder(cell.name) / "config.json").is_file() else "missing", share)


def standings(cells: Mapping[str, Cell], place: Place) -> dict[str, Standing]:
    """How far each of some cells is."""
    return {name: standing(cell, place) for name, cell in cells.items()}


def _share(cell: Cell, place: Place) -> float:
    folder = place.folder(cell.name)
    if not (folder / "config.json").is_file():
        return 0.0
    epochs = [event["epoch"] for event in Run.open(folder).log() if event["kind"] == "epoch"]
    return max(epochs, default=0) / cell.settings.epochs
