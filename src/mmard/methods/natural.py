"""Natural training: labels on clean images. It makes the natural teacher that some methods ask beside the robust one.

Vapnik. "Principles of Risk Minimization for Learning Theory",
NeurIPS 1991.

    loss = CE(S(x), y)

Differences from the paper, which has no code of its own:
  1. none; what is trained so does not withstand attacks.
"""

from __future__ import annotations

from mmard.batch import Batch, Terms
from mmard.method import Method
from mmard.ops import ce


def natural() -> Method:
    """Plain training. It has no parameters."""

    def outer(b: Batch) -> Terms:
        return {"nat": ce(b.S(b.x), b.y)}

    return Method(
        "natural",
        None,
        outer,
        source="Vapnik, NeurIPS 1991",
        says=("none", "CE(S(x), y)"),
        forwards={"S": ("x",)},
        nets=("S",),
    )
