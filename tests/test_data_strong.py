"""The strong augmentation: each act against what its words say, by closed forms, by loops, and against PIL's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmard.data.augment import (
    AUGMENTATIONS,
    COLOUR,
    SHAPE,
    TRANSFORMS,
    StrongAugmentation,
    StrongViews,
    augmentation,
    grey,
    strong,
)
from mmard.data.batches import SetBatches
from mmard.data.image_set import ImageSet
from mmard.errors import Refused

NAMES = ("idbh-weak", "idbh-strong", "idbh-shape")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 6, side: int = 12, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, side, side, generator=generator(seed))


def changed(name: str, x: Tensor, strength: float, sign: bool = False, axis: bool = True) -> Tensor:
    n = len(x)
    return TRANSFORMS[name](x, torch.full((n,), strength), torch.full((n,), sign), torch.full((n,), axis))


@pytest.mark.parametrize("table", [COLOUR, SHAPE])
def test_the_changes_share_out_all_draws(table: dict[str, tuple[float, float, float]]) -> None:
    assert set(table) == set(TRANSFORMS)
    assert sum(probability for probability, _, _ in table.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["saturation", "brightness", "contrast", "sharpness"])
def test_a_blend_of_strength_one_is_the_image_and_of_zero_its_degenerate(name: str) -> None:
    x = pictures()
    torch.testing.assert_close(changed(name, x, 1.0), x)
    degenerate = changed(name, x, 0.0)
    expected = {"saturation": grey(x).expand_as(x), "brightness": torch.zeros_like(x)}
    if name in expected:
        torch.testing.assert_close(degenerate, expected[name])
    elif name == "contrast":
        assert degenerate.flatten(1).std(1).max() < 1e-6
    else:
        assert degenerate[:, :, 1:-1, 1:-1].std() < x[:, :, 1:-1, 1:-1].std()
        assert torch.equal(degenerate[:, :, 0], x[:, :, 0])


def test_autocontrast_reaches_both_ends_and_leaves_a_flat_channel() -> None:
    x = 0.3 + 0.4 * pictures()
    x[0, 1] = 0.5
    found = changed("autocontrast", x, 0.0)
    assert torch.equal(found[0, 1], x[0, 1])
    torch.testing.assert_close(found[1:].amin((2, 3)), torch.zeros(5, 3))
    torch.testing.assert_close(found[1:].amax((2, 3)), torch.ones(5, 3))


@pytest.mark.parametrize("name", ["equalise", "autocontrast"])
def test_levels_are_spread_as_pil_spreads_them(name: str) -> None:
    image = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    levels = (255 * pictures(5, 16) ** 2 * 0.7 + 20).round().to(torch.uint8)
    found = (255 * changed(name, levels.float() / 255, 0.0)).round()
    for mine, original in zip(found, levels, strict=True):
        theirs = {"equalise": ops.equalize, "autocontrast": ops.autocontrast}[name](
            image.fromarray(original.permute(1, 2, 0).numpy())
        )
        gap = np.abs(np.asarray(theirs).transpose(2, 0, 1).astype(int) - mine.numpy().astype(int))
        assert gap.max() <= 1  # PIL cuts where this rounds


@pytest.mark.parametrize("sign", [False, True])
def test_a_quarter_turn_is_a_quarter_turn(sign: bool) -> None:
    x = pictures()
    assert torch.equal(changed("rotate", x, 90.0, sign), torch.rot90(x, -1 if sign else 1, (2, 3)))
    assert torch.equal(changed("rotate", changed("rotate", x, 90.0, sign), 90.0, not sign), x)


@pytest.mark.parametrize("axis", [False, True])
def test_a_shear_of_one_moves_each_line_by_its_distance_from_the_middle(axis: bool) -> None:
    x = pictures(1, 5)
    found = changed("shear", x, 1.0, False, axis)
    turned, straight = (found, x) if axis else (found.transpose(2, 3), x.transpose(2, 3))
    for line in range(5):
        shift = line - 2
        expected = torch.zeros_like(straight[0, :, line])
        for place in range(5):
            if 0 <= place + shift < 5:
                expected[:, place] = straight[0, :, line, place + shift]
        assert torch.equal(turned[0, :, line], expected)


def test_crop_shift_keeps_a_rectangle_and_loses_fewer_lines_than_its_reach() -> None:
    a = StrongAugmentation(reach=5, transforms=(), erase=0.0, flip=False)
    rows = torch.arange(1.0, 11).view(1, 1, 10, 1).expand(400, 1, 10, 8) / 20
    columns = torch.arange(1.0, 9).view(1, 1, 1, 8).expand(400, 1, 10, 8) / 20
    x = torch.cat([rows, columns], 1)
    found = a.apply(x, a.draw(400, generator()))
    lost = set()
    for image in found:
        kept = image[0] > 0
        r, c = kept.any(1).nonzero()[:, 0], kept.any(0).nonzero()[:, 0]
        assert kept[r[0] : r[-1] + 1, c[0] : c[-1] + 1].all()
        assert int(kept.sum()) == len(r) * len(c)
        seen = image[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1]
        assert torch.allclose(seen[0, :, 0].diff(), torch.full((len(r) - 1,), 0.05))  # neighbours stay neighbours
        assert torch.allclose(seen[1, 0].diff(), torch.full((len(c) - 1,), 0.05))
        lost.add((10 - len(r), 8 - len(c)))
    assert lost == {(b, a) for a in range(5) for b in range(5) if a + b < 5}


def test_erasing_makes_one_black_rectangle_of_the_size_that_it_may_have() -> None:
    a = StrongAugmentation(reach=1, transforms=(), erase=1.0, flip=False)
    found = a.apply(torch.ones(300, 1, 32, 32), a.draw(300, generator()))
    areas = []
    for image in found[:, 0]:
        hole = image == 0
        r, c = hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]
        assert hole[r[0] : r[-1] + 1, c[0] : c[-1] + 1].all()
        areas.append(hole.float().mean().item())
    assert 0.01 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.36
    none = StrongAugmentation(reach=1, transforms=(), erase=0.0, flip=False)
    assert torch.equal(none.apply(pictures(), none.draw(6, generator())), pictures())


def test_half_of_the_images_are_mirrored() -> None:
    a = StrongAugmentation(reach=1, transforms=(), erase=0.0)
    x = pictures(1).expand(400, -1, -1, -1)
    found = a.apply(x, a.draw(400, generator()))
    mirrored = (found == x.flip(3)).flatten(1).all(1)
    assert ((found == x).flatten(1).all(1) | mirrored).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 12, 20)])
def test_images_stay_images_whatever_their_type(name: str, shape: tuple[int, int, int]) -> None:
    made = augmentation(name, shape)
    assert made is not None
    assert made.distinct is None
    levels = torch.randint(0, 256, (40, *shape), generator=generator(), dtype=torch.uint8)
    kept = levels.clone()
    views = made.draw(40, generator(3))
    found = made.apply(levels, views)
    assert (found.dtype, found.shape) == (torch.uint8, levels.shape)
    assert torch.equal(levels, kept)
    floats = made.apply(levels.float() / 255, views)
    assert ((floats >= 0) & (floats <= 1)).all()
    assert (found.float() - 255 * floats).abs().max() <= 0.51
    assert (found != levels).flatten(1).any(1).float().mean() > 0.9


def test_the_views_of_some_images_are_those_that_they_have_among_all() -> None:
    made, x = strong(32), pictures(10, 32)
    views = made.draw(10, generator())
    some = views.take(slice(3, 7))
    assert isinstance(some, StrongViews)
    assert torch.equal(made.apply(x[3:7], some), made.apply(x, views)[3:7])


def test_an_epoch_that_is_entered_late_gives_the_same_images() -> None:
    levels = torch.randint(0, 256, (24, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    images = ImageSet(levels, torch.arange(24) % 3, ("a", "b", "c"), "noise")
    batches = SetBatches(images, 8, "cpu", 5, AUGMENTATIONS["idbh-strong"](8))
    whole, late = list(batches.epoch(2)), list(batches.epoch(2, 1))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[1:], late, strict=True))
    assert not torch.equal(next(iter(batches.epoch(3)))[0], whole[0][0])


@pytest.mark.parametrize("settings", [{"reach": 0}, {"erase": 1.5}])
def test_what_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(Refused):
        StrongAugmentation(**settings)  # type: ignore[arg-type]
