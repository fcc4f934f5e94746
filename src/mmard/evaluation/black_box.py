"""Networks that can be asked and not differentiated, and the attacks that are made for them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mmard.attacks.square import Square
from mmard.errors import Refused


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
