"""A training put together from settings, all of it checked before the first step.

load_splits, load_images, batches_of    the images that settings name, or that are handed over, and their batches
prepare -> Job                          networks, method, recipe and data, ready to train
complete                                settings with every parameter of their methods said
pair_of, own_examples                   what stands beside a run's student: its teacher, the examples it learnt from
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from mmard._version import __version__
from mmard.attacks import TRAINING_ATTACKS, read_attack
from mmard.balls import Budget
from mmard.data import DATA, ImageSet, Splits, load, load_split
from mmard.data.augment import AUGMENTATIONS, augmentation
from mmard.data.batches import Batches, Labelled, LoaderBatches, SetBatches, as_image_set, as_loader
from mmard.engine.graphs import accumulation_notes, ascent_for
from mmard.engine.threads import take_threads
from mmard.engine.twin import Engine, Record, lay_out, refuse_without_bf16
from mmard.errors import Refused, unknown
from mmard.evaluation.evaluate import Protocol, accuracies
from mmard.evaluation.findings import OwnExamples, TeacherBeside
from mmard.files import tensors_hash, weights_hash
from mmard.method import Method
from mmard.methods import compose, every_parameter
from mmard.models import check_logits
from mmard.modes import evaluating
from mmard.networks import (
    companions,
    load_network,
    network_facts,
    new_network,
    own_device,
    pick_device,
    teacher_by_letter,
    trained_on,
)
from mmard.ranks import Ranks
from mmard.run import Event, Run
from mmard.settings import MACHINE, Settings, Value, code_of, given_label, is_given, preset_values
from mmard.training.checkpoint import Position
from mmard.training.fit import Validation, choose_twins, chosen_by, fit
from mmard.training.log import LOGS, TensorBoard, named_logs, writer_class
from mmard.training.recipe import Recipe
from mmard.training.step import Step, synchronised
from mmard.training.tables import NO_TABLES, Tables, tables_for
from mmard.trust import code_in, is_trusted, refuse_untrusted
from mmard.words import as_fraction

Loaders = tuple[Labelled, Labelled]
"""Training and validation images of a user's own: loaders, sets, or pairs of tensors."""


def load_splits(settings: Settings) -> Splits:
    """The data that the settings name."""
    return load(settings.data, settings.data_dir, **_data_settings(settings))


def load_images(settings: Settings, split: str) -> ImageSet:
    """One split of the data that the settings name; the images of the others are not read."""
    return load_split(settings.data, split, settings.data_dir, **_data_settings(settings))


def _data_settings(settings: Settings) -> dict[str, Any]:
    return {
        "val_share": settings.val_share,
        "split_seed": settings.split_seed,
        "limit_train": settings.limit_train,
        "on_disk": settings.on_disk,
        "image_size": settings.image_size,
        "skip_bad": settings.skip_bad,
    }


def batches_of(
    settings: Settings, data: Splits | Loaders | None, device: torch.device, ranks: Ranks | None
) -> tuple[Batches, ImageSet, Splits | None]:
    """(training batches, validation images, splits); None for splits where loaders were handed over.

    Raises:
        Refused: for data that is not there, or cannot be cut into such batches.
    """
    if isinstance(data, tuple) and len(data) == 2:
        train, val = data
        train = as_loader(train, settings.batch_size, "training images")
        batches = LoaderBatches(train, device, settings.seed, name="training loader")
        if batches.steps == 0:
            mend = "with drop_last, fewer images than a batch are none"
            raise Refused("training loader", expected="at least one batch", got="none", mend=mend)
        return batches, as_image_set(val, "validation loader"), None
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
    if ranks is not None:
        _refuse_thin(len(splits.train), settings.batch_size, ranks)
        ranks.refuse_unequal("training images", splits.train.fingerprint())
    share = ranks.rows if ranks is not None else None
    size = _batch_size(settings, len(splits.train))
    cut = SetBatches(splits.train, size, device, settings.seed, views, share=share, balance=settings.balance)
    return cut, splits.val, splits


def _batch_size(settings: Settings, images: int) -> int:
    """Images per step: what the settings say, or all there are where they say what the preset does."""
    usual = preset_values(settings.preset, settings.host, settings.data).get("batch_size", Settings().batch_size)
    return min(settings.batch_size, images) if settings.batch_size == usual else settings.batch_size


def _refuse_thin(images: int, batch_size: int, ranks: Ranks) -> None:
    """Refuse a last batch that leaves a process without two images, which BatchNorm needs."""
    rest = images % batch_size
    if 1 < rest < 2 * ranks.size:
        expected = f"a last batch of at least {2 * ranks.size} images, two for each of {ranks.size} processes"
        better = next(b for b in range(batch_size - 1, 1, -1) if images % b == 0 or images % b >= 2 * ranks.size)
        raise Refused("--batch-size", expected=expected, got=f"{rest} of {images}", mend=f"{better} would do")


NOT_IN_RESULTS = {
    *MACHINE,
    *("init", "teachers", "teacher_weights", "teacher_mean", "teacher_std", "teacher_which", "fill_table"),
}
"""Settings that may be others when a run is resumed: where things lie, and how they are kept. Of teachers and data the
hashes count."""


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

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """What a resumed run must find as it was: hashes of teachers and data, and the settings that decide results."""
        config = self.settings.as_config()
        said = {**config, **config["params"]}
        found = {f"setting {name}": value for name, value in said.items() if name not in (*NOT_IN_RESULTS, "params")}
        found |= {f"teacher {letter}": weights_hash(self.step.nets[letter]) for letter in self.method.teachers}
        if self.settings.init is not None:
            found["weights to begin from"] = weights_hash(self.student)
        if self.splits is not None:
            found["training images"] = self.splits.train.fingerprint()
        elif (first := _first_batch(self.batches)) is not None:
            found |= {"training loader's first batch": first, "training loader's batches": self.batches.steps}
        if "method" in self.settings.given:
            found["the method's code"] = code_hash(self.method)
        return found | {"validation images": self.validation.fingerprint()}

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
        said, budget = self.settings, self.step.budget
        attack = read_attack(said.val_attack, budget)
        protocol = Protocol((attack,), budget, seed=said.seed, engine=said.engine)
        return Validation(*accuracies(network, self.validation, protocol, self.step.ranks))

    @property
    def validation_label(self) -> str:
        """The attack of validation and its budget, e.g. "PGD-10 at linf 8/255"."""
        return f"{read_attack(self.settings.val_attack, self.step.budget).title} at {self.step.budget}"

    def train(self, run: Run, observers: Sequence[Callable[[Event], None]] = ()) -> Position:
        """Train to the end, from where the run folder stands."""
        first = self.step.ranks is None or self.step.ranks.rank == 0
        with ExitStack() as opened:
            logs = [LOGS[name](run) for name in named_logs(self.settings.log) if first]
            boards = [TensorBoard(run.path / "tensorboard")] if self.settings.tensorboard else []
            own = [opened.enter_context(closing(log)) for log in (*logs, *boards)]
            return self._fit(run, [*observers, *own])

    def choose_threads(self) -> None:
        """Where no number of CPU threads is said: take one or all, whichever is faster now.

        The settings say it from then on, so that a resumed run computes with as many.
        """
        if self.settings.threads or self.step.ranks is not None or torch.get_num_threads() == 1:
            return
        if next(self.student.parameters()).device.type != "cpu":
            return
        threads, notes = take_threads(self.student, self.validation.image_shape, self.settings.batch_size)
        self.settings = self.settings.model_copy(update={"threads": threads})
        self.notes += notes

    def choose_engine(self, run: Run | None = None) -> Record:
        """Make the twins: as this run had them so far, and as the first of several processes has them."""
        device = next(self.student.parameters()).device
        x = torch.zeros(self.settings.batch_size, *self.validation.image_shape, device=device)
        return choose_twins(self.step.twins, x, run, self.step.ranks)

    def _fit(self, run: Run, observers: Sequence[Callable[[Event], None]]) -> Position:
        made_from = self.made_from  # before a step changes a teacher that is tuned
        self.choose_engine(run)
        if self.settings.fill_table:
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
            made_from=made_from,
        )


def _first_batch(batches: Batches) -> str | None:
    """A hash of the first batch of a loader; None for one that gives another each time, which tells of no change."""

    def hashed() -> str:
        return tensors_hash(dict(zip("xy", next(batches.epoch(0)), strict=True)))

    found = hashed()
    return found if hashed() == found else None


def code_hash(method: Method) -> str:
    """A hash of the formulas of a method that was handed over: their code, and the numbers and functions that they
    close over. What their code calls elsewhere is not in it."""
    digest, seen = hashlib.sha256(), set[int]()

    def add(thing: Any) -> None:
        if isinstance(thing, int | float | str | bytes | None):
            digest.update(f"{type(thing).__name__} {thing!r} ".encode())
            return
        if id(thing) in seen:
            return
        seen.add(id(thing))
        thing = getattr(thing, "__func__", thing)
        code = thing if isinstance(thing, CodeType) else getattr(thing, "__code__", None)
        if code is not None:
            digest.update(code.co_code + " ".join((*code.co_names, *code.co_freevars)).encode())
            for each in (*code.co_consts, *(cell.cell_contents for cell in getattr(thing, "__closure__", None) or ())):
                add(each)
            for each in (
                *(getattr(thing, "__defaults__", None) or ()),
                *(getattr(thing, "__kwdefaults__", None) or {}).values(),
            ):
                add(each)
        elif isinstance(thing, tuple | list):
            for each in thing:
                add(each)
        else:
            digest.update(type(thing).__qualname__.encode())

    for formula in (method.inner, method.outer, method.around, method.epoch_end):
        add(formula)
    return digest.hexdigest()


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
    for name in code_of(dict(settings)):
        refuse_untrusted(name, "settings")
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
    named_logs(settings.log)
    budget = Budget(settings.eps, settings.norm)
    given = {"T": teacher} if isinstance(teacher, nn.Module) else dict(teacher or {})
    _refuse_what_is_lost(settings, student, given, data, method)
    method = method_of(settings, method)
    settings = complete(settings)
    _check_teachers(settings, method)
    attack = method.attack(budget, settings.steps, settings.step_size, settings.start or method.start)
    read_attack(settings.val_attack, budget)
    recipe = recipe_of(settings)

    batches, validation, splits = batches_of(settings, data, device, ranks)
    begins: list[str] = []
    if splits is not None and settings.skip_bad:
        begins += [part.origin for part in (splits.train, splits.test) if "left out" in part.origin]
    if splits is not None and isinstance(batches, SetBatches) and batches.batch_size < settings.batch_size:
        begins += [f"batches of {batches.batch_size}, all the training images, instead of {settings.batch_size}"]
        settings = settings.model_copy(update={"batch_size": batches.batch_size})
    if splits is None and student is not None:
        # Validation images may lack the last classes; a network that was handed over has an output for them.
        outputs = check_logits(student, validation.image_shape, None, "student", trained=True)
        if outputs > validation.num_classes:
            validation = replace(validation, classes=tuple(map(str, range(outputs))))
    if isinstance(batches, LoaderBatches):
        batches.num_classes = validation.num_classes
    images = splits.train if splits else validation
    name = settings.network
    if student is None and settings.init is not None:
        student, source = trained_on(name, settings.init, images)
        begins += [f"begins from {source}"]
    elif student is None:
        student = new_network(name, images, settings.normalise, settings.seed)
    else:
        name = given_label(student)
        check_logits(student, validation.image_shape, validation.num_classes, "student", trained=True)
    facts = network_facts(name, student, images)
    nets = {"S": student.to(device)}

    beside = companions(settings, method, name, given, images, validation, budget, device)
    nets, notes = {**nets, **beside.nets}, begins + list(beside.notes)
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
    tables = tables_for(settings.teacher_table, method, nets, splits.train if splits else None, batches)
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

    A method that was given as an object has none: they are within it. Of one whose code nobody has typed here they are
    what the settings say.
    """
    specs = (settings.inner or settings.method, settings.outer or settings.method)
    if not all(map(is_trusted, code_in(specs))):
        return dict(settings.params)
    return {} if "method" in settings.given else every_parameter(specs, params)


def complete(settings: Settings) -> Settings:
    """The settings with every parameter of their methods said, so that no default that moves later changes the run, and
    what the best weights are chosen by."""
    said: dict[str, Any] = {"params": method_parameters(settings, settings.params)}
    if settings.best_by == "auto" and "method" not in settings.given:
        said["best_by"] = chosen_by(compose(settings.method, settings.inner, settings.outer, settings.params))
    return settings.model_copy(update=said)


def recipe_of(settings: Settings) -> Recipe:
    """The training part of the settings."""
    return Recipe(**{name: getattr(settings, name) for name in Recipe.__dataclass_fields__})


def default_out(settings: Settings, method: str) -> str:
    """The folder of a run that was given none: runs/<date>-<method>-<network>-<seed>."""
    tidy = "".join(c if c.isalnum() or c in "-_+." else "-" for c in f"{method}-{settings.network}")
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
    if student is not None and settings.init is not None:
        mend = "load them into it"
        raise Refused("init", expected="none beside a network that is handed over", got=settings.init, mend=mend)
    objects = {"network": student, "data": data, "method": method, **teachers}
    for name in sorted(name for name in settings.given if objects.get(name) is None):
        if name in settings.teachers:
            argument, label = "teacher", next(filter(is_given, settings.teachers[name]))
        else:
            argument, label = name, getattr(settings, name)
        if name == "network":
            argument = "student" if settings.teachers else "model"
        mend = "this run was made in Python; go on there, with resume=True"
        raise Refused(f"setting {argument}", expected="the object itself", got=label, mend=mend)
    beside = [name for name in ("inner", "outer", "params") if getattr(settings, name)]
    if method is not None and beside:
        mend = "say it where the method is made"
        raise Refused(
            f"setting {beside[0]}", expected="nothing beside a Method", got=str(getattr(settings, beside[0])), mend=mend
        )


def _check_teachers(settings: Settings, method: Method) -> None:
    """Refuse teachers that no formula reads, and the lack of one that some formula does."""
    name, said = f"method {method.name}", settings.teachers
    if method.needs_teacher and not said:
        mend = "use mmard distill --teacher ..."
        raise Refused(name, expected="one without a teacher", got="one that reads T", mend=mend)
    if said and not method.needs_teacher:
        raise Refused(name, expected="one that reads a teacher", got="one without", mend="use mmard train")
    for setting in ("teacher_weights", "teacher_mean", "teacher_std"):
        if beside := [letter for letter in getattr(settings, setting) if letter not in said]:
            expected = f"the letter of a teacher that is named, {' or '.join(said) or 'of which there is none'}"
            raise Refused(f"setting {setting}", expected=expected, got=", ".join(beside))
    if {*said} != {*method.teachers}:
        missing = [letter for letter in method.teachers if letter not in said]
        mend = f"say --teacher {missing[0]}=RUN as well" if missing else "leave out what no formula reads"
        raise Refused(name, expected=f"the teachers {' and '.join(method.teachers)}", got=" and ".join(said), mend=mend)


@dataclass(frozen=True)
class Pair:
    """What there is to look at beside a student.

    Attributes:
        teacher: its teacher; None without one.
        own: its training examples; None where they cannot be made or are not asked for.
        notes: a line on each of these that was asked for and is not there.
    """

    teacher: TeacherBeside | None = None
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
    """The teacher and the training examples that the findings of these names take.

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
            found: TeacherBeside | None = _named(teacher, images)
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
    return Settings.resolve({**config, **said})


def _named(teacher: nn.Module | str | Path, images: ImageSet) -> TeacherBeside:
    if isinstance(teacher, nn.Module):
        return TeacherBeside(teacher, given_label(teacher))
    spec = str(teacher)
    found = load_network(spec, num_classes=images.num_classes, image_shape=images.image_shape, who="teacher")
    return TeacherBeside(found.module.eval(), found.source)


def teacher_of(settings: Settings, images: ImageSet) -> TeacherBeside | None:
    """The robust teacher that a run's settings name; None where they name none, or an object that no name can rebuild.

    Raises:
        Refused: if it is not there any more, or for other data.
    """
    named = settings.teachers.get("T")
    if named is None or "T" in settings.given:
        return None
    for name in named:
        refuse_untrusted(name, "the run's teacher")
    found = teacher_by_letter(settings, "T", images)
    return TeacherBeside(found.module.eval(), found.source)


def own_examples(
    settings: Settings, student: nn.Module, teacher: TeacherBeside | None, n: int, splits: Splits | None = None
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
    teachers = {"T": teacher.module} if settings.teachers and teacher is not None else None
    # Nothing is trained here, so what a training would set up around it is left alone.
    settings = settings.model_copy(update={"threads": 0, "tensorboard": False, "log": ""})
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
