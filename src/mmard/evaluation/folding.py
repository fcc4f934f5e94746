"""BatchNorm merged into the convolution before it: the same network in eval mode up to rounding, and faster."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

AGREEMENT = 1e-4  # of the largest logit; rounding in float32 is a tenth of that or less


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of `model`, in eval mode, without those BatchNorms that follow a convolution.

    Which ones do is seen by running the network on x, so it works for any module; the copy is then checked to give the
    same logits on x. The network itself is returned where nothing can be merged, or where the check fails.

    Args:
        model: in eval mode; it is not changed.
        x: a few inputs (B, C, H, W).
    """
    with torch.no_grad():
        pairs = _pairs(model, x)
        if not pairs:
            return model
        expected = model(x)
        try:
            copy = deepcopy(model)
            for conv_name, norm_name in pairs:
                conv, norm = copy.get_submodule(conv_name), copy.get_submodule(norm_name)
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                _put(copy, conv_name, fuse_conv_bn_eval(conv, norm))
                _put(copy, norm_name, nn.Identity())
            got = copy(x)
        except (
            Exception
        ):  # a network that cannot be copied, or that reads its BatchNorms otherwise than by calling them
            return model
    agree = bool((got - expected).abs().max() <= AGREEMENT * expected.abs().max())
    return copy if agree else model


def _pairs(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the BatchNorms that take what they return; each called once."""
    outputs: list[tuple[str, Tensor]] = []
    inputs: list[tuple[str, Tensor]] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda _, __, out, name=name: outputs.append((name, out))))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_hook(lambda _, args, __, name=name: inputs.append((name, args[0]))))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    calls = [name for name, _ in outputs + inputs]
    return [
        (conv, norm)
        for conv, out in outputs
        for norm, taken in inputs
        if out is taken and calls.count(conv) == calls.count(norm) == 1
    ]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
