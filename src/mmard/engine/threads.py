"""CPU threads where nobody says how many: one, or all of PyTorch's, whichever is faster when the work starts.

PyTorch takes a thread for each core. Where networks are small, or other processes hold a core, they wait for each other
and several are slower than one.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable

import torch
from torch import nn

from mmard.modes import kept_random_state
from mmard.seeds import generator
from mmard.words import plural

PASS_SECONDS = 0.2
"""About how long one pass may take on one thread; the batch is cut to that."""
PASS_SECONDS_OF_ATTACKS = 0.05
"""The same before attacks, which may take no longer than seconds themselves."""
ROUNDS = 5
WORTH = 1.05
"""How many times as fast all threads must be, below which one is taken: it leaves the others to somebody else."""


def faster(pass_of: Callable[[], object], most: int) -> tuple[int, float]:
    """(1 or `most`, how many times as fast `most` threads are as one): the median of passes in alternation."""

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        pass_of()
        return time.perf_counter() - began

    before = torch.get_num_threads()
    try:
        seconds(1), seconds(most)  # the first passes allocate
        ratios = sorted(seconds(1) / seconds(most) for _ in range(ROUNDS))
    finally:
        torch.set_num_threads(before)
    gain = ratios[ROUNDS // 2]
    return (most if gain >= WORTH else 1), gain


def take_threads(
    network: nn.Module, image_shape: tuple[int, ...], batch: int, *, seconds: float = PASS_SECONDS
) -> tuple[int, list[str]]:
    """Set as many threads as suit a network on a CPU; returns them, and lines on the choice and on the machine's load.

    Measured on a forward and a backward of a copy, on as many images of a batch as take so many seconds. Nothing is
    done where there is one thread, or the network has no weights or is on another device.
    """
    most, state = torch.get_num_threads(), next(network.parameters(), None)
    if most == 1 or state is None or state.device.type != "cpu":
        return most, []
    trial = copy.deepcopy(network).train()

    def passes(n: int) -> Callable[[], object]:
        x = torch.rand(n, *image_shape, generator=generator("cpu", 0, "threads")).to(state.dtype)
        return lambda: trial(x).sum().backward()

    with kept_random_state(()), torch.enable_grad():
        n = min(batch, 8)
        began = time.perf_counter()
        passes(n)()
        each = (time.perf_counter() - began) / n
        threads, gain = faster(passes(max(2, min(batch, int(seconds / each)))), most)
    torch.set_num_threads(threads)
    notes = [f"{plural(threads, 'thread')}: {most} are {gain:.2f} times as fast as one; --threads says another number"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        notes.append(f"other processes use the CPU, load {load:.1f} on {plural(cores, 'core')}: all is slower")
    return threads, notes
