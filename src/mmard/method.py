"""What a distillation method is: two formulas over a batch, and what a trainer must know about them.

A method climbs its `inner` objective over x_adv and descends its `outer` terms over the student's weights. Both read
the same `Batch`, so the inner of one method goes with the outer of any other, and a plug-in is a function from a
method to a method. Formulas only read predictions, written as on paper: `b.S(b.x_adv)` is S(x'), `b.T(b.x)` is T(x).

Gradient follows the point. While x_adv is being made it asks for gradient, so T(x_adv) is differentiated and T(x) is
not; in the outer step no input asks for gradient and the teacher is constant. No formula needs `detach` or `no_grad`
for this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmard.attacks import STARTS, TrainingAttack, pgd
from mmard.errors import Refused, unknown

Terms = dict[str, Tensor]
"""Name of a term -> its value per sample (B,), already weighted. The loss is the sum of their means."""


class Point:
    """A named input (B, C, H, W). A prediction at it carries gradient exactly when its tensor asks for gradient."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value
        self.mirror: Point | None = None


class Net:
    """A network as a formula sees it: the logits at a point are computed when first read, and never twice.

    Args:
        module: maps inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        sealed: if not empty, only predictions that were `put` can be read, and this text says why. The outer step seals
            the trained networks, because each of their forwards moves BatchNorm and must therefore be declared.
    """

    def __init__(self, module: nn.Module, sealed: str = "") -> None:
        self.module, self.sealed = module, sealed
        self._seen: WeakKeyDictionary[Point, Tensor] = WeakKeyDictionary()

    def __call__(self, point: Point) -> Tensor:
        """Logits (B, classes) at this point."""
        if point not in self._seen:
            if self.sealed:
                raise KeyError(f"the prediction at {point.name} of a trained network was read, but {self.sealed}")
            with torch.set_grad_enabled(point.value.requires_grad):
                self._seen[point] = self.module(point.value)
        return self._seen[point]

    def put(self, point: Point, logits: Tensor) -> Point:
        """Remember logits that were computed elsewhere as the prediction at this point."""
        self._seen[point] = logits
        return point

    def known(self, point: Point) -> Tensor | None:
        """The logits (B, classes) at a point if they have been made or given, without making them."""
        return self._seen.get(point)

    def slope(self, point: Point, pick: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Value (B,) of pick(logits) at a point and its gradient by the input (B, C, H, W), both constant.

        A prediction that is known already and carries gradient to the point is used; one that had to be made serves as
        the constant prediction at the point from then on.
        """
        seen = self._seen.get(point)
        with torch.enable_grad():
            if seen is not None and seen.requires_grad and point.value.requires_grad:
                value = pick(seen)
                (gradient,) = torch.autograd.grad(value.sum(), point.value, retain_graph=True)
                return value.detach(), gradient
            at = point.value.detach().requires_grad_()
            logits = self.module(at)
            value = pick(logits)
            (gradient,) = torch.autograd.grad(value.sum(), at)
        if seen is None and not self.sealed and not point.value.requires_grad:
            self._seen[point] = logits.detach()
        return value.detach(), gradient


@dataclass(frozen=True)
class Batch:
    """All that a formula may read.

    Attributes:
        x, x_adv: the clean input and the attacked one, inside the attack its present iterate.
        y: labels (B,).
        nets: the networks by the letter that formulas use: S the student, T the teacher.
        progress: 1-based epoch divided by the number of epochs, so 1 in the last epoch.
        attack_step: number of the attack's iterate that `inner` is asked about, from 0.
        trace: the student's logits (B, classes) at each iterate of the attack, in order.
        notes: what an inner objective keeps from one iterate to the next; empty at the start of every attack.
        weight: factor (B,) that plug-ins around a method will give its terms, for methods that look at means of losses.
    """

    x: Point
    x_adv: Point | None
    y: Tensor
    nets: Mapping[str, Net]
    progress: float = 1.0
    attack_step: int = 0
    trace: list[Tensor] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    weight: Tensor | float = 1.0

    @property
    def S(self) -> Net:
        """The student."""
        return self._net("S")

    @property
    def T(self) -> Net:
        """The robust teacher."""
        return self._net("T")

    @property
    def T_nat(self) -> Net:
        """The natural teacher, accurate and not robust."""
        return self._net("T_nat")

    @property
    def T_tuned(self) -> Net:
        """The robust teacher with graph to its weights, at the points that `Method.tunes` declares."""
        return self._net("T_tuned")

    @property
    def P(self) -> Net:
        """The peer: a network that is trained from scratch beside the student."""
        return self._net("P")

    def _net(self, letter: str) -> Net:
        if letter not in self.nets:
            raise KeyError(f"a formula reads network {letter}, this run has {', '.join(sorted(self.nets))}")
        return self.nets[letter]

    def mean(self, term: Tensor) -> Tensor:
        """Mean of a term (B,) over the batch as it will count in the loss, constant."""
        return (self.weight * term).detach().mean()

    @property
    def adv(self) -> Point:
        """x_adv, for formulas that need one."""
        assert self.x_adv is not None, "a formula reads x_adv, but its method makes none"
        return self.x_adv

    @property
    def x_mirror(self) -> Point:
        """The mirror image x - delta of x_adv = x + delta, not clamped to [0, 1] so that delta stays symmetric."""
        if self.adv.mirror is None:
            self.adv.mirror = Point("x_mirror", 2 * self.x.value - self.adv.value)
        return self.adv.mirror

    def point(self, name: str) -> Point:
        """The point that `Method.forwards` calls by this name: "x", "x_adv" or "x_mirror"."""
        return self.adv if name == "x_adv" else getattr(self, name)

    def at(self, x_adv: Tensor, logits: Tensor, attack_step: int) -> Batch:
        """The same batch at another iterate of the attack, whose student logits are known already."""
        point = self.S.put(Point("x_adv", x_adv), logits)
        return replace(self, x_adv=point, attack_step=attack_step)


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
        nets: letters of the networks that the formulas read: S the student, T and T_nat teachers, P a peer.
        tunes: networks that are given and trained further, by letter. Formulas read them as constants under their own
            letter, and with graph to their weights under the letter with "_tuned".
        start: where the attack starts, "gaussian" (standard deviation 0.001), "uniform" in the ball, or "none".
        attack: how the attack is made where the user names none.
        around: where beside the weights the outer terms are descended, or None for at the weights.
        attack_mode: mode of the trained networks while x_adv is made. Every preset but the authors' replicas says
            "eval".
        memory: buffers that outlive a step; they ride in the checkpoint.
        epoch_end: called once after every epoch, for memories that change with it.
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
    attack: TrainingAttack = pgd
    around: Around | None = None
    attack_mode: str = "eval"
    memory: nn.Module | None = None
    epoch_end: Callable[[], None] = nothing
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
        return tuple(letter for letter in self.nets if letter != "S" and letter not in self.teachers)

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
        Refused: if the first makes no adversarial examples, or asks a peer that the second does not train.
    """
    if inner.inner is None:
        raise Refused(
            f"inner {inner.name!r}", expected="a method that makes adversarial examples", got="one that makes none"
        )
    untrained = [letter for letter in inner.peers if letter not in outer.forwards]
    if untrained:
        expected = f"an outer method that trains the network {untrained[0]}, which this attack asks"
        raise Refused(f"inner {inner.name!r}", expected=expected, got=repr(outer.name))
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
