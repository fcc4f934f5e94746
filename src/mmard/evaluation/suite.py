"""Attacks of every kind by their short spellings, one after the other, and what stands under all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from mmard._version import __version__
from mmard.attacks import Trial, trial
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import require
from mmard.evaluation.autoattack import auto_attack
from mmard.evaluation.black_box import refuse_white_box
from mmard.evaluation.columns import spelled
from mmard.evaluation.ensemble import SPECS, Ensemble, is_named, named
from mmard.evaluation.evaluate import Measured, Progress, Witness, evaluate, together
from mmard.evaluation.processes import shared_work
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
    processes: int = 1,
    witness: Witness | None = None,
    finished: Callable[[Measured], None] | None = None,
    engine: str = "fast",
) -> list[Measured]:
    """Clean accuracy, accuracy under each attack, and under all of them together.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        specs: spellings of `mmard.attacks.trial`, names of `ensemble.SPECS` and of `columns.GROUPS`, e.g.
            ["pgd-20", "aa"].
        budget: where adversarial examples may be.
        split: what the images are, for the records.
        which: what the weights are, for the records.
        seed: of the random starts.
        batch_size: images attacked at once; random starts depend on it.
        progress: told how far the evaluation is.
        folder: where verdicts are kept after every batch, in a folder for each evaluation; the same call made again
            goes on from there, and made by several processes at once it is shared. None keeps nothing.
        processes: how many take part, this one and others that are spawned.
        witness: shown every batch, clean and under the attacks that are no ensembles. These are then neither kept nor
            shared, for a witness must see all.
        finished: told each figure as soon as it is known, so that an interrupted evaluation keeps what it has.
        engine: what the attacks ask: "fast", a twin of the network where it has one, or "plain", the network itself.
            The verdict on what they find is the network's own.

    Returns:
        "clean", the attacks in their order, each ensemble after its attacks, and, with more than one spec,
        "worst_of_...".

    Raises:
        Refused: before the first attack for a spec that is not known, or one that needs a gradient which the model has
            not; later if logits are not finite.
    """
    specs = spelled(specs, budget)
    attacks = read(specs, budget, images.num_classes)
    refuse_white_box(model, specs, attacks)
    require(processes >= 1, "processes", expected="at least 1", got=processes)
    settings: dict[str, Any] = {
        "split": split,
        "which": which,
        "seed": seed,
        "batch_size": batch_size,
        "engine": engine,
    }
    if processes > 1:
        given: dict[str, Any] = {"progress": progress, "witness": witness, "finished": finished}
        shared = shareable(specs, budget, images.num_classes, witness is not None)
        with TemporaryDirectory() as passing, ExitStack() as company:
            place = folder or Path(passing)
            if shared:
                company.enter_context(shared_work(processes, measure, model, images, shared, budget, settings, place))
            return measure(model, images, specs, budget, **settings, **given, folder=place)

    def kept_in(spec: str, label: str = "") -> Path | None:
        facts = (weights_hash(model), images.fingerprint(), budget.eps, batch_size, engine, label, __version__)
        return folder and folder / _name(spec, budget.norm, budget.eps, seed, facts)

    trials = [attack for attack in attacks if isinstance(attack, Trial)]
    clean, *rest = evaluate(
        model,
        images,
        trials,
        budget,
        **settings,
        progress=progress,
        witness=witness,
        finished=finished,
        folder=kept_in("each"),
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
                **settings,
                progress=progress,
                folder=kept_in(attack.spec, attack.label),
            )
            if finished is not None:
                for each in found:
                    finished(each)
        results += found
        wholes.append(found[-1])
    if len(wholes) > 1:
        results.append(together(clean, *wholes))
        if finished is not None:
            finished(results[-1])
    return results


def shareable(specs: Sequence[str], budget: Budget, num_classes: int, witnessed: bool) -> list[str]:
    """The attacks that other processes can take part in.

    Who has a witness sees to single attacks alone; what others would do of them is for nothing.
    """
    every = read(specs, budget, num_classes)
    return [s for s, attack in zip(specs, every, strict=True) if not witnessed or isinstance(attack, Ensemble)]


def read(specs: Sequence[str], budget: Budget, num_classes: int) -> list[Trial | Ensemble]:
    """Attacks by their short spellings.

    Raises:
        Refused: for a spelling that is not known, or an attack that so few classes do not have.
    """
    return [_read(spec, budget, num_classes) for spec in specs]


def _read(spec: str, budget: Budget, num_classes: int) -> Trial | Ensemble:
    if is_named(spec):
        return named(spec, budget, num_classes)
    return trial(spec, budget, beside=SPECS)


def _name(spec: str, norm: str, eps: float, seed: int, facts: tuple[object, ...]) -> str:
    """A folder that no other evaluation has, one by another version of this package included."""
    rest = hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()
    return f"{spec}-{norm}-{eps:.5f}-seed{seed}-{rest[:8]}"
