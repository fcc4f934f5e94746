"""The memory format in which a network is trained: the same numbers in another order, for faster kernels."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mmard.engine.folding import calls
from mmard.engine.packed import CL
from mmard.seeds import generator


def lay_out(network: nn.Module, image_shape: tuple[int, ...]) -> bool:
    """Put a network's weights channels last where that pays, in place; returns whether it was done.

    It pays where convolutions take the time; their sizes decide and no timing does, so it is the same on every start. A
    network that fails so, as one that calls `.view` on feature maps does, is left as it is. State dicts are the same,
    results are up to rounding.
    """
    state = next(network.parameters(), None)
    if state is None or state.dtype != torch.float32:
        return False
    device = state.device
    x = torch.rand(4, *image_shape, generator=generator("cpu", 0, "layout"), device="cpu").to(device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            trial = copy.deepcopy(network)
            if not calls(trial.eval(), x).large:
                return False
            _turn(trial)
            trial.train()(x).sum().backward()
    except Exception:  # somebody's forward, on a layout that it may not have met
        return False
    _turn(network)
    return True


def _turn(network: nn.Module) -> None:
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=CL)
