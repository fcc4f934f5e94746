"""The main job on bundled data: a robust teacher, small students, attacks on all of them, one table.

    teacher      cnn-32 by TRADES
    pgd_at       cnn-4 by adversarial training, the baseline without a teacher
    rslad        cnn-4 distilled by plain RSLAD
    rslad+mmard  cnn-4 distilled by RSLAD with MMARD on top

The students of a seed start from the same weights and see the same batches. Every network has its run folder, and what
is finished is never done twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmard.attacks import PGD, trial
from mmard.balls import Budget
from mmard.data import Splits
from mmard.data.batches import SetBatches
from mmard.errors import Refused
from mmard.evaluation.evaluate import Progress, evaluate
from mmard.evaluation.score import Score
from mmard.job import complete, prepare
from mmard.methods import build
from mmard.models import parameter_count
from mmard.networks import load_network, new_network
from mmard.plan import attack_seconds, pace
from mmard.run import Run, environment
from mmard.settings import DistillSettings, Settings, TrainSettings, differences
from mmard.training.checkpoint import Position
from mmard.training.step import Step

DATA, TEACHER, STUDENT = "digits", "cnn-32", "cnn-4"
ATTACKS = ("pgd-40", "cw-40")
WHICH: Literal["best", "last"] = "last"
"""Weights that are attacked and that teach. Best and last differ by chance where 130 images choose the best epoch."""
TEACHER_EPOCHS, STUDENT_EPOCHS, QUICK_EPOCHS = 25, 30, 2
QUICK_IMAGES = 256
THREADS = (1, 2, 4)
"""Thread counts that are tried: networks this small gain little from many, and lose much on a busy machine."""


@dataclass(frozen=True)
class Stage:
    """One network of the demo, for one seed.

    Attributes:
        name: "teacher" or the student's method; with the seed it names the folder.
        title: as the table calls it.
        settings: of its run.
        path: its run folder.
    """

    name: str
    title: str
    settings: Settings
    path: Path

    @property
    def network(self) -> str:
        """The network's name."""
        return (
            self.settings.student if isinstance(self.settings, DistillSettings) else getattr(self.settings, "model", "")
        )


@dataclass(frozen=True)
class Result:
    """One network, attacked.

    Attributes:
        stage: which.
        weights: how many it has.
        scores: "clean", one for each attack, and the worst case, in this order.
        masks: verdicts (n,) of the same.
    """

    stage: Stage
    weights: int
    scores: tuple[Score, ...]
    masks: tuple[NDArray[np.bool_], ...]


def stages(out: Path, seed: int, *, quick: bool = False, threads: int = 0) -> list[Stage]:
    """The networks of one seed, the teacher first.

    Raises:
        Refused: if one of their folders holds something else.
    """
    every: dict[str, Any] = {
        "data": DATA,
        "seed": seed,
        "epochs": QUICK_EPOCHS if quick else STUDENT_EPOCHS,
        "threads": threads,
    }
    if quick:
        every["limit_train"] = QUICK_IMAGES
    of_teacher = {**every, "epochs": QUICK_EPOCHS if quick else TEACHER_EPOCHS}
    teacher = out / f"teacher-{seed}"
    student = {**every, "student": STUDENT, "teacher": str(teacher), "teacher_which": WHICH}
    plain, grown = "rslad", "rslad+mmard"
    made = [
        Stage(
            "teacher",
            "teacher, TRADES",
            TrainSettings.resolve({**of_teacher, "method": "trades", "model": TEACHER}),
            teacher,
        ),
        Stage(
            "pgd_at",
            "student, PGD-AT",
            TrainSettings.resolve({**every, "method": "pgd_at", "model": STUDENT}),
            out / f"pgd_at-{seed}",
        ),
        Stage(plain, "student, RSLAD", DistillSettings.resolve({**student, "method": plain}), out / f"{plain}-{seed}"),
        Stage(
            grown,
            "student, RSLAD+MMARD",
            DistillSettings.resolve({**student, "method": grown}),
            out / f"{grown}-{seed}",
        ),
    ]
    return [_as_begun(replace(stage, settings=complete(stage.settings))) for stage in made]


def _as_begun(stage: Stage) -> Stage:
    """The stage with the settings of its run, if there is one: a run ends with the thread count it began with.

    A run that an earlier version began with other defaults is another run, which is neither used nor overwritten.
    """
    if not (stage.path / "config.json").is_file():
        Run.refuse_taken(stage.path)
        return stage
    held = Run.open(stage.path).config
    if differ := differences(held, stage.settings.as_config(), {"threads"}):
        mend = f"choose another --out, or remove {stage.path.parent} to have all of it made anew"
        raise Refused(str(stage.path), expected="a run of this demo", got=", ".join(differ[:3]), mend=mend)
    return Stage(stage.name, stage.title, type(stage.settings).resolve(held), stage.path)


def finished(stage: Stage) -> bool:
    """Whether a stage's training is over."""
    if not (stage.path / "config.json").is_file():
        return False
    run = Run.open(stage.path)
    return run.has_state and bool(run.load_state()[1]["position"]["finished"])


def train_stage(stage: Stage, progress: Callable[[float], None]) -> Position:
    """Train a stage from where its folder stands.

    Args:
        progress: told, after every step, which share of the training is done.

    Raises:
        Interrupted: after Ctrl-C, with the run saved.
    """
    job = prepare(stage.settings)
    steps = job.recipe.epochs * job.batches.steps
    begun = (stage.path / "config.json").is_file()
    run = Run.open(stage.path) if begun else Run.create(stage.path, stage.settings.as_config())
    return job.train(run, [lambda event: progress(event["step"] / steps)])


def attack_stage(stage: Stage, splits: Splits, progress: Progress | None = None) -> Result:
    """Attack a trained stage on the test images; records that its folder has already are not made again."""
    run = Run.open(stage.path)
    budget = Budget(stage.settings.eps, stage.settings.norm)
    network = load_network(str(stage.path), which=WHICH)
    known = {
        record["attack"]: record
        for record in run.score_records()
        if record["split"] == "test" and record["which"] == WHICH
    }
    names = ("clean", *ATTACKS, "worst_of_" + ",".join(ATTACKS))
    if not set(names) <= set(known):
        measured = evaluate(
            network.module,
            splits.test,
            [trial(spec, budget) for spec in ATTACKS],
            budget,
            split="test",
            which=WHICH,
            progress=progress,
        )
        here = environment()
        for each in measured:
            run.save_score(each.score.slug, each.score.record() | {"environment": here}, each.mask)
        return Result(
            stage, parameter_count(network.module), tuple(m.score for m in measured), tuple(m.mask for m in measured)
        )
    scores = tuple(_score(known[name]) for name in names)
    masks = tuple(np.load(run.scores / f"{score.slug}.npy", allow_pickle=False) for score in scores)
    return Result(stage, parameter_count(network.module), scores, masks)


def _score(record: dict[str, Any]) -> Score:
    return Score(**{name: record[name] for name in Score.__dataclass_fields__ if name in record})


# time ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Estimate:
    """What the demo takes here.

    Attributes:
        threads: the count that was fastest.
        training: seconds of training, by name of the stage.
        attacking: seconds of the attacks at the end, by name of the stage.
    """

    threads: int
    training: dict[str, float]
    attacking: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of one seed."""
        return sum(self.training.values()) + sum(self.attacking.values())


def estimate(planned: Sequence[Stage], splits: Splits) -> Estimate:
    """Measure a few steps of every stage, with the thread count that turns out the fastest."""
    began_with = torch.get_num_threads()
    try:
        costs = {
            n: _measured(planned[0], splits, n)[0] for n in THREADS if n <= max(1, min(began_with, os.cpu_count() or 1))
        }
        threads = min(costs, key=costs.__getitem__)
        measured = {stage.name: _measured(stage, splits, threads) for stage in planned}
    finally:
        torch.set_num_threads(began_with)
    epochs = {stage.name: stage.settings.epochs for stage in planned}
    return Estimate(
        threads,
        {name: epochs[name] * (step + validation) for name, (step, validation, _) in measured.items()},
        {name: attacking for name, (_, _, attacking) in measured.items()},
    )


def _measured(stage: Stage, splits: Splits, threads: int) -> tuple[float, float, float]:
    """Seconds of an epoch's steps, of a validation, and of the attacks on the test images."""
    torch.set_num_threads(threads)
    settings = stage.settings
    budget = Budget(settings.eps, settings.norm)
    method = build(settings.method)
    student = new_network(stage.network, splits.train, settings.normalise, settings.seed)
    teacher = new_network(TEACHER, splits.train, settings.normalise, settings.seed)
    nets = {"S": student, "T": teacher}
    attack = PGD(settings.steps, budget.eps / 4, method.start)
    images = splits.train if settings.limit_train is None else splits.train.take(slice(0, settings.limit_train))
    batches = SetBatches(images, settings.batch_size, "cpu", settings.seed)
    found = pace(method, Step(method, nets, attack, budget), batches, seconds=0.3)
    tries = [trial(spec, budget) for spec in (settings.val_attack, *ATTACKS)]
    validation = attack_seconds(student, splits.val, tries[0], budget)
    # Attacks differ in their number of steps alone.
    per_image_step = validation / (len(splits.val) * tries[0].attack.steps)
    return (
        found.step_seconds * batches.steps,
        validation,
        per_image_step * len(splits.test) * sum(t.attack.steps for t in tries[1:]),
    )
