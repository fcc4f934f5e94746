"""A figure and all that it depends on."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmard.words import as_fraction, percent

Z_95 = 1.959963984540054


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson (1927): right near 0 and 1 too, where the normal interval leaves [0, 1].

    >>> tuple(round(v, 4) for v in wilson(50, 100))
    (0.4038, 0.5962)
    """
    p, z2 = correct / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends one bound is exactly 0 or 1; rounding must not take it past.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


@dataclass(frozen=True, repr=False)
class Score:
    """Accuracy of one set of weights under one attack.

    Attributes:
        attack: short spelling, e.g. "pgd-20"; "clean" for none, "worst_of_..." for all attacks of a call together.
        label: full description of the attack.
        norm, eps: the budget; None without an attack.
        split: which images, e.g. "test".
        n, correct: images, and those classified rightly (after the attack).
        seconds: wall-clock time of this attack.
        seed, batch_size: what the attack's random starts depend on.
        weights, data: SHA-256 of the weights and of the images and labels.
        which: "best", "last", or the file that was measured.
        images: a line on where the images come from.
        engine: a line on what the attack asked: a twin of the network, or the network itself. Empty where that does not
            apply or, in records of before, was not said. The verdict is the network's own in any case.
    """

    attack: str
    label: str
    norm: str | None
    eps: float | None
    split: str
    n: int
    correct: int
    seconds: float
    seed: int
    batch_size: int
    weights: str
    data: str
    which: str
    images: str
    engine: str = ""

    @property
    def accuracy(self) -> float:
        """Share of images classified rightly, in [0, 1]."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval, over the choice of images alone."""
        return wilson(self.correct, self.n)

    def __repr__(self) -> str:
        return f"<Score {self.attack}{self._at}: {self._figure} of {self.n:,}, {self.split}, {self.which} weights>"

    def _repr_html_(self) -> str:
        """A row under its heads, for a notebook."""
        facts = {
            "attack": f"{self.label}{self._at}", "accuracy": self._figure, "images": f"{self.n:,}, {self.split}",
            "weights": self.which,
        }  # fmt: skip
        heads, cells = (
            "".join(f"<{tag}>{escape(text)}</{tag}>" for text in row)
            for tag, row in (("th", facts), ("td", facts.values()))
        )
        return f"<table><tr>{heads}</tr><tr>{cells}</tr></table>"

    @property
    def _at(self) -> str:
        return "" if self.eps is None else f" at {self.norm} {as_fraction(self.eps)}"

    @property
    def _figure(self) -> str:
        low, high = self.interval
        return f"{percent(self.accuracy)} [{percent(low)}, {percent(high)}]"

    @property
    def slug(self) -> str:
        """A file name that no other figure on these weights has: the same measurement made again, and no other."""
        budget = "" if self.eps is None else f"-{self.norm}-{self.eps:.5f}"
        text = f"{self.which}-{self.split}-{self.n}-{self.attack}{budget}-seed{self.seed}"
        rest = hashlib.sha256(f"{text} {self.label} {self.eps} {self.batch_size} {self.data}".encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9.,+_-]+', '_', text)[:150]}-{rest[:8]}"

    def record(self) -> dict[str, Any]:
        """All fields with the accuracy and its interval, as JSON holds them."""
        return {**asdict(self), "accuracy": self.accuracy, "interval": list(self.interval)}


Mask = NDArray[np.bool_]
"""Which images are classified rightly, in the set's order, (n,)."""
