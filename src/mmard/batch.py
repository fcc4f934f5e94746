"""What a formula reads: points, networks that are asked at them once, and the batch that holds both.

Formulas only read predictions, written as on paper: `b.S(b.x_adv)` is S(x'), `b.T(b.x)` is T(x).

Gradient follows the point. While x_adv is being made it asks for gradient, so T(x_adv) is differentiated and T(x) is
not; in the outer step no input asks for gradient and the teacher is constant. No formula needs `detach` or `no_grad`
for this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

LINE = "x_times_"


def line(h: float) -> str:
    """How `Method.forwards` calls the point x + h (x' - x) of the line through x and x'."""
    return "x_mirror" if h == -1 else f"{LINE}{h:g}"


Terms = dict[str, Tensor]
"""Name of a term -> its value per sample (B,), already weighted. The loss is the sum of their means."""


class Point:
    """A named input (B, C, H, W). A prediction at it carries gradient exactly when its tensor asks for gradient."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value
        self.lines: dict[str, Point] = {}


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
                self._seen[point] = self.module(point.value.clone())  # a network may write into its input
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
            logits = self.module(at.clone())
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
        y: labels (B,), or probabilities (B, classes) where a plug-in puts them into a host with `soft_labels`.
        nets: the networks by the letter that formulas use: S the student, S_ema its average, T the teacher.
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
    def S_ema(self) -> Net:
        """The exponential average of the student's weights, in eval mode and constant."""
        return self._net("S_ema")

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
        if self.x_adv is None:
            raise KeyError("a formula reads x_adv, but its method makes none")
        return self.x_adv

    @property
    def x_mirror(self) -> Point:
        """The mirror image x - delta of x_adv = x + delta, not clamped to [0, 1] so that delta stays symmetric."""
        return self.along(-1)

    def along(self, h: float) -> Point:
        """x + h delta on the line through x and x_adv = x + delta, not clamped to [0, 1]; 0 is x's place, 1 x_adv's."""
        lines, name = self.adv.lines, line(h)
        if name not in lines:
            x, x_adv = self.x.value, self.adv.value
            lines[name] = Point(name, 2 * x - x_adv if h == -1 else x + h * (x_adv - x))
        return lines[name]

    def point(self, name: str) -> Point:
        """The point that `Method.forwards` calls by this name: "x", "x_adv", "x_mirror" or what `line` says."""
        if name == "x_adv":
            return self.adv
        return self.along(float(name.removeprefix(LINE))) if name.startswith(LINE) else getattr(self, name)

    def at(self, x_adv: Tensor, logits: Tensor, attack_step: int) -> Batch:
        """The same batch at another iterate of the attack, whose student logits are known already."""
        point = self.S.put(Point("x_adv", x_adv), logits)
        return replace(self, x_adv=point, attack_step=attack_step)
