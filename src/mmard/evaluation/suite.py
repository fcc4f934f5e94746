"""Attacks of every kind by their short spellings, one after the other, and what stands under all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from mmard._version import __version__
from mmard.attacks import Trial, trial
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.evaluation.autoattack import auto_attack
from mmard.evaluation.ensemble import SPECS, Ensemble, named
from mmard.evaluation.evaluate import Measured, Progress, evaluate, together
from mmard.weights import weights_hash


def measure(
    model: nn.Module,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    *,
    split: str,
    which: str,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> list[Measured]:
    """Clean accuracy, accuracy under each attack, and under all of them together.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        specs: spellings of `mmard.attacks.trial` and names of `ensemble.SPECS`, e.g. ["pgd-20", "aa"].
        budget: where adversarial examples may be.
        split: what the images are, for the records.
        which: what the weights are, for the records.
        seed: of the random starts.
        batch_size: images attacked at once; random starts depend on it.
        progress: told how far the evaluation is.
        folder: where an ensemble keeps its verdicts after every batch, in a folder for each evaluation; the same call
            made again goes on from there. None keeps nothing.

    Returns:
        "clean", the attacks in their order, each ensemble after its attacks, and, with more than one spec,
        "worst_of_...".

    Raises:
        Refused: before the first attack for a spec that is not known; later if logits are not finite.
    """
    attacks = [_read(spec, budget, images.num_classes) for spec in specs]
    trials = [attack for attack in attacks if isinstance(attack, Trial)]
    clean, *rest = evaluate(
        model,
        images,
        trials,
        budget,
        split=split,
        which=which,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    results, wholes, alone = [clean], list[Measured](), iter(rest)
    for attack in attacks:
        if isinstance(attack, Trial):
            found = [next(alone)]
        else:
            _, *found = auto_attack(
                model,
                images,
                budget,
                ensemble=attack,
                split=split,
                which=which,
                seed=seed,
                batch_size=batch_size,
                progress=progress,
                folder=folder and folder / _name(attack, model, images, budget, seed, batch_size),
            )
        results += found
        wholes.append(found[-1])
    return [*results, together(clean, *wholes)] if len(wholes) > 1 else results


def _read(spec: str, budget: Budget, num_classes: int) -> Trial | Ensemble:
    if spec.strip().lower() in SPECS:
        return named(spec, budget, num_classes)
    return trial(spec, budget, beside=SPECS)


def _name(ensemble: Ensemble, model: nn.Module, images: ImageSet, budget: Budget, seed: int, batch_size: int) -> str:
    """A folder that no other evaluation has, one by another version of this package included."""
    facts = (weights_hash(model), images.fingerprint(), budget.eps, batch_size, ensemble.label, __version__)
    rest = hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()
    return f"{ensemble.spec}-{budget.norm}-{budget.eps:.5f}-seed{seed}-{rest[:8]}"
