"""AWP: the loss is descended where the weights make it worst nearby. A plug-in.

Wu, Xia, Wang. "Adversarial Weight Perturbation Helps Robust Generalization",
NeurIPS 2020, arXiv:2004.05884.

    v_l = gamma |w_l| g_l / |g_l|,   g = gradient of the host's loss at (w, x'),  for every weight tensor l
    w   = optimiser( w + v, gradient of the host's loss at (w + v, x') ) - v                       gamma = 0.005

x' is made at w and not made again. A tensor counts as one of weights if it has more than one axis, so neither biases
nor BatchNorm's scales are moved. The optimiser works at w + v: momentum and weight decay see it. The look ahead that
finds v costs one more forward of every view and one backward; it moves no running statistics and no memory of the host.
Terms of plug-ins, before or after this one, are part of the loss in both places. Only the student is moved, not a peer
or a teacher.

Differences from the authors' code (csdongxian/AWP, a7acf5d):
  1. theirs adds v, lets the optimiser work and subtracts v, which leaves rounding behind; ours adds what the optimiser
     did to a copy of w, so that a learning rate of zero leaves w to the bit.
  2. theirs keeps a copy of the network for the look ahead; ours looks ahead in the network itself.
  3. gamma is 0.01 from the start there for labels, and 0.005 after ten epochs for TRADES; ours is the latter for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from mmard.errors import require
from mmard.method import Method


def awp(host: Method, gamma: float = 0.005, begin: float = 0.05) -> Method:
    """Adversarial weight perturbation around any method's loss.

    Args:
        host: the method to add to, with all plug-ins whose terms should count in the perturbation.
        gamma: length of a layer's perturbation relative to the layer; 0 is the host.
        begin: share of the run before it starts, 10 of 200 epochs.

    Raises:
        Refused: for a negative length, or a host whose weights are moved already.
    """
    require(gamma >= 0, "awp.gamma", expected="at least 0", got=gamma)
    require(host.around is None, f"awp on {host.name}", expected="a host at its own weights", got="one that moves them")
    if gamma == 0:
        return replace(host, name=f"{host.name}+awp")

    def around(
        progress: float, weights: Mapping[str, Tensor], gradients: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        if progress <= begin:
            return {}
        g = gradients()
        layers = {name: w for name, w in weights.items() if w.ndim > 1 and name.endswith("weight")}
        return {name: gamma * w.norm() * g[name] / (g[name].norm() + 1e-20) for name, w in layers.items()}

    return replace(
        host,
        name=f"{host.name}+awp",
        around=around,
        source=f"{host.source}; AWP: Wu et al., NeurIPS 2020",
        says=(host.says[0], f"{host.says[1]}, at w + v, |v| = {gamma:g} |w| uphill"),
        couples_batch=True,
    )
