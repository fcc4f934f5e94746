"""Your own images: one folder for each class.

    train/<class>/*.png    test/<class>/*.png        two levels: the split is yours (val, valid or validation serve as
                                                     test where there is no test folder)
    <class>/*.png                                    one level: a fifth of each class is set aside as test

With one level the test part is decided by the files' names alone (in each class, those with the smallest SHA-256), not
by a seed: it is the same for everybody who has the folder, and images added later leave most of it in place. PNG, JPEG,
BMP, GIF (first frame), TIFF, PPM and WebP are read; files of other kinds are passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmard.data.decoding import Form, damaged, decode, form_of, missing, places
from mmard.data.image_set import Images, Part, Rows
from mmard.data.parquet import find_parquet, read_parquet
from mmard.errors import Refused

_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".webp"])
_TEST = ("test", "val", "valid", "validation")

Labelled = list[tuple[Path, int]]


def read_folder(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part of the image folders in `data_dir`.

    All images must be of one size, unless `image_size` asks for them to be scaled and cut to a square. They are grey if
    all those looked at first are, otherwise RGB (transparency is dropped).

    Raises:
        Refused: if there are no such folders, a class has no image or is in one split only, or sizes differ.
    """
    places(data_dir, "folder", fetchable=False)
    if (data_dir / "train").is_dir():
        test_dir = next((data_dir / name for name in _TEST if (data_dir / name).is_dir()), None)
        if test_dir is None:
            got = f"only train/ in {data_dir}"
            raise Refused("data 'folder'", expected="test/ beside train/", got=got, mend="make a test/ folder")
        classes = _classes(data_dir / "train")
        strangers = set(_classes(test_dir)) - set(classes)
        if strangers:
            raise Refused(str(test_dir), expected="the classes of train/", got=f"{min(strangers)!r} as well")
        train, test = _images(data_dir / "train", classes), _images(test_dir, classes, may_lack=True)
        words = ("train", "test" if test_dir.name == "test" else f"{test_dir.name} as test")
    else:
        classes = _classes(data_dir)
        train, test = _set_aside(_images(data_dir, classes), data_dir)
        words = ("four fifths as train", "a fifth, by file name, as test")
    if not train or not test:
        raise missing(
            "folder", data_dir, "train/<class>/*.png and test/<class>/*.png, or <class>/*.png", fetchable=False
        )
    stride = max(1, len(train) // 32)
    form = form_of([(str(path), path) for path, _ in train[::stride]], image_size)
    parts = [_part(each, form, classes, f"folder, {word}") for each, word in zip((train, test), words, strict=True)]
    return parts[0], parts[1]


def _classes(root: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _images(root: Path, classes: Sequence[str], may_lack: bool = False) -> Labelled:
    found: Labelled = []
    for label, name in enumerate(classes):
        inside = root / name
        paths = sorted(p for p in inside.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
        if not paths and not may_lack:
            mend = "add some or remove the folder"
            raise Refused(f"class folder {inside}", expected="at least one image", got="none", mend=mend)
        found += [(path, label) for path in paths]
    return found


def _set_aside(images: Labelled, root: Path) -> tuple[Labelled, Labelled]:
    """Train and test: of each class the fifth, rounded and at least one, whose names hash lowest is test."""
    train: Labelled = []
    test: Labelled = []
    for label in sorted({label for _, label in images}):
        mine = [item for item in images if item[1] == label]
        if len(mine) < 2:
            mend = "add more, or sort them into train/ and test/ yourself"
            raise Refused(f"class folder {mine[0][0].parent}", expected="two images or more", got="one", mend=mend)
        mine.sort(key=lambda item: hashlib.sha256(item[0].relative_to(root).as_posix().encode()).digest())
        aside = max(1, round(len(mine) / 5))
        test += sorted(mine[:aside])
        train += sorted(mine[aside:])
    return train, test


def _part(images: Labelled, form: Form, classes: tuple[str, ...], origin: str) -> Part:
    files = tuple(path for path, _ in images)

    def read(rows: Rows) -> Iterator[Images]:
        return decode(((str(files[row]), files[row]) for row in rows), form)

    return Part(np.array([label for _, label in images], np.int64), form.shape, read, files, classes, origin)


# tiny imagenet --------------------------------------------------------------------------------------------------------
# Tiny ImageNet: 200 classes, 64 x 64 colour images, 100,000 to train on and 10,000 to test.
#
# From the course CS231n, Stanford. The labels of its test split were never published, so the official validation split
# is the test set here, as in the papers; validation images are cut from the training split like everywhere else. Read
# from the unpacked `tiny-imagenet-200` folder or from Parquet as on the Hugging Face hub. Classes are WordNet ids in
# alphabetical order. Some images are grey; they are given three equal channels.


_FORM = Form((3, 64, 64))


def read_tiny_imagenet(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part found in `data_dir`.

    Raises:
        Refused: if neither form is there, or a file is absent or damaged.
    """
    del image_size
    for place in places(data_dir, "tiny_imagenet"):
        for root in (place / "tiny-imagenet-200", place):
            if (root / "val" / "val_annotations.txt").is_file():
                return _tree(root)
        found = find_parquet(place)
        if found is not None:
            return read_parquet(found, "tiny_imagenet", shape=_FORM.shape)
    forms = "tiny-imagenet-200/ (unpacked, with val/val_annotations.txt), or train-*.parquet and valid-*.parquet"
    raise missing("tiny_imagenet", data_dir, forms)


def _tree(root: Path) -> tuple[Part, Part]:
    train = root / "train"
    classes = tuple(sorted(path.name for path in train.iterdir() if path.is_dir())) if train.is_dir() else ()
    if not classes:
        raise Refused(str(train), expected="a folder for each class", got="none", mend="unpack the archive again")
    files, labels = [], []
    for label, wnid in enumerate(classes):
        images = sorted((train / wnid / "images").glob("*.JPEG"))
        files += images
        labels += [label] * len(images)
    annotations = root / "val" / "val_annotations.txt"
    test_files, test_labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in classes:
            raise damaged(annotations, "an image and one of the training classes in each line", f"line {number}")
        test_files.append(root / "val" / "images" / fields[0])
        test_labels.append(classes.index(fields[1]))
    origin = "tiny_imagenet, official files, "
    return (
        _tiny_part(files, labels, classes, origin + "train"),
        _tiny_part(test_files, test_labels, classes, origin + "val as test"),
    )


def _tiny_part(files: Sequence[Path], labels: Sequence[int], classes: tuple[str, ...], origin: str) -> Part:
    def read(rows: Rows) -> Iterator[Images]:
        return decode(((str(files[row]), files[row]) for row in rows), _FORM)

    return Part(np.array(labels, np.int64), _FORM.shape, read, tuple(files), classes, origin)
