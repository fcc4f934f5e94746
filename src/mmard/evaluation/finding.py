"""What an evaluation found beside accuracies, with all that it depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmard.attacks import Trial
from mmard.balls import Budget
from mmard.evaluation.evaluate import Measured, Subject

KINDS = ("checks", "curve", "classes", "margins", "calibration", "boundary", "examples")


@dataclass(frozen=True)
class Used:
    """The attack that a finding speaks of.

    Attributes:
        attack, label: short spelling and full description; None without an attack.
        norm, eps: the budget; None without one.
    """

    attack: str | None = None
    label: str | None = None
    norm: str | None = None
    eps: float | None = None

    @classmethod
    def of(cls, attack: Trial | Measured, budget: Budget | None = None) -> Used:
        """The attack of a trial in a ball, or that of a figure."""
        if isinstance(attack, Measured):
            score = attack.score
            return cls(score.attack, score.label, score.norm, score.eps)
        ball = (None, None) if budget is None else (budget.norm, budget.eps)
        return cls(attack.spec, attack.label, *ball)


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: one of `KINDS`.
        subject: which weights, on which images.
        used: which attack.
        body: what was found, as JSON holds it; docs/run_folder.md has the keys of each kind.
        seconds: wall-clock time that this took beyond what it shares with the figures.
        arrays: what goes into a file of its own, by name.
    """

    kind: str
    subject: Subject
    used: Used
    body: Mapping[str, Any]
    seconds: float
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        taken = set(self.body) & {"kind", "slug", "seconds", "environment", *asdict(self.subject), *asdict(self.used)}
        assert not taken, f"a finding's body has the keys {taken} of its head"

    @property
    def slug(self) -> str:
        """A file name that the same finding made again has, and no other on these weights."""
        s, u = self.subject, self.used
        over = f"-{self.body['over']}" if self.kind == "curve" else ""
        attack = "" if u.attack is None else f"-{u.attack}"
        budget = "" if u.eps is None else f"-{u.norm}-{u.eps:.5f}"
        text = f"{s.which}-{s.split}-{s.n}-{self.kind}{over}{attack}{budget}-seed{s.seed}"
        facts = f"{text} {u.label} {u.norm} {u.eps} {s.batch_size} {s.data} {self.body.get('teacher', '')}"
        rest = hashlib.sha256(facts.encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9.,+_-]+', '_', text)[:150]}-{rest[:8]}"

    def record(self) -> dict[str, Any]:
        """Head and body, as JSON holds them.

        NaN and infinity, which JSON does not have, are refused as errors of ours.
        """
        head = {"kind": self.kind, **asdict(self.subject), **asdict(self.used)}
        found = {**head, **self.body, "seconds": round(self.seconds, 3)}
        json.dumps(found, allow_nan=False)
        return found


def counts(values: NDArray[Any], edges: NDArray[Any]) -> list[int]:
    """How many values lie between two edges each; those beyond the outer edges are in the outer bins.

    >>> counts(np.array([-9.0, 0.1, 0.2, 0.9, 1.0]), np.array([0.0, 0.5, 1.0]))
    [3, 2]
    """
    inside = np.clip(values, edges[0], edges[-1])
    return [int(n) for n in np.histogram(inside, edges)[0]]
