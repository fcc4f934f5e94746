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

import time
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.ensemble import Ensemble, described, standard
from mmard.evaluation.evaluate import Measured, Progress, Subject
from mmard.evaluation.folding import folded
from mmard.evaluation.score import Mask
from mmard.modes import evaluating, frozen
from mmard.storage import read_json, write_array, write_json

FOLD_CHECK = 32  # images on which a folded network must agree


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
    fold: bool = False,
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
            goes on where it stopped. None keeps nothing.
        fold: let the attacks look at a copy with BatchNorm merged into convolutions, which is faster and rounds
            otherwise; the verdict on what they find is the network's own.

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
        "fold": fold,
        "weights": subject.weights,
        "data": subject.data,
    }
    journal = _Journal(folder, plan, len(images))

    with evaluating(model), frozen(model):
        mask, seconds = _stage(model, images, "clean", None, None, budget, seed, batch_size, journal, progress)
        results = [measured("clean", "no attack", mask, seconds, None)]
        total = seconds
        attacked = folded(model, _inputs(model, images, np.arange(min(FOLD_CHECK, len(images))))[0]) if fold else model
        for name, attack in ensemble.attacks.items():
            breaker = partial(attack, attacked)
            mask, seconds = _stage(model, images, name, breaker, mask, budget, seed, batch_size, journal, progress)
            total += seconds
            label = f"right after {described(attack)}, in {ensemble.label}"
            if len(ensemble.attacks) > 1:
                results.append(measured(f"{ensemble.spec}.{name}", label, mask, seconds, budget))
    results.append(measured(ensemble.spec, ensemble.label, mask, total, budget))
    return results


def _stage(
    model: nn.Module,
    images: ImageSet,
    name: str,
    attack: Breaker | None,
    standing: Mask | None,
    budget: Budget,
    seed: int,
    batch_size: int,
    journal: _Journal,
    progress: Progress | None,
) -> tuple[Mask, float]:
    """One attack on those still standing: who stands after it, and its seconds, earlier calls included."""
    who = np.arange(len(images)) if standing is None else np.flatnonzero(standing)
    verdicts, earlier = journal.read(name)
    if standing is not None:
        verdicts[~standing] = FALLEN
    began = time.monotonic()
    for first in range(0, len(who), batch_size):
        batch = who[first : first + batch_size]
        if (verdicts[batch] == PENDING).any():
            x, y = _inputs(model, images, batch)
            right = _read_rightly(
                model, x, y, attack, budget, seed, f"{name}, images {first} to {first + len(batch) - 1}"
            )
            verdicts[batch] = np.where(right.cpu().numpy(), STANDING, FALLEN)
            journal.write(name, verdicts, earlier + time.monotonic() - began)
        if progress is not None:
            done = who[: first + len(batch)]
            progress(name, len(done), len(who), int((verdicts[done] == STANDING).sum()))
    return verdicts == STANDING, earlier + time.monotonic() - began


def _inputs(model: nn.Module, images: ImageSet, which: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1] and labels where the network is; in double for a network in double."""
    state, rows = next(chain(model.parameters(), model.buffers()), torch.empty(0)), torch.from_numpy(which)
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return images.x[rows].to(state.device).to(dtype) / 255, images.y[rows].to(state.device)


def _read_rightly(
    model: nn.Module, x: Tensor, y: Tensor, attack: Breaker | None, budget: Budget, seed: int, where: str
) -> Tensor:
    """Which of a batch are read rightly, (B,) bool; after the attack if there is one."""
    rows = torch.arange(len(x), device=x.device)
    x_adv = x
    if attack is not None:
        x_adv = attack(x, y, budget, generator=torch.Generator().manual_seed(seed))
        rows = (x_adv != x).flatten(1).any(1).nonzero()[:, 0]
        # Pixels are rounded when they are made, and again, with their sum, when the distance is taken.
        ulps = 4 * (1 + budget.eps) * x[0].numel() ** (0.5 if budget.norm == "l2" else 0)
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
    return right


PENDING, FALLEN, STANDING = -1, 0, 1
"""Verdicts in the files of `folder`, one int8 per image: not known yet, misread, read rightly."""


class _Journal:
    """The verdicts so far of one evaluation, in a folder or nowhere: plan.json, and for each attack .npy and .json."""

    def __init__(self, folder: Path | None, plan: dict[str, Any], n: int) -> None:
        self._folder, self._n = folder, n
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "plan.json"
        if not file.exists():
            write_json(file, plan)
        elif (held := read_json(file)) != plan:
            differing = [key for key in plan if not isinstance(held, dict) or held.get(key) != plan[key]]
            raise Refused(
                str(folder),
                expected="no verdicts, or those of this evaluation",
                got="verdicts with other " + ", ".join(differing),
                mend="choose another folder, or remove this one",
            )

    def read(self, attack: str) -> tuple[NDArray[np.int8], float]:
        """Verdicts (n,) and seconds spent on them."""
        file = None if self._folder is None else self._folder / f"{attack}.npy"
        if file is None or not file.exists():
            return np.full(self._n, PENDING, dtype=np.int8), 0.0
        seconds = file.with_suffix(".json")
        return np.load(file, allow_pickle=False), float(read_json(seconds)["seconds"]) if seconds.exists() else 0.0

    def write(self, attack: str, verdicts: NDArray[np.int8], seconds: float) -> None:
        """Keep the verdicts after a batch."""
        if self._folder is None:
            return
        file = self._folder / f"{attack}.npy"
        write_json(file.with_suffix(".json"), {"seconds": seconds})
        write_array(file, verdicts)
