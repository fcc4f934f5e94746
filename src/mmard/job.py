"""A training put together from settings: data, networks, method, recipe, all checked before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from mmard.attacks import PGD, trial
from mmard.balls import Budget, as_fraction
from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.data import DATA, ImageSet, Splits, load
from mmard.data.augment import AUGMENTATIONS, augmentation
from mmard.data.batches import Batches, LoaderBatches, SetBatches
from mmard.data.gathered import gathered
from mmard.errors import Refused, unknown
from mmard.evaluation.evaluate import accuracies
from mmard.method import Method
from mmard.methods import compose
from mmard.models import check_logits
from mmard.networks import GIVEN, load_network, network_facts, new_network
from mmard.run import Event, Run
from mmard.training.checkpoint import Position
from mmard.training.fit import Validation, fit
from mmard.training.recipe import Recipe
from mmard.training.step import Step

GATE_IMAGES = 500
"""Validation images on which a teacher must do clearly better than chance before training starts."""

Loaders = tuple[DataLoader[Any], DataLoader[Any]]
"""Training and validation batches of a user's own."""


@dataclass
class Job:
    """Everything that a training needs, ready to start."""

    settings: Settings
    method: Method
    step: Step
    batches: Batches
    validation: ImageSet
    recipe: Recipe
    facts: dict[str, Any]
    splits: Splits | None
    teacher_source: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def student(self) -> nn.Module:
        """The network in training."""
        return self.step.nets["S"]

    def validate(self, network: nn.Module) -> Validation:
        """Clean and robust accuracy on the validation images, under `val_attack`."""
        attack = trial(self.settings.val_attack, self.step.budget)
        return Validation(*accuracies(network, self.validation, attack, self.step.budget, seed=self.settings.seed))

    def train(self, run: Run, observers: Sequence[Callable[[Event], None]] = ()) -> Position:
        """Train to the end, from where the run folder stands."""
        return fit(
            self.step,
            self.batches,
            self.recipe,
            run,
            self.validate,
            facts=self.facts,
            observers=observers,
            save_seconds=self.settings.save_seconds,
        )


def prepare(
    settings: Settings,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    data: Splits | Loaders | None = None,
    method: Method | None = None,
) -> Job:
    """Put a training together. Objects that are given stand in for what the settings name.

    Raises:
        Refused: for anything that would make the training fail or mean nothing; nothing has been written by then.
    """
    device = pick_device(settings.device)
    if settings.threads > 0:
        torch.set_num_threads(settings.threads)
    budget = Budget(settings.eps, settings.norm)
    method = method or compose(settings.method, settings.inner, settings.outer, settings.params)
    _check_kind(settings, method)
    attack = PGD(settings.steps, settings.step_size or budget.eps / 4, settings.start or method.start)
    attack.check(budget)
    trial(settings.val_attack, budget)
    recipe = recipe_of(settings)

    batches, validation, splits = _data(settings, data, device)
    name = settings.student if isinstance(settings, DistillSettings) else getattr(settings, "model", "")
    if student is None:
        student = new_network(name, validation, settings.normalise, settings.seed)
    else:
        name = f"{GIVEN}{type(student).__name__}"
        check_logits(student, validation.image_shape, validation.num_classes, "student")
    facts = network_facts(name, student, validation)
    nets = {"S": student.to(device)}

    source, notes = "", []
    if method.needs_teacher:
        assert isinstance(settings, DistillSettings)
        if teacher is None:
            found = load_network(
                settings.teacher,
                num_classes=validation.num_classes,
                image_shape=validation.image_shape,
                which=settings.teacher_which,
                weights=settings.teacher_weights,
                who="teacher",
            )
            teacher, source = found.module, found.source
        else:
            source = f"{GIVEN}{type(teacher).__name__}"
        nets["T"] = teacher.to(device)
        check_logits(teacher, validation.image_shape, validation.num_classes, "teacher")
        notes.append(_pass_gate(teacher, validation, budget, source))
    step = Step(method, nets, attack, budget, seed=settings.seed)
    return Job(settings, method, step, batches, validation, recipe, facts, splits, source, notes)


def recipe_of(settings: Settings) -> Recipe:
    """The training part of the settings."""
    return Recipe(**{name: getattr(settings, name) for name in Recipe.__dataclass_fields__})


def pick_device(name: str) -> torch.device:
    """The device of this name, or for "auto" a GPU if there is one.

    Raises:
        Refused: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0")) from None
    if device.type not in ("cpu", "cuda"):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Refused(f"device {name}", expected="a GPU that PyTorch sees", got=f"{torch.cuda.device_count()} of them", mend="use --device cpu")
    return device


def default_out(settings: Settings, method: str) -> str:
    """The folder of a run that was given none: runs/<date>-<method>-<network>-<seed>."""
    name = settings.student if isinstance(settings, DistillSettings) else getattr(settings, "model", "network")
    tidy = "".join(c if c.isalnum() or c in "-_+." else "-" for c in f"{method}-{name}")
    return f"runs/{date.today():%Y%m%d}-{tidy}-{settings.seed}"


def load_splits(settings: Settings) -> Splits:
    """The data that the settings name."""
    return load(
        settings.data,
        settings.data_dir,
        val_share=settings.val_share,
        split_seed=settings.split_seed,
        limit_train=settings.limit_train,
        on_disk=settings.on_disk,
        image_size=settings.image_size,
    )


def _data(
    settings: Settings, data: Splits | Loaders | None, device: torch.device
) -> tuple[Batches, ImageSet, Splits | None]:
    if isinstance(data, tuple):
        train, val = data
        return LoaderBatches(train, device, settings.seed), gathered(val, "validation loader"), None
    splits = data or load_splits(settings)
    name = settings.augment
    if name == "auto":
        name = DATA[settings.data].augmentation if data is None else "none"
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, ("auto", *AUGMENTATIONS))
    batches = SetBatches(splits.train, settings.batch_size, device, settings.seed, augmentation(name, splits.train.image_shape))
    return batches, splits.val, splits


def _check_kind(settings: Settings, method: Method) -> None:
    if isinstance(settings, TrainSettings) and method.needs_teacher:
        raise Refused(f"method {method.name}", expected="one without a teacher", got="one that reads T", mend="use mmard distill --teacher ...")
    if isinstance(settings, DistillSettings) and not method.needs_teacher:
        raise Refused(f"method {method.name}", expected="one that reads a teacher", got="one without", mend="use mmard train")


def _pass_gate(teacher: nn.Module, validation: ImageSet, budget: Budget, source: str) -> str:
    """Refuse a teacher that does no better than guessing; otherwise a line on what it achieves."""
    some = validation.take(torch.arange(min(GATE_IMAGES, len(validation))))
    attack = trial("fgsm", budget)
    clean, robust = accuracies(teacher, some, attack, budget)
    chance = some.y.bincount().max().item() / len(some)
    needed = chance + 3 * math.sqrt(chance * (1 - chance) / len(some))
    if clean <= needed:
        raise Refused(
            f"teacher {source}",
            expected=f"a clean accuracy above chance ({chance:.1%}) on {len(some)} validation images",
            got=f"{clean:.1%}",
            mend="are these its weights, and does it take images in [0, 1]?",
        )
    return f"teacher {source}: {clean:.1%} clean, {robust:.1%} under FGSM at {budget.norm} {as_fraction(budget.eps)}, {len(some)} validation images"
