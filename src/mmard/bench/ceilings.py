"""How fast this machine multiplies and copies: what shares are shares of.

Multiplications are measured in a matrix product and in a large convolution, since libraries do not always serve both
alike. The best of some tries counts: a ceiling is what can be had.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmard.bench.timing import Clock
from mmard.engine.twins import has_bf16
from mmard.seeds import generator

TRIES = 7
CHANNELS, SIDE = 640, 8
"""Of the convolution, 3 x 3: the last stage of a WideResNet-34-10."""


def ceilings(device: torch.device, now: Clock, side: int, floats: int, batch: int) -> dict[str, float]:
    """Operations a second of a matrix product ("fp32", "bf16" where hardware has it) and of a convolution ("conv_fp32",
    "conv_bf16"), bytes a second of a "copy".

    A GPU has "tf32" as well, which is what its convolutions of float32 take unless told otherwise. A copy reads and
    writes, so each byte counts twice.

    Args:
        side: of square matrices.
        floats: that are copied.
        batch: images of the convolution.
    """
    draw = generator(device, 0, "ceilings")
    a, b = (torch.rand(side, side, generator=draw, device=device) for _ in range(2))
    x = torch.rand(batch, CHANNELS, SIDE, SIDE, generator=draw, device=device)
    w = torch.rand(CHANNELS, CHANNELS, 3, 3, generator=draw, device=device)
    product, convolution = 2 * side**3, 2 * 9 * CHANNELS**2 * batch * SIDE**2
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "fp32" or has_bf16(device):
            found[name] = product / _best(_product(a.to(dtype), b.to(dtype)), now)
            found[f"conv_{name}"] = convolution / _best(_convolution(x.to(dtype), w.to(dtype)), now)
    if device.type == "cuda":
        kept = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32"] = product / _best(_product(a, b), now)
        torch.backends.cuda.matmul.allow_tf32 = kept
    source = torch.rand(floats, generator=draw, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / _best(lambda: target.copy_(source), now)
    return found


def ceiling_of(found: dict[str, float], precision: str, device: torch.device) -> float:
    """What a step in this precision is held against: the faster of the matrix product and the convolution."""
    names = [precision, f"conv_{precision}"]
    if precision == "fp32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        names.append("tf32")
    return max(found[name] for name in names if name in found)


def _product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b


def _convolution(x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, w, padding=1)


def _best(run: Callable[[], object], now: Clock) -> float:
    run()
    least = float("inf")
    for _ in range(TRIES):
        began = now()
        run()
        least = min(least, now() - began)
    return max(least, 1e-9)
