"""MMARD: a guided attack and a triangle of mutual information, on top of any method. A plug-in.

Wang, Chen, Yang, Wang, Qi. "MMARD: Improving the Min-Max Optimization Process in Adversarial Robustness Distillation",
2025, arXiv:2503.06559.

    x'   = argmax over the ball of   host_inner(x') + guide * CE( T(x'), c ) + own * CE( S(x'), c ),   c = argmax T(x)
    loss = host_outer + beta / 3 * [ d(N_, R) + d(N, Q_n) + d(R, Q_n) ]

With `attack` = "label" the host's objective gives way to the one of adversarial training, CE( S(x'), y ) from a uniform
start, and `label` adds that cross-entropy to the loss.

    N = softmax S(x), R = softmax S(x')            the student in the natural and in the robust scenario
    N_ = N, held still                             no gradient goes through it
    Q_n = softmax T(x), Q_r = softmax T(x')        the teacher in the two, the second for other `edges`

The drift CE( T(x'), c ) grows as x' moves the teacher out of its own class, that is toward its decision boundary. Its
gradient does not vanish at x, so by default it is taken there once, <grad drift(x), x' - x>, for one backward pass of
the teacher in a whole attack. A divergence such as KL( T(x) || T(x') ), `drift` = "kl", grows too when x' makes a soft
teacher surer of the same class; so does a host's KL( T(x) || S(x') ) when x' makes the student surer than the teacher
is, which is why the student is driven out of the class c as well, at no cost. LOG.md has what either changes.

In the triangle the natural prediction learns from the teacher alone: N would give way to R along d(N, R), and clean
accuracy with it, so it is held still there. R is tied to Q_n: with Q_r nothing was gained, for a teacher's pass more.

The distance d along an edge is one of four measures; a_i and b_i are the two predictions of sample i,
J(a, b) = mean_i a_i b_i^T:

    nce    -log( exp(a_i.b_i / tau) / sum_j exp(a_i.b_j / tau) ), both ways   InfoNCE, a contrast with the other samples
    mi     -I(a; b) / log C,  I = sum J log( J / (J_a J_b) )                  the information between the two classes
    match  KL( J(Q_n, Q_r) || J(N, R) ), KL( J(Q, Q) || J(a, Q) )             the student's mapping equals the teacher's
    kl     KL(N || R), KL(Q || a)                                             no batch statistics: the control

Differences from the paper, of which we have the abstract and not the equations:
  1. the abstract states the two goals (examples nearer to the teacher's boundary by its robust predictions; mutual
     information on the triangle of natural, robust and teacher); the formulas above are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import Refused, require, unknown
from mmard.method import Inner, Method, Outer, said
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


EDGES = {
    "nr": "tri_nat_adv",
    "nq": "tri_nat_teacher",
    "rq": "tri_adv_teacher",
    "rc": "tri_adv_clean",
    "rn": "tri_adv_nat",
}
"""Name of an edge -> name of its term."""
MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Edges]] = {
    "nce": nce,
    "mi": mi,
    "match": match,
    "kl": triangle_kl,
}


def own_class(clean: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher reads in x, (B,), of its logits at x and at x'."""
    return ce(logits, clean.argmax(1))


def label_objective(b: Batch) -> Tensor:
    """What adversarial training climbs, (B,)."""
    return ce(b.S(b.adv), b.y)


ATTACKS = ("host", "label")
DRIFTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "ce": (own_class, "CE(T({}), argmax T(x))"),
    "kl": (kl, "KL(T(x) || T({}))"),
}
"""Name -> how far the teacher has moved, (B,) of its logits at x and at x', and the same as text."""


def guided(
    host: Inner | None, guide: float, own: float, ramp: float, drift: str, teacher_every: int, bounded: bool
) -> Inner:
    """The host's inner objective plus the teacher's drift and the student's.

    Between refreshes, the drift is replaced by its first-order model around the iterate of the last refresh, so that a
    step costs no pass through the teacher; `teacher_every` = 0 has the model around x and no refresh. With `bounded`,
    drift is 1 - exp(-drift): its pull ends where the teacher has moved already, so that a teacher whose boundary is
    everywhere cannot override the host.
    """

    def moved(clean: Tensor, logits: Tensor) -> Tensor:
        far = DRIFTS[drift][0](clean, logits)
        return -torch.expm1(-far) if bounded else far

    def guidance(b: Batch) -> Tensor:
        if teacher_every == 1:
            return moved(b.T(b.x), b.T(b.adv))
        if b.attack_step == 0 or (teacher_every and b.attack_step % teacher_every == 0):
            at = b.adv if teacher_every else b.x
            clean = b.T(b.x) if teacher_every else None
            b.notes["drift"] = (*b.T.slope(at, lambda z: moved(z.detach() if clean is None else clean, z)), at.value)
        value, slope, origin = b.notes["drift"]
        return value + (slope * (b.adv.value - origin.detach())).flatten(1).sum(1)

    def inner(b: Batch) -> Tensor:
        grown = min(1.0, b.progress / ramp) if ramp > 0 else 1.0
        parts: list[tuple[float, Inner]] = [] if host is None else [(1.0, host)]
        if guide > 0:
            # A slope at x brings T(x) along, which hosts read; a host's T(x') has the slope at x' in it.
            parts.insert(0 if teacher_every == 0 else len(parts), (grown * guide, guidance))
        if own > 0:
            parts.append((grown * own, lambda b: own_class(b.T(b.x), b.S(b.adv))))
        return reduce(add, [part(b) if weight == 1 else weight * part(b) for weight, part in parts])

    return inner


def asks_moved(measure: str, edges: tuple[str, ...]) -> bool:
    """Whether the triangle reads T(x'), a pass of the teacher of its own: for rq, and for what `match` compares."""
    return "rq" in edges or (measure == "match" and not {"nr", "rn"}.isdisjoint(edges))


def with_triangle(host: Outer, weight: float, measure: str, edges: tuple[str, ...], tau: float) -> Outer:
    """The host's terms plus edges of the triangle, a third of the weight each."""
    distance, moved = MEASURES[measure], asks_moved(measure, edges)

    def outer(b: Batch) -> Terms:
        n, r, q_n = b.S(b.x), b.S(b.adv), b.T(b.x)
        found = dict(zip(("nr", "nq", "rq"), distance(n, r, q_n, b.T(b.adv) if moved else q_n, tau), strict=True))
        if "rc" in edges:
            found["rc"] = distance(n, r, q_n, q_n, tau)[2]
        if "rn" in edges:
            found["rn"] = distance(n.detach(), r, q_n, b.T(b.adv) if moved else q_n, tau)[0]
        return {**host(b), **{EDGES[edge]: weight / 3 * found[edge] for edge in edges}}

    return outer


def with_label(host: Outer, weight: float) -> Outer:
    """The host's terms plus the labels at x'."""

    def outer(b: Batch) -> Terms:
        return {**host(b), "label_adv": weight * ce(b.S(b.adv), b.y)}

    return outer


def mmard(
    host: Method,
    guide: float = 1.0,
    own: float = 3.0,
    ramp: float = 0.0,
    drift: str = "ce",
    teacher_every: int = 0,
    bounded: bool = False,
    beta: float = 3.0,
    measure: str = "nce",
    edges: str = "rn,nq,rc",
    tau: float = 0.2,
    attack: str = "host",
    label: float = 0.0,
) -> Method:
    """MMARD on top of any method.

    Args:
        host: the method to add to; one without an attack gets the guidance as its attack.
        guide: weight of the teacher's drift in the attack; with 0 the teacher is not differentiated.
        own: weight of the student's drift out of the teacher's class in the attack; with guide = own = 0 the attack is
            the host's.
        ramp: share of the run over which both grow; 0 has them whole from the start.
        drift: "ce", cross-entropy of the teacher's own class, or "kl", divergence from its prediction at x.
        teacher_every: the teacher's input gradient is refreshed at every such step of the attack; 1 is exact, 0 takes
            it once and at x, where "kl" has none.
        bounded: whether the drift is 1 - exp(-drift) instead.
        beta: weight of the triangle, in the host's unit of KL; 0 leaves the host's loss.
        measure: "nce", "mi", "match" or "kl".
        edges: which count: nr from S(x) to S(x'), rn the same with S(x) held still, nq from S(x) to T(x), rq from
            S(x') to T(x'), rc from S(x') to T(x).
        tau: temperature of the measure "nce"; the others have none.
        attack: "host", or "label" for CE(S(x'), y) from a uniform start in place of the host's objective and start.
        label: weight of CE(S(x'), y) in the loss, in the host's unit of KL.

    Raises:
        Refused: for an unknown measure, drift or edge, a negative weight, a temperature that is not positive, or the
            drift "kl" at x.
    """
    wanted = tuple(edge.strip() for edge in edges.split(","))
    for kind, given, known in (
        ("measure", (measure,), MEASURES),
        ("drift", (drift,), DRIFTS),
        ("edges", wanted, EDGES),
        ("attack", (attack,), ATTACKS),
    ):
        for each in given:
            if each not in known:
                raise unknown(f"mmard.{kind}", each, known)
    require(len(set(wanted)) == len(wanted), "mmard.edges", expected="each edge once", got=edges)
    require(tau > 0, "mmard.tau", expected="a positive temperature", got=tau)
    weights = {"guide": guide, "own": own, "ramp": ramp, "teacher_every": teacher_every, "beta": beta, "label": label}
    for name, value in weights.items():
        require(value >= 0, f"mmard.{name}", expected="at least 0", got=value)
    require(
        drift == "ce" or teacher_every > 0,
        "mmard.teacher_every",
        expected="at least 1 with the drift kl, whose gradient at x is zero",
        got=teacher_every,
        mend="take mmard.drift=ce, or say how often it is refreshed",
    )
    if attack == "label":
        inner_says = "CE(S(x'), y)"
        host = replace(
            host, inner=label_objective, says=(inner_says, host.says[1]), start="uniform", inner_couples=False
        )
    inner, outer, grown = host.inner, host.outer, host
    inner_says, outer_says = host.says
    if guide > 0 or own > 0:
        inner = guided(host.inner, guide, own, ramp, drift, teacher_every, bounded)
        pulls = DRIFTS[drift][1].format("x'" if teacher_every else "x")
        pulls = f"1 - exp(-{pulls})" if bounded else pulls
        pulls = pulls if teacher_every else f"<grad {pulls}, x' - x>"
        theirs = 0.0 if host.inner is None else 1.0
        inner_says = said((theirs, inner_says), (guide, pulls), (own, "CE(S(x'), argmax T(x))"))
    without_attack = Refused(
        f"mmard on {host.name}",
        expected="an attack",
        got="a host without one, guide = 0 and own = 0",
        mend="set guide or own > 0, or attack = label",
    )
    if beta > 0:
        if inner is None:
            raise without_attack
        grown = host.with_view("x_adv", "x")
        outer = with_triangle(host.outer, host.scale * beta, measure, wanted, tau)
        corners = "S(x), S(x'), T(x), T(x')" if asks_moved(measure, wanted) else "S(x), S(x'), T(x)"
        outer_says = said((1.0, outer_says), (beta, f"triangle_{measure}({corners})"))
    if label > 0:
        if inner is None:
            raise without_attack
        grown, outer = grown.with_view("x_adv"), with_label(outer, host.scale * label)
        outer_says = said((1.0, outer_says), (label, "CE(S(x'), y)"))
    changed = guide > 0 or own > 0 or beta > 0
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
