"""Pickles read without running anything that they name: official CIFAR files, and NumPy's numbers beside weights.

A pickle is a program: it may call whatever it can import. Here it can import five names, and gets a stand-in of ours
for each, so not even NumPy's own unpickling code is reached. A stand-in array holds bytes; it becomes an array of uint8
after its type and length have been looked at.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from mmap import mmap
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Content = bytes | mmap
_LONG = 2**16  # bytes from which on a piece is not copied


class _Dtype:
    """Stands in for numpy.dtype: remembers the type's code."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, of no meaning for bytes."""


class _Array:
    """Stands in for numpy.ndarray: remembers shape and bytes."""

    pixels: NDArray[np.uint8]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1":
            raise pickle.UnpicklingError("an array of another type than uint8")
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    """Stands in for numpy's maker of an empty array that is given its state next."""
    return _Array()


def _encode(text: str, encoding: str | bytes = "latin1") -> bytes:
    """Stands in for codecs.encode, by which Python 3 writes bytes into pickles that Python 2 can read."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Number:
    """Stands in for a number of NumPy that lies beside tensors: of no meaning for weights."""

    def __init__(self, *_: object) -> None:
        pass


NUMPY_NUMBERS: list[Any] = [
    (_Number, "numpy.core.multiarray.scalar"),
    (_Number, "numpy._core.multiarray.scalar"),
    (_Dtype, "numpy.dtype"),
    (_encode, "_codecs.encode"),
]
"""For `torch.serialization.safe_globals`: what a checkpoint names that has numbers of NumPy, and what is called."""


class _Views:
    """The content of a file as the reader of pickles asks for it: long pieces are views, and are not copied."""

    def __init__(self, content: Content) -> None:
        self._content, self._view, self._at = content, memoryview(content), 0

    def read(self, n: int) -> bytes | memoryview:
        piece = self._view[self._at : self._at + n]
        if len(piece) != n:
            raise EOFError("it ends in the middle")
        self._at += n
        return piece if n > _LONG else bytes(piece)

    def readline(self) -> bytes:
        end = self._content.find(b"\n", self._at)
        return bytes(self.read((end if end >= 0 else len(self._view)) + 1 - self._at))


class _Unpickler(pickle._Unpickler):  # the one in Python, which takes views
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs") from None


def read_pickle(data: Content) -> dict[str, Any]:
    """The dictionary in an official CIFAR python file: names to arrays of uint8, lists, text or bytes.

    Arrays are views of `data`, so that those of a mapped file take no memory.

    Raises:
        Exception: of many kinds, for data that is cut off, damaged, or names anything but a uint8 array. Nothing named
            in the data has been imported or called then. The caller knows the file and says so.
    """
    content = _Unpickler(cast(Any, _Views(data)), encoding="bytes").load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"a {type(content).__name__} where a dictionary was due")
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    return {key: value.pixels if isinstance(value, _Array) else value for key, value in named.items()}
