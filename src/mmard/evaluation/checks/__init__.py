"""Suspicion checks: signs that a robust accuracy says more about the attack than about the network.

`cheap` takes some twenty passes over a few images and belongs to every evaluation, as does `compared`, which only reads
the verdicts of attacks that were measured anyway; `thorough` attacks a sample. Each check is explained in
docs/checks.md, under its slug.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mmard.attacks.autoattack import is_black_box
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.evaluation.checks.attacks import Bench, attacked, compared
from mmard.evaluation.checks.checked import Checked, Verdict, skipped
from mmard.evaluation.checks.network import NAMES as GRADIENT_CHECKS
from mmard.evaluation.checks.network import (
    NO_GRADIENT,
    Probe,
    adaptation,
    asked,
    gradients,
    one_class,
    randomised,
    sample,
    softmax_outputs,
)
from mmard.evaluation.evaluate import Measured, Progress, labelled

__all__ = ["CHECKS", "Checked", "Verdict", "cheap", "compared", "thorough"]

CHECKS = (
    "randomised",
    "softmax-outputs",
    "test-time-adaptation",
    "degenerate-predictions",
    "vanishing-gradients",
    "misleading-gradients",
    "rescaled-loss",
    "fgsm-beats-pgd",
    "more-steps",
    "larger-radius",
    "huge-radius",
    "black-box-beats-white-box",
    "autoattack-above-pgd",
)
"""Slugs of all checks, in the order in which they are reported."""

LOOKED_AT, ATTACKED = 128, 200
"""Images that the cheap checks look at, and images that the thorough ones attack."""


def cheap(model: nn.Module, images: ImageSet, budget: Budget, *, seed: int = 0, batch_size: int = 250) -> list[Checked]:
    """The checks that need no attack: six passes over 64 images, and five with two gradients over 128.

    The network is asked in eval mode and is afterwards as it was, its state included; nobody's random state is touched.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images of the evaluation, from which a sample is drawn.
        budget: of the evaluation; distances along the gradient are shares of its radius.
        seed: of the sample.
        batch_size: images asked at once, at most.

    Raises:
        Refused: if logits are not finite.
    """
    x, y = labelled(model, images, sample(images, min(LOOKED_AT, batch_size), seed))
    some = x[: LOOKED_AT // 2]
    with Probe(model, some) as probe:
        answers = asked(probe, some)
        findings = [randomised(probe, answers), softmax_outputs(answers), adaptation(probe, answers)]
        findings.append(one_class(answers, y[: len(some)]))
        if is_black_box(model):
            return [*findings, *(skipped(check, NO_GRADIENT) for check in GRADIENT_CHECKS)]
        if probe.backward or not answers.steady:
            why = "answers depend on more than the image and the seed, so that two of them cannot be compared"
            return [*findings, *(skipped(check, why) for check in GRADIENT_CHECKS)]
        return [*findings, *gradients(probe, x, y, budget)]


def thorough(
    model: nn.Module,
    images: ImageSet,
    budget: Budget,
    *,
    measured: Sequence[Measured] = (),
    known: Sequence[Checked] | None = None,
    seed: int = 0,
    batch_size: int = 250,
    first: int = ATTACKED,
    progress: Progress | None = None,
) -> list[Checked]:
    """The checks that compare attacks: on the figures measured where these suffice, else on a sample of the images.

    Nothing measured, this takes 221 gradients for each of 200 images, 100 more for those that then stand, and 1,000
    queries of Square for those that stand after these.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images of the evaluation.
        budget: of the evaluation.
        measured: its figures, on these images.
        known: what `cheap` found; it is asked if this is not given.
        seed: of the sample and of the attacks.
        batch_size: images attacked at once.
        first: how many images are drawn.
        progress: told how far each attack is.
    """
    if known is None:
        known = cheap(model, images, budget, seed=seed, batch_size=batch_size)
    bench = Bench(model, images, budget, measured, sample(images, first, seed), seed, batch_size, progress)
    return attacked(bench, measured, known)
