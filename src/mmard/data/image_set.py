"""A labelled set of images: 8-bit pixels and labels, checked once, with a fingerprint that names its content.

ImageSet, Splits            what everything downstream is given
Part                        one split as a source found it: labels at hand, images still to be read
into_memory, onto_disk      its images, each read once and straight to its final place, so that a set in a
                            memory-mapped file holds the same bytes in the same order as one in memory
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmard.errors import Refused
from mmard.files import replacing

_BLOCK = 2**17  # bytes of images taken at a time
_CHUNK = 4096  # images looked at together where a set may be larger than memory


def as_floats(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels 0..255 to floats in [0, 1]."""
    return levels.to(dtype) / 255


def as_levels(x: Tensor) -> Tensor:
    """Floats in [0, 1] to the nearest of the 256 levels, uint8; what lies outside saturates."""
    x = x if x.dtype == torch.float64 else x.float()
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels of one split, on the CPU.

    Pixels stay 8-bit: CIFAR-10 is 150 MB this way, and every file form that is read here holds 8 bits. `inputs` gives
    what networks take.

    Args:
        x: uint8 (N, C, H, W).
        y: int64 (N,), each in 0..len(classes) - 1.
        classes: the name of each class, in label order.
        origin: one line for people and records: which source, which form of files, which split; never a path.
        on_disk: x is a view of a memory-mapped file, so whole-set copies are to be avoided.

    Raises:
        Refused: for any other type or shape, for a set without images, and for a label out of range.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    origin: str
    on_disk: bool = False

    def __post_init__(self) -> None:
        with torch.inference_mode(False):  # tensors made under it could not be saved for a backward
            for name in ("x", "y"):
                if getattr(self, name).is_inference():
                    object.__setattr__(self, name, getattr(self, name).clone())
        x, y = self.x, self.y
        if x.dtype != torch.uint8 or x.ndim != 4 or 0 in x.shape[1:]:
            raise Refused(self.origin, expected="images uint8 (N, C, H, W)", got=f"{x.dtype} {tuple(x.shape)}")
        if len(x) == 0:
            raise Refused(self.origin, expected="at least one image", got="none")
        if y.dtype != torch.int64 or y.shape != (len(x),):
            raise Refused(
                self.origin, expected=f"one label per image, int64 ({len(x)},)", got=f"{y.dtype} {tuple(y.shape)}"
            )
        outside = ((y < 0) | (y >= len(self.classes))).nonzero()
        if len(outside):
            first = int(outside[0])
            raise Refused(
                self.origin,
                expected=f"labels in 0..{len(self.classes) - 1}, the {len(self.classes)} classes",
                got=f"label {int(y[first])} at image {first}",
                mend="is this the right data set, and are its labels counted from 0?",
            )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"ImageSet({self.origin!r}, {len(self)} images {self.image_shape}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.x.shape
        return c, h, w

    def take(self, indices: Tensor | Sequence[int] | slice, origin: str | None = None) -> ImageSet:
        """The images at `indices`, in that order. A slice is a view; anything else copies those images into memory."""
        if isinstance(indices, slice):
            return replace(self, x=self.x[indices], y=self.y[indices], origin=origin or self.origin)
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, x=self.x[rows], y=self.y[rows], origin=origin or self.origin, on_disk=False)

    def inputs(
        self,
        rows: Tensor | slice = slice(None),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The images at `rows` as networks take them: floats in [0, 1], (n, C, H, W)."""
        return as_floats(self.x[rows].to(device), dtype)

    def class_counts(self) -> Tensor:
        """Images per class, int64 (num_classes,)."""
        return torch.bincount(self.y, minlength=self.num_classes)

    def fingerprint(self) -> str:
        """SHA-256, in hex, over the shape, the pixels and the labels: equal exactly when the content is."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        for chunk in self._chunks():
            digest.update(chunk.contiguous().numpy().data)
        digest.update(self.y.contiguous().numpy().astype("<i8").data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all pixels, in input units [0, 1].

        Sums are kept as integers, so the result is exact and does not depend on how the set is cut into chunks.
        """
        levels = torch.arange(256, dtype=torch.int64)
        counts = torch.zeros(self.x.shape[1], 256, dtype=torch.int64)
        for chunk in self._chunks():
            for channel in range(len(counts)):
                counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
        n = int(counts[0].sum())
        mean = [int(s) / n for s in (counts * levels).sum(1)]
        square = [int(s) / n for s in (counts * levels**2).sum(1)]
        std = [max(q - m * m, 0.0) ** 0.5 for q, m in zip(square, mean, strict=True)]
        return tuple(m / 255 for m in mean), tuple(s / 255 for s in std)

    def _chunks(self) -> Iterator[Tensor]:
        for start in range(0, len(self), _CHUNK):
            yield self.x[start : start + _CHUNK]


@dataclass(frozen=True)
class Splits:
    """What a run needs of a data set. Models are chosen on `val`, and `test` is looked at when everything is decided.

    Raises:
        Refused: if the three do not agree on classes and image shape, or a class has no training image.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for part in (self.val, self.test):
            if part.classes != self.train.classes:
                raise Refused(part.origin, expected="the classes of the training set", got=f"{part.num_classes} others")
            if part.image_shape != self.train.image_shape:
                raise Refused(
                    part.origin,
                    expected=f"images {self.train.image_shape}, as in the training set",
                    got=str(part.image_shape),
                )
        empty = (self.train.class_counts() == 0).nonzero()
        if len(empty):
            name = self.train.classes[int(empty[0])]
            raise Refused(
                self.train.origin,
                expected="a training image of every class",
                got=f"none of {name!r}" + (f" and {len(empty) - 1} more" if len(empty) > 1 else ""),
                mend="add images, drop the class, or raise limit_train",
            )


Images = NDArray[np.uint8]
Rows = NDArray[np.int64]

_LAYOUT = 1  # part of the key of a memory-mapped file; raise it when what is written there changes


@dataclass(frozen=True)
class Part:
    """A split before its images are read.

    Args:
        y: int64 (N,).
        shape: (C, H, W) of every image.
        read: the images at the given rows, uint8 (n, C, H, W) at a time; rows are ascending.
        files: the files that the images come from.
        classes: names in label order.
        origin: as in `ImageSet`.
        bad: rows of images that cannot be had, where each is a file of its own that may be left out.
    """

    y: Rows
    shape: tuple[int, int, int]
    read: Callable[[Rows], Iterator[Images]]
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    origin: str
    bad: Callable[[], Rows] | None = None

    def __len__(self) -> int:
        return len(self.y)


def without_bad(part: Part) -> Part:
    """The same part without the images that cannot be had; its origin says how many those are.

    Raises:
        Refused: for a source whose images are not files of their own.
    """
    if part.bad is None:
        mend = "leave --skip-bad out"
        raise Refused("skip_bad", expected="a source of single images", got=part.origin, mend=mend)
    bad = part.bad()
    if not len(bad):
        return part
    kept = np.setdiff1d(np.arange(len(part)), bad)
    one_each = len(part.files) == len(part)
    return replace(
        part,
        y=part.y[kept],
        read=lambda rows: part.read(kept[rows]),
        files=tuple(part.files[row] for row in kept) if one_each else part.files,
        origin=f"{part.origin}, {len(bad):,} bad of {len(part):,} left out",
        bad=None,
    )


def checked(part: Part) -> Part:
    """The same part, once every label is known to be one of its classes.

    Raises:
        Refused: naming the first image whose label is not, in the source's own order, or if there is no image.
    """
    if len(part) == 0:
        raise Refused(part.origin, expected="at least one image", got="none")
    outside = np.flatnonzero((part.y < 0) | (part.y >= len(part.classes)))
    if len(outside):
        raise Refused(
            part.origin,
            expected=f"labels in 0..{len(part.classes) - 1}, the {len(part.classes)} classes",
            got=f"label {part.y[outside[0]]} at image {outside[0]}",
            mend="unlabelled images, or another data set?",
        )
    return part


def whole_labels(y: NDArray[Any], where: str) -> Rows:
    """The same labels as int64; none is rounded.

    Raises:
        Refused: for labels that are not whole numbers, or several for an image.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iuf":
        raise Refused(where, expected="integers (N,)", got=f"{y.dtype} {y.shape}", mend="not one-hot, not names")
    labels: Rows = y.astype(np.int64) if y.dtype.kind != "f" else np.nan_to_num(y, posinf=0, neginf=0).astype(np.int64)
    broken = np.flatnonzero(labels != y)
    if len(broken):
        got = f"label {y[broken[0]]:g} at image {broken[0]}"
        raise Refused(where, expected="whole numbers as labels", got=got, mend="is this the column of class numbers?")
    return labels


def numbered(y: Rows, where: str) -> tuple[str, ...]:
    """Class names "0", "1", ... where the source has none, one for each label up to the largest.

    Raises:
        Refused: for a label so large that some class must be without an image.
    """
    most = int(y.max(initial=0))
    if most >= len(y) > 0:
        raise Refused(where, expected="labels that count classes from 0", got=f"label {most} among {len(y)} images")
    return tuple(map(str, range(most + 1)))


def taken(x: Images, rows: Rows) -> Iterator[Images]:
    """The images at these rows, a few at a time."""
    step = max(1, _BLOCK // math.prod(x.shape[1:]))
    for start in range(0, len(rows), step):
        yield x[rows[start : start + step]]


def part_of_arrays(xs: Sequence[Images], y: Rows, files: Sequence[Path], classes: tuple[str, ...], origin: str) -> Part:
    """A part whose images are in these arrays, uint8 (n, C, H, W), one after the other; large ones are mapped files."""
    n = sum(map(len, xs))
    if n != len(y):
        raise Refused(origin, expected=f"as many labels as images, {n}", got=f"{len(y)} labels")

    def read(rows: Rows) -> Iterator[Images]:
        start = 0
        for x in xs:
            yield from taken(x, rows[(rows >= start) & (rows < start + len(x))] - start)
            start += len(x)

    _, c, h, w = xs[0].shape
    return Part(y.astype(np.int64), (c, h, w), read, tuple(files), classes, origin)


def averaged(part: Part, size: int) -> Part:
    """The same images brought to `size` x `size`, each pixel the mean of a whole block, rounded half up.

    Raises:
        Refused: for a size that does not divide the side of the images.
    """
    channels, side, _ = part.shape
    if size < 1 or side % size:
        able = [each for each in range(side, 3, -1) if side % each == 0]
        raise Refused(
            "image_size",
            expected=f"a divisor of {side}, the side of the images of {part.origin}",
            got=str(size),
            mend=f"take one of {', '.join(map(str, able))}",
        )
    if size == side:
        return part
    block = side // size

    def read(rows: Rows) -> Iterator[Images]:
        for x in part.read(rows):
            sums = x.reshape(len(x), channels, size, block, size, block).sum((3, 5), dtype=np.uint32)
            yield ((2 * sums + block**2) // (2 * block**2)).astype(np.uint8)

    origin = f"{part.origin}, blocks of {block} x {block} averaged"
    return Part(part.y, (channels, size, size), read, part.files, part.classes, origin)


def balanced_order(y: Rows, generator: torch.Generator) -> Rows:
    """A random order in which every prefix, and so every suffix, holds each class in its share, to an image or two.

    Image j of the n of a class, counted in a random order, is given a random time in [j/n, (j+1)/n), and the set is
    sorted by time. So a validation part may be cut from the end and a smaller training part from the front, of any
    size, and both stay stratified.
    """
    shuffled = torch.randperm(len(y), generator=generator).numpy()
    of_class = np.argsort(y[shuffled], kind="stable")
    counts = np.bincount(y)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    labels = y[shuffled][of_class]
    rank = np.arange(len(y)) - starts[labels]
    jitter = torch.rand(len(y), generator=generator, dtype=torch.float64).numpy()
    order: Rows = shuffled[of_class[np.argsort((rank + jitter) / counts[labels], kind="stable")]]
    return order


def _fill(part: Part, order: Rows, put: Callable[[Rows, Images], None]) -> None:
    """Hand over the image at row order[k] of the part as the k-th. Rows may be left out, none may repeat."""
    target = np.argsort(order, kind="stable")
    done = 0
    for chunk in part.read(order[target]):
        if chunk.shape[1:] != part.shape:
            raise Refused(part.origin, expected=f"every image {part.shape}", got=str(chunk.shape[1:]))
        put(target[done : done + len(chunk)], chunk)
        done += len(chunk)
    if done != len(order):
        raise Refused(part.origin, expected=f"{len(order)} images, one for every label", got=f"{done}")


def into_memory(part: Part, order: Rows) -> Tensor:
    """The images at `order`, uint8 (n, C, H, W).

    Raises:
        Refused: for a set that does not fit; it is asked before anything is read.
    """
    size, free = len(order) * math.prod(part.shape), _free_memory()
    if free is not None and size > free:
        mend = "keep it on disk with --on-disk, or take fewer images"
        raise Refused(part.origin, expected=f"{size / 1e6:,.0f} MB of memory", got=f"{free / 1e6:,.0f} MB", mend=mend)
    out = np.empty((len(order), *part.shape), np.uint8)
    _fill(part, order, out.__setitem__)
    return torch.from_numpy(out)


def _free_memory() -> int | None:
    """Bytes that the system can still give; None where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def onto_disk(part: Part, order: Rows, cache_dir: Path, name: str) -> Tensor:
    """The images at `order` as a view of an uncompressed .npy file in `cache_dir`, which is written the first time.

    The file's name holds a hash of the order and of the source files' names, sizes and times of change, so changed
    sources are read anew. The map is copy-on-write: nothing that is done to the tensor reaches the file.

    Raises:
        Refused: if the folder cannot be written to, or has no room.
    """
    path = cache_dir / f"{name}-{_key(part, order)}.npy"
    if not path.exists():
        _write(part, order, path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _write(part: Part, order: Rows, path: Path) -> None:
    image = math.prod(part.shape)
    size = len(order) * image
    mend = "name a folder with room for it by --cache-dir"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size + 2**20:
            got = f"{free / 1e6:,.0f} MB free in {path.parent}"
            raise Refused(f"on_disk {part.origin}", expected=f"{size / 1e6:,.0f} MB of disk", got=got, mend=mend)
        # Written image by image and not through a memory map, which holds its pages in memory, and on a disk that
        # fills up ends the process instead of raising.
        with replacing(path) as temporary, temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), *part.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()

            def put(rows: Rows, images: Images) -> None:
                for row, each in zip(rows, images, strict=True):
                    file.seek(start + int(row) * image)
                    file.write(np.ascontiguousarray(each).data)

            _fill(part, order, put)
    except OSError as error:
        got = f"{error.strerror or error} for {path.parent}"
        raise Refused(f"on_disk {part.origin}", expected="a folder to write to", got=got, mend=mend) from error


def _key(part: Part, order: Rows) -> str:
    digest = hashlib.sha256()
    for path in part.files:
        stat = path.stat()
        digest.update(f"{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    digest.update(json.dumps([_LAYOUT, list(part.shape), len(order), part.origin]).encode())
    digest.update(order.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
