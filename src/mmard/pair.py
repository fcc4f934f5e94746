"""The teacher of a run's student, and the adversarial examples that the student was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmard.balls import Budget, as_fraction
from mmard.config import DistillSettings, Settings, TrainSettings, teachers_said, weights_said
from mmard.data import ImageSet, Splits
from mmard.errors import Refused
from mmard.evaluation.wanted import OwnExamples, Teacher
from mmard.images import load_splits
from mmard.job import prepare
from mmard.modes import evaluating
from mmard.networks import GIVEN, load_network, load_teacher
from mmard.run import Run


@dataclass(frozen=True)
class Pair:
    """What there is to look at beside a student.

    Attributes:
        teacher: its teacher; None without one.
        own: its training examples; None where they cannot be made or are not asked for.
        notes: a line on each of these that is wanted and not there.
    """

    teacher: Teacher | None = None
    own: OwnExamples | None = None
    notes: tuple[str, ...] = ()


def pair_of(
    run: Run | None,
    student: nn.Module,
    images: ImageSet,
    teacher: nn.Module | str | Path | None,
    names: tuple[str, ...],
    *,
    must: bool,
    said: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Pair:
    """The teacher and the training examples that `names` of `evaluation.wanted.ALSO` take.

    Args:
        run: of the student; None where it has none.
        student: the network that is looked at.
        images: what it is looked at on.
        teacher: the one that was named; the run's own if None.
        names: what is looked for.
        must: a teacher that the run names must be there; otherwise its absence is noted.
        said: settings that go over the run's, e.g. where its data lies.
        device: where the networks go.

    Raises:
        Refused: if a teacher that was named, or must be there, is not, or is for other data.
    """
    if teacher is None and not {"boundary", "examples"} & set(names):
        return Pair()
    settings, notes = None if run is None else _settings(run, said or {}), list[str]()
    try:
        if teacher is not None:
            found: Teacher | None = _named(teacher, images)
        else:
            found = None if settings is None else teacher_of(settings, images)
    except Refused as refusal:
        if must or teacher is not None:
            raise
        return Pair(notes=(f"the teacher: {refusal}",))
    if found is None:
        return Pair()
    found.module.to(device)
    own = None
    if "boundary" in names and settings is not None:
        settings = settings.model_copy(update={"device": str(device)})
        try:
            own = own_examples(settings, student, found, len(images))
        except Refused as refusal:
            notes.append(f"boundary on training images: {refusal}")
    return Pair(found, own, tuple(notes))


def _settings(run: Run, said: Mapping[str, Any]) -> Settings | None:
    """Those of a run; None where it was not trained here, or on other data."""
    config = run.config
    if "method" not in config or said.get("data", config.get("data")) != config.get("data"):
        return None
    kind: type[Settings] = DistillSettings if "student" in config else TrainSettings
    return kind.resolve({**config, **said})


def _named(teacher: nn.Module | str | Path, images: ImageSet) -> Teacher:
    if isinstance(teacher, nn.Module):
        return Teacher(teacher, f"{GIVEN}{type(teacher).__name__}")
    spec = str(teacher)
    found = load_network(spec, num_classes=images.num_classes, image_shape=images.image_shape, who="teacher")
    return Teacher(found.module.eval(), found.source)


def teacher_of(settings: Settings, images: ImageSet) -> Teacher | None:
    """The robust teacher that a run's settings name; None where they name none, or an object that no name can rebuild.

    Raises:
        Refused: if it is not there any more, or for other data.
    """
    named = teachers_said(settings).get("T") if isinstance(settings, DistillSettings) else None
    if not isinstance(settings, DistillSettings) or named is None or any(n.startswith(GIVEN) for n in named):
        return None
    found = load_teacher(
        named,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        which=settings.teacher_which,
        weights=weights_said(settings).get("T"),
        mix=settings.teacher_mix,
    )
    return Teacher(found.module.eval(), found.source)


def own_examples(
    settings: Settings, student: nn.Module, teacher: Teacher | None, n: int, splits: Splits | None = None
) -> OwnExamples:
    """The attack that a run trains with, on the first n of its training images as they are, without augmentation.

    It is that of the last epoch, with all networks in eval mode. What a method remembers of its earlier steps begins
    anew.

    Args:
        settings: of the run.
        student: its network, with the weights that are looked at.
        teacher: its robust teacher.
        n: training images, or all if there are fewer.
        splits: its data; read from where the settings say if not given.

    Raises:
        Refused: if the training cannot be put together, or trains other networks beside the student, whose weights are
            not at hand here.
    """
    splits = splits or load_splits(settings)
    teachers = {"T": teacher.module} if isinstance(settings, DistillSettings) and teacher is not None else None
    # Nothing is trained here, so what a training would set up around it is left alone.
    settings = settings.model_copy(update={"threads": 0, "tensorboard": False})
    job = prepare(settings, student=student, teacher=teachers, data=splits)
    where = f"the training examples of {job.method.name}"
    if job.method.inner is None:
        raise Refused(where, expected="a method that makes some", got="one that makes none")
    if set(job.step.trained) != {"S"}:
        raise Refused(where, expected="a method that trains the student alone", got=", ".join(job.step.trained))
    images = splits.train
    if n < len(images):
        images = images.take(slice(0, n), f"the first {n:,} of {images.origin}")

    def made(x: Tensor, y: Tensor) -> Tensor:
        with evaluating(student):
            outcome = job.step.run(x, y, progress=1.0)
            job.step.settle()
        return outcome.batch.adv.value

    step_size = getattr(job.step.attack, "step_size", None)
    details = [] if step_size is None else [f"step {as_fraction(step_size)}"]
    steps = getattr(job.step.attack, "steps", None)
    name = type(job.step.attack).__name__ + ("" if steps is None else f"-{steps}")
    label = f"the attack of {job.method.name}: {name} on {job.method.says[0]}"
    return OwnExamples(
        images, made, label + (f" ({', '.join(details)})" if details else ""), Budget(settings.eps, settings.norm)
    )
