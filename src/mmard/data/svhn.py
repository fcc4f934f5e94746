"""SVHN, cropped digits: 32 x 32 colour images of house numbers, 73,257 to train on and 26,032 to test.

Netzer, Wang, Coates, Bissacco, Wu, Ng. "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS
Workshop 2011. Read from the official `train_32x32.mat` and `test_32x32.mat`, in which the digit 0 has the label 10, or
from Parquet as on the Hugging Face hub. The `extra` images are not used, as in the distillation papers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmard.data.optional import optional
from mmard.data.parquet import Columns, find_parquet, read_parquet
from mmard.data.part import Part, part_of_arrays
from mmard.data.places import damaged, missing, places
from mmard.errors import Refused

_CLASSES = tuple("0123456789")


def read_svhn(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part found in `data_dir`.

    Raises:
        Refused: if neither form is there, or a file is damaged.
    """
    del image_size
    for place in places(data_dir, "svhn"):
        train, test = place / "train_32x32.mat", place / "test_32x32.mat"
        if train.is_file() or test.is_file():
            return _mat(train, "train"), _mat(test, "test")
        found = find_parquet(place, ("cropped_digits",))
        if found is not None:
            return read_parquet(found, "svhn", Columns(("image", "img"), ("label",)), _CLASSES, (3, 32, 32))
    raise missing("svhn", data_dir, "train_32x32.mat and test_32x32.mat, or train-*.parquet and test-*.parquet")


def _mat(path: Path, split: str) -> Part:
    if not path.is_file():
        raise Refused(str(path), expected="both files of SVHN", got="no such file")
    loadmat = optional("scipy.io", "reading MATLAB files").loadmat
    try:
        content = loadmat(path, variable_names=["X", "y"])
        x, y = content["X"], content["y"].reshape(-1)
    except Exception as error:  # scipy raises TypeError, zlib.error, ValueError and others on damaged files
        raise damaged(path, "a MATLAB file with X and y", error) from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise damaged(path, "X as uint8 (32, 32, 3, N)", f"{x.dtype} {x.shape}")
    y = y.astype(np.int64)
    if len(y) and (y.min() < 1 or y.max() > 10):
        raise damaged(path, "labels 1..10, where 10 is the digit 0", f"labels {y.min()}..{y.max()}")
    return part_of_arrays(x.transpose(3, 2, 0, 1), y % 10, [path], _CLASSES, f"svhn, official .mat files, {split}")
