"""AutoAttack: an ensemble of attacks, each on the images that are still standing.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
2020, arXiv:2003.01690. The standard ensemble is APGD on cross-entropy, targeted APGD, targeted FAB and Square, in this
order (see `ensemble.py`).

Verdicts are those of the authors' code (fra31/auto-attack, a392200) for the same seed and batch size. Every attack
starts on every batch of survivors from a generator seeded with the same number, so which images share a batch decides
the random starts, and survivors are grouped as theirs: in the order of the set, `batch_size` at a time. Only where an
attack succeeds or fails by rounding may a verdict differ.

No attack is trusted: a point counts as adversarial when the network misreads it once more and it lies in the ball.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmard.attacks.asking import sliced
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.engine.twins import Engine, Twins, described
from mmard.errors import Refused
from mmard.evaluation.authors import Authors, Own
from mmard.evaluation.ensemble import Ensemble, standard
from mmard.evaluation.ensemble import described as attack_described
from mmard.evaluation.evaluate import NETWORK, Measured, Progress, Subject
from mmard.evaluation.journal import Journal
from mmard.evaluation.score import Mask
from mmard.modes import evaluating, frozen


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
            x, y = _inputs(model, images, batch)
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
        some, _ = _inputs(model, images, np.arange(1))
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
        return bool((twin(x).argmax(1) == y).all())


def _breaker(attack: Own | Authors | None, asked: nn.Module, x: Tensor) -> Breaker | None:
    """The attack on the network that it asks; their authors' attacks ask it for a whole batch at once."""
    if attack is None:
        return None
    return partial(attack, asked if isinstance(attack, Authors) else sliced(asked, x))


def _inputs(model: nn.Module, images: ImageSet, which: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1] and labels where the network is; in double for a network in double."""
    state, rows = next(chain(model.parameters(), model.buffers()), torch.empty(0)), torch.from_numpy(which)
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return images.x[rows].to(state.device).to(dtype) / 255, images.y[rows].to(state.device)


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
        right[rows] = logits.argmax(1) == y[rows]
    return right, attack is not None and bool(right[rows].any())
