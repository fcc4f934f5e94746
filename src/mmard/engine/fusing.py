"""Sums, ReLUs and BatchNorms that follow a twin's convolutions, moved into their calls.

The network is traced with `torch.fx`. One that cannot be, because its forward decides by the values it meets, keeps its
own forward and calls the same layers one by one.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from mmard.engine.folding import NORMS, put
from mmard.engine.packed import Affine, Conv

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
        with warnings.catch_warnings():
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
