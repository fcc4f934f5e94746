"""Records in files: what is read, merged, compared, and made again."""

from __future__ import annotations

import copy
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import invented_cells
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_study import little

from mmard.errors import Refused
from mmard.study import boundary
from mmard.study.cell import Site, make
from mmard.study.records import checked, collect, merged, mismatches, packed, read, unpacked, write
from mmard.study.rerun import Repeated, cell_of, over_seeds, repeat, spread_of

GRID = invented_cells.little("boundary", boundary=True)
RECORDS = invented_cells.records(GRID)
STUDENT = GRID.rows[0].cells[0]


def changed(record: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**copy.deepcopy(record), **values}


def later(record: dict[str, Any]) -> dict[str, Any]:
    return changed(record, environment={**record["environment"], "written": "2031-01-01T00:00:00+00:00"})


# files ---------------------------------------------------------------------------------------------------------------
def test_what_is_written_is_read_sorted_and_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "new" / "S.jsonl"
    write(file, dict(reversed(RECORDS.items())))
    assert read(file) == RECORDS
    lines = file.read_text().splitlines()
    assert [json.loads(line)["cell"] for line in lines] == sorted(RECORDS)
    write(tmp_path / "again.jsonl", read(file))
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()


def test_run_folders_that_are_finished_are_collected(tmp_path: Path) -> None:
    for name in list(RECORDS)[:3]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(json.dumps(RECORDS[name]))
    (tmp_path / "half").mkdir()
    some = dict(sorted(RECORDS.items()))
    assert collect(tmp_path) == {name: some[name] for name in sorted(list(RECORDS)[:3])}
    assert list(collect(tmp_path, [STUDENT, "half", "none"])) == [n for n in [STUDENT] if n in list(RECORDS)[:3]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1: expected JSON"),
        ("[1]", "line 1: expected the record of a cell, got list"),
        ('{"cell": "a", "format": 2}', "line 1: expected format 1, got 2; it was written by another version"),
        ('{"cell": "a", "format": 1}', "line 1, scale: expected field required, got nothing"),
        ("[" * 100_000, "line 1: expected JSON"),
    ],
)
def test_a_line_that_is_no_record_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.jsonl").write_text(text + "\n")
    with pytest.raises(Refused, match=says):
        read(tmp_path / "r.jsonl")


def spoilt(where: str, value: Any) -> dict[str, Any]:
    """A record in which one value is another; without a value, it is gone."""
    record = copy.deepcopy(RECORDS[STUDENT])
    *path, last = where.split("/")
    inner = record
    for key in path:
        inner = inner[key]
    inner.pop(last) if value is None else inner.update({last: value})
    return record


def test_a_record_that_lacks_something_or_contradicts_itself_is_refused_in_one_line(tmp_path: Path) -> None:
    checked(RECORDS[STUDENT], "here")
    last = "figures/last/robust"
    cases: list[tuple[str, Any]] = [
        *[(key, None) for key in ("figures", "settings", "teachers", "seconds", "environment", "boundary", "attacks")],
        ("cell", "../../x"),
        ("teachers", {"T": "../elsewhere"}),
        ("figures", {"newest": {}}),
        ("figures", {"last": []}),
        ("seed", "0"),
        ("settings", 3),
        ("seconds/train", "long"),
        ("environment/threads", 0),
        (f"{last}/accuracy", float("nan")),
        (f"{last}/accuracy", 0.123456),
        (f"{last}/correct", 10_000),
        (f"{last}/n", 0),
        (f"{last}/right", "!"),
        (f"{last}/right", "AAAA"),
        (f"{last}/right", packed(np.ones(invented_cells.IMAGES, bool))),
    ]
    for where, value in cases:
        (tmp_path / "r.jsonl").write_text(json.dumps(spoilt(where, value)) + "\n")
        with pytest.raises(Refused, match=f"line 1, {where.split('/')[0]}") as refused:
            read(tmp_path / "r.jsonl")
        assert "\n" not in str(refused.value), where
        assert len(str(refused.value).removeprefix(str(tmp_path))) < 200, where


def test_a_folder_with_the_record_of_another_cell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cell.json").write_text(json.dumps(RECORDS[STUDENT]))
    with pytest.raises(Refused, match="expected the record of other"):
        Site(tmp_path).record("other")
    (tmp_path / "other" / "cell.json").write_text("{")
    with pytest.raises(Refused, match="expected JSON"):
        Site(tmp_path).record("other")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="mmard study records writes one"):
        read(tmp_path / "none.jsonl")


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_verdicts_come_back(right: list[bool]) -> None:
    assert unpacked(packed(np.array(right)), len(right)).tolist() == right


# merging -------------------------------------------------------------------------------------------------------------
def test_new_cells_are_added_and_equal_ones_left_as_they_are() -> None:
    old = {name: RECORDS[name] for name in list(RECORDS)[1:]}
    again = {name: later(record) for name, record in RECORDS.items()}
    both = merged(old, again)
    assert both.added == (next(iter(RECORDS)),)
    assert both.changed == ()
    assert all(both.records[name] == old[name] for name in old), "times and machines are no change"


def test_of_records_that_differ_the_later_is_taken_and_named() -> None:
    old = RECORDS[STUDENT]
    new = later(old)
    new["figures"]["last"]["robust"]["correct"] += 1
    for one, other in ((old, new), (new, old)):
        both = merged({STUDENT: one}, {STUDENT: other})
        assert both.changed == (STUDENT,)
        assert both.records[STUDENT] == new


def test_a_record_that_holds_more_is_taken() -> None:
    less = changed(RECORDS[STUDENT], boundary=None)
    for one, other in ((less, RECORDS[STUDENT]), (RECORDS[STUDENT], less)):
        both = merged({STUDENT: one}, {STUDENT: other})
        assert both.records[STUDENT] == RECORDS[STUDENT]
        assert both.changed == ()


# again ---------------------------------------------------------------------------------------------------------------
def test_a_difference_is_found_at_any_depth_and_time_is_none() -> None:
    old = RECORDS[STUDENT]
    new = later(changed(old, seconds={"train": 0.0}, device="cuda:0"))
    new["settings"]["a setting of a later version"] = 1
    assert mismatches(old, new) == []
    new["boundary"]["own"]["teacher"]["mean_margin"] += 1e-12
    new["weights"]["last"] = "0"
    assert [each.where for each in mismatches(old, new)] == ["boundary.own.teacher.mean_margin", "weights.last"]
    assert [each.where for each in mismatches({"a": 1}, {})] == ["a"]


def test_the_cell_of_a_record_is_the_cell_that_made_it() -> None:
    for name, record in RECORDS.items():
        assert cell_of(json.loads(json.dumps(record))) == GRID.cells[name]


def test_a_setting_that_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(Refused, match="epoch"):
        cell_of(changed(RECORDS[STUDENT], settings={**RECORDS[STUDENT]["settings"], "epoch": 3}))


def test_a_recorded_cell_is_made_again_from_its_record_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "IMAGES", 64)
    monkeypatch.setattr(boundary, "NEAREST", 4)
    cells = little(tmp_path, hosts='["ard"]').cells
    teacher, student = list(cells)[:2]
    site = Site(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    made = {name: make(cells[name], site) for name in (teacher, student)}
    write(tmp_path / "r.jsonl", made)
    held = read(tmp_path / "r.jsonl")
    found = repeat(student, held, Site(tmp_path / "again"))
    assert found.same
    assert found.teachers == {teacher: []}, "the teacher was made first"
    assert found.again["environment"]["written"] >= found.recorded["environment"]["written"]
    wrong = copy.deepcopy(held)
    wrong[student]["figures"]["best"]["robust"]["correct"] -= 1
    again = repeat(student, wrong, Site(tmp_path / "again"))
    assert [(each.where, each.again - each.recorded) for each in again.mismatches] == [
        ("figures.best.robust.correct", 1)
    ]
    with pytest.raises(Refused, match="a folder where this cell was not made"):
        repeat(student, held, site)
    with pytest.raises(Refused, match=teacher):
        repeat(student, {student: held[student]}, Site(tmp_path / "third"))
    assert replace(cells[student], boundary=True) == cell_of(held[student])


def test_teachers_that_teach_each_other_are_refused(tmp_path: Path) -> None:
    teacher = RECORDS[STUDENT]["teachers"]["T"]
    circle = {**RECORDS, teacher: changed(RECORDS[teacher], teachers={"T": STUDENT})}
    with pytest.raises(Refused, match=f"got {re.escape(STUDENT)} taught by {teacher} taught by {re.escape(STUDENT)}"):
        repeat(STUDENT, circle, Site(tmp_path))


# another CPU ----------------------------------------------------------------------------------------------------------
SEEDS = [RECORDS[name] for name in GRID.rows[0].cells]


def again(accuracy: float, **values: Any) -> Repeated:
    """The first seed's cell as another machine made it, with this robust accuracy of the last weights."""
    record = changed(SEEDS[0], weights={"last": "0", "best": "1"}, **values)
    figure = record["figures"]["last"]["robust"]
    figure |= {"accuracy": accuracy, "correct": round(accuracy * figure["n"])}
    differ = mismatches(SEEDS[0], record)
    return Repeated(SEEDS[0], record, differ, {}, spread_of(record, SEEDS) if differ else [])


def test_the_cells_of_other_seeds_are_found() -> None:
    for row in GRID.rows:
        for name in row.cells:
            assert [each["cell"] for each in over_seeds(name, RECORDS).values()] == list(row.cells)
    teacher = SEEDS[0]["teachers"]["T"]
    assert list(over_seeds(teacher, RECORDS)) == [RECORDS[teacher]["seed"]]


def test_bits_that_differ_are_held_beside_the_spread_of_seeds() -> None:
    """Three seeds of robust accuracies a: a further one is within mean -/+ t sd sqrt(4/3), t at 0.05 / 4, 2 degrees."""
    values = [record["figures"]["last"]["robust"]["accuracy"] for record in SEEDS]
    # Student's t with 2 degrees of freedom in closed form: P(|T| > t) = 1 - t / sqrt(2 + t^2).
    t = math.sqrt(2 / (1 / (1 - 0.05 / 4) ** 2 - 1))
    reach = t * statistics.stdev(values) * math.sqrt(4 / 3)
    middle = statistics.fmean(values)
    assert Repeated(SEEDS[0], SEEDS[0], []).verdict == "bit-equal"
    for sign in (-1, 1):
        assert again(middle + 0.99 * sign * reach).verdict == "within the spread of seeds"
        assert again(middle + 1.01 * sign * reach).verdict == "different"
    other = again(middle, data="f" * 64)
    assert other.verdict == "different", "no rounding makes other images"
    assert [each.where for each in other.unexplained] == ["data"]
    assert again(middle, attacks=["pgd-10"]).verdict == "different"
    known = again(middle)
    assert replace(known, spread=[]).verdict == "different", "of two seeds no spread is known"
    assert spread_of(known.again, SEEDS[:2]) == []


def test_what_was_another_of_the_machine_is_said() -> None:
    kernels = {"capability": "AVX2", "instructions": "avx avx2"}
    record = later(SEEDS[0])
    record["environment"] |= {"kernels": kernels, "threads": 2}
    assert Repeated(SEEDS[0], record, []).facts == {
        "threads": (1, 2),
        "capability": (None, "AVX2"),
        "instructions": (None, "avx avx2"),
    }
    both = [{**each, "environment": {**each["environment"], "kernels": kernels}} for each in (SEEDS[0], record)]
    both[1]["environment"]["kernels"] = {**kernels, "capability": "AVX512"}
    assert Repeated(both[0], both[1], []).facts == {"threads": (1, 2), "capability": ("AVX2", "AVX512")}
