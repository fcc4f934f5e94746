"""BatchNorm merged into the convolution before it: the same network in eval mode up to rounding, and faster."""

from __future__ import annotations

import io
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from mmard.engine.packed import Affine, Conv
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


SUMS = (operator.add, operator.iadd, torch.add)
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of a twin, like those of PyTorch, are one call each."""
        return isinstance(m, Conv | Head) or super().is_leaf_module(m, module_qualified_name)


class Head(nn.Module):
    """A linear layer that computes in its own dtype whatever it is given."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., features) -> (B, ..., outputs)."""
        out: Tensor = self.linear(x.to(self.linear.weight.dtype))
        return out


def fused(network: nn.Module, x: Tensor, affine: bool) -> nn.Module | None:
    """The same network as a graph of fewer calls, over the same layers; None where it cannot be traced.

    Args:
        network: a twin's, in eval mode, with `Conv` in place of its convolutions. Its layers are changed.
        x: a few inputs (B, C, H, W), to see shapes by.
        affine: whether BatchNorms that are left become `Affine`.
    """
    try:
        # torch.fx prints the traceback of what fails in it, though the failure is ours to take.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(network)
            module = fx.GraphModule(network, graph)
            with torch.no_grad():
                ShapeProp(module).propagate(x)
    except Exception:  # tracing runs a user's forward on stand-ins for tensors: anything may come of that
        return None
    layers = dict(module.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and type(layers[node.target]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if _is_sum(node):
            _into_conv(graph, node, layers)
    for node in list(graph.nodes):
        if _is_relu(node, layers):
            _relu_into(graph, node, layers)
    if affine:
        for name, norm in list(layers.items()):
            if type(norm) in NORMS and any(n.op == "call_module" and n.target == name for n in graph.nodes):
                relu = _relu_after_norm(graph, name, layers)
                put(module, name, Affine(norm, relu))
    _pool_in_full(graph, layers)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return module


def _is_sum(node: fx.Node) -> bool:
    called = (node.op == "call_function" and node.target in SUMS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    return called and len(node.args) == 2 and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)


def _is_relu(node: fx.Node, layers: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(layers[str(node.target)]) is nn.ReLU
    return (node.op == "call_function" and node.target in RELUS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )


def _conv_of(node: Any, layers: Mapping[str, nn.Module]) -> Conv | None:
    """The convolution that this node is the only call of, if nothing else reads its result."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
        return None
    layer = layers[str(node.target)]
    once = sum(n.op == "call_module" and n.target == node.target for n in node.graph.nodes) == 1
    return layer if isinstance(layer, Conv) and once else None


def _into_conv(graph: fx.Graph, node: fx.Node, layers: Mapping[str, nn.Module]) -> None:
    """conv(x) + other as conv(x, other)."""
    for mine, other in ((1, 0), (0, 1)):
        conv_node, added = node.args[mine], node.args[other]
        layer = _conv_of(conv_node, layers)
        if layer is None or layer.relu or not isinstance(conv_node, fx.Node) or not isinstance(added, fx.Node):
            continue
        if added is conv_node or len(conv_node.args) != 1 or conv_node.kwargs:
            continue
        if not _shape(conv_node) or _shape(conv_node) != _shape(added) or _shape(node) != _shape(added):
            continue
        with graph.inserting_before(node):
            both = graph.call_module(str(conv_node.target), (conv_node.args[0], added))
        both.meta = dict(node.meta)
        node.replace_all_uses_with(both)
        graph.erase_node(node)
        graph.erase_node(conv_node)
        return


def _relu_into(graph: fx.Graph, node: fx.Node, layers: Mapping[str, nn.Module]) -> None:
    before = node.args[0] if node.args else None
    layer = _conv_of(before, layers)
    if layer is not None and isinstance(before, fx.Node):
        layer.relu = True
        node.replace_all_uses_with(before)
        graph.erase_node(node)


def _relu_after_norm(graph: fx.Graph, name: str, layers: Mapping[str, nn.Module]) -> bool:
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == name]
    users = list(calls[0].users)
    if len(calls) != 1 or len(users) != 1 or not _is_relu(users[0], layers):
        return False
    users[0].replace_all_uses_with(calls[0])
    graph.erase_node(users[0])
    return True


def _pool_in_full(graph: fx.Graph, layers: Mapping[str, nn.Module]) -> None:
    """Where a half-precision body ends in a pool and a linear layer, the pool sums in the linear layer's dtype."""
    for node in list(graph.nodes):
        if node.op != "call_module" or not isinstance(layers.get(str(node.target)), Head):
            continue
        head = layers[str(node.target)]
        assert isinstance(head, Head)
        at, pool = node.args[0], None
        while isinstance(at, fx.Node) and len(at.users) == 1 and (_is_pool(at, layers) or _only_shapes(at, layers)):
            pool = at if _is_pool(at, layers) else pool
            at = at.args[0] if at.args else None
        if pool is not None:
            with graph.inserting_before(pool):
                full = graph.call_method("to", (pool.args[0], head.linear.weight.dtype))
            pool.args = (full, *pool.args[1:])


def _is_pool(node: fx.Node, layers: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(layers[str(node.target)], nn.AdaptiveAvgPool2d | nn.AvgPool2d)
    return (node.op == "call_function" and node.target in (F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean)) or (
        node.op == "call_method" and node.target == "mean"
    )


def _only_shapes(node: fx.Node, layers: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(layers[str(node.target)], nn.Flatten | nn.Dropout)
    return (node.op == "call_function" and node.target in (torch.flatten, torch.squeeze, F.dropout)) or (
        node.op == "call_method" and node.target in ("flatten", "view", "reshape", "squeeze", "contiguous")
    )


def _shape(node: fx.Node) -> Any:
    meta = node.meta.get("tensor_meta")
    return getattr(meta, "shape", None)
