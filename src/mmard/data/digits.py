"""Handwritten digits, 8 x 8 grey, 1,797 images: bundled, so that everything can be tried without a download.

The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998 (doi 10.24432/C50P49), CC BY 4.0; see `digits.txt` beside this file. Pixels count set bits, 0 to 16;
they are shown as 8-bit levels. 500 images are the test set, always the same ones, and 1,297 are for training and
validation.
"""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import numpy as np

from mmard.data.part import Part, part_of_arrays


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
