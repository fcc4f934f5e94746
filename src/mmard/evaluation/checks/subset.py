"""Checks that need attacks of their own, made on a sample of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from mmard.attacks import PGD, Trial, trial
from mmard.attacks.apgd import APGD
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.autoattack import auto_attack
from mmard.evaluation.checks.checked import Checked, exceeds, judged, skipped
from mmard.evaluation.checks.gradients import NO_GRADIENT
from mmard.evaluation.checks.verdicts import (
    LOOSE,
    black_box_finding,
    compared,
    larger_radius,
    more_steps,
    rescaled_loss,
    single_step,
)
from mmard.evaluation.ensemble import Ensemble
from mmard.evaluation.evaluate import Measured, Progress, evaluate
from mmard.evaluation.score import Mask
from mmard.ops import ce
from mmard.weights import weights_hash

QUERIES = 1000
HUGE = Budget(0.5)
"""Grey is within reach of every image, and there all images look the same. Every ball of the other norms that has this
property holds this one."""
HUGE_STEPS = 40
SEEING = ("pgd-20", "pgd-100", "cw-20")
SEEING_STEPS = 50
"""Of APGD on what the attacks above leave; its steps shrink where theirs run to and fro."""


class Bench:
    """Attacks on a sample of the images; what was measured on all of them is read off rather than measured again."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        budget: Budget,
        measured: Sequence[Measured],
        rows: Tensor,
        seed: int,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self._model, self.budget, self.sample = model, budget, images.take(rows)
        self._seed, self._batch_size, self._progress = seed, batch_size, progress
        facts, here = (weights_hash(model), images.fingerprint(), len(images)), self.sample.fingerprint()
        self._known: dict[tuple[str, str | None, float | None], Measured] = {}
        for m in measured:
            if (m.score.weights, m.score.data, len(m.mask)) == facts:
                mask = m.mask[rows.numpy()]
                score = replace(m.score, n=len(mask), correct=int(mask.sum()), data=here)
                self._known[m.score.attack, m.score.norm, m.score.eps] = Measured(score, mask)

    def under(self, attack: str | Trial, budget: Budget | None = None) -> Measured:
        """The sample under an attack."""
        ball = budget or self.budget
        spec = attack if isinstance(attack, str) else attack.spec
        key = (spec, ball.norm, ball.eps)
        if key not in self._known:
            made = trial(attack, ball) if isinstance(attack, str) else attack
            _, self._known[key] = evaluate(
                self._model,
                self.sample,
                [made],
                ball,
                split="checks",
                which="checks",
                seed=self._seed,
                batch_size=self._batch_size,
                progress=self._tell,
                engine="plain",
            )
        return self._known[key]

    def after(self, standing: Mask, name: str, attack: APGD | Square) -> Mask:
        """Who of those that stand also stands after this attack, (n,)."""
        rows = np.flatnonzero(standing)
        left = standing.copy()
        if len(rows):
            found = auto_attack(
                self._model,
                self.sample.take(torch.from_numpy(rows)),
                self.budget,
                ensemble=Ensemble(name, name, {name: attack}),
                split="checks",
                which="checks",
                seed=self._seed,
                batch_size=self._batch_size,
                progress=self._tell,
                engine="plain",
            )
            left[rows] = found[-1].mask
        return left

    def _tell(self, attack: str, done: int, of: int, standing: int) -> None:
        if self._progress is not None:
            self._progress(f"check: {attack}", done, of, standing)


def attacked(bench: Bench, measured: Sequence[Measured], known: Sequence[Checked]) -> list[Checked]:
    """The checks on verdicts, on the sample where the figures measured do not allow them, and the huge radius."""
    eps, norm = bench.budget.eps, bench.budget.norm
    radii = [Budget(r, norm) for r in (eps / 2, eps, 2 * eps) if norm != "linf" or r <= 1]
    dear: dict[str, Callable[[], Checked]] = {
        "rescaled-loss": lambda: rescaled_loss([bench.under(a) for a in ("pgd-20", "cw-20")]),
        "fgsm-beats-pgd": lambda: single_step([bench.under(a) for a in ("fgsm", "pgd-20")]),
        "more-steps": lambda: more_steps([bench.under(a) for a in ("pgd-20", "pgd-100")]),
        "larger-radius": lambda: larger_radius([bench.under("pgd-20", ball) for ball in radii]),
        "huge-radius": lambda: huge_radius(bench),
        "black-box-beats-white-box": lambda: _black_box(bench),
    }
    free = {finding.check: finding for finding in compared(measured, known=known)}
    why_not = _why_not(known)

    def made(check: str) -> Checked:
        found = free.get(check, skipped(check, "needs attacks of its own"))
        if found.verdict != "skipped" or found.says == LOOSE or check not in dear:
            return found
        if why_not is not None:
            return skipped(check, why_not)
        try:
            return dear[check]()
        except Refused as refusal:
            return skipped(check, str(refusal))

    return [made(check) for check in (*dear, "autoattack-above-pgd")]


def _why_not(known: Sequence[Checked]) -> str | None:
    """Why attacks on a sample would say nothing, where they would not."""
    if any(f.says == NO_GRADIENT or f.figures.get("cut") for f in known):
        return "needs attacks that take gradients, and there is no way for them"
    if any(f.suspicious and f.check == "test-time-adaptation" for f in known):
        return "verdicts depend on who shares a batch, and in a sample these are others"
    return None


def huge_radius(bench: Bench) -> Checked:
    """Cross-entropy from the image itself, so far that nothing of the image need be left."""
    step = HUGE.eps / 8
    attack = Trial("pgd-huge", f"PGD-{HUGE_STEPS} (CE, step {step:g}, no start)", PGD(HUGE_STEPS, step, "none"), ce)
    m = bench.under(attack, HUGE)
    n, correct = m.score.n, m.score.correct
    share = float(bench.sample.class_counts().max()) / n
    says = f"{correct} of {n} images are read rightly after {HUGE_STEPS} steps on cross-entropy at linf 0.5"
    suspicious = exceeds(correct, n, share)
    if suspicious:
        says += (
            f", where one grey image is in reach of all and no network keeps more than {share:.0%}: the attack fails, "
            "and says as little at a smaller radius"
        )
    return judged("huge-radius", suspicious, says, images=n, correct=correct, largest_class=share)


def _black_box(bench: Bench) -> Checked:
    left = np.logical_and.reduce([bench.under(attack).mask for attack in SEEING])
    losses = ("ce", "dlr") if bench.sample.num_classes >= 3 else ("ce",)
    for loss in losses:
        left = bench.after(left, f"apgd-{loss}", APGD(loss, SEEING_STEPS))
    seeing = ", ".join((*SEEING, *(f"apgd-{loss}" for loss in losses)))
    return black_box_finding(left, bench.after(left, "square", Square(QUERIES)), seeing, f"square ({QUERIES} queries)")
