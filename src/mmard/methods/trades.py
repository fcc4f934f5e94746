"""TRADES: natural accuracy plus the distance between natural and robust predictions, without a teacher.

Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan. "Theoretically Principled Trade-off between Robustness and Accuracy",
ICML 2019, arXiv:1901.08573.

    x'   = argmax over the ball of   KL(S(x) || S(x'))
    loss = CE(S(x), y) + beta KL(S(x) || S(x'))                                    beta = 6

The target S(x) of the second term is not detached: its gradient draws the natural prediction to the robust one.

Differences from the authors' code (yaodongyu/TRADES, 6e8e11b):
  1. theirs evaluates S(x) again at every step of the attack; it does not depend on x', so ours evaluates it once.
  2. theirs runs x through the network twice in train mode, once for each term; ours once.
  3. their budget is 0.031 with step 0.007; here the budget is the user's (8/255 and 2/255 by convention).
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.method import Method
from mmard.ops import ce, kl


def trades(beta: float = 6.0) -> Method:
    """TRADES.

    Args:
        beta: weight of the distance between natural and robust predictions.
    """

    def inner(b: Batch) -> Tensor:
        return kl(b.S(b.x), b.S(b.adv))

    def outer(b: Batch) -> Terms:
        return {"nat": ce(b.S(b.x), b.y), "adv": beta * kl(b.S(b.x), b.S(b.adv))}

    return Method(
        "trades",
        inner,
        outer,
        source="Zhang et al., ICML 2019",
        says=("KL(S(x) || S(x'))", f"CE(S(x), y) + {beta:g} KL(S(x) || S(x'))"),
        forwards={"S": ("x", "x_adv")},
        nets=("S",),
        soft_labels=True,
    )
