"""Attack a network on a set of images and count who survives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import Trial, Untargeted
from mmard.attacks.authors import Authors, Own
from mmard.attacks.autoattack import Ensemble, standard
from mmard.attacks.autoattack import described as attack_described
from mmard.attacks.queries import sliced
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.engine.twin import Engine, Twins, described
from mmard.errors import Refused
from mmard.evaluation.journal import Journal, Judge, Told, cut
from mmard.evaluation.score import Mask, Score
from mmard.files import weights_hash
from mmard.modes import evaluating, frozen
from mmard.ops import correct
from mmard.training.ranks import Ranks

# dealt ----------------------------------------------------------------------------------------------------------------
# Verdicts that several processes make at the same time and keep nowhere: validation during their training.
#
# They are in step anyway, so every batch has its process beforehand, and verdicts are exchanged after every attack.
# What takes long, or should outlive a process, goes by a folder instead (see `journal.py`).


class Dealt:
    """As `Journal`, for processes that make the same calls: each judges the batches that are dealt to it.

    Args:
        ranks: this process among the others.
        n: images in the set.
    """

    def __init__(self, ranks: Ranks, n: int) -> None:
        self._ranks, self._n = ranks, n

    def judged(
        self, attack: str, who: NDArray[np.int64], batch_size: int, judge: Judge, told: Told | None
    ) -> tuple[Mask, float]:
        """As `Journal.judged`; `told` only once, at the end."""
        right, began = np.zeros(self._n + 1), time.monotonic()
        for number, batch in enumerate(cut(who, batch_size)):
            if number % self._ranks.size == self._ranks.rank:
                right[batch] = judge(batch, number)
        right[-1] = time.monotonic() - began
        every = self._ranks.sums(torch.from_numpy(right)).numpy()
        mask, seconds = every[:-1] > 0, float(every[-1])
        if told is not None:
            told(attack, len(who), len(who), int(mask.sum()))
        return mask, seconds


# evaluate -------------------------------------------------------------------------------------------------------------


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
            return _standing(model, images, rows, number, attack, name, where, witness)

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
            line = described(twins.ready(inputs(model, images, slice(0, 1)))[NETWORK])
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
    attack: Callable[[Tensor, Tensor, int], Tensor] | None,
    name: str,
    where: str,
    witness: Witness | None,
) -> Mask:
    """Which images of a batch are classified rightly, after the attack if there is one."""
    x, y = labelled(model, images, rows)
    if attack is not None:
        x = attack(x, y, batch)
    with torch.no_grad():
        logits = model(x)
    if not torch.isfinite(logits).all():
        raise Refused(where, expected="finite logits", got="NaN or infinity")
    if witness is not None:
        witness(name, rows, x, logits)
    return correct(logits, y).cpu().numpy()


def inputs(model: nn.Module, images: ImageSet, rows: Tensor | slice) -> Tensor:
    """Images as a network takes them: (B, C, H, W) in [0, 1] on its device, in float64 for a network in float64."""
    state = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return images.x[rows].to(state.device).to(dtype) / 255


def labelled(model: nn.Module, images: ImageSet, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Inputs of a network, as `inputs` makes them, and their labels (B,) beside them."""
    x = inputs(model, images, rows)
    return x, images.y[rows].to(x.device)


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


# autoattack -----------------------------------------------------------------------------------------------------------
# AutoAttack: an ensemble of attacks, each on the images that are still standing.
#
# Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
# 2020, arXiv:2003.01690. The standard ensemble is APGD on cross-entropy, targeted APGD, targeted FAB and Square, in
# this order (see `ensemble.py`).
#
# Verdicts are those of the authors' code (fra31/auto-attack, a392200) for the same seed and batch size. Every attack
# starts on every batch of survivors from a generator seeded with the same number, so which images share a batch
# decides the random starts, and survivors are grouped as theirs: in the order of the set, `batch_size` at a time. Only
# where an attack succeeds or fails by rounding may a verdict differ.
#
# No attack is trusted: a point counts as adversarial when the network misreads it once more and it lies in the ball.


class Breaker(Protocol):
    """From images that are read rightly to points of the ball that are not; where it finds none, the image itself."""

    def __call__(self, x: Tensor, y: Tensor, budget: Budget, /, *, generator: torch.Generator) -> Tensor: ...


def auto_attack(
    model: nn.Module,
    images: ImageSet,
    budget: Budget,
    *,
    ensemble: Ensemble | None = None,
    split: str,
    which: str,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
    folder: Path | None = None,
    engine: str = "fast",
) -> list[Measured]:
    """Clean accuracy, accuracy after each attack of the ensemble on what the earlier ones left, and after all of them.

    The model is in eval mode inside and is put back as it was; torch's global random state is not touched.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        budget: where adversarial examples may be.
        ensemble: the attacks; the standard ones if not given.
        split: what the images are, for the records.
        which: what the weights are, for the records.
        seed: of every attack on every batch.
        batch_size: images attacked at once; random starts depend on it.
        progress: told how far the evaluation is, after every batch.
        folder: where verdicts are kept after every batch. A call that finds there the verdicts of the same evaluation
            goes on where it stopped; calls in several processes at once share the work. None keeps nothing.
        engine: what the attacks ask: "fast", a twin of the network where it has one, which rounds otherwise, or
            "plain", the network itself. The verdict on what they find is the network's own, and a batch with a point
            that misleads the twin alone is attacked once more on the network.

    Returns:
        "clean", one for each attack (the survivors after it) where there are several, and one for the ensemble.

    Raises:
        Refused: if logits are not finite, or `folder` holds another evaluation.
    """
    ensemble = ensemble or standard(budget, images.num_classes)
    subject = Subject.of(model, images, split=split, which=which, seed=seed, batch_size=batch_size)
    measured = subject.measured
    plan = {
        "attacks": {
            name: {"kind": type(attack).__name__, **asdict(attack)} for name, attack in ensemble.attacks.items()
        },
        "norm": budget.norm,
        "eps": budget.eps,
        "seed": seed,
        "batch_size": batch_size,
        "engine": engine,
        "weights": subject.weights,
        "data": subject.data,
    }
    journal = Journal(folder, plan, len(images))
    twins = Twins(Engine(engine), {NETWORK: model})

    def stage(name: str, who: NDArray[np.int64], attack: Own | Authors | None) -> tuple[Mask, float]:
        def judge(batch: NDArray[np.int64], number: int) -> NDArray[np.bool_]:
            x, y = labelled(model, images, torch.from_numpy(batch))
            first = number * batch_size
            where = f"{name}, images {first} to {first + len(batch) - 1}"
            asked = model if attack is None or isinstance(attack, Authors) else twins.serving(x)[NETWORK]
            if asked is not model and not _agrees(asked, x, y):
                asked = model  # an attack would have nothing to do where the twin misreads the image as it is
            right, disputed = _read_rightly(model, x, y, _breaker(attack, asked, x), budget, seed, where)
            if disputed and asked is not model:
                right, _ = _read_rightly(model, x, y, _breaker(attack, model, x), budget, seed, where)
            return right.cpu().numpy()

        return journal.judged(name, who, batch_size, judge, progress)

    with evaluating(model), frozen(model):
        mask, total = stage("clean", np.arange(len(images)), None)
        results = [measured("clean", "no attack", mask, total, None)]
        borrowed = any(isinstance(attack, Authors) for attack in ensemble.attacks.values())
        some = inputs(model, images, slice(0, 1))
        line = "" if borrowed else described(twins.ready(some)[NETWORK])
        for name, attack in ensemble.attacks.items():
            mask, seconds = stage(name, np.flatnonzero(mask), attack)
            total += seconds
            label = f"right after {attack_described(attack)}, in {ensemble.label}"
            if len(ensemble.attacks) > 1:
                results.append(measured(f"{ensemble.spec}.{name}", label, mask, seconds, budget, line))
        results.append(measured(ensemble.spec, ensemble.label, mask, total, budget, line))
    return results


def _agrees(twin: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a twin reads a batch as its network does, rightly."""
    with torch.no_grad():
        return bool(correct(twin(x), y).all())


def _breaker(attack: Own | Authors | None, asked: nn.Module, x: Tensor) -> Breaker | None:
    """The attack on the network that it asks; their authors' attacks ask it for a whole batch at once."""
    if attack is None:
        return None
    return partial(attack, asked if isinstance(attack, Authors) else sliced(asked, x))


def _read_rightly(
    model: nn.Module, x: Tensor, y: Tensor, attack: Breaker | None, budget: Budget, seed: int, where: str
) -> tuple[Tensor, bool]:
    """Which of a batch are read rightly, (B,) bool; and whether that is so of a point that the attack calls misread."""
    rows = torch.arange(len(x), device=x.device)
    x_adv = x
    if attack is not None:
        x_adv = attack(x, y, budget, generator=torch.Generator().manual_seed(seed))
        rows = (x_adv != x).flatten(1).any(1).nonzero()[:, 0]
        # Pixels are rounded when they are made, and again, with their sum, when the distance is taken.
        size = x[0].numel()
        ulps = 4 * {"linf": 1 + budget.eps, "l2": (1 + budget.eps) * size**0.5, "l1": budget.eps + size}[budget.norm]
        rounding = ulps * torch.finfo(x.dtype).eps
        assert bool((budget.distance(x_adv, x) <= budget.eps + rounding).all()), f"{where}: the attack left the ball"
        assert bool(((x_adv >= 0) & (x_adv <= 1)).all()), f"{where}: the attack left the box"
    right = torch.ones_like(y, dtype=torch.bool)
    if len(rows):
        with torch.no_grad():
            logits = model(x_adv[rows])
        if not bool(torch.isfinite(logits).all()):
            raise Refused(where, expected="finite logits", got="NaN or infinity")
        right[rows] = correct(logits, y[rows])
    return right, attack is not None and bool(right[rows].any())
