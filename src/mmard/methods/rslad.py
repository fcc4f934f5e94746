"""RSLAD: the teacher's robust soft labels, in the attack and in both terms of the loss.

Zi, Zhao, Ma, Jiang. "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
ICCV 2021, arXiv:2108.07969.

    x'   = argmax over the ball of   KL(T(x) || S(x'))
    loss = alpha KL(T(x) || S(x')) + (1 - alpha) KL(T(x) || S(x))                   alpha = 5/6

Differences from the authors' code (zibojia/RSLAD, c40e04f):
  1. theirs averages over batch and classes (times 10 on CIFAR-100), which is 0.1 of ours: `scale` = 0.1 restores it.
  2. theirs adds 1e-5 inside log T(x), a constant for the student; ours uses log_softmax.
  3. theirs does not clamp the random start to [0, 1] before the first gradient; ours does.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.method import Method, said
from mmard.ops import kl


def rslad(alpha: float = 5 / 6, scale: float = 1.0) -> Method:
    """Robust soft label adversarial distillation.

    Args:
        alpha: weight of the robust term, 1 - alpha that of the natural one.
        scale: factor of both terms.
    """

    def inner(b: Batch) -> Tensor:
        return kl(b.T(b.x), b.S(b.adv))

    def outer(b: Batch) -> Terms:
        return {
            "adv": scale * alpha * kl(b.T(b.x), b.S(b.adv)),
            "nat": scale * (1 - alpha) * kl(b.T(b.x), b.S(b.x)),
        }

    return Method(
        "rslad",
        inner,
        outer,
        source="Zi et al., ICCV 2021",
        says=("KL(T(x) || S(x'))", said((alpha, "KL(T(x) || S(x'))"), (1 - alpha, "KL(T(x) || S(x))"))),
        scale=scale,
    )
