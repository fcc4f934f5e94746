"""The trained networks that an agreement is measured on: a run's student and teacher, or two made here in a minute."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmard.api import distill, train
from mmard.balls import Budget
from mmard.bench.sizes import HOST
from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.data import ImageSet
from mmard.errors import Refused
from mmard.images import load_splits
from mmard.networks import GIVEN, load_network
from mmard.pair import teacher_of
from mmard.run import Run

STUDENT, TEACHER = "wide_resnet-10-2", "wide_resnet-10-4"
"""Large enough that the engine packs their convolutions, as it does those of networks in earnest."""
EPOCHS = {STUDENT: 5, TEACHER: 3}
EPS = 0.15


@dataclass(frozen=True)
class Subject:
    """Networks and what they are looked at with.

    Attributes:
        nets: the student as S, and the teacher, where there is one, as T.
        images: that none of them was trained on.
        budget, steps, step_size: of their training attack.
        line: what they are, for records.
    """

    nets: Mapping[str, nn.Module]
    images: ImageSet
    budget: Budget
    steps: int
    step_size: float | None
    line: str


def of_run(run: str | Path, data_dir: str | None = None) -> Subject:
    """The student of a run with best weights, and its teacher.

    Raises:
        Refused: if the run, its data or its teacher is not there.
    """
    config: dict[str, Any] = dict(Run.open(run).config)
    if "method" not in config:
        raise Refused(str(run), expected="a run that trained a network", got="one without a method")
    if str(config["data"]).startswith(GIVEN):
        mend = "choose a run on data that has a name"
        raise Refused(str(run), expected="data that can be loaded by name", got=config["data"], mend=mend)
    kind: type[Settings] = DistillSettings if "student" in config else TrainSettings
    settings = kind.resolve(config | ({"data_dir": data_dir} if data_dir else {}))
    images = load_splits(settings).test
    found = load_network(str(run), num_classes=images.num_classes, image_shape=images.image_shape)
    teacher = teacher_of(settings, images)
    nets = {"S": found.module} | ({"T": teacher.module} if teacher is not None else {})
    line = found.source + (f", taught by {teacher.source}" if teacher is not None else "")
    return Subject(nets, images, Budget(settings.eps, settings.norm), settings.steps, settings.step_size, line)


def on_digits(device: torch.device) -> Subject:
    """A teacher by adversarial training and a student of its, trained on digits now; random states stay as they are."""
    steps = 5
    how: dict[str, Any] = {"data": "digits", "budget": EPS, "steps": steps, "lr": 0.05, "val_attack": "pgd-2"}
    how |= {"device": str(device), "batch_size": 64}
    with tempfile.TemporaryDirectory() as passing:
        teacher = train(TEACHER, method="pgd_at", epochs=EPOCHS[TEACHER], out=Path(passing) / "t", **how)
        student = distill(
            STUDENT, Path(passing) / "t", method=HOST, epochs=EPOCHS[STUDENT], out=Path(passing) / "s", **how
        )
        nets = {"S": student.network("last"), "T": teacher.network("last")}
    assert student.splits is not None
    line = f"{STUDENT} after {EPOCHS[STUDENT]} epochs of {HOST} on digits, taught by {TEACHER}"
    return Subject(nets, student.splits.test, Budget(EPS), steps, None, line)
