"""Batches for training and for evaluation: float32 images in [0, 1] and int64 labels, on the device.

Everything random in a batch is drawn from its address (seed, epoch, step), so an epoch may be entered at any step and
gives from there on what it would have given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmard import seeds
from mmard.data.augment import Augmenting
from mmard.data.image_set import ImageSet, as_floats, as_levels
from mmard.errors import Refused

MOST_CLASSES = 2**20
"""Labels above this are taken for something else where nobody says how many classes there are."""


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
    low, high = torch.stack(x.detach().aminmax()).tolist() if x.numel() else (0.0, 0.0)  # one wait for a GPU, not two
    if not (low >= 0 and high <= 1):  # so that NaN is refused too
        mend = "do not normalise in the loader, normalisation lives in the model"
        if high <= 1.5 and low >= -0.5:
            mend = "clamp them to [0, 1], e.g. after a resizing that overshoots"
        nan = low != low
        mend = "what makes NaN of an image?" if nan else mend
        raise Refused(
            where, expected="images in [0, 1]", got="NaN" if nan else f"min {low:.3g}, max {high:.3g}", mend=mend
        )


def check_labels(y: Tensor, n: int, num_classes: int | None, where: str) -> None:
    """Refuse anything but one integer label for each of n images, in 0..num_classes - 1.

    Raises:
        Refused: naming type and shape, or the first label out of range.
    """
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != (n,):
        mend = "not one-hot"
        raise Refused(where, expected=f"integer labels ({n},)", got=f"{y.dtype} {tuple(y.shape)}", mend=mend)
    outside = ((y < 0) | (y >= (num_classes or MOST_CLASSES))).nonzero()
    if len(outside):
        label = int(y[outside[0, 0]])
        expected = (
            f"labels in 0..{num_classes - 1}, of {num_classes} classes" if num_classes else "labels counted from 0"
        )
        mend = "leave images without a label out" if label < 0 else "are they counted from 0, and is no class missing?"
        raise Refused(where, expected=expected, got=f"label {label} at image {int(outside[0, 0])}", mend=mend)


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
        balance: draw each class equally often in an epoch, images of small classes several times.

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
        balance: bool = False,
    ) -> None:
        n = len(image_set)
        if not 1 <= batch_size <= n:
            raise Refused("batch_size", expected=f"1 to {n}, the images in {image_set.origin}", got=str(batch_size))
        self.device, self.seed, self.augmentation, self.shuffle = torch.device(device), seed, augmentation, shuffle
        self._n, self._batch_size, self._share = n, batch_size, share
        self._of_class = [(image_set.y == label).nonzero()[:, 0] for label in image_set.y.unique()] if balance else []
        self._stays = image_set.on_disk
        self._x = image_set.x if self._stays else image_set.x.to(self.device)
        self._y = image_set.y.to(self.device)
        whole, rest = divmod(n, batch_size)
        joined = rest == 1 and batch_size > 1
        self._steps = whole if drop_last or joined or not rest else whole + 1
        self._used = whole * batch_size if drop_last else n

    @property
    def batch_size(self) -> int:
        """Images per step, over all processes."""
        return self._batch_size

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def order(self, epoch: int) -> Tensor:
        """The epoch's rows of the set, int64 (N,) on the CPU."""
        if not self.shuffle:
            return torch.arange(self._n)
        generator = seeds.generator("cpu", self.seed, "order", epoch)
        order = torch.randperm(self._n, generator=generator)
        return order if not self._of_class else self._balanced(order, generator)

    def _balanced(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """As many rows of each class, to one, at the places of `order`; a class is gone through before one repeats."""
        share, rest = divmod(self._n, len(self._of_class))
        more = set(torch.randperm(len(self._of_class), generator=generator)[:rest].tolist())
        drawn = []
        for number, rows in enumerate(self._of_class):
            count = share + (number in more)
            rounds = [torch.randperm(len(rows), generator=generator) for _ in range(-(-count // len(rows)))]
            drawn.append(rows[torch.cat(rounds)[:count]])
        return torch.cat(drawn)[order]

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
        return as_floats(x), self._y[there]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on."""
        for rows, views in self.rows(epoch, start):
            yield self.batch(rows, views)


def in_order(image_set: ImageSet, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in the set's order and without augmentation, for evaluation; the last batch may be smaller."""
    if batch_size < 1:
        raise Refused("batch_size", expected="1 or more", got=str(batch_size))
    for start in range(0, len(image_set), batch_size):
        rows = slice(start, start + batch_size)
        yield image_set.inputs(rows, device), image_set.y[rows].to(device)


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
        num_classes: labels must be below it; None where that is not known yet.
        name: of the loader, for messages.

    Raises:
        Refused: for a loader without a length, or with workers that outlive an epoch: their random state would depend
            on the epochs before.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        device: torch.device | str,
        seed: int,
        num_classes: int | None = None,
        name: str = "DataLoader",
    ) -> None:
        if getattr(loader, "persistent_workers", False):
            raise Refused(
                name,
                expected="persistent_workers=False",
                got="persistent_workers=True",
                mend="a resumed run could not repeat what kept workers draw",
            )
        try:
            self._steps = len(loader)
        except TypeError:
            raise Refused(name, expected="a loader with a length", got="a stream without one") from None
        self.loader, self.device, self.seed = loader, torch.device(device), seed
        self.num_classes, self.name = num_classes, name

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on.

        Raises:
            Refused: if a batch is not what `loader` has to give, or the loader ends early. Every batch is looked at
                where the loader left it, on the CPU as a rule, so no GPU is waited for.
        """
        streams = _Streams(seeds.derive(self.seed, "loader", epoch))
        self._seed_own_generators(epoch)
        with streams.in_place():
            iterator = iter(self.loader)
        for step in range(self._steps):
            with streams.in_place():
                batch = next(iterator, None)
            if batch is None:
                raise Refused(self.name, expected=f"{self._steps} batches, its length", got=f"{step}")
            if step >= start:
                x, y = _pair(batch, f"{self.name}, batch {step + 1}")
                check_images(x, f"{self.name}, batch {step + 1}")
                check_labels(y, len(x), self.num_classes, f"{self.name}, batch {step + 1}")
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


def _pair(batch: object, where: str) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(b, Tensor) for b in batch):
        got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise Refused(where, expected="two tensors, images and labels", got=got)
    return batch[0], batch[1]


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """A set as what a DataLoader reads: float32 images in [0, 1], one at a time."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return as_floats(self.images.x[row]), self.images.y[row]


Labelled = ImageSet | DataLoader[Any] | tuple[Tensor, Tensor]
"""Labelled images as a caller may hold them: a set, a loader of batches, or two tensors."""


def _is_loader(data: object) -> bool:
    """Whether batches can be drawn from it: a DataLoader, or an iterable with a length that stands for one."""
    others = (ImageSet, Tensor, np.ndarray, tuple, str, bytes, Mapping)
    return isinstance(data, DataLoader) or (isinstance(data, Iterable) and not isinstance(data, others))


def as_loader(data: Labelled, batch_size: int, name: str) -> DataLoader[Any]:
    """Labelled images as a loader to train from, shuffled; one that is a loader is returned as it is.

    Raises:
        Refused: as `as_image_set`.
    """
    if _is_loader(data):
        return data  # type: ignore[return-value]
    images = as_image_set(data, name)
    if not 1 <= batch_size <= len(images):
        raise Refused("batch_size", expected=f"1 to {len(images)}, the images in {name}", got=str(batch_size))
    # BatchNorm cannot train on a last batch of one image.
    single = batch_size > 1 and len(images) % batch_size == 1
    return DataLoader(_Images(images), batch_size=batch_size, shuffle=True, drop_last=single)


def as_image_set(data: Labelled, name: str, num_classes: int | None = None) -> ImageSet:
    """Labelled images as a set that can be attacked, counted and hashed; a set is returned as it is.

    Levels are rounded to 8 bits, which is exact for images that were 8-bit before the loader.

    Args:
        data: a set; a loader of (x, y), read once; or x and y themselves. x is float (B, C, H, W) in [0, 1] (two
            tensors may be uint8 as well), y integer (B,).
        name: of the data, for messages and records.
        num_classes: of the network; counted from the labels if not given.

    Raises:
        Refused: for anything else, naming the batch.
    """
    if isinstance(data, ImageSet):
        return data
    if _is_loader(data):
        loader: Any = data
        batches: Iterable[tuple[Tensor, Tensor]] = LoaderBatches(loader, "cpu", 0, num_classes, name).epoch(0)
    elif not isinstance(data, tuple):
        kinds = "an ImageSet, a DataLoader, or a tuple of images and labels"
        raise Refused(name, expected=kinds, got=f"a {type(data).__name__}")
    else:
        x, y = _pair(data, name)
        if x.dtype != torch.uint8 or x.ndim != 4:
            check_images(x, name)
        check_labels(y, len(x), num_classes, name)
        batches = [(x.detach().cpu(), y.detach().cpu())]
    levels, labels = [], []
    for number, (x, y) in enumerate(batches, 1):
        levels.append(x.clone() if x.dtype == torch.uint8 else as_levels(x))
        labels.append(y.to(torch.int64))
        if x.shape[1:] != levels[0].shape[1:]:
            expected, got = (str(tuple(each.shape[1:])) for each in (levels[0], x))
            raise Refused(f"{name}, batch {number}", expected=f"images {expected}, as in batch 1", got=got)
    if not any(map(len, labels)):
        raise Refused(name, expected="at least one image", got="none")
    y = torch.cat(labels)
    return ImageSet(torch.cat(levels), y, tuple(map(str, range(num_classes or int(y.max()) + 1))), name)
