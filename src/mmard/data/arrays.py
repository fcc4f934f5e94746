"""Sources whose images are stored as arrays: the bundled digits, .npz files, and SVHN.

`digits` is the test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository, 1998 (doi 10.24432/C50P49), CC BY 4.0; see `digits.txt` beside this file. 8 x 8 grey pixels that
count set bits, 0 to 16, are shown as 8-bit levels. 500 images are the test set, always the same ones, and 1,297 are
for training and validation.

`npz` is a file with x_train, y_train, x_test, y_test and, if you like, `classes` (names), or one of MedMNIST
(train_images, train_labels, test_images, test_labels). Images are uint8, or floats in [0, 1] which are rounded to
255ths, as (N, H, W, C), (N, C, H, W) or grey (N, H, W). One and three channels are told by the axis that has them;
where two axes might, the file is refused rather than guessed at. Images are read in chunks, so that the file never
lies in memory beside the set.

`svhn` has cropped digits of house numbers, 32 x 32 in colour, 73,257 to train on and 26,032 to test (Netzer et al.,
"Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS Workshop 2011). Read from the official
`train_32x32.mat` and `test_32x32.mat`, in which the digit 0 has the label 10, or from Parquet as on the Hugging Face
hub. The `extra` images are not used, as in the distillation papers.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from mmard.data.decoding import damaged, import_extra, missing, search_folders, unpacked
from mmard.data.image_set import Images, Part, Rows, as_levels, numbered, part_of_arrays, whole_labels
from mmard.data.parquet import Columns, find_parquet, read_parquet
from mmard.errors import Refused

_DIGITS = tuple("0123456789")
_NPZ_NAMES = {
    ("x_train", "y_train", "x_test", "y_test"): "npz",
    ("train_images", "train_labels", "test_images", "test_labels"): "npz, MedMNIST",
}
"""Names of the four arrays, and the form that they are of."""
_CHUNK = 2**19  # bytes of an array read at a time
_MOST_LABELS = 2**30  # bytes of labels in a file


def read_digits(data_dir: Path | None = None, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part, from the package itself."""
    del data_dir, image_size
    with np.load(io.BytesIO(files("mmard.data").joinpath("digits.npz").read_bytes())) as stored:
        counts, y, is_test = stored["counts"], stored["labels"].astype(np.int64), stored["is_test"]
    x: Images = as_levels(torch.from_numpy(counts / 16)).numpy()[:, None]
    return (
        part_of_arrays([x[~is_test]], y[~is_test], [], _DIGITS, "digits, bundled, train"),
        part_of_arrays([x[is_test]], y[is_test], [], _DIGITS, "digits, bundled, test"),
    )


def read_npz(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part in `data_dir`, a .npz file or a folder with one.

    Raises:
        Refused: if there is not exactly one, an array is absent, values lie outside [0, 1], labels are not whole, or
            the axes are ambiguous.
    """
    del image_size
    path = _find(data_dir)
    arrays = _headers(path)
    names = next((names for names in _NPZ_NAMES if set(names) <= set(arrays)), None)
    if names is None:
        wanted = next(iter(_NPZ_NAMES))
        absent = ", ".join(name for name in wanted if name not in arrays)
        raise Refused(str(path), expected=", ".join(wanted), got=f"no {absent} but {', '.join(arrays)}")
    x_train, y_train, x_test, y_test = (arrays[name] for name in names)
    ys = [whole_labels(y.whole(), f"{path}, {y.name}") for y in (y_train, y_test)]
    if "classes" in arrays:
        classes = tuple(str(name) for name in arrays["classes"].whole().reshape(-1))
    else:
        classes = numbered(ys[0], f"{path}, {y_train.name}")
    parts = []
    for x, y, split in ((x_train, ys[0], "train"), (x_test, ys[1], "test")):
        note = ", rounded to 255ths" if x.dtype.kind == "f" else ""
        parts.append(_npz_part(x, y, classes, f"{_NPZ_NAMES[names]}, {split}{note}"))
    return parts[0], parts[1]


def _find(data_dir: Path) -> Path:
    if data_dir.is_file():
        return data_dir
    search_folders(data_dir, "npz", fetchable=False)
    found = sorted(path for path in data_dir.glob("*.npz") if not path.name.startswith("."))
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        raise Refused(f"data 'npz' in {data_dir}", expected="one .npz file", got=got, mend="name the file itself")
    return found[0]


@dataclass(frozen=True)
class _Array:
    """An array in a .npz file, known by its header; its content is read when it is asked for."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def whole(self) -> np.ndarray[Any, np.dtype[Any]]:
        """All of it, for labels and names."""
        size = self.dtype.itemsize * int(np.prod(self.shape, dtype=object))
        if size > _MOST_LABELS:
            got = f"{self.name} of {size / 1e9:,.1f} GB"
            raise Refused(str(self.path), expected="labels that fit into memory", got=got)
        blocks = list(self.chunks(1 if self.fortran else max(1, self.shape[0] if self.shape else 1)))
        return np.concatenate(blocks) if blocks else np.empty(self.shape, self.dtype)

    def chunks(self, least: int = 1) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Rows in order, some megabytes at a time.

        Raises:
            Refused: for content that is cut off or damaged.
        """
        try:
            with zipfile.ZipFile(self.path) as stored, stored.open(f"{self.name}.npy") as file:
                _header(file)
                if self.fortran or not self.shape:
                    content = np.frombuffer(_exactly(file, self.dtype.itemsize * int(np.prod(self.shape))), self.dtype)
                    yield content.reshape(self.shape[::-1]).T if self.shape else content
                    return
                row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
                step = max(least, _CHUNK // max(row, 1), 1)
                for start in range(0, self.shape[0], step):
                    n = min(step, self.shape[0] - start)
                    yield np.frombuffer(_exactly(file, n * row), self.dtype).reshape(n, *self.shape[1:])
                file.read(1)  # at the end the checksum is compared
        except Refused:
            raise
        except Exception as error:  # zip, deflate and data each fail in their own ways
            raise damaged(self.path, "a .npz file of plain arrays", error) from error


def _exactly(file: Any, size: int) -> bytes:
    content: bytes = file.read(size)
    if len(content) != size:
        raise ValueError(f"{len(content):,} bytes where {size:,} should be")
    return content


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format")
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


def _headers(path: Path) -> dict[str, _Array]:
    """Every array of a file, by name; no content is read."""
    found = {}
    try:
        with zipfile.ZipFile(path) as stored:
            for member in stored.namelist():
                if member.endswith(".npy"):
                    with stored.open(member) as file:
                        shape, fortran, dtype = _header(file)
                    if dtype.hasobject:
                        raise ValueError(f"{member} holds objects")
                    name = member.removesuffix(".npy")
                    found[name] = _Array(path, name, shape, dtype, fortran)
    except Exception as error:
        raise damaged(path, "a .npz file of plain arrays", error) from error
    return found


def _npz_part(x: _Array, y: Rows, classes: tuple[str, ...], origin: str) -> Part:
    where = f"{x.path}, {x.name}"
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        mend = "store images as uint8"
        raise Refused(where, expected="uint8, or floats in [0, 1]", got=str(x.dtype), mend=mend)
    shape, axis = _layout(x.shape, where)
    if len(y) != x.shape[0]:
        raise Refused(origin, expected=f"as many labels as images, {x.shape[0]}", got=f"{len(y)} labels")

    def read(rows: Rows) -> Iterator[Images]:
        start = 0
        for chunk in x.chunks():
            here = rows[(rows >= start) & (rows < start + len(chunk))] - start
            start += len(chunk)
            if len(here):
                yield np.moveaxis(_levels(chunk[here], where).reshape(len(here), *shape), axis, 1)

    height_width_channels = [*shape]
    channels = height_width_channels.pop(axis - 1)
    return Part(y, (channels, *height_width_channels), read, (x.path,), classes, origin)  # type: ignore[arg-type]


def _layout(shape: tuple[int, ...], where: str) -> tuple[tuple[int, int, int], int]:
    """The shape of an image with an axis for channels, and which axis of the array that is."""
    if len(shape) == 3:
        return (1, shape[1], shape[2]), 1
    if len(shape) != 4:
        raise Refused(where, expected="(N, H, W, C), (N, C, H, W) or (N, H, W)", got=str(shape))
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        got = f"{shape}, in which {'both might be' if first else 'neither is'}"
        raise Refused(where, expected="1 or 3 channels on axis 1 or on axis 3", got=got)
    return (shape[1], shape[2], shape[3]), 1 if first else 3


def _levels(x: np.ndarray[Any, np.dtype[Any]], where: str) -> Images:
    """uint8 levels of images; floats in [0, 1] are rounded to 255ths."""
    if x.dtype == np.uint8:
        return x
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        mend = "divide by 255, or store them as uint8" if high > 2 else "store images as they are, not normalised"
        raise Refused(where, expected="floats in [0, 1]", got=f"min {low:.3g}, max {high:.3g}", mend=mend)
    levels: Images = as_levels(torch.from_numpy(x.astype(np.float64))).numpy()
    return levels


def read_svhn(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part found in `data_dir`.

    Raises:
        Refused: if neither form is there, or a file is damaged.
    """
    del image_size
    for place in search_folders(data_dir, "svhn"):
        train, test = place / "train_32x32.mat", place / "test_32x32.mat"
        if train.is_file() or test.is_file():
            return _mat(train, "train"), _mat(test, "test")
        found = find_parquet(place, ("cropped_digits",))
        if found is not None:
            return read_parquet(found, "svhn", Columns(("image", "img"), ("label",)), _DIGITS, (3, 32, 32))
    raise missing("svhn", data_dir, "train_32x32.mat and test_32x32.mat, or train-*.parquet and test-*.parquet")


def _mat(path: Path, split: str) -> Part:
    if not path.is_file():
        raise Refused(str(path), expected="both files of SVHN", got="no such file")
    matlab = import_extra("scipy.io", "reading MATLAB files")
    expected = "a MATLAB file with X and y"
    try:
        # Looked at first, as a small file may unpack to a large array.
        shape, kind = {name: (shape, kind) for name, shape, kind in matlab.whosmat(path)}["X"]
        if kind == "uint8" and shape[:3] == (32, 32, 3):
            y = matlab.loadmat(path, variable_names=["y"])["y"].reshape(-1)
            x = matlab.loadmat(path, variable_names=["X"])["X"]
            # Columns lie together in MATLAB's files, so that the transpose is what lies in memory.
            pixels = unpacked([np.ascontiguousarray(x.T).reshape(-1).data], x.size)
    except Refused:
        raise
    except Exception as error:  # scipy raises TypeError, zlib.error, ValueError and others on damaged files
        raise damaged(path, expected, error) from error
    if kind != "uint8" or len(shape) != 4 or shape[:3] != (32, 32, 3):
        raise damaged(path, "X as uint8 (32, 32, 3, N)", f"{kind} {shape}")
    y = whole_labels(y, f"{path}, y")
    if len(y) and (y.min() < 1 or y.max() > 10):
        raise damaged(path, "labels 1..10, where 10 is the digit 0", f"labels {y.min()}..{y.max()}")
    x = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 1, 3, 2)
    return part_of_arrays([x], y % 10, [path], _DIGITS, f"svhn, official .mat files, {split}")
