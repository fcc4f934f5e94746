"""Temperature: the robust teacher's logits divided by a temperature, wherever a method reads them. A plug-in.

Guo, Pleiss, Sun, Weinberger. "On Calibration of Modern Neural Networks",
ICML 2017, arXiv:1706.04599, where one number scales a trained network's logits.

    loss, x' = those of the host with T(.) / tau in place of T(.)

The student has no temperature, so that below 1 it learns a sharper teacher. It is a control: what a method gains by
making its student surer of itself can be had from this alone, so that a host is compared with at its best tau.

Differences from the paper's temperature scaling:
  1. theirs is fitted to the likelihood of validation labels; ours is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from mmard.batch import Batch, Net, Point
from mmard.errors import require
from mmard.method import Method


class Tempered(Net):
    """A network whose logits are divided by a temperature; what is remembered stays with the network itself."""

    def __init__(self, net: Net, tau: float) -> None:
        super().__init__(net.module)
        self.net, self.tau = net, tau

    def __call__(self, point: Point) -> Tensor:
        return self.net(point) / self.tau

    def put(self, point: Point, logits: Tensor) -> Point:
        return self.net.put(point, logits * self.tau)

    def known(self, point: Point) -> Tensor | None:
        logits = self.net.known(point)
        return None if logits is None else logits / self.tau

    def slope(self, point: Point, pick: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return self.net.slope(point, lambda logits: pick(logits / self.tau))


def temperature(host: Method, tau: float = 1.0) -> Method:
    """A temperature for the robust teacher of any method.

    Args:
        host: the method to change; plug-ins before this one read the changed teacher, later ones the teacher as it is.
        tau: what the teacher's logits are divided by; 1 is the host.

    Raises:
        Refused: for a temperature that is not positive.
    """
    require(tau > 0, "temperature.tau", expected="a positive temperature", got=tau)
    named = replace(host, name=f"{host.name}+temperature", source=f"{host.source}; temperature: Guo et al., ICML 2017")
    if tau == 1 or "T" not in host.nets:
        return named

    def tempered(b: Batch) -> Batch:
        return replace(b, nets={**b.nets, "T": Tempered(b.T, tau)})

    def inner(b: Batch) -> Tensor:
        assert host.inner is not None
        return host.inner(tempered(b))

    return replace(
        named,
        inner=None if host.inner is None else inner,
        outer=lambda b: host.outer(tempered(b)),
        says=(host.says[0], f"{host.says[1]}, T at temperature {tau:g}"),
    )
