"""Data sets: one table of sources, one way to load any of them, batches on the device, augmentation on the device.

    image_set.py    ImageSet and Splits: what everything downstream is given; reading into memory or a mapped file
    batches.py      a training epoch, addressed by (epoch, step); loaders and tensors of a user's own, checked
    augment.py      crop, flip, cutout, IDBH: drawing a view and applying it are separate acts
    fetch.py        files from the Hugging Face hub, verified; the only module that uses the network
    arrays.py cifar.py folders.py listed.py official.py parquet.py
                    the sources: digits, npz, svhn; CIFAR; folder, Tiny ImageNet; csv, tar; MNIST, STL-10; Parquet
    decoding.py     what sources are made of

Pixels are 8-bit until a batch is made; then they are float32 in [0, 1], and never normalised: models do that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmard import seeds
from mmard.data.arrays import read_digits, read_npz, read_svhn
from mmard.data.cifar import CIFAR10, CIFAR100
from mmard.data.folders import read_folder, read_tiny_imagenet
from mmard.data.image_set import (
    ImageSet,
    Part,
    Rows,
    Splits,
    balanced_order,
    checked,
    into_memory,
    onto_disk,
    without_bad,
)
from mmard.data.listed import read_csv, read_webdataset
from mmard.data.official import read_fashion_mnist, read_mnist, read_stl10
from mmard.data.parquet import read_any_parquet
from mmard.errors import Refused, unknown

__all__ = ["DATA", "SPLITS", "ImageSet", "Source", "Splits", "load", "load_split"]

SPLITS = ("test", "val", "train")
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
    "cifar10": Source("CIFAR-10, 10 classes, 32 x 32", CIFAR10, resizes=True),
    "cifar100": Source("CIFAR-100, 100 classes, 32 x 32", CIFAR100, resizes=True),
    "svhn": Source("street view house numbers, 10 classes, 32 x 32", read_svhn, augmentation="crop"),
    "tiny_imagenet": Source("Tiny ImageNet, 200 classes, 64 x 64", read_tiny_imagenet),
    "mnist": Source("MNIST, 10 digits, 28 x 28 grey", read_mnist, augmentation="crop"),
    "fashion_mnist": Source("Fashion-MNIST, 10 classes, 28 x 28 grey", read_fashion_mnist),
    "stl10": Source("STL-10, 10 classes, 96 x 96", read_stl10),
    "parquet": Source("any Hugging Face image set, in Parquet files or saved to disk", read_any_parquet, resizes=True),
    "folder": Source("your images, one folder for each class", read_folder, resizes=True),
    "csv": Source("your images, listed with their classes in a .csv file", read_csv, resizes=True),
    "webdataset": Source("tar shards as WebDataset lays them", read_webdataset, resizes=True),
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
    skip_bad: bool = False,
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
        image_size: bring images to squares of so many pixels: sources of single images scale and cut, "cifar10" and
            "cifar100" average whole blocks.
        skip_bad: leave out images that cannot be read or are of another size; all are decoded once more for it.

    Raises:
        Refused: for an unknown name, absent or damaged files, settings that do not fit, and data that `ImageSet` or
            `Splits` refuses. Nothing is ever fetched here: the message has the command that does.
    """
    found = _read(name, SPLITS, data_dir, val_share, split_seed, limit_train, on_disk, cache_dir, image_size, skip_bad)
    return Splits(**found)


def load_split(name: str, split: str, data_dir: str | Path | None = None, **how: Any) -> ImageSet:
    """One of the splits of `load`, without reading the images of the others.

    Args:
        split: "train", "val" or "test".
        name, data_dir, how: as in `load`.

    Raises:
        Refused: as `load`, or for an unknown split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    said = {**dict.fromkeys(("val_share", "limit_train", "cache_dir", "image_size")), "split_seed": 0, **how}
    found = _read(name, (split,), data_dir, **{"on_disk": False, "skip_bad": False, **said})
    return found[split]


def _read(
    name: str,
    splits: Sequence[str],
    data_dir: str | Path | None,
    val_share: float | None,
    split_seed: int,
    limit_train: int | None,
    on_disk: bool,
    cache_dir: str | Path | None,
    image_size: int | None,
    skip_bad: bool,
) -> dict[str, ImageSet]:
    """Some of the splits of a set, by name; images of the others are not read."""
    root, train, test = _parts(name, data_dir, on_disk, image_size)
    if skip_bad:
        train, test = (checked(without_bad(part)) for part in (train, test))
    order, front, end = _cut(train, val_share, split_seed, limit_train)
    cache = _cache(root, cache_dir)
    rows = {"train": front, "val": end, "test": np.arange(len(test))}
    pixels: dict[str, Tensor] = {}
    trained = [split for split in ("train", "val") if split in splits]
    if trained and on_disk:
        # The whole training part is written, in this order, so that other limits and shares reuse the file.
        x = onto_disk(train, order, cache, f"mmard-{name}-train")
        pixels |= {"train": x[: len(front)], "val": x[len(x) - len(end) :]}
    elif trained:
        x = into_memory(train, np.concatenate([rows[split] for split in trained]))
        pixels |= dict(zip(trained, x.split([len(rows[split]) for split in trained]), strict=True))
    if "test" in splits:
        of_test = rows["test"]
        pixels["test"] = (
            onto_disk(test, of_test, cache, f"mmard-{name}-test") if on_disk else into_memory(test, of_test)
        )
    found = {}
    for split in splits:
        part, own = (test if split == "test" else train), rows[split]
        note = _note(split, part, own, split_seed)
        labels = torch.from_numpy(part.y[own])
        found[split] = ImageSet(pixels[split], labels, part.classes, f"{part.origin}, {note}", on_disk)
    return found


def _parts(name: str, data_dir: str | Path | None, on_disk: bool, image_size: int | None) -> tuple[Path, Part, Part]:
    """Where a set is, and its two parts as the source found them."""
    if name not in DATA:
        raise unknown("data", name, DATA)
    source = DATA[name]
    root = _root(name, source, data_dir, on_disk)
    if image_size is not None and not source.resizes:
        able = ", ".join(key for key, each in DATA.items() if each.resizes)
        raise Refused("image_size", expected=f"one of the sources that resize ({able})", got=name)
    train, test = (checked(part) for part in source.read(root, image_size))
    return root, train, test


def _cut(train: Part, val_share: float | None, split_seed: int, limit_train: int | None) -> tuple[Rows, Rows, Rows]:
    """The stratified order of a training part, its front to train on and its end to validate on."""
    order = balanced_order(train.y, seeds.generator("cpu", split_seed, "split"))
    n_val = _val_count(len(train), val_share)
    n_train = _train_count(len(train) - n_val, limit_train)
    return order, order[:n_train], order[len(order) - n_val :]


def _note(split: str, part: Part, rows: Rows, split_seed: int) -> str:
    if split == "test":
        return f"all {len(part):,} images"
    note = f"{len(rows):,} of {len(part):,} images, split seed {split_seed}"
    return note + (", to validate" if split == "val" else "")


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
