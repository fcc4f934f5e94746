"""The attacks that AutoAttack consists of, and the name that their joint figure may bear.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
2020, arXiv:2003.01690, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmard.attacks.apgd import APGD
from mmard.attacks.fab import FAB
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.errors import Refused, unknown

STANDARD_TARGETS = 9


@dataclass(frozen=True)
class Ensemble:
    """Attacks, in order, and the name that their joint figure may bear.

    Attributes:
        spec: short spelling, e.g. "aa".
        label: "AutoAttack (standard)" for nothing but the standard ensemble with its settings and nine targets.
        attacks: by short spelling, e.g. "apgd-ce".
    """

    spec: str
    label: str
    attacks: dict[str, APGD | FAB | Square]

    def only(self, *names: str) -> Ensemble:
        """Some of its attacks, in their order here.

        >>> standard(Budget(8 / 255), num_classes=10).only("square").label
        'Square, 5000 queries'
        """
        some = {name: attack for name, attack in self.attacks.items() if name in names}
        if len(some) < len(set(names)):
            missing = ", ".join(sorted(set(names) - set(some)))
            raise Refused(f"attacks {missing}", expected="one of " + ", ".join(self.attacks), got=missing)
        return Ensemble("+".join(some), ", ".join(map(described, some.values())), some)


def standard(budget: Budget, num_classes: int) -> Ensemble:
    """The standard ensemble, with as many targets as there are wrong classes where these are fewer than nine.

    The targeted loss of APGD needs four classes: with three, its untargeted form stands in, and with two there is none.

    >>> standard(Budget(8 / 255), num_classes=10).label
    'AutoAttack (standard)'
    >>> standard(Budget(8 / 255), num_classes=3).label
    'AutoAttack, 2 targets, APGD-DLR for APGD-T'

    Raises:
        Refused: for fewer than two classes or a norm other than linf and l2.
    """
    if budget.norm not in ("linf", "l2"):
        raise Refused("AutoAttack", expected="the norm linf or l2", got=budget.norm)
    if num_classes < 2:
        raise Refused("AutoAttack", expected="two classes or more", got=str(num_classes))
    targets = min(STANDARD_TARGETS, num_classes - 1)
    attacks: dict[str, APGD | FAB | Square] = {"apgd-ce": APGD("ce")}
    if num_classes >= 4:
        attacks["apgd-t"] = APGD("targeted-dlr", targets=targets)
    elif num_classes == 3:
        attacks["apgd-dlr"] = APGD("dlr")
    attacks |= {"fab-t": FAB(targets=targets), "square": Square()}
    if targets == STANDARD_TARGETS:
        return Ensemble("aa", "AutoAttack (standard)", attacks)
    loss = {3: ", APGD-DLR for APGD-T", 2: ", no APGD-T"}.get(num_classes, "")
    return Ensemble("aa", f"AutoAttack, {targets} target{'s' * (targets > 1)}{loss}", attacks)


def rand(budget: Budget, num_classes: int) -> Ensemble:
    """The ensemble for networks that answer at random: APGD on both losses, each gradient the mean of 20.

    Raises:
        Refused: for fewer than three classes or a norm other than linf and l2.
    """
    if budget.norm not in ("linf", "l2"):
        raise Refused("AutoAttack (rand)", expected="the norm linf or l2", got=budget.norm)
    if num_classes < 3:
        raise Refused("AutoAttack (rand)", expected="three classes or more", got=str(num_classes))
    attacks: dict[str, APGD | FAB | Square] = {"apgd-ce": APGD("ce", eot=20), "apgd-dlr": APGD("dlr", eot=20)}
    return Ensemble("aa-rand", "AutoAttack (rand)", attacks)


SPECS = ("aa", "aa-rand", "apgd-ce", "apgd-t", "fab-t", "square")
"""What `named` reads."""


def named(spec: str, budget: Budget, num_classes: int) -> Ensemble:
    """An ensemble, or one attack of the standard one, by its short spelling.

    >>> named("fab-t", Budget(8 / 255), num_classes=5).label
    'FAB-T, 100 steps x 4 targets'

    Raises:
        Refused: for a spelling that is not in `SPECS`, or an attack that so few classes do not have.
    """
    text = spec.strip().lower()
    if text not in SPECS:
        raise unknown("ensemble", spec, SPECS)
    if text == "aa-rand":
        return rand(budget, num_classes)
    whole = standard(budget, num_classes)
    return whole if text == "aa" else whole.only(text)


def shortened(ensemble: Ensemble, *, steps: int, queries: int, targets: int) -> Ensemble:
    """The same attacks with less effort, under a label that says so. For tests and for a first look."""

    def less(attack: APGD | FAB | Square) -> APGD | FAB | Square:
        if isinstance(attack, Square):
            return replace(attack, queries=queries)
        return replace(attack, steps=steps, targets=min(attack.targets, targets))

    attacks = {name: less(attack) for name, attack in ensemble.attacks.items()}
    return Ensemble(
        f"{ensemble.spec}-short", "shortened AutoAttack: " + ", ".join(map(described, attacks.values())), attacks
    )


def described(attack: APGD | FAB | Square) -> str:
    """An attack with the settings that matter for its figure.

    >>> described(APGD("targeted-dlr", targets=9))
    'APGD-T (DLR), 100 steps x 9 targets'
    """
    if isinstance(attack, Square):
        return f"Square, {attack.queries} queries" + (f" x {attack.restarts} restarts" if attack.restarts > 1 else "")
    if isinstance(attack, FAB):
        return f"FAB-T, {attack.steps} steps x {attack.targets} target{'s' * (attack.targets > 1)}"
    name = {"ce": "APGD-CE", "dlr": "APGD-DLR", "targeted-dlr": "APGD-T (DLR)"}[attack.loss]
    return (
        f"{name}, {attack.steps} steps"
        + (f" x {attack.targets} target{'s' * (attack.targets > 1)}" if attack.loss == "targeted-dlr" else "")
        + (f" x {attack.restarts} restarts" if attack.restarts > 1 else "")
        + (f", mean of {attack.eot} gradients" if attack.eot > 1 else "")
    )
