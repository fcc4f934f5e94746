"""ARD: the student under attack imitates what the teacher says of the clean image.

Goldblum, Fowl, Feizi, Goldstein. "Adversarially Robust Distillation",
AAAI 2020, arXiv:1905.09747.

    x'   = argmax over the ball of   CE(S(x'), y)
    loss = alpha tau^2 KL(T(x) / tau || S(x') / tau) + (1 - alpha) CE(S(x), y)      alpha = 1, tau = 30

Differences from the authors' code (goldblum/AdversariallyRobustDistillation, 779ade3):
  1. theirs averages the KL over batch and classes; ours sums over classes, so `scale` = 1 / classes restores it.
  2. theirs attacks in train mode; ours in eval mode unless the preset is "official".
  3. theirs runs S(x) in train mode even at alpha = 1, where its loss has weight zero; ours drops both.
  4. their second learning-rate drop never happens (the milestone code sets 0.01 twice); ours does as the text says.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import ce, kl


def ard(alpha: float = 1.0, tau: float = 30.0, scale: float = 1.0, attack_mode: str = "eval") -> Method:
    """Adversarially robust distillation.

    Args:
        alpha: weight of the teacher, 1 - alpha that of the labels on clean images.
        tau: temperature of both networks.
        scale: factor of the KL term.
        attack_mode: "eval", or "train" to attack as the released code does.
    """
    require(tau > 0, "ard.tau", expected="a positive temperature", got=tau)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        terms = {"adv": scale * alpha * tau**2 * kl(b.T(b.x), b.S(b.adv), tau)}
        if alpha < 1:
            terms["label"] = (1 - alpha) * ce(b.S(b.x), b.y)
        return terms

    return Method(
        "ard",
        inner,
        outer,
        source="Goldblum et al., AAAI 2020",
        says=("CE(S(x'), y)", said((alpha, f"tau^2 KL(T(x) || S(x')) at tau {tau:g}"), (1 - alpha, "CE(S(x), y)"))),
        forwards={"S": ("x_adv", "x") if alpha < 1 else ("x_adv",)},
        start="uniform",
        attack_mode=attack_mode,
        scale=scale,
    )
