"""AKD2: two teachers of the student's own kind, one natural and one robust, smooth the labels under attack.

Chen, Zhang, Liu, Chang, Wang. "Robust Overfitting May Be Mitigated by Properly Learned Smoothening",
ICLR 2021. The name is that of Zhu et al. (ICLR 2022), who compare with it.

    x'   = argmax over the ball of   CE(S(x'), y)
    loss = label CE(S(x'), y) + robust tau^2 H(T(x') / tau, S(x') / tau) + natural tau^2 H(T_nat(x') / tau, S(x') / tau)

with label = 0.3, robust = 0.6, natural = 0.1, tau = 2 and H(p, q) the cross-entropy of softmax p and softmax q, which
is KL(p || q) plus a constant. Both teachers see the student's x'. The paper averages weights from the first drop of the
learning rate on (`average` = "swa", as the preset "official" says).

Differences from the authors' code (VITA-Group/Alleviate-Robust-Overfitting, 4066275):
  1. theirs attacks in train mode; ours in eval mode unless `attack_mode` says otherwise.
  2. theirs re-estimates BatchNorm's statistics of the average after every epoch, ours whenever the average is used.
The weights 0.25, 0.5, 0.25 at tau = 1 that Zhu et al. give it are in IAD-II, which adds to them.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import ce, soft_ce


def akd2(
    label: float = 0.3,
    robust: float = 0.6,
    natural: float = 0.1,
    tau: float = 2.0,
    scale: float = 1.0,
    attack_mode: str = "eval",
) -> Method:
    """Smoothening by two teachers.

    Args:
        label: weight of the labels.
        robust: weight of the robust teacher.
        natural: weight of the natural teacher.
        tau: temperature of both teachers and of the student before them.
        scale: factor of both teachers' terms.
        attack_mode: "eval", or "train" to attack as the released code does.
    """
    require(tau > 0, "akd2.tau", expected="a positive temperature", got=tau)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        return {
            "label": label * ce(b.S(b.adv), b.y),
            "teacher": scale * robust * tau**2 * soft_ce(b.T(b.adv), b.S(b.adv), tau),
            "natural": scale * natural * tau**2 * soft_ce(b.T_nat(b.adv), b.S(b.adv), tau),
        }

    return Method(
        "akd2",
        inner,
        outer,
        source="Chen et al., ICLR 2021",
        says=(
            "CE(S(x'), y)",
            said(
                (label, "CE(S(x'), y)"),
                (robust, f"tau^2 H(T(x'), S(x')) at tau {tau:g}"),
                (natural, f"tau^2 H(T_nat(x'), S(x')) at tau {tau:g}"),
            ),
        ),
        forwards={"S": ("x_adv",)},
        nets=("S", "T", "T_nat"),
        start="uniform",
        attack_mode=attack_mode,
        scale=scale,
    )
