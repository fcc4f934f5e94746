"""A labelled set of images: 8-bit pixels and labels, checked once, with a fingerprint that names its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mmard.errors import Refused

_CHUNK = 4096  # images looked at together where a set may be larger than memory


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels of one split, on the CPU.

    Pixels stay 8-bit: CIFAR-10 is 150 MB this way, and every file form that is read here holds 8 bits. Whoever makes
    batches divides by 255 (`mmard.data.batches`).

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
