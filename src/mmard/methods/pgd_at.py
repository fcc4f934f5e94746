"""PGD-AT: adversarial training on the labels, without a teacher.

Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards Deep Learning Models Resistant to Adversarial Attacks",
ICLR 2018, arXiv:1706.06083.

    x'   = argmax over the ball of   CE(S(x'), y)
    loss = CE(S(x'), y)

Differences from the code of Rice et al. (locuslab/robust_overfitting, c47a25c), the usual PyTorch form:
  1. theirs attacks in train mode, so every iterate moves BatchNorm's running statistics; ours in eval mode unless
     `attack_mode` says otherwise.
  2. theirs runs the clean batch through the network in train mode for the log alone; ours does not.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.method import Method
from mmard.ops import ce


def pgd_at(attack_mode: str = "eval") -> Method:
    """Adversarial training.

    Args:
        attack_mode: "eval", or "train" to attack as the released code does.
    """

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        return {"adv": ce(b.S(b.adv), b.y)}

    return Method(
        "pgd_at",
        inner,
        outer,
        source="Madry et al., ICLR 2018",
        says=("CE(S(x'), y)", "CE(S(x'), y)"),
        forwards={"S": ("x_adv",)},
        nets=("S",),
        start="uniform",
        attack_mode=attack_mode,
        soft_labels=True,
    )
