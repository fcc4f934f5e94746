"""IAD: trust the teacher as far as it withstands the student's attack, and the student itself for the rest.

Zhu, Yao, Han, Zhang, Liu, Niu, Zhou, Xu, Yang. "Reliable Adversarial Distillation with Unreliable Teachers",
ICLR 2022, arXiv:2106.04928.

    x'   = argmax over the ball of   CE(S(x'), y)
    A    = p_T(x')[y] ^ beta                                                        beta = 0.1
    I    = alpha [ A tau^2 KL(T(x) / tau || S(x') / tau) + (1 - A) KL(S(x) || S(x')) ] + (1 - alpha) CE(S(x), y)
    II   = label CE(S(x'), y) + natural tau^2 KL(T_nat(x') / tau || S(x') / tau)
           + robust tau^2 [ A KL(T(x') / tau || S(x') / tau) + (1 - A) KL(S(x) / tau || S(x') / tau) ]

with alpha = 1, label = 0.25, robust = 0.5, natural = 0.25, tau = 1, and A = 1 until the share `begin` of the run is
over (60 of 200 epochs for I, 40 for II). II adds introspection to the two teachers of Chen et al., which see x'.
The target S(x) of the introspective term is not detached.

Differences from the authors' code (ZFancy/IAD, a8091a8, IAD-I.py and IAD-II.py):
  1. I: theirs does not multiply the teacher's term by A; ours does, as in II. `weigh_teacher` = False restores it.
  2. theirs attacks in train mode; ours in eval mode unless `attack_mode` says otherwise.
  3. theirs runs S(x) twice in train mode; ours once, from the first step on although the introspective term starts
     later, so that BatchNorm's statistics cover both views throughout.
  4. their second learning-rate drop never happens, and they select on the test set; ours drops and selects on
     validation.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import ce, kl, true_probability


def iad_i(
    alpha: float = 1.0,
    beta: float = 0.1,
    tau: float = 1.0,
    begin: float = 0.3,
    weigh_teacher: bool = True,
    scale: float = 1.0,
    attack_mode: str = "eval",
) -> Method:
    """Introspective adversarial distillation, variant I.

    Args:
        alpha: weight of teacher and introspection together, 1 - alpha that of the labels on clean images.
        beta: exponent of the teacher's true-class probability in the trust A.
        tau: temperature of the teacher's term.
        begin: share of the run before introspection starts.
        weigh_teacher: whether the teacher's term is multiplied by A.
        scale: factor of the KL terms.
        attack_mode: "eval", or "train" to attack as the released code does.
    """
    require(tau > 0, "iad_i.tau", expected="a positive temperature", got=tau)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        teacher = scale * alpha * tau**2 * kl(b.T(b.x), b.S(b.adv), tau)
        terms = {"teacher": teacher}
        if b.progress > begin:
            trust = true_probability(b.T(b.adv), b.y) ** beta
            terms = {
                "teacher": trust * teacher if weigh_teacher else teacher,
                "self": scale * alpha * (1 - trust) * kl(b.S(b.x), b.S(b.adv)),
            }
        if alpha < 1:
            terms["label"] = (1 - alpha) * ce(b.S(b.x), b.y)
        return terms

    return Method(
        "iad_i",
        inner,
        outer,
        source="Zhu et al., ICLR 2022",
        says=("CE(S(x'), y)", "A KL(T(x) || S(x')) + (1 - A) KL(S(x) || S(x')), A = p_T(x')[y]^beta"),
        start="uniform",
        attack_mode=attack_mode,
        scale=scale,
    )


def iad_ii(
    label: float = 0.25,
    robust: float = 0.5,
    natural: float = 0.25,
    beta: float = 0.1,
    tau: float = 1.0,
    begin: float = 0.2,
    scale: float = 1.0,
    attack_mode: str = "eval",
) -> Method:
    """Introspective adversarial distillation, variant II: with labels and a natural teacher.

    Args:
        label: weight of the labels, at x'.
        robust: weight of the robust teacher and introspection together.
        natural: weight of the natural teacher.
        beta: exponent of the robust teacher's true-class probability in the trust A.
        tau: temperature of all KL terms.
        begin: share of the run before introspection starts.
        scale: factor of the KL terms.
        attack_mode: "eval", or "train" to attack as the released code does.
    """
    require(tau > 0, "iad_ii.tau", expected="a positive temperature", got=tau)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        unit = scale * tau**2
        terms = {
            "label": label * ce(b.S(b.adv), b.y),
            "natural": unit * natural * kl(b.T_nat(b.adv), b.S(b.adv), tau),
            "teacher": unit * robust * kl(b.T(b.adv), b.S(b.adv), tau),
        }
        if b.progress > begin:
            trust = true_probability(b.T(b.adv), b.y) ** beta
            terms["teacher"] = trust * terms["teacher"]
            terms["self"] = unit * robust * (1 - trust) * kl(b.S(b.x), b.S(b.adv), tau)
        return terms

    return Method(
        "iad_ii",
        inner,
        outer,
        source="Zhu et al., ICLR 2022",
        says=(
            "CE(S(x'), y)",
            said(
                (label, "CE(S(x'), y)"),
                (robust, "[A KL(T(x') || S(x')) + (1 - A) KL(S(x) || S(x'))]"),
                (natural, "KL(T_nat(x') || S(x')), A = p_T(x')[y]^beta"),
            ),
        ),
        nets=("S", "T", "T_nat"),
        start="uniform",
        attack_mode=attack_mode,
        scale=scale,
    )
