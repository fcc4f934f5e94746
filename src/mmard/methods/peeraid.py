"""PeerAiD: the teacher is a peer that is trained from scratch on the student's adversarial examples.

Jung, Jang, Song, Lee. "PeerAiD: Improving Adversarial Distillation from a Specialized Peer Tutor",
CVPR 2024, arXiv:2403.06668.

    x'      = argmax over the ball of   KL(P(x) || S(x'))                         P in eval mode and constant
    student = label CE(S(x'), y) + guide tau^2 KL(P(x') / tau || S(x') / tau) + self tau^2 KL(S(x) / tau || S(x') / tau)
    peer    = peer_label CE(P(x'), y) + peer_guide peer_tau^2 KL(S(x') / peer_tau || P(x') / peer_tau)
    loss    = student + peer

with label = 0, guide = 1, self = 1, tau = 5, peer_label = 1, peer_guide = 0.1, peer_tau = 1 (CIFAR-10). The target of
each network's loss is constant, but for S(x) in the student's own third term. P(x') is a forward in train mode.

Both networks are trained from scratch, by the same rule and at the same rate. The peer is no robust model: it
withstands the student's attacks and not those made on itself.

Differences from the authors' code (jaewonalive/PeerAiD, cd12e92):
  1. theirs does not detach the student in the peer's loss, so that loss trains the student as well; ours does.
  2. theirs averages KL over batch and classes, so that its coefficients mean other things on other data; ours sums over
     classes, and `scale` = 1 / classes restores it.
  3. theirs runs S(x') twice in train mode; ours once.
  4. theirs keeps an average of the student's weights from the first drop on; say `average` = "swa", as "official" does.
"""

from __future__ import annotations

from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import ce, kl


def peeraid(
    label: float = 0.0,
    guide: float = 1.0,
    own: float = 1.0,
    tau: float = 5.0,
    peer_label: float = 1.0,
    peer_guide: float = 0.1,
    peer_tau: float = 1.0,
    scale: float = 1.0,
) -> Method:
    """Adversarial distillation from a peer.

    Args:
        label: weight of the labels in the student's loss.
        guide: weight of the peer in the student's loss.
        own: weight of the student's clean prediction in its own loss.
        tau: temperature of the student's loss.
        peer_label: weight of the labels in the peer's loss.
        peer_guide: weight of the student in the peer's loss.
        peer_tau: temperature of the peer's loss.
        scale: factor of all KL terms.
    """
    require(tau > 0, "peeraid.tau", expected="a positive temperature", got=tau)
    require(peer_tau > 0, "peeraid.peer_tau", expected="a positive temperature", got=peer_tau)
    require(guide > 0, "peeraid.guide", expected="a positive weight, or nothing is learnt from the peer", got=guide)

    def inner(b: Batch) -> Tensor:
        return kl(b.P(b.x), b.S(b.adv))

    def outer(b: Batch) -> Terms:
        S, P = b.S(b.adv), b.P(b.adv)
        terms = {"peer": scale * guide * tau**2 * kl(P.detach(), S, tau)}
        if own > 0:
            terms["self"] = scale * own * tau**2 * kl(b.S(b.x), S, tau)
        if label > 0:
            terms["label"] = label * ce(S, b.y)
        if peer_label > 0:
            terms["peer_label"] = peer_label * ce(P, b.y)
        if peer_guide > 0:
            terms["peer_student"] = scale * peer_guide * peer_tau**2 * kl(S.detach(), P, peer_tau)
        return terms

    return Method(
        "peeraid",
        inner,
        outer,
        source="Jung et al., CVPR 2024",
        says=(
            "KL(P(x) || S(x'))",
            said(
                (label, "CE(S(x'), y)"),
                (guide, f"tau^2 KL(P(x') || S(x')) at tau {tau:g}"),
                (own, f"tau^2 KL(S(x) || S(x')) at tau {tau:g}"),
                (peer_label, "CE(P(x'), y)"),
                (peer_guide, "KL(S(x') || P(x'))"),
            ),
        ),
        forwards={"S": ("x_adv", "x") if own > 0 else ("x_adv",), "P": ("x_adv",)},
        nets=("S", "P"),
        scale=scale,
    )
