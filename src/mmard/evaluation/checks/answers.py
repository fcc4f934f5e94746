"""Checks that look at answers alone: are they a function of the image, and are they logits?

Athalye, Carlini, Wagner. "Obfuscated gradients give a false sense of security", ICML 2018, arXiv:1802.00420 (randomised
networks). Croce, Gowal, Brunner, Shelhamer, Hein, Cemgil. "Evaluating the adversarial robustness of adaptive test-time
defenses", ICML 2022, arXiv:2202.13711.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmard.evaluation.checks.checked import Checked, judged, skipped
from mmard.evaluation.checks.probe import Probe

SAME_CALL = 1e-3
"""Largest difference between two equal calls, as a share of the logits' range, that is put down to rounding."""
OTHER_BATCH = 1e-2
"""The same where other images or another order of the batch may lead to other kernels, of lower precision too."""
FEW = 0.05
"""Share of images on which a network that rounds inside may cross a step under another order of summation."""


@dataclass(frozen=True)
class Answers:
    """What a network said to the same images under different circumstances; differences are per image, (n,), as shares
    of the range of its logits.

    Attributes:
        logits: the first answer (n, C).
        again: the same call, the same state and seeds.
        reseeded: the same call under another seed.
        elsewhere: under the same seed, in other company: for every second image, which kept its place.
        moved: under the same seed, the batch in reverse order.
        flips: predictions that differ between the first answer and the reseeded one.
    """

    logits: Tensor
    again: Tensor
    reseeded: Tensor
    elsewhere: Tensor
    moved: Tensor
    flips: int

    @property
    def steady(self) -> bool:
        """Whether equal calls have equal answers, once state and seeds are equal."""
        return not _differ(self.again, SAME_CALL)


def asked(probe: Probe, x: Tensor) -> Answers:
    """Five forward passes over x (n, ...)."""
    first = probe.ask(x)
    spread = (first.amax(1) - first.amin(1)).median()
    scale = spread if spread > 0 else first.abs().amax().clamp_min(1)

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().amax(1) / scale

    other = probe.ask(x, seed=1)
    company = x.clone()
    company[1::2] = x[0]
    return Answers(
        logits=first,
        again=difference(first, probe.ask(x)),
        reseeded=difference(first, other),
        elsewhere=difference(first, probe.ask(company))[::2],
        moved=difference(first, probe.ask(x.flip(0)).flip(0)),
        flips=int((first.argmax(1) != other.argmax(1)).sum()),
    )


def randomised(probe: Probe, answers: Answers) -> Checked:
    """The same input twice."""
    check, n = "randomised", len(answers.logits)
    if not answers.steady and (probe.changed or probe.remembered):
        return skipped(check, "answers change with earlier calls, which cannot be told from chance")
    largest = float(torch.maximum(answers.again, answers.reseeded).amax())
    figures = {"images": n, "largest_difference": largest, "changed_predictions": answers.flips}
    if _differ(answers.again, SAME_CALL) or _differ(answers.reseeded, SAME_CALL):
        source = "" if answers.steady else ", from a source that the global seeds do not rule"
        says = (
            f"the same {n} images asked twice: logits differ by up to {largest:.1%} of their range and {answers.flips} "
            f"predictions change{source}; gradients and verdicts are draws: use aa-rand"
        )
        return judged(check, True, says, **figures)
    moved = float(answers.moved.amax())
    if not _many(answers.elsewhere) and _many(answers.moved):
        says = (
            f"logits change by up to {moved:.1%} of their range with the image's place in the batch, as those of a "
            "network do that draws noise from the same seed every time: use aa-rand without the seed"
        )
        return judged(check, True, says, **figures, largest_by_place=moved)
    return judged(check, False, f"{n} images asked twice: logits differ by {largest:.1e} of their range", **figures)


def softmax_outputs(answers: Answers) -> Checked:
    """Probabilities where logits belong."""
    check, logits = "softmax-outputs", answers.logits
    n, low, high = len(logits), float(logits.amin()), float(logits.amax())
    off = float((logits.sum(1) - 1).abs().amax())
    off_log = float(logits.logsumexp(1).abs().amax())
    figures = {"images": n, "lowest": low, "highest": high, "largest_sum_error": off}
    if low >= -1e-6 and high <= 1 + 1e-3 and off <= 1e-2:
        says = (
            f"outputs of {n} images lie in [0, 1] and add up to 1: these are probabilities, and cross-entropy on them "
            "is nearly flat where the network is sure; return logits, without softmax"
        )
        return judged(check, True, says, **figures)
    kind = "log-probabilities, which losses read as logits" if off_log <= 1e-3 else "no probabilities"
    return judged(check, False, f"outputs between {low:.3g} and {high:.3g}: {kind}", **figures)


def adaptation(probe: Probe, answers: Answers) -> Checked:
    """Answers that change the network, optimise something, or depend on other images."""
    check, n = "test-time-adaptation", len(answers.logits)
    seen = []
    if probe.changed:
        names = sorted(probe.changed)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        seen.append(f"a forward pass in eval mode changes {names[0]}{more}")
    if probe.backward:
        seen.append("a forward pass takes a backward pass inside")
    if not answers.steady and probe.remembered and not probe.changed:
        seen.append(f"answers differ after earlier calls, which change {min(probe.remembered)}")
    neighbours = float(answers.elsewhere.amax())
    company = answers.steady and n > 1 and _many(answers.elsewhere)
    if company:
        seen.append(f"logits change by up to {neighbours:.1%} of their range with the other images of the batch")
    figures: dict[str, float] = {"images": n, "changed_tensors": len(probe.changed), "backward": int(probe.backward)}
    if answers.steady:
        figures["largest_by_neighbours"] = neighbours
    if seen:
        says = f"{'; '.join(seen)}: accuracy belongs to a batch and an order, and an attack must reckon with that"
        return judged(check, True, says, **figures)
    if not answers.steady:
        return skipped(check, "answers are draws, which cannot be told from those that depend on other images")
    return judged(check, False, "answers change neither weights nor buffers and depend on the image alone", **figures)


def _differ(difference: Tensor, tolerance: float) -> bool:
    return bool((difference > tolerance).any())


def _many(difference: Tensor) -> bool:
    return int((difference > OTHER_BATCH).sum()) > FEW * len(difference)
