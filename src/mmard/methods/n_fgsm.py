"""N-FGSM: adversarial training with one step from strong noise, without a teacher.

De Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania. "Make Some Noise: Reliable and Efficient Single-Step Adversarial
Training", NeurIPS 2022, arXiv:2202.01181.

    z    = clip( x + noise eps u ),   u uniform in the unit ball;       x' = clip( z + eps sign grad CE(S(z), y) )
    loss = CE(S(x'), y)                                                             noise = 2

x' is not projected onto the ball and may be 3 eps away from x. The attack belongs to no method: `attack` = "noise-fgsm"
gives it to any other, as a cheap inner step.

Differences from the authors' code (pdejorge/N-FGSM, 15f5907):
  1. theirs attacks in train mode; ours in eval mode unless `attack_mode` says otherwise.
  2. on SVHN theirs lets eps grow over the first five epochs; ours does not.
One step can fail suddenly and entirely (catastrophic overfitting): look at PGD-50, not at the training attack.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mmard.attacks import noise_fgsm
from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method
from mmard.ops import ce


def n_fgsm(noise: float = 2.0, attack_mode: str = "eval") -> Method:
    """Adversarial training with a single noisy step.

    Args:
        noise: radius of the noise as a multiple of eps; the released scripts take more at larger eps (3 or 4).
        attack_mode: "eval", or "train" to attack as the released code does.
    """
    require(noise >= 0, "n_fgsm.noise", expected="at least 0", got=noise)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        return {"adv": ce(b.S(b.adv), b.y)}

    return Method(
        "n_fgsm",
        inner,
        outer,
        source="De Jorge et al., NeurIPS 2022",
        says=(f"CE(S(x'), y), one step from noise of {noise:g} eps", "CE(S(x'), y)"),
        forwards={"S": ("x_adv",)},
        nets=("S",),
        start="uniform",
        attack=partial(noise_fgsm, noise=noise),
        attack_mode=attack_mode,
        soft_labels=True,
    )
