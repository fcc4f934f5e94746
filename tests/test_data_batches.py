"""Batches: every image once, the same from the same address, entered anywhere; a user's loader likewise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from mmard.data import ImageSet
from mmard.data.augment import Augmentation
from mmard.data.batches import LoaderBatches, SetBatches, as_image_set, as_loader, check_images, in_order
from mmard.errors import Refused


def numbered_set(n: int) -> ImageSet:
    """Image i is i everywhere, so that rows can be read off batches; n up to 256."""
    x = torch.arange(n).to(torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    return ImageSet(x, torch.arange(n) % 5, tuple("abcde"), "numbers")


def rows_of(batches: Any) -> list[list[int]]:
    return [(x[:, 0, 2, 2] * 255).round().long().tolist() for x, _ in batches]


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(one, other, strict=True))
    return bool(pairs) and all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 40), drop_last=st.booleans(), shuffle=st.booleans())
def test_an_epoch_is_every_image_once_in_batches_of_the_size(
    n: int, batch_size: int, drop_last: bool, shuffle: bool
) -> None:
    if batch_size > n:
        with pytest.raises(Refused, match=f"1 to {n}, the images in numbers, got {batch_size}"):
            SetBatches(numbered_set(n), batch_size, "cpu", 0)
        return
    batches = SetBatches(numbered_set(n), batch_size, "cpu", 0, shuffle=shuffle, drop_last=drop_last)
    rows = rows_of(batches.epoch(0))
    assert len(rows) == batches.steps
    sizes = [len(r) for r in rows]
    assert all(size == batch_size for size in sizes[:-1])
    flat = [i for r in rows for i in r]
    assert len(set(flat)) == len(flat) == (n // batch_size * batch_size if drop_last else n)
    if drop_last:
        assert sizes[-1] == batch_size
    elif batch_size > 1 and n > 1:
        assert 2 <= sizes[-1] <= batch_size + 1  # BatchNorm cannot train on a single image
        assert (sizes[-1] == batch_size + 1) == (n % batch_size == 1)
    if not shuffle:
        assert flat == list(range(len(flat)))


def test_values_are_levels_over_255_and_labels_belong_to_them() -> None:
    s = numbered_set(256)
    for x, y in SetBatches(s, 100, "cpu", 0).epoch(0):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        levels = (x[:, 0, 0, 0] * 255).round().long()
        assert np.array_equal(x[:, 0, 0, 0].numpy(), levels.numpy().astype(np.float32) / np.float32(255))
        assert torch.equal(y, levels % 5)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), batch_size=st.integers(1, 9), epoch=st.integers(0, 5), data=st.data())
def test_an_epoch_entered_late_goes_on_as_it_would_have(n: int, batch_size: int, epoch: int, data: Any) -> None:
    make = lambda: SetBatches(numbered_set(n), min(batch_size, n), "cpu", 7, Augmentation(1, cutout=1))  # noqa: E731
    whole = list(make().epoch(epoch))
    start = data.draw(st.integers(0, len(whole)))
    rest = list(make().epoch(epoch, start))
    assert len(rest) == len(whole) - start
    assert start == len(whole) or same(whole[start:], rest)


def test_order_and_views_change_with_epoch_and_seed_and_not_with_each_other() -> None:
    def rows(seed: int, epoch: int, **kw: Any) -> list[list[int]]:
        return rows_of(SetBatches(numbered_set(60), 20, "cpu", seed, **kw).epoch(epoch))

    assert rows(0, 0) == rows(0, 0)
    assert len({str(rows(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    views = [
        [v for _, v in SetBatches(numbered_set(60), 20, "cpu", 0, Augmentation(), shuffle=shuffle).rows(0)]
        for shuffle in (True, False)
    ]
    assert all(torch.equal(a.dy, b.dy) for a, b in zip(*views, strict=True) if a and b)
    assert not torch.equal(views[0][0].dy, views[0][1].dy)  # type: ignore[union-attr]


def test_rows_and_views_can_be_known_before_the_pixels() -> None:
    s, a = numbered_set(50), Augmentation(1)
    batches = SetBatches(s, 16, "cpu", 2, a)
    for (rows, views), (x, y) in zip(batches.rows(4), batches.epoch(4), strict=True):
        assert views is not None
        assert torch.equal(x, a.apply(s.x[rows], views).float() / 255)
        assert torch.equal(y, s.y[rows])


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    batches = SetBatches(numbered_set(20), 5, "cpu", 0, Augmentation(1))
    torch.manual_seed(0)
    first = list(batches.epoch(0))
    state = torch.get_rng_state()
    torch.rand(5)
    assert same(first, batches.epoch(0))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_in_order_gives_every_image_once_as_it_stands() -> None:
    s = numbered_set(23)
    out = list(in_order(s, 10, "cpu"))
    assert [len(x) for x, _ in out] == [10, 10, 3]
    assert torch.equal(torch.cat([x for x, _ in out]), s.x.float() / 255)
    assert torch.equal(torch.cat([y for _, y in out]), s.y)
    with pytest.raises(Refused, match="1 or more, got 0"):
        next(in_order(s, 0, "cpu"))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.linspace(-2.1, 2.6, 48).view(1, 3, 4, 4),
            r"here: expected images in \[0, 1\], got min -2\.1, max 2\.6;",
        ),
        (torch.full((1, 3, 4, 4), float("nan")), r"images in \[0, 1\], got NaN"),
        (torch.full((1, 3, 4, 4), 1.1), r"got min 1\.1, max 1\.1; clamp them"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"float images.*torch\.uint8.*divide by 255"),
        (torch.zeros(3, 4, 4), r"float images \(B, C, H, W\), got torch\.float32 \(3, 4, 4\)"),
    ],
)
def test_images_are_checked(x: Tensor, message: str) -> None:
    with pytest.raises(Refused, match=message):
        check_images(x, "here")


def test_images_at_the_ends_of_the_range_pass() -> None:
    check_images(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), "here")
    check_images(torch.zeros(0, 3, 4, 4), "here")


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws from all three global generators, as users' transforms do."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        noise = [torch.rand(()).item(), random.random(), float(np.random.rand()), i / 22]
        return torch.tensor(noise, dtype=torch.float64).view(1, 2, 2), i


def loader(kind: str) -> DataLoader[Any]:
    if kind == "plain":
        return DataLoader(Noisy(), batch_size=4, shuffle=True)
    if kind == "workers":
        return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2)
    own = torch.Generator().manual_seed(99)
    if kind == "own generator":
        return DataLoader(Noisy(), batch_size=4, shuffle=True, generator=own)
    if kind == "own batch sampler":
        return DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy(), generator=own), 4, False))
    assert kind == "own sampler"
    return DataLoader(Noisy(), batch_size=4, sampler=RandomSampler(Noisy(), generator=own), drop_last=True)


@pytest.mark.parametrize("kind", ["plain", "workers", "own generator", "own sampler", "own batch sampler"])
def test_a_loader_is_replayed_from_its_address(kind: str) -> None:
    batches = LoaderBatches(loader(kind), "cpu", seed=5)
    whole = list(batches.epoch(1))
    assert len(whole) == batches.steps == (5 if kind == "own sampler" else 6)
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in whole)
    if kind != "own sampler":
        assert sorted(i for _, y in whole for i in y.tolist()) == list(range(22))
    # Another loader in another process state, resumed in the middle, with the consumer drawing between batches.
    torch.manual_seed(123)
    random.seed(4)
    again = LoaderBatches(loader(kind), "cpu", seed=5)
    late: list[tuple[Tensor, Tensor]] = []
    for batch in again.epoch(1, start=3):
        torch.rand(7), random.random(), np.random.rand()
        late.append(batch)
    assert same(whole[3:], late)
    other = list(batches.epoch(2))
    assert not torch.equal(other[0][0], whole[0][0])
    assert [y.tolist() for _, y in other] != [y.tolist() for _, y in whole]


def test_a_loader_leaves_the_global_generators_alone() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = states()
    list(islice(LoaderBatches(loader("plain"), "cpu", 0).epoch(0), 2))
    assert states() == before


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)


class Sampled:
    """A sampler that has to be told the epoch, as those of distributed training do."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(np.roll(np.arange(8), self.epoch).tolist())

    def __len__(self) -> int:
        return 8


def test_samplers_are_told_the_epoch() -> None:
    data = TensorDataset(torch.zeros(8, 1, 2, 2), torch.arange(8))
    batches = LoaderBatches(DataLoader(data, batch_size=8, sampler=Sampled()), "cpu", 0)
    assert [y.tolist()[0] for epoch in (0, 3) for _, y in batches.epoch(epoch)] == [0, 5]


def simple(x: Tensor, y: Tensor, **kw: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=4, **kw)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (simple(torch.linspace(-2, 2, 16).view(4, 1, 2, 2), torch.zeros(4).long()), "do not normalise in the loader"),
        (simple(torch.zeros(4, 1, 2, 2).byte(), torch.zeros(4).long()), "divide by 255"),
        (simple(torch.zeros(4, 2, 2), torch.zeros(4).long()), r"float images \(B, C, H, W\)"),
        (simple(torch.zeros(4, 1, 2, 2), torch.zeros(4)), r"integer labels \(4,\), got torch\.float32 \(4,\)"),
        (simple(torch.zeros(4, 1, 2, 2), torch.zeros(4, 10).long()), r"got torch\.int64 \(4, 10\); not one-hot"),
        (
            DataLoader(TensorDataset(torch.zeros(4, 1, 2, 2)), batch_size=4),
            "two tensors, images and labels, got list of 1",
        ),
        (DataLoader([{"x": torch.zeros(1, 2, 2)}] * 4, batch_size=4), "two tensors, images and labels, got dict"),
    ],
)
def test_batches_are_checked(bad: DataLoader[Any], message: str) -> None:
    with pytest.raises(Refused, match=rf"DataLoader, batch 1: expected .*{message}|{message}"):
        list(LoaderBatches(bad, "cpu", 0).epoch(0))


IMAGES, LABELS = torch.linspace(0, 1, 64).view(16, 1, 2, 2), torch.arange(16) % 3


@pytest.mark.parametrize("batch", [0, 2, 3])
def test_no_later_batch_passes_unseen(batch: int) -> None:
    """Whatever is wrong with one image or label of any batch is refused by name, in training as in validation."""
    row = 4 * batch + 1
    for value in (1.1, -0.01, float("nan"), float("inf")):
        x = IMAGES.clone()
        x[row, 0, 1, 0] = value
        for read in (
            lambda d: list(LoaderBatches(d, "cpu", 0, 3, "mine").epoch(0)),
            lambda d: as_image_set(d, "mine", 3),
        ):
            with pytest.raises(Refused, match=rf"mine, batch {batch + 1}: expected images in \[0, 1\]"):
                read(simple(x, LABELS))
    for label in (-100, -1, 3, 9):
        y = LABELS.clone()
        y[row] = label
        for read in (
            lambda d: list(LoaderBatches(d, "cpu", 0, 3, "mine").epoch(0)),
            lambda d: as_image_set(d, "mine", 3),
        ):
            with pytest.raises(
                Refused, match=rf"mine, batch {batch + 1}: .*of 3 classes, got label {label} at image 1"
            ):
                read(simple(IMAGES, y))


def test_labels_without_a_count_of_classes_are_bounded() -> None:
    assert as_image_set(simple(IMAGES, LABELS), "v").num_classes == 3
    for label in (-1, 2**40):
        with pytest.raises(Refused, match=f"labels counted from 0, got label {label}"):
            as_image_set(simple(IMAGES, torch.full((16,), label)), "v")


def test_what_holds_images_becomes_the_same_set() -> None:
    """A loader, two tensors of floats or of levels, and a set: the same pixels, levels exact."""
    whole = numbered_set(256)
    levels, y = whole.x, whole.y
    for data in (
        simple(levels.float() / 255, y),
        (levels.float() / 255, y.int()),
        (levels, y),
        [(levels / 255, y)],
        whole,
    ):
        found = as_image_set(data, "v")  # type: ignore[arg-type]
        assert torch.equal(found.x, levels)
        assert torch.equal(found.y, y)
    ends = as_image_set(
        (
            torch.tensor([0.0, 0.49, 0.51, 1.0]).view(4, 1, 1, 1) / torch.tensor([1, 255, 255, 1]).view(4, 1, 1, 1),
            torch.arange(4),
        ),
        "v",
    )
    assert ends.x.flatten().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("digits", "v: expected an ImageSet, a DataLoader, or a tuple of images and labels, got a str"),
        (IMAGES, "got a Tensor"),
        ((IMAGES,), "two tensors, images and labels, got tuple of 1"),
        ((IMAGES * 255, LABELS), r"v: expected images in \[0, 1\].*max 255"),
        ((IMAGES, LABELS.float()), "integer labels"),
        ([(IMAGES, LABELS), (IMAGES[:, :, :1], LABELS)], r"v, batch 2: expected images \(1, 2, 2\), as in batch 1"),
        ((IMAGES[:0], LABELS[:0]), "at least one image"),
        ([], "at least one image"),
    ],
)
def test_what_holds_no_images_is_refused(data: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        as_image_set(data, "v")


def test_a_set_becomes_a_loader_that_never_ends_in_one_image() -> None:
    loader = as_loader((IMAGES, LABELS), 5, "mine")
    assert sorted(len(y) for _, y in LoaderBatches(loader, "cpu", 0).epoch(0)) == [5, 5, 5]
    loader = as_loader(numbered_set(16), 6, "mine")
    seen = torch.cat([x for x, _ in LoaderBatches(loader, "cpu", 0).epoch(0)])
    assert sorted((seen[:, 0, 0, 0] * 255).round().tolist()) == list(range(16))
    with pytest.raises(Refused, match="batch_size: expected 1 to 16, the images in mine, got 17"):
        as_loader((IMAGES, LABELS), 17, "mine")
    own = simple(IMAGES, LABELS)
    assert as_loader(own, 5, "mine") is own


def test_loaders_that_cannot_be_replayed_are_refused() -> None:
    with pytest.raises(Refused, match="a loader with a length"):
        LoaderBatches(DataLoader(Endless()), "cpu", 0)
    with pytest.raises(Refused, match="persistent_workers=False"):
        LoaderBatches(DataLoader(Noisy(), num_workers=1, persistent_workers=True), "cpu", 0)


class Short(list[Any]):
    def __len__(self) -> int:
        return 3


def test_a_loader_that_ends_early_is_refused() -> None:
    batches = Short([(torch.zeros(2, 1, 2, 2), torch.zeros(2).long())])
    with pytest.raises(Refused, match="3 batches, its length, got 1"):
        list(LoaderBatches(batches, "cpu", 0).epoch(0))  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 5))
def test_balanced_epochs_draw_every_class_equally_often_and_all_of_a_small_one(counts: list[int], epoch: int) -> None:
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    x = torch.arange(len(y), dtype=torch.uint8)[:, None, None, None]
    images = ImageSet(x, y, tuple(f"class {k}" for k in range(len(counts))), "mine")
    batches = SetBatches(images, 1, "cpu", seed=3, balance=True)
    order = batches.order(epoch)
    drawn = y[order].bincount(minlength=len(counts))
    assert len(order) == len(y)
    assert drawn.max() - drawn.min() <= 1
    for label, count in enumerate(counts):
        times = order[y[order] == label].bincount(minlength=len(y))[y == label]
        assert times.sum() == drawn[label]
        assert times.max() - times.min() <= 1, "an image comes again before all have come"
        assert count > drawn[label] or times.min() >= 1
    assert torch.equal(order, SetBatches(images, 1, "cpu", seed=3, balance=True).order(epoch))
    rest = [rows.tolist() for rows, _ in batches.rows(epoch, start=1)]
    assert rest == [rows.tolist() for rows, _ in batches.rows(epoch)][1:]
