"""Several processes at one evaluation, which share the batches through its folder (see `journal.py`).

The process that was called spawns the others and takes part. They end when nothing is left to do, when it ends, or when
it dies. One of them that dies costs the batch it was at, which another takes over.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused


@contextmanager
def shared_work(
    processes: int,
    measure: Callable[..., object],
    model: nn.Module,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    settings: Mapping[str, Any],
    folder: Path,
) -> Iterator[None]:
    """So many processes, this one included, at the same call of `measure` inside.

    Threads are divided among them. On CUDA devices they take turns at all of them, unless one of them is alone.

    Args:
        processes: at least 2.
        measure: `suite.measure`, or a function like it that another process can import.
        model, images, specs, budget: as in `measure`.
        settings: its other arguments.
        folder: where verdicts are kept.

    Raises:
        Refused: for a network that cannot be sent to another process.
    """
    threads = torch.get_num_threads()
    each = max(threads // processes, 1)
    state = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
    context = multiprocessing.get_context("spawn")
    others = []
    try:
        sent = copy.deepcopy(model).cpu()
        for k in range(1, processes):
            device = f"cuda:{k % torch.cuda.device_count()}" if state.is_cuda else "cpu"
            work = (measure, sent, images, list(specs), budget, dict(settings), folder, device, each, os.getpid())
            other = context.Process(target=_take_part, args=work, daemon=True)
            other.start()
            others.append(other)
    except (TypeError, AttributeError, RuntimeError) as error:
        for other in others:
            other.terminate()
        raise Refused(
            f"{processes} processes",
            expected="a network that can be copied and sent to another process",
            got=f"{type(model).__name__}: {error}",
            mend="use one process, or type the same command in several terminals",
        ) from error
    try:
        torch.set_num_threads(each)
        yield
        for other in others:
            other.join()
    finally:
        torch.set_num_threads(threads)
        for other in others:
            other.terminate()


def _take_part(
    measure: Callable[..., object],
    model: nn.Module,
    images: ImageSet,
    specs: list[str],
    budget: Budget,
    settings: dict[str, Any],
    folder: Path,
    device: str,
    threads: int,
    parent: int,
) -> None:
    """What a spawned process does."""

    def told(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    torch.set_num_threads(threads)
    try:
        measure(model.to(device), images, specs, budget, **settings, folder=folder, progress=told)
    except (Refused, KeyboardInterrupt):
        return  # the first process meets the same and says it
