"""A training put together from settings: data, networks, method, recipe, all checked before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
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
from mmard.evaluation.evaluate import accuracies, evaluate
from mmard.method import Method
from mmard.methods import compose
from mmard.models import check_logits
from mmard.modes import evaluating
from mmard.networks import GIVEN, load_network, network_facts, new_network
from mmard.run import Event, Run
from mmard.training.checkpoint import Position
from mmard.training.fit import Validation, fit
from mmard.training.recipe import Recipe
from mmard.training.step import Step
from mmard.training.tensorboard import TensorBoard, writer_class

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
        if not self.settings.tensorboard:
            return self._fit(run, observers)
        with closing(TensorBoard(run.path / "tensorboard")) as board:
            return self._fit(run, [*observers, board])

    def _fit(self, run: Run, observers: Sequence[Callable[[Event], None]]) -> Position:
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
    if settings.tensorboard:
        writer_class()  # refuses here, and not when the folder has been made
    if settings.threads > 0:
        torch.set_num_threads(settings.threads)
    budget = Budget(settings.eps, settings.norm)
    _refuse_what_is_lost(settings, student, teacher, data, method)
    method = method or compose(settings.method, settings.inner, settings.outer, settings.params)
    _check_kind(settings, method)
    step_size = budget.eps / 4 if settings.step_size is None else settings.step_size
    attack = PGD(settings.steps, step_size, settings.start or method.start)
    attack.check(budget)
    trial(settings.val_attack, budget)
    recipe = recipe_of(settings)

    batches, validation, splits = _data(settings, data, device)
    if splits is None and student is not None:
        validation = _with_all_classes(validation, student)
    images = splits.train if splits else validation
    name = settings.student if isinstance(settings, DistillSettings) else getattr(settings, "model", "")
    if student is None:
        student = new_network(name, images, settings.normalise, settings.seed)
    else:
        name = f"{GIVEN}{type(student).__name__}"
        check_logits(student, validation.image_shape, validation.num_classes, "student")
    facts = network_facts(name, student, images)
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
    if method.memory is not None:
        method.memory.to(device)
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
        got = f"{torch.cuda.device_count()} of them"
        raise Refused(f"device {name}", expected="a GPU that PyTorch sees", got=got, mend="use --device cpu")
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
    if isinstance(data, tuple) and len(data) == 2:
        train, val = data
        batches = LoaderBatches(train, device, settings.seed)
        if batches.steps == 0:
            mend = "with drop_last, fewer images than a batch are none"
            raise Refused("training loader", expected="at least one batch", got="none", mend=mend)
        return batches, gathered(val, "validation loader"), None
    if not isinstance(data, Splits | None):
        expected = "a name, Splits, or a tuple of a training and a validation loader"
        raise Refused("data", expected=expected, got=f"a {type(data).__name__}")
    splits = data or load_splits(settings)
    name = settings.augment
    if name == "auto":
        name = DATA[settings.data].augmentation if data is None else "none"
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, ("auto", *AUGMENTATIONS))
    views = augmentation(name, splits.train.image_shape)
    return SetBatches(splits.train, settings.batch_size, device, settings.seed, views), splits.val, splits


def _with_all_classes(images: ImageSet, student: nn.Module) -> ImageSet:
    """A user's validation loader may lack the last classes; a network of the user's own has an output for them."""
    state = next(student.parameters(), None)
    x = images.x[:2].to("cpu" if state is None else state.device).float() / 255
    with suppress(Exception), evaluating(student), torch.no_grad():  # what is wrong with it is told by its check
        outputs = student(x).shape[1]
        if outputs > images.num_classes:
            return replace(images, classes=tuple(map(str, range(outputs))))
    return images


def _refuse_what_is_lost(
    settings: Settings,
    student: nn.Module | None,
    teacher: nn.Module | None,
    data: Splits | Loaders | None,
    method: Method | None,
) -> None:
    """Refuse settings that stand for an object which is not here, and settings that a given object would not follow."""
    given = {"model": student, "student": student, "teacher": teacher, "data": data, "method": method}
    for name, thing in given.items():
        value = getattr(settings, name, "")
        if thing is None and value.startswith(GIVEN):
            mend = "this run was made in Python; go on there, with resume=True"
            raise Refused(f"setting {name}", expected="the object itself", got=value, mend=mend)
    told = [name for name in ("inner", "outer", "params") if getattr(settings, name)]
    if method is not None and told:
        mend = "say it where the method is made"
        raise Refused(
            f"setting {told[0]}", expected="nothing beside a Method", got=str(getattr(settings, told[0])), mend=mend
        )


def _check_kind(settings: Settings, method: Method) -> None:
    name = f"method {method.name}"
    if isinstance(settings, TrainSettings) and method.needs_teacher:
        mend = "use mmard distill --teacher ..."
        raise Refused(name, expected="one without a teacher", got="one that reads T", mend=mend)
    if isinstance(settings, DistillSettings) and not method.needs_teacher:
        raise Refused(name, expected="one that reads a teacher", got="one without", mend="use mmard train")


def _pass_gate(teacher: nn.Module, validation: ImageSet, budget: Budget, source: str) -> str:
    """Refuse a teacher that does no better than guessing; otherwise a line on what it achieves.

    Accuracy is averaged over the classes, so that always saying the largest class is worth as little as guessing.
    """
    # From all over the set: a loader of somebody's own may be sorted by class.
    some = validation.take(torch.linspace(0, len(validation) - 1, min(GATE_IMAGES, len(validation))).long())
    clean, attacked = evaluate(teacher, some, [trial("fgsm", budget)], budget, split="val", which="teacher")
    counts = some.class_counts()
    met = counts > 0
    right = some.y[torch.from_numpy(clean.mask)].bincount(minlength=len(counts))
    balanced = (right[met] / counts[met]).mean().item()
    classes = int(met.sum())
    chance = 1 / classes
    spread = math.sqrt(chance * (1 - chance) * (1 / counts[met]).sum().item()) / classes
    if balanced <= chance + 3 * spread and classes > 1:
        raise Refused(
            f"teacher {source}",
            expected=f"a clean accuracy over classes above chance ({chance:.1%}) on {len(some)} validation images",
            got=f"{balanced:.1%}",
            mend="are these its weights, and does it take images in [0, 1]?",
        )
    accuracy, robust = clean.score.accuracy, attacked.score.accuracy
    ball = f"{budget.norm} {as_fraction(budget.eps)}"
    note = f"teacher {source}: {accuracy:.1%} clean, {robust:.1%} under FGSM at {ball}, {len(some)} validation images"
    if robust < accuracy / 2:
        note += "; it hardly holds under attack itself: guidance by such a teacher can hurt (docs/mmard.md)"
    return note
