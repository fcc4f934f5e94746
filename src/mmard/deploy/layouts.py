"""From the tensors of other people's checkpoints to a network: how weights lie in them, and of which network they are.

    wrappers       module. of DataParallel, _orig_mod. of torch.compile, model., student., 0. of nn.Sequential ...
    normalisation  mean and std (mu and sigma, new_mean and new_std) in the file, beside a network under such a prefix
                   or without one; they become part of the network
    counters       n_averaged of AveragedModel is dropped, num_batches_tracked may be missing
    copies         a second copy of the same weights, as robustness' attacker. has it, is dropped
    dead weights   sub_block1 of the WideResNet of TRADES, which no forward reads

A checkpoint of another network is refused with the name of the one that it is of, or is nearest to. What keys cannot
tell shows in the clean accuracy alone: normalisation that is not in the file, another activation, another form of a
block. Compare it with the published one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmard.deploy.checkpoints import KEY, same_tensors
from mmard.errors import Refused
from mmard.files import load_into
from mmard.models import MODELS, build
from mmard.models.wrapped import Normalised

WRAPPERS = {
    *("module", "_orig_mod", "model", "net", "network", "backbone", "encoder", "0", "1"),
    *("student", "teacher", "ema", "ema_model", "model_ema", "attacker"),
}
"""Words before the names of a network's own tensors."""
_BOX = r"(?:(?:module|_orig_mod|model|attacker)\.)*(?:(?:normali[sz](?:e|er|ation)|norm|preprocess|0)\.)?(?:new_)?"
_MEAN, _STD = re.compile(_BOX + "(?:mean|mu)"), re.compile(_BOX + "(?:std|sigma)")
DEAD = "sub_block1."
AVERAGED, TRACKED = "n_averaged", "num_batches_tracked"
ROUNDING = 1e-3
"""Difference of mean or std that comes from rounding; those of CIFAR-10 and CIFAR-100 differ by ten times as much."""

Moments = tuple[list[float], list[float]]
"""Mean and std per channel, in input units."""


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
        Refused: if tensors are missing, left over, of another shape or no floating-point numbers; if two sets of
            weights would fit; if normalisation is said twice, or is seen to have been there and is not in the file.
    """
    own, dead = module.state_dict(), (DEAD, *drop)
    prefix = _prefix(tensors, own)
    _refuse_two(tensors, own, prefix, where)
    moments = _moments(tensors, own, prefix, channels)
    if registered:
        _refuse_other_moments(moments, mean, std, where)
    elif moments is not None and (mean is not None or std is not None):
        got = f"mean and std in the file as well: {moments[0]}, {moments[1]}"
        raise Refused(where, expected="normalisation in one place", got=got, mend="leave --mean and --std out")
    elif moments is None and mean is None and std is None:
        _refuse_without_moments(tensors, prefix, where)
    bare = _bare(tensors, own, channels, dead)
    bare |= {name: value for name, value in own.items() if name not in bare and name.endswith(TRACKED)}
    try:
        load_into(module, bare, where)
    except Refused as error:
        raise Refused(
            where, expected=error.expected, got=error.got, mend=layout_mend(tensors, channels, dead)
        ) from None
    if moments is not None and not registered:
        mean, std = moments
    if mean is None and std is None:
        return module
    return Normalised(module, [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std)


def casts(module: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """What to say of weights that were read in another precision than they are saved in; empty where none was.

    >>> casts(torch.nn.Linear(2, 2), {"weight": torch.ones(2, 2).half()})
    'float16 weights, read as float32'
    """
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    other = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point() and t.dtype != own}
    return f"{', '.join(sorted(other))} weights, read as {str(own).removeprefix('torch.')}" if other else ""


def _prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before the names of a network's own tensors: where most of them are found."""

    def fit(prefix: str) -> tuple[int, bool, int]:
        everywhere = all(name.startswith(prefix) for name in tensors)
        return len(_under(tensors, own, prefix)), everywhere, len(prefix) if everywhere else -len(prefix)

    return max(_prefixes(tensors), key=fit)


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Every chain of wrappers' words that a name begins with."""
    found = {"": None}
    for name in tensors:
        prefix = ""
        for word in name.split(".")[:-1]:
            if word not in WRAPPERS:
                break
            prefix += f"{word}."
            found[prefix] = None
    return list(found)


def _under(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The network's own tensors that are found behind a prefix."""
    return {name: tensors[prefix + name] for name in own if prefix + name in tensors}


def _complete(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], but: str) -> Iterator[str]:
    """The other prefixes behind which everything that the network needs is found."""
    needed = [name for name in own if not name.endswith(TRACKED)]
    for prefix in _prefixes(tensors):
        if prefix != but and needed and all(prefix + name in tensors for name in needed):
            yield prefix


def _refuse_two(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str, where: str) -> None:
    """Refuse a file in which another set of weights would fit as well."""
    for other in _complete(tensors, own, prefix):
        if not same_tensors(_under(tensors, own, prefix), _under(tensors, own, other)):
            one, two = (text.rstrip(".") or "names without a prefix" for text in (prefix, other))
            mend = f"say which is meant: FILE{KEY}{(other or prefix).rstrip('.')}"
            raise Refused(where, expected="one set of weights", got=f"{one} and {two}", mend=mend)


def _bare(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], channels: int, dead: tuple[str, ...]
) -> dict[str, Tensor]:
    """A checkpoint without all that is no weight of a network with these own tensors."""
    prefix = _prefix(tensors, own)
    copies = tuple(other for other in _complete(tensors, own, prefix) if not prefix.startswith(other))
    moments = _moments(tensors, own, prefix, channels) is not None
    bare = {}
    for name, value in tensors.items():
        mine = name.removeprefix(prefix)
        belongs = name.startswith(prefix) and mine in own
        known = mine.startswith(dead) or name.split(".")[-1] == AVERAGED or name.startswith(copies)
        if belongs or not (known or (moments and _is_moment(name, value, channels))):
            bare[mine if name.startswith(prefix) else name] = value
    return bare


def _is_moment(name: str, value: Tensor, channels: int) -> bool:
    return value.numel() == channels and bool(_MEAN.fullmatch(name) or _STD.fullmatch(name))


def _moments(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str, channels: int) -> Moments | None:
    """Mean and std, if both are in the file and each has one value only."""
    both = []
    for pattern in (_MEAN, _STD):
        values = [
            value.flatten().tolist()
            for name, value in tensors.items()
            if pattern.fullmatch(name) and name.removeprefix(prefix) not in own and value.numel() == channels
        ]
        both.append(values[0] if values and all(value == values[0] for value in values) else None)
    mean, std = both
    return None if mean is None or std is None else (mean, std)


def _refuse_without_moments(tensors: Mapping[str, Tensor], prefix: str, where: str) -> None:
    """Refuse weights whose layout says that something was done to the input, and not what."""
    got = ""
    if "1" in prefix.split("."):
        got = "the second part of an nn.Sequential, the first of which is not in the file"
    elif any("attacker" in name.split(".")[:-1] for name in tensors):
        got = "a network inside robustness' attacker, without its normalizer"
    if got:
        mend = "if that was normalisation, give --mean and --std; 0,0,0 and 1,1,1 for none"
        raise Refused(where, expected="a network with all it does to its input", got=got, mend=mend)


def _refuse_other_moments(
    found: Moments | None, mean: Sequence[float] | None, std: Sequence[float] | None, where: str
) -> None:
    """Refuse a file whose mean and std are not those that are registered, up to their rounding."""
    if found is None:
        return
    pairs = [*zip(found[0], mean or (), strict=False), *zip(found[1], std or (), strict=False)]
    if mean is None or any(abs(theirs - ours) > ROUNDING for theirs, ours in pairs):
        expected = f"mean {list(mean)} and std {list(std or ())}" if mean is not None else "no mean and std"
        theirs_mean, theirs_std = ([round(v, 4) for v in part] for part in found)
        got = f"mean {theirs_mean} and std {theirs_std} in the file"
        raise Refused(where, expected=expected, got=got, mend="is it the file of another data set?")


NEAR = 0.5
"""Share of tensors, by key and shape, from which another network is worth naming."""
_DEPTH = {
    "wide_resnet": re.compile(r"(?:^|\.)block1\.layer\.(\d+)\.conv1\.weight$"),
    "wide_resnet-swish": re.compile(r"(?:^|\.)layer\.0\.block\.(\d+)\.conv_0\.weight$"),
}
_SIZE = {
    "cnn": ("conv1.weight", 0),
    "convnext": ("stem.0.weight", 0),
    "vit_small": ("patches.weight", 2),
    "vit_tiny": ("patches.weight", 2),
    "wide_resnet": ("bn1.weight", 0),
    "wide_resnet-swish": ("batchnorm.weight", 0),
}
"""Where the number in a family's name stands: the end of a tensor's name, and the axis that has its size."""
_BLOCK = re.compile(r"(?:^|\.)layer[1-4]\.\d+\.conv(\d)\.weight$")
_TORCHVISION = {(2, 16): "resnet18", (2, 32): "resnet34", (3, 48): "resnet50", (3, 99): "resnet101"}
"""By the convolutions of a block, and those of all blocks."""


def alike(tensors: Mapping[str, Tensor], channels: int, dead: tuple[str, ...] = ()) -> tuple[tuple[str, ...], float]:
    """The networks of ours that share most tensors with a checkpoint, and the share: those of one key set share it
    alike. Keys do not tell ReLU from SiLU, nor one form of a shortcut from another."""
    classes = classes_in(tensors)
    in_file = next((int(value.shape[1]) for value in tensors.values() if value.ndim == 4), 3)
    scores: dict[str, float] = {}
    for name in _candidates(tensors):
        with torch.device("meta"):
            own = build(name, num_classes=classes or 2, image_shape=(in_file, 32, 32)).state_dict()
        bare = _bare(tensors, own, channels, dead)
        same = sum(key in bare and bare[key].shape == value.shape for key, value in own.items())
        scores[name] = same / max(1, len(own.keys() | bare.keys()))
    best = max(scores.values(), default=0.0)
    return tuple(name for name, score in scores.items() if score == best and best > 0), best


def layout_mend(tensors: Mapping[str, Tensor], channels: int, dead: tuple[str, ...] = ()) -> str:
    """What to say of a state dict that does not fit where it was put."""
    names, share = alike(tensors, channels, dead)
    spelt = " or ".join(names)
    if share == 1:
        return f"this looks like {spelt}" + (", which no key tells apart" if len(names) > 1 else "")
    theirs = _torchvision(tensors)
    if theirs:
        return theirs
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


def _torchvision(tensors: Mapping[str, Tensor]) -> str:
    """The ResNet of torchvision whose names these are, in words; empty for other names."""
    ends = {".".join(name.split(".")[-2:]): value for name, value in tensors.items()}
    if not any(".downsample.0." in name for name in tensors) or "fc.weight" not in ends:
        return ""
    convolutions = [int(m[1]) for name in tensors if (m := _BLOCK.search(name))]
    name = _TORCHVISION.get((max(convolutions, default=0), len(convolutions)), "a ResNet")
    stem = next((value for key, value in tensors.items() if key.endswith("conv1.weight") and "layer" not in key), None)
    small = stem is not None and tuple(stem.shape[2:]) != (7, 7)
    like = f", with a first convolution of {stem.shape[2]}x{stem.shape[3]}" if stem is not None and small else ""
    mend = (
        "give a function that makes it as package.module:function"
        if like or " " in name
        else (f"give torchvision.models:{name} as the network")
    )
    return f"these are the names of torchvision's {name}{like}: {mend}"


def _candidates(tensors: Mapping[str, Tensor]) -> list[str]:
    """Every network without numbers, and those with numbers in the size that the tensors would have."""
    found = []
    for key, family in MODELS.items():
        if not family.numbers:
            found.append(family.spelt(key))
            continue
        ending, axis = _SIZE[key]
        widths = [int(v.shape[axis]) for k, v in tensors.items() if f".{k}".endswith(f".{ending}") and v.ndim > axis]
        if key not in _DEPTH:
            found += [family.spelt(key, widths[0])] if widths else []
            continue
        deep = [int(m[1]) for k in tensors if (m := _DEPTH[key].search(k))]
        # The last BatchNorm of the whole network is the widest of that name.
        if deep and max(widths, default=0) >= 64:
            found.append(family.spelt(key, 6 * (max(deep) + 1) + 4, max(widths) // 64))
    return found
