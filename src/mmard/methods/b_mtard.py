"""B-MTARD: MTARD whose teachers are brought to equal entropy by temperatures of their own.

Zhao, Wang, Wei. "Mitigating Accuracy-Robustness Trade-Off via Balanced Multi-Teacher Adversarial Distillation",
TPAMI 2024.

    x'    = argmax over the ball of   CE(S(x'), y)
    loss  = w_adv KL(T(x') / t_adv || S(x')) + w_nat KL(T_nat(x) / t_nat || S(x))           w as in MTARD
    t_adv = clip( t_adv - rate_tau sign(H_adv - H_nat), 1, 10 )
    t_nat = clip( t_nat - rate_tau sign(H_nat - H_adv), 1, 10 )

H are the mean entropies of the two teachers at their present temperatures. The temperatures start at 1 and move, by
rate_tau = 0.001, after the loss of the step is formed. They act on the teachers alone: the student has none, and there
is no factor tau^2. Both rates are a tenth of what they were after each share of the run in `cool_at`.

Differences from the authors' code (zhaoshiji123/MTARD-extension, 93506d6):
  1. theirs averages over batch and classes, which is 0.1 of ours: `scale` = 0.1 restores it.
  2. theirs imports files that it does not hold, the attack among them; ours takes MTARD's.
  3. temperatures and weights are lost there when a run is resumed; ours ride in the checkpoint.
  4. theirs adds 1e-5 inside the logarithms of the teachers' probabilities, which enters L and through it the weights,
     as in MTARD; ours uses log_softmax.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.memory import SOFTEST, EntropyBalance, LossBalance, shares_of_run
from mmard.method import Method
from mmard.ops import ce, kl


def b_mtard(
    rate: float = 0.025,
    rate_tau: float = 1e-3,
    tau_adv: float = 1.0,
    tau_nat: float = 1.0,
    cool_at: str = "1/2,3/4",
    scale: float = 1.0,
) -> Method:
    """Balanced distillation from a robust and a natural teacher.

    Args:
        rate: how fast the weights follow the losses.
        rate_tau: how far a step moves the temperatures.
        tau_adv: temperature of the robust teacher at the start.
        tau_nat: temperature of the natural teacher at the start.
        cool_at: shares of the run after which both rates are a tenth, e.g. "1/2,3/4"; "" for never.
        scale: factor of both terms.
    """
    require(0 <= rate <= 1, "b_mtard.rate", expected="a rate in [0, 1]", got=rate)
    require(rate_tau >= 0, "b_mtard.rate_tau", expected="at least 0", got=rate_tau)
    for name, tau in (("tau_adv", tau_adv), ("tau_nat", tau_nat)):
        require(1 <= tau <= SOFTEST, f"b_mtard.{name}", expected=f"a temperature in [1, {SOFTEST:g}]", got=tau)
    cooling = shares_of_run(cool_at, "b_mtard.cool_at")
    balance, entropies = LossBalance(rate, cooling), EntropyBalance((tau_adv, tau_nat), rate_tau, cooling)

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        t_adv, t_nat = entropies.temperatures()
        adv, nat = kl(b.T(b.adv) / t_adv, b.S(b.adv)), kl(b.T_nat(b.x) / t_nat, b.S(b.x))
        w_adv, w_nat = balance(b.mean(adv), b.mean(nat), b.progress)
        entropies.see(b.T(b.adv), b.T_nat(b.x), b.progress)
        return {"adv": scale * w_adv * adv, "nat": scale * w_nat * nat}

    made = Method(
        "b_mtard",
        inner,
        outer,
        source="Zhao et al., TPAMI 2024",
        says=(
            "CE(S(x'), y)",
            "w_adv KL(T(x') / t_adv || S(x')) + w_nat KL(T_nat(x) / t_nat || S(x)), t by entropy",
        ),
        nets=("S", "T", "T_nat"),
        couples_batch=True,
        scale=scale,
    )
    return made.remembering(balance).remembering(entropies)
