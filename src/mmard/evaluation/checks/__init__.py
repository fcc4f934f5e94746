"""Suspicion checks: signs that a robust accuracy says more about the attack than about the network.

`cheap` takes some twenty passes over a few images and belongs to every evaluation, as does `compared`, which only reads
the verdicts of attacks that were measured anyway; `thorough` attacks a sample. Each check is explained in
docs/checks.md, under its slug.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmard.attacks import is_black_box
from mmard.data.image_set import ImageSet
from mmard.evaluation.checks.attacks import CheckedSample, attacked, compared
from mmard.evaluation.checks.checked import Checked, Verdict, skipped
from mmard.evaluation.checks.network import NAMES as GRADIENT_CHECKS
from mmard.evaluation.checks.network import (
    NO_GRADIENT,
    Probe,
    adaptation,
    answers_of,
    gradients,
    one_class,
    randomised,
    sample,
    softmax_outputs,
)
from mmard.evaluation.evaluate import Measured, Protocol, labelled
from mmard.evaluation.journal import Progress

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


@torch.inference_mode(False)
def cheap(model: nn.Module, images: ImageSet, protocol: Protocol) -> list[Checked]:
    """The checks that need no attack: six passes over 64 images, and five with two gradients over 128.

    The network is asked in eval mode and is afterwards as it was, its state included; nobody's random state is touched.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images of the evaluation, from which a sample is drawn.
        protocol: of the evaluation. Its seed draws the sample, of no more images than a batch has; distances along the
            gradient are shares of its radius.

    Raises:
        Refused: if logits are not finite.
    """
    x, y = labelled(model, images, sample(images, min(LOOKED_AT, protocol.batch_size), protocol.seed))
    some = x[: LOOKED_AT // 2]
    with Probe(model, some) as probe:
        answers = answers_of(probe, some)
        findings = [randomised(probe, answers), softmax_outputs(answers), adaptation(probe, answers)]
        findings.append(one_class(answers, y[: len(some)]))
        if is_black_box(model):
            return [*findings, *(skipped(check, NO_GRADIENT) for check in GRADIENT_CHECKS)]
        if any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
            why = "the weights were made under torch.inference_mode, where autograd records nothing"
            return [*findings, *(skipped(check, why) for check in GRADIENT_CHECKS)]
        if probe.backward or not answers.steady:
            why = "answers depend on more than the image and the seed, so that two of them cannot be compared"
            return [*findings, *(skipped(check, why) for check in GRADIENT_CHECKS)]
        return [*findings, *gradients(probe, x, y, protocol.budget)]


def thorough(
    model: nn.Module,
    images: ImageSet,
    protocol: Protocol,
    *,
    measured: Sequence[Measured] = (),
    known: Sequence[Checked] | None = None,
    first: int = ATTACKED,
    progress: Progress | None = None,
) -> list[Checked]:
    """The checks that compare attacks: on the figures measured where these suffice, else on a sample of the images.

    Nothing measured, this takes 221 gradients for each of 200 images, 100 more for those that then stand, and 1,000
    queries of Square for those that stand after these.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images of the evaluation.
        protocol: of the evaluation.
        measured: its figures, on these images.
        known: what `cheap` found; it is asked if this is not given.
        first: how many images are drawn.
        progress: told how far each attack is.
    """
    if known is None:
        known = cheap(model, images, protocol)
    drawn = CheckedSample(model, images, protocol, measured, sample(images, first, protocol.seed), progress)
    return attacked(drawn, measured, known)
