"""Modes, frozen weights, statistics and random states: changed inside a block and put back exactly, even on error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients are recorded inside, whatever `torch.no_grad` or `torch.inference_mode` the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode inside; every submodule's own flag restored outside.

    `module.train()` on the way out would be wrong: it wakes BatchNorm layers that a user had put to sleep.
    """
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for m, _ in flags:
            m.training = False
        yield
    finally:
        for m, was_training in flags:
            m.training = was_training


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter collects a gradient inside; inputs still may. One made in inference mode never does."""
    flags = [(p, p.requires_grad) for module in modules for p in module.parameters() if not p.is_inference()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, was in flags:
            p.requires_grad_(was)


@contextmanager
def quiet_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by batch statistics as train mode does, but move no running statistic.

    A plug-in may look at further views of the batch; the statistics that its host collects must not change by it. The
    settings are switched rather than the buffers restored: writing to a buffer before backward trips autograd's version
    check. InstanceNorm updates whatever buffers it has, flag or not, so its momentum is what must go.
    """
    tracking = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    kept = [m.momentum for m in tracking]
    try:
        for m in tracking:
            if isinstance(m, _InstanceNorm):
                m.momentum = 0.0
            else:
                m.track_running_stats = False
        yield
    finally:
        for m, momentum in zip(tracking, kept, strict=True):
            m.momentum, m.track_running_stats = momentum, True


@contextmanager
def kept_state(module: nn.Module | None) -> Iterator[None]:
    """Whatever is written into the buffers of a module inside, they are outside what they were; None is no module.

    Buffers that are replaced inside by others are put back as well.
    """
    kept = [
        (m, name, value, value.clone())
        for m in (module.modules() if module is not None else ())
        for name, value in m._buffers.items()
        if value is not None
    ]
    try:
        yield
    finally:
        for m, name, value, before in kept:
            if m._buffers[name] is not value or not torch.equal(value, before):
                value.copy_(before)
                m._buffers[name] = value


@contextmanager
def kept_random_state(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Whatever is drawn inside, PyTorch's global random states are outside what they were: the CPU's, and those of the
    GPUs that the tensors are on."""
    with torch.random.fork_rng(sorted({t.get_device() for t in tensors if t.is_cuda})):
        yield


def ema_share(decay: float, steps: int) -> float:
    """Weight of the present in an exponential average after so many steps, 1 - decay in the end.

    A young average leans on the present: the decay grows to its value over the first steps.
    """
    return 1 - min(decay, steps / (steps + 10))


@torch.no_grad()
def blend(average: nn.Module, network: nn.Module, share: float) -> None:
    """Move an average of a network's weights and buffers by this share toward the network; whole numbers are copied."""
    # Not by the state dict, which names a shared weight as often as it is used.
    pairs = zip((*average.parameters(), *average.buffers()), (*network.parameters(), *network.buffers()), strict=True)
    for mine, theirs in pairs:
        if mine.is_floating_point():
            mine.lerp_(theirs, share)
        else:
            mine.copy_(theirs)
