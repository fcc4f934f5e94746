"""What sources are made of: compressed images to pixels, the folders that are searched, packages of extras.

Images (PNG, JPEG, ...) are read through Pillow, a few threads at a time. Their size is looked at before they are
unpacked.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from mmard.data.image_set import Images, Part, Rows
from mmard.errors import Refused, needs_extra
from mmard.files import writing_into

Encoded = tuple[str, bytes | Path]  # a name for people, and the file or its content

_CHUNK = 512
_MOST_PIXELS = 2**26  # of one image
_THREADS = min(8, os.cpu_count() or 1)
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_TRANSPARENT = ("LA", "RGBA", "PA")
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Form:
    """What every image of a set is brought to.

    Args:
        shape: (C, H, W), C = 1 for grey and 3 for colour. A grey image in a colour set gets three equal channels.
        resize: bring images of other sizes to H x W (all of it, no borders: the shorter side is scaled to fit and the
            centre is cut out). Otherwise they are refused.
    """

    shape: tuple[int, int, int]
    resize: bool = False


def form_of(samples: Sequence[Encoded], image_size: int | None) -> tuple[Form, str]:
    """The form of a set, from some of its images, and a note for its origin where some are of another kind.

    It is grey if all of them are, and of the size that most of them have; with `image_size` every image is brought to
    that many pixels a side instead.
    """
    assert samples
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_header_or_fault, samples))
    readable = [header for header in headers if not isinstance(header, Refused)]
    if not readable:
        raise next(header for header in headers if isinstance(header, Refused))
    modes, sizes = zip(*readable, strict=True)
    grey, clear = sum(mode in _GREY for mode in modes), sum(mode in _TRANSPARENT for mode in modes)
    channels = 1 if grey == len(modes) else 3
    kinds = [(grey if channels == 3 else 0, "grey"), (clear, "with transparency, which is dropped")]
    said = " and ".join(f"{count:,} {kind}" for count, kind in kinds if count)
    note = f" ({said}, of {len(modes):,} looked at)" if said else ""
    if image_size is not None:
        if image_size < 1:
            raise Refused("image_size", expected="a positive number of pixels", got=str(image_size))
        return Form((channels, image_size, image_size), resize=True), note
    ((width, height), _) = Counter(sizes).most_common(1)[0]
    return Form((channels, height, width)), note


def decode(encoded: Iterable[Encoded], form: Form) -> Iterator[Images]:
    """Images in order, uint8 (n, C, H, W) at a time.

    Raises:
        Refused: naming the image, if it cannot be read, is of another size, or has more than 8 bits a channel; of
            several, all that are like the first, and how many others there are.
    """
    faults: list[Refused] = []
    count = 0
    for block in _decoded(encoded, form):
        count += len(block)
        faults += [each for each in block if isinstance(each, Refused)]
        if not faults:
            yield np.stack([each for each in block if not isinstance(each, Refused)])
    if faults:
        raise _together(faults, count)


def _decoded(encoded: Iterable[Encoded], form: Form) -> Iterator[list[Images | Refused]]:
    """Images or their faults, some hundreds at a time."""

    def one(item: Encoded) -> Images | Refused:
        try:
            return _decode(item, form)
        except Refused as fault:
            if isinstance(fault.__cause__, ModuleNotFoundError):
                raise
            return fault

    with ThreadPoolExecutor(_THREADS) as pool:
        items = iter(encoded)
        while block := list(islice(items, _CHUNK)):
            yield list(pool.map(one, block))


_NAMED = 5


def _together(faults: list[Refused], count: int) -> Refused:
    """One refusal for all faults of a set: the first one, and all kinds with counts and some names."""
    first = faults[0]
    mend = f"{first.mend}, or go on without such images: --skip-bad"
    if len(faults) == 1:
        return Refused(first.where, expected=first.expected, got=first.got, mend=mend)
    kinds: dict[str, list[Refused]] = {}
    for fault in faults:
        kinds.setdefault(fault.expected, []).append(fault)
    listed = []
    for expected, alike in kinds.items():
        names = ", ".join(fault.where.removeprefix("image ") for fault in alike[:_NAMED])
        more = f" and {len(alike) - _NAMED:,} more" if len(alike) > _NAMED else ""
        listed.append(f"{len(alike):,} not {expected} ({names}{more})")
    mend = f"in all {len(faults):,} bad of {count:,}: {'; '.join(listed)}; {mend}"
    return Refused(first.where, expected=first.expected, got=first.got, mend=mend)


def decoded_part(
    y: Rows,
    form: Form,
    encoded: Callable[[Rows], Iterator[Encoded]],
    files: tuple[Path, ...],
    classes: tuple[str, ...],
    origin: str,
) -> Part:
    """A part whose images are compressed one by one; `encoded` gives those at ascending rows."""

    def bad() -> Rows:
        every = np.arange(len(y))
        found = [isinstance(each, Refused) for block in _decoded(encoded(every), form) for each in block]
        return np.flatnonzero(found)

    return Part(y, form.shape, lambda rows: decode(encoded(rows), form), files, classes, origin, bad)


def _pillow(module: str = "PIL.Image") -> Any:
    return import_extra(module, "reading image files", package="pillow")


def _open(name: str, data: bytes | Path) -> Any:
    try:
        image = _pillow().open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Refused:
        raise
    except Exception as error:  # whatever a parser may raise on foreign bytes
        raise _unreadable(name, error) from error
    if image.size[0] * image.size[1] > _MOST_PIXELS:
        got = f"{image.size[0]} x {image.size[1]} pixels"
        image.close()
        raise Refused(f"image {name}", expected=f"at most {_MOST_PIXELS:,} pixels", got=got, mend="scale it down first")
    return image


def _header(name: str, data: bytes | Path) -> tuple[str, tuple[int, int]]:
    """Mode and (width, height) as it is meant to be seen."""
    with _open(name, data) as image:
        return image.mode, _upright_size(image, name)


def _header_or_fault(sample: Encoded) -> tuple[str, tuple[int, int]] | Refused:
    """The header, or why there is none, which is told with all others when the images are read."""
    try:
        return _header(*sample)
    except Refused as fault:
        if isinstance(fault.__cause__, ModuleNotFoundError):
            raise
        return fault


def _upright_size(image: Any, name: str) -> tuple[int, int]:
    width, height = image.size
    try:
        turned = image.getexif().get(_ORIENTATION) in _TURNED
    except Exception as error:
        raise _unreadable(name, error) from error
    return (height, width) if turned else (width, height)


_ORIENTATION = 0x0112  # EXIF tag


def _decode(item: Encoded, form: Form) -> Images:
    name, data = item
    channels, height, width = form.shape
    with _open(name, data) as image:
        if image.mode not in _GREY + _COLOUR:
            raise Refused(
                f"image {name}",
                expected="8 bits a channel",
                got=f"mode {image.mode!r}",
                mend="convert it to 8-bit grey or RGB",
            )
        if channels == 1 and image.mode not in _GREY:
            raise Refused(
                f"image {name}",
                expected="grey, as the images looked at first",
                got=f"mode {image.mode!r}",
                mend="convert the set to one mode, all grey or all RGB",
            )
        size = _upright_size(image, name)
        if size != (width, height) and not form.resize:
            raise Refused(
                f"image {name}",
                expected=f"{width} x {height} pixels, as most images",
                got=f"{size[0]} x {size[1]}",
                mend=f"bring all images to one size, or pass --image-size {min(width, height)} to have it done",
            )
        try:
            image = _pillow("PIL.ImageOps").exif_transpose(image).convert("L" if channels == 1 else "RGB")
        except Exception as error:  # a broken PNG chunk is a SyntaxError, what is cut off an OSError, and so on
            raise _unreadable(name, error) from error
    if image.size != (width, height):
        image = _fit(image, width, height)
    pixels: Images = np.asarray(image, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
    return pixels


def _fit(image: Any, width: int, height: int) -> Any:
    """Scale so that the image just covers width x height, then cut out the centre."""
    scale = max(width / image.size[0], height / image.size[1])
    wide, high = (max(t, round(s * scale)) for s, t in zip(image.size, (width, height), strict=True))
    image = image.resize((wide, high), _pillow().Resampling.BILINEAR)
    left, top = (wide - width) // 2, (high - height) // 2
    return image.crop((left, top, left + width, top + height))


def _unreadable(name: str, error: Exception) -> Refused:
    return Refused(
        f"image {name}",
        expected="an image that can be read",
        got=str(error).splitlines()[0] if str(error) else type(error).__name__,
        mend="the file is damaged or cut off: fetch or copy it again",
    )


def mapped(file: Any) -> mmap:
    """The content of an open file, which the system reads when it is looked at, and need not keep in memory."""
    return mmap(file.fileno(), 0, access=ACCESS_READ)


def unpacked(blocks: Iterable[bytes | memoryview], most: int) -> mmap:
    """What was compressed, mapped: it goes through a nameless temporary file and does not stay in memory.

    Raises:
        ValueError: for more than `most` bytes.
        Refused: if the folder for temporary files has no room.
    """
    folder, size = Path(tempfile.gettempdir()), 0
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            size += len(block)
            if size > most:
                raise ValueError(f"over {most:,} bytes")
            with writing_into(folder):
                file.write(block)
                file.flush()
        return mapped(file)


def blocks_of(stream: Any) -> Iterator[bytes]:
    """What a stream has left, a megabyte at a time."""
    while block := stream.read(2**20):
        yield block


def import_extra(module: str, purpose: str, package: str = "", extra: str = "data") -> Any:
    """A module that only some forms of files need, imported when such a file is met.

    Raises:
        Refused: if it is not installed, naming `package` (by default the module's first name) and the extra.
    """
    try:
        return import_module(module)
    except ImportError:
        raise needs_extra(package or module.partition(".")[0], extra, purpose) from None


def search_folders(data_dir: Path, name: str, fetchable: bool = True) -> list[Path]:
    """The folder given and the folder named after the set within it, whichever exist.

    Raises:
        Refused: if there is nothing at `data_dir`, or a file.
    """
    if not data_dir.is_dir():
        got = f"{data_dir}, which is a file" if data_dir.exists() else str(data_dir)
        expected = "a folder" if data_dir.exists() else "a folder that exists"
        raise Refused(f"data {name!r}", expected=expected, got=got, mend=_mend(name, data_dir, fetchable))
    return [folder for folder in (data_dir, data_dir / name) if folder.is_dir()]


def missing(name: str, data_dir: Path, forms: str, fetchable: bool = True) -> Refused:
    """The error for a folder in which none of a source's forms was found."""
    return Refused(
        f"data {name!r}",
        expected=forms,
        got=f"none of these in {data_dir} or {data_dir / name}",
        mend=_mend(name, data_dir, fetchable),
    )


def damaged(path: Path | str, expected: str, error: object) -> Refused:
    """The error for a file that does not hold what its name promises."""
    got = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Refused(str(path), expected=expected, got=got, mend="the file is damaged or cut off: fetch or copy it again")


def _mend(name: str, data_dir: Path, fetchable: bool) -> str:
    if not fetchable:
        return "point --data-dir at the folder that holds them"
    return f"get them with: mmard fetch {name} --data-dir {data_dir}"
