"""Processes that PyTorch's launcher started: their rows of a batch, and what they exchange.

One training on several processes computes what one process would compute on the same batch.

Attacks and forwards are what costs, so they are shared out: each process has its rows of the global batch. Predictions
are small, so they are gathered, and every process evaluates the outer formula on the whole batch. A formula that
couples samples, or that remembers something from step to step, therefore means the same on any number of processes,
and what it remembers is equal on all of them. What differs from one process is BatchNorm alone: each process normalises
by its own rows (or by all of them with SyncBatchNorm), and the running statistics are averaged after each step.

Started by PyTorch's own launcher, on one machine or many:

    torchrun --nproc-per-node 8 -m mmard distill ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmard.errors import Refused, require

PATIENCE = timedelta(minutes=10)
"""How long a process waits for one that is alive and silent; one that died is noticed at once."""
RESUME = "see why it died; the run is saved as of its last save, go on with --resume"


class Lost(Refused):
    """Another process of this training or evaluation died or fell silent."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of one training.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local: number of this process on its machine, which is the number of its GPU.
        group: carries the gathering of predictions, beside the one in which gradients are averaged, so that the order
            of either does not depend on the other.
        cpu_group: carries flags and words between CPUs, also where tensors live on GPUs.
        mend: what to do when another process is lost.
    """

    rank: int
    size: int
    local: int
    group: Any
    cpu_group: Any
    mend: str = RESUME

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def shares(self, n: int) -> list[int]:
        """Rows of each process in a batch of n, in the order of the ranks; they differ by one at most.

        >>> Ranks(0, 3, 0, None, None).shares(8)
        [3, 3, 2]
        """
        whole, rest = divmod(n, self.size)
        return [whole + (rank < rest) for rank in range(self.size)]

    def rows(self, n: int) -> slice:
        """This process's rows of a batch of n.

        >>> Ranks(1, 3, 0, None, None).rows(8)
        slice(3, 6, None)
        """
        shares = self.shares(n)
        begin = sum(shares[: self.rank])
        return slice(begin, begin + shares[self.rank])

    def gather(self, local: Tensor, n: int) -> Tensor:
        """The rows of all processes, (n, ...), from this one's (its share of n, ...).

        A gradient that comes back is the sum of what the processes send, each of which has the whole loss: after the
        averaging of gradients over processes it is the gradient of one process with all rows.
        """
        gathered: Callable[[Tensor, Ranks, int], Tensor] = _Gathered.apply
        return gathered(local, self, n)

    def total(self, mine: int) -> int:
        """Rows of a batch of which this process has so many."""
        return int(self.sums(torch.tensor(mine)).item())

    def sums(self, mine: Tensor) -> Tensor:
        """The sum over processes of each number of a tensor on the CPU."""
        total = mine.clone()
        with raising_lost(self):
            dist.all_reduce(total, group=self.cpu_group)
        return total

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over processes into the tensors, in place."""
        tensors = list(tensors)
        with torch.no_grad(), raising_lost(self):
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat, group=self.group)
            for tensor, mean in zip(tensors, flat.div_(self.size).split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def largest(self, *mine: float) -> list[float]:
        """The largest of each number over processes; of flags, whether it is up in any."""
        numbers = torch.tensor(mine, dtype=torch.float64)
        with raising_lost(self):
            dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return numbers.tolist()

    def broadcast(self, what: Any) -> Any:
        """What the first process says, in every process."""
        box = [what]
        with raising_lost(self):
            dist.broadcast_object_list(box, src=0, group=self.cpu_group)
        return box[0]

    def barrier(self) -> None:
        """Until every process is here."""
        self.largest(0.0)

    def refuse_unequal(self, name: str, fact: str) -> None:
        """Refuse to go on unless the processes agree on a fact.

        Raises:
            Refused: naming what the first process has and what this one has.
        """
        found: list[str] = [""] * self.size
        with raising_lost(self):
            dist.all_gather_object(found, fact, group=self.cpu_group)
        if len(set(found)) > 1:
            other = next(rank for rank, text in enumerate(found) if text != found[0])
            raise Refused(
                f"{name} in process {other} of {self.size}",
                expected=f"{found[0]}, as in process 0",
                got=found[other],
                mend="do all machines have the same files and versions?",
            )

    def average_statistics(self, module: nn.Module) -> None:
        """Give every process the mean of their running statistics, so that all evaluate and save one network."""
        moving = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if moving:
            self.average(moving)


def refuse_other_number(where: str, then: int, now: int) -> None:
    """Refuse to go on with a run on another number of processes than it began with."""
    require(
        then == now,
        f"{where} with {now} process{'es' * (now > 1)}",
        expected=f"{then}, as it began with",
        got=now,
        mend="BatchNorm sees other batches on another number, so it would be another run",
    )


class _Gathered(torch.autograd.Function):
    """Rows of all processes, and back the gradient of one's own."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: Ranks, n: int) -> Tensor:
        ctx.ranks, ctx.n = ranks, n
        shares = ranks.shares(n)
        padded = local.new_zeros(max(shares), *local.shape[1:])
        padded[: len(local)] = local
        pieces = [torch.empty_like(padded) for _ in shares]
        with raising_lost(ranks):
            dist.all_gather(pieces, padded, group=ranks.group)
        return torch.cat([piece[:rows] for piece, rows in zip(pieces, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        with raising_lost(ctx.ranks):
            dist.all_reduce(total, group=ctx.ranks.group)
        return total[ctx.ranks.rows(ctx.n)], None, None


@contextmanager
def raising_lost(ranks: Ranks | None) -> Iterator[None]:
    """Say what happened when another process has gone, instead of what the transport says of it.

    Raises:
        Lost: for the transport's errors; any other error passes.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        signs = ("gloo", "NCCL", "nccl", "Connection", "connection", "Timed out", "timeout", "peer", "Broken pipe")
        if ranks is None or isinstance(error, Refused) or not any(sign in text for sign in signs):
            raise
        raise Lost(
            f"process {ranks.rank} of {ranks.size}",
            expected="the other processes at their work",
            got=f"one that has gone ({text.strip().splitlines()[0][:120]})",
            mend=ranks.mend,
        ) from error


def launched() -> bool:
    """Whether PyTorch's launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def joined(on_gpus: bool, mend: str = RESUME) -> Iterator[Ranks | None]:
    """This process among the others, or None if the launcher started only this one or none did.

    Args:
        on_gpus: whether tensors on GPUs are exchanged, by NCCL; between CPUs it is gloo.
        mend: what to do when another process is lost.
    """
    if not launched():
        yield None
        return
    here = not dist.is_initialized()
    if here:
        if on_gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
    group = dist.new_group(timeout=PATIENCE)
    cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE) if on_gpus else group
    try:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        yield Ranks(dist.get_rank(), dist.get_world_size(), local, group, cpu_group, mend)
    finally:
        if here:
            dist.destroy_process_group()
