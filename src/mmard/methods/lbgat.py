"""LBGAT: a natural network that learns along with the student says where its logits under attack shall lie.

Cui, Liu, Wang, Jia. "Learnable Boundary Guided Adversarial Training",
ICCV 2021, arXiv:2011.11164.

    x'   = argmax over the ball of   KL(S(x) || S(x'))
    loss = mean_k (S(x') - P(x))_k^2 + CE(P(x), y) + beta KL(S(x) || S(x'))        beta = 6, and 0 for "LBGAT+alpha0"

P is the natural network, trained from scratch by the same rule. Nothing is detached: the first term draws P(x) to the
student as well, which keeps P from logits that no robust network can have.

Differences from the authors' code (dvlab-research/LBGAT, 1f1523f):
  1. theirs evaluates S(x) again at every step of the attack; it does not depend on x', so ours evaluates it once.
  2. theirs runs S(x) in train mode with beta = 0 too, where its term weighs nothing; ours does not.
  3. their budget is 0.031 with step 0.007; here the budget is the user's (8/255 and 2/255 by convention).
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import ce, kl


def lbgat(beta: float = 6.0) -> Method:
    """Learnable boundary guided adversarial training.

    Args:
        beta: weight of the distance between the student's natural and robust predictions.
    """
    require(beta >= 0, "lbgat.beta", expected="at least 0", got=beta)

    def inner(b: Batch) -> Tensor:
        return kl(b.S(b.x), b.S(b.adv))

    def outer(b: Batch) -> Terms:
        terms = {"boundary": (b.S(b.adv) - b.P(b.x)).square().mean(1), "peer_label": ce(b.P(b.x), b.y)}
        if beta > 0:
            terms["adv"] = beta * kl(b.S(b.x), b.S(b.adv))
        return terms

    return Method(
        "lbgat",
        inner,
        outer,
        source="Cui et al., ICCV 2021",
        says=(
            "KL(S(x) || S(x'))",
            said((1.0, "MSE(S(x'), P(x))"), (1.0, "CE(P(x), y)"), (beta, "KL(S(x) || S(x'))")),
        ),
        forwards={"S": ("x_adv", "x") if beta > 0 else ("x_adv",), "P": ("x",)},
        nets=("S", "P"),
    )
