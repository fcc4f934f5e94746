"""BatchNorm merged into the convolution before it: the same network in eval mode up to rounding, and faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from mmard.modes import evaluating

AGREEMENT = 1e-4
"""Of the largest logit: what a folded network may differ by in float32, where rounding is a tenth of that or less."""

LARGE = 100_000
"""Multiplications per image in the mean convolution, below which calls cost more than what they compute."""

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
"""Kinds of normalisation that are a fixed affine map in eval mode. Subclasses may be anything and are left alone."""


@dataclass
class Calls:
    """What a network called when it was run once, in order, by module name.

    Attributes:
        convs, linears: with every repetition.
        macs: multiplications of all convolutions, for one image.
        pairs: a convolution and the BatchNorm that alone takes what it returns, each called once.
        logits: what the run returned.
    """

    logits: Any
    convs: list[str] = field(default_factory=list)
    linears: list[str] = field(default_factory=list)
    macs: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)

    @property
    def large(self) -> bool:
        """Whether it is its convolutions that take the time."""
        return bool(self.convs) and self.macs >= LARGE * len(self.convs)


class _Uses(TorchFunctionMode):
    """Counts the functions that make a tensor out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, list | tuple) else (result,)
        if any(isinstance(each, Tensor) for each in made):
            self._taken += _tensors((args, kwargs))
        return result

    def count(self, tensor: Tensor) -> int:
        """How many took this one."""
        return sum(taken is tensor for taken in self._taken)


def _tensors(within: Any) -> Iterator[Tensor]:
    if isinstance(within, Tensor):
        yield within
    elif isinstance(within, list | tuple | dict):
        for each in within.values() if isinstance(within, dict) else within:
            yield from _tensors(each)


def calls(model: nn.Module, x: Tensor) -> Calls:
    """Run a network (in the mode that it is in) on x (B, C, H, W) and see which modules it calls.

    Seen by running it, so it holds for any module, whatever its forward is made of.
    """
    outputs: list[tuple[str, Tensor]] = []
    inputs: list[tuple[str, Tensor]] = []
    linears: list[str] = []

    def returned(name: str) -> Callable[..., None]:
        return lambda _, __, out: outputs.append((name, out))

    def taken(name: str) -> Callable[..., None]:
        return lambda _, args, __: inputs.append((name, args[0])) if args else None

    def met(name: str) -> Callable[..., None]:
        return lambda *_: linears.append(name)

    uses = _Uses()
    hooks = []
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(returned(name)))
        elif type(module) is nn.Linear:
            hooks.append(module.register_forward_hook(met(name)))
        elif type(module) in NORMS and module.running_mean is not None:
            hooks.append(module.register_forward_hook(taken(name)))
    try:
        with torch.no_grad(), uses:
            logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    order = [name for name, _ in outputs + inputs]
    pairs = [
        (conv, norm)
        for conv, out in outputs
        for norm, into in inputs
        if out is into and order.count(conv) == order.count(norm) == 1 == uses.count(out)
    ]
    convs: list[tuple[Tensor, Tensor]] = [
        (model.get_submodule(name).get_parameter("weight"), out) for name, out in outputs
    ]
    macs = sum(weight[0].numel() * out[0].numel() for weight, out in convs)
    return Calls(logits, [name for name, _ in outputs], linears, macs, pairs)


def hooked(module: nn.Module) -> bool:
    """Whether calling this module, or one inside it, runs something of a user's beside its forward."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())


def merge(conv: nn.Conv2d, norm: nn.Module, into: nn.Conv2d) -> None:
    """Write into `into` the convolution that does what `conv` and then `norm` do in eval mode, in its own dtype."""
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert into.bias is not None
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        into.weight.copy_(weight)
        into.bias.copy_(bias)


def biased(conv: nn.Conv2d) -> nn.Conv2d:
    """An unfilled convolution of the same kind with a bias, frozen."""
    weight = conv.weight
    with torch.device("meta"):
        made = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            True,
            conv.padding_mode,
            dtype=weight.dtype,
        )
    return made.to_empty(device=weight.device).requires_grad_(False)


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of `model`, in eval mode, without those BatchNorms that follow a convolution.

    Which ones do is seen by running the network on x, so it works for any module; the copy is then checked to give the
    same logits on x. The network itself is returned where nothing can be merged, or where the check fails.

    Args:
        model: in eval mode; it is not changed.
        x: a few inputs (B, C, H, W).
    """
    with evaluating(model), torch.no_grad():
        seen = calls(model, x)
        if not seen.pairs:
            return model
        try:
            copy = deepcopy(model)
            for conv_name, norm_name in seen.pairs:
                conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
                assert isinstance(conv, nn.Conv2d)
                merged = biased(conv)
                merge(conv, norm, merged)
                put(copy, conv_name, merged)
                put(copy, norm_name, nn.Identity())
            got = copy(x)
        except Exception:  # it cannot be copied, or it reads its BatchNorms otherwise than by calling them
            return model
    return copy if agree(got, seen.logits) else model


def agree(got: Tensor, expected: Tensor, within: float = AGREEMENT) -> bool:
    """Whether two sets of logits are the same but for rounding."""
    return bool((got - expected).abs().max() <= within * expected.abs().max())


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of this name, under every name that it has."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, held in parent._modules.items():
            if held is old:
                parent._modules[child] = module
