"""Two images through a network before any work begins, so that a wrong one is refused at once."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmard.errors import Refused
from mmard.modes import evaluating
from mmard.seeds import generator

# What a network with this many outputs was most likely made for.
CLASSES_OF = {10: "CIFAR-10 or SVHN", 100: "CIFAR-100", 200: "Tiny-ImageNet", 1000: "ImageNet"}


def check_logits(module: nn.Module, image_shape: tuple[int, int, int], num_classes: int, who: str) -> None:
    """Refuse a network that does not map images (B, C, H, W) to logits (B, num_classes).

    Two random images in [0, 1] go through it in eval mode without gradients. Modes, buffers and the global generators
    are afterwards as they were.

    Args:
        who: the network's name in the message, e.g. "Net T".

    Raises:
        Refused: if the network fails on these images, or returns something else than one finite row of `num_classes`
            numbers per image, or returns probabilities.
    """
    state = list(chain(module.parameters(), module.buffers()))
    device = state[0].device if state else torch.device("cpu")
    x = torch.rand(2, *image_shape, generator=generator("cpu", 0, "probe"), device="cpu").to(device)
    buffers = [(b, b.clone()) for b in module.buffers() if not is_lazy(b)]
    try:
        with evaluating(module), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            logits = module(x)
    except Exception as error:
        half = any(p.is_floating_point() and p.dtype != torch.float32 for p in state)
        raise Refused(
            who,
            expected=f"a network for images {(*image_shape,)}",
            got=cause(error),
            mend="images are float32; call .float() on the network" if half else "",
        ) from error
    finally:
        for buffer, before in buffers:
            # Autograd counts every write as a change, so only what moved is written back.
            if not torch.equal(buffer, before):
                buffer.data.copy_(before)
    _judge(logits, num_classes, who)


def _judge(logits: object, num_classes: int, who: str) -> None:
    if not isinstance(logits, Tensor):
        raise Refused(
            who,
            expected=f"logits, a tensor (B, {num_classes})",
            got=f"a {type(logits).__name__}",
            mend="return the logits alone",
        )
    if logits.shape != (2, num_classes):
        raise Refused(who, expected=f"logits (B, {num_classes})", got=str(tuple(logits.shape)), mend=_likely(logits))
    if not logits.isfinite().all():
        raise Refused(who, expected="finite logits", got="NaN or infinity", mend="did its training diverge?")
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all():
        raise Refused(
            who,
            expected="logits",
            got="softmax outputs (rows of non-negative numbers that sum to 1)",
            mend="return the scores before the softmax",
        )


def _likely(logits: Tensor) -> str:
    """The likely reason for a wrong shape, for a probe of two images."""
    if logits.ndim != 2:
        return "flatten it to one row per image" if logits.ndim > 2 else ""
    rows, classes = logits.shape
    if rows != 2:
        return "each image must give one row; does it pool with a window made for another image size?"
    return f"is this network for {CLASSES_OF[classes]}?" if classes in CLASSES_OF else ""


def cause(error: Exception) -> str:
    """What went wrong in somebody else's code, in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
