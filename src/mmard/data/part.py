"""One split as a source found it, and how its images come into memory or into a memory-mapped file.

Labels are at hand at once; images are read in chunks, each once, straight to their final place. Both ways run the same
code, so a set on disk holds the same bytes in the same order as a set in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmard.errors import Refused

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
    """

    y: Rows
    shape: tuple[int, int, int]
    read: Callable[[Rows], Iterator[Images]]
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    origin: str

    def __len__(self) -> int:
        return len(self.y)


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


def numbered(y: Rows, where: str) -> tuple[str, ...]:
    """Class names "0", "1", ... where the source has none, one for each label up to the largest.

    Raises:
        Refused: for a label so large that some class must be without an image.
    """
    most = int(y.max(initial=0))
    if most >= len(y) > 0:
        raise Refused(where, expected="labels that count classes from 0", got=f"label {most} among {len(y)} images")
    return tuple(map(str, range(most + 1)))


def part_of_arrays(x: Images, y: Rows, files: Sequence[Path], classes: tuple[str, ...], origin: str) -> Part:
    """A part whose images, uint8 (N, C, H, W), had to be read as a whole anyway."""
    if len(x) != len(y):
        raise Refused(origin, expected=f"as many labels as images, {len(x)}", got=f"{len(y)} labels")

    def read(rows: Rows) -> Iterator[Images]:
        for start in range(0, len(rows), 1024):
            yield x[rows[start : start + 1024]]

    _, c, h, w = x.shape
    return Part(y.astype(np.int64), (c, h, w), read, tuple(files), classes, origin)


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


def _fill(part: Part, order: Rows, out: Images) -> None:
    """Write the image at row order[k] of the part to out[k]. Rows may be left out, none may repeat."""
    place = np.argsort(order, kind="stable")
    done = 0
    for chunk in part.read(order[place]):
        if chunk.shape[1:] != part.shape:
            raise Refused(part.origin, expected=f"every image {part.shape}", got=str(chunk.shape[1:]))
        out[place[done : done + len(chunk)]] = chunk
        done += len(chunk)
    if done != len(order):
        raise Refused(part.origin, expected=f"{len(order)} images, one for every label", got=f"{done}")


def into_memory(part: Part, order: Rows) -> Tensor:
    """The images at `order`, uint8 (n, C, H, W)."""
    out = np.empty((len(order), *part.shape), np.uint8)
    _fill(part, order, out)
    return torch.from_numpy(out)


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
    size = len(order) * int(np.prod(part.shape))
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    mend = "name a folder with room for it by --cache-dir"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        # Asked first, because a memory map on a full disk ends the process instead of raising.
        if free < size + 2**20:
            got = f"{free / 1e6:,.0f} MB free in {path.parent}"
            raise Refused(f"on_disk {part.origin}", expected=f"{size / 1e6:,.0f} MB of disk", got=got, mend=mend)
        out = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=(len(order), *part.shape))
        _fill(part, order, out)
        out.flush()
        del out
        os.replace(scratch, path)
    except OSError as error:
        got = f"{error.strerror or error} for {path.parent}"
        raise Refused(f"on_disk {part.origin}", expected="a folder to write to", got=got, mend=mend) from error
    finally:
        with suppress(OSError):
            scratch.unlink()


def _key(part: Part, order: Rows) -> str:
    digest = hashlib.sha256()
    for path in part.files:
        stat = path.stat()
        digest.update(f"{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    digest.update(json.dumps([_LAYOUT, list(part.shape), len(order), part.origin]).encode())
    digest.update(order.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
