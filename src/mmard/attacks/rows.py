"""What attacks that drop samples from their batch share: numbers per sample, and when to ask how many are left."""

from __future__ import annotations

from torch import Tensor


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
