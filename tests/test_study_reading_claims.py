"""Verdicts on claims, each from records that were made so that it must come out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_cells import VARIANTS, little, records

from mmard.study.claims import FAILS, HOLDS, OPEN, SHOWN, Claim, Verdict, decided, judge, load_claims
from mmard.study.grid import Cell, Row, load_study
from mmard.study.reading import Reading

NOISE = (0.002, -0.002, 0.0)


def judged(kind: str, rule: dict[str, Any], levels: dict[str, float], noise: float = 1.0, **more: Any) -> Verdict:
    """A claim about robust accuracies that are given by variant or host, with a little noise that is not shared."""
    made = little(kind, **more)

    def robust(cell: Cell, row: Row | None) -> float:
        if row is None:
            return {"main": 0.9, "middle": 0.8, "weak": 0.7}[cell.role.removeprefix("teacher ")]
        own = levels.get(row.variant, levels.get(row.host, 0.0))
        slope = levels.get(f"{row.variant} slope", 0.0)
        at = {"main": 0.9, "middle": 0.8, "weak": 0.7, "": 0.9}[row.teacher]
        wave = NOISE[cell.seed % 3] * noise * (1 if row.variant == "plain" else -1)
        return own + slope * (at - 0.8) + wave

    found = records(made, robust=robust)
    # Which images are hard does not matter here, only how many.
    for record in found.values():
        for figures in record["figures"].values():
            figures["robust"].pop("right")
    claim = Claim.model_validate({"number": "0", "says": "", "study": kind, **rule})
    return judge(claim, {kind: Reading(made, found)})


GAIN = {"rule": "gain", "variant": "+both", "matters": 0.005}


@pytest.mark.parametrize(
    ("both", "direction", "verdict"),
    [
        (0.75, "more", HOLDS),
        (0.65, "more", FAILS),
        (0.70, "less", OPEN),
        (0.65, "less", HOLDS),
        (0.75, "less", FAILS),
        (0.72, "not less", HOLDS),
        (0.65, "not less", FAILS),
    ],
)
def test_a_gain_is_judged_by_its_interval(both: float, direction: str, verdict: str) -> None:
    levels = {"plain": 0.70, "+inner": 0.70, "+both": both}
    found = judged("plug-and-play", {**GAIN, "direction": direction}, levels, variants=VARIANTS)
    assert found.verdict == verdict
    assert found.figure.endswith("points")
    assert "mean of 2 hosts" in found.because


def test_a_gain_that_is_lost_in_noise_is_open() -> None:
    levels = {"plain": 0.70, "+inner": 0.70, "+both": 0.706}
    found = judged("plug-and-play", GAIN, levels, noise=4, variants=VARIANTS)
    assert found.verdict == OPEN


def test_a_host_that_loses_keeps_a_gain_on_average_open() -> None:
    made = little("plug-and-play", variants=VARIANTS)

    def robust(cell: Cell, row: Row | None) -> float:
        if row is None or row.variant != "+both":
            return 0.70
        return 0.60 if row.host == "ard" else 0.90

    found = records(made, robust=robust)
    claim = Claim.model_validate({"number": "0", "says": "", "study": "plug-and-play", **GAIN})
    answer = judge(claim, {"plug-and-play": Reading(made, found)})
    assert answer.verdict == OPEN
    assert "1 for it, 1 against" in answer.because


def test_missing_records_and_single_seeds_are_open() -> None:
    claim = Claim.model_validate({"number": "0", "says": "", "study": "plug-and-play", **GAIN})
    made = little("plug-and-play", variants=VARIANTS)
    gone = [name for row in made.rows if row.host == "ard" and row.variant == "+both" for name in row.cells]
    partly = Reading(made, records(made, leave_out=gone))
    assert judge(claim, {"plug-and-play": partly}) == Verdict(claim, OPEN, "", "records are missing")
    one = little("plug-and-play", variants=VARIANTS, seeds=(0,))
    alone = judge(claim, {"plug-and-play": Reading(one, records(one))})
    assert (alone.verdict, alone.because) == (OPEN, "one seed of training")
    assert judge(claim, {}).verdict == ""
    assert judge(claim, {"plug-and-play": Reading(made, {})}).verdict == ""


def test_farther_holds_two_quantities_beside_each_other() -> None:
    made = little("boundary", variants=VARIANTS, boundary=True)
    reading = Reading(made, records(made))
    said = {"number": "0", "says": "", "rule": "farther", "study": "boundary", "matters": 0.05}
    far = {**said, "quantity": "teacher distance", "than": "student distance"}
    near = {**said, "quantity": "student distance", "than": "teacher distance"}
    assert judge(Claim.model_validate(far), {"boundary": reading}).verdict == HOLDS
    assert judge(Claim.model_validate(near), {"boundary": reading}).verdict == FAILS


TEACHERS = {"hosts": ("rslad",), "variants": VARIANTS, "teachers": ("main", "middle", "weak")}


@pytest.mark.parametrize(("steeper", "verdict"), [(0.5, HOLDS), (0.0, FAILS), (-0.4, FAILS)])
def test_slopes_are_compared_with_teachers_as_points(steeper: float, verdict: str) -> None:
    rule = {"rule": "slope", "variant": "+both", "matters": 0.2}
    levels = {"plain": 0.6, "+inner": 0.6, "+both": 0.6, "plain slope": 0.1, "+both slope": 0.1 + steeper}
    found = judged("saturation", rule, levels, noise=0, **TEACHERS)
    assert found.verdict == verdict
    assert "3 robust teachers" in found.because


def test_two_teachers_decide_nothing_about_slopes() -> None:
    rule = {"rule": "slope", "variant": "+both"}
    levels = {"plain": 0.6, "+inner": 0.6, "+both": 0.6}
    found = judged("saturation", rule, levels, **{**TEACHERS, "teachers": ("main", "weak")})
    assert found.verdict == OPEN


@pytest.mark.parametrize(("both", "verdict"), [(0.1, HOLDS), (0.9, FAILS)])
def test_students_may_differ_less_between_teachers(both: float, verdict: str) -> None:
    rule = {"rule": "spread", "variant": "+both", "direction": "less", "matters": 0.002}
    levels = {"plain": 0.6, "+inner": 0.6, "+both": 0.6, "plain slope": 0.5, "+both slope": both}
    assert judged("saturation", rule, levels, noise=0, **TEACHERS).verdict == verdict


@pytest.mark.parametrize(("ours", "verdict"), [(0.75, HOLDS), (0.60, FAILS)])
def test_the_top_is_the_best_with_the_plugin_against_the_best_without(ours: float, verdict: str) -> None:
    rule = {"rule": "top", "plugin": "mmard", "matters": 0.005}
    levels = {"rslad": 0.70, "ard": 0.65, "ard+mmard": 0.5, "rslad+mmard": ours}
    made = little("benchmark", ("rslad", "ard", "rslad+mmard", "ard+mmard"))
    wave = {"rslad": 0.002, "rslad+mmard": -0.002}
    found = records(
        made,
        robust=lambda cell, row: 0.9 if row is None else levels[row.host] + wave.get(row.host, 0) * (cell.seed % 2),
    )
    for record in found.values():
        for figures in record["figures"].values():
            figures["robust"].pop("right")
    claim = Claim.model_validate({"number": "0", "says": "", "study": "benchmark", **rule})
    answer = judge(claim, {"benchmark": Reading(made, found)})
    assert answer.verdict == verdict
    assert answer.because.startswith("rslad+mmard minus rslad, chosen on the other seeds, of 4 methods")
    assert ("after Holm over 2 rows with mmard" in answer.because) == (verdict == HOLDS)
    # A row that was not trained could be the best of the others, where it holds, or of ours, where it does not.
    for host, whole in (("ard", verdict == FAILS), ("ard+mmard", verdict == HOLDS)):
        (lacking,) = [row for row in made.rows if row.host == host]
        some = {name: record for name, record in found.items() if name != lacking.cells[-1]}
        assert judge(claim, {"benchmark": Reading(made, some)}).verdict == (verdict if whole else OPEN)


def test_the_top_is_not_chosen_by_what_it_is_compared_by() -> None:
    """Six equal rows with noise of their own: the best of them is ahead by chance, and on other seeds it is not."""
    ours, others = ("rslad+mmard", "ard+mmard", "iad_i+mmard"), ("rslad", "ard", "iad_i")
    made = little("benchmark", (*others, *ours))
    # Each row with the plug-in has its one good seed.
    found = records(
        made,
        robust=lambda cell, row: (
            0.7 + (0.03 if row and row.host in ours and ours.index(row.host) == cell.seed else 0.0)
        ),
    )
    for record in found.values():
        for figures in record["figures"].values():
            figures["robust"].pop("right")
    claim = Claim(number="6", says="", rule="top", study="benchmark", plugin="mmard")
    answer = judge(claim, {"benchmark": Reading(made, found)})
    assert answer.verdict == OPEN
    assert answer.figure == "0.0 ± 0.0 points"
    assert " or " in answer.because, "other seeds choose other rows"


def test_a_mean_over_hosts_says_what_it_is_without_the_most_favourable_one() -> None:
    three = {"rslad": 0.71, "ard": 0.72, "iad_i": 0.9}
    made = little("plug-and-play", tuple(three), variants=VARIANTS)
    found = records(made, robust=lambda cell, row: three[row.host] if row and row.variant == "+both" else 0.70)
    for record in found.values():
        for figures in record["figures"].values():
            figures["robust"].pop("right")
    claim = Claim.model_validate({"number": "0", "says": "", "study": "plug-and-play", **GAIN})
    answer = judge(claim, {"plug-and-play": Reading(made, found)})
    assert "without iad_i, which is most for it, +1.5 ± 0.0" in answer.because


def test_what_was_trained_is_counted() -> None:
    claim = Claim(number="1", says="", rule="trained", study="plug-and-play")
    made = little("plug-and-play", variants=VARIANTS)
    every = records(made)
    whole = judge(claim, {"plug-and-play": Reading(made, every)})
    assert (whole.verdict, whole.figure) == (SHOWN, "6 of 6 rows trained")
    partly = judge(claim, {"plug-and-play": Reading(made, records(made, leave_out=made.rows[0].cells))})
    assert (partly.verdict, partly.figure) == (OPEN, "5 of 6 rows trained")


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.001, 0.5))
def test_more_and_less_are_each_others_mirror(middle: float, half: float, matters: float) -> None:
    low, high = middle - half, middle + half
    assert decided(low, high, "more", matters) == decided(-high, -low, "less", matters)
    if decided(low, high, "more", matters) == HOLDS:
        assert decided(low, high, "not less", matters) == HOLDS
        assert decided(low, high, "less", matters) == FAILS


def test_the_declared_claims_are_those_of_the_abstract_and_name_what_there_is() -> None:
    source, claims = load_claims()
    assert "arXiv:2503.06559" in source
    assert {claim.number[0] for claim in claims} == set("123456")
    assert len({claim.number for claim in claims}) == len(claims)
    for claim in claims:
        study = load_study(claim.study)
        assert not claim.variant or claim.variant in study.variants
        assert claim.matters > 0 or claim.rule == "trained"
        if claim.rule == "top":
            assert any(claim.plugin in host.split("+")[1:] for host in study.hosts)
            assert any(claim.plugin not in host.split("+")[1:] for host in study.hosts)
