"""The demo: what it trains, what it remembers, and what it says about noise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import invented_cells
import pytest
from invented_cells import text_of
from little_study import in_this_process

from mmard.cli import answer
from mmard.cli.demo import demo_cells, result
from mmard.data import load
from mmard.files import weights_hash
from mmard.networks import new_network
from mmard.report import page
from mmard.run import Run
from mmard.study import grid, workers
from mmard.study.grid import Cell, Row, Scale
from mmard.study.methods import noise
from mmard.study.reading import Reading
from mmard.study.tables import charts, tables
from mmard.tables.statistics import Difference

HOSTS = ["natural", "pgd_at", "ard", "ard+mmard"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on a tenth of its scale, in a folder of its own, made in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    load_scale: Callable[[str], Scale] = grid.load_scale

    def smaller(name: str) -> Scale:
        scale = load_scale(name)
        teachers = {"main": scale.teachers["main"] | {"model": "cnn-4"}}
        return scale.model_copy(update={"student": "cnn-2", "attacks": ("pgd-3", "cw-3"), "teachers": teachers})

    monkeypatch.setattr(grid, "load_scale", smaller)
    in_this_process(monkeypatch)
    monkeypatch.setattr(page, "write_report", lambda runs, file: file.write_text("\n".join(map(str, runs))))


def test_what_is_trained() -> None:
    choice = demo_cells()
    teacher, *students = sorted(choice.cells.values(), key=lambda cell: cell.role == "")
    assert [row.host for row in choice.grids[0].rows] == HOSTS
    assert (teacher.role, teacher.settings.epochs, teacher.settings.augment) == ("teacher main", 25, "none")
    assert {(cell.settings.epochs, cell.settings.augment, cell.settings.eps) for cell in students} == {
        (30, "crop", 0.15)
    }
    assert {cell.teachers["T"] for cell in students if cell.settings.teachers} == {teacher.name}
    images = load("digits").train
    starts = {weights_hash(new_network("cnn-4", images, "none", cell.settings.seed)) for cell in students}
    assert len(starts) == 1, "the students of a seed start from the same weights"
    assert len(demo_cells(7).cells) == 1 + 7 * len(HOSTS)
    assert set(demo_cells(3).cells) > set(choice.cells), "more seeds are more students of the same teacher"
    assert not set(demo_cells(quick=True).cells) & set(choice.cells)


def test_the_demo_as_it_is_typed(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["demo", "--quick", "--out", "d"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "5 cells, 0 of them finished, in d." in out
    assert re.search(r"About .* with \d workers?, from passes counted and networks timed", out)
    assert "These figures mean nothing" in out
    records = [json.loads(file.read_text()) for file in Path("d").glob("*/cell.json")]
    assert len(records) == 5
    rows = []
    for record in records:
        figures = [record["figures"]["last"][spec]["accuracy"] for spec in ("clean", "pgd-3", "cw-3", "robust")]
        cells = [f"{record['parameters']:,}", *(f"{100 * figure:.1f}" for figure in figures)]
        rows.append(r"\s+".join(map(re.escape, cells)))
        assert re.search(rows[-1], out.replace("\N{DAGGER}", "")), cells
        assert record["environment"]["python"]
    teacher = next(record["cell"] for record in records if record["role"])
    assert out.rstrip().endswith("All of it as a page: d/report.html")
    assert Path("d/report.html").read_text().startswith(f"d/{teacher}\nd/natural-")
    for command in re.findall(r"^  (mmard .*)$", out, re.MULTILINE):
        assert command.split()[1] in ("show", "evaluate", "distill", "train")
    assert f"--teacher d/{teacher} " in out
    assert Run.open(f"d/{teacher}").has_state

    # Again: nothing is trained or attacked twice, and the table is the same.
    before = {path: path.stat().st_mtime_ns for path in Path("d").glob("*/**/*") if path.is_file()}
    assert answer(["demo", "--quick", "--out", "d"]) == 0
    again = capsys.readouterr().out
    assert "nothing is left to do" in again
    assert {path: path.stat().st_mtime_ns for path in Path("d").glob("*/**/*") if path.is_file()} == before
    assert all(re.search(row, again.replace("\N{DAGGER}", "")) for row in rows)
    assert again[again.index("Robust: right") :] == out[out.index("Robust: right") :]


def test_a_demo_that_is_stopped_goes_on(
    small: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "run_here", stop)
    assert answer(["demo", "--quick", "--out", "my d", "--seeds", "2"]) == 130
    assert capsys.readouterr().err == "mmard: saved; go on with: mmard demo --out 'my d' --seeds 2 --quick\n"


# what it says ---------------------------------------------------------------------------------------------------------
def reading(seeds: int, **robust: float) -> Reading:
    """The demo with invented records, of these robust accuracies by host, which move a little with the seed."""
    choice = demo_cells(seeds)

    def level(cell: Cell, row: Row | None) -> float:
        host = "" if row is None else row.host.replace("+", "_")
        return robust.get(host, 0.8) + 0.002 * (cell.seed * len(host) % 5)

    return Reading(choice.grids[0], invented_cells.records(*choice.grids, robust=level), "last")


LEVELS: dict[str, Any] = {"natural": 0.0, "pgd_at": 0.6, "ard": 0.7, "ard_mmard": 0.702}


def test_what_it_says_is_computed_from_the_table() -> None:
    one = result(reading(1, **LEVELS))
    assert re.fullmatch(r"Without a defence, the accuracy of \d\d\.\d% falls to 0\.0%\.", one[0])
    assert re.fullmatch(
        r"Learning from .*: \+10\.0 points .* over images: beyond the noise of the test images alone\.", one[1]
    )
    assert re.fullmatch(r"MMARD on top: \+0\.2 points .*: within the noise of the test images alone\.", one[2])
    assert "mmard demo --seeds 5" in one[-1]


def test_of_several_seeds_the_noise_over_seeds_counts_too() -> None:
    lines = result(reading(4, **(LEVELS | {"ard_mmard": 0.6})))
    assert len(lines) == 3
    said = r"MMARD on top: -9\.\d points of robust accuracy, ±\d\.\d over images and ±0\.\d over seeds: beyond noise\."
    assert re.fullmatch(said, lines[2])
    several = Difference(0.04, 0.03, 0.025, True, (3, 3))
    assert noise(several) == "beyond noise"
    assert {noise(replace(several, **short)) for short in ({"over_images": 0.05}, {"over_seeds": 0.05})} == {
        "within noise"
    }


def test_teacher_and_students_stand_in_one_table() -> None:
    found = reading(1, **LEVELS)
    (sheet,) = tables(found)
    assert sheet.heads == ("network", "weights", "clean %", "PGD-40 %", "CW-40 %", "robust %")
    assert [text_of(row[0]).split(":")[0] for row in sheet.rows] == ["teacher", *HOSTS]
    assert [text_of(row[-1]).rstrip("\N{DAGGER}") for row in sheet.rows] == ["80.0", "0.0", "60.0", "70.0", "70.2"]
    (plot,) = charts(found)
    assert plot.alt.startswith("Clean and robust accuracy of 5 networks")
