"""Which network of ours a state dict is of, told by its keys and shapes.

Keys do not tell everything: ReLU from SiLU, one form of a shortcut from another, or what the input was normalised with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mmard.models import MODELS, build

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


def mend(tensors: Mapping[str, Tensor], bare: Bare) -> str:
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
