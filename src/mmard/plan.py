"""What a training would cost, found out by doing a little of it: passes counted, steps timed, nothing written."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

import torch
from torch import nn

from mmard.attacks import PGD, Attack, read_attack
from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.data.batches import Batches
from mmard.engine.twin import Record
from mmard.job import Job, method_of, method_parameters
from mmard.method import Method
from mmard.models import parameter_count
from mmard.modes import evaluating, frozen
from mmard.passes import Passes, count_passes
from mmard.seeds import generator
from mmard.settings import Settings, current_names, preset_values
from mmard.training.step import Step, descend

SECONDS = 5.0
"""Time that is spent on measuring steps."""


@dataclass(frozen=True)
class Pace:
    """Measured steps.

    Attributes:
        steps: how many were timed.
        images: in all of them.
        seconds: all of them took, updates included.
        peak_bytes: most memory that PyTorch held on the GPU meanwhile; None on a CPU.
    """

    steps: int
    images: int
    seconds: float
    peak_bytes: int | None = None

    @property
    def step_seconds(self) -> float:
        """Mean time of a step."""
        return self.seconds / self.steps

    @property
    def images_per_second(self) -> float:
        """Training images a second."""
        return self.images / self.seconds


def pace(
    method: Method, step: Step, batches: Batches, *, seconds: float = SECONDS, least: int = 2, accumulate: int = 1
) -> Pace:
    """Time real steps on copies of the networks, which themselves stay as they are.

    Args:
        method: built anew, since a method may remember what it has seen.
        step: the networks, attack and budget of the training.
        batches: training batches.
        seconds: stop after about so long.
        least: but time so many steps at least, after one that is not timed.
        accumulate: micro-batches of a step.
    """
    nets = {letter: copy.deepcopy(net) for letter, net in step.nets.items()}
    copied = Step(method, nets, step.attack, step.budget, step.seed, step.ascent, step.twins.engine)
    copied.twins.keep(step.twins.record)
    weights = [p for net in copied.trained.values() for p in net.train().parameters() if p.requires_grad]
    # At a rate of zero the networks stay as they are at the start, and a step takes as long as any other.
    optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9)
    device = weights[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began, done, images = time.perf_counter(), -1, 0
    for x, y in chain.from_iterable(batches.epoch(epoch) for epoch in count()):
        optimizer.zero_grad(set_to_none=True)
        descend(copied, x, y, 1.0, {}, accumulate)
        optimizer.step()
        _wait(device)
        done += 1
        if done == 0:
            began = time.perf_counter()
            continue
        images += len(y)
        if done >= least and time.perf_counter() - began >= seconds:
            break
    spent = time.perf_counter() - began
    return Pace(done, images, spent, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def attack_seconds(network: nn.Module, images: ImageSet, attack: Attack, budget: Budget, most: int = 128) -> float:
    """Time of attacking these images, extrapolated from one batch in which no image is let off."""
    some = images.take(slice(0, most))
    device = next(network.parameters()).device
    x, y = some.inputs(device=device), some.y.to(device)
    with evaluating(network), frozen(network):
        began = time.perf_counter()
        with torch.no_grad():
            network(x)
        attack(network, x, y, budget, generator=generator(device, 0, "pace"))
        _wait(device)
    return (time.perf_counter() - began) * len(images) / len(some)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Origin:
    """A setting, its value, and whether it was "said", comes from the "preset", or is the "default"."""

    name: str
    value: Any
    source: str


def origins(settings: Settings, said: Mapping[str, Any]) -> list[Origin]:
    """Every setting with where its value came from; parameters of methods one by one, by full name.

    Args:
        settings: as they were resolved.
        said: what was said, on the command line or in a file.
    """
    said = current_names(said)
    preset = preset_values(settings.preset, settings.host, settings.data)
    found = []
    for name, value in settings.as_config().items():
        if name != "params":
            found.append(Origin(name, value, "said" if name in said else "preset" if name in preset else "default"))
    said_params, preset_params = said.get("params", {}), preset.get("params", {})
    for full, default in method_parameters(settings).items():
        source = "said" if full in said_params else "preset" if full in preset_params else "default"
        found.append(Origin(full, settings.params.get(full, default), source))
    return found


@dataclass(frozen=True)
class Plan:
    """What a training is and what it would cost here.

    Attributes:
        job: the training, as it would run.
        weights: number of weights of each network, by letter.
        passes: counted passes of each network in a step, by letter.
        pace: measured steps.
        validation: seconds of one validation.
        done: epochs that a resumed run has behind it.
        engine: what stands for each network in the attack, by letter.
    """

    job: Job
    weights: dict[str, int]
    passes: dict[str, Passes]
    pace: Pace
    validation: float
    done: int = 0
    engine: Record = field(default_factory=dict)

    @property
    def epoch_seconds(self) -> float:
        """Seconds of one epoch, validation included."""
        return self.job.batches.steps * self.pace.step_seconds + self.validation

    @property
    def seconds(self) -> float:
        """Seconds to go."""
        return self.epoch_seconds * (self.job.recipe.epochs - self.done)


def plan(job: Job, done: int = 0, seconds: float = SECONDS) -> Plan:
    """Count, measure and extrapolate. Networks, run folders and random states are left as they are."""
    settings = job.settings

    def fresh() -> Method:
        return method_of(settings)

    steps = job.step.attack.steps if isinstance(job.step.attack, PGD) else settings.steps
    engine = job.choose_engine()
    return Plan(
        job=job,
        engine=engine,
        weights={letter: parameter_count(net) for letter, net in job.step.nets.items()},
        passes=count_passes(fresh(), steps),
        pace=pace(fresh(), job.step, job.batches, seconds=seconds, accumulate=settings.accumulate),
        validation=attack_seconds(
            job.student, job.validation, read_attack(settings.val_attack, job.step.budget), job.step.budget
        ),
        done=done,
    )
