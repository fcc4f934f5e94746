"""A few images through a network before any work begins, so that a wrong one is refused at once."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmard.errors import Refused, cause
from mmard.modes import evaluating
from mmard.seeds import generator

# What a network with this many outputs was most likely made for.
CLASSES_OF = {10: "CIFAR-10 or SVHN", 100: "CIFAR-100", 200: "Tiny-ImageNet", 1000: "ImageNet"}


def check_logits(
    module: nn.Module, image_shape: tuple[int, int, int], num_classes: int | None, who: str, *, trained: bool = False
) -> int:
    """Refuse a network that does not map float32 images (B, C, H, W) to logits (B, num_classes); returns num_classes.

    Random images in [0, 1], two and then one, go through it in eval mode without gradients; two more in train mode if
    it is to be trained. Modes, buffers and the global generators are afterwards as they were.

    Args:
        num_classes: how many it must have; None for as many as it has.
        who: the network's name in the message, e.g. "Net T".
        trained: its weights are to be updated, so it must have some that may be.

    Raises:
        Refused: if the network fails on these images, or returns something else than one finite float32 row of
            `num_classes` numbers per image, or returns probabilities, or has nothing to train.
    """
    state = list(chain(module.parameters(), module.buffers()))
    if any(s.is_inference() for s in state if not is_lazy(s)):
        mend = "make or load it outside, or .clone() its tensors there: gradients cannot pass through them"
        raise Refused(who, expected="a network made outside torch.inference_mode", got="weights made in it", mend=mend)
    logits = _outputs(module, 2, image_shape, who)
    if num_classes is None:
        num_classes = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] > 1 else 2
    _judge(logits, 2, num_classes, who)
    _judge(_outputs(module, 1, image_shape, who), 1, num_classes, who)
    if trained:
        if not any(p.requires_grad for p in module.parameters()):
            got = "all of them frozen" if any(True for _ in module.parameters()) else "none"
            raise Refused(who, expected="weights to train", got=got)
        _judge(_outputs(module, 2, image_shape, who, training=True), 2, num_classes, f"{who} in train mode")
    return num_classes


def _outputs(module: nn.Module, n: int, image_shape: tuple[int, int, int], who: str, training: bool = False) -> object:
    """What a network returns for n random images, without a trace in it."""
    state = list(chain(module.parameters(), module.buffers()))
    device = state[0].device if state else torch.device("cpu")
    x = torch.rand(n, *image_shape, generator=generator("cpu", 0, "probe"), device="cpu").to(device)
    buffers = [(b, b.clone()) for b in module.buffers() if not is_lazy(b)]
    modes = evaluating(module)
    try:
        with modes, torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            if training:
                module.train()
            return module(x)
    except Exception as error:
        half = any(p.is_floating_point() and p.dtype != torch.float32 for p in state)
        batch = {1: " one at a time", 2: ""}[n]
        raise Refused(
            who,
            expected=f"a network for images {(*image_shape,)}{batch}",
            got=cause(error),
            mend="images are float32; call .float() on the network" if half else "",
        ) from error
    finally:
        for buffer, before in buffers:
            # Autograd counts every write as a change, so only what moved is written back.
            if not torch.equal(buffer, before):
                buffer.data.copy_(before)


def _judge(logits: object, n: int, num_classes: int, who: str) -> None:
    if not isinstance(logits, Tensor):
        raise Refused(
            who,
            expected=f"logits, a tensor (B, {num_classes})",
            got=f"a {type(logits).__name__}",
            mend="return the logits alone",
        )
    if logits.shape != (n, num_classes):
        mend = _likely(logits) if n > 1 else "keep the first axis: one image alone must give one row too"
        got = f"{tuple(logits.shape)}" + (" for one image" if n == 1 else "")
        raise Refused(who, expected=f"logits (B, {num_classes})", got=got, mend=mend)
    if logits.dtype != torch.float32:
        mend = "images are float32; call .float() on the network or its output"
        raise Refused(who, expected="float32 logits", got=str(logits.dtype), mend=mend)
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
