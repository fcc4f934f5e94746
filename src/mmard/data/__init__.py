"""Data sets: one table of sources, one way to load any of them, batches on the device, augmentation on the device.

    image_set.py    ImageSet and Splits: what everything downstream is given
    batches.py      a training epoch, addressed by (epoch, step); evaluation in order
    augment.py      crop, flip, cutout: drawing a view and applying it are separate acts
    part.py         reading images into memory or a memory-mapped file
    fetch.py        files from the Hugging Face hub, verified; the only module that uses the network
    digits.py cifar.py svhn.py tiny_imagenet.py parquet.py folder.py npz.py    one source each
    pickles.py images.py places.py optional.py                                 what sources are made of

Pixels are 8-bit until a batch is made; then they are float32 in [0, 1], and never normalised: models do that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmard import seeds
from mmard.data.cifar import CIFAR10, CIFAR100
from mmard.data.digits import read_digits
from mmard.data.folder import read_folder
from mmard.data.image_set import ImageSet, Splits
from mmard.data.npz import read_npz
from mmard.data.parquet import read_any_parquet
from mmard.data.part import Part, Rows, balanced_order, checked, into_memory, onto_disk
from mmard.data.svhn import read_svhn
from mmard.data.tiny_imagenet import read_tiny_imagenet
from mmard.errors import Refused, unknown

__all__ = ["DATA", "ImageSet", "Source", "Splits", "load"]

_VAL_SHARE, _VAL_MOST = 0.1, 5000


@dataclass(frozen=True)
class Source:
    """One kind of data.

    Args:
        title: one line for people.
        read: the train and the test part in a folder.
        augmentation: the name in `augment.AUGMENTATIONS` that suits it.
        bundled: it comes with the package and needs no folder.
        resizes: its images can be brought to one size on reading.
    """

    title: str
    read: Callable[[Path, int | None], tuple[Part, Part]]
    augmentation: str = "crop-flip"
    bundled: bool = False
    resizes: bool = False


DATA: dict[str, Source] = {
    "digits": Source("UCI handwritten digits, 8 x 8, bundled", read_digits, augmentation="none", bundled=True),
    "cifar10": Source("CIFAR-10, 10 classes, 32 x 32", CIFAR10),
    "cifar100": Source("CIFAR-100, 100 classes, 32 x 32", CIFAR100),
    "svhn": Source("street view house numbers, 10 classes, 32 x 32", read_svhn, augmentation="crop"),
    "tiny_imagenet": Source("Tiny ImageNet, 200 classes, 64 x 64", read_tiny_imagenet),
    "parquet": Source("any Hugging Face image set in Parquet files", read_any_parquet, resizes=True),
    "folder": Source("your images, one folder for each class", read_folder, resizes=True),
    "npz": Source("your arrays: x_train, y_train, x_test, y_test in a .npz file", read_npz),
}


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_share: float | None = None,
    split_seed: int = 0,
    limit_train: int | None = None,
    on_disk: bool = False,
    cache_dir: str | Path | None = None,
    image_size: int | None = None,
) -> Splits:
    """Read a data set and cut a validation part from its training part.

    The test part is the source's own and depends on nothing here. The training part is brought into an order given by
    `split_seed` in which every prefix and suffix is stratified; validation is its end, and training images its front.

    Args:
        name: a key of DATA.
        data_dir: the folder with the files (for "npz" also the file). The bundled digits need none.
        val_share: share of the training part to validate on, in (0, 0.5]; by default a tenth, but 5,000 at most.
        split_seed: decides which images validate.
        limit_train: use only the first so many of the remaining training images, a stratified sample.
        on_disk: for sets larger than memory: decode once into a memory-mapped file and read from there. The images and
            their order are the same.
        cache_dir: where that file goes; by default beside the data.
        image_size: bring images to squares of so many pixels ("parquet" and "folder" only).

    Raises:
        Refused: for an unknown name, absent or damaged files, settings that do not fit, and data that `ImageSet` or
            `Splits` refuses. Nothing is ever fetched here: the message has the command that does.
    """
    if name not in DATA:
        raise unknown("data", name, DATA)
    source = DATA[name]
    root = _root(name, source, data_dir, on_disk)
    if image_size is not None and not source.resizes:
        able = ", ".join(key for key, each in DATA.items() if each.resizes)
        raise Refused("image_size", expected=f"one of the sources that resize ({able})", got=name)
    train, test = (checked(part) for part in source.read(root, image_size))
    order = balanced_order(train.y, seeds.generator("cpu", split_seed, "split"))
    n_val = _val_count(len(train), val_share)
    n_train = _train_count(len(train) - n_val, limit_train)
    front, end, every = order[:n_train], order[len(order) - n_val :], np.arange(len(test))
    if on_disk:
        cache = _cache(root, cache_dir)
        # The whole training part is written, in this order, so that other limits and shares reuse the file.
        x = onto_disk(train, order, cache, f"mmard-{name}-train")
        x_test = onto_disk(test, every, cache, f"mmard-{name}-test")
    else:
        x, x_test = into_memory(train, np.concatenate([front, end])), into_memory(test, every)

    def image_set(x: Tensor, part: Part, rows: Rows, note: str) -> ImageSet:
        return ImageSet(x, torch.from_numpy(part.y[rows]), part.classes, f"{part.origin}, {note}", on_disk)

    of = f"of {len(train):,} images, split seed {split_seed}"
    return Splits(
        train=image_set(x[:n_train], train, front, f"{n_train:,} {of}"),
        val=image_set(x[len(x) - n_val :], train, end, f"{n_val:,} {of}, to validate"),
        test=image_set(x_test, test, every, f"all {len(test):,} images"),
    )


def _root(name: str, source: Source, data_dir: str | Path | None, on_disk: bool) -> Path:
    if source.bundled:
        if on_disk:
            raise Refused("on_disk", expected="a set read from files", got=f"{name!r}, which is small and bundled")
        return Path()
    if data_dir is None:
        raise Refused(f"data {name!r}", expected="the folder that holds it", got="none", mend="pass --data-dir")
    return Path(data_dir).expanduser()


def _cache(root: Path, cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return root if root.is_dir() else root.parent


def _val_count(n: int, val_share: float | None) -> int:
    if val_share is None:
        return max(1, min(round(_VAL_SHARE * n), _VAL_MOST))
    if not 0 < val_share <= 0.5:
        mend = "a checkpoint is chosen on validation images, and never on test images"
        raise Refused("val_share", expected="a share in (0, 0.5]", got=f"{val_share:g}", mend=mend)
    return max(1, round(val_share * n))


def _train_count(available: int, limit: int | None) -> int:
    if limit is None:
        return available
    if not 1 <= limit <= available:
        raise Refused("limit_train", expected=f"1 to {available}, the training images left", got=str(limit))
    return limit
