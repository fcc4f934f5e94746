"""ABSLD: RSLAD whose teacher speaks sharper of the classes that the student finds harder.

Zhao, Duan, Wang, Wei. "Improving Adversarial Robust Fairness via Anti-Bias Soft Label Distillation",
NeurIPS 2024.

    x'   = argmax over the ball of   KL(T(x) / t_adv[y] || S(x'))
    loss = alpha KL(T(x) / t_adv[y] || S(x')) + (1 - alpha) KL(T(x) / t_nat[y] || S(x))       alpha = 5/6
    t_c  = clip( t_c - rate (R_c - mean R) / max_j |R_j - mean R|, 0.5, 5 )                   at every epoch's end

R_c is the mean cross-entropy of class c over the epoch, at x' for t_adv and at x for t_nat: a harder class gets a lower
temperature. All temperatures start at 1; they act on the teacher alone, and there is no factor tau^2. The rate, 0.1, is
a tenth of what it was after each share of the run in `cool_at`.

Differences from the authors' code (zhaoshiji123/ABSLD, 7407c3a):
  1. theirs divides two views of one tensor in place, so that both branches and the attack see T(x) / (t_adv t_nat);
     ours divides each by its own.
  2. theirs sums the cross-entropy over a class, which measures its size as well; ours takes means.
  3. theirs averages over batch and classes (times 10 on CIFAR-100), which is 0.1 of ours: `scale` = 0.1 restores it.
  4. theirs takes log(softmax), which can be minus infinity; ours log_softmax.
  5. theirs lets the rate fall once for each group of the optimiser; ours once.
  6. the temperatures are lost there when a run is resumed; ours ride in the checkpoint.
  7. theirs adds 1e-5 inside the logarithm of T(x), a constant for the student; ours uses log_softmax.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.memory import ByClass, cooled, shares_of_run
from mmard.method import Method, said
from mmard.ops import ce, kl

SHARPEST, SOFTEST = 0.5, 5.0


class ClassTemperatures(ByClass):
    """Two temperatures for each class, and the cross-entropies of the epoch at work."""

    adv: Tensor
    nat: Tensor
    adv_risk: Tensor
    nat_risk: Tensor
    met: Tensor
    rate_now: Tensor

    def __init__(self, rate: float, cool_at: tuple[Fraction, ...]) -> None:
        super().__init__(adv=1.0, nat=1.0, adv_risk=0.0, nat_risk=0.0, met=0.0)
        self.rate, self.cool_at = rate, cool_at
        self.register_buffer("rate_now", torch.tensor(rate))

    def see(self, y: Tensor, adv: Tensor, nat: Tensor, progress: float) -> None:
        """Add a batch's cross-entropies (B,) at x' and at x to those of their classes."""
        self.adv_risk.index_add_(0, y, adv.detach().to(self.adv_risk))
        self.nat_risk.index_add_(0, y, nat.detach().to(self.nat_risk))
        self.met.index_add_(0, y, torch.ones_like(y).to(self.met))
        self.rate_now.fill_(cooled(self.rate, progress, self.cool_at))

    def renew(self) -> None:
        """The temperatures of the next epoch, and sums of zero."""
        met = self.met > 0
        for tau, risk in ((self.adv, self.adv_risk), (self.nat, self.nat_risk)):
            mean = risk[met] / self.met[met]
            away = mean - mean.mean()
            if len(away) and away.abs().amax() > 0:
                step = self.rate_now.to(tau) * away / away.abs().amax()
                tau[met] = (tau[met] - step).clamp(SHARPEST, SOFTEST)
            risk.zero_()
        self.met.zero_()


def absld(alpha: float = 5 / 6, rate: float = 0.1, cool_at: str = "1/2,3/4", scale: float = 1.0) -> Method:
    """Anti-bias soft label distillation.

    Args:
        alpha: weight of the robust term, 1 - alpha that of the natural one.
        rate: the most that an epoch's end moves a temperature; 0 is RSLAD.
        cool_at: shares of the run after which the rate is a tenth, e.g. "1/2,3/4"; "" for never.
        scale: factor of both terms.
    """
    require(rate >= 0, "absld.rate", expected="at least 0", got=rate)
    tau = ClassTemperatures(rate, shares_of_run(cool_at, "absld.cool_at"))

    def inner(b: Batch) -> Tensor:
        tau.sized(b.S(b.adv))
        return kl(b.T(b.x) / tau.adv[b.y, None], b.S(b.adv))

    def outer(b: Batch) -> Terms:
        tau.sized(b.S(b.adv))
        tau.see(b.y, ce(b.S(b.adv), b.y), ce(b.S(b.x), b.y), b.progress)
        return {
            "adv": scale * alpha * kl(b.T(b.x) / tau.adv[b.y, None], b.S(b.adv)),
            "nat": scale * (1 - alpha) * kl(b.T(b.x) / tau.nat[b.y, None], b.S(b.x)),
        }

    return Method(
        "absld",
        inner,
        outer,
        source="Zhao et al., NeurIPS 2024",
        says=(
            "KL(T(x) / t_adv[y] || S(x'))",
            said((alpha, "KL(T(x) / t_adv[y] || S(x'))"), (1 - alpha, "KL(T(x) / t_nat[y] || S(x)), t by class risk")),
        ),
        memory=tau,
        epoch_end=tau.renew,
        scale=scale,
    )
