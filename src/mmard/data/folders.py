"""Sources that are folders of image files: your own, and Tiny ImageNet.

`folder` reads one folder for each class, at one of two levels:

    train/<class>/*.png    test/<class>/*.png        the split is yours. Any case, also training, and testing; where
                                                     there is no test folder, val, valid, validation or dev serve as it
    <class>/*.png                                    a fifth of each class is set aside as test

At one level the test part is decided by the files' names alone (in each class, those with the smallest SHA-256), not by
a seed: it is the same for everybody who has the folder, and images added later leave most of it in place. PNG, JPEG,
BMP, GIF (first frame), TIFF, PPM and WebP are read, links are followed, and EXIF orientation is applied. Files of other
kinds are passed over, and so is what file managers and notebooks leave behind.

`tiny_imagenet` has 200 classes of 64 x 64 colour images, 100,000 to train on and 10,000 to test (course CS231n,
Stanford). The labels of its test split were never published, so the official validation split is the test set here, as
in the papers. Read from the unpacked `tiny-imagenet-200` folder or from Parquet as on the Hugging Face hub. Classes are
WordNet ids in alphabetical order; grey images are given three equal channels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmard.data.decoding import Encoded, Form, damaged, decoded_part, form_of, missing, search_folders
from mmard.data.image_set import Part, Rows
from mmard.data.parquet import find_parquet, read_parquet
from mmard.errors import Refused

IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".webp"])
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
}
"""How folders of a split are called, in any case."""
_LEFT_BEHIND = frozenset(["__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"])
_LOOKED_AT = 4096  # headers from which it is told whether a set is grey; all of a smaller one

Labelled = list[tuple[Path, int]]


def read_folder(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part of the image folders in `data_dir`.

    All images must be of one size, unless `image_size` asks for them to be scaled and cut to a square. They are grey if
    all of them are, otherwise RGB (transparency is dropped); the origin says how many were something else.

    Raises:
        Refused: if there are no such folders, there is one class, a class has no image or is in one split only, folders
            of classes are named as splits are, or sizes differ.
    """
    search_folders(data_dir, "folder", fetchable=False)
    splits = _splits(data_dir)
    if splits:
        train_dir, test_dir, word = splits
        classes = _classes(train_dir)
        strangers = set(_classes(test_dir, least=0)) - set(classes)
        if strangers:
            got = f"{min(strangers)!r} as well"
            raise Refused(str(test_dir), expected=f"the classes of {train_dir.name}/", got=got)
        train, test = _images(train_dir, classes), _images(test_dir, classes, may_lack=True)
        absent = len(classes) - len({label for _, label in test})
        words = ("train", word + (f" (no image of {absent} classes)" if absent and test else ""))
    else:
        classes = _classes(data_dir)
        train, test = set_aside(_images(data_dir, classes), data_dir)
        words = ("four fifths as train", "a fifth, by file name, as test")
    if not train or not test:
        raise _no_folders(data_dir)
    stride = -(-len(train) // _LOOKED_AT)
    form, note = form_of([(str(path), path) for path, _ in train[::stride]], image_size)
    parts = [
        _part(each, form, classes, f"folder, {word}{note}") for each, word in zip((train, test), words, strict=True)
    ]
    return parts[0], parts[1]


def _splits(root: Path) -> tuple[Path, Path, str] | None:
    """The train and the test folder and a word on the latter; None where no folder is named as a split is."""
    folders = _folders(root)
    found = {split: [path for path in folders if path.name.lower() in names] for split, names in SPLIT_NAMES.items()}
    if not any(found.values()):
        return None
    for split, paths in found.items():
        if len(paths) > 1:
            raise Refused(f"data 'folder' in {root}", expected=f"one {split} folder", got=_listed(paths))
    train, test, val = (found[split][0] if found[split] else None for split in ("train", "test", "val"))
    if train is None:
        mend = "name the others train/, or give another name to a class that is called so"
        raise Refused(
            "data 'folder'",
            expected=f"train/ beside {_listed([p for p in (test, val) if p])}/",
            got=_listed(folders),
            mend=mend,
        )
    if test is None and val is None:
        raise Refused(
            "data 'folder'",
            expected="test/ beside train/",
            got=f"only {train.name}/ in {root}",
            mend="make a test/ folder",
        )
    if test is not None:
        return train, test, "test" + (f" ({val.name}/ not read)" if val else "")
    assert val is not None
    return train, val, f"{val.name} as test"


def _listed(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:5])
    return names + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _left_behind(name: str) -> bool:
    """Whether a file manager, an archiver or a notebook made it, and no person."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _left_behind(path.name))


def _classes(root: Path, least: int = 2) -> tuple[str, ...]:
    names = tuple(path.name for path in _folders(root))
    if names and len(names) < least:
        inside = _folders(root / names[0])
        mend = f"point --data-dir at {root / names[0]}" if inside else ""
        raise Refused(
            f"{root}", expected="a folder for each of two classes or more", got=f"one, {names[0]!r}", mend=mend
        )
    return names


def _images(root: Path, classes: Sequence[str], may_lack: bool = False) -> Labelled:
    found: Labelled = []
    for label, name in enumerate(classes):
        paths = sorted(_image_files(root / name))
        if not paths and not may_lack:
            mend = "add some or remove the folder"
            raise Refused(f"class folder {root / name}", expected="at least one image", got="none", mend=mend)
        found += [(path, label) for path in paths]
    return found


def _image_files(root: Path) -> Iterator[Path]:
    """Image files at any depth. Links to folders are followed, each folder once."""
    seen = set()
    for folder, inside, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not _left_behind(name))
        for name in files:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not _left_behind(name):
                yield Path(folder, name)


def _no_folders(data_dir: Path) -> Refused:
    forms = "train/<class>/*.png and test/<class>/*.png, or <class>/*.png"
    return missing("folder", data_dir, forms, fetchable=False)


def set_aside(images: Labelled, root: Path) -> tuple[Labelled, Labelled]:
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

    def encoded(rows: Rows) -> Iterator[Encoded]:
        return ((str(files[row]), files[row]) for row in rows)

    return decoded_part(np.array([label for _, label in images], np.int64), form, encoded, files, classes, origin)


def read_tiny_imagenet(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part found in `data_dir`.

    Raises:
        Refused: if neither form is there, or a file is absent or damaged.
    """
    del image_size
    for place in search_folders(data_dir, "tiny_imagenet"):
        for root in (place / "tiny-imagenet-200", place):
            if (root / "val" / "val_annotations.txt").is_file():
                return _tiny_imagenet_folder(root)
        found = find_parquet(place)
        if found is not None:
            return read_parquet(found, "tiny_imagenet", shape=_TINY.shape)
    forms = "tiny-imagenet-200/ (unpacked, with val/val_annotations.txt), or train-*.parquet and valid-*.parquet"
    raise missing("tiny_imagenet", data_dir, forms)


_TINY = Form((3, 64, 64))


def _tiny_imagenet_folder(root: Path) -> tuple[Part, Part]:
    train = root / "train"
    classes = tuple(path.name for path in _folders(train)) if train.is_dir() else ()
    if not classes:
        raise Refused(str(train), expected="a folder for each class", got="none", mend="unpack the archive again")
    training: Labelled = []
    for label, wnid in enumerate(classes):
        training += [(path, label) for path in sorted((train / wnid / "images").glob("*.JPEG"))]
    annotations = root / "val" / "val_annotations.txt"
    expected = "an image and one of the training classes in each line"
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(annotations, expected, error) from error
    test: Labelled = []
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in classes or Path(fields[0]).name != fields[0]:
            raise damaged(annotations, expected, f"line {number}")
        test.append((root / "val" / "images" / fields[0], classes.index(fields[1])))
    origin = "tiny_imagenet, official files, "
    return _part(training, _TINY, classes, origin + "train"), _part(test, _TINY, classes, origin + "val as test")
