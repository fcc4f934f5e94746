"""One battery for every form of every source: a small set is written as the official files are, and read back."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mmard.data import DATA, ImageSet, load
from mmard.data.augment import Augmentation
from mmard.data.batches import SetBatches
from mmard.data.cifar import CIFAR10, CIFAR100
from mmard.errors import Refused

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")
scipy_io = pytest.importorskip("scipy.io")


@dataclass
class Arrays:
    """What a form is expected to give: uint8 (N, C, H, W) and labels."""

    x: Any
    y: Any
    x_test: Any
    y_test: Any
    classes: tuple[str, ...]
    words: str  # in the origin
    options: dict[str, Any] = field(default_factory=dict)


def arrays(num_classes: int, shape: tuple[int, int, int], per_class: int = 4, words: str = "") -> Arrays:
    rng = np.random.default_rng(num_classes)
    n, m = num_classes * per_class, 2 * num_classes
    y, y_test = rng.permutation(np.arange(n) % num_classes), rng.permutation(np.arange(m) % num_classes)
    x, x_test = (rng.integers(0, 256, (k, *shape), np.uint8) for k in (n, m))
    return Arrays(x, y, x_test, y_test, tuple(map(str, range(num_classes))), words)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its only string type, which is what the official files hold."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    def save_text(self, text: str) -> None:
        self.save_bytes(text.encode("latin1"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_text


def python2(content: dict[bytes, Any]) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python3(content: dict[bytes, Any]) -> bytes:
    return pickle.dumps(content, protocol=2)


def cifar_python(label: str, dumps: Callable[[dict[bytes, Any]], bytes]) -> Callable[[Any, Any], bytes]:
    return lambda x, y: dumps(
        {
            b"data": x.reshape(len(x), -1),
            label.encode(): y.tolist(),
            b"batch_label": b"a batch",
            b"filenames": [b"a.png"] * len(x),
        }
    )


def cifar_binary(label_bytes: int) -> Callable[[Any, Any], bytes]:
    def encode(x: Any, y: Any) -> bytes:
        head = np.zeros((len(x), label_bytes), np.uint8)
        head[:, -1] = y
        return np.concatenate([head, x.reshape(len(x), -1)], 1).tobytes()

    return encode


def cifar_files(a: Arrays, kind: str, name: str, encode: Callable[[Any, Any], bytes]) -> dict[str, bytes]:
    end = "" if kind == "py" else ".bin"
    if name == "cifar100":
        return {"train" + end: encode(a.x, a.y), "test" + end: encode(a.x_test, a.y_test)}
    cuts = zip(np.array_split(a.x, 5), np.array_split(a.y, 5), strict=True)
    files = {f"data_batch_{i}{end}": encode(x, y) for i, (x, y) in enumerate(cuts, 1)}
    return {**files, f"test_batch{end}": encode(a.x_test, a.y_test)}


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in {"readme.html": b"hello", **files}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def cifar(name: str, kind: str, packed: bool, dumps: Callable[[dict[bytes, Any]], bytes] = python2) -> Any:
    def write(root: Path) -> Arrays:
        num_classes = 10 if name == "cifar10" else 100
        words = f"official {'python' if kind == 'py' else 'binary'} {'archive' if packed else 'files'}"
        a = arrays(num_classes, (3, 32, 32), 4 if num_classes == 10 else 2, words)
        a.classes = (CIFAR10 if num_classes == 10 else CIFAR100).classes
        label, label_bytes = ("labels", 1) if num_classes == 10 else ("fine_labels", 2)
        encode = cifar_python(label, dumps) if kind == "py" else cifar_binary(label_bytes)
        files = cifar_files(a, kind, name, encode)
        long = "python" if kind == "py" else "binary"
        folder = f"cifar-10-batches-{kind}" if num_classes == 10 else f"cifar-100-{long}"
        if packed:
            write_tar(root / f"cifar-{num_classes}-{long}.tar.gz", folder, files)
        else:
            write_all(root / folder, files)
        return a

    return write


def png(x: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_parquet(
    path: Path, x: Any, y: Any, image: str = "img", label: str = "label", names: tuple[str, ...] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(one), "path": f"{i}.png"} for i, one in enumerate(x)]
    table = pa.table({image: cells, "coarse_label": np.zeros(len(y), np.int64), label: np.asarray(y, np.int64)})
    if names:
        features = {label: {"names": list(names), "_type": "ClassLabel"}, image: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=7)


def parquet(
    name: str, folder: str, image: str, label: str, shards: int = 1, test: str = "test", names: bool = False
) -> Any:
    def write(root: Path) -> Arrays:
        counts = {"cifar10": (10, (3, 32, 32)), "cifar100": (100, (3, 32, 32)), "svhn": (10, (3, 32, 32))}
        c, shape = counts.get(name, (4, (3, 64, 64) if name == "tiny_imagenet" else (1, 6, 5)))
        a = arrays(c, shape, 2 if c == 100 else 4, "Parquet")
        known = {"cifar10": CIFAR10.classes, "cifar100": CIFAR100.classes}
        a.classes = known.get(name, tuple(f"n{i:03}" for i in range(c)) if names else a.classes)
        given = a.classes if names else None
        cuts = list(zip(np.array_split(a.x, shards), np.array_split(a.y, shards), strict=True))
        for i, (x, y) in enumerate(cuts):
            write_parquet(root / folder / f"train-{i:05}-of-{shards:05}.parquet", x, y, image, label, given)
        write_parquet(root / folder / f"{test}-00000-of-00001-70d52.parquet", a.x_test, a.y_test, image, label, given)
        return a

    return write


def svhn(root: Path) -> Arrays:
    a = arrays(10, (3, 32, 32), words="official .mat files")
    for split, x, y in (("train", a.x, a.y), ("test", a.x_test, a.y_test)):
        labels = np.where(y == 0, 10, y).astype(np.uint8)[:, None]
        scipy_io.savemat(root / f"{split}_32x32.mat", {"X": x.transpose(2, 3, 1, 0), "y": labels}, do_compression=True)
    return a


def tiny_imagenet(root: Path) -> Arrays:
    """JPEG loses; what is expected is what Pillow reads back. One image is grey, as some of the real ones are."""
    a = arrays(3, (3, 64, 64), words="val as test")
    a.classes = ("n01443537", "n01629819", "n02124075")
    base = root / "tiny-imagenet-200"
    lines = []

    def save(path: Path, x: Any, grey: bool) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(x.transpose(1, 2, 0))
        (image.convert("L") if grey else image).save(path, "JPEG")
        with Image.open(path) as read:
            return np.asarray(read.convert("RGB")).transpose(2, 0, 1)

    for i, label in enumerate(a.y):
        wnid = a.classes[label]
        a.x[i] = save(base / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", a.x[i], grey=i == 0)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t1\t1\n")
    for i, label in enumerate(a.y_test):
        a.x_test[i] = save(base / "val" / "images" / f"val_{i}.JPEG", a.x_test[i], grey=False)
        lines.append(f"val_{i}.JPEG\t{a.classes[label]}\t0\t0\t62\t62")
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return a


def folder(split: str = "test", shape: tuple[int, int, int] = (3, 7, 9)) -> Any:
    def write(root: Path) -> Arrays:
        a = arrays(3, shape, words="test" if split == "test" else "val as test")
        a.classes = ("ant", "bee", "cat")
        for part, x, y in (("train", a.x, a.y), (split, a.x_test, a.y_test)):
            for i in range(len(x)):
                inside = root / part / a.classes[y[i]]
                inside.mkdir(parents=True, exist_ok=True)
                (inside / f"{i:03}.{'PNG' if i % 2 else 'png'}").write_bytes(png(x[i]))
                (inside / "notes.txt").write_text("passed over")
        order = np.lexsort((np.arange(len(a.y_test)), a.y_test))
        a.x_test, a.y_test = a.x_test[order], a.y_test[order]
        return a

    return write


def listed(names: tuple[str, ...], one: bool = False, end: str = "csv") -> Any:
    """Tables of paths and classes, which are names or numbers."""

    def write(root: Path) -> Arrays:
        a = arrays(len(names), (3, 6, 5), words="csv, test")
        a.classes = names
        lines = {}
        for split, x, y in (("train", a.x, a.y), ("valid" if one else "test", a.x_test, a.y_test)):
            (root / "pictures" / split).mkdir(parents=True)
            for k, image in enumerate(x):
                (root / "pictures" / split / f"{k}.png").write_bytes(png(image))
            paths = [f"pictures/{split}/{k}.png" for k in range(len(x))]
            lines[split] = [[path, names[label], split] for path, label in zip(paths, y, strict=True)]
        tables = {"all": [each for own in lines.values() for each in own]} if one else lines
        for name, rows in tables.items():
            text = [",".join(row) for row in [["Filename", "class", "split"], *rows]]
            (root / f"{name}.csv").write_text("\n".join(text) + "\n")
        a.words = "csv, val as test" if one else a.words
        return a

    return write


def webdataset(label: Callable[[int], dict[str, bytes]], classes: tuple[str, ...]) -> Any:
    """Two shards to train on, one to test: an image and its label, one after the other."""

    def write(root: Path) -> Arrays:
        a = arrays(len(classes), (3, 6, 5), words="webdataset, tar shards, test")
        a.classes = classes
        cuts = zip(np.array_split(a.x, 2), np.array_split(a.y, 2), strict=True)
        for name, (x, y) in {
            **{f"train-{k:06}": cut for k, cut in enumerate(cuts)},
            "test-0": (a.x_test, a.y_test),
        }.items():
            with tarfile.open(root / f"{name}.tar", "w") as tar:
                for k in range(len(x)):
                    for end, content in {"png": png(x[k]), "txt": b"a word", **label(int(y[k]))}.items():
                        info = tarfile.TarInfo(f"{name}/{k:04}.{end}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        return a

    return write


def hub_layout(folder: str, names: bool) -> Any:
    """As the hub converts sets: train/0000.parquet below the configuration, columns of any name, classes by name."""

    def write(root: Path) -> Arrays:
        a = arrays(3, (3, 6, 5), words="parquet, Parquet, test")
        a.classes = ("ant", "bee", "cat") if names else a.classes
        for split, x, y in (("train", a.x, a.y), ("test", a.x_test, a.y_test)):
            (root / folder / split).mkdir(parents=True)
            labels = [a.classes[k] for k in y] if names else y
            table = pa.table({"photo": [png(one) for one in x], "species" if not names else "label": labels})
            for k, rows in enumerate(np.array_split(np.arange(len(x)), 2)):
                pq.write_table(table.take(rows), root / folder / split / f"{k:04}.parquet")
        return a

    return write


def saved_to_disk(root: Path) -> Arrays:
    """As `datasets.DatasetDict.save_to_disk` leaves it, with the names of classes in the schema."""
    a = arrays(3, (3, 6, 5), words="parquet, Arrow, test")
    a.classes = ("ant", "bee", "cat")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    features = {"label": {"names": list(a.classes), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    for split, x, y in (("train", a.x, a.y), ("test", a.x_test, a.y_test)):
        (root / split).mkdir()
        (root / split / "state.json").write_text("{}")
        cells = [{"bytes": png(one), "path": None} for one in x]
        table = pa.table({"image": cells, "label": np.asarray(y, np.int64)})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        for k, rows in enumerate(np.array_split(np.arange(len(x)), 2)):
            path = root / split / f"data-{k:05}-of-00002.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.take(rows))
    return a


def npz(layout: str) -> Any:
    def write(root: Path) -> Arrays:
        a = arrays(3, (1, 6, 5) if layout == "grey" else (3, 6, 5), words="npz")
        out = {"y_train": a.y[:, None], "y_test": a.y_test.astype(np.uint8)}
        for name, x in (("x_train", a.x), ("x_test", a.x_test)):
            forms = {"nhwc": x.transpose(0, 2, 3, 1), "nchw": x, "grey": x[:, 0], "float": (x / 255).astype(np.float32)}
            out[name] = forms[layout]
        if layout == "nhwc":
            a.classes = ("x", "y", "z")
            out["classes"] = np.array(a.classes)
        if layout == "float":
            a.words = "rounded to 255ths"
        np.savez(root / "mine.npz", **out)
        return a

    return write


def medmnist(root: Path) -> Arrays:
    """As medmnist.com hands them out: labels (N, 1) of uint8, and an official validation part, which is not read."""
    a = arrays(3, (1, 6, 5), words="npz, MedMNIST")
    out = {"train_images": a.x[:, 0], "train_labels": a.y[:, None].astype(np.uint8)}
    out |= {"val_images": a.x[:4, 0], "val_labels": a.y[:4, None].astype(np.uint8)}
    out |= {"test_images": a.x_test[:, 0], "test_labels": a.y_test[:, None].astype(np.uint8)}
    np.savez_compressed(root / "pathmnist.npz", **out)
    return a


def idx(folder: str, packed: bool, classes: tuple[str, ...]) -> Any:
    """Big-endian headers and bytes, as yann.lecun.com hands them out."""

    def write(root: Path) -> Arrays:
        a = arrays(10, (1, 28, 28), words="official IDX files")
        a.classes = classes
        (root / folder).mkdir(parents=True, exist_ok=True)
        for stem, x, y in (("train", a.x[:, 0], a.y), ("t10k", a.x_test[:, 0], a.y_test)):
            for name, array in ((f"{stem}-images-idx3-ubyte", x), (f"{stem}-labels-idx1-ubyte", y.astype(np.uint8))):
                content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
                path = root / folder / (name + (".gz" if packed else ""))
                path.write_bytes(gzip.compress(content) if packed else content)
        return a

    return write


def stl10(root: Path) -> Arrays:
    """Channels first, each column by column; labels from 1."""
    a = arrays(10, (3, 96, 96), per_class=2, words="official binary files")
    a.classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    (root / "stl10_binary").mkdir()
    for split, x, y in (("train", a.x, a.y), ("test", a.x_test, a.y_test)):
        (root / "stl10_binary" / f"{split}_X.bin").write_bytes(np.ascontiguousarray(x.transpose(0, 1, 3, 2)).tobytes())
        (root / "stl10_binary" / f"{split}_y.bin").write_bytes((y + 1).astype(np.uint8).tobytes())
    return a


DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FORMS: dict[str, tuple[str, Any]] = {
    "cifar10 python, as Python 2 wrote it": ("cifar10", cifar("cifar10", "py", packed=False)),
    "cifar10 python, as Python 3 writes it": ("cifar10", cifar("cifar10", "py", packed=False, dumps=python3)),
    "cifar10 python archive": ("cifar10", cifar("cifar10", "py", packed=True)),
    "cifar10 binary": ("cifar10", cifar("cifar10", "bin", packed=False)),
    "cifar10 binary archive": ("cifar10", cifar("cifar10", "bin", packed=True)),
    "cifar10 parquet": ("cifar10", parquet("cifar10", ".", "img", "label")),
    "cifar10 parquet, fetched": ("cifar10", parquet("cifar10", "cifar10/plain_text", "img", "label", shards=3)),
    "cifar10 parquet, data/": ("cifar10", parquet("cifar10", "data", "image", "label")),
    "cifar100 python": ("cifar100", cifar("cifar100", "py", packed=False)),
    "cifar100 python archive": ("cifar100", cifar("cifar100", "py", packed=True)),
    "cifar100 binary": ("cifar100", cifar("cifar100", "bin", packed=False)),
    "cifar100 binary archive": ("cifar100", cifar("cifar100", "bin", packed=True)),
    "cifar100 parquet": ("cifar100", parquet("cifar100", "cifar100", "img", "fine_label", names=True)),
    "svhn mat": ("svhn", svhn),
    "svhn parquet": ("svhn", parquet("svhn", "cropped_digits", "image", "label", names=False)),
    "tiny_imagenet tree": ("tiny_imagenet", tiny_imagenet),
    "tiny_imagenet parquet": ("tiny_imagenet", parquet("tiny_imagenet", "data", "image", "label", 2, "valid", True)),
    "mnist": ("mnist", idx(".", False, DIGITS)),
    "mnist, packed, as torchvision lays it": ("mnist", idx("MNIST/raw", True, DIGITS)),
    "fashion_mnist": ("fashion_mnist", idx("fashion_mnist", True, CLOTHES)),
    "stl10": ("stl10", stl10),
    "parquet": ("parquet", parquet("parquet", "some", "image", "label", shards=2)),
    "parquet with names": ("parquet", parquet("parquet", ".", "img", "fine_label", names=True)),
    "parquet, as the hub converts": ("parquet", hub_layout("default", names=False)),
    "parquet, classes by name": ("parquet", hub_layout(".", names=True)),
    "saved to disk": ("parquet", saved_to_disk),
    "csv, two tables": ("csv", listed(("ant", "bee", "cat"))),
    "csv, one table": ("csv", listed(("0", "1", "2"), one=True)),
    "webdataset cls": ("webdataset", webdataset(lambda y: {"cls": str(y).encode()}, ("0", "1", "2"))),
    "webdataset json": (
        "webdataset",
        webdataset(lambda y: {"json": json.dumps({"label": "abc"[y], "w": 5}).encode()}, ("a", "b", "c")),
    ),
    "folder": ("folder", folder()),
    "folder with val": ("folder", folder("val")),
    "folder, grey": ("folder", folder(shape=(1, 6, 5))),
    "npz nhwc": ("npz", npz("nhwc")),
    "npz nchw": ("npz", npz("nchw")),
    "npz grey": ("npz", npz("grey")),
    "npz float": ("npz", npz("float")),
    "npz medmnist": ("npz", medmnist),
}


def contents(*sets: ImageSet) -> list[tuple[bytes, int]]:
    return sorted((x.numpy().tobytes(), int(y)) for part in sets for x, y in zip(part.x, part.y, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_its_pixels_labels_and_classes(form: str, tmp_path: Path) -> None:
    name, write = FORMS[form]
    a = write(tmp_path)
    s = load(name, tmp_path)
    assert torch.equal(s.test.x, torch.from_numpy(np.ascontiguousarray(a.x_test)))
    assert s.test.y.tolist() == a.y_test.tolist()
    # Training and validation images cover the training part, each once; the images are random, so all are different.
    expected = sorted((x.tobytes(), int(y)) for x, y in zip(np.ascontiguousarray(a.x), a.y, strict=True))
    assert contents(s.train, s.val) == expected
    assert not {x for x, _ in contents(s.val)} & {x for x, _ in contents(s.test, s.train)}
    assert s.train.classes == s.val.classes == s.test.classes == a.classes
    assert s.train.image_shape == a.x.shape[1:]
    assert len(s.val) == max(1, round(0.1 * len(a.x)))
    for part in (s.train, s.val, s.test):
        assert part.origin.startswith(name)
        assert str(tmp_path) not in part.origin
    assert a.words in s.test.origin


@pytest.mark.parametrize("form", FORMS)
def test_on_disk_is_in_memory(form: str, tmp_path: Path) -> None:
    name, write = FORMS[form]
    write(tmp_path)
    limit = len(load(name, tmp_path).train) - 1
    kept, mapped = (load(name, tmp_path, limit_train=limit, on_disk=on_disk) for on_disk in (False, True))
    for a, b in zip((kept.train, kept.val, kept.test), (mapped.train, mapped.val, mapped.test), strict=True):
        assert (a.on_disk, b.on_disk) == (False, True)
        assert a.fingerprint() == b.fingerprint()
        assert a.channel_statistics() == b.channel_statistics()
    batches = [SetBatches(s.train, 8, "cpu", seed=3, augmentation=Augmentation(1)) for s in (kept, mapped)]
    for (x, y), (x_mapped, y_mapped) in zip(batches[0].epoch(2), batches[1].epoch(2), strict=True):
        assert torch.equal(x, x_mapped)
        assert torch.equal(y, y_mapped)
    mapped.train.x.zero_()  # copy-on-write: the file is not touched
    assert load(name, tmp_path, limit_train=limit, on_disk=True).train.fingerprint() == kept.train.fingerprint()


def test_every_source_is_in_the_battery() -> None:
    assert {name for name, _ in FORMS.values()} == DATA.keys() - {"digits"}


@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_on_disk_decodes_once_and_again_when_sources_change(name: str, tmp_path: Path) -> None:
    write = {"cifar10": cifar("cifar10", "bin", packed=False), "folder": folder()}[name]
    write(tmp_path)
    cache = tmp_path / "cache" / "deep"
    load(name, tmp_path, on_disk=True, cache_dir=cache)
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 2
    assert all(path.name.startswith(f"mmard-{name}-") for path in files)
    load(name, tmp_path, on_disk=True, cache_dir=cache, limit_train=20 if name == "cifar10" else 6, val_share=0.3)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    load(name, tmp_path, on_disk=True, cache_dir=cache, split_seed=1)  # another order: its own training file
    assert len(list(cache.iterdir())) == 3
    source = next(path for path in tmp_path.rglob("*") if path.name in ("data_batch_2.bin", "001.PNG"))
    content = source.read_bytes()
    source.write_bytes(content[:1] + bytes([content[1] ^ 255]) + content[2:] if name == "cifar10" else png_like(source))
    changed = load(name, tmp_path, on_disk=True, cache_dir=cache)
    assert contents(changed.train, changed.val) == contents(*_train_and_val(load(name, tmp_path)))


def png_like(path: Path) -> bytes:
    with Image.open(path) as image:
        return png(255 - np.asarray(image).transpose(2, 0, 1))


def _train_and_val(s: Any) -> tuple[ImageSet, ImageSet]:
    return s.train, s.val


def broken(root: Path) -> set[str]:
    """A folder with three bad images of two kinds; their names."""
    folder()(root)
    cut, small, empty = sorted((root / "train").rglob("*.[pP][nN][gG]"))[1:9:3]
    cut.write_bytes(cut.read_bytes()[:60])
    small.write_bytes(png(np.zeros((3, 5, 5), np.uint8)))
    empty.write_bytes(b"")
    return {str(cut), str(small), str(empty)}


def test_all_faults_of_a_set_are_told_at_once_by_kind(tmp_path: Path) -> None:
    names = broken(tmp_path)
    with pytest.raises(Refused) as refused:
        load("folder", tmp_path)
    said = str(refused.value)
    assert re.search(r"in all 3 bad of \d+: ", said)
    assert "2 not an image that can be read" in said
    assert "1 not 9 x 7 pixels" in said
    assert "--skip-bad" in said
    assert all(name in said for name in names)


@pytest.mark.parametrize("on_disk", [False, True])
def test_bad_images_are_left_out_where_that_is_asked_for(on_disk: bool, tmp_path: Path) -> None:
    kept, odd = tmp_path / "kept", tmp_path / "odd"
    folder()(kept)
    broken(odd)
    whole = load("folder", kept)
    found = load("folder", odd, skip_bad=True, on_disk=on_disk, cache_dir=tmp_path / "cache")
    assert len(found.train) + len(found.val) == len(whole.train) + len(whole.val) - 3
    assert set(contents(found.train, found.val)) < set(contents(whole.train, whole.val))
    assert contents(found.test) == contents(whole.test)
    assert f"3 bad of {len(whole.train) + len(whole.val)} left out" in found.train.origin
    assert "left out" not in found.test.origin
    assert load("folder", kept, skip_bad=True).train.fingerprint() == whole.train.fingerprint()
    with pytest.raises(Refused, match=r"skip_bad: expected a source of single images"):
        load("digits", skip_bad=True)


def test_on_disk_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    folder()(tmp_path)
    broken = next((tmp_path / "train").rglob("*.png"))
    broken.write_bytes(png(np.zeros((3, 5, 5), np.uint8)))
    with pytest.raises(Refused, match=r"expected (5 x 5|9 x 7) pixels"):
        load("folder", tmp_path, on_disk=True, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_on_disk_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    npz("nchw")(tmp_path)
    with pytest.raises(Refused, match=r"expected a folder to write to.*--cache-dir"):
        load("npz", tmp_path, on_disk=True, cache_dir=tmp_path / "mine.npz")


def test_on_disk_asks_for_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz("nchw")(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(Refused, match=r"MB of disk.*--cache-dir"):
        load("npz", tmp_path, on_disk=True)


def test_single_level_folders_set_aside_a_fifth_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for i in range(10):
            (tmp_path / label / f"{i}.png").write_bytes(png(rng.integers(0, 256, (3, 4, 4), np.uint8)))
    first, second = load("folder", tmp_path), load("folder", tmp_path, split_seed=5)
    assert first.test.class_counts().tolist() == [2, 2]
    assert first.test.fingerprint() == second.test.fingerprint()
    assert first.val.fingerprint() != second.val.fingerprint()
    assert "by file name" in first.test.origin
    # An eleventh image leaves at least one of each class's two test images in place.
    (tmp_path / "ant" / "later.png").write_bytes(png(rng.integers(0, 256, (3, 4, 4), np.uint8)))
    kept = {x for x, _ in contents(load("folder", tmp_path).test)} & {x for x, _ in contents(first.test)}
    assert len(kept) >= 3


def test_image_size_scales_and_cuts_the_centre(tmp_path: Path) -> None:
    for i, label in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path / label).mkdir(parents=True)
        for j, (height, width) in enumerate(((8, 24), (16, 8), (8, 8))):
            x = np.zeros((3, height, width), np.uint8)
            x[:, (height - 8) // 2 : (height + 8) // 2, (width - 8) // 2 : (width + 8) // 2] = 50 + i  # the centre
            (tmp_path / label / f"{j}.png").write_bytes(png(x))
    with pytest.raises(Refused, match=r"0\.png|1\.png"):
        load("folder", tmp_path)
    s = load("folder", tmp_path, image_size=8)
    assert s.train.image_shape == (3, 8, 8)
    assert s.test.x[0].unique().tolist() == [52]
    assert load("folder", tmp_path, image_size=4).test.x[2].unique().tolist() == [52]
    with pytest.raises(
        Refused,
        match=r"one of the sources that resize \(cifar10, cifar100, parquet, folder, csv, webdataset\), got npz",
    ):
        load("npz", tmp_path, image_size=8)


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_cifar_is_averaged_over_whole_blocks(kind: str, tmp_path: Path) -> None:
    cifar("cifar10", kind, packed=False)(tmp_path)
    whole = load("cifar10", tmp_path)
    for size, block in ((16, 2), (8, 4), (32, 1)):
        small = load("cifar10", tmp_path, image_size=size)
        for part, before in ((small.train, whole.train), (small.val, whole.val), (small.test, whole.test)):
            means = before.x.double().unfold(2, block, block).unfold(3, block, block).mean((-2, -1))
            assert torch.equal(part.x, (means + 0.5).floor().to(torch.uint8))
            assert torch.equal(part.y, before.y)
        assert (f"blocks of {block} x {block} averaged" in small.train.origin) == (size != 32)
        assert (small.train.fingerprint() == whole.train.fingerprint()) == (size == 32)
    on_disk = load("cifar10", tmp_path, image_size=8, on_disk=True, cache_dir=tmp_path / "cache")
    assert on_disk.train.fingerprint() == load("cifar10", tmp_path, image_size=8).train.fingerprint()


@pytest.mark.parametrize("size", [0, -8, 12, 64])
def test_an_image_size_that_does_not_divide_cifars_is_refused(size: int, tmp_path: Path) -> None:
    cifar("cifar10", "bin", packed=False)(tmp_path)
    with pytest.raises(Refused, match=rf"image_size: expected a divisor of 32, .*got {size}; take one of 32, 16, 8, 4"):
        load("cifar10", tmp_path, image_size=size)


def test_digits_are_those_of_scikit_learn_and_their_test_part_is_fixed() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    reference = datasets.load_digits()
    s, other = load("digits"), load("digits", split_seed=1)
    levels = np.floor(reference.images * 255 / 16 + 0.5).astype(np.uint8)
    expected = sorted((x.tobytes(), int(y)) for x, y in zip(levels[:, None], reference.target, strict=True))
    assert contents(s.train, s.val, s.test) == expected
    assert (len(s.train) + len(s.val), len(s.test)) == (1297, 500)
    assert s.test.fingerprint() == other.test.fingerprint()
    assert s.val.fingerprint() != other.val.fingerprint()
    # Written down once: a different 500 would make every reported number a different number.
    assert s.test.fingerprint() == "ee0d3b143aeae9a052a05ee02ecb408c05a9073e37be42f39ffdc54986276eae"
    assert s.test.class_counts().tolist() == [55, 53, 57, 39, 58, 53, 51, 41, 42, 51]


def test_digits_come_with_their_attribution() -> None:
    text = resources.files("mmard.data").joinpath("digits.txt").read_text()
    assert all(words in text for words in ("E. Alpaydin, C. Kaynak", "UCI Machine Learning Repository", "CC BY 4.0"))


@pytest.mark.parametrize(("share", "n"), [(None, 130), (0.25, 324), (0.5, 648)])
def test_validation_share(share: float | None, n: int) -> None:
    s = load("digits", val_share=share)
    assert (len(s.val), len(s.train)) == (n, 1297 - n)
    whole = s.train.class_counts() + s.val.class_counts()
    assert (s.val.class_counts() - whole * n / 1297).abs().max() <= 2


def test_limit_is_a_stratified_front_of_the_training_part() -> None:
    s, few = load("digits"), load("digits", limit_train=200)
    assert torch.equal(few.train.x, s.train.x[:200])
    assert few.val.fingerprint() == s.val.fingerprint()
    whole = s.train.class_counts() + s.val.class_counts()
    assert (few.train.class_counts() - whole * 200 / 1297).abs().max() <= 2


def picture(root: Path, name: str, x: Any = None, mode: str = "RGB", **save: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(len(list(root.rglob("*")))).integers(0, 256, (6, 6, 3), np.uint8) if x is None else x
    Image.fromarray(x).convert(mode).save(root / name, **save)


@pytest.mark.parametrize(
    ("train", "test", "word"),
    [
        ("Training", "Testing", "test"),
        ("Train", "Test", "test"),
        ("TRAIN", "VALIDATION", "VALIDATION as test"),
        ("training", "Dev", "Dev as test"),
    ],
)
def test_splits_are_known_in_any_spelling(train: str, test: str, word: str, tmp_path: Path) -> None:
    for split in (train, test):
        for name in ("cat", "dog"):
            for i in range(3):
                picture(tmp_path, f"{split}/{name}/{i}.png")
    s = load("folder", tmp_path)
    assert s.train.classes == ("cat", "dog")
    assert (len(s.train) + len(s.val), len(s.test)) == (6, 6)
    assert word in s.test.origin


def test_what_programs_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            picture(tmp_path, f"{name}/{i}.png")
    clean = load("folder", tmp_path)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN"):
        picture(tmp_path, f"{name}/0.png")
        picture(tmp_path, f"cat/{name}/0-checkpoint.png")
    for name in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/._0.png", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    found = load("folder", tmp_path)
    assert found.train.classes == ("cat", "dog")
    assert contents(found.train, found.val, found.test) == contents(clean.train, clean.val, clean.test)


def test_links_are_followed_once(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            picture(tmp_path / "store", f"{name}/{i}.png")
    root = tmp_path / "set"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "inside").symlink_to(tmp_path / "store" / "cat")
    (root / "cat" / "around").symlink_to(root / "cat")
    (root / "dog").symlink_to(tmp_path / "store" / "dog")
    s = load("folder", root)
    assert (s.train.class_counts() + s.val.class_counts() + s.test.class_counts()).tolist() == [5, 5]
    (root / "cat" / "lost.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(Refused, match=r"lost\.png: expected an image that can be read, got .*No such file"):
        load("folder", root)


def test_orientation_is_applied_and_other_kinds_are_said(tmp_path: Path) -> None:
    """A camera's pictures lie on their side in the file and say so; EXIF 6 is a quarter turn clockwise."""
    upright = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(6):
        picture(tmp_path, f"cat/{i}.png", np.ascontiguousarray(np.rot90(upright)), exif=exif)
        picture(tmp_path, f"dog/{i}.png", upright, mode={0: "L", 1: "RGBA"}.get(i, "RGB"))
    s = load("folder", tmp_path)
    assert s.train.image_shape == (3, 6, 4)
    cats = s.test.x[s.test.y == 0]
    assert torch.equal(cats[0], torch.from_numpy(upright).permute(2, 0, 1))
    said = r"\((1 grey)?( and )?(1 with transparency, which is dropped)?, of 10 looked at\)"
    assert re.search(said, s.train.origin), s.train.origin


@pytest.mark.parametrize("kind", ["float", "uint8", "compressed"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_reading_takes_little_more_memory_than_the_set(kind: str, on_disk: bool, tmp_path: Path) -> None:
    """Peak of what Python and NumPy allocate: half the set beside it, or half of it where it is written to a file.

    A chunk of half a MB is held five times at most: as read, as selected, in float64, and as levels.
    """
    n = 16_000
    x = np.random.default_rng(0).integers(0, 4, (n, 28, 28), np.uint8)
    y = np.arange(n) % 4
    store = (x / 255).astype(np.float32) if kind == "float" else x
    save = np.savez_compressed if kind == "compressed" else np.savez
    save(tmp_path / "a.npz", x_train=store, y_train=y, x_test=store[:8], y_test=y[:8])
    load("npz", tmp_path, limit_train=8)  # imports and caches
    tracemalloc.start()
    s = load("npz", tmp_path, on_disk=on_disk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (0.5 if on_disk else 1.5) * x.nbytes
    assert torch.equal(s.test.x[:, 0], torch.from_numpy(x[:8]))


def official_svhn(root: Path, n: int, n_test: int) -> None:
    for split, k in (("train", n), ("test", n_test)):
        x = np.random.default_rng(k).integers(0, 4, (32, 32, 3, k), np.uint8)
        y = (np.arange(k) % 10 + 1).astype(np.uint8)[:, None]
        scipy_io.savemat(root / f"{split}_32x32.mat", {"X": x, "y": y}, do_compression=True)


def official_stl10(root: Path, n: int, n_test: int) -> None:
    for split, k in (("train", n // 9), ("test", n_test // 9)):
        (root / f"{split}_X.bin").write_bytes(bytes(3 * 96 * 96 * k))
        (root / f"{split}_y.bin").write_bytes((np.arange(k) % 10 + 1).astype(np.uint8).tobytes())


def official_idx(packed: bool) -> Callable[[Path, int, int], None]:
    def write(root: Path, n: int, n_test: int) -> None:
        for stem, k in (("train", 3 * n), ("t10k", 3 * n_test)):
            for name, shape in (("images-idx3", (k, 28, 28)), ("labels-idx1", (k,))):
                head = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
                content = head + (np.arange(np.prod(shape), dtype=np.uint32) % 10).astype(np.uint8).tobytes()
                path = root / (f"{stem}-{name}-ubyte" + (".gz" if packed else ""))
                path.write_bytes(gzip.compress(content, 1) if packed else content)

    return write


def official_cifar(name: str, kind: str, packed: bool) -> Callable[[Path, int, int], None]:
    def write(root: Path, n: int, n_test: int) -> None:
        classes = 10 if name == "cifar10" else 100
        x = np.random.default_rng(0).integers(0, 4, (n, 3, 32, 32), np.uint8)
        y = np.arange(n) % classes
        a = Arrays(x, y, x[:n_test], y[:n_test], (), "")
        encode = cifar_python("labels" if classes == 10 else "fine_labels", python2)
        files = cifar_files(a, kind, name, encode if kind == "py" else cifar_binary(1 if classes == 10 else 2))
        long = {"py": "python", "bin": "binary"}[kind]
        if packed:
            write_tar(root / f"cifar-{classes}-{long}.tar.gz", f"cifar-{classes}-{long}", files)
        else:
            write_all(root, files)

    return write


LARGE = {
    "cifar10, binary": ("cifar10", official_cifar("cifar10", "bin", False)),
    "cifar10, python": ("cifar10", official_cifar("cifar10", "py", False)),
    "cifar10, python archive": ("cifar10", official_cifar("cifar10", "py", True)),
    "cifar100, python": ("cifar100", official_cifar("cifar100", "py", False)),
    "cifar100, python archive": ("cifar100", official_cifar("cifar100", "py", True)),
    "mnist": ("mnist", official_idx(False)),
    "mnist, packed": ("mnist", official_idx(True)),
    "stl10": ("stl10", official_stl10),
    "svhn": ("svhn", official_svhn),
}


@pytest.mark.parametrize("form", LARGE)
def test_official_files_take_little_memory_beside_the_set_while_they_are_read(form: str, tmp_path: Path) -> None:
    """Peak of what Python and NumPy allocate: the set, labels as a list, and two blocks of 128 KB of 6 MB or more.

    A set that lies in memory beside what it is read from would take twice its size.
    """
    name, write = LARGE[form]
    n, n_test = 1832, 651
    write(tmp_path, n, n_test)
    load(name, tmp_path)  # imports and caches
    tracemalloc.start()
    s = load(name, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(part.x.nbytes for part in (s.train, s.val, s.test))
    assert size > 2**22
    assert peak < 1.25 * size
