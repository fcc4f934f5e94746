"""What records say of a study's rows: means, paired differences, slopes, and what is missing."""

from __future__ import annotations

import copy
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_cells import VARIANTS, grid, little, records

from mmard.study.grid import Cell, Row, Sweep
from mmard.study.reading import (
    CLEAN,
    ROBUST,
    SECONDS,
    Reading,
    axes_of,
    boundary_quantities,
    hosts_of,
    missing_rows,
    nearness,
    pooled,
    row_name,
    row_of,
    times_as_long,
    variants_of,
)
from mmard.study.trends import by_teacher, fit_line, trend
from mmard.tables.statistics import t_95

LEVELS = {"plain": (0.70, 0.72, 0.74), "+inner": (0.71, 0.75, 0.76), "+both": (0.72, 0.74, 0.76)}


def at_levels(cell: Cell, row: Row | None) -> float:
    return 0.85 if row is None else LEVELS[row.variant][cell.seed]


def reading(**more: object) -> Reading:
    made = little("plug-and-play", variants=VARIANTS)
    return Reading(made, records(made, robust=at_levels, **more))  # type: ignore[arg-type]


def test_a_mean_has_the_deviation_and_the_t_interval_of_its_seeds() -> None:
    found = reading()
    mean = found.mean(found.grid.rows[0], ROBUST)
    assert mean is not None
    assert (mean.n, mean.of) == (3, 3)
    assert mean.mean == pytest.approx(0.72)
    assert mean.deviation == pytest.approx(0.02)
    assert mean.interval == pytest.approx((0.72 - 4.3027 * 0.02 / math.sqrt(3), 0.72 + 4.3027 * 0.02 / math.sqrt(3)))


def test_a_gain_is_paired_by_seed() -> None:
    found = reading()
    plain, inner, both = (row_of(found, hosts_of(found)[0], variant) for variant in variants_of(found))
    assert plain is not None
    assert inner is not None
    assert both is not None
    gap = found.gain(inner, found.reference(inner), ROBUST)
    assert gap is not None
    # Gains by seed: 0.01, 0.03, 0.02.
    assert gap.mean == pytest.approx(0.02)
    assert gap.over_seeds == pytest.approx(4.3027 * 0.01 / math.sqrt(3))
    assert gap.over_images is not None
    certain = found.gain(both, plain, ROBUST)
    assert certain is not None
    assert certain.over_seeds == pytest.approx(0, abs=1e-12)
    assert certain.clear is (certain.mean > (certain.over_images or 0))
    assert found.reference(plain) is None


def test_without_verdicts_there_is_no_interval_over_images() -> None:
    found = reading()
    for record in found.records.values():
        for figures in record["figures"].values():
            figures["robust"].pop("right")
    row = found.grid.rows[2]
    gap = found.gain(row, found.reference(row), ROBUST)
    assert gap is not None
    assert gap.over_images is None
    assert gap.verdict == "unknown"
    assert not gap.clear


def test_a_seed_that_one_side_lacks_is_left_out_on_both() -> None:
    made = little("plug-and-play", variants=VARIANTS)
    inner = next(row for row in made.rows if row.variant == "+inner")
    found = Reading(made, records(made, robust=at_levels, leave_out=[inner.cells[1]]))
    mean = found.mean(inner, ROBUST)
    assert mean is not None
    assert (mean.n, mean.of, sorted(mean.by_seed)) == (2, 3, [0, 2])
    gap = found.gain(inner, found.reference(inner), ROBUST)
    assert gap is not None
    assert gap.seeds == (2, 2)
    assert gap.mean == pytest.approx((0.01 + 0.02) / 2)
    assert missing_rows(found) == ["rslad +inner: no record of seed 1"]


def test_nothing_is_filled_in_for_a_row_without_records() -> None:
    made = little("plug-and-play", variants=VARIANTS)
    gone = next(row for row in made.rows if row.host == "ard" and row.variant == "+both")
    found = Reading(made, records(made, robust=at_levels, leave_out=gone.cells))
    assert found.mean(gone, ROBUST) is None
    assert found.gain(gone, found.reference(gone), ROBUST) is None
    assert missing_rows(found) == ["ard +both: no record"]
    rows = [row for row in made.rows if row.variant == "+both"]
    assert pooled(found, [(row, found.reference(row)) for row in rows], ROBUST) is None
    assert found.any
    assert not Reading(made, {}).any


def test_hosts_are_averaged_seed_by_seed() -> None:
    found = reading()
    rows = [row for row in found.grid.rows if row.variant == "+inner"]
    gap = pooled(found, [(row, found.reference(row)) for row in rows], ROBUST)
    assert gap is not None
    # Both hosts have the same gains here, so that their mean has the same interval over seeds.
    assert gap.mean == pytest.approx(0.02)
    assert gap.over_seeds == pytest.approx(4.3027 * 0.01 / math.sqrt(3))
    assert gap.over_images is not None


def test_one_seed_has_an_interval_over_images_and_is_never_beyond_noise() -> None:
    made = little("plug-and-play", variants=VARIANTS, seeds=(0,))
    found = Reading(made, records(made, robust=lambda cell, row: 0.5 if row and row.variant == "plain" else 0.9))
    row = made.rows[1]
    mean, gap = found.mean(row, ROBUST), found.gain(row, found.reference(row), ROBUST)
    assert mean is not None
    assert mean.deviation is None
    assert mean.interval is not None
    assert mean.interval[0] == pytest.approx(0.8706, abs=1e-3)
    assert gap is not None
    assert gap.over_seeds is None
    assert gap.over_images is not None
    assert not gap.clear


def test_best_and_last_are_kept_apart() -> None:
    made = grid()
    found = records(made)
    row = made.rows[0]
    best, last = (Reading(made, found, which).mean(row, ROBUST) for which in ("best", "last"))
    assert best is not None
    assert last is not None
    assert best.by_seed != last.by_seed
    assert Reading(made, found, "neither").mean(row, ROBUST) is None


def test_time_is_that_of_the_processor_and_of_runs_in_one_sitting() -> None:
    found = reading(seconds=10.0)
    row, host = found.grid.rows[1], found.grid.rows[0]
    ratio = times_as_long(found, row, found.host(row), SECONDS)
    assert ratio is not None
    assert ratio > 1
    records_now = copy.deepcopy(dict(found.records))
    for name in host.cells:
        records_now[name]["seconds"]["train_cpu"] = None
    assert Reading(found.grid, records_now).mean(host, SECONDS) is None
    for name in host.cells:
        records_now[name]["device"] = "cuda"
    assert Reading(found.grid, records_now).mean(host, SECONDS) is not None


def test_a_sweep_is_held_beside_the_row_that_differs_in_it_alone() -> None:
    sweeps = (Sweep(axis="guide", param="mmard.guide", plugin="mmard", factor=3),)
    made = little("ablation", hosts=("rslad",), variants=VARIANTS, sweeps=sweeps)
    found = Reading(made, {})
    swept = [row for row in made.rows if row.axis]
    assert {found.reference(row) for row in swept} == {row_of(found, hosts_of(found)[0], "+both")}
    assert {found.host(row) for row in swept} == {made.rows[0]}
    points = axes_of(found, hosts_of(found)[0])["guide"]
    assert [point.default for point in points] == [False, True, False]
    values = [float(point.value) for point in points]
    assert values[2] / values[1] == pytest.approx(3, rel=1e-2)
    assert values[1] / values[0] == pytest.approx(3, rel=1e-2)


def test_distances_are_in_radii_and_by_state() -> None:
    made = little("boundary", variants=VARIANTS, boundary=True)
    found = Reading(made, records(made))
    row = made.rows[0]
    record = next(iter(found.recorded(row).values()))
    mean = found.mean(row, nearness("teacher distance"))
    assert mean is not None
    own = record["boundary"]["own"]["teacher"]["distance_first_order"]
    assert mean.by_seed[record["seed"]] == pytest.approx(own / record["settings"]["eps"])
    assert len({quantity.title for quantity in boundary_quantities("own")}) == 8
    of_test = found.mean(row, nearness("student margin", "test"))
    assert of_test is not None
    assert of_test.by_seed[record["seed"]] == record["boundary"]["test"]["student"]["mean_margin"]
    # A run without a boundary part, or without that state, has none.
    assert nearness("teacher margin").take({**record, "boundary": None}, "best") is None
    assert nearness("teacher margin").take({**record, "boundary": {"own": None}}, "best") is None


def test_names_say_no_more_than_they_must() -> None:
    found = reading()
    assert row_name(found, found.grid.rows[0]) == "rslad plain"
    alone = Reading(little("benchmark"), {})
    assert row_name(alone, alone.grid.rows[0]) == "rslad"
    several = Reading(little("saturation", variants=VARIANTS, teachers=("main", "weak")), {})
    assert row_name(several, several.grid.rows[1]) == "rslad, from weak plain"


# slopes ---------------------------------------------------------------------------------------------------------------
def test_a_slope_is_that_of_least_squares() -> None:
    xs, ys = [1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 5.0, 4.0]
    found = fit_line(xs, ys)
    assert found is not None
    assert found.slope == pytest.approx(statistics.linear_regression(xs, ys).slope)
    assert found.intercept == pytest.approx(statistics.linear_regression(xs, ys).intercept)
    rest = sum((y - found.at(x)) ** 2 for x, y in zip(xs, ys, strict=True))
    assert found.half == pytest.approx(t_95(2) * math.sqrt(rest / 2 / 5))
    assert fit_line([1.0, 1.0], [2.0, 3.0]) is None
    two = fit_line([0.0, 1.0], [0.0, 1.0])
    assert two is not None
    assert two.half is None


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8, unique=True), st.floats(-2, 2), st.floats(-1, 1))
def test_points_on_a_line_give_it_back(xs: list[float], steep: float, start: float) -> None:
    if max(xs) - min(xs) < 1e-3:
        return
    found = fit_line(xs, [start + steep * x for x in xs])
    assert found is not None
    assert found.slope == pytest.approx(steep, abs=1e-6)


def test_teachers_that_are_not_robust_or_are_named_apart_do_not_bend_the_line() -> None:
    made = little(
        "saturation", ("rslad",), variants=VARIANTS, teachers=("main", "weak", "middle", "self"), apart=("self",)
    )
    own = {"main": 0.9, "weak": 0.3, "middle": 0.8, "self": 0.7}

    def robust(cell: Cell, row: Row | None) -> float:
        if row is None:
            return own[cell.role.removeprefix("teacher ")]
        gain = 0.5 if row.variant == "+both" else 0.1
        return 0.6 + gain * (own[row.teacher] - 0.8)

    found = by_teacher(Reading(made, records(made, robust=robust)), "rslad", "cnn-4")
    assert [each.role for each in found] == ["weak", "self", "middle", "main"]
    assert [each.apart for each in found] == [True, True, False, False]
    line = trend(found, "+both")
    assert line is not None
    assert (line.cells.n, line.teachers.n) == (6, 2)
    assert line.teachers.slope == pytest.approx(0.5, abs=0.05)
    less = trend(found, "+both", "plain")
    assert less is not None
    assert less.cells.slope == pytest.approx(0.4, abs=0.05)
    assert trend(found[:2], "plain") is None


def test_clean_accuracy_is_read_beside_robust() -> None:
    found = reading()
    clean, robust = (found.mean(found.grid.rows[0], quantity) for quantity in (CLEAN, ROBUST))
    assert clean is not None
    assert robust is not None
    assert clean.mean > robust.mean
