"""The tables and plots of studies: what stands in them, and that nothing stands in them that was not measured."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_cells import VARIANTS, little, records, text_of

from mmard.report.drawing import Box, labels
from mmard.study.drawing import drawn_from, stamp
from mmard.study.figures import foot
from mmard.study.grid import Cell, Reads, Row, Sweep
from mmard.study.methods import pareto, ranked
from mmard.study.reading import Reading
from mmard.study.tables import VIEWS, charts, tables, written
from mmard.tables.table import Entry, Table

GUIDE = Sweep(axis="guide", param="mmard.guide", plugin="mmard", factor=3)
MEASURE = Sweep(axis="measure", param="mmard.measure", plugin="mmard", values=("mi", "kl"))
ALPHA = Sweep(axis="rslad.alpha", param="rslad.alpha", host="rslad", factor=3, share=True)
KINDS: dict[str, dict[str, Any]] = {
    "plug-and-play": {"variants": VARIANTS},
    "boundary": {"variants": VARIANTS, "boundary": True},
    "ablation": {"hosts": ("rslad",), "variants": VARIANTS, "sweeps": (GUIDE, MEASURE)},
    "saturation": {
        "hosts": ("rslad",),
        "variants": VARIANTS,
        "teachers": ("main", "weak", "middle", "self"),
        "apart": ("self",),
    },
    "benchmark": {"hosts": ("rslad", "ard", "pgd_at", "rslad+mmard")},
    "trade-off": {"hosts": ("rslad", "pgd_at"), "sweeps": (ALPHA,)},
    "sensitivity": {"hosts": ("rslad",), "sweeps": (ALPHA,)},
    "networks": {"hosts": ("rslad", "pgd_at")},
}


def reading(kind: str, **more: Any) -> Reading:
    made = little(kind, **KINDS[kind])
    return Reading(made, records(made, **more))


def cells(sheet: Table, row: int) -> list[str]:
    return [text_of(cell) for cell in sheet.rows[row]]


def test_every_way_of_reading_is_tried_here() -> None:
    assert set(KINDS) == set(VIEWS)


def test_plug_and_play_has_accuracy_gain_and_time() -> None:
    levels = {"plain": 0.70, "+inner": 0.74, "+both": 0.70}
    found = reading("plug-and-play", robust=lambda cell, row: levels[row.variant] if row else 0.9)
    robust, gain, clean, _, time = tables(found)
    assert robust.heads == ("robust %", "plain", "+inner", "+both")
    assert cells(robust, 0) == ["rslad", "70.0 ± 0.0", "74.0 ± 0.0", "70.0 ± 0.0"]
    # Every seed gains four points; only the images may say otherwise.
    assert re.fullmatch(r"\+4\.0 ± [12]\.\d\*", cells(gain, 0)[1])
    assert cells(gain, 0)[2] == "0.0 ± 0.0", "the very same images"
    assert cells(gain, 2)[0] == "mean of the hosts"
    assert clean.heads[0] == "clean %"
    assert all(re.fullmatch(r"\d\.\d\d", text) for text in cells(time, 0)[1:])
    assert [sheet.main for sheet in tables(found)] == [True, True, False, False, False]


def test_what_is_missing_is_empty_and_what_is_incomplete_says_so() -> None:
    made = little("plug-and-play", **KINDS["plug-and-play"])
    inner, both = made.rows[1], made.rows[2]
    found = Reading(made, records(made, leave_out=[*inner.cells, both.cells[0]]))
    robust, gain, *_ = tables(found)
    assert cells(robust, 0)[2] == ""
    assert cells(robust, 0)[3].endswith("(2 of 3 seeds)")
    assert cells(gain, 0)[1] == ""
    # An average over fewer hosts would be another one.
    assert cells(gain, 2)[1] == ""
    assert cells(gain, 2)[2] != ""


def test_boundary_tells_the_change_and_both_networks() -> None:
    found = reading("boundary")
    main, own, test = tables(found)
    assert main.heads[:3] == ("", "teacher: margin", "change")
    assert cells(main, 0)[0] == "rslad +inner"
    assert text_of(main.rows[0][2]).startswith("\N{MINUS SIGN}0.")
    assert cells(own, 2)[0] == "change"
    assert own.heads == test.heads
    assert not own.main


def test_ablation_has_the_default_in_its_place() -> None:
    sheet = tables(reading("ablation"))[0]
    named = [cells(sheet, row)[:2] for row in range(len(sheet.rows))]
    assert named[:3] == [["", "plain"], ["", "+inner"], ["", "+both"]]
    assert [name for name, _ in named[3:] if name] == ["guide", "measure"]
    values = [value for _, value in named[3:]]
    assert sum(value.endswith("(default)") for value in values) == 2
    assert values[1].endswith("(default)")
    default = next(row for row in sheet.rows if text_of(row[1]).endswith("(default)"))
    assert default[3] == ""
    assert default[4] != ""


def test_saturation_sets_teachers_apart_and_counts_points() -> None:
    students, slopes = tables(reading("saturation"))
    titles = [cells(students, row)[0] for row in range(len(students.rows))]
    assert titles == ["weak", "middle", "main", "self, apart"]
    assert "main: the main one" in students.caption
    assert [cells(slopes, row)[-1] for row in range(3)] == ["3, 9"] * 3
    assert cells(slopes, 3)[0] == "+inner minus plain"


def test_benchmark_is_sorted_and_says_what_is_noise() -> None:
    levels = {"rslad": 0.80, "ard": 0.60, "pgd_at": 0.81, "rslad+mmard": 0.79}
    shift = {"rslad": (0, 0.02, -0.02), "ard": (0, 0, 0), "pgd_at": (0, 0, 0), "rslad+mmard": (0, 0, 0)}

    def robust(cell: Cell, row: Row | None) -> float:
        return 0.9 if row is None else levels[row.host] + shift[row.host][cell.seed]

    found = reading("benchmark", robust=robust)
    sheet = tables(found)[0]
    assert [cells(sheet, row)[0] for row in range(4)] == ["pgd_at", "rslad", "rslad+mmard", "ard"]
    assert cells(sheet, 0)[5] == ""
    assert cells(sheet, 1)[5].endswith(", noise")
    last = sheet.rows[3][5]
    assert isinstance(last, Entry)
    assert last.strong
    assert cells(sheet, 3)[6] == "3"


def test_the_front_holds_what_nothing_faster_surpasses() -> None:
    found = reading("benchmark")
    front = pareto(found)
    assert [s for _, s, _ in front] == sorted(s for _, s, _ in front)
    assert [r for *_, r in front] == sorted(r for *_, r in front)
    assert front[-1][0] is ranked(found)[0]


def test_sensitivity_names_the_worst_of_each_method() -> None:
    levels = {"plain": 0.80, "rslad.alpha /3": 0.75, "rslad.alpha x3": 0.81}
    found = reading("sensitivity", robust=lambda cell, row: levels[row.variant] if row else 0.9)
    every, worst = tables(found)
    assert every.heads == ("method", "hyperparameter", "default", "/3", "x3")
    assert cells(every, 0)[3].startswith("\N{MINUS SIGN}5.0 ± ")
    assert "(at 0.625)" in cells(every, 0)[3]
    assert cells(worst, 0)[:3] == ["rslad", "80.0 ± 0.0", "rslad.alpha /3"]


def test_a_raised_suspicion_stands_beside_the_figure() -> None:
    found = reading("plug-and-play")
    cell = found.grid.rows[0].cells[0]
    found.records[cell]["suspicious"]["best"] = ["fgsm-beats-pgd"]  # type: ignore[index]
    assert cells(tables(found)[0], 0)[1].endswith("\N{DAGGER}")
    assert "fgsm-beats-pgd (rslad plain)" in foot(found)


def test_every_way_of_reading_has_its_tables_and_its_plots() -> None:
    assert set(get_args(Reads)) == set(VIEWS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_without_records_has_tables_without_figures_and_no_plot(kind: str) -> None:
    made = little(kind, **KINDS[kind])
    found = Reading(made, {})
    shown = [text_of(cell) for sheet in tables(found) for row in sheet.rows for cell in row[sheet.words :]]
    assert not [text for text in shown if re.search(r"\d\.\d", text)]
    assert charts(found) == []


def test_the_same_table_in_every_format() -> None:
    found = reading("plug-and-play")
    sheets = tables(found)
    text = written(found, "markdown")
    assert text.count("| --- |") == len(sheets)
    assert text.rstrip().endswith("where beyond it.")
    typeset = written(found, "latex")
    assert typeset.count(r"\begin{tabular}{lrrr}") == 2
    assert typeset.count(r"\begin{table}") == typeset.count(r"\end{table}") == len(sheets)
    assert "\N{MINUS SIGN}" not in typeset
    lines = list(csv.DictReader(io.StringIO(written(found, "csv"))))
    assert len(lines) == len(found.grid.rows)
    again = json.loads(written(found, "json"))
    assert [float(line["robust"]) for line in lines] == [each["robust"] for each in again]
    assert again[0]["held_beside"] is None
    assert again[1]["held_beside"] == "plain"
    assert again[1]["seeds"] == [0, 1, 2]


# plots ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_plot_is_a_file_of_its_own_in_both_colours(kind: str) -> None:
    pytest.importorskip("matplotlib")
    found = reading(kind)
    drawn = charts(found)
    assert [plot.slug for plot in drawn] == (["", "time"] if kind == "benchmark" else [""])
    for plot in drawn:
        svg = plot.draw()
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in svg
        assert drawn_from(svg) == stamp(found)
        assert svg == plot.draw()
        # Marker colours are exchanged for names.
        assert "#0101" not in svg
        texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any("robust" in text or "margin" in text for text in texts)


def test_a_plot_knows_what_it_was_drawn_from() -> None:
    found = reading("plug-and-play")
    before = stamp(found)
    assert stamp(reading("plug-and-play")) == before
    record = found.records[found.grid.rows[0].cells[0]]
    record["figures"]["best"]["robust"]["correct"] += 1
    assert stamp(found) != before
    assert drawn_from("<svg></svg>") is None


@given(
    st.lists(st.tuples(st.floats(50, 550), st.floats(50, 350)), min_size=1, max_size=14),
    st.integers(3, 11),
)
def test_names_lie_near_their_points_inside_and_apart(points: list[tuple[float, float]], letters: int) -> None:
    inside = Box(0, 0, 600, 400)
    size = (7.0 * letters, 13.0)
    found = labels(points, [size] * len(points), inside)
    for box in found:
        assert box.right - box.left == pytest.approx(size[0])
        assert box.shared(inside) == pytest.approx(size[0] * size[1])
    overlaps = [a.shared(b) for i, a in enumerate(found) for b in found[:i]]
    assert max(overlaps, default=0.0) == 0.0
