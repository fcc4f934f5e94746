"""Compressed images (PNG, JPEG, ...) to pixels, through Pillow, a few threads at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmard.data.image_set import Images
from mmard.errors import Refused, needs_extra

# optional -------------------------------------------------------------------------------------------------------------
# Packages that only some forms of files need, imported when such a file is met.


def optional(module: str, purpose: str, package: str = "", extra: str = "data") -> Any:
    """The module, imported now.

    Raises:
        Refused: if it is not installed, naming `package` (by default the module's first name) and the extra.
    """
    try:
        return import_module(module)
    except ImportError:
        raise needs_extra(package or module.partition(".")[0], extra, purpose) from None


# images ---------------------------------------------------------------------------------------------------------------


Encoded = tuple[str, bytes | Path]  # a name for people, and the file or its content

_CHUNK = 512
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


def form_of(samples: Sequence[Encoded], image_size: int | None) -> Form:
    """The form of a set, from a few of its images: grey if all of them are, and the size of the first one.

    With `image_size` every image is brought to that many pixels a side instead.
    """
    assert samples
    modes, sizes = zip(*(_header(*sample) for sample in samples), strict=True)
    channels = 1 if all(mode in _GREY for mode in modes) else 3
    if image_size is not None:
        if image_size < 1:
            raise Refused("image_size", expected="a positive number of pixels", got=str(image_size))
        return Form((channels, image_size, image_size), resize=True)
    width, height = sizes[0]
    return Form((channels, height, width))


def decode(encoded: Iterable[Encoded], form: Form) -> Iterator[Images]:
    """Images in order, uint8 (n, C, H, W) at a time.

    Raises:
        Refused: naming the image, if it cannot be read, is of another size, or has more than 8 bits a channel.
    """
    one = partial(_decode, form=form)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        block: list[Encoded] = []
        for item in encoded:
            block.append(item)
            if len(block) == _CHUNK:
                yield np.stack(list(pool.map(one, block)))
                block = []
        if block:
            yield np.stack(list(pool.map(one, block)))


def _pillow() -> Any:
    return optional("PIL.Image", "reading image files", package="pillow")


def _open(name: str, data: bytes | Path) -> Any:
    try:
        return _pillow().open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Refused:
        raise
    except Exception as error:  # whatever a parser may raise on foreign bytes
        raise _unreadable(name, error) from error


def _header(name: str, data: bytes | Path) -> tuple[str, tuple[int, int]]:
    with _open(name, data) as image:
        return image.mode, image.size


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
        try:
            image = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # a broken PNG chunk is a SyntaxError, what is cut off an OSError, and so on
            raise _unreadable(name, error) from error
    if image.size != (width, height):
        if not form.resize:
            raise Refused(
                f"image {name}",
                expected=f"{width} x {height} pixels, as the first image",
                got=f"{image.size[0]} x {image.size[1]}",
                mend=f"bring all images to one size, or pass --image-size {min(width, height)} to have it done",
            )
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


# places ---------------------------------------------------------------------------------------------------------------
# Where a source looks for its files, and what is said when they are not there.


def places(data_dir: Path, name: str, fetchable: bool = True) -> list[Path]:
    """The folder given and the folder named after the set within it, whichever exist.

    Raises:
        Refused: if the folder given does not exist.
    """
    if not data_dir.exists():
        raise Refused(
            f"data {name!r}", expected="a folder that exists", got=str(data_dir), mend=_mend(name, data_dir, fetchable)
        )
    return [place for place in (data_dir, data_dir / name) if place.is_dir()]


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
