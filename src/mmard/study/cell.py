"""One cell of a study: trained as any run is, attacked, and told in one record.

The folder RUNS/<cell> is a run folder like another: it is resumed, evaluated and shown by the same commands. Its
`cell.json` is the record, and that it is there says that nothing is left to do.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch

from mmard.config import Settings
from mmard.data import DATA, Splits, load
from mmard.job import prepare
from mmard.run import Run
from mmard.storage import temporaries, write_json
from mmard.study.grid import Cell
from mmard.study.place import RECORD, Place, is_trained, is_whole, refuse_other, settings_here
from mmard.study.recording import Tell, note_environment, recorded
from mmard.study.scrubbing import without_paths

DATA_SETTINGS = ("val_share", "split_seed", "limit_train", "on_disk", "image_size")


def make(cell: Cell, place: Place, tell: Tell = lambda stage, share: None) -> dict[str, Any]:
    """Train a cell from where its folder stands, attack its weights, and write its record. For who holds its lock.

    Raises:
        Refused: if it cannot be trained; `Diverged` if it does not converge.
        Interrupted: after Ctrl-C while it trains, with the run saved.
    """
    torch.set_num_threads(cell.settings.threads or place.threads)
    note_environment()  # before time passes in which the files of this package may change
    known = place.record(cell.name)
    if known is not None and is_whole(cell, known):
        return known
    settings = settings_here(cell, place)
    splits = _splits(settings)
    run = _trained(cell, settings, splits, place, tell)
    record = recorded(cell, settings, splits, run, known, tell)
    record = without_paths(record, [place.runs, place.data_dir])
    json.dumps(record, allow_nan=False)
    write_json(run.path / RECORD, record)
    return record


@lru_cache(maxsize=1)
def _loaded(data: str, data_dir: str | None, **how: Any) -> Splits:
    return load(data, data_dir, **how)


def _splits(settings: Settings) -> Splits:
    """The data, read once for all cells of a worker that are alike in it."""
    return _loaded(settings.data, settings.data_dir, **{name: getattr(settings, name) for name in DATA_SETTINGS})


def splits_of(cell: Cell, place: Place) -> Splits:
    """The data of a cell.

    Raises:
        Refused: if it is not there.
    """
    return _splits(settings_here(cell, place))


def _trained(cell: Cell, settings: Settings, splits: Splits, place: Place, tell: Tell) -> Run:
    """The run of a cell, trained to its end."""
    folder = place.folder(cell.name)
    begun = (folder / "config.json").is_file()
    if begun:
        run = Run.open(folder)
        refuse_other(run, settings)
        if is_trained(place, cell.name):
            return run
    elif folder.is_dir():
        # What a process leaves that is killed before there is a run.
        for half in folder.glob(temporaries("config.json")):
            half.unlink(missing_ok=True)
    # Data that is handed over is not augmented by its name any more.
    named = DATA[settings.data].augmentation if settings.augment == "auto" else settings.augment
    job = prepare(settings.model_copy(update={"augment": named}), data=splits)
    if not begun:
        run = Run.create(folder, settings.as_config())
    steps = job.recipe.epochs * job.batches.steps
    job.train(run, [lambda event: tell("training", event["step"] / steps)])
    return run
