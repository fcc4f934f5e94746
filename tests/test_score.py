"""Scores: an interval that is right at the ends, and a record that says all that the figure depends on."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmard.evaluation.score import Score, wilson

SCORE = Score(
    attack="pgd-20",
    label="PGD-20 (CE, step 2/255, uniform start, 1 restart)",
    norm="linf",
    eps=8 / 255,
    split="test",
    n=500,
    correct=365,
    seconds=1.25,
    seed=0,
    batch_size=250,
    weights="a" * 64,
    data="b" * 64,
    which="best",
    images="digits, bundled, test, all 500 images",
)

shares = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I: the score method without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(correct: int, n: int, low: float, high: float) -> None:
    found = wilson(correct, n)
    assert found == pytest.approx((low, high), abs=5e-5)


@given(shares)
def test_wilson_solves_its_equation(share: tuple[int, int]) -> None:
    """Each bound is a share from which the measured one lies 1.96 standard errors away, at the bound's own error."""
    correct, n = share
    p = correct / n
    for bound in wilson(correct, n):
        assert abs(p - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


@given(shares)
def test_wilson_is_an_interval_of_shares_around_the_measured_one(share: tuple[int, int]) -> None:
    correct, n = share
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    mirrored = wilson(n - correct, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    assert wilson(2 * correct, 2 * n)[1] - wilson(2 * correct, 2 * n)[0] < high - low


def test_a_score_is_its_share_and_interval() -> None:
    assert SCORE.accuracy == 0.73
    assert SCORE.interval == wilson(365, 500)


def test_a_record_is_whole_and_plain_json() -> None:
    record = SCORE.record()
    assert json.loads(json.dumps(record)) == record
    assert set(record) == set(Score.__dataclass_fields__) | {"accuracy", "interval"}
    assert record["accuracy"] == 0.73
    assert Score(**{name: record[name] for name in Score.__dataclass_fields__}) == SCORE
    clean = replace(SCORE, attack="clean", norm=None, eps=None).record()
    assert clean["eps"] is None


OTHER: dict[str, Any] = {
    "attack": "pgd-20@2/255",
    "label": "PGD-20 (CE, step 3/255, uniform start, 1 restart)",
    "norm": "l2",
    "eps": 8 / 255 + 1e-9,
    "split": "val",
    "n": 501,
    "seed": 1,
    "batch_size": 100,
    "data": "c" * 64,
    "which": "last",
}


@pytest.mark.parametrize("field", OTHER)
def test_another_measurement_has_another_name(field: str) -> None:
    assert replace(SCORE, **{field: OTHER[field]}).slug != SCORE.slug


@pytest.mark.parametrize("field", ["correct", "seconds", "weights"])
def test_the_same_measurement_made_again_has_the_same_name(field: str) -> None:
    assert replace(SCORE, **{field: {"correct": 3, "seconds": 9.0, "weights": "d" * 64}[field]}).slug == SCORE.slug


def test_a_name_can_be_read() -> None:
    assert re.fullmatch(r"best-test-500-pgd-20-linf-0\.03137-seed0-[0-9a-f]{8}", SCORE.slug)
    assert re.fullmatch(
        r"best-test-500-clean-seed0-[0-9a-f]{8}", replace(SCORE, attack="clean", norm=None, eps=None).slug
    )


@given(st.text(max_size=400), st.text(max_size=400))
def test_a_name_is_that_of_one_file(attack: str, which: str) -> None:
    assume(attack != SCORE.attack)
    slug = replace(SCORE, attack=attack, which=which).slug
    assert re.fullmatch(r"[A-Za-z0-9.,+_-]{1,160}", slug)
    assert slug != replace(SCORE, which=which).slug
