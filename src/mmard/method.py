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
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmard.attacks import STARTS
from mmard.errors import Refused, unknown

Terms = dict[str, Tensor]
"""Name of a term -> its value per sample (B,), already weighted. The loss is the sum of their means."""


class Point:
    """A named input (B, C, H, W). A prediction at it carries gradient exactly when its tensor asks for gradient."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value


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

    def slope(self, point: Point, pick: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Value (B,) of pick(logits) at a point and its gradient by the input (B, C, H, W), both constant."""
        at = point.value.detach().requires_grad_()
        with torch.enable_grad():
            value = pick(self.module(at))
            (gradient,) = torch.autograd.grad(value.sum(), at)
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
    """

    x: Point
    x_adv: Point | None
    y: Tensor
    nets: Mapping[str, Net]
    progress: float = 1.0
    attack_step: int = 0
    trace: list[Tensor] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def S(self) -> Net:
        """The student."""
        return self._net("S")

    @property
    def T(self) -> Net:
        """The robust teacher."""
        return self._net("T")

    def _net(self, letter: str) -> Net:
        if letter not in self.nets:
            raise KeyError(f"a formula reads network {letter}, this run has {', '.join(sorted(self.nets))}")
        return self.nets[letter]

    @property
    def adv(self) -> Point:
        """x_adv, for formulas that need one."""
        assert self.x_adv is not None, "a formula reads x_adv, but its method makes none"
        return self.x_adv

    @cached_property
    def x_mirror(self) -> Point:
        """The mirror image x - delta of x_adv = x + delta, not clamped to [0, 1] so that delta stays symmetric."""
        return Point("x_mirror", 2 * self.x.value - self.adv.value)

    def point(self, name: str) -> Point:
        """The point that `Method.forwards` calls by this name: "x", "x_adv" or "x_mirror"."""
        return self.adv if name == "x_adv" else getattr(self, name)

    def at(self, x_adv: Tensor, logits: Tensor, attack_step: int) -> Batch:
        """The same batch at another iterate of the attack, whose student logits are known already."""
        point = self.S.put(Point("x_adv", x_adv), logits)
        return replace(self, x_adv=point, attack_step=attack_step)


Inner = Callable[[Batch], Tensor]
Outer = Callable[[Batch], Terms]


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
        nets: letters of the networks that the formulas read.
        start: where the attack starts, "gaussian" (standard deviation 0.001), "uniform" in the ball, or "none".
        attack_mode: mode of the trained networks while x_adv is made. Every preset but the authors' replicas says
            "eval".
        memory: buffers that outlive a step; they ride in the checkpoint.
        epoch_end: called once after every epoch, for memories that change with it.
        couples_batch: a sample's terms depend on the other samples of its batch.
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
    start: str = "gaussian"
    attack_mode: str = "eval"
    memory: nn.Module | None = None
    epoch_end: Callable[[], None] = nothing
    couples_batch: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.attack_mode not in ("eval", "train"):
            raise unknown("attack_mode", self.attack_mode, ("eval", "train"))
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)

    @property
    def needs_teacher(self) -> bool:
        """Whether a formula reads T."""
        return "T" in self.nets

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
        Refused: if the first makes no adversarial examples.
    """
    if inner.inner is None:
        raise Refused(
            f"inner {inner.name!r}", expected="a method that makes adversarial examples", got="one that makes none"
        )
    return replace(
        outer,
        name=f"{inner.name}/{outer.name}",
        inner=inner.inner,
        says=(inner.says[0], outer.says[1]),
        source=f"inner: {inner.source}; outer: {outer.source}",
        nets=tuple(dict.fromkeys((*inner.nets, *outer.nets))),
        start=inner.start,
        attack_mode=inner.attack_mode,
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
