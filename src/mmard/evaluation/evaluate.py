"""Attack a network on a set of images and count who survives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import Trial, Untargeted
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.score import Mask, Score
from mmard.modes import evaluating, frozen
from mmard.weights import weights_hash

Progress = Callable[[str, int, int, int], None]
"""Called with (attack, images it is done with, images it was given, images still read rightly of those it did)."""


@dataclass(frozen=True)
class Measured:
    """A score with its verdicts."""

    score: Score
    mask: Mask


@dataclass(frozen=True)
class Subject:
    """What every figure of one evaluation shares; its fields are those of `Score`."""

    split: str
    n: int
    seed: int
    batch_size: int
    weights: str
    data: str
    which: str
    images: str

    @classmethod
    def of(cls, model: nn.Module, images: ImageSet, *, split: str, which: str, seed: int, batch_size: int) -> Subject:
        """These weights on these images."""
        hashes = (weights_hash(model), images.fingerprint())
        return cls(split, len(images), seed, batch_size, *hashes, which, images.origin)

    def measured(self, attack: str, label: str, mask: Mask, seconds: float, ball: Budget | None) -> Measured:
        """The figure that a mask of verdicts (n,) comes to; no ball without an attack."""
        score = Score(
            attack=attack,
            label=label,
            norm=ball.norm if ball else None,
            eps=ball.eps if ball else None,
            correct=int(mask.sum()),
            seconds=round(seconds, 3),
            **asdict(self),
        )
        return Measured(score, mask)


def evaluate(
    model: nn.Module,
    images: ImageSet,
    trials: Sequence[Trial],
    budget: Budget,
    *,
    split: str,
    which: str,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> list[Measured]:
    """Clean accuracy, accuracy under each attack alone, and under all of them together.

    Images that are misread without an attack count as misread under each, and no attack is spent on them. The model is
    in eval mode inside and is put back as it was.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        trials: the attacks.
        budget: where adversarial examples may be.
        split: what the images are, for the records.
        which: what the weights are, for the records.
        seed: of the random starts.
        batch_size: images attacked at once; random starts depend on it.
        progress: told how far the evaluation is.

    Returns:
        "clean", one for each trial, and, with more than one trial, "worst_of_...": right under every attack.

    Raises:
        Refused: if logits are not finite.
    """
    state = next(chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if state is None else state.device
    measured = Subject.of(model, images, split=split, which=which, seed=seed, batch_size=batch_size).measured

    with evaluating(model), frozen(model):
        began = time.monotonic()
        clean = _standing(model, images, np.arange(len(images)), batch_size, device, None, progress, "clean")
        results = [measured("clean", "no attack", clean, time.monotonic() - began, None)]
        for trial in trials:
            began = time.monotonic()

            def attack(x: Tensor, y: Tensor, batch: int, trial: Trial = trial) -> Tensor:
                generator = seeds.generator(x.device, seed, "evaluate", trial.spec, batch)
                return trial.attack(model, Untargeted(y, trial.loss), x, budget, generator=generator)

            mask = _standing(model, images, np.flatnonzero(clean), batch_size, device, attack, progress, trial.spec)
            results.append(measured(trial.spec, trial.label, mask, time.monotonic() - began, budget))
    if len(trials) > 1:
        results.append(together(*results))
    return results


def together(clean: Measured, *each: Measured) -> Measured:
    """Right without an attack and under each of these attacks: "worst_of_..."."""
    specs = [m.score.attack for m in each]
    mask = np.logical_and.reduce([clean.mask, *(m.mask for m in each)])
    score = replace(
        each[0].score,
        attack="worst_of_" + ",".join(specs),
        label="right under each of " + ", ".join(specs),
        correct=int(mask.sum()),
        seconds=round(sum(m.score.seconds for m in (clean, *each)), 3),
    )
    return Measured(score, mask)


def _standing(
    model: nn.Module,
    images: ImageSet,
    who: np.ndarray,
    batch_size: int,
    device: torch.device,
    attack: Callable[[Tensor, Tensor, int], Tensor] | None,
    progress: Progress | None,
    name: str,
) -> Mask:
    """Which of the images `who` are classified rightly, after the attack if there is one; the others are not."""
    mask = np.zeros(len(images), dtype=np.bool_)
    for batch, first in enumerate(range(0, len(who), batch_size)):
        rows = torch.from_numpy(who[first : first + batch_size])
        x = images.x[rows].to(device).float() / 255
        y = images.y[rows].to(device)
        if attack is not None:
            x = attack(x, y, batch)
        with torch.no_grad():
            logits = model(x)
        if not torch.isfinite(logits).all():
            where = f"{name}, images {first} to {first + len(rows) - 1}"
            raise Refused(where, expected="finite logits", got="NaN or infinity")
        mask[rows.numpy()] = (~Untargeted(y, _never).fooled(logits)).cpu().numpy()
        if progress is not None:
            progress(name, first + len(rows), len(who), int(mask.sum()))
    return mask


def _never(logits: Tensor, y: Tensor) -> Tensor:
    raise AssertionError("verdicts climb nothing")


def accuracies(
    model: nn.Module, images: ImageSet, trial: Trial, budget: Budget, *, seed: int = 0, batch_size: int = 250
) -> tuple[float, float]:
    """Clean accuracy and accuracy under one attack, as fractions: what validation looks at after every epoch."""
    clean, attacked = evaluate(
        model, images, [trial], budget, split="val", which="now", seed=seed, batch_size=batch_size
    )
    return clean.score.accuracy, attacked.score.accuracy
