"""The record of a cell: its settings, every figure, and where, when and of what they were made.

A record holds no path of a machine, and all that it takes to make the same cell again (`records.py`). docs/studies.md
has its keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import get_num_threads

from mmard.balls import Budget
from mmard.config import Settings
from mmard.data import ImageSet, Splits
from mmard.devices import pick_device
from mmard.environment import environment, now
from mmard.evaluation.evaluate import Measured
from mmard.evaluation.examine import examine
from mmard.evaluation.keeping import Keeper
from mmard.evaluation.wanted import Teacher, Wanted
from mmard.models import parameter_count
from mmard.networks import load_network
from mmard.pair import teacher_of
from mmard.run import Run
from mmard.storage import read_json
from mmard.study.grid import Cell
from mmard.study.nearness import nearness
from mmard.study.place import FORMAT, position_of
from mmard.study.scrubbing import scrubbed
from mmard.study.verdicts import packed
from mmard.weights import weights_hash

SEED, BATCH_SIZE = 0, 250
"""Of every evaluation of a study."""

Tell = Callable[[str, float], None]
"""Told what a cell is at ("training", "attacking") and which share of it is done."""


def recorded(
    cell: Cell,
    settings: Settings,
    splits: Splits,
    run: Run,
    known: Mapping[str, Any] | None,
    tell: Tell,
) -> dict[str, Any]:
    """The record of a trained cell. Of a record that lacks something, what it has is kept."""
    if run.has_state or known is None:
        position = position_of(run)
    else:  # somebody saved room on the disk
        position = {"epoch": known["epochs"], "best_epoch": known["best_epoch"], "seconds": known["seconds"]["train"]}
    began, cpu_began = time.monotonic(), time.process_time()
    tell("attacking", 0.0)
    measured = _measured(cell, settings, splits.test, run, tell)
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
            figures[which][name]["right"] = packed(each.mask)
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
def note_environment() -> dict[str, Any]:
    """Versions and commit as this process began with them; files of the package may change while it runs."""
    return environment()


def _environment(run: Run) -> dict[str, Any]:
    """Of this process, and the commits of all that worked on the run."""
    sittings = read_json(run.path / "environment.json")
    here = {**note_environment(), "threads": get_num_threads(), "written": now()}
    return {**here, "command": scrubbed(here["command"]), "commits": sorted({str(each["commit"]) for each in sittings})}
