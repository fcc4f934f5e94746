"""What the catalogue says of an attack, and the numbers that may follow its name: pgd-20, pgd-100x10, pgd-20@0.003."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmard.balls import Budget
from mmard.errors import Refused, require
from mmard.words import radius

COUNTS = re.compile(r"-(?P<steps>\d+)(?:x(?P<restarts>\d+))?(?:@(?P<step>[\w./+-]+))?", re.ASCII)
MOST = 1_000_000
"""Steps or restarts that a spelling may ask for."""
STANDARD_TARGETS = 9
"""Wrong classes that targeted attacks of the standard AutoAttack try, where there are as many."""


@dataclass(frozen=True)
class AttackKind:
    """One attack that can be named.

    Attributes:
        make: (spelling, budget, number of classes) -> an `Attack`, or an `AutoAttack`; raises `Refused`.
        says: spellings, each standing for its kind, and what they are: the rows of `mmard attacks`.
        title: what a column of it is headed by, without the number of steps; "" where that is the attack's own label.
        counted: whether -STEPSxRESTARTS@STEP follow the name (see `counts`).
        classes: the fewest on which it is defined.
        backend: whether the authors' code has it too.
        also: other words by which people ask for it, letters alone, which a refusal understands.
    """

    make: Callable[[str, Budget, int], Any]
    says: Mapping[str, str]
    title: str = ""
    counted: bool = False
    classes: int = 1
    backend: bool = False
    also: tuple[str, ...] = ()


def counts(spec: str, name: str, budget: Budget) -> tuple[int, int, float]:
    """Steps, restarts and length of a step that follow a name in a spelling; one restart and eps/4 if not said.

    >>> counts("pgd-100x10@0.003", "pgd", Budget(8 / 255)), counts("pgd-20", "pgd", Budget(0.5, "l2"))
    ((100, 10, 0.003), (20, 1, 0.125))

    Raises:
        Refused: for a spelling that is none, with the one that is nearest.
    """
    found, meant = COUNTS.fullmatch(spec.removeprefix(name)), nearest_counts(spec, name)
    mend = f"did you mean {meant!r}?" if meant not in ("", spec) else ""
    if found is None:
        expected = f"the number of steps, e.g. {name}-20, {name}-20x10 with restarts or {name}-20@2/255 with a step"
        raise Refused(f"attack {spec!r}", expected=expected, got=repr(spec), mend=mend)
    steps, restarts = int(found["steps"]), int(found["restarts"] or 1)
    for what, count in (("steps", steps), ("restarts", restarts)):
        require(1 <= count <= MOST, f"attack {spec!r}", expected=f"at least 1 and at most {MOST:,} {what}", got=count)
    if found["step"] is None:
        return steps, restarts, budget.eps / 4
    try:
        step = radius(found["step"])
    except Refused:
        expected = "a step such as 2/255 or 0.003 after the @"
        raise Refused(f"attack {spec!r}", expected=expected, got=repr(found["step"]), mend=mend) from None
    require(0 < step < math.inf, f"attack {spec!r}", expected="a positive step after the @", got=found["step"])
    return steps, restarts, step


def nearest_counts(spec: str, name: str) -> str:
    """The spelling that somebody meant who wrote the numbers otherwise; "" where that cannot be told.

    >>> [nearest_counts(spec, "pgd") for spec in ("pgd20", "pgd_20*3", "pgd-20@0.003x10", "pgd-20@", "pgdx10")]
    ['pgd-20', 'pgd-20x3', 'pgd-20x10@0.003', 'pgd-20', '']
    """
    before, _, after = spec.removeprefix(name).partition("@")
    step, _, more = after.partition("x")
    numbers = re.fullmatch(r"[-_\s\u2013\u2014]*(\d+)(?:[-_\s*x\u00d7\u2013\u2014]+(\d+)?)?", before)
    if numbers is None:
        return ""
    restarts = numbers[2] or more
    meant = f"{name}-{numbers[1]}" + (f"x{restarts}" if restarts else "") + (f"@{step}" if step else "")
    return meant if COUNTS.fullmatch(meant.removeprefix(name)) and re.fullmatch(r"[\d./]*", step) else ""
