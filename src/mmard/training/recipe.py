"""How weights are updated: optimiser, learning rate over the run, averaging. No word about losses."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mmard.errors import Refused, cause, unknown
from mmard.modes import blend, ema_share
from mmard.training.step import Step
from mmard.trust import import_code, is_code, refuse_untrusted

SCHEDULES = ("step", "cosine", "late-cosine", "one-cycle", "constant")
OPTIMIZERS = ("sgd", "adam", "adamw")
AVERAGES = ("none", "ema", "swa")
BEST_BY = ("auto", "robust", "clean")


@dataclass(frozen=True)
class Recipe:
    """The optimiser and its schedule.

    Attributes:
        epochs: passes over the training set.
        lr: the largest learning rate of the run.
        optimizer: "sgd", "adam", "adamw", or `package:Class` that a person has typed.
        optimizer_params: further arguments of its own.
        momentum, nesterov: of SGD.
        weight_decay: coupled in SGD, as in all papers of the field, and in Adam; decoupled in AdamW.
        schedule: "step", "cosine" (to 0), "late-cosine" (the same from the first milestone on), "one-cycle" (0 to lr,
            then to 0, per step), or "constant".
        milestones: for "step", where the rate is multiplied by `drop`: whole epochs (0-based, the first with the new
            rate) or, below 1, shares of the run.
        peak: for "one-cycle", the share of the run at which it reaches `lr`.
        drop: factor at each milestone.
        warmup: epochs over which the rate grows linearly from 0, before whatever the schedule says.
        average: "none", "ema" (per step, buffers included) or "swa" (equal over epoch ends, BatchNorm re-estimated).
        ema_decay: weight of the past in the exponential average.
        swa_from: share of the run from which epoch ends are averaged.
        grad_clip: largest norm of the gradient, 0 for none.
        best_by: which accuracy on validation images chooses the best weights: "robust" (of equals the more accurate on
            clean images), "clean" (the other way around), or "auto": clean for a method without an attack.

    Raises:
        Refused: for values that no training can run with.
    """

    epochs: int
    lr: float = 0.1
    optimizer: str = "sgd"
    optimizer_params: Mapping[str, Any] = field(default_factory=dict)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1
    peak: float = 0.3
    warmup: float = 0.0
    average: str = "none"
    ema_decay: float = 0.995
    swa_from: float = 0.5
    grad_clip: float = 0.0
    best_by: str = "auto"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.average not in AVERAGES:
            raise unknown("average", self.average, AVERAGES)
        if self.best_by not in BEST_BY:
            raise unknown("best_by", self.best_by, BEST_BY)
        wants = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "a positive rate"),
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < 1, "a number in [0, 1)"),
            ("drop", 0 < self.drop <= 1, "a number in (0, 1]"),
            ("peak", 0 < self.peak < 1, "a share of the run in (0, 1)"),
            ("warmup", 0 <= self.warmup < self.epochs, f"fewer than the {self.epochs} epochs"),
            ("ema_decay", 0 <= self.ema_decay < 1, "a number in [0, 1)"),
            ("swa_from", 0 <= self.swa_from < 1, "a share of the run in [0, 1)"),
            ("grad_clip", self.grad_clip >= 0, "0 or a positive norm"),
        )
        for name, holds, expected in wants:
            if not holds:
                raise Refused(name, expected=expected, got=f"{getattr(self, name):g}")
        if self.optimizer not in OPTIMIZERS and not is_code(self.optimizer):
            raise unknown("optimizer", self.optimizer, (*OPTIMIZERS, "package:Class"))
        if self.nesterov and self.momentum == 0:
            raise Refused("nesterov", expected="a momentum above 0", got="0")
        if self.schedule in ("step", "late-cosine"):
            drops = self.drop_epochs()
            if any(not 0 < e < self.epochs for e in drops) or any(a >= b for a, b in pairwise(drops)):
                raise Refused(
                    "milestones",
                    expected=f"rising epochs below {self.epochs}, or shares of the run below 1",
                    got=", ".join(f"{m:g}" for m in self.milestones),
                )

    def drop_epochs(self) -> tuple[float, ...]:
        """The milestones as 0-based epochs: each lower rate begins with the first epoch that is not before it."""
        return tuple(self._share(m) if m < 1 else m for m in self.milestones)

    def swa_epoch(self) -> float:
        """`swa_from` as a 0-based epoch: averaging begins with the first one that is not before it."""
        return self._share(self.swa_from)

    def _share(self, share: float) -> float:
        # 0.07 * 100 is a little more than 7; the rounding keeps what falls on an epoch there.
        return round(share * self.epochs, 9)

    def lr_at(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of a step.

        Args:
            epoch: 0-based.
            step: 0-based, within the epoch.
            steps: per epoch.

        >>> [round(Recipe(epochs=4, schedule="step").lr_at(e, 0, 1), 6) for e in range(4)]
        [0.1, 0.1, 0.01, 0.001]
        """
        here = epoch + step / steps
        share = here / self.epochs
        if self.schedule == "step":
            rate = self.lr * self.drop ** sum(epoch >= e for e in self.drop_epochs())
        elif self.schedule == "cosine":
            rate = self.lr * (1 + math.cos(math.pi * share)) / 2
        elif self.schedule == "late-cosine":
            first = self.drop_epochs()[0] if self.milestones else 0
            rate = self.lr * (1 + math.cos(math.pi * max(0.0, here - first) / (self.epochs - first))) / 2
        elif self.schedule == "one-cycle":
            # Half a step is added so that neither the first nor the last step is spent at a rate of zero.
            share = (here + 0.5 / steps) / self.epochs
            rate = self.lr * min(share / self.peak, (1 - share) / (1 - self.peak))
        else:
            rate = self.lr
        if here < self.warmup:
            rate *= min(1.0, (here + 0.5 / steps) / self.warmup)
        return rate


class Average:
    """A second copy of a network that holds the average of the first, in eval mode.

    Izmailov, Podoprikhin, Garipov, Vetrov, Wilson. "Averaging Weights Leads to Wider Optima and Better
    Generalization", UAI 2018 (SWA); Gowal, Qin, Uesato, Mann, Kohli. "Uncovering the Limits of Adversarial Training
    against Norm-Bounded Adversarial Examples", 2020, arXiv:2010.03593 (EMA in adversarial training).

    Under "ema" BatchNorm's statistics are averaged with the weights. Under "swa" they belong to no average and are
    estimated anew from training images whenever the average is about to be used.

    Attributes:
        module: the averaged copy. Before anything was averaged it equals the network.
        count: epoch ends averaged so far ("swa"), or steps ("ema").
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.count = 0

    def after_step(self) -> None:
        """Let the weights of this step into an exponential average."""
        if self.recipe.average == "ema":
            self.count += 1
            blend(self.module, self.network, ema_share(self.recipe.ema_decay, self.count))

    def after_epoch(self, epoch: int) -> None:
        """Let the weights of this epoch's end (0-based) into an equal average."""
        if self.recipe.average == "swa" and epoch >= self.recipe.swa_epoch():
            self.count += 1
            blend(self.module, self.network, 1 / self.count)

    def ready(self, images: Iterable[Tensor]) -> nn.Module:
        """The network to evaluate: the average, once there is one.

        Args:
            images: training batches (B, C, H, W), from which an equal average takes its BatchNorm statistics.
        """
        if self.count == 0:
            return self.network
        if self.recipe.average == "swa":
            update_bn(images, self.module)
            self.module.eval()
        return self.module


def optimizer_of(step: Step, recipe: Recipe) -> torch.optim.Optimizer:
    """One optimiser with a group for each network, by the recipe, or in SGD by the network's tuning.

    Raises:
        Refused: for an optimiser that cannot be made so, and one beside a network with a tuning of its own.
    """
    groups: list[dict[str, Any]] = []
    for letter, net in step.trained.items():
        tuning = step.method.tunes.get(letter)
        own = {} if tuning is None else {"momentum": tuning.momentum, "weight_decay": tuning.weight_decay}
        own |= {} if tuning is None else {"nesterov": False}
        groups.append({"letter": letter, "params": [p for p in net.parameters() if p.requires_grad], **own})
    if recipe.optimizer == "sgd":
        own = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov}
        return _made(torch.optim.SGD, groups, recipe, own)
    if step.method.tunes:
        mend = "leave --optimizer out"
        expected = "sgd, by which this method goes on training a teacher"
        raise Refused(f"optimizer on {step.method.name}", expected=expected, got=recipe.optimizer, mend=mend)
    known = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if recipe.optimizer in known:
        return _made(known[recipe.optimizer], groups, recipe, {"weight_decay": recipe.weight_decay})
    refuse_untrusted(recipe.optimizer, f"optimizer {recipe.optimizer}")
    cls = import_code(recipe.optimizer, "optimizer")
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        got = getattr(cls, "__name__", type(cls).__name__)
        raise Refused(f"optimizer {recipe.optimizer}", expected="a class of torch optimisers", got=got)
    takes = inspect.signature(cls).parameters
    return _made(cls, groups, recipe, {"weight_decay": recipe.weight_decay} if "weight_decay" in takes else {})


def _made(
    cls: type[torch.optim.Optimizer], groups: list[dict[str, Any]], recipe: Recipe, own: dict[str, Any]
) -> torch.optim.Optimizer:
    # On a GPU in one kernel for all weights, where the optimiser can; elsewhere PyTorch chooses.
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    fused = {"fused": True} if on_gpu and "fused" in inspect.signature(cls).parameters else {}
    where = f"optimizer {recipe.optimizer}"
    try:
        made = cls(groups, **{"lr": recipe.lr, **own, **fused, **recipe.optimizer_params})
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refused(
            where, expected="arguments that it takes", got=cause(error), mend="see --optimizer-param"
        ) from error
    if any(p.default is p.empty for name, p in inspect.signature(made.step).parameters.items()):
        raise Refused(where, expected="one whose step needs no closure", got="one that calls the loss itself")
    return made
