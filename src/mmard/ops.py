"""Numbers that a formula is written in: logits (B, C) in, one value per sample (B,) out.

Every divergence sums over classes and never over the batch, so no class count and no batch size hides in a loss. The
mean over samples is taken once, by the trainer. KL is in nats and its arguments stand in mathematical order, the target
first, which is the reverse of `torch.nn.functional.kl_div`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kl(p: Tensor, q: Tensor, tau: float = 1.0) -> Tensor:
    """KL(softmax(p / tau) || softmax(q / tau)) of logits (B, C) and (B, C) -> (B,), in nats.

    The factor tau**2 of Hinton et al. (2015), which keeps gradients of order one, belongs to the paper that uses it and
    is written there. A constant target keeps no graph when `p` carries no gradient.

    >>> kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.])
    """
    log_p, log_q = (p / tau).log_softmax(1), (q / tau).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) with labels (B,) -> (B,), in nats."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit minus the true one, (B, C) and (B,) -> (B,): positive where the sample is misread,
    negative where it is right, and 0 where the logits tie, which `correct` decides.

    This is the objective of Carlini and Wagner (2017) without confidence; climbing it attacks.
    """
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return wrong.amax(1) - true_logit(logits, y)


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each prediction is right, (B, C) and (B,) -> (B,) bool: the only rule for it in this package.

    The prediction is the first of the largest logits, as AutoAttack's code has it, so that of a tie the class with the
    lowest index is predicted. Logits that are not finite are never right.

    >>> correct(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    tensor([ True, False])
    """
    return (logits.argmax(1) == y) & logits.isfinite().all(1)


def true_logit(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of the true class, (B, C) and (B,) -> (B,)."""
    return logits.gather(1, y[:, None])[:, 0]


def true_probability(logits: Tensor, y: Tensor) -> Tensor:
    """Softmax probability of the true class, (B, C) and (B,) -> (B,)."""
    return true_logit(logits.softmax(1), y)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits), (B, C) -> (B,), in nats."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def soft_ce(p: Tensor, q: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of softmax(q / tau) with the target softmax(p / tau), (B, C) and (B, C) -> (B,), in nats.

    It is `kl` plus the entropy of the target, which has no gradient where the target is constant.
    """
    return -((p / tau).softmax(1) * (q / tau).log_softmax(1)).sum(1)


def renyi_entropy(logits: Tensor, order: float) -> Tensor:
    """Entropy of this order (Renyi, 1961) of softmax(logits), (B, C) -> (B,), in nats; Shannon's for the order 1.

    >>> renyi_entropy(torch.zeros(1, 4), 2.0).exp()
    tensor([4.])
    """
    if order == 1:
        return entropy(logits)
    return (order * logits.log_softmax(1)).logsumexp(1) / (1 - order)
