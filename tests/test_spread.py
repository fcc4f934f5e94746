"""What a figure may be off by, against closed forms and against SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmard.tables.figures import severity
from mmard.tables.statistics import Difference, deviation, difference, holm, mean_interval, t_95, t_tail

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=6)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 9, 10, 11, 15, 30, 100, 1000])
def test_t_is_that_of_student(degrees: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert t_95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)


@given(SHARES)
def test_the_interval_of_a_mean_is_that_of_a_t_test(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    scale = stats.sem(values)
    if scale > 1e-12:
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
        assert mean_interval(values) == pytest.approx(expected, rel=1e-3, abs=1e-9)


@given(SHARES, st.floats(-0.3, 0.3))
def test_a_shift_of_every_seed_has_no_spread(values: list[float], shift: float) -> None:
    found = difference({i: v + shift for i, v in enumerate(values)}, dict(enumerate(values)))
    assert found.mean == pytest.approx(shift, abs=1e-12)
    assert found.paired
    if len(values) == 2:
        assert found.over_seeds is None
        assert not found.clear, "two seeds that agree are no certainty"
    else:
        assert found.over_seeds == pytest.approx(0, abs=1e-12)


@given(SHARES, SHARES)
def test_other_seeds_are_compared_by_welch(a: list[float], b: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = difference(dict(enumerate(a)), {100 + i: v for i, v in enumerate(b)})
    assert not found.paired
    assert found.seeds == (len(a), len(b))
    scale = math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    if scale > 1e-9:
        exact = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        half = (exact.high - exact.low) / 2
        # Rounding the degrees of freedom down may widen it, and never narrows it.
        assert found.over_seeds is not None
        assert half * 0.999 <= found.over_seeds <= 13 * scale


def test_two_shared_seeds_are_paired_and_the_rest_left_out() -> None:
    found = difference({0: 0.5, 1: 0.6, 2: 0.9}, {0: 0.4, 1: 0.5})
    assert found.paired
    assert found.seeds == (2, 2)
    assert found.mean == pytest.approx(0.1)


def test_one_seed_against_several_has_no_interval_over_seeds() -> None:
    found = difference({0: 0.5}, {0: 0.4, 1: 0.5})
    assert found.over_seeds is None
    assert not found.paired
    assert found.mean == pytest.approx(0.05)


def test_pairing_by_image_is_the_interval_of_the_mean_difference() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(400) < 0.6, generator.random(400) < 0.5
    found = difference({0: a.mean()}, {0: b.mean()}, {0: a}, {0: b})
    gains = a.astype(float) - b.astype(float)
    assert found.over_images == pytest.approx(1.959964 * gains.std(ddof=1) / 20, rel=1e-5)
    same = difference({0: a.mean()}, {0: a.mean()}, {0: a}, {0: a})
    assert same.over_images == 0
    assert not same.clear


@given(st.integers(20, 300), st.data())
def test_the_paired_interval_is_that_of_the_discordant_pairs(n: int, data: st.DataObject) -> None:
    """With b and c images right in one network alone: variance (b + c - (b - c)^2 / n) / (n (n - 1))."""
    ours, theirs = (np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in range(2))
    b, c = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    found = difference({0: ours.mean()}, {0: theirs.mean()}, {0: ours}, {0: theirs})
    assert found.mean == pytest.approx((b - c) / n, abs=1e-12)
    variance = (b + c - (b - c) ** 2 / n) / (n * (n - 1))
    assert found.over_images == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6, abs=1e-9)


def test_the_interval_over_images_covers_the_truth() -> None:
    """Of 400 draws of 200 images from a known world, about 95 % cover its difference of 0.1."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        hard = generator.random(200)
        a, b = hard < 0.6, hard + 0.3 * (generator.random(200) - 0.5) < 0.5
        found = difference({0: a.mean()}, {0: b.mean()}, {0: a}, {0: b})
        assert found.over_images is not None
        covered += abs(found.mean - 0.1) <= found.over_images
    assert 0.91 <= covered / 400 <= 0.98


def test_one_value_has_no_deviation() -> None:
    assert deviation([0.5]) is None
    assert deviation([0.4, 0.6]) == pytest.approx(math.sqrt(0.02))


def test_tails_of_student_and_holm_are_those_of_scipy_and_of_his_paper() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 3, 4, 5, 8, 9, 30):
        for t in (0.0, 0.3, 1.0, 2.5, 7.0, 50.0):
            assert t_tail(-t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), abs=1e-9)
    # Rejected one after the other from the smallest, at 0.05 over what is left; 0.04 stops what comes behind it.
    assert holm([0.04, 0.01, 0.02, 0.005]) == pytest.approx([0.04, 0.03, 0.04, 0.02])
    assert holm([0.03, 0.04, 0.3]) == pytest.approx([0.09, 0.09, 0.3])
    assert holm([]) == []


@pytest.mark.parametrize(("spread", "apart"), [(0.05, 0.0), (0.05, 0.3), (0.0, 0.4)])
def test_an_interval_over_seeds_and_images_covers_what_other_seeds_and_images_give(spread: float, apart: float) -> None:
    """Either part alone misses too often where both vary; 95 % of intervals should cover, and a little more do."""
    rng, n, seeds, times = np.random.default_rng(0), 200, 4, 400
    covered = alone = 0
    for _ in range(times):
        # Of an image, how much likelier one side reads it rightly than the other, whatever the seed.
        gain = 0.03 + apart * rng.choice([-1.0, 1.0], n)
        sides: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        for seed in range(seeds):
            level = 0.5 + rng.normal(0, spread)
            draw = rng.random((2, n))
            sides[0][seed], sides[1][seed] = draw[0] < level + gain, draw[1] < 0.5
        ours, theirs = ({seed: float(mask.mean()) for seed, mask in side.items()} for side in sides)
        gap = difference(ours, theirs, *sides)
        assert gap.half is not None
        assert gap.over_images is not None
        assert gap.half == pytest.approx(math.hypot(gap.over_seeds or 0.0, gap.over_images))
        covered += abs(gap.mean - 0.03) < gap.half
        alone += abs(gap.mean - 0.03) < gap.over_images
    assert covered / times > 0.93
    if spread > 0:
        assert alone / times < 0.9


@pytest.mark.parametrize("images", [None, 0.01, 0.03])
def test_a_p_value_is_a_twentieth_where_the_interval_ends(images: float | None) -> None:
    gap = Difference(0.02, images, 0.015, True, (3, 3))
    assert gap.half is not None
    for bound in (gap.mean - gap.half, gap.mean + gap.half):
        assert gap.p(bound) == pytest.approx(0.05, abs=1e-4)
    assert gap.p(gap.mean) == pytest.approx(1.0, abs=1e-6)
    assert (gap.p() < 0.05) == gap.clear if images else gap.p() is not None  # type: ignore[operator]
    assert Difference(0.02, 0.01, None, True, (1, 1)).p() is None
    assert Difference(0.02, None, 0.0, True, (3, 3)).p() == 0.0


# the rule -------------------------------------------------------------------------------------------------------------
def test_two_seeds_that_agree_have_no_interval() -> None:
    assert mean_interval([0.5, 0.5]) is None
    assert mean_interval([0.5]) is None
    # The gains agree, 0.1 each, though no two figures do; rounding makes them differ in the last bit.
    same = np.arange(1000) < 500
    paired = difference({0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.6}, {0: same, 1: same}, {0: ~same, 1: ~same})
    assert paired.over_seeds is None
    apart = difference({0: 0.6, 1: 0.6}, {2: 0.5, 3: 0.5})
    assert apart.over_seeds is None
    assert not paired.clear
    assert not apart.clear


@pytest.mark.parametrize(
    ("mean", "images", "seeds", "of_images", "verdict"),
    [
        (0.03, 0.02, 0.01, True, "beyond noise"),
        (-0.03, 0.02, 0.01, True, "beyond noise"),
        (0.03, 0.02, 0.03, True, "within noise"),
        # Each half alone is smaller, both together are not.
        (0.03, 0.025, 0.025, True, "within noise"),
        (0.03, 0.04, 0.01, True, "within noise"),
        (0.03, 0.02, None, True, "unknown"),
        (0.03, None, 0.01, True, "unknown"),
        (0.03, 0.04, None, True, "within noise"),
        (0.03, None, None, True, "unknown"),
        (0.03, None, 0.01, False, "beyond noise"),
        (0.03, None, 0.04, False, "within noise"),
        (0.03, None, None, False, "unknown"),
        (0.0, 0.0, 0.0, True, "within noise"),
    ],
)
def test_what_is_noise(mean: float, images: float | None, seeds: float | None, of_images: bool, verdict: str) -> None:
    found = Difference(mean, images, seeds, True, (3, 3), of_images)
    assert found.verdict == verdict
    assert found.clear == (verdict == "beyond noise")


def test_attacks_have_one_order() -> None:
    attacks = ["worst_of_pgd-20,cw-30", "aa", "square-100", "cw-30", "unheard-of", "pgd-20", "fgsm", "clean", "aa.fab"]
    assert sorted(attacks, key=severity) == [
        "clean", "fgsm", "pgd-20", "cw-30", "square-100", "aa", "aa.fab", "worst_of_pgd-20,cw-30", "unheard-of",
    ]  # fmt: skip
