"""The forwards of a network in a step: as one call, over all processes, with statistics of all rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmard.batch import Net, Point
from mmard.errors import Refused
from mmard.modes import quiet_statistics
from mmard.training.ranks import Ranks


class Everywhere(Net):
    """A network as the outer formula sees it on several processes: at a point, the logits of the rows of all."""

    def __init__(self, here: Net, ranks: Ranks, n: int) -> None:
        super().__init__(here.module, here.sealed)
        self.here, self.ranks, self.n = here, ranks, n

    def __call__(self, point: Point) -> Tensor:
        """Logits (n, classes)."""
        if point not in self._seen:
            self._seen[point] = self.ranks.gathered(self.here(point), self.n)
        return self._seen[point]

    def slope(self, point: Point, pick: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """As in `Net`, for all rows; every process computes it for all, since `pick` may look at any row."""
        return self.here.slope(Point(point.name, self.ranks.gathered(point.value, self.n)), pick)


class Forwards(nn.Module):
    """All forwards of a trained network in a step as one call, as PyTorch's engine asks for it.

    Two calls before one backward would fail: the second changes BatchNorm's buffers, which the first one's backward
    reads.

    Args:
        module: the network.
        autocast: make its forwards in bfloat16 by `torch.autocast`.
    """

    def __init__(self, module: nn.Module, autocast: bool = False) -> None:
        super().__init__()
        self.module, self.autocast = module, autocast

    def forward(self, inputs: Sequence[Tensor], quiet: Sequence[bool]) -> list[Tensor]:
        """Logits (B, C) at each of the inputs (B, C, H, W), in order; the quiet ones move no running statistics."""
        logits = []
        # One context for all of them, for it keeps the weights that it has cast.
        with torch.autocast(inputs[0].device.type, torch.bfloat16) if self.autocast else nullcontext():
            for x, still in zip(inputs, quiet, strict=True):
                with quiet_statistics(self.module) if still else nullcontext():
                    logits.append(self.module(x).to(x.dtype))
        return logits


def wrapped(forwards: Forwards, ranks: Ranks) -> DistributedDataParallel:
    """The forwards of a network whose gradients are averaged over processes as they come.

    Buffers are not broadcast: `Ranks.average_statistics` keeps them equal.
    """
    parameter = next(forwards.parameters())
    where = [parameter.device.index] if parameter.is_cuda else None
    known = inspect.signature(DistributedDataParallel).parameters
    # Newer versions of PyTorch call it by the second name and warn of the first.
    still: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(forwards, device_ids=where, **still)


def synchronised(module: nn.Module) -> nn.Module:
    """The network with SyncBatchNorm, which normalises by the rows of all processes. In place where it can.

    Raises:
        Refused: on a CPU, where PyTorch has none.
    """
    if not next(module.parameters()).is_cuda:
        mend = "leave --sync-bn out: each process then normalises by its own rows"
        raise Refused("--sync-bn", expected="GPUs", got="a CPU", mend=mend)
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)
