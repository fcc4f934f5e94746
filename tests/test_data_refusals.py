"""What is damaged, absent or not what it claims is refused in one line that names it; nothing in a pickle is run."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmard.data import DATA, ImageSet, Splits, load
from mmard.data.pickles import read_pickle
from mmard.errors import Refused

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")
scipy_io = pytest.importorskip("scipy.io")


def pixels(n: int, *shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)


def png(x: Any, mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(x).convert(mode).save(file, kind)
    return file.getvalue()


def cifar_rows(n: int, label: int = 0) -> bytes:
    rows = pixels(n, 3073)
    rows[:, 0] = np.arange(n) % 10
    rows[0, 0] = label
    return bytes(rows.tobytes())


def cifar_binary(root: Path, **changes: bytes | None) -> None:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        content = changes.get(name, cifar_rows(20))
        if content is not None:
            (root / f"{name}.bin").write_bytes(content)


def cifar_python(root: Path, content: bytes) -> None:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (root / name).write_bytes(content)


def batch(**changes: Any) -> bytes:
    return pickle.dumps(
        {b"data": pixels(3, 3072), b"labels": [0, 1, 2]} | {k.encode(): v for k, v in changes.items()}, 2
    )


def parquet_file(path: Path, n: int = 12, **columns: Any) -> None:
    cells = [{"bytes": png(x), "path": None} for x in pixels(n, 4, 4, 3)]
    content = {"image": cells, "label": [i % 3 for i in range(n)]} | columns
    pq.write_table(pa.table({k: v for k, v in content.items() if v is not None}), path)


NAMED = (("train", "a"), ("test", "c"))


def parquet(root: Path, **columns: Any) -> None:
    parquet_file(root / "train.parquet", **columns)
    parquet_file(root / "test.parquet")


def table(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")
    if path.stem == "train":
        path.with_name("test.csv").write_text(path.read_text())


def shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def svhn(root: Path, **changes: Any) -> None:
    content = {"X": pixels(20, 32, 32, 3).transpose(1, 2, 3, 0), "y": np.arange(20)[:, None] % 10 + 1} | changes
    for split in ("train", "test"):
        scipy_io.savemat(root / f"{split}_32x32.mat", content)


def folder(root: Path, **changes: bytes) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i, x in enumerate(pixels(3, 6, 6, 3)):
                content = changes.get(f"{split}_{name}_{i}", png(x))
                (root / split / name / f"{i}.png").write_bytes(content)


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(pixels(1, 6, 6, 3)[0]))


def npz(root: Path, **changes: Any) -> None:
    content: dict[str, Any] = {"x_train": pixels(12, 6, 6, 3), "y_train": np.arange(12) % 3}
    content |= {"x_test": pixels(6, 6, 6, 3), "y_test": np.arange(6) % 3} | changes
    np.savez(root / "a.npz", **{k: v for k, v in content.items() if v is not None})


def npz_with(root: Path, **raw: bytes) -> None:
    """The file, with some members written by hand."""
    npz(root)
    with zipfile.ZipFile(root / "a.npz") as old:
        members = {name: old.read(name) for name in old.namelist()} | {f"{name}.npy": v for name, v in raw.items()}
    with zipfile.ZipFile(root / "a.npz", "w") as new:
        for name, content in members.items():
            new.writestr(name, content)


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def spoil(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)


def tiny(root: Path, wnid: str = "n1") -> None:
    for name in ("n1", "n2"):
        (root / "train" / name / "images").mkdir(parents=True)
        for i, x in enumerate(pixels(4, 64, 64, 3)):
            (root / "train" / name / "images" / f"{i}.JPEG").write_bytes(png(x, kind="JPEG"))
    (root / "val" / "images").mkdir(parents=True)
    (root / "val" / "val_annotations.txt").write_text(f"a.JPEG\t{wnid}\n")


def cut_tar(root: Path) -> None:
    with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = 3073 * 20
        tar.addfile(info, io.BytesIO(cifar_rows(20)))
    path = root / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:20_000])


def short_tar(root: Path) -> None:
    with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = 3073 * 20
        tar.addfile(info, io.BytesIO(cifar_rows(20)))


def cut(path: Path, keep: int = -60) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def after(write: Callable[[Path], Any], *then: Callable[[Path], Any]) -> Callable[[Path], None]:
    def run(root: Path) -> None:
        for step in (write, *then):
            step(root)

    return run


nan = np.full((12, 6, 6, 3), np.nan, np.float32)
normalised = np.linspace(-2.1, 2.6, 12 * 6 * 6 * 3, dtype=np.float32).reshape(12, 6, 6, 3)

CASES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    # CIFAR
    "cifar, nothing there": (
        "cifar10",
        lambda r: None,
        r"cifar-10-batches-py/ or cifar-10-python.tar.gz.*mmard fetch cifar10 --data-dir /",
    ),
    "cifar binary, cut": (
        "cifar10",
        lambda r: cifar_binary(r, data_batch_3=cifar_rows(20)[:-1]),
        r"data_batch_3\.bin.*61,459 bytes.*cut off",
    ),
    "cifar binary, empty": ("cifar10", lambda r: cifar_binary(r, test_batch=b""), r"test_batch\.bin.*0 bytes"),
    "cifar binary, a batch absent": (
        "cifar10",
        lambda r: cifar_binary(r, data_batch_4=None),
        r"data_batch_4\.bin.*no such file",
    ),
    "cifar binary, label 10": (
        "cifar10",
        lambda r: cifar_binary(r, data_batch_2=cifar_rows(20, 10)),
        r"labels in 0\.\.9.*label 10 at image 20;",
    ),
    "cifar archive, cut": ("cifar10", cut_tar, r"cifar-10-binary\.tar\.gz.*cut off"),
    "cifar archive, a file absent": ("cifar10", short_tar, r"cifar-10-binary\.tar\.gz.*no data_batch_2\.bin, "),
    "cifar python, cut": (
        "cifar10",
        lambda r: cifar_python(r, batch()[:500]),
        r"data_batch_1: expected an official python file.*cut off",
    ),
    "cifar python, no pickle": (
        "cifar10",
        lambda r: cifar_python(r, b"hello"),
        r"data_batch_1: expected an official python file",
    ),
    "cifar python, a list": ("cifar10", lambda r: cifar_python(r, pickle.dumps([1], 2)), "a list where a dictionary"),
    "cifar python, labels of another set": (
        "cifar10",
        lambda r: cifar_python(r, pickle.dumps({b"fine_labels": [1]}, 2)),
        "no 'labels' and 'data' in it but 'fine_labels'",
    ),
    "cifar python, fewer labels": ("cifar10", lambda r: cifar_python(r, batch(labels=[1])), "1 labels for 3 images"),
    "cifar python, other pixels": ("cifar10", lambda r: cifar_python(r, batch(data=pixels(3, 99))), r"shape \(3, 99\)"),
    "cifar python, floats": (
        "cifar10",
        lambda r: cifar_python(r, batch(data=np.zeros((3, 3072)))),
        "another type than uint8",
    ),
    "cifar python, objects": (
        "cifar10",
        lambda r: cifar_python(r, batch(data=np.array([[{}]], object))),
        "another type than uint8",
    ),
    "cifar python, labels between": (
        "cifar10",
        lambda r: cifar_python(r, batch(labels=[0, 1.5, 2])),
        "whole numbers as labels, got label 1.5 at image 1",
    ),
    "cifar binary, without bounds": (
        "cifar10",
        lambda r: cifar_binary(r) or os.truncate(r / "data_batch_1.bin", 2**40),
        r"data_batch_1\.bin: expected an official binary file of cifar10, got 1,099,511,627,776 bytes",
    ),
    # Parquet
    "parquet, nothing there": ("parquet", lambda r: None, r"train-\*\.parquet.*point --data-dir"),
    "parquet, cut": (
        "parquet",
        after(parquet, lambda r: cut(r / "train.parquet")),
        r"train\.parquet: expected a Parquet file",
    ),
    "parquet, no test": ("parquet", lambda r: parquet_file(r / "train-00000-of-00001.parquet"), "a test split"),
    "parquet, a shard absent": (
        "parquet",
        lambda r: parquet_file(r / "train-00001-of-00002.parquet"),
        "expected 2 shards, got 1",
    ),
    "parquet, two sets": (
        "parquet",
        after(lambda r: [(r / n).mkdir() for n in "ab"], lambda r: parquet(r / "a"), lambda r: parquet(r / "b")),
        "one folder of Parquet files, got a, b",
    ),
    "csv, no column of classes": (
        "csv",
        lambda r: table(r / "train.csv", "path,colour", "a.png,0"),
        "a column label or class or target or category or cls, got path, colour",
    ),
    "csv, a line without a class": (
        "csv",
        lambda r: table(r / "train.csv", "path,label", "a.png,0", "b.png,"),
        "line 3",
    ),
    "csv, a test class of its own": (
        "csv",
        lambda r: table(r / "all.csv", "path,label,split", "a.png,ant,train", "b.png,bee,test"),
        "test labels that training images have, got 'bee'",
    ),
    "csv, no image there": (
        "csv",
        lambda r: table(r / "all.csv", "path,label", *(f"{k}.png,{k % 2}" for k in range(8))),
        "an image that can be read",
    ),
    "webdataset, no test shard": (
        "webdataset",
        lambda r: shard(r / "train-0.tar", {"a.png": b""}),
        "train-.*tar and test",
    ),
    "webdataset, an image without a class": (
        "webdataset",
        lambda r: [
            shard(r / f"{split}-0.tar", {"a.png": b"", "b.png": b"", "b.cls": b"1"}) for split in ("train", "test")
        ],
        "sample a: expected an image and a label, got an image, no label",
    ),
    "webdataset, packed": (
        "webdataset",
        lambda r: [(r / f"{split}-0.tar").write_bytes(gzip.compress(b"a")) for split in ("train", "test")],
        "a tar shard that is not compressed",
    ),
    "parquet, no such column": (
        "parquet",
        lambda r: parquet(r, label=None, fine=[0] * 12, coarse=[0] * 12),
        "a column of labels named label or labels or fine_label or target or class, got columns image, fine, coarse",
    ),
    "parquet, labels that are neither": (
        "parquet",
        lambda r: parquet(r, label=[0.5] * 12),
        "an integer, or the name of a class, for every image, got double",
    ),
    "parquet, a class of the test images alone": (
        "parquet",
        lambda r: [parquet_file(r / f"{split}.parquet", label=[name, "b"] * 6) for split, name in NAMED],
        "a class of the training images: a, b, got 'c'",
    ),
    "parquet, labels left out": (
        "parquet",
        lambda r: parquet(r, label=[0, 1, None] * 4),
        "an integer, or the name of a class, for every image, got int64 with 4",
    ),
    "parquet, unlabelled": ("parquet", lambda r: parquet(r, label=[-1] * 12), "label -1 at image 0; unlabelled"),
    "parquet, absurd label": (
        "parquet",
        lambda r: parquet(r, label=[2**40, *[0] * 11]),
        "label 1099511627776 among 12 images",
    ),
    "parquet, empty class": (
        "parquet",
        lambda r: parquet(r, label=[0, 2] * 6),
        "a training image of every class, got none of '1'",
    ),
    "parquet, broken image": (
        "parquet",
        lambda r: parquet(r, image=[{"bytes": b"x"}] * 12),
        r"row 0 of .*train\.parquet: expected an image",
    ),
    "parquet, paths only": (
        "parquet",
        lambda r: parquet(r, image=[{"bytes": None, "path": "a.png"}] * 12),
        "the encoded image itself, got NoneType",
    ),
    "parquet, other size in the test part": (
        "parquet",
        after(
            parquet, lambda r: parquet_file(r / "test.parquet", image=[{"bytes": png(x)} for x in pixels(12, 4, 5, 3)])
        ),
        r"row 0 of .*test\.parquet: expected 4 x 4 pixels.*got 5 x 4.*--image-size 4",
    ),
    "parquet as cifar10": ("cifar10", parquet, r"expected 32 x 32 pixels.*got 4 x 4"),
    "parquet as cifar100": ("cifar100", parquet, "a column of labels named fine_label.*is this the right data set"),
    "parquet, other class names in the test part": (
        "parquet",
        lambda r: [
            pq.write_table(
                pa.table(
                    {"image": [{"bytes": png(x)} for x in pixels(6, 4, 4, 3)], "label": [0, 1] * 3}
                ).replace_schema_metadata(
                    {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
                ),
                r / f"{split}.parquet",
            )
            for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"]))
        ],
        r"test\.parquet: expected the class names of the other files, 'cat', got 'dog'",
    ),
    # SVHN
    "svhn, labels between": (
        "svhn",
        lambda r: svhn(r, y=np.full((20, 1), 1.5)),
        "whole numbers as labels, got label 1.5",
    ),
    "svhn, nothing there": ("svhn", lambda r: None, r"train_32x32\.mat.*mmard fetch svhn"),
    "svhn, cut": (
        "svhn",
        after(svhn, lambda r: cut(r / "train_32x32.mat", 9000)),
        r"train_32x32\.mat: expected a MATLAB file.*cut off",
    ),
    "svhn, half there": (
        "svhn",
        after(svhn, lambda r: (r / "test_32x32.mat").unlink()),
        r"test_32x32\.mat.*no such file",
    ),
    "svhn, label 11": ("svhn", lambda r: svhn(r, y=np.arange(20)[:, None] % 10 + 2), r"labels 1\.\.10.*2\.\.11"),
    "svhn, other axes": (
        "svhn",
        lambda r: svhn(r, X=pixels(20, 32, 32, 3)),
        r"uint8 \(32, 32, 3, N\), got uint8 \(20, 32, 32, 3\)",
    ),
    "svhn, fewer labels": ("svhn", lambda r: svhn(r, y=np.ones((19, 1))), "as many labels as images, 20, got 19"),
    # IDX and STL-10
    "mnist, nothing there": ("mnist", lambda r: None, r"train-images-idx3-ubyte and its three companions"),
    "mnist, a file absent": (
        "mnist",
        lambda r: (r / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 1] * 3, 7])),
        r"train-labels-idx1-ubyte: expected all four IDX files, got no such file",
    ),
    "mnist, another first word": (
        "mnist",
        lambda r: (r / "train-images-idx3-ubyte").write_bytes(b"hello"),
        "an IDX file of bytes with 3 axes, got another first word",
    ),
    "mnist, promises more": (
        "mnist",
        lambda r: (r / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 9] * 3, 7])),
        "got 1 bytes where 729 should be",
    ),
    "mnist, without bounds": (
        "mnist",
        lambda r: (r / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 3, *[255] * 12]))),
        "got 79,228,162,458,924,105,385,300,197,375 bytes",
    ),
    "stl10, nothing there": ("stl10", lambda r: None, "stl10_binary/"),
    "stl10, cut": ("stl10", lambda r: (r / "train_X.bin").write_bytes(b"x" * 27647), "27,648 bytes for each image"),
    # Tiny ImageNet
    "tiny, nothing there": ("tiny_imagenet", lambda r: None, r"tiny-imagenet-200/.*mmard fetch tiny_imagenet"),
    "tiny, unknown class": ("tiny_imagenet", lambda r: tiny(r, "n3"), r"val_annotations\.txt.*line 1"),
    "tiny, an image absent": ("tiny_imagenet", tiny, r"val/images/a\.JPEG: expected an image"),
    # Folders
    "folder, nothing there": ("folder", lambda r: None, r"train/<class>/\*\.png.*point --data-dir"),
    "folder, no test": ("folder", after(folder, lambda r: (r / "test").rename(r / "extra")), "test/ beside train/"),
    "folder, cut image": (
        "folder",
        lambda r: folder(r, train_bee_1=png(pixels(6, 6, 3))[:-60]),
        r"train/bee/1\.png.*cut off",
    ),
    "folder, no image at all": (
        "folder",
        lambda r: folder(r, test_ant_0=b"text"),
        r"test/ant/0\.png: expected an image that can be read",
    ),
    "folder, mixed sizes": (
        "folder",
        lambda r: folder(r, test_bee_2=png(pixels(6, 7, 3))),
        r"test/bee/2\.png: expected 6 x 6 pixels.*got 7 x 6.*--image-size 6",
    ),
    "folder, empty class": (
        "folder",
        after(folder, lambda r: (r / "train" / "cat").mkdir()),
        "class folder .*/train/cat: expected at least one image",
    ),
    "folder, a class to test only": (
        "folder",
        after(folder, lambda r: (r / "test" / "cat").mkdir()),
        "the classes of train/, got 'cat' as well",
    ),
    "folder, which is a file": (
        "folder/a.png",
        lambda r: pictures(r, "folder/a.png"),
        r"data 'folder': expected a folder, got .*a\.png, which is a file",
    ),
    "folder, the parent of the set": (
        "folder",
        lambda r: pictures(r, "pets/cat/0.png", "pets/cat/1.png", "pets/dog/0.png", "pets/dog/1.png"),
        r"a folder for each of two classes or more, got one, 'pets'; point --data-dir at .*/pets",
    ),
    "folder, the parent in each split": (
        "folder",
        lambda r: pictures(r, *(f"{s}/pets/{c}/0.png" for s in ("train", "test") for c in ("cat", "dog"))),
        r"train: expected a folder for each of two classes or more, got one, 'pets'",
    ),
    "folder, a test part alone": (
        "folder",
        lambda r: pictures(r, "Testing/cat/0.png", "Testing/dog/0.png", "cat/0.png", "dog/0.png"),
        r"train/ beside Testing/, got Testing, cat, dog; name the others train/",
    ),
    "folder, two training parts": (
        "folder",
        lambda r: pictures(r, *(f"{s}/{c}/0.png" for s in ("train", "Training", "test") for c in ("cat", "dog"))),
        "one train folder, got Training, train",
    ),
    "folder, classes of another case": (
        "folder",
        lambda r: pictures(r, "train/cat/0.png", "train/dog/0.png", "test/Cat/0.png", "test/dog/0.png"),
        "the classes of train/, got 'Cat' as well",
    ),
    "folder, an image without bounds": (
        "folder",
        lambda r: folder(r, train_ant_0=png(np.zeros((8200, 8200), np.uint8), "1")),
        r"ant/0\.png: expected at most 67,108,864 pixels, got 8200 x 8200",
    ),
    "folder, 16 bits": (
        "folder",
        lambda r: folder(r, train_ant_0=png(np.full((6, 6), 999, np.uint16), "I;16")),
        r"train/ant/0\.png: expected 8 bits a channel, got mode 'I;16'",
    ),
    "folder, one image in a class": (
        "folder",
        lambda r: pictures(r, "ant/0.png", "bee/0.png", "bee/1.png"),
        "two images or more, got one",
    ),
    # Arrays
    "npz, nothing there": ("npz", lambda r: None, r"one \.npz file, got none"),
    "npz, two files": ("npz", after(npz, lambda r: np.savez(r / "b.npz", x=1)), r"one \.npz file, got a\.npz, b\.npz"),
    "npz, cut": ("npz", after(npz, lambda r: cut(r / "a.npz")), r"a\.npz: expected a \.npz file"),
    "npz, an array absent": ("npz", lambda r: npz(r, y_test=None), "no y_test but x_train, y_train, x_test"),
    "npz, pickled objects": ("npz", lambda r: npz(r, y_train=np.array([{}], object)), "plain arrays"),
    "npz, normalised": (
        "npz",
        lambda r: npz(r, x_train=normalised),
        r"x_train: expected floats in \[0, 1\], got min -2\.1, max 2\.6",
    ),
    "npz, 0 to 255 as floats": (
        "npz",
        lambda r: npz(r, x_train=pixels(12, 6, 6, 3).astype(float)),
        r"max 25\d; divide by 255",
    ),
    "npz, NaN": ("npz", lambda r: npz(r, x_train=nan), r"got min nan, max nan"),
    "npz, labels between": (
        "npz",
        lambda r: npz(r, y_test=np.full(6, 0.5)),
        "y_test: expected whole numbers as labels",
    ),
    "npz, more labels than images": (
        "npz",
        lambda r: npz(r, y_train=np.arange(13) % 3),
        "as many labels as images, 12",
    ),
    "npz, text": ("npz", lambda r: (r / "a.npz").write_text("not a zip"), r"a\.npz: expected a \.npz file of plain"),
    "npz, an array damaged": (
        "npz",
        after(npz, lambda r: spoil(r / "a.npz", 2000)),
        r"a\.npz: expected a \.npz file of plain arrays, got Bad CRC-32",
    ),
    "npz, a header that promises more": (
        "npz",
        lambda r: npz_with(r, x_train=header((10**12, 6, 6, 3)), y_train=header((10**12,), "<i8")),
        r"expected labels that fit into memory, got y_train of 8,000\.0 GB",
    ),
    "npz, more images than the file holds": (
        "npz",
        lambda r: npz_with(r, x_train=header((12, 6, 6, 3))),
        r"got 0 bytes where 1,296 should be",
    ),
    "npz, other integers": (
        "npz",
        lambda r: npz(r, x_train=pixels(12, 6, 6, 3).astype(int)),
        "uint8, or floats.*got int64",
    ),
    "npz, ambiguous axes": ("npz", lambda r: npz(r, x_train=pixels(12, 3, 6, 3)), "both might be"),
    "npz, no axis for channels": ("npz", lambda r: npz(r, x_train=pixels(12, 5, 6, 4)), "neither is"),
    "npz, one-hot": ("npz", lambda r: npz(r, y_train=np.eye(12, dtype=int)), r"integers \(N,\), got int64 \(12, 12\)"),
    "npz, fewer labels": ("npz", lambda r: npz(r, y_train=np.arange(11) % 3), "as many labels as images, 12"),
    "npz, no images": (
        "npz",
        lambda r: npz(r, x_train=pixels(0, 6, 6, 3), y_train=np.arange(0)),
        "at least one image, got none",
    ),
    "npz, a class to test only": (
        "npz",
        lambda r: npz(r, y_test=np.arange(6)),
        r"labels in 0\.\.2.*label 3 at image 3",
    ),
    "npz, other shape to test": (
        "npz",
        lambda r: npz(r, x_test=pixels(6, 5, 5, 3)),
        r"images \(3, 6, 6\), as in the training set, got \(3, 5, 5\)",
    ),
    "npz, too few names": ("npz", lambda r: npz(r, classes=np.array(["a", "b"])), r"labels in 0\.\.1, the 2 classes"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, prepare, message = CASES[case]
    prepare(tmp_path)
    name, _, inside = name.partition("/")
    with pytest.raises(Refused, match=message) as caught:
        load(name, tmp_path / name / inside if inside else tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(DATA.keys() - {"digits"}))
def test_a_folder_that_is_not_there_or_not_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"a folder that exists, got .*nowhere"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(Refused, match="pass --data-dir"):
        load(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifra10", {}, "did you mean 'cifar10'"),
        ("digits", {"val_share": 0.0}, r"a share in \(0, 0\.5\], got 0; a checkpoint is chosen"),
        ("digits", {"val_share": 0.9}, r"a share in \(0, 0\.5\]"),
        ("digits", {"limit_train": 1168}, "1 to 1167, the training images left, got 1168"),
        ("digits", {"limit_train": 0}, "1 to 1167"),
        ("digits", {"limit_train": 5}, "a training image of every class.*raise limit_train"),
        ("digits", {"on_disk": True}, "small and bundled"),
        ("digits", {"image_size": 32}, "one of the sources that resize"),
    ],
)
def test_settings_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load(name, **options)


@pytest.mark.parametrize("size", [0, -3])
def test_image_size_has_to_be_positive(size: int, tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(Refused, match="a positive number of pixels"):
        load("folder", tmp_path, image_size=size)


@pytest.mark.parametrize(
    ("module", "name", "write", "package"),
    [
        ("pyarrow.parquet", "parquet", parquet, "pyarrow"),
        ("PIL.Image", "folder", folder, "pillow"),
        ("scipy.io", "svhn", svhn, "scipy"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    module: str, name: str, write: Callable[[Path], Any], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refused, match=rf"the package '{package}'.*mmard\[data\]"):
        load(name, tmp_path)


class Calls:
    """A pickle of this calls `function(*arguments)` when it is read without care."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("how", ["system", "mkdir", "exec"])
def test_a_pickle_that_calls_is_refused_and_not_run(how: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    call = {
        "system": Calls(os.system, f"mkdir {marker}"),
        "mkdir": Calls(os.mkdir, str(marker)),
        "exec": Calls(exec, f"import os; os.mkdir({str(marker)!r})"),
    }[how]
    harmful = pickle.dumps({b"data": call}, protocol)
    pickle.loads(harmful)  # read without care, it does run
    assert marker.exists()
    marker.rmdir()
    cifar_python(tmp_path, harmful)
    with pytest.raises(Refused, match=r"data_batch_1: expected an official python file.*which no CIFAR file needs"):
        load("cifar10", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nload\n.",
        b"cbuiltins\ngetattr\n.",
        b"c__builtin__\neval\n.",
        b"ccopyreg\n_reconstructor\n.",
        b"c_codecs\nencode\n(V0\nVrot13\ntR.",
        b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR.",
        b"Pmodule\n.",
    ],
    ids=lambda code: code.split(b".")[0].decode().replace("\n", " "),
)
def test_a_pickle_gets_nothing_but_byte_arrays(code: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(code)


def images(n: int = 6, c: int = 3) -> ImageSet:
    return ImageSet(torch.zeros(n, 3, 4, 4, dtype=torch.uint8), torch.arange(n) % c, tuple("abcdef"[:c]), "a set")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            torch.zeros(6, 3, 4, 4),
            torch.zeros(6).long(),
            r"a set: expected images uint8.*torch\.float32 \(6, 3, 4, 4\)",
        ),
        (torch.zeros(6, 4, 4).byte(), torch.zeros(6).long(), r"images uint8 \(N, C, H, W\)"),
        (torch.zeros(6, 3, 0, 4).byte(), torch.zeros(6).long(), r"images uint8 \(N, C, H, W\)"),
        (torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long(), "at least one image"),
        (torch.zeros(6, 3, 4, 4).byte(), torch.zeros(5).long(), r"one label per image, int64 \(6,\)"),
        (torch.zeros(6, 3, 4, 4).byte(), torch.zeros(6).int(), r"one label per image, int64"),
        (torch.zeros(6, 3, 4, 4).byte(), torch.tensor([0, 0, 2, 3, 0, 0]), r"labels in 0\.\.2.*label 3 at image 3"),
        (torch.zeros(6, 3, 4, 4).byte(), torch.tensor([0, 0, -1, 0, 0, 0]), r"label -1 at image 2"),
    ],
)
def test_image_sets_check_what_they_hold(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(Refused, match=message):
        ImageSet(x, y, ("a", "b", "c"), "a set")


def test_splits_have_to_agree() -> None:
    assert len(Splits(images(), images(1), images()).train) == 6
    with pytest.raises(Refused, match="the classes of the training set"):
        Splits(images(), images(), images(c=2))
    with pytest.raises(Refused, match="none of 'c' and 1 more"):
        Splits(images(2, c=4), images(4, c=4), images(4, c=4))
