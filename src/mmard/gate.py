"""What a teacher must show on validation images before a student is trained with it.

It must do clearly better than guessing, and about as well as is claimed of it. A claim is on test images of the same
data; validation images were mostly in the teacher's own training, so that it does better on them than claimed, and only
falling short tells anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.errors import Refused
from mmard.evaluation.evaluate import Protocol, measure
from mmard.words import as_fraction

GATE_IMAGES = 500
"""Validation images on which a teacher is tried."""
CLAIM_IMAGES = 5_000
"""And those, without attack, for a claim where there is a GPU: its interval is three times narrower then."""
FAR = 0.1
"""Accuracy below the interval of a claim that no re-encoding of images explains."""

REGARDLESS = "--no-teacher-gate goes on regardless"


@dataclass(frozen=True)
class ClaimedAccuracy:
    """An accuracy that is claimed of a teacher.

    Attributes:
        by: who claims it.
        clean: a fraction.
        binding: whether falling far below refuses the teacher; else it is noted.
    """

    by: str
    clean: float
    binding: bool = True

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> ClaimedAccuracy | None:
        """What the facts of a network claim: those of a known teacher, or a run's accuracy on its validation images."""
        if "claim" in facts:
            return cls(str(facts["claim"]["by"]), float(facts["claim"]["clean"]))
        if "clean" in facts:
            return cls("its run's validation", float(facts["clean"]), binding=False)
        return None

    def slack(self, n: int) -> float:
        """Three standard deviations of the accuracy on n images, if the claim is true.

        >>> round(ClaimedAccuracy("a paper", 0.85).slack(500), 3)
        0.048
        """
        return 3 * math.sqrt(self.clean * (1 - self.clean) / n)


def guessing(counts: Tensor) -> tuple[float, float]:
    """What guessing gets, averaged over the classes, and what it does not get by three standard deviations.

    >>> chance, least = guessing(torch.tensor([50] * 10))
    >>> round(chance, 3), round(least, 3)
    (0.1, 0.14)

    Args:
        counts: images of each class (C,), all above 0.
    """
    classes = len(counts)
    chance = 1 / classes
    return chance, chance + 3 * math.sqrt(chance * (1 - chance) * (1 / counts).sum().item()) / classes


def pass_gate(
    teacher: nn.Module,
    validation: ImageSet,
    budget: Budget,
    source: str,
    *,
    robust: bool = True,
    who: str = "teacher",
    claim: ClaimedAccuracy | None = None,
    bind: bool = True,
) -> str:
    """Refuse a teacher that does no better than guessing, or far worse than claimed; otherwise say what it achieves.

    Better than guessing is by accuracy averaged over the classes, so that always saying the largest class is worth as
    little as guessing. Where images are so few that guessing may get twice its share, a teacher that did better than
    guessing on them is noted instead. With `bind` false everything is noted.

    Raises:
        Refused: with the likely causes.
    """
    some = _spread(validation, GATE_IMAGES)
    protocol = Protocol.read("fgsm", budget, some.num_classes)
    clean, attacked = measure(teacher, some, protocol, split="val", which="teacher")
    counts = some.class_counts()
    met = counts > 0
    right = some.y[torch.from_numpy(clean.mask)].bincount(minlength=len(counts))
    balanced = (right[met] / counts[met]).mean().item()
    chance, least = guessing(counts[met])
    doubt = ""
    if balanced <= least and int(met.sum()) > 1:
        low = f"{balanced:.1%} over classes is not above {least:.1%}, what guessing ({chance:.1%}) gets by luck"
        if bind and (least <= 2 * chance or balanced <= chance):
            raise Refused(
                f"{who} {source}",
                expected=f"a clean accuracy over classes above {least:.1%}, which is guessing ({chance:.1%}) and three "
                f"standard deviations of it on {len(some)} validation images",
                got=f"{balanced:.1%}",
                mend=f"are these its weights, and does it take images in [0, 1]? {REGARDLESS}",
            )
        doubt = f"; {low} on so few images" if least > 2 * chance else f"; {low}"
    accuracy, under_attack = clean.score.accuracy, attacked.score.accuracy
    ball = f"{budget.norm} {as_fraction(budget.eps)}"
    found = f"{accuracy:.1%} clean, {under_attack:.1%} under FGSM at {ball}, {len(some)} validation images"
    note = f"{who} {source}: {found}{doubt}"
    if claim is not None:
        held = claim if bind else replace(claim, binding=False)
        note += _held_to(held, teacher, validation, budget, accuracy, len(some), f"{who} {source}")
    if robust and under_attack < accuracy / 2:
        note += "; it hardly holds under attack itself: guidance by such a teacher can hurt (docs/mmard.md)"
    return note


def _held_to(
    claim: ClaimedAccuracy,
    teacher: nn.Module,
    validation: ImageSet,
    budget: Budget,
    accuracy: float,
    n: int,
    where: str,
) -> str:
    """What to add to the note on a teacher; refuses one that is far from what is claimed of it."""
    if next((p.is_cuda for p in teacher.parameters()), False) and len(validation) > n:
        more = _spread(validation, CLAIM_IMAGES)
        (clean,) = measure(teacher, more, Protocol((), budget), split="val", which="teacher")
        accuracy, n = clean.score.accuracy, len(more)
    least = claim.clean - claim.slack(n)
    if claim.binding and accuracy < least - FAR:
        raise Refused(
            where,
            expected=f"a clean accuracy of {least:.1%} or more on {n} validation images, {claim.clean:.1%} being "
            f"claimed ({claim.by})",
            got=f"{accuracy:.1%}",
            mend="is this its data set, are these its weights, is its input normalised as in its training? "
            f"{REGARDLESS}",
        )
    if accuracy < least:
        return (
            f"; {claim.clean:.1%} claimed ({claim.by}), which {accuracy:.1%} on {n} images falls short of by more than "
            "chance: images that were encoded anew (JPEG), other normalisation, other weights or other data can be why"
        )
    return f"; {claim.clean:.1%} claimed ({claim.by})"


def _spread(images: ImageSet, n: int) -> ImageSet:
    """So many from all over the set: a loader of somebody's own may be sorted by class."""
    return images.take(torch.linspace(0, len(images) - 1, min(n, len(images))).long())
