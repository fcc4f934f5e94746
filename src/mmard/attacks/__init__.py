"""Attacks by name, and the short spelling in which the command line and records write them.

fgsm          one step of eps from x
pgd-20        20 steps on cross-entropy, step eps/4, uniform start           (the 20 steps of 2/255 of the field)
cw-30         30 steps on the margin of Carlini and Wagner, step eps/4, uniform start
pgd-100x10    the same with 10 restarts
pgd-20@0.003  the same with this step
aa            AutoAttack; its attacks alone are apgd-ce, apgd-dlr, apgd-t, fab-t, square

An attack of an evaluation is a frozen value, called as a pure function (`Attack`). One of a training climbs whatever
objective its method has (`TrainingAttack`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from mmard.attacks.authors import PACKAGE
from mmard.attacks.autoattack import AutoAttack, by_authors
from mmard.attacks.kinds import COUNTS, AttackKind
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
from mmard.words import as_fraction, plural, radius

__all__ = [
    "ATTACKS",
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
    "attack_settings",
    "attack_title",
    "fgsm",
    "is_black_box",
    "named",
    "noise_fgsm",
    "pgd",
    "read_attack",
    "read_attacks",
    "refuse_white_box",
    "rs_fgsm",
    "spellings",
]

AttackMaker = Callable[[Budget, int, float | None, str], TrainingAttack]
"""How a training makes its attack: (budget, steps, step size or None for its own, start) -> the attack."""


def pgd(budget: Budget, steps: int, step_size: float | None, start: str) -> TrainingAttack:
    """PGD with these steps, of a quarter of eps if no length is given."""
    return PGD(steps, budget.eps / 4 if step_size is None else step_size, start)


def noise_fgsm(budget: Budget, steps: int, step_size: float | None, start: str, noise: float = 2.0) -> TrainingAttack:
    """One step from noise of twice eps, of eps if no length is given; it has its own number of steps and start."""
    return NoiseFGSM(noise, step_size)


def rs_fgsm(budget: Budget, steps: int, step_size: float | None, start: str, length: float = 1.25) -> TrainingAttack:
    """One step of `length` eps from a uniform start, projected; it has its own number of steps and start."""
    return PGD(1, length * budget.eps if step_size is None else step_size, "uniform")


TRAINING_ATTACKS: dict[str, AttackMaker] = {"pgd": pgd, "noise-fgsm": noise_fgsm, "rs-fgsm": rs_fgsm}
"""Attacks that a training can be told to use, by name."""

LEAVES = (
    "pgd",
    "autoattack",
    "apgd",
    "fab",
    "square",
)
"""Modules of this folder whose `KINDS` can be named, in the order in which they are listed."""

ATTACKS: dict[str, AttackKind] = {
    name: kind for leaf in LEAVES for name, kind in import_module(f"{__name__}.{leaf}").KINDS.items()
}
"""Attacks that an evaluation can be told to make, by name: all that is read, listed or refused comes from here."""

WORST, TRANSFERRED = "worst_of_", "transfer-"
"""How a record names a figure of several attacks together, and of one that was made on another network."""


def named(spec: str, budget: Budget, num_classes: int) -> Attack | AutoAttack:
    """An attack by its short spelling.

    >>> named("pgd-20", Budget(8 / 255), num_classes=10).label
    'PGD-20 (CE, step 2/255, uniform start, 1 restart)'
    >>> named("fab-t", Budget(8 / 255), num_classes=5).label
    'FAB-T (margin, 100 steps x 4 targets, no random start)'

    Raises:
        Refused: for a spelling that is not known, a step that jumps across the ball, an attack that so few classes do
            not have, or a backend that is not installed.
    """
    text = spec.strip().lower()
    name, rest = _divided(text)
    if not name:
        raise _unknown(spec)
    kind = ATTACKS[name]
    backend = rest[1:] if kind.backend and re.fullmatch(r"@[a-z].*", rest) else ""
    if backend and backend != PACKAGE:
        raise unknown("backend", backend, [PACKAGE])
    if rest and not backend and not kind.counted:
        part = rest.removeprefix(".")
        mend = f"say {part} for that attack alone" if part in ATTACKS else f"its numbers are fixed; say {name}"
        raise Refused(f"attack {spec!r}", expected=f"plain {name!r}", got=repr(spec), mend=mend)
    if kind.counted and rest.endswith(f"@{PACKAGE}"):
        has = ", ".join(other for other, each in ATTACKS.items() if each.backend)
        mend = f"say {text.removesuffix(f'@{PACKAGE}')}"
        raise Refused(f"attack {spec!r}", expected=f"one that {PACKAGE} has: {has}", got=repr(spec), mend=mend)
    if num_classes < kind.classes:
        number = {2: "two", 3: "three", 4: "four"}.get(kind.classes, str(kind.classes))
        others = [other for other, each in ATTACKS.items() if each.backend and each.classes <= num_classes]
        got = f"{num_classes}, on which its loss is not defined"
        mend = f"take {', '.join(others)}" if others else ""
        raise Refused(f"attack {spec!r}", expected=f"{number} classes or more", got=got, mend=mend)
    made = kind.make(text if kind.counted else name, budget, num_classes)
    return cast(Attack | AutoAttack, by_authors(made) if backend else made)


def read_attacks(specs: Sequence[str], budget: Budget, num_classes: int) -> tuple[Attack | AutoAttack, ...]:
    """Attacks of every kind by their short spellings.

    Raises:
        Refused: as `named`.
    """
    return tuple(named(spec, budget, num_classes) for spec in specs)


def read_attack(spec: str, budget: Budget) -> UntargetedPGD:
    """An attack of PGD's family, for what counts or follows its steps, on any number of classes.

    Raises:
        Refused: as `named`, and for an attack that is not of that family.
    """
    attack = named(spec, budget, num_classes=10)
    if not isinstance(attack, UntargetedPGD):
        raise Refused(f"attack {spec!r}", expected="FGSM, PGD or CW-PGD, e.g. fgsm, pgd-20, cw-30", got=repr(spec))
    return attack


def spellings() -> dict[str, str]:
    """Spellings of attacks, each standing for its kind, and what they are."""
    return {spec: says for kind in ATTACKS.values() for spec, says in kind.says.items()}


def attack_title(spec: str) -> str:
    """The title of an attack by its short spelling in a record; "" where the spelling does not say it.

    >>> [attack_title(spec) for spec in ("pgd-100x10", "aa.fab-t", "worst_of_pgd-20,cw-30", "transfer-fgsm", "mine")]
    ['PGD-100', 'after FAB-T', 'worst of pgd-20, cw-30', 'FGSM', '']
    """
    if spec == "clean":
        return spec
    if spec.startswith(WORST):
        return "worst of " + spec.removeprefix(WORST).replace(",", ", ")
    text = spec.removeprefix(TRANSFERRED)
    whole, dot, part = text.partition(".")
    if dot and part in ATTACKS:
        return f"after {ATTACKS[part].title}"
    name, rest = _divided(text)
    if name and ATTACKS[name].counted:
        numbers = COUNTS.fullmatch(rest)
        return f"{ATTACKS[name].title}-{numbers['steps']}" if numbers else ""
    return ATTACKS[whole].title if whole in ATTACKS else ""


def attack_settings(spec: str, eps: float | None) -> list[str]:
    """What a short spelling says beside the title, by which two attacks of one title are told apart.

    >>> attack_settings("pgd-20", 8 / 255), attack_settings("pgd-100x10@0.003", 8 / 255), attack_settings("aa", 0.1)
    (['step 2/255', '1 restart'], ['step 0.003', '10 restarts'], [])
    """
    name, rest = _divided(spec.removeprefix(TRANSFERRED))
    numbers = COUNTS.fullmatch(rest) if name and ATTACKS[name].counted else None
    if numbers is None or eps is None:
        return []
    step = radius(numbers["step"]) if numbers["step"] else eps / 4
    return [f"step {as_fraction(step)}", plural(int(numbers["restarts"] or 1), "restart")]


def _divided(text: str) -> tuple[str, str]:
    """The name of an attack that a spelling begins with, the longest there is, and the rest; ("", text) for none."""
    begins = (each for each in ATTACKS if re.match(rf"{re.escape(each)}(?![a-wyz])(?!x(?!\d))", text))
    name = max(begins, key=len, default="")
    return name, text.removeprefix(name)


def _unknown(spec: str) -> Refused:
    """The error for a spelling whose name no attack has, with the one that is nearest."""
    text = spec.strip().lower()
    word = re.match(r"[^\d@]*", text)
    letters = re.sub("[^a-z]", "", word[0] if word else "")
    by_letters = {re.sub("[^a-z]", "", name): name for name in ATTACKS}
    exact = by_letters | {other: name for name, kind in ATTACKS.items() for other in kind.also}
    near = [exact[letters]] if letters in exact else []
    if letters and not near:
        near = [name for name in ATTACKS if name.startswith(letters)]
        near = near or [by_letters[each] for each in difflib.get_close_matches(letters, by_letters, n=1, cutoff=0.5)]
    meant = [_with_counts(name, text[len(word[0]) :] if word else "") for name in near]
    return Refused(
        f"attack {spec!r}",
        expected="a spelling such as " + ", ".join(next(iter(kind.says)) for kind in ATTACKS.values()),
        got=repr(spec),
        mend=f"did you mean {' or '.join(map(repr, meant))}?" if meant else "",
    )


def _with_counts(name: str, numbers: str) -> str:
    """A name with the numbers that were written after another, or with those of its first example."""
    if not ATTACKS[name].counted:
        return name
    said = f"{name}-{numbers}"
    return said if COUNTS.fullmatch(f"-{numbers}") else next(iter(ATTACKS[name].says))
