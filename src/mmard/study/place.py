"""Where the cells of a study are: folders, locks, and what a cell's folder says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import safe_open

from mmard.config import DistillSettings, Settings, differences, teachers_said, weights_said
from mmard.errors import Refused
from mmard.run import Run
from mmard.storage import read_json
from mmard.study.grid import MACHINE, Cell
from mmard.weights import FACTS

FORMAT = 1
RECORD = "cell.json"
ASIDE = ".study"
"""Folder among the runs for what is no run: locks, failures, jobs."""


@dataclass(frozen=True)
class Place:
    """Where cells are made, and on what.

    Attributes:
        runs: folder of all run folders.
        data_dir: folder of the data; None for bundled data.
        device: goes over that of the cells; "" leaves it.
        threads: of the CPU, where a cell says none.
    """

    runs: Path
    data_dir: str | None = None
    device: str = ""
    threads: int = 1

    def folder(self, name: str) -> Path:
        """Of a cell's run."""
        return self.runs / name

    def record(self, name: str) -> dict[str, Any] | None:
        """Of a finished cell; None for another."""
        file = self.folder(name) / RECORD
        return read_json(file) if file.is_file() else None

    def lock(self, name: str) -> AbstractContextManager[object]:
        """For one process to work on a cell, wherever else the same study runs.

        Raises:
            Timeout: if another process holds it.
        """
        (self.runs / ASIDE).mkdir(parents=True, exist_ok=True)
        return FileLock(self.runs / ASIDE / f"{name}.lock").acquire(timeout=0)

    def held(self, name: str) -> bool:
        """Whether some process works on a cell."""
        if not (self.runs / ASIDE / f"{name}.lock").exists():
            return False
        try:
            with self.lock(name):
                return False
        except Timeout:
            return True


def settings_here(cell: Cell, place: Place) -> Settings:
    """The settings of a cell with the folders, the device and the threads of this place."""
    settings = cell.settings
    here: dict[str, Any] = {"data_dir": place.data_dir or settings.data_dir}
    here |= {"device": place.device or settings.device, "threads": settings.threads or place.threads}
    if isinstance(settings, DistillSettings):
        cells = set(cell.teachers.values())
        found = {
            letter: [str(place.folder(name)) if name in cells else name for name in names]
            for letter, names in teachers_said(settings).items()
        }
        each = {letter: names[0] if len(names) == 1 else names for letter, names in found.items()}
        here["teacher"] = each["T"] if isinstance(settings.teacher, str) else each
        if place.data_dir and settings.teacher_weights is not None:  # given files lie beside the data
            files = {letter: str(Path(place.data_dir) / file) for letter, file in weights_said(settings).items()}
            here["teacher_weights"] = files["T"] if isinstance(settings.teacher_weights, str) else files
    return settings.model_copy(update=here)


def is_whole(cell: Cell, record: Mapping[str, Any] | None) -> bool:
    """Whether a record has all that the cell asks for; one that was made for another study may lack something."""
    if record is None or record["format"] != FORMAT:
        return False
    attacked = all({*cell.attacks, "robust"} <= set(own) for own in record["figures"].values())
    return attacked and record["test_images"] == cell.images and (record["boundary"] is not None or not cell.boundary)


def is_trained(place: Place, name: str) -> bool:
    """Whether the training of a cell is over, so that it can teach."""
    folder = place.folder(name)
    if (folder / RECORD).is_file():
        return True
    if not (folder / "config.json").is_file():
        return False
    run = Run.open(folder)
    return run.has_state and bool(position_of(run)["finished"])


def position_of(run: Run) -> dict[str, Any]:
    """The counters of a run's last save, without its tensors."""
    with safe_open(run.path / "state.safetensors", framework="pt") as opened:
        found: dict[str, Any] = json.loads((opened.metadata() or {})[FACTS])["position"]
    return found


def refuse_other(run: Run, settings: Settings) -> None:
    """Refuse a folder that another training began in; where it was made does not count."""
    left_out = {*MACHINE, "teacher"}
    if differ := differences(run.config, settings.as_config(), left_out):
        got = ", ".join(differ[:3])
        raise Refused(str(run.path), expected="the run of this cell", got=got, mend="choose another --runs")
