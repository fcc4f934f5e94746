"""Checks that look at verdicts: does the stronger attack find more than the weaker one, image by image?

They cost nothing where the figures were measured anyway. Each compares masks of the same images, so that a difference
in accuracy is told from chance by the images on which two attacks disagree.

Carlini et al. "On evaluating adversarial robustness", 2019, arXiv:1902.06705, section 5. Croce, Hein, ICML 2020,
arXiv:2003.01690 (a loss that cannot be scaled away).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from mmard.attacks import PGD, Attack, AutoAttack, UntargetedPGD, read_attack
from mmard.attacks.apgd import APGD
from mmard.attacks.authors import Authors
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.checks.checked import CHANCE, Checked, exceeds, judged, reversal, skipped
from mmard.evaluation.checks.network import NO_GRADIENT
from mmard.evaluation.evaluate import Measured, Protocol, measure
from mmard.evaluation.journal import Progress
from mmard.evaluation.score import Mask
from mmard.evaluation.transfer import Transferred
from mmard.files import weights_hash
from mmard.words import as_fraction

RISE = 0.01
"""Share of images by which a stronger attack may leave more. One that keeps its step and returns its last point ends a
few tenths of a percent up or down, on networks without fault too."""
RESCALED_SHARE = 0.1
"""Share of images that a margin loss may break beyond cross-entropy."""
BLACK_SHARE = 0.01
"""Share of images that black-box attacks may break beyond white-box ones."""

Pair = tuple[Measured, Measured]
"""An attack and one that should be no weaker."""


def compared(measured: Sequence[Measured], *, known: Sequence[Checked] = ()) -> list[Checked]:
    """Every check on verdicts that these figures allow; the others are skipped, and say what they lack.

    Args:
        measured: figures of one network on the same images.
        known: what was found already. Where verdicts depend on chance or on the batch, the checks that count what one
            attack finds beyond another make no sense: a second try finds more. Those that ask which of two finds more
            do, since chance favours neither.
    """
    if depends(known):
        counted = [skipped(name, LOOSE) for name in ("rescaled-loss", "black-box-beats-white-box")]
    else:
        counted = [rescaled_loss(measured), black_box(measured)]
    rescaled, black = counted
    return [
        rescaled,
        single_step(measured),
        more_steps(measured),
        larger_radius(measured),
        black,
        above_pgd(measured),
    ]


LOOSE = "verdicts depend on chance or on the batch, so that a second try finds more by itself"


def depends(known: Sequence[Checked]) -> bool:
    """Whether answers were found to depend on more than the image."""
    return any(f.suspicious and f.check in ("randomised", "test-time-adaptation") for f in known)


def rescaled_loss(measured: Sequence[Measured]) -> Checked:
    """How much a loss that no scale of the logits flattens finds beyond cross-entropy."""
    check = "rescaled-loss"
    pairs = [(a, b) for a in _climbs(measured, "ce") for b in _climbs(measured, "margin") if _same_ball(a, b)]
    if pairs:
        ce = max((a for a, _ in pairs), key=lambda a: (_effort(a), -a.score.correct))
        beside = min((b for a, b in pairs if a is ce), key=lambda b: abs(_effort(b) - _effort(ce)))
    else:
        rescaled = [m for m in measured if _apgd(m) in ("targeted-dlr", "dlr")]
        pairs = [(a, b) for a in measured if _apgd(a) == "ce" for b in rescaled if _same_ball(a, b)]
        if not pairs:
            return skipped(check, "needs pgd and cw, or aa, on the same images, e.g. --attack pgd-20,cw-30")
        ce, beside = pairs[0]
    beyond, n = int((ce.mask & ~beside.mask).sum()), len(ce.mask)
    says = f"{beside.score.attack} breaks {beyond} of {n} images that {ce.score.attack} leaves"
    suspicious = exceeds(beyond, n, RESCALED_SHARE)
    if suspicious:
        says += ": cross-entropy is masked, by large logits or otherwise; quote a margin loss or AutoAttack instead"
    return judged(check, suspicious, says, images=n, beyond=beyond, correct_ce=ce.score.correct)


def single_step(measured: Sequence[Measured]) -> Checked:
    """FGSM against attacks of many steps."""
    check = "fgsm-beats-pgd"
    single = [m for m in measured if m.attack is not None and m.attack.spec == "fgsm" and not _transferred(m)]
    pairs = [(a, b) for a in single for b in _climbs(measured, "ce") if _same_ball(a, b) and _steps(b) >= 10]
    if not pairs:
        return skipped(check, "needs fgsm and pgd of ten steps or more on the same images")
    means = "many steps get stuck where one does not: the gradient is masked around the images"
    return _no_reversal(check, pairs, means)


def more_steps(measured: Sequence[Measured]) -> Checked:
    """The same attack with more steps."""
    check = "more-steps"
    runs = sorted((m for loss in ("ce", "margin") for m in _climbs(measured, loss)), key=_steps)
    pairs = [
        (a, b)
        for a, b in combinations(runs, 2)
        if _same_ball(a, b) and _manner(a) == _manner(b) and _steps(a) < _steps(b) and _restarts(a) <= _restarts(b)
    ]
    if not pairs:
        return skipped(check, "needs one attack with two numbers of steps on the same images, e.g. pgd-20,pgd-100")
    return _no_reversal(check, pairs, "who goes on should not lose: the gradient is masked, or the step too long")


def larger_radius(measured: Sequence[Measured]) -> Checked:
    """The same attack in a larger ball."""
    check = "larger-radius"
    runs = sorted((m for m in measured if m.score.eps is not None), key=lambda m: m.score.eps or 0)
    pairs = [
        (a, b)
        for a, b in combinations(runs, 2)
        if a.score.attack == b.score.attack
        and _comparable(a, b)
        and a.score.norm == b.score.norm
        and (a.score.eps or 0) < (b.score.eps or 0)
    ]
    if not pairs:
        return skipped(check, "needs one attack at two radii on the same images")
    return _no_reversal(check, pairs, "the larger ball holds the smaller, so the attack fails in it")


def black_box(measured: Sequence[Measured]) -> Checked:
    """Square and transfer against attacks that see gradients."""
    check = "black-box-beats-white-box"
    blind = [m for m in measured if _transferred(m) or (m.attack is not None and not m.attack.needs_gradient)]
    seeing = [m for m in measured if _sees(m)]
    pairs = [(a, b) for a in seeing for b in blind if _same_ball(a, b)]
    if not pairs:
        return skipped(check, "needs square, aa or transfer, and pgd, cw or apgd, on the same images")
    reference = pairs[0][0]
    seeing = [m for m in seeing if _same_ball(m, reference)]
    blind = [m for m in blind if _same_ball(m, reference)]
    left = np.logical_and.reduce([m.mask for m in seeing])
    return black_box_finding(left, left & np.logical_and.reduce([m.mask for m in blind]), _names(seeing), _names(blind))


def black_box_finding(left: Mask, then_left: Mask, seeing: str, blind: str) -> Checked:
    """What stands after white-box attacks, (n,), and what of it after black-box ones too, (n,)."""
    n, beyond = len(left), int((left & ~then_left).sum())
    says = f"{beyond} of {n} images that {seeing} leave fall to {blind}"
    suspicious = exceeds(beyond, n, BLACK_SHARE)
    if suspicious:
        says += ": gradients are masked, or these attacks are too weak; the white-box figure is too high"
    return judged("black-box-beats-white-box", suspicious, says, images=n, beyond=beyond, left=int(left.sum()))


def above_pgd(measured: Sequence[Measured]) -> Checked:
    """AutoAttack against the attacks that it should beat."""
    check = "autoattack-above-pgd"
    wholes = [m for m in measured if isinstance(m.attack, AutoAttack)]
    singles = [m for m in measured if _climb(m) is not None]
    pairs = [(a, b) for a in singles for b in wholes if _same_ball(a, b)]
    if not pairs:
        return skipped(check, "needs aa and pgd or cw on the same images")
    means = "it holds a stronger attack of that kind, so the network answers at random or a program is wrong"
    return _no_reversal(check, pairs, means, rise=0.0)


def _no_reversal(check: str, pairs: Sequence[Pair], means: str, rise: float = RISE) -> Checked:
    """The pair that speaks most against the stronger attack, with the chance of one so lopsided among so many."""
    rows = []
    for weaker, stronger in pairs:
        against = int((stronger.mask & ~weaker.mask).sum())
        along = int((weaker.mask & ~stronger.mask).sum())
        chance = min(1.0, len(pairs) * reversal(against, along))
        innocent = chance >= CHANCE or against - along <= rise * stronger.score.n
        rows.append((innocent, chance, along - against, against, along, weaker, stronger))
    innocent, chance, _, against, along, weaker, stronger = min(rows, key=lambda row: row[:3])
    here, there = _name(weaker, stronger)
    says = (
        f"{there} leaves {stronger.score.correct} of {stronger.score.n} images, {here} {weaker.score.correct}; "
        f"only {here} breaks {against}, only {there} {along}"
    )
    if not innocent:
        says += f": {means}"
    return judged(check, not innocent, says, images=stronger.score.n, against=against, along=along, chance=chance)


def _name(weaker: Measured, stronger: Measured) -> tuple[str, str]:
    a, b = weaker.score, stronger.score
    if a.attack != b.attack:
        return a.attack, b.attack
    return tuple(f"{s.attack} at {as_fraction(s.eps or 0)}" for s in (a, b))  # type: ignore[return-value]


def _names(some: Sequence[Measured]) -> str:
    return ", ".join(dict.fromkeys(m.score.attack for m in some))


def _transferred(m: Measured) -> bool:
    """Whether its examples were made on another network."""
    return isinstance(m.score, Transferred)


def _climb(m: Measured) -> UntargetedPGD | None:
    """The attack of PGD's family that was made on the network itself, FGSM included."""
    return m.attack if isinstance(m.attack, UntargetedPGD) and not _transferred(m) else None


def _climbs(measured: Sequence[Measured], loss: str) -> list[Measured]:
    """Figures of PGD on this loss; FGSM is none."""
    return [m for m in measured if (found := _climb(m)) and found.loss == loss and found.spec != "fgsm"]


def _apgd(m: Measured) -> str | None:
    """The loss of APGD, alone or within AutoAttack."""
    attack = m.attack.own if isinstance(m.attack, Authors) else m.attack
    return attack.loss if isinstance(attack, APGD) else None


def _sees(m: Measured) -> bool:
    """Whether one attack followed the network's own gradient."""
    attack = m.attack
    return attack is not None and attack.needs_gradient and not isinstance(attack, AutoAttack) and not _transferred(m)


def _steps(m: Measured) -> int:
    assert isinstance(m.attack, UntargetedPGD)
    return m.attack.climb.steps


def _restarts(m: Measured) -> int:
    assert isinstance(m.attack, UntargetedPGD)
    return m.attack.climb.restarts


def _effort(m: Measured) -> int:
    return _steps(m) * _restarts(m)


def _manner(m: Measured) -> tuple[str, float]:
    assert isinstance(m.attack, UntargetedPGD)
    return m.attack.loss, m.attack.climb.step_size


def _comparable(a: Measured, b: Measured) -> bool:
    """Whether these are verdicts of one network on the same images."""
    return (a.score.data, a.score.weights, len(a.mask)) == (b.score.data, b.score.weights, len(b.mask))


def _same_ball(a: Measured, b: Measured) -> bool:
    return _comparable(a, b) and (a.score.norm, a.score.eps) == (b.score.norm, b.score.eps)


QUERIES = 1000
HUGE = Budget(0.5)
"""Grey is within reach of every image, and there all images look the same. Every ball of the other norms that has this
property holds this one."""
HUGE_STEPS = 40
SEEING = ("pgd-20", "pgd-100", "cw-20")
SEEING_STEPS = 50
"""Of APGD on what the attacks above leave; its steps shrink where theirs run to and fro."""


class CheckedSample:
    """Attacks on a sample of the images; what was measured on all of them is read off rather than measured again."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        protocol: Protocol,
        measured: Sequence[Measured],
        rows: Tensor,
        progress: Progress | None,
    ) -> None:
        self._model, self.images = model, images.take(rows)
        self._protocol, self._progress = replace(protocol, engine="plain"), progress
        facts, here = (weights_hash(model), images.fingerprint(), len(images)), self.images.fingerprint()
        self._known: dict[tuple[str, str | None, float | None], Measured] = {}
        for m in measured:
            if (m.score.weights, m.score.data, len(m.mask)) == facts:
                mask = m.mask[rows.numpy()]
                score = replace(m.score, n=len(mask), correct=int(mask.sum()), data=here)
                self._known[m.score.attack, m.score.norm, m.score.eps] = Measured(score, mask, m.attack)

    @property
    def budget(self) -> Budget:
        """That of the evaluation."""
        return self._protocol.budget

    def under(self, attack: str | UntargetedPGD, budget: Budget | None = None) -> Measured:
        """The sample under an attack."""
        ball = budget or self.budget
        key = (attack if isinstance(attack, str) else attack.spec, ball.norm, ball.eps)
        if key not in self._known:
            made = read_attack(attack, ball) if isinstance(attack, str) else attack
            _, self._known[key] = self._measure(self.images, made, ball)
        return self._known[key]

    def after(self, surviving: Mask, attack: APGD | Square) -> Mask:
        """Which of the survivors also survive this attack, (n,)."""
        rows = np.flatnonzero(surviving)
        left = surviving.copy()
        if len(rows):
            left[rows] = self._measure(self.images.take(torch.from_numpy(rows)), attack, self.budget)[-1].mask
        return left

    def _measure(self, images: ImageSet, attack: Attack, budget: Budget) -> list[Measured]:
        protocol = self._protocol.only(attack, budget=budget)
        return measure(self._model, images, protocol, split="checks", which="checks", progress=self._tell)

    def _tell(self, attack: str, done: int, of: int, surviving: int) -> None:
        if self._progress is not None:
            self._progress(f"check: {attack}", done, of, surviving)


def attacked(sample: CheckedSample, measured: Sequence[Measured], known: Sequence[Checked]) -> list[Checked]:
    """The checks on verdicts, on the sample where the figures measured do not allow them, and the huge radius."""
    eps, norm = sample.budget.eps, sample.budget.norm
    radii = [Budget(r, norm) for r in (eps / 2, eps, 2 * eps) if norm != "linf" or r <= 1]
    dear: dict[str, Callable[[], Checked]] = {
        "rescaled-loss": lambda: rescaled_loss([sample.under(a) for a in ("pgd-20", "cw-20")]),
        "fgsm-beats-pgd": lambda: single_step([sample.under(a) for a in ("fgsm", "pgd-20")]),
        "more-steps": lambda: more_steps([sample.under(a) for a in ("pgd-20", "pgd-100")]),
        "larger-radius": lambda: larger_radius([sample.under("pgd-20", ball) for ball in radii]),
        "huge-radius": lambda: huge_radius(sample),
        "black-box-beats-white-box": lambda: _black_box(sample),
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


def huge_radius(sample: CheckedSample) -> Checked:
    """Cross-entropy from the image itself, so far that nothing of the image need be left."""
    step = HUGE.eps / 8
    attack = UntargetedPGD("pgd-huge", "PGD", PGD(HUGE_STEPS, step, "none"))
    m = sample.under(attack, HUGE)
    n, correct = m.score.n, m.score.correct
    share = float(sample.images.class_counts().max()) / n
    says = f"{correct} of {n} images are read rightly after {HUGE_STEPS} steps on cross-entropy at linf 0.5"
    suspicious = exceeds(correct, n, share)
    if suspicious:
        says += (
            f", where one grey image is in reach of all and no network keeps more than {share:.0%}: the attack fails, "
            "and says as little at a smaller radius"
        )
    return judged("huge-radius", suspicious, says, images=n, correct=correct, largest_class=share)


def _black_box(sample: CheckedSample) -> Checked:
    left = np.logical_and.reduce([sample.under(attack).mask for attack in SEEING])
    further = [APGD(loss, SEEING_STEPS) for loss in (("ce", "dlr") if sample.images.num_classes >= 3 else ("ce",))]
    for attack in further:
        left = sample.after(left, attack)
    seeing = ", ".join((*SEEING, *(attack.spec for attack in further)))
    return black_box_finding(left, sample.after(left, Square(QUERIES)), seeing, f"square ({QUERIES} queries)")
