"""A training put together from settings: data, networks, method, recipe, all checked before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, TypeVar

import torch
from torch import nn

from mmard._version import __version__
from mmard.attacks import TRAINING_ATTACKS, trial
from mmard.balls import Budget
from mmard.companions import companions
from mmard.config import DistillSettings, Settings, TrainSettings, Value, teachers_said
from mmard.data import ImageSet, Splits
from mmard.data.batches import Batches
from mmard.devices import own_device, pick_device
from mmard.engine.layout import lay_out
from mmard.engine.twins import Engine, Record, refuse_without_bf16
from mmard.engine.ways import accumulation_notes, ascent_for
from mmard.errors import Refused, unknown
from mmard.evaluation.evaluate import accuracies
from mmard.images import Loaders, batches_of, with_all_classes
from mmard.method import Method
from mmard.methods import compose, every_parameter
from mmard.models import check_logits
from mmard.networks import GIVEN, network_facts, new_network
from mmard.run import Event, Run
from mmard.training.checkpoint import Position
from mmard.training.fit import fit
from mmard.training.forwards import synchronised
from mmard.training.known import NONE as NO_TABLES
from mmard.training.known import Tables, tables_for
from mmard.training.ranks import Ranks
from mmard.training.recipe import Recipe
from mmard.training.recorded import chosen
from mmard.training.step import Step
from mmard.training.tally import Validation
from mmard.training.tensorboard import TensorBoard, writer_class

AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass
class Job:
    """Everything that a training needs, ready to start. Its settings say every parameter, defaults included."""

    settings: Settings
    method: Method
    step: Step
    batches: Batches
    validation: ImageSet
    recipe: Recipe
    facts: dict[str, Any]
    splits: Splits | None
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: Tables = NO_TABLES

    @property
    def teacher_source(self) -> str:
        """Where the robust teacher came from; empty without one."""
        return self.sources.get("T", "")

    @property
    def student(self) -> nn.Module:
        """The network in training."""
        return self.step.nets["S"]

    def validate(self, network: nn.Module) -> Validation:
        """Clean and robust accuracy on the validation images, under `val_attack`."""
        attack = trial(self.settings.val_attack, self.step.budget)
        how: dict[str, Any] = {"seed": self.settings.seed, "ranks": self.step.ranks, "engine": self.settings.engine}
        return Validation(*accuracies(network, self.validation, attack, self.step.budget, **how))

    def train(self, run: Run, observers: Sequence[Callable[[Event], None]] = ()) -> Position:
        """Train to the end, from where the run folder stands."""
        if not self.settings.tensorboard:
            return self._fit(run, observers)
        with closing(TensorBoard(run.path / "tensorboard")) as board:
            return self._fit(run, [*observers, board])

    def choose_engine(self, run: Run | None = None) -> Record:
        """Make the twins: as this run had them so far, and as the first of several processes has them."""
        device = next(self.student.parameters()).device
        x = torch.zeros(self.settings.batch_size, *self.validation.image_shape, device=device)
        return chosen(self.step.twins, x, run, self.step.ranks)

    def _fit(self, run: Run, observers: Sequence[Callable[[Event], None]]) -> Position:
        self.choose_engine(run)
        if isinstance(self.settings, DistillSettings) and self.settings.fill_table:
            rank, size = (0, 1) if self.step.ranks is None else (self.step.ranks.rank, self.step.ranks.size)
            self.tables.fill(self.batches, lambda text: show({"kind": "note", "text": text}, observers), rank, size)
        return fit(
            self.step,
            self.batches,
            self.recipe,
            run,
            self.validate,
            facts=self.facts,
            others=self.others,
            observers=observers,
            save_seconds=self.settings.save_seconds,
            tables=self.tables,
            accumulate=self.settings.accumulate,
        )


def show(event: Event, observers: Sequence[Callable[[Event], None]]) -> None:
    """Tell an event that no log keeps."""
    for observer in observers:
        observer(event)


def prepare(
    settings: Settings,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | Mapping[str, nn.Module] | None = None,
    data: Splits | Loaders | None = None,
    method: Method | None = None,
    ranks: Ranks | None = None,
) -> Job:
    """Put a training together. Objects that are given stand in for what the settings name.

    Several teachers are given by letter. With `ranks`, this process takes its share of every batch.

    Raises:
        Refused: for anything that would make the training fail or mean nothing; nothing has been written by then.
    """
    device = pick_device(settings.device)
    if ranks is not None:
        device = own_device(device, ranks)
        _refuse_apart(settings, data, ranks)
    if settings.tensorboard:
        writer_class()  # refuses here, and not when the folder has been made
    if settings.threads > 0:
        torch.set_num_threads(settings.threads)
    engine = Engine(settings.engine, settings.precision)
    engine.check(device)
    if settings.autocast_update:
        refuse_without_bf16("--autocast-update", device)
    budget = Budget(settings.eps, settings.norm)
    given = {"T": teacher} if isinstance(teacher, nn.Module) else dict(teacher or {})
    _refuse_what_is_lost(settings, student, given, data, method)
    method = method_of(settings, method)
    settings = complete(settings)
    _check_kind(settings, method)
    attack = method.attack(budget, settings.steps, settings.step_size, settings.start or method.start)
    trial(settings.val_attack, budget)
    recipe = recipe_of(settings)

    batches, validation, splits = batches_of(settings, data, device, ranks)
    if splits is None and student is not None:
        validation = with_all_classes(validation, student)
    images = splits.train if splits else validation
    name = settings.student if isinstance(settings, DistillSettings) else getattr(settings, "model", "")
    if student is None:
        student = new_network(name, images, settings.normalise, settings.seed)
    else:
        name = f"{GIVEN}{type(student).__name__}"
        check_logits(student, validation.image_shape, validation.num_classes, "student")
    facts = network_facts(name, student, images)
    nets = {"S": student.to(device)}

    beside = companions(settings, method, name, given, images, validation, budget, device)
    nets, notes = {**nets, **beside.nets}, list(beside.notes)
    if settings.sync_bn:
        if ranks is None:
            mend = "start several processes with torchrun"
            raise Refused("--sync-bn", expected="several processes", got="one", mend=mend)
        nets |= {letter: synchronised(nets[letter]) for letter in method.forwards}
    if method.memory is not None:
        method.memory.to(device)
    ascent, ignored = ascent_for(method, attack, device, settings.attack_chunk, settings.cuda_graphs)
    if engine.kind == "fast":
        for letter in method.forwards:
            lay_out(nets[letter], validation.image_shape)
    how: dict[str, Any] = {"ascent": ascent, "compiled": settings.compile, "engine": engine, "ranks": ranks}
    step = Step(method, nets, attack, budget, seed=settings.seed, autocast=settings.autocast_update, **how)
    notes += ignored
    notes += ["update in bfloat16 by autocast: not the method's own arithmetic"] if settings.autocast_update else []
    notes += accumulation_notes(method, settings.accumulate, settings.batch_size if splits else None)
    where = settings.teacher_table if isinstance(settings, DistillSettings) else "off"
    tables = tables_for(where, method, nets, splits.train if splits else None, batches)
    notes += tables.notes
    about = (splits, beside.sources, notes, beside.facts, tables)
    return Job(settings, method, step, batches, validation, recipe, facts, *about)


def method_of(settings: Settings, method: Method | None = None) -> Method:
    """The method that the settings describe, or the given one, with the training attack that they name.

    Raises:
        Refused: for names and parameters that are none.
    """
    made = method or compose(settings.method, settings.inner, settings.outer, settings.params)
    if settings.attack is None:
        return made
    if settings.attack not in TRAINING_ATTACKS:
        raise unknown("attack", settings.attack, TRAINING_ATTACKS)
    return replace(made, attack=TRAINING_ATTACKS[settings.attack])


def method_parameters(settings: Settings, params: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """Parameters of the methods and plug-ins that settings name, by full name: as in `params`, or their defaults.

    A method that was given as an object has none: they are within it.
    """
    specs = (settings.inner or settings.method, settings.outer or settings.method)
    return {} if settings.method.startswith(GIVEN) else every_parameter(specs, params)


def complete(settings: AnySettings) -> AnySettings:
    """The settings with every parameter of their methods said, so that no default that moves later changes the run."""
    return settings.model_copy(update={"params": method_parameters(settings, settings.params)})


def recipe_of(settings: Settings) -> Recipe:
    """The training part of the settings."""
    return Recipe(**{name: getattr(settings, name) for name in Recipe.__dataclass_fields__})


def default_out(settings: Settings, method: str) -> str:
    """The folder of a run that was given none: runs/<date>-<method>-<network>-<seed>."""
    name = settings.student if isinstance(settings, DistillSettings) else getattr(settings, "model", "network")
    tidy = "".join(c if c.isalnum() or c in "-_+." else "-" for c in f"{method}-{name}")
    return f"runs/{date.today():%Y%m%d}-{tidy}-{settings.seed}"


def _refuse_apart(settings: Settings, data: Splits | Loaders | None, ranks: Ranks) -> None:
    """Refuse what several processes cannot do together."""
    if isinstance(data, tuple):
        mend = "hand over Splits, of which each process takes its rows"
        raise Refused("data", expected="a name or Splits, with several processes", got="loaders", mend=mend)
    if settings.batch_size < 2 * ranks.size:
        expected = f"at least {2 * ranks.size}, two images for each of {ranks.size} processes"
        raise Refused("--batch-size", expected=expected, got=str(settings.batch_size))
    ranks.refuse_unequal("settings", json.dumps(settings.as_config(), sort_keys=True, default=str))
    ranks.refuse_unequal("version", f"mmard {__version__}, torch {torch.__version__}")


def _refuse_what_is_lost(
    settings: Settings,
    student: nn.Module | None,
    teachers: Mapping[str, nn.Module],
    data: Splits | Loaders | None,
    method: Method | None,
) -> None:
    """Refuse settings that stand for an object which is not here, and settings that a given object would not follow."""
    given = {"model": student, "student": student, "data": data, "method": method}
    values = [(name, getattr(settings, name, ""), thing) for name, thing in given.items()]
    for letter, specs in teachers_said(settings).items() if isinstance(settings, DistillSettings) else ():
        values += [("teacher", spec, teachers.get(letter)) for spec in specs]
    for name, value, thing in values:
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
    if isinstance(settings, DistillSettings) and {*teachers_said(settings)} != {*method.teachers}:
        missing = [letter for letter in method.teachers if letter not in teachers_said(settings)]
        got = f"{' and '.join(teachers_said(settings)) or 'none'}"
        mend = f"say --teacher {missing[0]}=RUN as well" if missing else "leave out what no formula reads"
        raise Refused(name, expected=f"the teachers {' and '.join(method.teachers)}", got=got, mend=mend)
