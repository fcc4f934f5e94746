"""What an image set says about itself, against NumPy, and the order from which splits are cut."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmard.data import ImageSet
from mmard.data import image_set as module
from mmard.data.image_set import as_floats, as_levels, balanced_order


def make(n: int = 50, c: int = 3, seed: int = 0) -> ImageSet:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, c, 5, 4), dtype=torch.uint8, generator=g)
    return ImageSet(x, torch.randint(0, 4, (n,), generator=g), ("a", "b", "c", "d"), "a set")


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_statistics_and_fingerprint_are_numpys_whatever_the_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    s = make()
    values = s.x.numpy().astype(np.float64) / 255
    mean, std = s.channel_statistics()
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-12)
    content = b"(50, 3, 5, 4)" + s.x.numpy().tobytes() + s.y.numpy().astype("<i8").tobytes()
    assert s.fingerprint() == hashlib.sha256(content).hexdigest()


def test_a_constant_channel_has_no_deviation() -> None:
    s = ImageSet(torch.full((9, 1, 3, 3), 51, dtype=torch.uint8), torch.zeros(9).long(), ("a",), "a set")
    assert s.channel_statistics() == ((0.2,), (0.0,))


def test_fingerprint_sees_pixels_labels_and_shape_and_nothing_else() -> None:
    s = make()
    x, y = s.x.clone(), s.y.clone()
    x[3, 1, 2, 2] ^= 1
    y[7] = (y[7] + 1) % 4
    others = [
        ImageSet(x, s.y, s.classes, ""),
        ImageSet(s.x, y, s.classes, ""),
        ImageSet(s.x.view(50, 3, 4, 5), s.y, s.classes, ""),
        s.take(torch.arange(49, -1, -1)),
    ]
    assert len({s.fingerprint(), *(other.fingerprint() for other in others)}) == 5
    noncontiguous = s.x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert ImageSet(noncontiguous, s.y, s.classes, "elsewhere").fingerprint() == s.fingerprint()


def test_take_copies_rows_and_views_slices() -> None:
    s = make()
    part = s.take([4, 4, 1], origin="three")
    assert torch.equal(part.x, s.x[[4, 4, 1]])
    assert part.y.tolist() == s.y[[4, 4, 1]].tolist()
    assert (part.origin, part.classes, len(part)) == ("three", s.classes, 3)
    assert s.take(slice(10, 20)).x.data_ptr() == s.x[10].data_ptr()
    assert s.take(slice(10, 20)).origin == "a set"


def test_properties() -> None:
    s = make()
    assert (len(s), s.num_classes, s.image_shape) == (50, 4, (3, 5, 4))
    assert s.class_counts().tolist() == np.bincount(s.y.numpy(), minlength=4).tolist()
    assert repr(s) == "ImageSet('a set', 50 images (3, 5, 4), 4 classes)"


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), seed=st.integers(0, 99))
def test_every_prefix_and_suffix_holds_each_class_in_its_share(counts: list[int], seed: int) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    g = torch.Generator().manual_seed(seed)
    order = balanced_order(y, g)
    assert sorted(order) == list(range(len(y)))
    seen = np.cumsum(np.eye(len(counts), dtype=int)[y[order]], 0)  # (N, C): images of each class so far
    share = np.array(counts)[None, :] / len(y) * np.arange(1, len(y) + 1)[:, None]
    # Prefix k is cut at some time t, at which each class has floor or ceil of t times its count. The N classes' counts
    # add up to k, so t is within C / N of k / N, and each class within 1 of its share at t.
    assert (np.abs(seen - share) <= 1 + len(counts) * np.array(counts)[None, :] / len(y) + 1e-9).all()


def test_order_is_a_shuffle_within_classes() -> None:
    y = np.zeros(2000, np.int64)
    orders = [balanced_order(y, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert (orders[0] == orders[1]).all()
    assert abs(np.corrcoef(orders[0], np.arange(2000))[0, 1]) < 0.1  # 4.5 standard deviations
    assert abs(np.corrcoef(orders[0], orders[2])[0, 1]) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_level_comes_back_and_what_lies_outside_saturates(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_levels(as_floats(levels, dtype)), levels)
    outside = torch.tensor([-1.0, -0.01, 0.1 / 255, 0.9 / 255, 1.01, 9.0], dtype=dtype)
    assert as_levels(outside).tolist() == [0, 0, 0, 1, 255, 255]


def test_inputs_are_levels_over_255() -> None:
    s = make()
    rows = torch.tensor([3, 1])
    expected = s.x[rows].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(s.inputs(rows, dtype=torch.float64).numpy(), expected, rtol=1e-15)
    assert s.inputs(slice(2, 5)).shape == (3, 3, 5, 4)
