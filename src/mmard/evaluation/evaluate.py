"""Attack a network on a set of images and count who survives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import Trial, Untargeted
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.engine.twins import Engine, Twins, described
from mmard.errors import Refused
from mmard.evaluation.dealt import Dealt
from mmard.evaluation.journal import Journal
from mmard.evaluation.score import Mask, Score
from mmard.modes import evaluating, frozen
from mmard.training.ranks import Ranks
from mmard.weights import weights_hash

NETWORK = "the network"
"""What the network is called where `Twins` wants a letter."""

Progress = Callable[[str, int, int, int], None]
"""Called with (attack, images it is done with, images it was given, images still read rightly of those it did)."""

Witness = Callable[[str, Tensor, Tensor, Tensor], None]
"""Called with (attack or "clean", rows (B,) of the set on the CPU, inputs that the network saw, its logits (B, C))."""


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

    def measured(
        self, attack: str, label: str, mask: Mask, seconds: float, ball: Budget | None, engine: str = ""
    ) -> Measured:
        """The figure that a mask of verdicts (n,) comes to; no ball and no engine without an attack."""
        score = Score(
            attack=attack,
            label=label,
            norm=ball.norm if ball else None,
            eps=ball.eps if ball else None,
            correct=int(mask.sum()),
            seconds=round(seconds, 3),
            engine=engine,
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
    witness: Witness | None = None,
    finished: Callable[[Measured], None] | None = None,
    folder: Path | None = None,
    ranks: Ranks | None = None,
    engine: str = "fast",
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
        witness: shown every batch, clean and attacked.
        finished: told the clean figure and that of each attack as soon as they are known.
        folder: where verdicts are kept after every batch, to go on from, and to be shared by processes that make the
            same call; not with a witness, which must see all.
        ranks: processes that make this call together, each with the same network: batches are dealt out, and all have
            all verdicts. Neither with a folder nor with a witness.
        engine: what the attacks ask: "fast", a twin of the network where it has one, or "plain", the network itself.
            The verdict on what they find is the network's own.

    Returns:
        "clean", one for each trial, and, with more than one trial, "worst_of_...": right under every attack.

    Raises:
        Refused: if logits are not finite.
    """
    state = next(chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if state is None else state.device
    subject = Subject.of(model, images, split=split, which=which, seed=seed, batch_size=batch_size)
    plan = {"norm": budget.norm, "eps": budget.eps, "seed": seed, "batch_size": batch_size, "engine": engine}
    plan |= {"weights": subject.weights, "data": subject.data}
    assert ranks is None or (folder is None and witness is None)
    twins = Twins(Engine(engine), {NETWORK: model})
    journal: Journal | Dealt = Journal(folder if witness is None else None, plan, len(images))
    if ranks is not None:
        journal = Dealt(ranks, len(images))

    def stage(name: str, who: np.ndarray, attack: Callable[[Tensor, Tensor, int], Tensor] | None) -> tuple[Mask, float]:
        def judge(batch: np.ndarray, number: int) -> Mask:
            rows, first = torch.from_numpy(batch), number * batch_size
            where = f"{name}, images {first} to {first + len(batch) - 1}"
            return _standing(model, images, rows, number, device, attack, name, where, witness)

        return journal.judged(name, who, batch_size, judge, progress)

    with evaluating(model), frozen(model):
        clean, seconds = stage("clean", np.arange(len(images)), None)
        results = [subject.measured("clean", "no attack", clean, seconds, None)]
        if finished is not None:
            finished(results[0])
        for trial in trials:

            def attack(x: Tensor, y: Tensor, batch: int, trial: Trial = trial) -> Tensor:
                generator = seeds.generator(x.device, seed, "evaluate", trial.spec, batch)
                asked = twins.serving(x)[NETWORK]
                return trial.attack(asked, Untargeted(y, trial.loss), x, budget, generator=generator)

            mask, seconds = stage(trial.spec, np.flatnonzero(clean), attack)
            line = described(twins.ready(inputs(images, slice(0, 1), device))[NETWORK])
            results.append(subject.measured(trial.spec, trial.label, mask, seconds, budget, line))
            if finished is not None:
                finished(results[-1])
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
    rows: Tensor,
    batch: int,
    device: torch.device,
    attack: Callable[[Tensor, Tensor, int], Tensor] | None,
    name: str,
    where: str,
    witness: Witness | None,
) -> Mask:
    """Which images of a batch are classified rightly, after the attack if there is one."""
    x = inputs(images, rows, device)
    y = images.y[rows].to(device)
    if attack is not None:
        x = attack(x, y, batch)
    with torch.no_grad():
        logits = model(x)
    if not torch.isfinite(logits).all():
        raise Refused(where, expected="finite logits", got="NaN or infinity")
    if witness is not None:
        witness(name, rows, x, logits)
    return (~Untargeted(y, _never).fooled(logits)).cpu().numpy()


def inputs(images: ImageSet, rows: Tensor | slice, device: torch.device) -> Tensor:
    """Images as networks take them, (B, C, H, W) in [0, 1]."""
    return images.x[rows].to(device).float() / 255


def _never(logits: Tensor, y: Tensor) -> Tensor:
    raise AssertionError("verdicts climb nothing")


def accuracies(
    model: nn.Module,
    images: ImageSet,
    trial: Trial,
    budget: Budget,
    *,
    seed: int = 0,
    batch_size: int = 250,
    ranks: Ranks | None = None,
    engine: str = "fast",
) -> tuple[float, float]:
    """Clean accuracy and accuracy under one attack, as fractions: what validation looks at after every epoch."""
    how: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "ranks": ranks, "engine": engine}
    clean, attacked = evaluate(model, images, [trial], budget, split="val", which="now", **how)
    return clean.score.accuracy, attacked.score.accuracy
