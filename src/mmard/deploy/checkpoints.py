"""Checkpoints of other people: how they lay out the weights of a network that is known by name here.

    containers     {"state_dict": ...} and others, looked through by `weights.open_weights`
    wrappers       module. of DataParallel, _orig_mod. of torch.compile, model., net., network., 0. of nn.Sequential
    normalisation  mean and std (mu and sigma) in the file, beside a network under model., net., 1. or without a prefix;
                   they become part of the network
    dead weights   sub_block1 of the WideResNet of TRADES, which no forward reads

A checkpoint of another network is refused with the name of the one that it is of, or is nearest to (lookalikes.py).

What keys cannot tell is refused where it can be seen, and else shows in the clean accuracy: normalisation that is not
in the file, another activation, another form of a block. Compare it with the published one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmard.errors import Refused
from mmard.files import load_into
from mmard.models import MODELS, Normalised, build

# lookalikes -----------------------------------------------------------------------------------------------------------
# Which network of ours a state dict is of, told by its keys and shapes.
#
# Keys do not tell everything: ReLU from SiLU, one form of a shortcut from another, or what the input was normalised
# with.


Shapes = dict[str, tuple[int, ...]]
Bare = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A checkpoint's tensors without what does not belong to a network with these own ones."""

NEAR = 0.5
"""Share of tensors, by key and shape, from which another network is worth naming."""

_DEPTH = {
    "wide_resnet": re.compile(r"(?:^|\.)block1\.layer\.(\d+)\.conv1\.weight$"),
    "wide_resnet-swish": re.compile(r"(?:^|\.)layer\.0\.block\.(\d+)\.conv_0\.weight$"),
}
_WIDTH = {"wide_resnet": "bn1.weight", "wide_resnet-swish": "batchnorm.weight", "cnn": "conv1.weight"}


def alike(tensors: Mapping[str, Tensor], bare: Bare) -> tuple[tuple[str, ...], float]:
    """The networks that share most tensors with a state dict, and the share: those of one key set share it alike.

    Args:
        tensors: a checkpoint, with prefixes and statistics as it has them.
        bare: takes off what a network with the given own tensors would not have.
    """
    classes, channels = classes_in(tensors), _channels(tensors)
    scores: dict[str, float] = {}
    for name in _candidates(tensors):
        with torch.device("meta"):
            own = build(name, num_classes=classes or 2, image_shape=(channels or 3, 32, 32)).state_dict()
        scores[name] = _shared(_shapes(own), _shapes(bare(tensors, own)))
    best = max(scores.values(), default=0.0)
    return tuple(name for name, score in scores.items() if score == best and best > 0), best


def layout_mend(tensors: Mapping[str, Tensor], bare: Bare) -> str:
    """What to say of a state dict that does not fit where it was put."""
    names, share = alike(tensors, bare)
    spelt = " or ".join(names)
    if share == 1:
        return f"this looks like {spelt}" + (", which no key tells apart" if len(names) > 1 else "")
    if share >= NEAR:
        return f"the nearest is {spelt}, which has {share:.0%} of these tensors"
    return "is it another architecture?"


def classes_in(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the last matrix, which is the classifier; None without one.

    >>> classes_in({"conv.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(10, 4)})
    10
    """
    matrices = [value for value in tensors.values() if value.ndim == 2]
    return int(matrices[-1].shape[0]) if matrices else None


def _channels(tensors: Mapping[str, Tensor]) -> int | None:
    return next((int(value.shape[1]) for value in tensors.values() if value.ndim == 4), None)


def _candidates(tensors: Mapping[str, Tensor]) -> list[str]:
    """Every network without numbers, and those with numbers in the size that the tensors would have."""
    found = []
    for key, family in MODELS.items():
        if not family.numbers:
            found.append(family.spelt(key))
            continue
        widths = [int(v.shape[0]) for k, v in tensors.items() if k.split(".")[-2:] == _WIDTH[key].split(".")]
        if key not in _DEPTH:
            found += [family.spelt(key, widths[0])] if widths else []
            continue
        deep = [int(m[1]) for k in tensors if (m := _DEPTH[key].search(k))]
        # The last BatchNorm of the whole network is the widest of that name.
        if deep and max(widths, default=0) >= 64:
            found.append(family.spelt(key, 6 * (max(deep) + 1) + 4, max(widths) // 64))
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _shared(own: Shapes, theirs: Shapes) -> float:
    """Tensors of the same name and shape, as a share of all names."""
    return sum(theirs.get(name) == shape for name, shape in own.items()) / max(1, len(own.keys() | theirs.keys()))


# checkpoints ----------------------------------------------------------------------------------------------------------


WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "0.", "1.")
_BOX = r"(?:(?:module|_orig_mod|model)\.)*(?:(?:normali[sz](?:e|er|ation)|norm|preprocess|0)\.)?"
_MEAN, _STD = re.compile(_BOX + "(?:mean|mu)"), re.compile(_BOX + "(?:std|sigma)")
DEAD = "sub_block1."
ROUNDING = 1e-3
"""Difference of mean or std that comes from rounding; those of CIFAR-10 and CIFAR-100 differ by ten times as much."""


def load_foreign(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    channels: int,
    where: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    registered: bool = False,
    drop: Sequence[str] = (),
) -> nn.Module:
    """Put a checkpoint's weights into a network, and the normalisation that it was trained with around it.

    Args:
        module: the bare network.
        tensors: the checkpoint, out of its container.
        channels: of the images.
        where: how messages call the checkpoint.
        mean, std: per channel, in input units, for a checkpoint that has them outside. Not both here and in the file.
        registered: mean and std are known of this checkpoint, None for none; where the file has its own they must
            agree.
        drop: beginnings of keys that belong to no forward, beside those that are known here.

    Returns:
        The network, images in [0, 1] to logits; `Normalised` where the file or the caller says with what.

    Raises:
        Refused: if tensors are missing, left over, or of another shape; if normalisation is said twice, or is seen to
            have been there and is not in the file.
    """
    own = module.state_dict()
    found_mean, found_std, rest = _statistics(tensors, own, channels)
    normalised = found_mean is not None and found_std is not None
    if registered:
        _refuse_other_statistics((found_mean, found_std) if normalised else None, mean, std, where)
        normalised = False
    if normalised and (mean is not None or std is not None):
        got = f"mean and std in the file as well: {found_mean}, {found_std}"
        raise Refused(where, expected="normalisation in one place", got=got, mend="leave --mean and --std out")
    bare, taken_off = _unwrapped(rest, own)
    if "1." in taken_off and not registered and not normalised and mean is None and std is None:
        got = "the second part of an nn.Sequential, the first of which is not in the file"
        mend = "if that was normalisation, give --mean and --std; 0,0,0 and 1,1,1 for none"
        raise Refused(where, expected="a network with all it does to its input", got=got, mend=mend)
    dead = (DEAD, *drop)
    alive = {name: value for name, value in bare.items() if not name.startswith(dead) or name in own}
    try:
        load_into(module, alive, where)
    except Refused as error:
        known = layout_mend(tensors, lambda theirs, own: _bare(theirs, own, channels, dead))
        raise Refused(where, expected=error.expected, got=error.got, mend=known) from None
    mean, std = (found_mean, found_std) if normalised else (mean, std)
    if mean is None and std is None:
        return module
    return Normalised(module, [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std)


def _bare(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], channels: int, dead: tuple[str, ...]
) -> Mapping[str, Tensor]:
    """A checkpoint without all that is no weight of a network with these own tensors."""
    bare, _ = _unwrapped(_statistics(tensors, own, channels)[2], own)
    return {name: value for name, value in bare.items() if not name.startswith(dead) or name in own}


def _refuse_other_statistics(
    found: tuple[list[float] | None, list[float] | None] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    where: str,
) -> None:
    """Refuse a file whose mean and std are not those that are registered, up to their rounding."""
    if found is None:
        return
    pairs = [*zip(found[0] or (), mean or (), strict=False), *zip(found[1] or (), std or (), strict=False)]
    if mean is None or any(abs(theirs - ours) > ROUNDING for theirs, ours in pairs):
        expected = f"mean {list(mean)} and std {list(std or ())}" if mean is not None else "no mean and std"
        theirs_mean, theirs_std = ([round(v, 4) for v in part or ()] for part in found)
        got = f"mean {theirs_mean} and std {theirs_std} in the file"
        raise Refused(where, expected=expected, got=got, mend="is it the file of another data set?")


def _statistics(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], channels: int
) -> tuple[list[float] | None, list[float] | None, dict[str, Tensor]]:
    """Mean and std if both are in the file, and the tensors without them."""
    both = []
    for pattern in (_MEAN, _STD):
        names = [
            name
            for name, value in tensors.items()
            if pattern.fullmatch(name) and name not in own and value.numel() == channels
        ]
        both.append(names[0] if len(names) == 1 else None)
    mean, std = both
    if mean is None or std is None:
        return None, None, dict(tensors)
    rest = {name: value for name, value in tensors.items() if name not in (mean, std)}
    return tensors[mean].flatten().tolist(), tensors[std].flatten().tolist(), rest


def _unwrapped(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """Without the prefixes of wrappers, as long as no name is lost that the network itself has; and those prefixes."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            bare = {name.removeprefix(prefix): value for name, value in tensors.items()}
            if len(own.keys() & bare.keys()) >= len(own.keys() & tensors.keys()):
                inner, more = _unwrapped(bare, own)
                return inner, [prefix, *more]
    return tensors, []
