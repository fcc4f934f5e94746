"""Sources in binary files of their own: MNIST and Fashion-MNIST (IDX), STL-10.

`mnist` and `fashion_mnist` have 28 x 28 grey images, 60,000 to train on and 10,000 to test (LeCun, Cortes, Burges;
Xiao, Rasul, Vollgraf, arXiv:1708.07747), in the IDX format: train-images-idx3-ubyte, train-labels-idx1-ubyte, and
the same with t10k, packed by gzip or not, in the folder itself or below as torchvision lays them (MNIST/raw).

`stl10` has 96 x 96 colour images, 5,000 to train on and 8,000 to test (Coates, Lee, Ng, AISTATS 2011), in the folder
stl10_binary: train_X.bin, train_y.bin and the same with test, pixels column by column, labels from 1. Its unlabelled
images are not used.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from mmard.data.decoding import blocks_of, damaged, mapped, missing, search_folders, unpacked
from mmard.data.image_set import Part, part_of_arrays
from mmard.errors import Refused

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_MOST_BYTES = 2**29  # of a file; the largest official one has 221 million


def read_mnist(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part of MNIST in `data_dir`.

    Raises:
        Refused: if a file is absent or damaged.
    """
    del image_size
    return _idx_parts(data_dir, "mnist", "MNIST", tuple("0123456789"))


def read_fashion_mnist(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part of Fashion-MNIST in `data_dir`; as `read_mnist`."""
    del image_size
    return _idx_parts(data_dir, "fashion_mnist", "FashionMNIST", _FASHION)


def _idx_parts(data_dir: Path, name: str, torchvision: str, classes: tuple[str, ...]) -> tuple[Part, Part]:
    for folder in search_folders(data_dir, name, fetchable=False):
        for inside in (folder, folder / "raw", folder / torchvision / "raw"):
            if any((inside / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")):
                parts = []
                for split, stem in (("train", "train"), ("test", "t10k")):
                    x = _idx(inside, f"{stem}-images-idx3-ubyte", 3)
                    y = _idx(inside, f"{stem}-labels-idx1-ubyte", 1)
                    files = [path for path in inside.iterdir() if path.name.startswith(stem)]
                    origin = f"{name}, official IDX files, {split}"
                    parts.append(part_of_arrays([x[:, None]], y.astype(np.int64), sorted(files), classes, origin))
                return parts[0], parts[1]
    forms = "train-images-idx3-ubyte and its three companions, packed by gzip or not"
    raise missing(name, data_dir, forms, fetchable=False)


def _idx(folder: Path, name: str, axes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An array of bytes in the IDX format: 0, 0, type 8, number of axes, big-endian lengths, content."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise Refused(str(folder / name), expected="all four IDX files", got="no such file")
    expected = f"an IDX file of bytes with {axes} axes"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if file.read(4) != bytes([0, 0, 8, axes]):
                raise ValueError("another first word")
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            size = int(np.prod(shape, dtype=object))
            if size > _MOST_BYTES:
                raise ValueError(f"{size:,} bytes")
            head = file.tell()
            # A packed file is unpacked, and the bytes of its head left out, to disk.
            content = unpacked(blocks_of(file), size) if path.suffix == ".gz" else memoryview(mapped(file))[head:]
    except Refused:
        raise
    except Exception as error:  # gzip, zlib and struct each fail in their own ways
        raise damaged(path, expected, error) from error
    if len(content) != size:
        raise damaged(path, expected, f"{len(content):,} bytes where {size:,} should be")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_stl10(data_dir: Path, image_size: int | None = None) -> tuple[Part, Part]:
    """The train and the test part of STL-10 in `data_dir`, or in stl10_binary within it.

    Raises:
        Refused: if a file is absent or damaged.
    """
    del image_size
    for folder in search_folders(data_dir, "stl10", fetchable=False):
        for inside in (folder / "stl10_binary", folder):
            if (inside / "train_X.bin").is_file():
                return _stl10_part(inside, "train"), _stl10_part(inside, "test")
    forms = "stl10_binary/ (unpacked) with train_X.bin, train_y.bin, test_X.bin and test_y.bin"
    raise missing("stl10", data_dir, forms, fetchable=False)


def _stl10_part(folder: Path, split: str) -> Part:
    files = [folder / f"{split}_X.bin", folder / f"{split}_y.bin"]
    contents = []
    for file, unit in zip(files, (3 * 96 * 96, 1), strict=True):
        if not file.is_file():
            raise Refused(str(file), expected="all four files of STL-10", got="no such file")
        size = file.stat().st_size
        if not size or size % unit or size > _MOST_BYTES:
            raise damaged(file, f"{unit:,} bytes for each image", f"{size:,} bytes")
        with file.open("rb") as opened:
            contents.append(np.frombuffer(mapped(opened), np.uint8))
    x, y = contents
    if y.min() < 1 or y.max() > len(_STL10):
        raise damaged(files[1], f"labels 1..{len(_STL10)}", f"labels {y.min()}..{y.max()}")
    pixels = x.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    return part_of_arrays([pixels], y.astype(np.int64) - 1, files, _STL10, f"stl10, official binary files, {split}")
