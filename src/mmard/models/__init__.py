"""Networks by name. Each takes images (B, C, H, W) in [0, 1], of any size, and returns logits (B, num_classes).

- resnet.py, preact_resnet.py, wide_resnet.py, mobilenet.py: the students and teachers of the papers
- mobilenet_v3.py, convnext.py, vit.py: later ones, for students of other kinds
- swish.py: WideResNet and PreActResNet with SiLU and the layout of DeepMind's checkpoints
- cnn.py: a small network for digits and quick experiments
- foreign.py: a function from somebody else's code, `package.module:function`
- wrapped.py: mean and std inside the network; several networks as one
- probe.py: two images through a network, before work begins
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from mmard import seeds
from mmard.errors import Refused
from mmard.models.cnn import cnn
from mmard.models.convnext import convnext
from mmard.models.foreign import foreign
from mmard.models.mobilenet import mobilenet_v2
from mmard.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from mmard.models.preact_resnet import preact_resnet18, preact_resnet18_nobn, preact_resnet18_raw
from mmard.models.probe import check_logits
from mmard.models.resnet import resnet18, resnet34, resnet50
from mmard.models.swish import preact_resnet18_swish, wide_resnet_swish
from mmard.models.vit import vit_small, vit_tiny
from mmard.models.wide_resnet import wide_resnet
from mmard.models.wrapped import Normalised
from mmard.names import Spelling, network_names, read_network

__all__ = ["MODELS", "Family", "Normalised", "build", "check_logits", "names", "parameter_count"]


@dataclass(frozen=True, kw_only=True)
class Family(Spelling):
    """A row of the table: how its networks are spelt, and `make(*numbers, num_classes=..., channels=...)`."""

    make: Callable[..., nn.Module]


MODELS: dict[str, Family] = {
    "cnn": Family(("width",), ("4", "8", "16", "32"), make=cnn),
    "convnext": Family(("width",), ("40", "64", "96"), make=convnext),
    "mobilenet_v2": Family(make=mobilenet_v2),
    "mobilenet_v3_large": Family(make=mobilenet_v3_large),
    "mobilenet_v3_small": Family(make=mobilenet_v3_small),
    "preact_resnet18": Family(make=preact_resnet18),
    "preact_resnet18-nobn": Family(form="nobn", make=preact_resnet18_nobn),
    "preact_resnet18-raw": Family(form="raw", make=preact_resnet18_raw),
    "preact_resnet18-swish": Family(form="swish", make=preact_resnet18_swish),
    "resnet18": Family(make=resnet18),
    "resnet34": Family(make=resnet34),
    "resnet50": Family(make=resnet50),
    "vit_small": Family(("patch",), ("4", "8"), make=vit_small),
    "vit_tiny": Family(("patch",), ("4", "8"), make=vit_tiny),
    "wide_resnet": Family(("depth", "width"), ("16-4", "28-10", "34-10", "34-20", "70-16"), make=wide_resnet),
    "wide_resnet-swish": Family(
        ("depth", "width"), ("28-10", "34-10", "34-20", "70-16"), "swish", make=wide_resnet_swish
    ),
}


def names() -> tuple[str, ...]:
    """Every network that can be built, families in their usual sizes.

    >>> names()[:5]
    ('cnn-4', 'cnn-8', 'cnn-16', 'cnn-32', 'convnext-40')
    """
    return network_names(MODELS)


def build(
    name: str,
    *,
    num_classes: int,
    image_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """A new network with random weights.

    >>> net = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0)
    >>> net(torch.rand(3, 1, 8, 8)).shape
    torch.Size([3, 10])

    Args:
        name: one of `names()`, another size of a family (`cnn-12`, `wide_resnet-40-2`), or `package.module:function`.
            Case does not matter, nor whether words are joined by "-" or "_".
        image_shape: (C, H, W).
        mean, std: per channel, in input units. Given either, the network is wrapped in `Normalised` and standardises
            its own input; without both it reads [0, 1] as it is.
        seed: draws the weights on the CPU from this seed alone and leaves the global generator as it was. Without a
            seed they come from the global generator, as in any PyTorch code.

    Raises:
        Refused: for an unknown name or size, a shape that is not (C, H, W), fewer than two classes, or a mean and std
            that do not fit.
    """
    shape = _image_shape(name, image_shape)
    if num_classes < 2:
        raise Refused(f"network {name!r}", expected="at least 2 classes", got=str(num_classes))
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != shape[0]:
            raise Refused(f"network {name!r}", expected=f"{shape[0]} numbers as {what}", got=str(len(values)))
    # Before the seed is set: importing somebody else's module may draw random numbers, and does so only once.
    make = foreign(name, num_classes, shape) if ":" in name else _ours(name, num_classes, shape[0])
    with _drawing_from(seed):
        net = make()
        if ":" in name:
            check_logits(net, shape, num_classes, f"network {name!r}")
        if mean is None and std is None:
            return net
        return Normalised(net, [0.0] * shape[0] if mean is None else mean, [1.0] * shape[0] if std is None else std)


def parameter_count(module: nn.Module) -> int:
    """Number of weights, shared ones once; buffers such as running statistics are not counted."""
    return sum(p.numel() for p in module.parameters())


@contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would seed the accelerators as well.
        torch.default_generator.manual_seed(seeds.derive(seed, "init"))
        yield


def _image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or any(n < 1 for n in shape):
        raise Refused(f"network {name!r}", expected="an image shape (C, H, W)", got=str(tuple(shape)))
    c, h, w = shape
    if w in (1, 3) and min(c, h) > w:
        mend = f"channels come first: did you mean {(w, c, h)}?"
        raise Refused(f"network {name!r}", expected="an image shape (C, H, W)", got=str((c, h, w)), mend=mend)
    return c, h, w


def _ours(name: str, num_classes: int, channels: int) -> Callable[[], nn.Module]:
    """The row of the table that a name means, ready to be called."""
    key, numbers = read_network(name, MODELS)
    return partial(MODELS[key].make, *numbers, num_classes=num_classes, channels=channels)
