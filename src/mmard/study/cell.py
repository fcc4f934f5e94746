"""One cell of a study: trained as any run is, attacked, and described by one record.

The folder RUNS/<cell> is a run folder like another: it is resumed, evaluated and shown by the same commands. Its
`cell.json` is the record: where it is, nothing is left to do. A record has the settings, every figure, where, when and
of what they were made, and no path of a machine; docs/studies.md lists its keys, and `records.py` makes the same cell
again from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import get_num_threads

from mmard.balls import Budget
from mmard.data import DATA, ImageSet, Splits, load
from mmard.errors import Refused
from mmard.evaluation.evaluate import Measured, Protocol
from mmard.evaluation.examine import Recorder, examine
from mmard.evaluation.findings import FindingsPlan, TeacherBeside
from mmard.files import FACTS, read_json, weights_hash, write_json
from mmard.job import prepare, teacher_of
from mmard.models import parameter_count
from mmard.networks import load_network, pick_device
from mmard.run import Run, environment, now
from mmard.settings import MACHINE, Settings, differences
from mmard.study.boundary import boundary_statistics
from mmard.study.grid import Cell
from mmard.study.records import FORMAT, RECORD, checked, packed, scrubbed, without_paths

ASIDE = ".study"
"""Folder among the runs for locks, failures and jobs."""
DATA_SETTINGS = ("val_share", "split_seed", "limit_train", "on_disk", "image_size", "skip_bad")
SEED, BATCH_SIZE = 0, 250
"""Of every evaluation of a study."""

OnProgress = Callable[[str, float], None]
"""Called with what a cell is at ("training", "attacking") and which share of it is done."""


@dataclass(frozen=True)
class Site:
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
        return checked(read_json(file), str(file), name) if file.is_file() else None

    def lock(self, name: str) -> AbstractContextManager[object]:
        """For one process to work on a cell, wherever else the same study runs.

        Raises:
            Timeout: if another process holds it.
        """
        (self.runs / ASIDE).mkdir(parents=True, exist_ok=True)
        return FileLock(self.runs / ASIDE / f"{name}.lock").acquire(timeout=0)

    def is_locked(self, name: str) -> bool:
        """Whether some process works on a cell."""
        if not (self.runs / ASIDE / f"{name}.lock").exists():
            return False
        try:
            with self.lock(name):
                return False
        except Timeout:
            return True


def settings_here(cell: Cell, site: Site) -> Settings:
    """The settings of a cell with the folders, the device and the threads of this site."""
    settings = cell.settings
    here: dict[str, Any] = {"data_dir": site.data_dir or settings.data_dir}
    here |= {"device": site.device or settings.device, "threads": settings.threads or site.threads}
    cells = set(cell.teachers.values())
    here["teachers"] = {
        letter: tuple(str(site.folder(name)) if name in cells else name for name in names)
        for letter, names in settings.teachers.items()
    }
    if site.data_dir:  # given files lie beside the data
        files = settings.teacher_weights.items()
        here["teacher_weights"] = {letter: str(Path(site.data_dir) / file) for letter, file in files}
    return settings.model_copy(update=here)


def is_complete(cell: Cell, record: Mapping[str, Any] | None) -> bool:
    """Whether a record has all that the cell asks for; one that was made for another study may lack something."""
    if record is None:
        return False
    attacked = all({*cell.attacks, "robust"} <= set(own) for own in record["figures"].values())
    attacked &= (record["test_images"], record.get("test_from", 0)) == (cell.images, cell.first)
    return attacked and (record["boundary"] is not None or not cell.boundary)


def is_trained(site: Site, name: str) -> bool:
    """Whether the training of a cell is over, so that it can teach."""
    folder = site.folder(name)
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
    left_out = {*MACHINE, "teachers"}
    if differ := differences(run.config, settings.as_config(), left_out):
        got = ", ".join(differ[:3])
        raise Refused(str(run.path), expected="the run of this cell", got=got, mend="choose another --runs")


def make(cell: Cell, site: Site, progress: OnProgress = lambda stage, share: None) -> dict[str, Any]:
    """Train a cell from where its folder stands, attack its weights, and write its record. For who holds its lock.

    Raises:
        Refused: if it cannot be trained; `Diverged` if it does not converge.
        Interrupted: after Ctrl-C while it trains, with the run saved.
    """
    torch.set_num_threads(cell.settings.threads or site.threads)
    note_environment()  # before time passes in which the files of this package may change
    known = site.record(cell.name)
    if known is not None and is_complete(cell, known):
        return known
    settings = settings_here(cell, site)
    splits = _splits(settings)
    run = _trained(cell, settings, splits, site, progress)
    record = recorded(cell, settings, splits, run, known, progress)
    record = without_paths(record, [site.runs, site.data_dir])
    json.dumps(record, allow_nan=False)
    write_json(run.path / RECORD, record)
    return record


@lru_cache(maxsize=1)
def _loaded(data: str, data_dir: str | None, **how: Any) -> Splits:
    return load(data, data_dir, **how)


def _splits(settings: Settings) -> Splits:
    """The data, read once for all cells of a worker that are alike in it."""
    return _loaded(settings.data, settings.data_dir, **{name: getattr(settings, name) for name in DATA_SETTINGS})


def splits_of(cell: Cell, site: Site) -> Splits:
    """The data of a cell.

    Raises:
        Refused: if it is not there.
    """
    return _splits(settings_here(cell, site))


def _trained(cell: Cell, settings: Settings, splits: Splits, site: Site, progress: OnProgress) -> Run:
    """The run of a cell, trained to its end."""
    folder = site.folder(cell.name)
    begun = (folder / "config.json").is_file()
    if begun:
        run = Run.open(folder)
        refuse_other(run, settings)
        if is_trained(site, cell.name):
            return run
    # Data that is handed over is not augmented by its name any more.
    named = DATA[settings.data].augmentation if settings.augment == "auto" else settings.augment
    job = prepare(settings.model_copy(update={"augment": named}), data=splits)
    if not begun:
        run = Run.create(folder, settings.as_config())
    steps = job.recipe.epochs * job.batches.steps
    job.train(run, [lambda event: progress("training", event["step"] / steps)])
    return run


def recorded(
    cell: Cell,
    settings: Settings,
    splits: Splits,
    run: Run,
    known: Mapping[str, Any] | None,
    progress: OnProgress,
) -> dict[str, Any]:
    """The record of a trained cell. Of a record that lacks something, what it has is kept."""
    if run.has_state or known is None:
        position = position_of(run)
    else:  # somebody saved room on the disk
        position = {"epoch": known["epochs"], "best_epoch": known["best_epoch"], "seconds": known["seconds"]["train"]}
    began, cpu_began = time.monotonic(), time.process_time()
    if cell.first:
        kept = splits.test.take(slice(cell.first, None), f"{splits.test.origin}, without the first {cell.first:,}")
        splits = replace(splits, test=kept)
    progress("attacking", 0.0)
    measured = _measured(cell, settings, splits.test, run, progress)
    boundary = None if known is None else known["boundary"]
    if cell.boundary and boundary is None:
        boundary = _boundary(cell, settings, splits, run)
    seconds = {"train": position["seconds"], "evaluate": time.monotonic() - began}
    train_cpu = position.get("cpu_seconds", known["seconds"]["train_cpu"] if known is not None else None)
    seconds |= {"train_cpu": train_cpu, "evaluate_cpu": time.process_time() - cpu_began}
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
        **({"test_from": cell.first} if cell.first else {}),
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


def _measured(cell: Cell, settings: Settings, images: ImageSet, run: Run, progress: OnProgress) -> dict[str, Any]:
    """Figures of the last and of the best weights by attack, what looks suspicious about them, and which they are."""
    if cell.images and cell.images < len(images):
        images = images.take(slice(0, cell.images), f"the first {cell.images:,} of {images.origin}")
    budget, device = Budget(settings.eps, settings.norm), pick_device(settings.device)
    figures: dict[str, dict[str, Any]] = {}
    checks: dict[str, list[str]] = {}
    keep = Recorder(run)
    weights: dict[str, str] = {}
    parameters, data, earlier = 0, "", list[Measured]()
    for which in ("last", "best"):
        network = load_network(str(run.path), which=which).module.to(device)
        parameters = parameter_count(network)
        if earlier and weights_hash(network) == earlier[0].score.weights:
            measured = [replace(each, score=replace(each.score, which=which)) for each in earlier]
            for each in measured:
                keep.score(each)
            checks[which] = checks["last"]
        else:
            keep = Recorder(run)
            measured = examine(
                network,
                images,
                Protocol.read(cell.attacks, budget, images.num_classes, seed=SEED, batch_size=BATCH_SIZE),
                FindingsPlan(),
                keep,
                split="test",
                which=which,
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
            figures[which][name]["right"] = packed(each.mask)
        progress("attacking", 0.5 if which == "last" else 1.0)
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


def _boundary(cell: Cell, settings: Settings, splits: Splits, run: Run) -> dict[str, Any]:
    """Of the last weights, whose training examples are still those of the training."""
    device = pick_device(settings.device)
    student = load_network(str(run.path), which="last").module.to(device)
    found = teacher_of(settings, splits.train)
    if found is None:
        return {"left_out": "no robust teacher"}
    found.module.to(device)
    teacher = TeacherBeside(found.module, cell.teachers["T"])
    return boundary_statistics(student, teacher, settings, splits, cell.attacks, Budget(settings.eps, settings.norm))


def _curve(run: Run) -> dict[str, list[float]]:
    """Validation and loss by epoch."""
    epochs = [event for event in run.log() if event["kind"] == "epoch"]
    return {name: [float(f"{event[name]:.5g}") for event in epochs] for name in ("clean", "robust", "loss")}


@lru_cache(maxsize=1)
def note_environment() -> dict[str, Any]:
    """Versions and commit as this process began with them; files of the package may change while it runs."""
    return environment()


def _environment(run: Run) -> dict[str, Any]:
    """Of this process, and the commits of all that worked on the run."""
    sittings = read_json(run.path / "environment.json")
    here = {**note_environment(), "threads": get_num_threads(), "written": now()}
    return {**here, "command": scrubbed(here["command"]), "commits": sorted({str(each["commit"]) for each in sittings})}
