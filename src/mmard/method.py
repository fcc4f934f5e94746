"""What a distillation method is: two formulas over a batch, and what a trainer must know about them.

A method climbs its `inner` objective over x_adv and descends its `outer` terms over the student's weights. Both read
the same `Batch`, so the inner of one method goes with the outer of any other, and a plug-in is a function from a
method to a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor, nn

from mmard.attacks import STARTS, AttackMaker, pgd
from mmard.batch import Batch, Terms
from mmard.errors import Refused, unknown

Inner = Callable[[Batch], Tensor]
Outer = Callable[[Batch], Terms]


class Around(Protocol):
    """Where beside the weights a loss is descended: (progress, weights, gradients) -> what to add to which weights.

    `weights` are the student's by name; `gradients()` runs the outer formula once more and returns those of the loss by
    the weights, under the same names. Weights that are not among what is returned stay where they are.
    """

    def __call__(
        self, progress: float, weights: Mapping[str, Tensor], gradients: Callable[[], Mapping[str, Tensor]], /
    ) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Tuning:
    """How a method goes on training a network that it was given: in eval mode, at a rate of its own.

    Attributes:
        points: where it is asked with graph to its weights.
        lr: progress -> learning rate.
        momentum, weight_decay: of its SGD.
    """

    points: tuple[str, ...]
    lr: Callable[[float], float]
    momentum: float = 0.0
    weight_decay: float = 0.0


def nothing() -> None:
    """The end of an epoch for a method without memory."""


@dataclass(frozen=True)
class Method:
    """An inner objective, outer terms, and the facts that a trainer needs about them.

    Attributes:
        name: as the command line composes it, e.g. "rslad+mmard".
        inner: Batch -> (B,), climbed over x_adv. None makes no adversarial examples.
        outer: Batch -> Terms, descended over the weights of the trained networks.
        source: author, venue and year, one line.
        says: the two formulas as text, inner and outer, for tables.
        forwards: the trained networks, and for each the points it is run on in train mode, in this order. The order is
            part of a method, because each forward moves BatchNorm's running statistics.
        quiet: points of those forwards that must not move running statistics (a plug-in's own views).
        nets: letters of the networks that the formulas read: S the student, T and T_nat teachers, P a peer, S_ema the
            exponential average of the student's weights.
        tunes: networks that are given and trained further, by letter. Formulas read them as constants under their own
            letter, and with graph to their weights under the letter with "_tuned".
        start: where the attack starts, "gaussian" (standard deviation 0.001), "uniform" in the ball, or "none".
        attack: how the attack is made where the user names none.
        around: where beside the weights the outer terms are descended, or None for at the weights.
        attack_mode: mode of the trained networks while x_adv is made. Every preset but the authors' replicas says
            "eval".
        memory: buffers that outlive a step; they ride in the checkpoint.
        epoch_end: called once after every epoch, for memories that change with it.
        ema_decay: weight of the past in S_ema, for a method that reads it.
        soft_labels: the formulas hold for labels that are probabilities (B, classes) as well.
        couples_batch: a sample's terms depend on the other samples of its batch.
        inner_couples: so does what a sample's attack climbs, which therefore cannot be made in slices of the batch.
        scale: what one nat of KL weighs in this method's loss; plug-ins speak in this unit.
    """

    name: str
    inner: Inner | None
    outer: Outer
    source: str
    says: tuple[str, str]
    forwards: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"S": ("x_adv", "x")})
    quiet: frozenset[str] = frozenset()
    nets: tuple[str, ...] = ("S", "T")
    tunes: Mapping[str, Tuning] = field(default_factory=dict)
    start: str = "gaussian"
    attack: AttackMaker = pgd
    around: Around | None = None
    attack_mode: str = "eval"
    memory: nn.Module | None = None
    epoch_end: Callable[[], None] = nothing
    ema_decay: float = 0.995
    soft_labels: bool = False
    couples_batch: bool = False
    inner_couples: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.attack_mode not in ("eval", "train"):
            raise unknown("attack_mode", self.attack_mode, ("eval", "train"))
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Letters of the networks that must be given."""
        return tuple(letter for letter in self.nets if letter.startswith("T"))

    @property
    def peers(self) -> tuple[str, ...]:
        """Letters of the networks that are made anew and trained beside the student."""
        return tuple(letter for letter in self.nets if letter not in ("S", "S_ema", *self.teachers))

    @property
    def needs_teacher(self) -> bool:
        """Whether a formula reads a network that must be given."""
        return bool(self.teachers)

    def remembering(self, memory: nn.Module, epoch_end: Callable[[], None] = nothing) -> Method:
        """This method with a further memory beside the one that it may have."""
        return replace(self, memory=_together(self.memory, memory), epoch_end=_both(self.epoch_end, epoch_end))

    def with_view(self, *points: str) -> Method:
        """This method with further views of the student, which leave its running statistics alone.

        Views that the method takes already are kept as they are.
        """
        extra = tuple(p for p in points if p not in self.forwards["S"])
        forwards = {**self.forwards, "S": self.forwards["S"] + extra}
        return replace(self, forwards=forwards, quiet=self.quiet | set(extra))


def said(*terms: tuple[float, str]) -> str:
    """A sum as text for `Method.says`: weights before their terms, what weighs nothing left out.

    >>> said((5 / 6, "KL(T(x) || S(x'))"), (0.0, "CE(S(x), y)"), (1.0, "d"))
    "0.833 KL(T(x) || S(x')) + d"
    """
    return " + ".join(text if weight == 1 else f"{weight:.3g} {text}" for weight, text in terms if weight)


def halves(inner: Method, outer: Method) -> Method:
    """The attack of one method with the loss of another. What either remembers from step to step goes with it.

    Raises:
        Refused: if the first makes no adversarial examples, asks a peer that the second does not train, or reads
            another average of the student than the second.
    """
    if inner.inner is None:
        raise Refused(
            f"inner {inner.name!r}", expected="a method that makes adversarial examples", got="one that makes none"
        )
    untrained = [letter for letter in inner.peers if letter not in outer.forwards]
    if untrained:
        expected = f"an outer method that trains the network {untrained[0]}, which this attack asks"
        raise Refused(f"inner {inner.name!r}", expected=expected, got=repr(outer.name))
    if "S_ema" in inner.nets and "S_ema" in outer.nets and inner.ema_decay != outer.ema_decay:
        expected, got = f"the ema_decay of the outer method, {outer.ema_decay:g}", f"{inner.ema_decay:g}"
        raise Refused(f"inner {inner.name!r}", expected=expected, got=got)
    return replace(
        outer,
        name=f"{inner.name}/{outer.name}",
        inner=inner.inner,
        says=(inner.says[0], outer.says[1]),
        source=f"inner: {inner.source}; outer: {outer.source}",
        nets=tuple(dict.fromkeys((*inner.nets, *outer.nets))),
        start=inner.start,
        attack=inner.attack,
        attack_mode=inner.attack_mode,
        ema_decay=(inner if "S_ema" in inner.nets else outer).ema_decay,
        soft_labels=inner.soft_labels and outer.soft_labels,
        inner_couples=inner.inner_couples,
        memory=_together(inner.memory, outer.memory),
        epoch_end=_both(inner.epoch_end, outer.epoch_end),
    )


def _together(one: nn.Module | None, other: nn.Module | None) -> nn.Module | None:
    """Both memories as one module, or the only one."""
    kept = [memory for memory in (one, other) if memory is not None]
    return nn.ModuleList(kept) if len(kept) == 2 else next(iter(kept), None)


def _both(one: Callable[[], None], other: Callable[[], None]) -> Callable[[], None]:
    def end() -> None:
        one()
        other()

    return end
