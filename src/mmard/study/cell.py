"""One cell of a study: trained as any run is, attacked, and told in one record.

The folder RUNS/<cell> is a run folder like another: it is resumed, evaluated and shown by the same commands. Its
`cell.json` is the record, and that it is there says that nothing is left to do. A record holds no path of a machine,
and all that it takes to make the same cell again (`records.py`).
"""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open

from mmard.balls import Budget
from mmard.config import DistillSettings, Settings, teachers_said
from mmard.data import DATA, ImageSet, Splits, load
from mmard.environment import environment, now
from mmard.errors import Refused
from mmard.evaluation.evaluate import Measured
from mmard.evaluation.examine import examine
from mmard.evaluation.keeping import Keeper
from mmard.evaluation.wanted import Teacher, Wanted
from mmard.job import pick_device, prepare
from mmard.models import parameter_count
from mmard.networks import load_network
from mmard.pair import teacher_of
from mmard.run import Run
from mmard.storage import read_json, temporaries, write_json
from mmard.study.declared import MACHINE, Cell
from mmard.study.nearness import nearness
from mmard.study.scrubbing import scrubbed, without_paths
from mmard.weights import FACTS, weights_hash

FORMAT = 1
RECORD = "cell.json"
ASIDE = ".study"
"""Folder among the runs for what is no run: locks and failures."""
SEED, BATCH_SIZE = 0, 250
"""Of every evaluation of a study."""
DATA_SETTINGS = ("val_share", "split_seed", "limit_train", "on_disk", "image_size")

Tell = Callable[[str, float], None]
"""Told what a cell is at ("training", "attacking") and which share of it is done."""


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


def make(cell: Cell, place: Place, tell: Tell = lambda stage, share: None) -> dict[str, Any]:
    """Train a cell from where its folder stands, attack its weights, and write its record. For who holds its lock.

    Raises:
        Refused: if it cannot be trained; `Diverged` if it does not converge.
        Interrupted: after Ctrl-C while it trains, with the run saved.
    """
    torch.set_num_threads(cell.settings.threads or place.threads)
    _environment_here()  # before time passes in which the files of this package may change
    known = place.record(cell.name)
    if known is not None and is_whole(cell, known):
        return known
    settings = settings_here(cell, place)
    splits = _splits(settings)
    run, cpu_seconds = _trained(cell, settings, splits, place, tell)
    record = _told(cell, settings, splits, run, known, cpu_seconds, tell)
    record = without_paths(record, [place.runs, place.data_dir])
    json.dumps(record, allow_nan=False)
    write_json(run.path / RECORD, record)
    return record


# training -------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def _loaded(data: str, data_dir: str | None, **how: Any) -> Splits:
    return load(data, data_dir, **how)


def _splits(settings: Settings) -> Splits:
    """The data, read once for all cells of a worker that are alike in it."""
    return _loaded(settings.data, settings.data_dir, **{name: getattr(settings, name) for name in DATA_SETTINGS})


def _trained(cell: Cell, settings: Settings, splits: Splits, place: Place, tell: Tell) -> tuple[Run, float | None]:
    """The run of a cell, trained to its end; and the seconds of CPU, where all of it was done just now."""
    folder = place.folder(cell.name)
    begun = (folder / "config.json").is_file()
    if begun:
        run = Run.open(folder)
        _refuse_other(run, settings)
        if is_trained(place, cell.name):
            return run, None
    elif folder.is_dir():
        # What a process leaves that is killed before there is a run.
        for half in folder.glob(temporaries("config.json")):
            half.unlink(missing_ok=True)
    # Data that is handed over is not augmented by its name any more.
    named = DATA[settings.data].augmentation if settings.augment == "auto" else settings.augment
    job = prepare(settings.model_copy(update={"augment": named}), data=splits)
    if not begun:
        run = Run.create(folder, settings.as_config())
    fresh, steps, began = not run.has_state, job.recipe.epochs * job.batches.steps, time.process_time()
    job.train(run, [lambda event: tell("training", event["step"] / steps)])
    return run, time.process_time() - began if fresh else None


def _refuse_other(run: Run, settings: Settings) -> None:
    """Refuse a folder that another training began in; where it was made does not count."""
    left_out = {*MACHINE, "teacher"}
    held, wanted = run.config, settings.as_config()
    differ = [name for name in wanted if name not in left_out and held.get(name) != wanted[name]]
    if differ:
        got = ", ".join(f"{name} {held.get(name)!r} for {wanted[name]!r}" for name in differ[:3])
        raise Refused(str(run.path), expected="the run of this cell", got=got, mend="choose another --runs")


# measuring ------------------------------------------------------------------------------------------------------------
def _told(
    cell: Cell,
    settings: Settings,
    splits: Splits,
    run: Run,
    known: Mapping[str, Any] | None,
    cpu_seconds: float | None,
    tell: Tell,
) -> dict[str, Any]:
    """The record of a trained cell. Of a record that lacks something, what it has is kept."""
    position = position_of(run)
    began, cpu_began = time.monotonic(), time.process_time()
    tell("attacking", 0.0)
    measured = _measured(cell, settings, splits.test, run, tell)
    boundary = None if known is None else known["boundary"]
    if cell.boundary and boundary is None:
        boundary = _boundary(cell, settings, splits, run)
    seconds = {"train": position["seconds"], "evaluate": time.monotonic() - began}
    seconds |= {"train_cpu": cpu_seconds, "evaluate_cpu": time.process_time() - cpu_began}
    if known is not None:
        seconds["train_cpu"] = known["seconds"]["train_cpu"]
    return {
        "format": FORMAT,
        "cell": cell.name,
        "scale": cell.scale,
        "seed": cell.seed,
        "role": cell.role,
        "teachers": cell.teachers,
        "settings": {**cell.settings.as_config(), "data_dir": None},
        "attacks": list(cell.attacks),
        "test_images": cell.images,
        **measured,
        "boundary": boundary,
        "seconds": {name: None if value is None else round(value, 3) for name, value in seconds.items()},
        "epochs": position["epoch"],
        "best_epoch": position["best_epoch"],
        "curve": _curve(run),
        "train_data": splits.train.fingerprint(),
        "train_images": len(splits.train),
        "device": str(pick_device(settings.device)),
        "environment": _environment(run),
    }


def _measured(cell: Cell, settings: Settings, images: ImageSet, run: Run, tell: Tell) -> dict[str, Any]:
    """Figures of the last and of the best weights by attack, what looks suspicious about them, and which they are."""
    if cell.images and cell.images < len(images):
        images = images.take(slice(0, cell.images), f"the first {cell.images:,} of {images.origin}")
    budget, device = Budget(settings.eps, settings.norm), pick_device(settings.device)
    figures: dict[str, dict[str, Any]] = {}
    checks: dict[str, list[str]] = {}
    keep = Keeper(run)
    weights: dict[str, str] = {}
    parameters, data, earlier = 0, "", list[Measured]()
    for which in ("last", "best"):
        network = load_network(str(run.path), which=which).module.to(device)
        parameters = parameter_count(network)
        if earlier and weights_hash(network) == earlier[0].score.weights:
            measured = [Measured(replace(each.score, which=which), each.mask) for each in earlier]
            for each in measured:
                keep.score(each)
            checks[which] = checks["last"]
        else:
            keep = Keeper(run)
            measured = examine(
                network,
                images,
                list(cell.attacks),
                budget,
                Wanted(),
                keep,
                split="test",
                which=which,
                seed=SEED,
                batch_size=BATCH_SIZE,
                folder=run.autoattack,
            )
            checks[which] = [
                each["check"] for f in keep.findings for each in f["findings"] if each["verdict"] == "suspicious"
            ]
        earlier = measured
        weights[which], data = measured[0].score.weights, measured[0].score.data
        # The last is the worst of all attacks, or the only one.
        figures[which] = {m.score.attack: _figure(m) for m in measured if not m.score.attack.startswith("worst_of_")}
        figures[which]["robust"] = _figure(measured[-1])
        for name, each in (("clean", measured[0]), ("robust", measured[-1])):
            figures[which][name]["right"] = _packed(each.mask)
        tell("attacking", 0.5 if which == "last" else 1.0)
    return {
        "figures": figures,
        "suspicious": checks,
        "weights": weights,
        "data": data,
        "parameters": parameters,
    }


def _figure(measured: Measured) -> dict[str, Any]:
    score = measured.score
    names = ("attack", "label", "norm", "eps", "n", "correct", "seconds", "seed", "batch_size", "images")
    return {"accuracy": score.accuracy, **{name: getattr(score, name) for name in names}}


def _packed(mask: np.ndarray) -> str:
    """Verdicts, one bit for each image, as text; `unpacked` undoes it."""
    return b64encode(np.packbits(mask).tobytes()).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    """Verdicts (n,) out of a figure's "right"."""
    return np.unpackbits(np.frombuffer(b64decode(text), np.uint8), count=n).astype(bool)


def _boundary(cell: Cell, settings: Settings, splits: Splits, run: Run) -> dict[str, Any]:
    """Of the last weights, whose training examples are still those of the training."""
    device = pick_device(settings.device)
    student = load_network(str(run.path), which="last").module.to(device)
    found = teacher_of(settings, splits.train)
    if found is None:
        return {"left_out": "no robust teacher"}
    found.module.to(device)
    teacher = Teacher(found.module, cell.teachers["T"])
    return nearness(student, teacher, settings, splits, cell.attacks, Budget(settings.eps, settings.norm))


def _curve(run: Run) -> dict[str, list[float]]:
    """Validation and loss by epoch."""
    epochs = [event for event in run.log() if event["kind"] == "epoch"]
    return {name: [float(f"{event[name]:.5g}") for event in epochs] for name in ("clean", "robust", "loss")}


@lru_cache(maxsize=1)
def _environment_here() -> dict[str, Any]:
    return environment()


def _environment(run: Run) -> dict[str, Any]:
    """Of this process, and the commits of all that worked on the run."""
    sittings = read_json(run.path / "environment.json")
    here = {**_environment_here(), "threads": torch.get_num_threads(), "written": now()}
    return {**here, "command": scrubbed(here["command"]), "commits": sorted({str(each["commit"]) for each in sittings})}
