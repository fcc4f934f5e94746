"""FGSM-RS: adversarial training with one step from a random start, without a teacher.

Wong, Rice, Kolter. "Fast is better than free: Revisiting adversarial training",
ICLR 2020, arXiv:2001.03994.

    z    = x + eps u,   u uniform in [-1, 1];       x' = project( z + length eps sign grad CE(S(z), y) )
    loss = CE(S(x'), y)                                                            length = 1.25

x' is projected onto the ball and onto [0, 1]. The attack belongs to no method: `attack` = "rs-fgsm" gives it to any
other, as a cheap inner step.

Differences from the authors' code (locuslab/fast_adversarial, 1d94c4e):
  1. theirs attacks in train mode; ours in eval mode unless `attack_mode` says otherwise.
  2. theirs trains in half precision; ours in the user's.
  3. theirs can stop when PGD on one training batch finds it a fifth less robust than an epoch ago; ours goes on, keeps
     the weights that were best on validation images, and says when robustness was lost.
One step can fail suddenly and entirely (catastrophic overfitting): look at PGD-50, not at the training attack.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mmard.attacks import rs_fgsm
from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method
from mmard.ops import ce


def fgsm_rs(length: float = 1.25, attack_mode: str = "eval") -> Method:
    """Adversarial training with a single step from a random start.

    Args:
        length: of the step as a multiple of eps, above 0 and at most 2.
        attack_mode: "eval", or "train" to attack as the released code does.
    """
    require(0 < length <= 2, "fgsm_rs.length", expected="a number above 0 and at most 2", got=length)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        return {"adv": ce(b.S(b.adv), b.y)}

    return Method(
        "fgsm_rs",
        inner,
        outer,
        source="Wong et al., ICLR 2020",
        says=(f"CE(S(x'), y), one step of {length:g} eps", "CE(S(x'), y)"),
        forwards={"S": ("x_adv",)},
        nets=("S",),
        start="uniform",
        attack=partial(rs_fgsm, length=length),
        attack_mode=attack_mode,
        soft_labels=True,
    )
