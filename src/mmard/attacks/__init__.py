"""Attacks by name, and the short spelling in which the command line and records write them.

fgsm          one step of eps from x
pgd-20        20 steps on cross-entropy, step eps/4, uniform start           (the 20 steps of 2/255 of the field)
cw-30         30 steps on the margin of Carlini and Wagner, step eps/4, uniform start
pgd-100x10    the same with 10 restarts
pgd-20@0.003  the same with this step
aa            AutoAttack; its attacks alone are apgd-ce, apgd-t, fab-t, square

An attack of an evaluation is a frozen value, called as a pure function (`Attack`). One of a training climbs whatever
objective its method has (`TrainingAttack`). `mmard.evaluation.spellings` lists all for people, without PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mmard.attacks.autoattack import SPECS, AutoAttack, is_named, named
from mmard.attacks.pgd import (
    PGD,
    STARTS,
    NoiseFGSM,
    Objective,
    TrainingAttack,
    Untargeted,
    UntargetedPGD,
    fgsm,
)
from mmard.attacks.queries import Attack, is_black_box, refuse_white_box
from mmard.balls import Budget
from mmard.errors import Refused, unknown
from mmard.words import radius

__all__ = [
    "FAMILY",
    "PGD",
    "STARTS",
    "TRAINING_ATTACKS",
    "Attack",
    "AttackMaker",
    "AutoAttack",
    "NoiseFGSM",
    "Objective",
    "TrainingAttack",
    "Untargeted",
    "UntargetedPGD",
    "fgsm",
    "is_black_box",
    "noise_fgsm",
    "pgd",
    "read_attack",
    "read_attacks",
    "refuse_white_box",
]

# attacks of a training ------------------------------------------------------------------------------------------------
AttackMaker = Callable[[Budget, int, float | None, str], TrainingAttack]
"""How a training makes its attack: (budget, steps, step size or None for its own, start) -> the attack."""


def pgd(budget: Budget, steps: int, step_size: float | None, start: str) -> TrainingAttack:
    """PGD with these steps, of a quarter of eps if no length is given."""
    return PGD(steps, budget.eps / 4 if step_size is None else step_size, start)


def noise_fgsm(budget: Budget, steps: int, step_size: float | None, start: str, noise: float = 2.0) -> TrainingAttack:
    """One step from noise of twice eps, of eps if no length is given; it has its own number of steps and start."""
    return NoiseFGSM(noise, step_size)


TRAINING_ATTACKS: dict[str, AttackMaker] = {"pgd": pgd, "noise-fgsm": noise_fgsm}
"""Attacks that a training can be told to use, by name."""

# attacks of an evaluation ---------------------------------------------------------------------------------------------
FAMILY = {"fgsm": ("FGSM", "ce"), "pgd": ("PGD", "ce"), "cw": ("CW-PGD", "margin")}
"""Name in labels and loss of the attacks that are PGD, by the first word of their spelling."""
_SPELLING = re.compile(r"(?P<kind>[a-z]+)(?:-(?P<steps>\d+))?(?:x(?P<restarts>\d+))?(?:@(?P<step>[\d./e-]+))?")


def read_attack(spec: str, budget: Budget, *, beside: Sequence[str] = ()) -> UntargetedPGD:
    """An attack of PGD's family by its short spelling.

    >>> read_attack("pgd-20", Budget(8 / 255)).label
    'PGD-20 (CE, step 2/255, uniform start, 1 restart)'

    Args:
        spec: the short spelling.
        budget: decides the length of the steps.
        beside: names of other attacks, which a refusal offers as well.

    Raises:
        Refused: for a spelling or an attack that is not known, or a step that jumps across the ball.
    """
    text = spec.strip().lower()
    parts = _SPELLING.fullmatch(text)
    whole = max((name for name in beside if text.startswith(f"{name}-")), key=len, default=None)
    if whole is not None:
        mend = f"its numbers are fixed; say {whole}"
        raise Refused(f"attack {spec!r}", expected=f"plain {whole!r}", got=repr(spec), mend=mend)
    if parts is None:
        joined = re.fullmatch(r"(pgd|cw)[ _]?(\d+\S*)", text)
        mend = f"did you mean '{joined[1]}-{joined[2]}'?" if joined else unknown("attack", text, beside).mend
        raise Refused(
            f"attack {spec!r}",
            expected=", ".join(("a spelling such as fgsm, pgd-20, cw-30, pgd-100x10, pgd-20@0.003", *beside)),
            got=repr(spec),
            mend=mend,
        )
    kind = parts["kind"]
    if kind not in FAMILY:
        raise unknown("attack", kind, (*FAMILY, *beside))
    name, loss = FAMILY[kind]
    if kind == "fgsm":
        if text != "fgsm":
            raise Refused(f"attack {spec!r}", expected="plain 'fgsm', which is one step of eps", got=repr(spec))
        return UntargetedPGD(text, name, fgsm(budget), loss)
    if parts["steps"] is None:
        raise Refused(f"attack {spec!r}", expected=f"the number of steps, e.g. {kind}-20", got=repr(spec))
    step = radius(parts["step"]) if parts["step"] else budget.eps / 4
    climb = PGD(int(parts["steps"]), step, "uniform", int(parts["restarts"] or 1))
    climb.check(budget)
    return UntargetedPGD(text, name, climb, loss)


def read_attacks(specs: Sequence[str], budget: Budget, num_classes: int) -> tuple[Attack | AutoAttack, ...]:
    """Attacks of every kind by their short spellings.

    Raises:
        Refused: for a spelling that is not known, or an attack that so few classes do not have.
    """
    return tuple(
        named(spec, budget, num_classes) if is_named(spec) else read_attack(spec, budget, beside=SPECS)
        for spec in specs
    )
