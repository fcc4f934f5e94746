"""ADR: labels are rectified by what the average of the student's own weights says of the image. A plug-in.

Wu, Wang, Chen. "Annealing Self-Distillation Rectification Improves Adversarial Training",
ICLR 2024, arXiv:2305.12118.

    P       = softmax( S_ema(x) / tau )                                tau from 2.5 to 2 along half a cosine
    trust_i = clip( trust - (max_k P_ik - P_iy), 0, 1 )                trust from 0.7 to 0.95 likewise
    q       = trust_i P + (1 - trust_i) onehot(y)
    loss, x' = those of the host with q in place of y

S_ema is the exponential average of the student's weights, 0.995 of it past, in eval mode and constant. The less the
average believes in the true class, the more the label counts, so that with trust <= 1 the true class stays the most
probable one. In PGD-AT q stands in the attack and in the loss, in TRADES in the clean cross-entropy.

Differences from the authors' code (their supplement for ICLR 2024, MIT licence):
  1. theirs moves tau and trust at every step from the first; ours from epoch to epoch, and ends where theirs ends.
  2. theirs averages with a decay of 0.995 from the first step; ours lets a young average lean on the present, or in a
     run of few steps it would still be the network at its start.
  3. theirs validates and keeps the average; say `average` = "ema" for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import Tensor
from torch.nn.functional import one_hot

from mmard.batch import Batch
from mmard.errors import require
from mmard.method import Method
from mmard.ops import true_probability

T = TypeVar("T")


def annealed(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1.

    >>> [annealed(2.5, 2.0, p) for p in (0, 0.5, 1)]
    [2.5, 2.25, 2.0]
    """
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def rectified(logits: Tensor, y: Tensor, trust: float) -> Tensor:
    """Labels y (B,) mixed with softmax(logits) of (B, C) as far as it is trusted -> probabilities (B, C)."""
    p = logits.softmax(1)
    mine = (trust - (p.amax(1) - true_probability(logits, y))).clamp(0, 1)[:, None]
    return mine * p + (1 - mine) * one_hot(y, p.shape[1])


def adr(
    host: Method,
    decay: float = 0.995,
    tau_start: float = 2.5,
    tau_end: float = 2.0,
    trust_start: float = 0.7,
    trust_end: float = 0.95,
) -> Method:
    """Self-distillation by rectified labels on top of a method that learns from labels by cross-entropy alone.

    Args:
        host: the method whose labels are rectified.
        decay: weight of the past in the average of the student's weights.
        tau_start: temperature of the average's prediction, at the beginning.
        tau_end: the same in the last epoch.
        trust_start: weight of that prediction where its largest class is the true one, at the beginning.
        trust_end: the same in the last epoch; with 0 and 0 the labels are the host's.

    Raises:
        Refused: for a host whose formulas need whole labels, a temperature that is not positive, or a weight out of
            [0, 1].
    """
    for name, value in (("decay", decay), ("trust_start", trust_start), ("trust_end", trust_end)):
        require(0 <= value <= 1, f"adr.{name}", expected="a number in [0, 1]", got=value)
    for name, value in (("tau_start", tau_start), ("tau_end", tau_end)):
        require(value > 0, f"adr.{name}", expected="a positive temperature", got=value)
    mend = "of plug-ins, adr comes first"
    expected = "a host that takes labels as probabilities"
    require(host.soft_labels, f"adr on {host.name}", expected=expected, got="one that needs whole labels", mend=mend)
    named = replace(host, name=f"{host.name}+adr", source=f"{host.source}; ADR: Wu et al., ICLR 2024")
    if trust_start == trust_end == 0:
        return named

    def with_q(formula: Callable[[Batch], T]) -> Callable[[Batch], T]:
        def on(b: Batch) -> T:
            tau, trust = annealed(tau_start, tau_end, b.progress), annealed(trust_start, trust_end, b.progress)
            return formula(replace(b, y=rectified(b.S_ema(b.x) / tau, b.y, trust)))

        return on

    return replace(
        named,
        inner=None if host.inner is None else with_q(host.inner),
        outer=with_q(host.outer),
        says=(host.says[0].replace("y)", "q)"), host.says[1].replace("y)", "q)")),
        nets=(*host.nets, "S_ema"),
        ema_decay=decay,
        soft_labels=False,
    )
