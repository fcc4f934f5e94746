"""MART: misclassified samples weigh more, without a teacher.

Wang, Zou, Yi, Bailey, Ma, Gu. "Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
ICLR 2020.

    x'   = argmax over the ball of   CE(S(x'), y)
    BCE  = -log q_y - log(1 - max over k other than y of q_k)                      q = softmax S(x'), p = softmax S(x)
    loss = BCE + beta (1 - p_y) KL(S(x) || S(x'))                                  beta = 5

Neither the target S(x) nor the weight 1 - p_y is detached. MART gains more under PGD than under AutoAttack: do not
judge it by PGD alone.

Differences from the authors' code (YisenWang/MART, 2d83e17):
  1. theirs takes log(q + 1e-12) inside the KL; ours uses log_softmax.
  2. their budget is 0.031 with step 0.007; here the budget is the user's.
The constants 1.0001 and 1.0000001 in place of the two ones are theirs and are kept.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.method import Method
from mmard.ops import ce, kl, true_probability


def mart(beta: float = 5.0) -> Method:
    """MART.

    Args:
        beta: weight of the distance between natural and robust predictions.
    """

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        q = b.S(b.adv).softmax(1)
        strongest_wrong = q.scatter(1, b.y[:, None], 0.0).amax(1)
        bce = ce(b.S(b.adv), b.y) - (1.0001 - strongest_wrong + 1e-12).log()
        weight = 1.0000001 - true_probability(b.S(b.x), b.y)
        return {"adv": bce, "nat": beta * weight * kl(b.S(b.x), b.S(b.adv))}

    return Method(
        "mart",
        inner,
        outer,
        source="Wang et al., ICLR 2020",
        says=("CE(S(x'), y)", f"BCE(S(x'), y) + {beta:g} (1 - p_y) KL(S(x) || S(x'))"),
        forwards={"S": ("x", "x_adv")},
        nets=("S",),
    )
