"""The attacks that AutoAttack consists of, and the name that their joint figure may bear.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
2020, arXiv:2003.01690, section 5. Under l1: Croce, Hein. "Mind the box: l1-APGD for sparse adversarial attacks on
image classifiers", ICML 2021, arXiv:2103.01208, section 5; there APGD has five random starts on cross-entropy and five
targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from mmard.attacks.apgd import APGD
from mmard.attacks.authors import PACKAGE, Authors, Own, installed
from mmard.attacks.fab import FAB
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.errors import Refused, unknown

STANDARD_TARGETS = 9
L1_TARGETS, L1_STARTS = 5, 5
"""Of APGD under l1, in the standard ensemble."""


@dataclass(frozen=True)
class Ensemble:
    """Attacks, in order, and the name that their joint figure may bear.

    Attributes:
        spec: short spelling, e.g. "aa".
        label: "AutoAttack (standard)" for nothing but the standard ensemble with its settings and nine targets; with
            the name of the implementation behind it where that is not this package.
        attacks: by short spelling, e.g. "apgd-ce".
    """

    spec: str
    label: str
    attacks: Mapping[str, Own | Authors]

    def only(self, *names: str) -> Ensemble:
        """Some of its attacks, in their order here.

        >>> standard(Budget(8 / 255), num_classes=10).only("square").label
        'Square (margin, 5,000 queries, random start, 1 restart)'
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
        return Ensemble("aa", "AutoAttack (standard)", attacks)
    loss = {3: ", APGD-DLR for APGD-T", 2: ", no APGD-T"}.get(num_classes, "")
    return Ensemble("aa", f"AutoAttack, {targets} target{'s' * (targets > 1)}{loss}", attacks)


def rand(budget: Budget, num_classes: int) -> Ensemble:
    """The ensemble for networks that answer at random: APGD on both losses, each gradient the mean of 20.

    Raises:
        Refused: for fewer than three classes.
    """
    if num_classes < 3:
        raise Refused("AutoAttack (rand)", expected="three classes or more", got=str(num_classes))
    attacks: dict[str, Own] = {f"apgd-{loss}": APGD(loss, eot=20, shrink=False) for loss in ("ce", "dlr")}
    return Ensemble("aa-rand", "AutoAttack (rand)", attacks)


SPECS = ("aa", "aa-rand", "apgd-ce", "apgd-t", "fab-t", "square")
"""What `named` reads, as it is and with a backend behind it, e.g. "aa@pyautoattack"."""


def named(spec: str, budget: Budget, num_classes: int) -> Ensemble:
    """An ensemble, or one attack of the standard one, by its short spelling.

    >>> named("fab-t", Budget(8 / 255), num_classes=5).label
    'FAB-T (margin, 100 steps x 4 targets, no random start)'

    Raises:
        Refused: for a spelling that is not in `SPECS`, or an attack that so few classes do not have.
    """
    text, at, backend = spec.strip().lower().partition("@")
    if text not in SPECS:
        raise unknown("ensemble", spec, SPECS)
    if at and backend != PACKAGE:
        raise unknown("backend", backend, [PACKAGE])
    if text == "aa-rand":
        found = rand(budget, num_classes)
    else:
        whole = standard(budget, num_classes)
        found = whole if text == "aa" else whole.only(text)
    return by_authors(found) if at else found


def is_named(spec: str) -> bool:
    """Whether a spelling is one for `named`, a backend that it does not know included."""
    return spec.strip().lower().partition("@")[0] in SPECS


def by_authors(ensemble: Ensemble) -> Ensemble:
    """The same attacks by their authors' code, from the package pyautoattack.

    Raises:
        Refused: where it is not installed.
    """
    version = installed()
    attacks = {
        name: Authors(name, own, version) for name, own in ensemble.attacks.items() if not isinstance(own, Authors)
    }
    return Ensemble(f"{ensemble.spec}@{PACKAGE}", f"{ensemble.label}, by {PACKAGE} {version}", attacks)


def shortened(ensemble: Ensemble, *, steps: int, queries: int, targets: int) -> Ensemble:
    """The same attacks with less effort, under a label that says so. For tests and for a first look."""

    def less(attack: Own | Authors) -> Own | Authors:
        if isinstance(attack, Authors):
            own = less(attack.own)
            assert not isinstance(own, Authors)
            return replace(attack, own=own)
        if isinstance(attack, Square):
            return replace(attack, queries=queries)
        return replace(attack, steps=steps, targets=min(attack.targets, targets))

    attacks = {name: less(attack) for name, attack in ensemble.attacks.items()}
    return Ensemble(
        f"{ensemble.spec}-short", "shortened AutoAttack: " + ", ".join(map(described, attacks.values())), attacks
    )


def described(attack: Own | Authors) -> str:
    """An attack with the settings that matter for its figure.

    >>> described(APGD("targeted-dlr", targets=9))
    'APGD-T (targeted DLR, 100 steps x 9 targets, random start, 1 restart)'
    """
    if isinstance(attack, Authors):
        return f"{described(attack.own)}, by {PACKAGE} {attack.version}"
    if isinstance(attack, Square):
        return f"Square (margin, {attack.queries:,} queries, random start, {_plural(attack.restarts, 'restart')})"
    if isinstance(attack, FAB):
        return f"FAB-T (margin, {attack.steps} steps x {_plural(attack.targets, 'target')}, no random start)"
    targeted = attack.loss == "targeted-dlr"
    name, loss = {"ce": ("CE", "CE"), "dlr": ("DLR", "DLR"), "targeted-dlr": ("T", "targeted DLR")}[attack.loss]
    steps = f"{attack.steps} steps" + (f" x {_plural(attack.targets, 'target')}" if targeted else "")
    averaged = f", mean of {attack.eot} gradients" if attack.eot > 1 else ""
    return f"APGD-{name} ({loss}, {steps}, random start, {_plural(attack.restarts, 'restart')}{averaged})"


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" + "s" * (n > 1)


# black box ------------------------------------------------------------------------------------------------------------
# Networks that can be asked and not differentiated, and the attacks that are made for them.


def is_black_box(model: nn.Module) -> bool:
    """Whether a network says of itself, by an attribute `black_box`, that it has no gradient: an ONNX file does."""
    return bool(getattr(model, "black_box", False))


def needs_gradient(attack: object) -> bool:
    """Whether an attack looks at more than logits; an ensemble does if one of its attacks does."""
    inner = getattr(attack, "attacks", None)
    if isinstance(inner, dict):
        return any(needs_gradient(each) for each in inner.values())
    return not isinstance(attack, Square)


def refuse_white_box(model: nn.Module, specs: Sequence[str], attacks: Sequence[object]) -> None:
    """Refuse attacks that need a gradient on a network that has none.

    Args:
        model: the network.
        specs, attacks: short spellings and the attacks that they mean.

    Raises:
        Refused: naming the attacks, and what can be done instead.
    """
    blind = is_black_box(model)
    wrong = [spec for spec, attack in zip(specs, attacks, strict=True) if blind and needs_gradient(attack)]
    if wrong:
        raise Refused(
            "attacks on a network without a gradient",
            expected="black-box attacks: square, or any other made on another network",
            got=", ".join(wrong),
            mend=f"use --attack square, or --from RUN --attack {','.join(wrong)}",
        )
