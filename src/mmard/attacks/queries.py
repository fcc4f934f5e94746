"""What attacks share: their signature, and how a network is asked for logits and gradients.

On a CPU a network is asked about as many samples at a time as the caches hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.errors import Refused


class Attack(Protocol):
    """An attack of an evaluation: a frozen value, and a pure function of what it is called with."""

    @property
    def spec(self) -> str:
        """Its short spelling, e.g. "pgd-20"; random starts are addressed by it."""

    @property
    def title(self) -> str:
        """Its name in text, e.g. "PGD-20"."""

    @property
    def label(self) -> str:
        """Its name with the settings that matter for a figure, e.g. "PGD-20 (CE, step 2/255, ...)"."""

    @property
    def needs_gradient(self) -> bool:
        """Whether it looks at more than logits."""

    @property
    def stops_at_success(self) -> bool:
        """Whether it ends at the first misread point that it finds, and returns x itself where it finds none.

        What such an attack finds is no more than is needed on this network, and hardly ever enough on another.
        """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """Points of the ball, (B, ...) -> (B, ...), without graph.

        Args:
            model: (B, ...) in [0, 1] to logits (B, C); its mode and its parameters belong to the caller.
            x: inputs; `stops_at_success` wants such as are read rightly.
            y: their labels (B,).
            budget: the ball.
            generator: of random starts.
        """


Call = Callable[..., Tensor]


def outside_inference_mode(call: Call) -> Call:
    """For an attack's `__call__`: gradients are taken wherever it is called, under `torch.inference_mode` too."""

    @wraps(call)
    def inner(self: object, model: nn.Module, x: Tensor, y: Tensor, *rest: object, **named: object) -> Tensor:
        with torch.inference_mode(False):
            x, y = (t.clone() if t.is_inference() else t for t in (x, y))
            return call(self, model, x, y, *rest, **named)

    return inner


def is_black_box(model: nn.Module) -> bool:
    """Whether a network says of itself, by an attribute `black_box`, that it has no gradient: an ONNX file does."""
    return bool(getattr(model, "black_box", False))


class Described(Protocol):
    """What a refusal looks at: an attack or a list of them."""

    @property
    def spec(self) -> str: ...
    @property
    def needs_gradient(self) -> bool: ...


def refuse_white_box(model: nn.Module, attacks: Sequence[Described]) -> None:
    """Refuse attacks that need a gradient on a network that has none.

    Raises:
        Refused: naming the attacks, and what can be done instead.
    """
    wrong = ",".join(attack.spec for attack in attacks if attack.needs_gradient)
    if wrong and is_black_box(model):
        raise Refused(
            "attacks on a network without a gradient",
            expected="black-box attacks: square, or any other made on another network",
            got=wrong.replace(",", ", "),
            mend=f"use --attack square, or --from RUN --attack {wrong}",
        )
    if wrong and any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        raise Refused(
            f"attacks {wrong}",
            expected="a network that autograd can record",
            got="weights made under torch.inference_mode",
            mend="make or load the network outside of it",
        )


def logits_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Logits (B, C) of x (B, ...). The network gets a copy: some write into their input, as a ReLU in place does."""
    return model(x.clone())


def wide(v: Tensor, like: Tensor) -> Tensor:
    """One number per sample, (B,) -> (B, 1, ...), to stand beside inputs (B, ...)."""
    return v.view(-1, *[1] * (like.ndim - 1))


def length(v: Tensor) -> Tensor:
    """L2 length of each sample, (B, ...) -> (B,), rounded as in the code of AutoAttack's authors.

    `Budget.distance` may differ from it in the last bit, and near a kink of a network one bit leads elsewhere.
    """
    return (v**2).flatten(1).sum(1).sqrt()


def prompt(x: Tensor) -> bool:
    """Whether a value can be read without waiting: true on a CPU, while an accelerator must first finish its queue."""
    return x.device.type == "cpu"


CACHE = 4 * 2**20
"""Bytes that the largest layer may put out for one slice."""
FEWEST = 16
"""Samples in a slice at least. Matrix products of fewer are computed in another order, which the last bit shows."""


class Sliced(nn.Module):
    """A network in eval mode that takes a batch in slices: the same logits, in less time where caches overflow.

    Args:
        network: inputs (B, ...) to logits (B, C), of each sample alone.
        most: samples in a slice.
    """

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        parts = slices(self, len(x))
        return self.network(x) if len(parts) == 1 else torch.cat([self.network(x[part]) for part in parts])


def sliced(network: nn.Module, x: Tensor) -> nn.Module:
    """`network`, in slices of as many inputs like x (B, ...) as suit it; itself where it is not on a CPU."""
    if not prompt(x):
        return network
    largest = [x[0].numel() * x.element_size()]

    def note(module: nn.Module, taken: object, given: object) -> None:
        if isinstance(given, Tensor):
            largest.append(given.numel() * given.element_size())

    hooks = [m.register_forward_hook(note) for m in network.modules() if next(m.children(), None) is None]
    try:
        with torch.no_grad():
            network(x[:1].clone())
    finally:
        for hook in hooks:
            hook.remove()
    return Sliced(network, max(CACHE // max(largest), FEWEST))


def slices(model: object, n: int) -> list[slice]:
    """Even parts of a batch of n, one if the model says nothing.

    >>> slices(Sliced(nn.Identity(), 40), 100)
    [slice(0, 33, None), slice(33, 66, None), slice(66, 100, None)]
    """
    count = -(-n // model.most) if isinstance(model, Sliced) else 1
    edges = [n * k // count for k in range(count + 1)]
    return [slice(*pair) for pair in pairwise(edges)]


def ascent(
    model: Callable[[Tensor], Tensor], at: Tensor, value: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, C), a value of them (B,) and its gradient (B, ...) at inputs (B, ...), all constant.

    Args:
        model: inputs to logits.
        at: the inputs.
        value: (logits of a slice of the batch, which slice) -> one value for each of its samples.
    """
    found = []
    for part in slices(model, len(at)):
        point = at[part].detach().requires_grad_()
        with torch.enable_grad():
            logits = logits_of(model, point)
            values = value(logits, part)
            (gradient,) = torch.autograd.grad(values.sum(), point)
        found.append((logits.detach(), values.detach(), gradient))
    if len(found) == 1:
        return found[0]
    logits, values, gradient = (torch.cat(each) for each in zip(*found, strict=True))
    return logits, values, gradient
