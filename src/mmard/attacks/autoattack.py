"""The attacks that AutoAttack consists of, and the name that their joint figure may bear.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
2020, arXiv:2003.01690, section 5. Under l1: Croce, Hein. "Mind the box: l1-APGD for sparse adversarial attacks on
image classifiers", ICML 2021, arXiv:2103.01208, section 5; there APGD has five random starts on cross-entropy and five
targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mmard.attacks.apgd import APGD
from mmard.attacks.authors import PACKAGE, Authors, Own, installed
from mmard.attacks.fab import FAB
from mmard.attacks.queries import Attack
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.errors import Refused, unknown
from mmard.words import plural

STANDARD_TARGETS = 9
L1_TARGETS, L1_STARTS = 5, 5
"""Of APGD under l1, in the standard whole."""


@dataclass(frozen=True)
class AutoAttack:
    """A list of attacks, each made on the images that the ones before it left, and the name of their joint figure.

    Attributes:
        spec: short spelling, e.g. "aa".
        label: "AutoAttack (standard)" for nothing but the standard list with its settings and nine targets; with the
            name of the implementation behind it where that is not this package.
        attacks: by their spelling within the list, e.g. "apgd-ce".
    """

    spec: str
    label: str
    attacks: Mapping[str, Own | Authors]

    title = "AutoAttack"
    stops_at_success = True

    @property
    def needs_gradient(self) -> bool:
        """Whether one of them does."""
        return any(attack.needs_gradient for attack in self.attacks.values())

    def only(self, *names: str) -> AutoAttack:
        """Some of its attacks, in their order here.

        >>> standard(Budget(8 / 255), num_classes=10).only("square").label
        'Square (margin, 5,000 queries, random start, 1 restart)'
        """
        some = {name: attack for name, attack in self.attacks.items() if name in names}
        if len(some) < len(set(names)):
            missing = ", ".join(sorted(set(names) - set(some)))
            raise Refused(f"attacks {missing}", expected="one of " + ", ".join(self.attacks), got=missing)
        return AutoAttack("+".join(some), ", ".join(attack.label for attack in some.values()), some)


def stages(attack: Attack | AutoAttack) -> Mapping[str, Attack]:
    """The attacks that are made one after the other, by their spelling; one attack alone is a list of itself."""
    if isinstance(attack, AutoAttack):
        return attack.attacks
    return {attack.name if isinstance(attack, Authors) else attack.spec: attack}


def standard(budget: Budget, num_classes: int) -> AutoAttack:
    """The standard ensemble, with as many targets as there are wrong classes where these are fewer than nine.

    The targeted loss of APGD needs four classes: with three, its untargeted form stands in, and with two there is none.

    >>> standard(Budget(8 / 255), num_classes=10).label
    'AutoAttack (standard)'
    >>> standard(Budget(8 / 255), num_classes=3).label
    'AutoAttack, 2 targets, APGD-DLR for APGD-T'

    Raises:
        Refused: for fewer than two classes.
    """
    if num_classes < 2:
        raise Refused("AutoAttack", expected="two classes or more", got=str(num_classes))
    sparse = budget.norm == "l1"
    targets = min(STANDARD_TARGETS, num_classes - 1)
    attacks: dict[str, Own] = {"apgd-ce": APGD("ce", restarts=L1_STARTS if sparse else 1)}
    if num_classes >= 4:
        attacks["apgd-t"] = APGD("targeted-dlr", targets=min(L1_TARGETS, targets) if sparse else targets)
    elif num_classes == 3:
        attacks["apgd-dlr"] = APGD("dlr")
    attacks |= {"fab-t": FAB(targets=targets), "square": Square()}
    if targets == STANDARD_TARGETS:
        return AutoAttack("aa", "AutoAttack (standard)", attacks)
    loss = {3: ", APGD-DLR for APGD-T", 2: ", no APGD-T"}.get(num_classes, "")
    return AutoAttack("aa", f"AutoAttack, {plural(targets, 'target')}{loss}", attacks)


def rand(budget: Budget, num_classes: int) -> AutoAttack:
    """The ensemble for networks that answer at random: APGD on both losses, each gradient the mean of 20.

    Raises:
        Refused: for fewer than three classes.
    """
    if num_classes < 3:
        raise Refused("AutoAttack (rand)", expected="three classes or more", got=str(num_classes))
    attacks: dict[str, Own] = {f"apgd-{loss}": APGD(loss, eot=20, shrink=False) for loss in ("ce", "dlr")}
    return AutoAttack("aa-rand", "AutoAttack (rand)", attacks)


SPECS = ("aa", "aa-rand", "apgd-ce", "apgd-t", "fab-t", "square")
"""What `named` reads, as it is and with a backend behind it, e.g. "aa@pyautoattack"."""


def named(spec: str, budget: Budget, num_classes: int) -> Attack | AutoAttack:
    """AutoAttack, or one attack of the standard list, by its short spelling.

    >>> named("fab-t", Budget(8 / 255), num_classes=5).label
    'FAB-T (margin, 100 steps x 4 targets, no random start)'

    Raises:
        Refused: for a spelling that is not in `SPECS`, or an attack that so few classes do not have.
    """
    text, at, backend = spec.strip().lower().partition("@")
    if text not in SPECS:
        raise unknown("attack", spec, SPECS)
    if at and backend != PACKAGE:
        raise unknown("backend", backend, [PACKAGE])
    found = rand(budget, num_classes) if text == "aa-rand" else standard(budget, num_classes)
    if text not in ("aa", "aa-rand"):
        if text not in found.attacks:
            got = f"{num_classes}, on which its loss is not defined"
            mend = f"take {', '.join(found.attacks)}, or aa, which leaves it out"
            raise Refused(f"attack {spec!r}", expected="four classes or more", got=got, mend=mend)
        found = found.only(text)
    if at:
        found = by_authors(found)
    return found if text in ("aa", "aa-rand") else found.attacks[text]


def is_named(spec: str) -> bool:
    """Whether a spelling is one for `named`, a backend that it does not know included."""
    return spec.strip().lower().partition("@")[0] in SPECS


def by_authors(whole: AutoAttack) -> AutoAttack:
    """The same attacks by their authors' code, from the package pyautoattack.

    Raises:
        Refused: where it is not installed.
    """
    version = installed()
    attacks = {name: Authors(name, own, version) for name, own in whole.attacks.items() if not isinstance(own, Authors)}
    return AutoAttack(f"{whole.spec}@{PACKAGE}", f"{whole.label}, by {PACKAGE} {version}", attacks)


def shortened(whole: AutoAttack, *, steps: int, queries: int, targets: int) -> AutoAttack:
    """The same attacks with less effort, under a label that says so. For tests and for a first look."""

    def less(attack: Own | Authors) -> Own | Authors:
        if isinstance(attack, Authors):
            own = less(attack.own)
            assert not isinstance(own, Authors)
            return replace(attack, own=own)
        if isinstance(attack, Square):
            return replace(attack, queries=queries)
        return replace(attack, steps=steps, targets=min(attack.targets, targets))

    attacks = {name: less(attack) for name, attack in whole.attacks.items()}
    return AutoAttack(
        f"{whole.spec}-short",
        "shortened AutoAttack: " + ", ".join(attack.label for attack in attacks.values()),
        attacks,
    )
