"""MTARD: a robust teacher for attacked images, a natural one for clean images, and weights that keep them in step.

Zhao, Yu, Sun, Zhang, Wei. "Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation",
ECCV 2022.

    x'    = argmax over the ball of   CE(S(x'), y)
    loss  = w_adv KL(T(x') || S(x')) + w_nat KL(T_nat(x) || S(x))
    w_nat = w_nat - rate (w_nat - r_nat),    w_adv = 1 - w_nat,    r_j = (L_j / L0_j) / sum_k (L_k / L0_k)

L are the two means of the step, L0 those of the very first step; the weights start at 1/2 and move, at rate = 0.025,
before the loss of the same step is formed. The rate is a tenth of what it was after each share of the run in `cool_at`.

Differences from the authors' code (zhaoshiji123/MTARD, 6480a1b):
  1. theirs averages over batch and classes (times 10 on CIFAR-100), which is 0.1 of ours: `scale` = 0.1 restores it.
  2. L0 and the weights are lost there when a run is resumed; ours ride in the checkpoint.
  3. their CIFAR-100 teacher normalises by the statistics of CIFAR-10; here a teacher owns its normalisation.
  4. theirs adds 1e-5 inside the logarithm of the teachers' probabilities, which is constant for the student but enters
     L, and through r the weights; ours uses log_softmax.
As there, L0 is that of a single batch under random weights, and so depends on the seed.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.memory import LossBalance, shares_of_run
from mmard.method import Method
from mmard.ops import ce, kl


def mtard(rate: float = 0.025, cool_at: str = "1/2,3/4", scale: float = 1.0) -> Method:
    """Distillation from a robust and a natural teacher, balanced.

    Args:
        rate: how fast the weights follow the losses.
        cool_at: shares of the run after which the rate is a tenth, e.g. "1/2,3/4"; "" for never.
        scale: factor of both terms.
    """
    require(0 <= rate <= 1, "mtard.rate", expected="a rate in [0, 1]", got=rate)
    balance = LossBalance(rate, shares_of_run(cool_at, "mtard.cool_at"))

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        adv, nat = kl(b.T(b.adv), b.S(b.adv)), kl(b.T_nat(b.x), b.S(b.x))
        w_adv, w_nat = balance(b.mean(adv), b.mean(nat), b.progress)
        return {"adv": scale * w_adv * adv, "nat": scale * w_nat * nat}

    return Method(
        "mtard",
        inner,
        outer,
        source="Zhao et al., ECCV 2022",
        says=("CE(S(x'), y)", "w_adv KL(T(x') || S(x')) + w_nat KL(T_nat(x) || S(x)), w by relative loss"),
        nets=("S", "T", "T_nat"),
        memory=balance,
        couples_batch=True,
        scale=scale,
    )
