"""MMARD: a guided attack and a triangle of mutual information, on top of any method. A plug-in.

Wang, Chen, Yang, Wang, Qi. "MMARD: Improving the Min-Max Optimization Process in Adversarial Robustness Distillation",
2025, arXiv:2503.06559.

    x'   = argmax over the ball of   host_inner(x') + guide * drift(x'),    drift = KL( T(x) || T(x') )
    loss = host_outer + beta / 3 * [ d(N, R) + d(N, Q_n) + d(R, Q_r) ]

    N = softmax S(x), R = softmax S(x')            the student in the natural and in the robust scenario
    Q_n = softmax T(x), Q_r = softmax T(x')        the teacher in the two

The drift grows as x' moves the teacher's own prediction, that is toward the teacher's boundary. The distance d along an
edge is one of four measures; a_i and b_i are the two predictions of sample i, J(a, b) = mean_i a_i b_i^T:

    nce    -log( exp(a_i.b_i / tau) / sum_j exp(a_i.b_j / tau) ), both ways   InfoNCE, a contrast with the other samples
    mi     -I(a; b) / log C,  I = sum J log( J / (J_a J_b) )                  the information between the two classes
    match  KL( J(Q_n, Q_r) || J(N, R) ), KL( J(Q, Q) || J(a, Q) )             the student's mapping equals the teacher's
    kl     KL(N || R), KL(Q_n || N), KL(Q_r || R)                             no batch statistics: the control

Differences from the paper, of which we have the abstract and not the equations:
  1. the abstract states the two goals (examples nearer to the teacher's boundary by its robust predictions; mutual
     information on the triangle of natural, robust and teacher); the formulas above are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmard.errors import Refused, require, unknown
from mmard.method import Batch, Inner, Method, Outer, Terms, said
from mmard.ops import ce, kl

Edges = tuple[Tensor, Tensor, Tensor]
"""d(N, R), d(N, Q_n), d(R, Q_r), each (B,)."""


def nce(n: Tensor, r: Tensor, q_n: Tensor, q_r: Tensor, tau: float) -> Edges:
    """Contrast of each sample's pair with the other pairs of the batch, (B, C) logits each."""

    def edge(a: Tensor, b: Tensor) -> Tensor:
        similarity = a.softmax(1) @ b.softmax(1).T / tau
        own = torch.arange(len(a), device=a.device)
        return (ce(similarity, own) + ce(similarity.T, own)) / 2

    return edge(n, r), edge(n, q_n), edge(r, q_r)


def mi(n: Tensor, r: Tensor, q_n: Tensor, q_r: Tensor, tau: float) -> Edges:
    """Negative mutual information of class assignments over the batch; sample i gets its share of the sum."""

    def edge(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.softmax(1), b.softmax(1)
        log_ratio = _log_joint(a, b) - _log(a.mean(0))[:, None] - _log(b.mean(0))[None, :]
        return -_share(a, b, log_ratio) / math.log(a.shape[1])

    return edge(n, r), edge(n, q_n), edge(r, q_r)


def match(n: Tensor, r: Tensor, q_n: Tensor, q_r: Tensor, tau: float) -> Edges:
    """KL between the teacher's joint distribution of two scenarios and the student's, (B, C) logits each."""

    def edge(t1: Tensor, t2: Tensor, a: Tensor, b: Tensor) -> Tensor:
        t1, t2, a, b = t1.softmax(1), t2.softmax(1), a.softmax(1), b.softmax(1)
        return _share(t1, t2, _log_joint(t1, t2) - _log_joint(a, b))

    return edge(q_n, q_r, n, r), edge(q_n, q_n, n, q_n), edge(q_r, q_r, r, q_r)


def triangle_kl(n: Tensor, r: Tensor, q_n: Tensor, q_r: Tensor, tau: float) -> Edges:
    """The three pairwise divergences, (B, C) logits each."""
    return kl(n, r), kl(q_n, n), kl(q_r, r)


def _log_joint(a: Tensor, b: Tensor) -> Tensor:
    """log J(a, b) of probabilities (B, C) each -> (C, C)."""
    return _log(a.T @ b / len(a))


def _log(p: Tensor) -> Tensor:
    """Logarithm of probabilities, finite where a class or a cell is empty."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def _share(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """sum_kl a_ik b_il table_kl, (B,): its mean over i is sum_kl J_kl table_kl."""
    return ((a @ table) * b).sum(1)


MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Edges]] = {
    "nce": nce,
    "mi": mi,
    "match": match,
    "kl": triangle_kl,
}


def guided(host: Inner | None, guide: float, ramp: float, teacher_every: int, bounded: bool) -> Inner:
    """The host's inner objective plus the teacher's drift.

    Between refreshes, the drift is replaced by its first-order model around the iterate of the last refresh, so that a
    step costs no pass through the teacher. With `bounded`, drift is 1 - exp(-KL): its pull ends where the teacher has
    moved already, so that a teacher whose boundary is everywhere cannot override the host.
    """

    def drift(b: Batch, logits: Tensor) -> Tensor:
        moved = kl(b.T(b.x), logits)
        return -torch.expm1(-moved) if bounded else moved

    def guidance(b: Batch) -> Tensor:
        if teacher_every == 1:
            return drift(b, b.T(b.adv))
        if b.attack_step % teacher_every == 0:
            b.notes["drift"] = (*b.T.slope(b.adv, lambda z: drift(b, z)), b.adv.value.detach())
        value, slope, origin = b.notes["drift"]
        return value + (slope * (b.adv.value - origin)).flatten(1).sum(1)

    def inner(b: Batch) -> Tensor:
        weight = guide * min(1.0, b.progress / ramp) if ramp > 0 else guide
        return guidance(b) if host is None else host(b) + weight * guidance(b)

    return inner


def with_triangle(host: Outer, weight: float, measure: str, tau: float) -> Outer:
    """The host's terms plus the three edges of the triangle, a third of the weight each."""
    edges = MEASURES[measure]

    def outer(b: Batch) -> Terms:
        nr, nq, rq = edges(b.S(b.x), b.S(b.adv), b.T(b.x), b.T(b.adv), tau)
        third = weight / 3
        return {**host(b), "tri_nat_adv": third * nr, "tri_nat_teacher": third * nq, "tri_adv_teacher": third * rq}

    return outer


def mmard(
    host: Method,
    guide: float = 0.3,
    ramp: float = 0.0,
    teacher_every: int = 5,
    bounded: bool = False,
    beta: float = 3.0,
    measure: str = "nce",
    tau: float = 0.2,
) -> Method:
    """MMARD on top of any method.

    Args:
        host: the method to add to; one without an attack gets the guidance as its attack.
        guide: weight of the teacher's drift in the attack; 0 leaves the host's attack.
        ramp: share of the run over which the guidance grows to `guide`; 0 has it whole from the start.
        teacher_every: the teacher's input gradient is refreshed at every such step of the attack; 1 is exact.
        bounded: whether the drift is 1 - exp(-KL) instead of the KL.
        beta: weight of the triangle, in the host's unit of KL; 0 leaves the host's loss.
        measure: "nce", "mi", "match" or "kl".
        tau: temperature of the measure "nce"; the others have none.

    Raises:
        Refused: for an unknown measure, a negative weight, a temperature that is not positive, or teacher_every below
            1.
    """
    if measure not in MEASURES:
        raise unknown("mmard.measure", measure, MEASURES)
    require(tau > 0, "mmard.tau", expected="a positive temperature", got=tau)
    least = {"guide": (guide, 0), "ramp": (ramp, 0), "teacher_every": (teacher_every, 1), "beta": (beta, 0)}
    for name, (value, smallest) in least.items():
        require(value >= smallest, f"mmard.{name}", expected=f"at least {smallest}", got=value)
    inner, outer, grown = host.inner, host.outer, host
    inner_says, outer_says = host.says
    if guide > 0:
        inner = guided(host.inner, guide, ramp, teacher_every, bounded)
        drift = f"{'1 - exp of minus ' if bounded else ''}KL(T(x) || T(x'))"
        inner_says = drift if host.inner is None else said((1.0, inner_says), (guide, drift))
    if beta > 0:
        if inner is None:
            raise Refused(
                f"mmard on {host.name}",
                expected="an attack",
                got="a host without one and guide = 0",
                mend="set guide > 0",
            )
        grown = host.with_view("x_adv", "x")
        outer = with_triangle(host.outer, host.scale * beta, measure, tau)
        outer_says = said((1.0, outer_says), (beta, f"triangle_{measure}(S(x), S(x'), T)"))
    changed = guide > 0 or beta > 0
    return replace(
        grown,
        name=f"{host.name}+mmard",
        inner=inner,
        outer=outer,
        source=f"{host.source}; MMARD: after Wang et al., 2025, from the abstract",
        says=(inner_says, outer_says),
        nets=tuple(dict.fromkeys((*host.nets, "T"))) if changed else host.nets,
        couples_batch=host.couples_batch or (beta > 0 and measure != "kl"),
    )
