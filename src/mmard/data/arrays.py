"""Your own arrays: a .npz file with x_train, y_train, x_test, y_test and, if you like, `classes` (names).

Images are uint8, or floats in [0, 1] which are rounded to 255ths, as (N, H, W, C), (N, C, H, W) or grey (N, H, W). One
and three channels are told by the axis that has them; where two axes might, the file is refused rather than guessed at.
"""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mmard.data.decoding import damaged, missing, optional, places
from mmard.data.image_set import Images, Part, Rows, numbered, part_of_arrays
from mmard.data.parquet import Columns, find_parquet, read_parquet
from mmard.errors import Refused

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def read_npz(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part in `data_dir`, a .npz file or a folder with one.

    Raises:
        Refused: if there is not exactly one, an array is absent, values lie outside [0, 1], or the axes are ambiguous.
    """
    del image_size
    path = _find(data_dir)
    try:
        # Opened here, because NumPy leaves the file open when an array in it is refused.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # zip, header and data each fail in their own ways
        raise damaged(path, "a .npz file of plain arrays", error) from error
    absent = [name for name in _NAMES if name not in arrays]
    if absent:
        raise Refused(str(path), expected=", ".join(_NAMES), got=f"no {', '.join(absent)} but {', '.join(arrays)}")
    ys = {split: _labels(arrays[f"y_{split}"], f"{path}, y_{split}") for split in ("train", "test")}
    if "classes" in arrays:
        classes = tuple(str(name) for name in arrays["classes"].reshape(-1))
    else:
        classes = numbered(ys["train"], f"{path}, y_train")
    parts = []
    for split in ("train", "test"):
        x, note = _images(arrays[f"x_{split}"], f"{path}, x_{split}")
        parts.append(part_of_arrays(x, ys[split], [path], classes, f"npz, {split}{note}"))
    return parts[0], parts[1]


def _find(data_dir: Path) -> Path:
    if data_dir.is_file():
        return data_dir
    places(data_dir, "npz", fetchable=False)
    found = sorted(data_dir.glob("*.npz"))
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        raise Refused(f"data 'npz' in {data_dir}", expected="one .npz file", got=got, mend="name the file itself")
    return found[0]


def _images(x: np.ndarray[Any, np.dtype[Any]], where: str) -> tuple[Images, str]:
    """uint8 (N, C, H, W), and a note for the origin if values had to be rounded."""
    note = ""
    if np.issubdtype(x.dtype, np.floating):
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            mend = "divide by 255, or store them as uint8" if high > 2 else "store images as they are, not normalised"
            raise Refused(where, expected="floats in [0, 1]", got=f"min {low:.3g}, max {high:.3g}", mend=mend)
        x, note = np.round(x.astype(np.float64) * 255).astype(np.uint8), ", rounded to 255ths"
    if x.dtype != np.uint8:
        raise Refused(where, expected="uint8, or floats in [0, 1]", got=str(x.dtype), mend="store images as uint8")
    if x.ndim == 3:
        return x[:, None], note
    if x.ndim != 4:
        raise Refused(where, expected="(N, H, W, C), (N, C, H, W) or (N, H, W)", got=str(x.shape))
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if first == last:
        got = f"{x.shape}, in which {'both might be' if first else 'neither is'}"
        raise Refused(where, expected="1 or 3 channels on axis 1 or on axis 3", got=got)
    return (x if first else x.transpose(0, 3, 1, 2)), note


def _labels(y: np.ndarray[Any, np.dtype[Any]], where: str) -> Rows:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise Refused(where, expected="integers (N,)", got=f"{y.dtype} {y.shape}", mend="not one-hot, not names")
    return y.astype(np.int64)


# digits ---------------------------------------------------------------------------------------------------------------
# Handwritten digits, 8 x 8 grey, 1,797 images: bundled, so that everything can be tried without a download.
#
# The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
# Repository, 1998 (doi 10.24432/C50P49), CC BY 4.0; see `digits.txt` beside this file. Pixels count set bits, 0 to 16;
# they are shown as 8-bit levels. 500 images are the test set, always the same ones, and 1,297 are for training and
# validation.


def read_digits(data_dir: Path | None = None, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part, from the package itself."""
    del data_dir, image_size
    with np.load(io.BytesIO(files("mmard.data").joinpath("digits.npz").read_bytes())) as stored:
        counts, y, is_test = stored["counts"], stored["labels"].astype(np.int64), stored["is_test"]
    x = ((counts.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, None]
    classes = tuple("0123456789")
    return (
        part_of_arrays(x[~is_test], y[~is_test], [], classes, "digits, bundled, train"),
        part_of_arrays(x[is_test], y[is_test], [], classes, "digits, bundled, test"),
    )


# svhn -----------------------------------------------------------------------------------------------------------------
# SVHN, cropped digits: 32 x 32 colour images of house numbers, 73,257 to train on and 26,032 to test.
#
# Netzer, Wang, Coates, Bissacco, Wu, Ng. "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS
# Workshop 2011. Read from the official `train_32x32.mat` and `test_32x32.mat`, in which the digit 0 has the label 10,
# or from Parquet as on the Hugging Face hub. The `extra` images are not used, as in the distillation papers.


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
