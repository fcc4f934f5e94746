"""Batches for training and for evaluation: float32 images in [0, 1] and int64 labels, on the device.

Everything random in a batch is drawn from its address (seed, epoch, step), so an epoch may be entered at any step and
gives from there on what it would have given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmard import seeds
from mmard.data.augment import Augmenting
from mmard.data.image_set import ImageSet
from mmard.errors import Refused


class Batches(Protocol):
    """What a trainer needs of data."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on: x float32 (B, C, H, W) in [0, 1], y int64 (B,)."""


def check_images(x: Tensor, where: str) -> None:
    """Refuse anything but float images (B, C, H, W) in [0, 1].

    Raises:
        Refused: naming type and shape, or the smallest and the largest value.
    """
    if not x.is_floating_point() or x.ndim != 4:
        mend = "divide by 255" if x.dtype == torch.uint8 else ""
        raise Refused(where, expected="float images (B, C, H, W)", got=f"{x.dtype} {tuple(x.shape)}", mend=mend)
    low, high = (v.item() for v in x.aminmax()) if x.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # so that NaN is refused too
        raise Refused(
            where,
            expected="images in [0, 1]",
            got=f"min {low:.3g}, max {high:.3g}",
            mend="do not normalise in the loader, normalisation lives in the model",
        )


def as_float(x: Tensor) -> Tensor:
    """uint8 levels to float32 in [0, 1]."""
    return x.to(torch.float32) / 255


class SetBatches:
    """An `ImageSet`, shuffled, augmented and cut into batches.

    The pixels live on the device as uint8, and one gather makes a batch; a memory-mapped set stays where it is and each
    batch is gathered on the CPU and sent over. A last batch of a single image is joined to the one before it, because
    BatchNorm cannot train on one image: that batch has batch_size + 1.

    Args:
        image_set: where the images are.
        batch_size: images in a batch.
        device: where batches are needed.
        seed: of the order and the views.
        augmentation: drawn anew for every image and epoch, or None.
        shuffle: a new order in each epoch.
        drop_last: leave out the images that do not fill a batch.
        share: rows of a batch of n that are wanted here, where several processes share a batch; all if not given.

    Raises:
        Refused: for a batch size below 1 or above the size of the set.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        device: torch.device | str,
        seed: int,
        augmentation: Augmenting | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        share: Callable[[int], slice] | None = None,
    ) -> None:
        n = len(image_set)
        if not 1 <= batch_size <= n:
            raise Refused("batch_size", expected=f"1 to {n}, the images in {image_set.origin}", got=str(batch_size))
        self.device, self.seed, self.augmentation, self.shuffle = torch.device(device), seed, augmentation, shuffle
        self._n, self._batch_size, self._share = n, batch_size, share
        self._stays = image_set.on_disk
        self._x = image_set.x if self._stays else image_set.x.to(self.device)
        self._y = image_set.y.to(self.device)
        whole, rest = divmod(n, batch_size)
        joined = rest == 1 and batch_size > 1
        self._steps = whole if drop_last or joined or not rest else whole + 1
        self._used = whole * batch_size if drop_last else n

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def order(self, epoch: int) -> Tensor:
        """The epoch's rows of the set, int64 (N,) on the CPU."""
        if not self.shuffle:
            return torch.arange(self._n)
        return torch.randperm(self._n, generator=seeds.generator("cpu", self.seed, "order", epoch))

    def rows(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """For each batch from step `start` on: its rows of the set, int64 (B,), and its views; both on the CPU."""
        order = self.order(epoch)
        for step in range(start, self._steps):
            stop = self._used if step == self._steps - 1 else (step + 1) * self._batch_size
            rows = order[step * self._batch_size : stop]
            views = None
            if self.augmentation is not None:
                generator = seeds.generator("cpu", self.seed, "augment", epoch, step)
                views = self.augmentation.draw(len(rows), generator)
            if self._share is not None:
                mine = self._share(len(rows))
                rows, views = rows[mine], views and views.take(mine)
            yield rows, views

    def batch(self, rows: Tensor, views: Any) -> tuple[Tensor, Tensor]:
        """The images at these rows in these views, and their labels, on the device."""
        there = rows.to(self.device, non_blocking=True)
        # Whole images are copied; `x[rows]`, which is ten times slower on a CPU, would gather pixel by pixel.
        x = self._x.index_select(0, rows).to(self.device) if self._stays else self._x.index_select(0, there)
        if self.augmentation is not None and views is not None:
            x = self.augmentation.apply(x, views)
        return as_float(x), self._y[there]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on."""
        for rows, views in self.rows(epoch, start):
            yield self.batch(rows, views)


def in_order(image_set: ImageSet, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in the set's order and without augmentation, for evaluation; the last batch may be smaller."""
    if batch_size < 1:
        raise Refused("batch_size", expected="1 or more", got=str(batch_size))
    for start in range(0, len(image_set), batch_size):
        x, y = image_set.x[start : start + batch_size], image_set.y[start : start + batch_size]
        yield as_float(x.to(device)), y.to(device)


class LoaderBatches:
    """A user's own DataLoader as batches that can be replayed.

    Whatever shuffles or transforms by one of the global generators (torch's, NumPy's, Python's) draws from streams of
    the loader's own, seeded by (seed, epoch) and taken away between batches, so neither does the trainer disturb the
    loader nor the loader the trainer. Worker processes are seeded by torch from the same stream. Generators given to
    the loader or its sampler are seeded anew at each epoch. A resumed epoch draws the batches it skips.

    Args:
        loader: gives (x, y) with x float (B, C, H, W) in [0, 1], not normalised, and integer y (B,).
        device: where batches are needed.
        seed: of the loader's streams.

    Raises:
        Refused: for a loader without a length, or with workers that outlive an epoch: their random state would depend
            on the epochs before.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | str, seed: int) -> None:
        if getattr(loader, "persistent_workers", False):
            raise Refused(
                "DataLoader",
                expected="persistent_workers=False",
                got="persistent_workers=True",
                mend="a resumed run could not repeat what kept workers draw",
            )
        try:
            self._steps = len(loader)
        except TypeError:
            raise Refused("DataLoader", expected="a loader with a length", got="a stream without one") from None
        self.loader, self.device, self.seed = loader, torch.device(device), seed

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on.

        Raises:
            Refused: if the first batch is not what `loader` has to give, or the loader ends early.
        """
        streams = _Streams(seeds.derive(self.seed, "loader", epoch))
        self._seed_own_generators(epoch)
        with streams.in_place():
            iterator = iter(self.loader)
        for step in range(self._steps):
            with streams.in_place():
                batch = next(iterator, None)
            if batch is None:
                raise Refused("DataLoader", expected=f"{self._steps} batches, its length", got=f"{step}")
            if step == 0:
                _check_batch(batch)
            if step >= start:
                x, y = batch
                yield x.to(self.device, torch.float32), y.to(self.device, torch.int64)

    def _seed_own_generators(self, epoch: int) -> None:
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        samplers = [getattr(self.loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
        for owner in (self.loader, *samplers):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seeds.derive(self.seed, "loader generator", epoch))
            set_epoch = getattr(owner, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)


class _Streams:
    """States of the three global generators that belong to a loader, put in place only while it works."""

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._python = random.Random(seed).getstate()
        self._numpy: Any = np.random.RandomState(seed % 2**32).get_state()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        others = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self._set(self._torch, self._python, self._numpy)
        try:
            yield
        finally:
            self._torch, self._python, self._numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
            self._set(*others)

    @staticmethod
    def _set(of_torch: Tensor, of_python: Any, of_numpy: Any) -> None:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _check_batch(batch: object) -> None:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(b, Tensor) for b in batch):
        got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise Refused("DataLoader, first batch", expected="two tensors, images and labels", got=got)
    x, y = batch
    check_images(x, "DataLoader, first batch")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != (len(x),):
        got = f"{y.dtype} {tuple(y.shape)}"
        raise Refused("DataLoader, first batch", expected=f"integer labels ({len(x)},)", got=got, mend="not one-hot")
