"""Networks by name. Each takes images (B, C, H, W) in [0, 1], of any size, and returns logits (B, num_classes).

- resnet.py, preact_resnet.py, wide_resnet.py, mobilenet.py: the students and teachers of the papers
- swish.py: WideResNet and PreActResNet with SiLU and the layout of DeepMind's checkpoints
- cnn.py: a small network for digits and quick experiments
- foreign.py: a function from somebody else's code, `package.module:function`
- normalised.py: mean and std inside the network
- probe.py: two images through a network, before work begins
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmard import seeds
from mmard.errors import Refused, cause, require, unknown
from mmard.models.cnn import cnn
from mmard.models.mobilenet import mobilenet_v2
from mmard.models.preact_resnet import preact_resnet18, preact_resnet18_nobn, preact_resnet18_raw
from mmard.models.resnet import resnet18, resnet34, resnet50
from mmard.models.wide_resnet import preact_resnet18_swish, wide_resnet, wide_resnet_swish
from mmard.modes import evaluating
from mmard.names import Spelling, network_names, read_network
from mmard.seeds import generator
from mmard.trust import import_code, trust_code

# probe ----------------------------------------------------------------------------------------------------------------
# A few images through a network before any work begins, so that a wrong one is refused at once.


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


# foreign --------------------------------------------------------------------------------------------------------------
# Networks from other people's code, named as `package.module:function`.


def foreign(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
    """Import `package.module` and return `function`, ready to be called.

    It is called with those of `num_classes=...` and `image_shape=...` that its signature names, and with the first
    where it takes any keywords. Importing runs that
    module's code: the name is as trusted as the code that it points to.

    Raises:
        Refused: if the module or the function is not there, the import fails, or the function needs more arguments; and
            from the call, if that fails or returns something else than an `nn.Module`.
    """
    who = f"network {name!r}"
    trust_code(name)  # whoever comes here has typed it, or it was let in
    function = import_code(name, "network")
    if isinstance(function, nn.Module):
        got, mend = f"an object of type {type(function).__name__}", "wrap it in a function that returns a new network"
        raise Refused(who, expected="a function or class that makes a network", got=got, mend=mend)
    offered: dict[str, Any] = {"num_classes": num_classes, "image_shape": image_shape}
    try:
        signature = inspect.signature(function)
    except ValueError:
        # Some callables written in C show no signature.
        signature = inspect.Signature()
    taken = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    named = {p.name for p in taken}
    # A function that takes any keywords hands them on to a constructor, which knows num_classes and no image_shape.
    named |= {"num_classes"} if any(p.kind is p.VAR_KEYWORD for p in taken) else set()
    offered = {name: value for name, value in offered.items() if name in named}
    try:
        signature.bind(**offered)
    except TypeError as error:
        raise Refused(
            who,
            expected="a function that needs nothing but num_classes and image_shape",
            got=str(error),
            mend="wrap it in a function that fills in the rest",
        ) from error

    def make() -> nn.Module:
        try:
            net = function(**offered)
        except Exception as error:
            raise Refused(who, expected="a call that returns a network", got=cause(error)) from error
        if not isinstance(net, nn.Module):
            raise Refused(who, expected="an nn.Module from the call", got=f"a {type(net).__name__}")
        return net

    return make


# normalised -----------------------------------------------------------------------------------------------------------
# Standardising belongs to the network, so that inputs, radii and attacks stay in [0, 1] whatever it was trained on.


class Normalised(nn.Module):
    """A network that standardises its own input: net((x - mean) / std), images (B, C, H, W) in [0, 1] -> logits.

    `mean` and `std` are buffers (C, 1, 1), saved with the weights: a checkpoint cannot be read with another set's
    numbers. The network itself is `net`, and its keys in the state dict begin so. Both numbers are in input units.

    Raises:
        Refused: for lists of different length, a mean outside [0, 1] or a std outside (0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise Refused("Normalised", expected="one mean and one std per channel", got=f"{len(mean)} and {len(std)}")
        _in_input_units("mean", mean, all(0 <= m <= 1 for m in mean), "in [0, 1]")
        _in_input_units("std", std, all(0 < s <= 1 for s in std), "in (0, 1]")
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def _in_input_units(what: str, values: Sequence[float], holds: bool, where: str) -> None:
    if not holds:
        grey = all(math.isfinite(v) for v in values) and max(values) > 1
        raise Refused(
            f"Normalised({what}={tuple(values)})",
            expected=f"every {what} {where}",
            got=str(tuple(values)),
            mend="inputs live in [0, 1]; divide grey levels by 255" if grey else "",
        )


#   init   -------------------------------------------------------------------------------------------------------------


__all__ = ["MODELS", "Family", "Normalised", "build", "check_logits", "names", "parameter_count"]


@dataclass(frozen=True, kw_only=True)
class Family(Spelling):
    """A row of the table: how its networks are spelt, and `make(*numbers, num_classes=..., channels=...)`."""

    make: Callable[..., nn.Module]


MODELS: dict[str, Family] = {
    "cnn": Family(("width",), ("4", "8", "16", "32"), make=cnn),
    "mobilenet_v2": Family(make=mobilenet_v2),
    "preact_resnet18": Family(make=preact_resnet18),
    "preact_resnet18-nobn": Family(form="nobn", make=preact_resnet18_nobn),
    "preact_resnet18-raw": Family(form="raw", make=preact_resnet18_raw),
    "preact_resnet18-swish": Family(form="swish", make=preact_resnet18_swish),
    "resnet18": Family(make=resnet18),
    "resnet34": Family(make=resnet34),
    "resnet50": Family(make=resnet50),
    "wide_resnet": Family(("depth", "width"), ("16-4", "28-10", "34-10", "34-20", "70-16"), make=wide_resnet),
    "wide_resnet-swish": Family(
        ("depth", "width"), ("28-10", "34-10", "34-20", "70-16"), "swish", make=wide_resnet_swish
    ),
}


def names() -> tuple[str, ...]:
    """Every network that can be built, families in their usual sizes.

    >>> names()[:5]
    ('cnn-4', 'cnn-8', 'cnn-16', 'cnn-32', 'mobilenet_v2')
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


# ensemble -------------------------------------------------------------------------------------------------------------
# Several networks that answer as one.


MIXES = ("probs", "logits")


class Ensemble(nn.Module):
    """The average of several networks' answers, as logits.

    Args:
        members: networks from images (B, C, H, W) to logits (B, classes).
        mix: "probs" returns the logarithm of the mean probabilities; "logits" the mean of the centred logits, which is
            the geometric mean of the probabilities.

    Raises:
        Refused: for no members, or an unknown mix.
    """

    def __init__(self, members: Sequence[nn.Module], mix: str = "probs") -> None:
        super().__init__()
        require(len(members) > 0, "ensemble", expected="at least one network", got="none")
        if mix not in MIXES:
            raise unknown("mix", mix, MIXES)
        self.members, self.mix = nn.ModuleList(members), mix

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        log_probs = torch.stack([cast(Tensor, member(x)).log_softmax(1) for member in self.members])
        if self.mix == "logits":
            return log_probs.mean(0)
        return log_probs.logsumexp(0) - math.log(len(self.members))
