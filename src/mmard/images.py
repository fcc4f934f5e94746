"""The images that settings name or that are handed over: splits, the batches of a training, what validates it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from mmard.config import Settings
from mmard.data import DATA, ImageSet, Splits, load, load_split
from mmard.data.augment import AUGMENTATIONS, augmentation
from mmard.data.batches import Batches, LoaderBatches, SetBatches
from mmard.data.gathered import gathered
from mmard.errors import Refused, unknown
from mmard.modes import evaluating
from mmard.training.ranks import Ranks

Loaders = tuple[DataLoader[Any], DataLoader[Any]]
"""Training and validation batches of a user's own."""


def load_splits(settings: Settings) -> Splits:
    """The data that the settings name."""
    return load(settings.data, settings.data_dir, **_data_settings(settings))


def load_images(settings: Settings, split: str) -> ImageSet:
    """One split of the data that the settings name; the images of the others are not read."""
    return load_split(settings.data, split, settings.data_dir, **_data_settings(settings))


def _data_settings(settings: Settings) -> dict[str, Any]:
    return {
        "val_share": settings.val_share,
        "split_seed": settings.split_seed,
        "limit_train": settings.limit_train,
        "on_disk": settings.on_disk,
        "image_size": settings.image_size,
    }


def batches_of(
    settings: Settings, data: Splits | Loaders | None, device: torch.device, ranks: Ranks | None
) -> tuple[Batches, ImageSet, Splits | None]:
    """(training batches, validation images, splits); None for splits where loaders were handed over.

    Raises:
        Refused: for data that is not there, or cannot be cut into such batches.
    """
    if isinstance(data, tuple) and len(data) == 2:
        train, val = data
        batches = LoaderBatches(train, device, settings.seed)
        if batches.steps == 0:
            mend = "with drop_last, fewer images than a batch are none"
            raise Refused("training loader", expected="at least one batch", got="none", mend=mend)
        return batches, gathered(val, "validation loader"), None
    if not isinstance(data, Splits | None):
        expected = "a name, Splits, or a tuple of a training and a validation loader"
        raise Refused("data", expected=expected, got=f"a {type(data).__name__}")
    splits = data or load_splits(settings)
    name = settings.augment
    if name == "auto":
        name = DATA[settings.data].augmentation if data is None else "none"
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, ("auto", *AUGMENTATIONS))
    views = augmentation(name, splits.train.image_shape)
    if ranks is not None:
        _refuse_thin(len(splits.train), settings.batch_size, ranks)
        ranks.refuse_unequal("training images", splits.train.fingerprint())
    share = ranks.rows if ranks is not None else None
    cut = SetBatches(splits.train, settings.batch_size, device, settings.seed, views, share=share)
    return cut, splits.val, splits


def with_all_classes(images: ImageSet, student: nn.Module) -> ImageSet:
    """A user's validation loader may lack the last classes; a network of the user's own has an output for them."""
    state = next(student.parameters(), None)
    x = images.x[:2].to("cpu" if state is None else state.device).float() / 255
    with suppress(Exception), evaluating(student), torch.no_grad():  # what is wrong with it is told by its check
        outputs = student(x).shape[1]
        if outputs > images.num_classes:
            return replace(images, classes=tuple(map(str, range(outputs))))
    return images


def _refuse_thin(images: int, batch_size: int, ranks: Ranks) -> None:
    """Refuse a last batch that leaves a process without two images, which BatchNorm needs."""
    rest = images % batch_size
    if 1 < rest < 2 * ranks.size:
        expected = f"a last batch of at least {2 * ranks.size} images, two for each of {ranks.size} processes"
        better = next(b for b in range(batch_size - 1, 1, -1) if images % b == 0 or images % b >= 2 * ranks.size)
        raise Refused("--batch-size", expected=expected, got=f"{rest} of {images}", mend=f"{better} would do")
