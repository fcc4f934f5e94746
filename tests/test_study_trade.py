"""Robust accuracy at the same clean accuracy, from records whose figures were made up so that the answer is known."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from invented_cells import little, records, text_of
from numpy.testing import assert_allclose

from mmard.study.claims import FAILS, HOLDS, OPEN, Claim, judge
from mmard.study.grid import Grid, Row, Sweep
from mmard.study.reading import Reading
from mmard.study.tables import tables
from mmard.study.trends import Accuracies, _at_clean, above_line, trade_off_lines
from mmard.tables.table import MINUS

ALPHA = {"axis": "alpha", "param": "rslad.alpha", "values": (0.5, 1.0)}
SWEEPS = tuple(Sweep(**ALPHA, host=host) for host in ("rslad", "rslad+mmard"))
RSLAD = {"alpha 1": (0.40, 0.30), "plain": (0.50, 0.20), "alpha 0.5": (0.60, 0.14)}
"""Clean and robust accuracy of each row; the weight of the robust term is 5/6 where nothing is said."""
N = 500

Pair = tuple[float, float]


def grid() -> Grid:
    return little("trade-off", ("rslad", "rslad+mmard", "pgd_at"), sweeps=SWEEPS)


def reading(levels: Mapping[str, Mapping[str, Pair]], waves: Mapping[str, float] | None = None) -> Reading:
    """Rows by host and variant with these accuracies, robust accuracy waving with the seed; no other records."""
    made = grid()
    found = records(made)
    for row in made.rows:
        for name in row.cells:
            pair = levels.get(row.host, {}).get(row.variant)
            if pair is None:
                found.pop(name)
                continue
            shift = (waves or {}).get(row.host, 0.0) * (made.cells[name].seed - 1)
            for own in found[name]["figures"].values():
                own["clean"] |= _figure(pair[0])
                own["robust"] |= _figure(pair[1] + shift)
    return Reading(made, found)


def _figure(accuracy: float) -> dict[str, Any]:
    correct = round(accuracy * N)
    right = b64encode(np.packbits(np.arange(N) < correct).tobytes()).decode()
    return {"accuracy": correct / N, "correct": correct, "n": N, "right": right}


def row(found: Reading, host: str, variant: str = "plain") -> Row:
    (own,) = [each for each in found.grid.rows if (each.host, each.variant) == (host, variant)]
    return own


def test_a_line_has_the_rows_of_a_method_by_clean_accuracy() -> None:
    found = reading({"rslad": RSLAD, "pgd_at": {"plain": (0.5, 0.3)}})
    assert {key.host: [each.variant for each in line] for key, line in trade_off_lines(found).items()} == {
        "rslad": ["alpha 1", "plain", "alpha 0.5"]
    }


@pytest.mark.parametrize(
    ("pair", "beside"),
    [
        ((0.50, 0.25), 0.20),
        ((0.45, 0.25), 0.25),
        ((0.58, 0.10), 0.152),
        ((0.30, 0.28), 0.30),
        ((0.70, 0.15), 0.14),
    ],
)
def test_above_a_line_is_above_it_where_it_is_as_accurate(pair: Pair, beside: float) -> None:
    found = reading({"rslad": RSLAD, "rslad+mmard": {"plain": pair}})
    (line,) = trade_off_lines(found).values()
    gap = above_line(found, row(found, "rslad+mmard"), line)
    assert gap is not None
    assert_allclose(gap.mean, pair[1] - beside, atol=1e-12)
    assert gap.over_seeds == pytest.approx(0.0, abs=1e-12)
    assert gap.over_images is not None


def test_a_row_is_not_above_its_own_line_and_not_above_one_without_records() -> None:
    found = reading({"rslad": RSLAD})
    (line,) = trade_off_lines(found).values()
    assert above_line(found, line[0], line) is None
    assert above_line(found, row(found, "pgd_at"), line) is None


def test_the_interval_over_images_is_that_of_both_accuracies_of_all_networks() -> None:
    """Each image weighs a little more in turn: what the value then changes by is what the mask says of it."""
    draw = np.random.default_rng(0)
    masks = [(draw.random(40) < clean, draw.random(40) < robust) for clean, robust in ((0.3, 0.3), (0.8, 0.2))]
    own = (draw.random(40) < 0.5, draw.random(40) < 0.4)

    def value(weights: np.ndarray[Any, Any]) -> tuple[float, Any]:
        def one(pair: tuple[Any, Any]) -> Accuracies:
            clean, robust = (float((weights * mask).sum() / weights.sum()) for mask in pair)
            return Accuracies(clean, robust, (pair[0].astype(float), pair[1].astype(float)))

        return _at_clean([one(pair) for pair in masks], one(own))

    here, mask = value(np.ones(40))
    assert_allclose(mask.mean(), here)
    h = 1e-5
    for image in range(40):
        one = np.arange(40) == image
        change = (value(1 + h * one)[0] - value(1 - h * one)[0]) / (2 * h)
        assert_allclose(change, (mask[image] - here) / 40, atol=1e-8)


def test_the_table_holds_every_row_beside_every_line() -> None:
    found = reading({"rslad": RSLAD, "rslad+mmard": {"plain": (0.45, 0.29), "alpha 0.5": (0.5, 0.25)}})
    sheet, gains = tables(found)
    assert sheet.heads[3:] == ("above the line of rslad", "above the line of rslad+mmard")
    shown = {text_of(cells[0]): [text_of(cell) for cell in cells[1:]] for cells in sheet.rows}
    assert list(shown) == [
        "rslad alpha 1", "rslad alpha 0.833", "rslad alpha 0.5",
        "rslad+mmard alpha 0.833", "rslad+mmard alpha 0.5", "pgd_at",
    ]  # fmt: skip
    assert shown["rslad alpha 0.833"][2] == ""
    assert shown["rslad+mmard alpha 0.833"][2].startswith("+4.0 ± ")
    assert shown["rslad+mmard alpha 0.833"][3] == ""
    assert shown["rslad alpha 1"][3].startswith("+1.0 ± "), "less accurate than the line's first row: held beside that"
    assert shown["pgd_at"] == ["", "", "", ""]
    assert [text_of(cells[0]) for cells in gains.rows] == [
        "rslad+mmard alpha 0.833", "rslad+mmard alpha 0.5", "rslad+mmard alpha 1",
    ]  # fmt: skip
    assert [[text_of(cell).split(" ")[0] for cell in cells[1:]] for cells in gains.rows] == [
        [f"{MINUS}5.0", "+9.0"],
        [f"{MINUS}10.0", "+11.0"],
        ["", ""],
    ]


@pytest.mark.parametrize(("robust", "verdict"), [(0.29, HOLDS), (0.21, FAILS), (0.25, OPEN)])
def test_the_claim_is_of_the_host_with_the_plug_in(robust: float, verdict: str) -> None:
    found = reading({"rslad": RSLAD, "rslad+mmard": {"plain": (0.45, robust)}}, {"rslad+mmard": 0.01})
    claim = Claim(number="0", says="", rule="above", study="trade-off", plugin="mmard", matters=0.005)
    answer = judge(claim, {"trade-off": found})
    assert answer.verdict == verdict
    assert answer.because == "rslad+mmard above the line of rslad, 3 rows, 3 seeds"
    beyond = reading({"rslad": RSLAD, "rslad+mmard": {"plain": (0.35, robust)}}, {"rslad+mmard": 0.01})
    assert (
        "3 rows, less accurate than all of them: held beside the line's end, 3"
        in judge(claim, {"trade-off": beyond}).because
    )
    assert judge(claim, {"trade-off": reading({"rslad": {"plain": (0.5, 0.2)}})}).verdict == OPEN
