"""What a figure may be off by: over the choice of images, and over the seeds of training.

One trained network has an interval over images (`score.wilson`). Networks trained with several seeds have a standard
deviation over seeds, and their mean an interval by Student's t. The two say different things and neither covers the
other: all seeds are measured on the same images, and one network says nothing about the next. What is said of other
seeds and other images carries both: the two halves of an interval add up like the sides of a right angle.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmard.evaluation.score import Z_95, Mask

LEVEL = 0.05
"""Of tests."""

# The 97.5 % points of Student's t with 1 to 10 degrees of freedom; beyond, the expansion in 1 / degrees holds to 1e-3.
_T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_ROUNDING = 1e-12
"""Spreads of shares in [0, 1] below this are the rounding of equal numbers."""


def t_95(degrees: int) -> float:
    """Half-width of a 95 % interval in standard errors, with a deviation of so many degrees of freedom.

    >>> round(t_95(1), 2), round(t_95(2), 2), round(t_95(1000), 2)
    (12.71, 4.3, 1.96)
    """
    assert degrees >= 1, "one value has no deviation"
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    z = Z_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1 in the denominator; None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean that these values are drawn around, by Student's t.

    None for a single value, and for two that are equal.

    >>> tuple(round(v, 3) for v in mean_interval([0.50, 0.52, 0.54]))
    (0.47, 0.57)
    >>> mean_interval([0.5, 0.5]) is None
    True
    """
    half, mean = _half(values), statistics.fmean(values)
    return None if half is None else (mean - half, mean + half)


def _half(values: Sequence[float]) -> float | None:
    spread = deviation(values)
    if spread is None or (len(values) == 2 and spread <= _ROUNDING):
        return None
    return t_95(len(values) - 1) * spread / math.sqrt(len(values))


def t_tail(t: float, degrees: int) -> float:
    """How likely Student's t is to lie farther from 0 than t, on either side (Abramowitz and Stegun 26.7.3, 26.7.4).

    >>> round(t_tail(12.7062, 1), 4), round(t_tail(2.7764, 4), 4), t_tail(0.0, 3)
    (0.05, 0.05, 1.0)
    """
    angle = math.atan(abs(t) / math.sqrt(degrees))
    power, total = math.cos(angle) if degrees % 2 else 1.0, 0.0
    for k in range(2 + degrees % 2, degrees + 1, 2):
        total += power
        power *= math.cos(angle) ** 2 * (k - 1) / k
    within = math.sin(angle) * total
    return 1 - (2 / math.pi * (angle + within) if degrees % 2 else within)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below 0.05 in a family of tests, at most one family in twenty errs anywhere.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, floor = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        floor = max(floor, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = floor
    return adjusted


@dataclass(frozen=True)
class Difference:
    """The mean of one configuration minus that of another; of accuracies, on the same images.

    Attributes:
        mean: of the difference; of accuracies a share in [-1, 1].
        over_images: half of its 95 % interval over the choice of images, paired image by image; None without masks.
        over_seeds: half of its 95 % interval over the seeds of training, by Student's t; None where one of the two has
            a single seed, or where there are two each and they agree.
        paired: whether seeds are paired: the two share at least two, and the others are left out.
        seeds: how many seeds of either are in it.
        of_images: whether it is of accuracies, which the choice of images moves too.
    """

    mean: float
    over_images: float | None
    over_seeds: float | None
    paired: bool
    seeds: tuple[int, int]
    of_images: bool = True

    @property
    def half(self) -> float | None:
        """Half of its 95 % interval over seeds and images together, over seeds alone where no verdicts are known.

        None where that over seeds is unknown.
        """
        return None if self.over_seeds is None else math.hypot(self.over_seeds, self.over_images or 0.0)

    @property
    def verdict(self) -> Literal["beyond noise", "within noise", "unknown"]:
        """The one rule of what is noise, for every table, plot and sentence.

        "within noise" if what is known of its interval covers 0; "beyond noise" if all of it is known (over seeds, and
        of accuracies over images) and does not; "unknown" else: one seed never shows a gain.
        """
        if abs(self.mean) <= math.hypot(self.over_seeds or 0.0, self.over_images or 0.0) + _ROUNDING:
            return "within noise"
        known = self.over_seeds is not None and (self.over_images is not None or not self.of_images)
        return "beyond noise" if known else "unknown"

    @property
    def clear(self) -> bool:
        """Whether it is beyond noise."""
        return self.verdict == "beyond noise"

    def p(self, bound: float = 0.0) -> float | None:
        """Two-sided p-value of a mean of `bound`: 0.05 where the interval ends there. None for a single seed, and for
        seeds that are not paired."""
        if self.over_seeds is None or not self.paired:
            return None
        degrees, away = self.seeds[0] - 1, abs(self.mean - bound)
        seeds, images = self.over_seeds / t_95(degrees), (self.over_images or 0.0) / Z_95
        if seeds == images == 0:
            return 0.0 if away else 1.0
        low, high = 0.0, 1.0
        for _ in range(60):
            p = (low + high) / 2
            far = math.hypot(t_at(p, degrees) * seeds, statistics.NormalDist().inv_cdf(1 - p / 2) * images)
            low, high = (p, high) if far > away else (low, p)
        return (low + high) / 2


def t_at(p: float, degrees: int) -> float:
    """Where `t_tail` is p: half-width of the interval at level 1 - p, in standard errors."""
    low, high = 0.0, 1e9
    for _ in range(120):
        t = (low + high) / 2
        low, high = (t, high) if t_tail(t, degrees) > p else (low, t)
    return (low + high) / 2


def difference(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    our_masks: Mapping[int, Mask] | None = None,
    their_masks: Mapping[int, Mask] | None = None,
    *,
    of_images: bool = True,
) -> Difference:
    """Compare two configurations.

    Args:
        ours, theirs: accuracy, or another number, by seed.
        our_masks, their_masks: verdicts (n,) by seed, on the same images in the same order.
        of_images: whether the numbers are accuracies, so that the choice of images is a noise that they have.

    >>> a, b = np.arange(100) < 60, np.arange(100) < 50
    >>> found = difference({0: 0.6}, {0: 0.5}, {0: a}, {0: b})
    >>> round(found.mean, 3), round(found.over_images, 3), found.over_seeds, found.verdict
    (0.1, 0.059, None, 'unknown')
    """
    assert ours, "a difference needs a figure on both sides"
    assert theirs, "a difference needs a figure on both sides"
    shared = sorted(ours.keys() & theirs.keys())
    paired = len(shared) > 1 or (len(shared) == 1 and len(ours) == len(theirs) == 1)
    mine, other = (shared, shared) if paired else (sorted(ours), sorted(theirs))
    a, b = [ours[seed] for seed in mine], [theirs[seed] for seed in other]
    return Difference(
        mean=statistics.fmean(a) - statistics.fmean(b),
        over_images=_over_images(mine, other, our_masks or {}, their_masks or {}),
        over_seeds=_over_seeds(a, b, paired),
        paired=paired,
        seeds=(len(a), len(b)),
        of_images=of_images,
    )


def _over_seeds(a: Sequence[float], b: Sequence[float], paired: bool) -> float | None:
    if len(a) < 2 or len(b) < 2:
        return None
    if paired:
        return _half([p - q for p, q in zip(a, b, strict=True)])
    # Welch: the two need not spread alike. The degrees of freedom are rounded down, which widens the interval.
    first, second = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if first + second <= _ROUNDING**2:
        return None if len(a) == len(b) == 2 else 0.0
    degrees = (first + second) ** 2 / (first**2 / (len(a) - 1) + second**2 / (len(b) - 1))
    return t_95(max(1, int(degrees))) * math.sqrt(first + second)


def _over_images(
    mine: Sequence[int], other: Sequence[int], our_masks: Mapping[int, Mask], their_masks: Mapping[int, Mask]
) -> float | None:
    """Every image has a share of our networks that read it rightly, and one of theirs; what varies is which images."""
    if not (set(mine) <= our_masks.keys() and set(other) <= their_masks.keys()):
        return None
    a = np.mean([our_masks[seed].astype(float) for seed in mine], axis=0)
    b = np.mean([their_masks[seed].astype(float) for seed in other], axis=0)
    return Z_95 * float((a - b).std(ddof=1)) / math.sqrt(len(a)) if len(a) > 1 else None
