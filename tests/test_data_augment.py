"""Views of images against a loop that does to one image what the words say."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmard.data import DATA
from mmard.data.augment import AUGMENTATIONS, Augmentation, Views, augmentation
from mmard.errors import Refused


def one_by_one(x: Any, a: Augmentation, views: Views) -> Any:
    """Pad, crop, mirror, cut out: for each image in turn, by slices."""
    _, _, h, w = x.shape
    out = []
    for image, dy, dx, flip, hole_y, hole_x in zip(x, *(v.tolist() for v in astuple(views)), strict=True):
        padded = np.pad(image, ((0, 0), (a.pad, a.pad), (a.pad, a.pad)))
        crop = padded[:, dy : dy + h, dx : dx + w]
        crop = crop[:, :, ::-1] if flip else crop
        crop = crop.copy()
        if a.cutout:
            top, left = (int(hole / 65536 * side) - a.cutout // 2 for hole, side in ((hole_y, h), (hole_x, w)))
            crop[:, max(top, 0) : max(top + a.cutout, 0), max(left, 0) : max(left + a.cutout, 0)] = 0
        out.append(crop)
    return np.stack(out)


@settings(max_examples=60, deadline=None)
@given(
    pad=st.integers(0, 5),
    flip=st.booleans(),
    cutout=st.integers(0, 9),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float16, torch.int64]),
    seed=st.integers(0, 999),
)
def test_apply_does_what_a_loop_over_images_does(
    pad: int, flip: bool, cutout: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, shape, generator=generator).to(dtype)
    kept = x.clone()
    a = Augmentation(pad, flip, cutout)
    views = a.draw(len(x), generator)
    got = a.apply(x, views)
    assert got.dtype == dtype
    assert np.array_equal(got.numpy(), one_by_one(x.numpy(), a, views))
    assert torch.equal(x, kept)


def test_the_view_in_the_middle_is_the_image() -> None:
    x = torch.rand(3, 2, 5, 7)
    middle, no = torch.full((3,), 4), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(Augmentation(4).apply(x, Views(middle, middle, no > 0, no, no)), x)


@pytest.mark.parametrize(
    ("pad", "flip", "n"), [(4, True, 162), (4, False, 81), (1, False, 9), (0, True, 2), (0, False, 1)]
)
def test_distinct_views_are_counted_and_numbered(pad: int, flip: bool, n: int) -> None:
    a = Augmentation(pad, flip)
    assert a.distinct == n
    views = a.draw(60 * n, torch.Generator().manual_seed(0))
    numbers = a.number(views)
    # An image without symmetries and without zeros shows as many pictures as there are numbers, one for each.
    pictures = a.apply(torch.arange(1, 82).view(1, 1, 9, 9).expand(len(numbers), 1, 9, 9), views).flatten(1)
    _, of_picture = pictures.unique(dim=0, return_inverse=True)
    pairs = torch.stack([numbers, of_picture], 1).unique(dim=0)
    assert len(pairs) == n == len(numbers.unique())
    assert sorted(pairs[:, 0].tolist()) == list(range(n))
    # Uniform: 60 expected of each, 5 standard deviations are 39.
    counts = torch.bincount(numbers, minlength=n)
    assert n == 1 or (counts - 60).abs().max() < 39


def test_views_with_holes_have_no_number() -> None:
    a = Augmentation(cutout=4)
    assert a.distinct is None
    with pytest.raises(Refused, match="views that can be counted, got cutout 4"):
        a.number(a.draw(3, torch.Generator().manual_seed(0)))


def test_a_hole_covers_a_square_around_any_pixel() -> None:
    a = Augmentation(pad=0, flip=False, cutout=4)
    x = torch.ones(4000, 1, 16, 16)
    gone = a.apply(x, a.draw(4000, torch.Generator().manual_seed(1))) == 0
    sizes = gone.sum((1, 2, 3))
    assert sizes.max() == 16
    assert sizes.min() >= 4  # half of each side, in a corner
    assert gone.any(0).all()


def test_the_same_generator_draws_the_same_views_and_settings_do_not_shift_them() -> None:
    draws = [
        Augmentation(2, flip, cutout).draw(50, torch.Generator().manual_seed(3))
        for flip, cutout in ((True, 0), (True, 0), (False, 5))
    ]
    for one, two, three in zip(*(astuple(d) for d in draws), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three) or not three.any()


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("none", 32, None),
        ("crop-flip", 32, Augmentation(4, True)),
        ("crop-flip", 64, Augmentation(8, True)),
        ("crop", 32, Augmentation(4, False)),
        ("crop", 8, Augmentation(1, False)),
        ("crop", 3, Augmentation(1, False)),
        ("crop-flip-cutout", 32, Augmentation(4, True, 16)),
    ],
)
def test_names(name: str, side: int, expected: Augmentation | None) -> None:
    assert augmentation(name, (3, side, side + 8)) == expected


def test_unknown_names_and_negative_sizes_are_refused() -> None:
    with pytest.raises(Refused, match="did you mean 'crop-flip'"):
        augmentation("crop_flip", (3, 32, 32))
    with pytest.raises(Refused, match="0 or more, got -1 and 0"):
        Augmentation(pad=-1)


def test_every_source_names_an_augmentation_and_digits_are_never_mirrored() -> None:
    assert {source.augmentation for source in DATA.values()} <= AUGMENTATIONS.keys()
    assert (DATA["digits"].augmentation, DATA["svhn"].augmentation) == ("none", "crop")
