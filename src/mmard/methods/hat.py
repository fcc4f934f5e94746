"""HAT: TRADES, and far beyond the ball the class that a natural network sees in the attacked image.

Rade, Moosavi-Dezfooli. "Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off",
ICLR 2022.

    x'   = argmax over the ball of   KL(S(x) || S(x'))
    loss = CE(S(x), y) + beta KL(S(x) || S(x')) + gamma CE(S(x + h (x' - x)), argmax T_nat(x'))

with beta = 2.5, gamma = 0.5, h = 2 for CIFAR-10. The helper example x + h (x' - x) lies outside of the ball and is not
clamped to [0, 1]. T_nat is trained on clean images by the same recipe and is constant.

Differences from the authors' code (imrahulr/hat, 2d8fae7):
  1. theirs evaluates S(x) in the attack with graph to the weights and never uses it; ours has it constant.
  2. the default of their loss is h = 3.5, beta = 1 and gamma = 1; ours is what their runs for CIFAR-10 say.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms, line
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import ce, kl


def hat(beta: float = 2.5, gamma: float = 0.5, h: float = 2.0) -> Method:
    """Helper-based adversarial training.

    Args:
        beta: weight of the distance between natural and robust predictions.
        gamma: weight of the helper examples.
        h: how far a helper example is from x, in lengths of the perturbation; beyond 1, where x' is.
    """
    require(gamma > 0, "hat.gamma", expected="a positive weight, or this is trades", got=gamma)
    require(h > 1, "hat.h", expected="a number above 1", got=h)

    def inner(b: Batch) -> Tensor:
        return kl(b.S(b.x), b.S(b.adv))

    def outer(b: Batch) -> Terms:
        return {
            "nat": ce(b.S(b.x), b.y),
            "adv": beta * kl(b.S(b.x), b.S(b.adv)),
            "helper": gamma * ce(b.S(b.along(h)), b.T_nat(b.adv).argmax(1)),
        }

    return Method(
        "hat",
        inner,
        outer,
        source="Rade and Moosavi-Dezfooli, ICLR 2022",
        says=(
            "KL(S(x) || S(x'))",
            said((1.0, "CE(S(x), y)"), (beta, "KL(S(x) || S(x'))"), (gamma, f"CE(S(x + {h:g} d), argmax T_nat(x'))")),
        ),
        forwards={"S": ("x", "x_adv", line(h))},
        nets=("S", "T_nat"),
    )
