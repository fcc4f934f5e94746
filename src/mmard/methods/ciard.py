"""CIARD: the student is drawn to two teachers, pushed off the natural one's errors, and the robust teacher learns on.

Lu, Pang, Zheng, Gu, Du, Liu, Zhou. "CIARD: Cyclic Iterative Adversarial Robustness Distillation",
ICCV 2025.

    x'      = argmax over the ball of   CE(S(x'), y)
    student = KL(T(x') / t_adv || S(x')) + KL(T_nat(x) / t_nat || S(x)) - s push            t as in B-MTARD
    push    = mean of KL(T_nat(x') || S(x') / 5) over the samples whose x' the natural teacher misreads
    s       = 10 ^ ( min(floor log10 L_adv, floor log10 L_nat) - floor log10 L_push )        constant
    teacher = CE(T(x'), y)                                                      by the robust teacher's weights alone
    loss    = student + teacher

The robust teacher is trained by SGD of its own, momentum 0.1 and weight decay 2e-4, at the rate
lr_teacher (1 + cos pi v) / 2 exp(-0.01 v^2), where v runs from 0 to 1 after the first sixth of the run and the rate is
0 before; lr_teacher = 1e-4. The student's targets are constants.

Differences from the authors' code (eminentgu/CIARD, 93a9a2d):
  1. theirs keeps the robust teacher in train mode from the start, so its BatchNorm drifts and its labels depend on the
     batch; ours trains it in eval mode, with the statistics that it came with.
  2. theirs subtracts a divergence without a bound; ours bounds it by log C a sample (`bounded` = False for theirs).
  3. theirs lets both rates of the temperatures fall in every batch of three epochs, which freezes them; ours once each.
  4. theirs fails where the first batch has no error of the natural teacher; ours has no push there.
  5. theirs averages over batch and classes, which is 0.1 of ours: `scale` = 0.1 restores it. As s compares orders of
     magnitude, it may differ by a factor of 10 where a loss is near a power of 10.
  6. theirs computes MTARD's weights of the first two terms and does not use them; `balanced` = True does.
  7. weights, temperatures and the teacher's optimiser ride in our checkpoint.
  8. theirs runs S(x) in train mode before it attacks, so that x' is climbed on statistics that x has moved already;
     ours attacks first, on the statistics of the step before.
  9. theirs adds 1e-5 inside the logarithms of the teachers' probabilities, constants for the student that enter the
     losses which s compares; ours uses log_softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.memory import EntropyBalance, LossBalance, shares_of_run
from mmard.method import Method, Tuning
from mmard.ops import ce, kl

PUSH_TAU = 5.0
BEGIN = 1 / 6
"""Share of the run after which the teacher learns, epoch 50 of 300."""


def _order(value: Tensor) -> Tensor:
    """floor log10, of the smallest positive number where the value is zero."""
    return value.clamp_min(1e-12).log10().floor()


def ciard(
    push: float = 1.0,
    bounded: bool = True,
    balanced: bool = False,
    rate: float = 0.025,
    rate_tau: float = 1e-3,
    cool_at: str = "1/2,3/4",
    lr_teacher: float = 1e-4,
    scale: float = 1.0,
) -> Method:
    """Cyclic iterative adversarial robustness distillation.

    Args:
        push: weight of the push, relative to the order of magnitude that s gives it; 0 for none.
        bounded: whether a sample's divergence counts up to log C alone.
        balanced: whether MTARD's weights balance the two teachers; otherwise both weigh 1.
        rate: how fast those weights follow the losses.
        rate_tau: how far a step moves the teachers' temperatures.
        cool_at: shares of the run after which both rates are a tenth, e.g. "1/2,3/4"; "" for never.
        lr_teacher: the largest learning rate of the robust teacher; 0 leaves it as it is.
        scale: factor of the KL terms.
    """
    require(push >= 0, "ciard.push", expected="at least 0", got=push)
    require(lr_teacher >= 0, "ciard.lr_teacher", expected="at least 0", got=lr_teacher)
    cooling = shares_of_run(cool_at, "ciard.cool_at")
    balance, entropies = LossBalance(rate, cooling), EntropyBalance((1.0, 1.0), rate_tau, cooling)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        t_adv, t_nat = entropies.temperatures()
        adv, nat = kl(b.T(b.adv) / t_adv, b.S(b.adv)), kl(b.T_nat(b.x) / t_nat, b.S(b.x))
        w_adv, w_nat = balance(b.mean(adv), b.mean(nat), b.progress) if balanced else (1.0, 1.0)
        entropies.see(b.T(b.adv), b.T_nat(b.x), b.progress)
        terms = {"adv": scale * w_adv * adv, "nat": scale * w_nat * nat}
        if push > 0:
            away = kl(b.T_nat(b.adv), b.S(b.adv) / PUSH_TAU)
            if bounded:
                away = away.clamp_max(math.log(b.S(b.adv).shape[1]))
            misread = (b.T_nat(b.adv).argmax(1) != b.y).to(away.dtype)
            share = misread * len(b.y) / misread.sum().clamp_min(1)  # its mean over the batch is that over the misread
            order = torch.minimum(_order(b.mean(adv)), _order(b.mean(nat))) - _order(b.mean(share * away))
            terms["push"] = -scale * push * 10.0**order * share * away
        if lr_teacher > 0:
            terms["teacher"] = ce(b.T_tuned(b.adv), b.y)
        return terms

    def teacher_rate(progress: float) -> float:
        v = (progress - BEGIN) / (1 - BEGIN)
        return 0.0 if v <= 1e-9 else lr_teacher * (1 + math.cos(math.pi * v)) / 2 * math.exp(-0.01 * v**2)

    made = Method(
        "ciard",
        inner,
        outer,
        source="Lu et al., ICCV 2025",
        says=(
            "CE(S(x'), y)",
            "KL(T(x') / t_adv || S(x')) + KL(T_nat(x) / t_nat || S(x)) - s KL(T_nat(x') || S(x') / 5) where T_nat errs"
            " + CE(T(x'), y)",
        ),
        forwards={"S": ("x", "x_adv")},
        nets=("S", "T", "T_nat"),
        tunes={"T": Tuning(("x_adv",), teacher_rate, momentum=0.1, weight_decay=2e-4)} if lr_teacher > 0 else {},
        couples_batch=push > 0 or balanced,
        scale=scale,
    )
    return made.remembering(balance).remembering(entropies)
