"""Trainings that can be stopped anywhere, what is left of them, and the ways to stop them."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from little import (
    FACTS,
    RECIPE,
    batches_of,
    net,
    picture_set,
    run_in,
    same,
    step_of,
    validation,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmard.batch import Batch, Terms
from mmard.data.batches import Batches, LoaderBatches
from mmard.method import Method
from mmard.ops import ce, kl
from mmard.run import Event, Run
from mmard.training.checkpoint import Position
from mmard.training.fit import Validation, fit
from mmard.training.recipe import Recipe
from mmard.training.step import Step

NEVER = 1e9
"""Seconds between saves: none but the last."""


class Memory(nn.Module):
    """Losses of each class summed over an epoch, and the weights that they give the classes in the next."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("sums", 0.0), ("weights", 1.0)):
            self.register_buffer(name, torch.full((3,), value, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))


def remembering() -> Method:
    """A method with memory, of two networks that are both trained: S on labels and its peer P, P on S."""
    memory = Memory()

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        loss = ce(b.S(b.adv), b.y)
        memory.sums.index_add_(0, b.y, loss.detach().double())
        peer = b.nets["P"]
        weight = memory.weights[b.y].float()
        return {"label": weight * loss, "peer": kl(b.S(b.adv).detach(), peer(b.x)) + kl(peer(b.x), b.S(b.x))}

    def epoch_end() -> None:
        memory.weights.copy_(0.5 + memory.sums / memory.sums.sum())
        memory.sums.zero_()
        memory.epochs += 1

    return Method(
        "remembering",
        inner,
        outer,
        source="this test",
        says=("", ""),
        forwards={"S": ("x_adv", "x"), "P": ("x",)},
        nets=("S", "P"),
        memory=memory,
        epoch_end=epoch_end,
    )


class Shaken(Dataset[tuple[Tensor, int]]):
    """Pictures under a random transform that draws from all three global generators, as people write them."""

    def __init__(self) -> None:
        self.images = picture_set(40)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.images.x[index].float() / 255
        if random.random() < 0.5:
            x = x.flip(-1)
        x = (x + 0.1 * torch.rand(1) + 0.1 * float(np.random.rand())).clamp(0, 1)
        return x, int(self.images.y[index])


def plain() -> tuple[Step, Batches, Recipe]:
    return step_of("rslad+mmard"), batches_of(), replace(RECIPE, nesterov=True)


def ema() -> tuple[Step, Batches, Recipe]:
    return step_of("iad_i"), batches_of(), replace(RECIPE, average="ema", ema_decay=0.8, schedule="cosine")


def swa() -> tuple[Step, Batches, Recipe]:
    return step_of("rslad+igdm"), batches_of(), replace(RECIPE, average="swa", swa_from=0.3, schedule="step")


def memory() -> tuple[Step, Batches, Recipe]:
    return step_of(remembering(), P=net(seed=5)), batches_of(), RECIPE


def dropout() -> tuple[Step, Batches, Recipe]:
    return step_of("ard", net(dropout=0.4)), batches_of(), replace(RECIPE, average="swa", swa_from=0.0)


def loader() -> tuple[Step, Batches, Recipe]:
    theirs = DataLoader(Shaken(), batch_size=16, shuffle=True, generator=torch.Generator())
    return step_of("trades"), LoaderBatches(theirs, "cpu", seed=7), replace(RECIPE, grad_clip=0.5)


CASES: tuple[Callable[[], tuple[Step, Batches, Recipe]], ...] = (plain, ema, swa, memory, dropout, loader)
Observer = Callable[[Event], None]


def train(
    case: Callable[[], tuple[Step, Batches, Recipe]],
    folder: Path,
    observer: Observer | None = None,
    save_seconds: float = NEVER,
    validate: Callable[[nn.Module], Validation] = validation,
) -> tuple[Step, Position]:
    """Begin or go on, with everything but the folder made anew, as another process would."""
    step, batches, recipe = case()
    run = Run.open(folder) if folder.exists() else run_in(folder)
    observers = [observer] if observer is not None else []
    found = fit(step, batches, recipe, run, validate, facts=FACTS, observers=observers, save_seconds=save_seconds)
    return step, found


class Left:
    """All that a run leaves on disk, but for times."""

    def __init__(self, folder: Path) -> None:
        run = Run.open(folder)
        self.tensors, self.facts = run.load_state()
        for clock in ("seconds", "cpu_seconds"):
            self.facts["position"].pop(clock)
        self.weights = {which: run.weights_file(which).read_bytes() for which in ("best", "last")}
        self.epochs = [
            {k: v for k, v in event.items() if k != "seconds"} for event in run.log() if event["kind"] == "epoch"
        ]
        self.files = sorted(file.name for file in folder.iterdir())

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Left)
        assert same(self.tensors, other.tensors), [
            k for k in self.tensors if not torch.equal(self.tensors[k], other.tensors[k])
        ]
        assert self.facts == other.facts
        assert self.epochs == other.epochs
        assert self.weights == other.weights
        assert self.files == other.files
        return True


def left_state(folder: Path) -> dict[str, Tensor]:
    return Run.open(folder).load_state()[0]


class Killed(Exception):
    """The end of a process, as far as the run folder can tell."""


def at(number: int, act: Callable[[], None], kinds: tuple[str, ...] = ("tick", "step")) -> Observer:
    """Act when so many events of these kinds have been seen."""
    seen = 0

    def observe(event: Event) -> None:
        nonlocal seen
        seen += event["kind"] in kinds
        if event["kind"] in kinds and seen == number:
            act()

    return observe


def kill() -> None:
    raise Killed


def control_c() -> None:
    signal.raise_signal(signal.SIGINT)


class Counting(torch.optim.Optimizer):
    """Steps that shrink by a count which the groups keep, and no weight."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "taken": 0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["taken"] += 1
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.data -= group["lr"] / group["taken"] * weight.grad
