"""AdaAD and AdaIAD: the teacher is asked where the attack is, and the attack differentiates it.

Huang, Chen, Wang, Lu, Cheng, Wang. "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial
Distillation", CVPR 2023.

    x'     = argmax over the ball of   KL(T(x') || S(x'))                           through both networks
    AdaAD  = alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x))                alpha = 1
    AdaIAD = tau^2 KL(T(x') / tau || S(x') / tau) + (1 - A) KL(S(x) || S(x'))       A = p_T(x')[y] ^ beta

AdaIAD's second term starts when the share `begin` of the run is over (60 of 200 epochs), and its target S(x) is not
detached. With a target that moves, KL is not cross-entropy: the teacher's entropy has a gradient too.

Differences from the authors' code (boyellow/AdaAD, 9e5c6e5):
  1. theirs averages over batch and classes on CIFAR-10 but over the batch on CIFAR-100; ours sums over classes, so
     `scale` = 0.1 restores the CIFAR-10 runs.
  2. theirs runs S(x) in train mode even at alpha = 1, where its loss has weight zero; ours drops both.
  3. their parser's default budget is 16/255 with step 4/255, their README's 8/255 with 2/255; here it is the user's.
  4. AdaIAD: theirs inherits tau = 30 with a factor tau^2 = 900 from the parser; ours is tau = 1 (`tau` restores it).
  5. AdaIAD: the teacher's term is not multiplied by A there, nor here (`weigh_teacher` = True does, as in IAD's text).
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import kl, true_probability


def _inner(b: Batch) -> Tensor:
    return kl(b.T(b.adv), b.S(b.adv))


_INNER_SAYS = "KL(T(x') || S(x'))"


def adaad(alpha: float = 1.0, scale: float = 1.0) -> Method:
    """Adaptive adversarial distillation.

    Args:
        alpha: weight of the robust term, 1 - alpha that of the natural one.
        scale: factor of both terms.
    """

    def outer(b: Batch) -> Terms:
        terms = {"adv": scale * alpha * kl(b.T(b.adv), b.S(b.adv))}
        if alpha < 1:
            terms["nat"] = scale * (1 - alpha) * kl(b.T(b.x), b.S(b.x))
        return terms

    return Method(
        "adaad",
        _inner,
        outer,
        source="Huang et al., CVPR 2023",
        says=(_INNER_SAYS, said((alpha, "KL(T(x') || S(x'))"), (1 - alpha, "KL(T(x) || S(x))"))),
        forwards={"S": ("x_adv", "x") if alpha < 1 else ("x_adv",)},
        scale=scale,
    )


def adaiad(
    beta: float = 0.1, tau: float = 1.0, begin: float = 0.3, weigh_teacher: bool = False, scale: float = 1.0
) -> Method:
    """Adaptive introspective adversarial distillation.

    Args:
        beta: exponent of the teacher's true-class probability in the trust A.
        tau: temperature of the teacher's term.
        begin: share of the run before introspection starts.
        weigh_teacher: whether the teacher's term is multiplied by A once introspection has started.
        scale: factor of both terms.
    """
    require(tau > 0, "adaiad.tau", expected="a positive temperature", got=tau)

    def outer(b: Batch) -> Terms:
        teacher = scale * tau**2 * kl(b.T(b.adv), b.S(b.adv), tau)
        if b.progress <= begin:
            return {"teacher": teacher}
        trust = true_probability(b.T(b.adv), b.y) ** beta
        return {
            "teacher": trust * teacher if weigh_teacher else teacher,
            "self": scale * (1 - trust) * kl(b.S(b.x), b.S(b.adv)),
        }

    return Method(
        "adaiad",
        _inner,
        outer,
        source="Huang et al., CVPR 2023",
        says=(_INNER_SAYS, "KL(T(x') || S(x')) + (1 - A) KL(S(x) || S(x')), A = p_T(x')[y]^beta"),
        scale=scale,
    )
