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
from mmard.attacks.apgd import KINDS as APGD_KINDS
from mmard.attacks.authors import PACKAGE, Authors, Own, installed
from mmard.attacks.fab import KINDS as FAB_KINDS
from mmard.attacks.kinds import STANDARD_TARGETS, AttackKind
from mmard.attacks.queries import Attack
from mmard.attacks.square import KINDS as SQUARE_KINDS
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.words import plural

PARTS = {**APGD_KINDS, **FAB_KINDS, **SQUARE_KINDS}
"""What the ensembles are made of, by name."""


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
    third = {2: [], 3: ["apgd-dlr"]}.get(num_classes, ["apgd-t"])
    attacks = {name: PARTS[name].make(name, budget, num_classes) for name in ("apgd-ce", *third, "fab-t", "square")}
    if num_classes > STANDARD_TARGETS:
        return AutoAttack("aa", "AutoAttack (standard)", attacks)
    targets = plural(num_classes - 1, "target")
    loss = {3: ", APGD-DLR for APGD-T", 2: ", no APGD-T"}.get(num_classes, "")
    return AutoAttack("aa", f"AutoAttack, {targets}{loss}", attacks)


def rand(budget: Budget, num_classes: int) -> AutoAttack:
    """The ensemble for networks that answer at random: APGD on both losses, each gradient the mean of 20.

    Raises:
        Refused: for fewer than three classes.
    """
    if num_classes < 3:
        raise Refused("AutoAttack (rand)", expected="three classes or more", got=str(num_classes))
    attacks: dict[str, Own] = {f"apgd-{loss}": APGD(loss, eot=20, shrink=False) for loss in ("ce", "dlr")}
    return AutoAttack("aa-rand", "AutoAttack (rand)", attacks)


def by_authors(ours: AutoAttack | Own) -> AutoAttack | Authors:
    """The same by its authors' code, from the package pyautoattack.

    Raises:
        Refused: where it is not installed.
    """
    version = installed()
    if not isinstance(ours, AutoAttack):
        return Authors(ours.spec, ours, version)
    attacks = {name: Authors(name, own, version) for name, own in ours.attacks.items() if not isinstance(own, Authors)}
    return AutoAttack(f"{ours.spec}@{PACKAGE}", f"{ours.label}, by {PACKAGE} {version}", attacks)


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


KINDS = {
    "aa": AttackKind(
        lambda spec, budget, num_classes: standard(budget, num_classes),
        {
            "aa": "AutoAttack: apgd-ce, apgd-t, fab-t and square, each on the images that the earlier ones left",
            f"aa@{PACKAGE}": "the same by the authors' code, which pip install 'mmard[autoattack]' brings; so for each "
            "attack below",
        },
        classes=2,
        backend=True,
        also=("autoattack", "aastandard"),
    ),
    "aa-rand": AttackKind(
        lambda spec, budget, num_classes: rand(budget, num_classes),
        {
            "aa-rand": "for networks that answer at random: APGD on cross-entropy and on DLR, "
            "each gradient the mean of 20"
        },
        classes=3,
        backend=True,
        also=("autoattackrand",),
    ),
}
