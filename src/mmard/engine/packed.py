"""The layers of a twin: a frozen convolution with what follows it in one call, and nothing kept but signs of ReLUs.

On a CPU with oneDNN the weights are laid out once for the shapes that they meet instead of at every call, bias, sum and
ReLU happen while the result is still in the cache, and the gradient by the input of a convolution with stride 1 is
itself such a convolution, with its weights transposed and flipped. That uses operators of PyTorch which are not public:
where they are absent, or answer otherwise than the public ones, the public ones are used. Double precision and GPUs
always use the public ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CL = torch.channels_last


@cache
def packable(dtype: torch.dtype) -> bool:
    """Whether the private operators are here and, for this dtype, do what they are thought to do."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    ramp = torch.linspace(-1, 1, 2 * 4 * 5 * 5).view(2, 4, 5, 5).to(dtype)
    weight = torch.linspace(1, -1, 6 * 4 * 9).view(6, 4, 3, 3).to(dtype)
    bias, other = torch.linspace(-0.5, 0.5, 6).to(dtype), torch.full((2, 6, 3, 3), 0.25, dtype=dtype)
    expected = F.relu(F.conv2d(ramp.double(), weight.double(), bias.double(), 2, 1) + 0.25)
    try:
        packed = _pack(weight, (1, 1), (2, 2), (1, 1), 1, ramp.shape)
        got = _run(ramp, packed, bias, other, (1, 1), (2, 2), (1, 1), 1, True)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    return bool((got.double() - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.1))


class Conv(nn.Module):
    """relu(conv(x) + other) with a convolution that is not trained; `other` and the ReLU may be left out.

    Args:
        conv: its weights may be written anew in place; call `renew` after that.
        packed: use oneDNN's own layouts.
        gives: dtype of the result; that of the weights if not given.
    """

    def __init__(self, conv: nn.Conv2d, packed: bool, gives: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv, self.relu = conv, False
        self.gives = gives or conv.weight.dtype
        self.packed = packed and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        self.padding = tuple(int(p) for p in conv.padding) if self.packed else ()
        self._forward: dict[tuple[int, ...], Tensor] = {}
        self._backward: dict[tuple[int, ...], Tensor] = {}

    def renew(self) -> None:
        """Forget what was made of the weights."""
        self._forward.clear()
        self._backward.clear()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) of any floating dtype, other of the shape of the result -> (B, C', H', W')."""
        if x.dtype != self.conv.weight.dtype:
            x = x.to(self.conv.weight.dtype)
        if not self.packed:
            out = self.conv(x)
            if other is not None:
                out = out + other
            return (F.relu(out, inplace=True) if self.relu else out).to(self.gives)
        if torch.is_grad_enabled() and (x.requires_grad or (other is not None and other.requires_grad)):
            result: Tensor = _Fused.apply(x, other, self)  # type: ignore[no-untyped-call]
            return result
        return self.run(x, other)

    def run(self, x: Tensor, other: Tensor | None) -> Tensor:
        """What `forward` returns, without a graph."""
        conv = self.conv
        # Not by batch size: a copy of the weights for each would cost memory, and oneDNN lays out anew where it must.
        shape = tuple(x.shape[1:])
        if shape not in self._forward:
            self._forward[shape] = _pack(conv.weight, conv.padding, conv.stride, conv.dilation, conv.groups, x.shape)
        weight = self._forward[shape]
        x = x.contiguous(memory_format=CL)
        if other is not None:
            other = other.to(x.dtype).contiguous(memory_format=CL)
        out = _run(x, weight, conv.bias, other, conv.padding, conv.stride, conv.dilation, conv.groups, self.relu)
        return out.to(self.gives)

    def slope(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient by an x of this shape, from that by the convolution's result."""
        conv = self.conv
        gradient = gradient.to(conv.weight.dtype).contiguous(memory_format=CL)
        reach = [d * (k - 1) - p for d, k, p in zip(conv.dilation, conv.kernel_size, self.padding, strict=True)]
        if max(conv.stride) > 1 or min(reach) < 0:
            return _public_slope(gradient, shape, conv)
        there = tuple(gradient.shape[1:])
        if there not in self._backward:
            turned = _turned(conv.weight, conv.groups)
            self._backward[there] = _pack(turned, reach, (1, 1), conv.dilation, conv.groups, gradient.shape)
        return _run(gradient, self._backward[there], None, None, reach, (1, 1), conv.dilation, conv.groups, relu=False)


class _Fused(torch.autograd.Function):
    """`Conv.run` with its gradient by x and by what is added; the weights have none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, layer: Conv) -> Tensor:
        out = layer.run(x, other)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.other = None if other is None else other.dtype
        if layer.relu:
            ctx.save_for_backward(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.layer.relu:
            (out,) = ctx.saved_tensors
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        by_x = ctx.layer.slope(gradient, ctx.shape) if ctx.needs_input_grad[0] else None
        return by_x, gradient.to(ctx.other) if ctx.needs_input_grad[1] else None, None


class Affine(nn.Module):
    """relu(norm(x)) with a BatchNorm in eval mode that is not trained and follows no convolution; its own dtype out.

    Args:
        norm: its parameters may be written anew in place; call `renew` after that.
    """

    def __init__(self, norm: nn.Module, relu: bool) -> None:
        super().__init__()
        self.norm, self.relu = norm, relu
        self._line: tuple[Tensor, Tensor] | None = None

    def renew(self) -> None:
        """Forget what was made of the parameters."""
        self._line = None

    def line(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (C, 1, 1) each, in the norm's dtype."""
        if self._line is None:
            norm: Any = self.norm
            scale = (norm.running_var + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight
            shift = -norm.running_mean * scale
            shift = shift if norm.bias is None else shift + norm.bias
            self._line = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
        return self._line

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _FusedAffine.apply(x, self)  # type: ignore[no-untyped-call]
            return result
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """What `forward` returns, without a graph."""
        scale, shift = self.line()
        # In half precision, only the norm itself multiplies in full.
        out: Tensor = torch.addcmul(shift, x, scale) if x.dtype == scale.dtype else self.norm(x)
        return out.relu_() if self.relu else out

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient by x, from that by the affine map's result."""
        scale, _ = self.line()
        if gradient.dtype == scale.dtype:
            return gradient * scale
        flat = scale.flatten()
        zero, one = torch.zeros_like(flat), torch.ones_like(flat)
        return F.batch_norm(gradient, zero, one, flat, None, False, 0.0, 0.0)


class _FusedAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Affine) -> Tensor:
        out = layer.run(x)
        ctx.layer = layer
        if layer.relu:
            ctx.save_for_backward(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.layer.relu:
            (out,) = ctx.saved_tensors
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        return ctx.layer.slope(gradient), None


Numbers = Any
"""Two whole numbers, as `nn.Conv2d` holds them."""


def _pack(
    weight: Tensor, padding: Numbers, stride: Numbers, dilation: Numbers, groups: int, shape: torch.Size
) -> Tensor:
    """The weights in the layout that oneDNN likes best for inputs of this shape; any other shape works too."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(memory_format=CL), list(padding), list(stride), list(dilation), groups, list(shape)
    )
    return packed


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    padding: Numbers,
    stride: Numbers,
    dilation: Numbers,
    groups: int,
    relu: bool,
) -> Tensor:
    where = list(padding), list(stride), list(dilation), groups
    if other is not None and groups > 1:  # PyTorch does not fuse these, and in half precision it fails
        summed = _run(x, weight, bias, None, padding, stride, dilation, groups, relu=False) + other
        return summed.relu_() if relu else summed
    if other is None:
        out = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *where, "relu" if relu else "none", [], "")
    else:
        out = torch.ops.mkldnn._convolution_pointwise(
            x, other, weight, bias, *where, "add", 1.0, "relu" if relu else None, [], None
        )
    result: Tensor = out
    return result


def _turned(weight: Tensor, groups: int) -> Tensor:
    """Weights (C', C / groups, h, w) of the convolution whose result is the gradient by x, (C, C' / groups, h, w)."""
    c_out, c_in, *size = weight.shape
    split = weight.view(groups, c_out // groups, c_in, *size).transpose(1, 2)
    return split.reshape(groups * c_in, c_out // groups, *size).flip(2, 3)


def _public_slope(gradient: Tensor, shape: torch.Size, conv: nn.Conv2d) -> Tensor:
    # oneDNN has no kernel for this gradient of grouped convolutions in half precision, only a reference.
    dtype = torch.float32 if conv.groups > 1 and gradient.dtype == torch.bfloat16 else gradient.dtype
    # Of x only the shape is read; its memory is never touched.
    x = torch.empty(shape, dtype=dtype, device=gradient.device, memory_format=CL)
    by_x: Tensor = torch.ops.aten.convolution_backward(
        gradient.to(dtype),
        x,
        conv.weight.to(dtype),
        None,
        list(conv.stride),
        [int(p) for p in conv.padding],
        list(conv.dilation),
        False,
        [0, 0],
        conv.groups,
        [True, False, False],
    )[0]
    return by_x.to(gradient.dtype)
