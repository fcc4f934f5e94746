"""What a check found, and the exact tests by which it is told from chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["passed", "suspicious", "skipped"]

CHANCE = 0.001
"""Probability with which a comparison may be called suspicious by the choice of images and starts alone. An evaluation
makes about ten, so one false mark in a hundred evaluations or fewer."""


@dataclass(frozen=True)
class Checked:
    """The outcome of one check.

    Attributes:
        check: slug of the check, which is also its anchor in docs/checks.md.
        verdict: "passed", "suspicious", or "skipped" where it could not be made.
        says: one line: what was seen, and what it means or what to do.
        figures: the numbers behind it.
    """

    check: str
    verdict: Verdict
    says: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def suspicious(self) -> bool:
        """Whether the figures of this network deserve a mark."""
        return self.verdict == "suspicious"

    @property
    def page(self) -> str:
        """Where the check is explained."""
        return f"docs/checks.md#{self.check}"

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "figures": dict(self.figures)}


def judged(check: str, suspicious: bool, says: str, **figures: float) -> Checked:
    """A check that was made."""
    return Checked(check, "suspicious" if suspicious else "passed", says, figures)


def skipped(check: str, why: str) -> Checked:
    """A check that could not be made."""
    return Checked(check, "skipped", why)


def tail(k: int, n: int, p: float) -> float:
    """Probability that k or more of n independent events happen, each with probability p.

    >>> tail(2, 2, 0.5), tail(0, 5, 0.1)
    (0.25, 1.0)
    """
    if k <= 0:
        return 1.0
    if p <= 0 or k > n:
        return 0.0
    if p >= 1:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def exceeds(k: int, n: int, share: float) -> bool:
    """Whether k of n are too many for a share of at most this: the exact one-sided binomial test at `CHANCE`.

    Equivalently, the lower bound of Clopper and Pearson lies above the share.
    """
    return tail(k, n, share) < CHANCE


def reversal(against: int, along: int) -> float:
    """McNemar's exact one-sided test: chance of so lopsided a count, were a change either way equally likely.

    Args:
        against: images on which only the attack that should be the weaker one succeeded.
        along: images on which only the stronger one did.
    """
    return tail(against, against + along, 0.5)
