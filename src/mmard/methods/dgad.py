"""DGAD: what the teacher misreads is taught clean and only clean, and its mistakes are swapped away.

Park, Min. "Dynamic Guidance Adversarial Distillation with Enhanced Teacher Knowledge",
ECCV 2024.

    x'   = argmax over the ball of   KL(T(x') || S(x'))                             through both networks
    loss = alpha [ 1_M KL(T~(x) || S(x)) + 1_R KL(T~(x') || S(x')) ] + mu mean_k (softmax S(x') - softmax S(x))_k^2

M are the samples that T misreads at x, R the others; T~ are the teacher's logits with the largest and that of the true
class swapped wherever another class is on top. alpha = 1 and mu = 1; both sides of the last term are differentiated.

Differences from the authors' code (kunsaram01/DGAD, a0329c8):
  1. theirs misplaces a bracket for MobileNetV2, which multiplies the two losses; `alpha` = 0.5 is what it means.
  2. theirs divides by the nominal batch size, also in the last batch, and by zero when M is the whole batch; ours takes
     the mean over the batch.
  3. theirs swaps inside the teacher's tensors; ours makes new ones.
  4. theirs lets the teacher's weights collect gradients; ours are frozen.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import kl, true_logit


def swapped(logits: Tensor, y: Tensor) -> Tensor:
    """The logits (B, C) with the largest and that of the true class exchanged, as they are where it is the largest.

    >>> import torch
    >>> swapped(torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), torch.tensor([1, 1]))
    tensor([[1., 3., 2.],
            [0., 5., 1.]])
    """
    top, first = logits.max(1)
    true = true_logit(logits, y)
    corrected = logits.scatter(1, first[:, None], true[:, None]).scatter(1, y[:, None], top[:, None])
    return corrected.where((true < top)[:, None], logits)


def dgad(alpha: float = 1.0, mu: float = 1.0, scale: float = 1.0) -> Method:
    """Dynamic guidance adversarial distillation.

    Args:
        alpha: weight of the teacher; 0.5 for MobileNetV2 in the released code.
        mu: weight of the distance between the student's two predictions.
        scale: factor of the teacher's terms.
    """
    require(alpha > 0, "dgad.alpha", expected="a positive weight", got=alpha)
    require(mu >= 0, "dgad.mu", expected="at least 0", got=mu)

    def inner(b: Batch) -> Tensor:
        return kl(b.T(b.adv), b.S(b.adv))

    def outer(b: Batch) -> Terms:
        missed = b.T(b.x).argmax(1) != b.y
        terms = {
            "nat": scale * alpha * kl(swapped(b.T(b.x), b.y), b.S(b.x)) * missed,
            "adv": scale * alpha * kl(swapped(b.T(b.adv), b.y), b.S(b.adv)) * ~missed,
        }
        if mu > 0:
            terms["consistency"] = mu * (b.S(b.adv).softmax(1) - b.S(b.x).softmax(1)).square().mean(1)
        return terms

    return Method(
        "dgad",
        inner,
        outer,
        source="Park and Min, ECCV 2024",
        says=(
            "KL(T(x') || S(x'))",
            said(
                (alpha, "[1_M KL(T~(x) || S(x)) + 1_R KL(T~(x') || S(x'))]"),
                (mu, "MSE(p_S(x'), p_S(x)), M: T misreads x"),
            ),
        ),
        forwards={"S": ("x", "x_adv")},
        scale=scale,
    )
