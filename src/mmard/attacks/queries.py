"""Asking a network: for logits and gradients, and about as many samples at a time as a CPU's caches hold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

# rows -----------------------------------------------------------------------------------------------------------------
# What attacks that drop samples from their batch share: numbers per sample, and when to ask how many are left.


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


# asking ---------------------------------------------------------------------------------------------------------------


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
            network(x[:1])
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
            logits = model(point)
            values = value(logits, part)
        (gradient,) = torch.autograd.grad(values.sum(), point)
        found.append((logits.detach(), values.detach(), gradient))
    if len(found) == 1:
        return found[0]
    logits, values, gradient = (torch.cat(each) for each in zip(*found, strict=True))
    return logits, values, gradient
