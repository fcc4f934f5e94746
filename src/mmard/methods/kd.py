"""KD: plain distillation of clean predictions. The baseline that shows what an attack in training is for.

Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network",
2015, arXiv:1503.02531.

    loss = alpha tau^2 KL(T(x) / tau || S(x) / tau) + (1 - alpha) CE(S(x), y)       alpha = 1, tau = 4

Differences from the paper, which has no code of its own:
  1. alpha = 1 and tau = 4 are our defaults; the paper leaves both open.
"""

from __future__ import annotations

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import ce, kl


def kd(alpha: float = 1.0, tau: float = 4.0) -> Method:
    """Plain distillation.

    Args:
        alpha: weight of the teacher, 1 - alpha that of the labels.
        tau: temperature of both networks.
    """
    require(tau > 0, "kd.tau", expected="a positive temperature", got=tau)

    def outer(b: Batch) -> Terms:
        terms = {"nat": alpha * tau**2 * kl(b.T(b.x), b.S(b.x), tau)}
        if alpha < 1:
            terms["label"] = (1 - alpha) * ce(b.S(b.x), b.y)
        return terms

    return Method(
        "kd",
        None,
        outer,
        source="Hinton et al., 2015",
        says=("none", said((alpha, f"tau^2 KL(T(x) || S(x)) at tau {tau:g}"), (1 - alpha, "CE(S(x), y)"))),
        forwards={"S": ("x",)},
    )
