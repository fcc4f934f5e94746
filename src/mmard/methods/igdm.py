"""IGDM: match the input gradients of student and teacher, by a difference across the attacked image. A plug-in.

Lee, Cho, Kim. "Indirect Gradient Matching for Adversarial Robust Distillation",
ICLR 2025, arXiv:2312.03286.

    loss = host + alpha (e / E) KL( T(x + d) - T(x - d) || S(x + d) - S(x - d) )    d = x' - x, alpha = 1

For networks that are linear around x the difference of logits is 2 J d, so matching it matches gradients along d
without a second derivative. The softmax of a difference does not know its scale: where d vanishes the term vanishes
with it.

Differences from the only public code (HongsinLee/saad, 295121c, igdm.py):
  1. theirs calls the attack with step 8/255 inside a ball of 2/255; here a step above the diameter is refused.
  2. theirs divides the ramp by a literal 200; ours by the number of epochs of the run.
  3. theirs lets S(x - d) move BatchNorm's running statistics; ours does not.
  4. alpha counts in the host's unit of KL (`Method.scale`), so that it means the same on scaled presets.
As there, x - d is not clamped to [0, 1], and alpha is 1 for 10 classes and 10 for 100 and more.
"""

from __future__ import annotations

from dataclasses import replace

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.method import Method, said
from mmard.ops import kl


def igdm(host: Method, alpha: float = 1.0) -> Method:
    """Gradient matching on top of any method that makes adversarial examples.

    Args:
        host: the method to add to.
        alpha: weight at the end of the ramp, in the host's unit of KL; 0 is the host.

    Raises:
        Refused: if the host makes no adversarial examples, or for a negative weight.
    """
    attacked = host.inner is not None
    wants = "a host that makes adversarial examples"
    require(attacked, f"igdm on {host.name}", expected=wants, got="one that makes none")
    require(alpha >= 0, "igdm.alpha", expected="at least 0", got=alpha)
    if alpha == 0:
        return replace(host, name=f"{host.name}+igdm")

    def outer(b: Batch) -> Terms:
        teacher = b.T(b.adv) - b.T(b.x_mirror)
        student = b.S(b.adv) - b.S(b.x_mirror)
        return {**host.outer(b), "igdm": host.scale * alpha * b.progress * kl(teacher, student)}

    return replace(
        host.with_view("x_adv", "x_mirror"),
        name=f"{host.name}+igdm",
        outer=outer,
        source=f"{host.source}; IGDM: Lee et al., ICLR 2025",
        says=(host.says[0], said((1.0, host.says[1]), (alpha, "(e/E) KL(dT || dS), d = across x'"))),
        nets=tuple(dict.fromkeys((*host.nets, "T"))),
    )
