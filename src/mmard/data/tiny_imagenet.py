"""Tiny ImageNet: 200 classes, 64 x 64 colour images, 100,000 to train on and 10,000 to test.

From the course CS231n, Stanford. The labels of its test split were never published, so the official validation split
is the test set here, as in the papers; validation images are cut from the training split like everywhere else. Read
from the unpacked `tiny-imagenet-200` folder or from Parquet as on the Hugging Face hub. Classes are WordNet ids in
alphabetical order. Some images are grey; they are given three equal channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmard.data.images import Form, decode
from mmard.data.parquet import find_parquet, read_parquet
from mmard.data.part import Images, Part, Rows
from mmard.data.places import damaged, missing, places
from mmard.errors import Refused

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
        _part(files, labels, classes, origin + "train"),
        _part(test_files, test_labels, classes, origin + "val as test"),
    )


def _part(files: Sequence[Path], labels: Sequence[int], classes: tuple[str, ...], origin: str) -> Part:
    def read(rows: Rows) -> Iterator[Images]:
        return decode(((str(files[row]), files[row]) for row in rows), _FORM)

    return Part(np.array(labels, np.int64), _FORM.shape, read, tuple(files), classes, origin)
