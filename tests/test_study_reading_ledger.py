"""RESULTS.md: that it is fresh, that it claims nothing that was not measured or read; and the commands that read."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from invented_cells import grid, records

from mmard.cli import answer
from mmard.study.drawing import drawn_from
from mmard.study.grid import load_scale
from mmard.study.ledger import PAGE, PICTURES, RECORDS, by_scale, provenance, recipe, results_page, stale, write_page
from mmard.study.reading import Reading
from mmard.study.records import read, write

ROOT = Path(__file__).resolve().parents[1]
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found() -> Found:
    return records(grid("plug-and-play", "S"), grid("saturation", "M"))


def test_the_results_here_are_those_of_the_records_here() -> None:
    files = sorted((ROOT / RECORDS).glob("*.jsonl"))
    held = {name: record for file in files for name, record in read(file).items()}
    # Without records there is nothing to be late with, and no page to be there.
    if not held:
        assert not (ROOT / PAGE).exists()
        return
    page = results_page(held, draw=False)
    assert stale(page, ROOT / PAGE, ROOT / PICTURES) == [], "run mmard study ledger"
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)\)", page.text):
        assert (ROOT / target).exists(), target


def test_the_page_says_what_was_asked_and_where_it_comes_from(found: Found) -> None:
    page = results_page(found, draw=False)
    assert page.pictures == {}
    assert {"S-plug-and-play.svg", "M-saturation.svg"} <= set(page.stamps)
    scale = load_scale("S")
    for text in (f"## Scale S: {scale.title}", "| 2a |", "Commits: 0000000", "INVENTED, not measured", "## Not run"):
        assert text in page.text
    short = page.text.split("## In short")[1].split("## The paper")[0]
    assert f"- {scale.title}: hosts are more robust with MMARD: **holds**, +" in short
    assert "What is wrong with this scale stands below." in short
    assert load_scale("M").caution in page.text.replace("\\", "")
    assert page.text.index("## Scale S") < page.text.index("## Scale M")
    assert "scale L, headline: not run; planned: " in page.text


def test_published_figures_stand_in_a_table_of_their_own(found: Found) -> None:
    ours, theirs = results_page(found, draw=False).text.split("## What others have published")
    text = (resources.files("mmard") / "study" / "declared" / "published.toml").read_text(encoding="utf-8")
    said = tomllib.loads(text)
    for each in said["figures"]:
        assert each["read_in"] in said["places"]
        assert each["claimed_by"]
        for key in ("clean", "aa"):
            if key in each:
                assert f"{each[key]:.2f}" in theirs
                assert f" {each[key]:.2f} " not in ours


def test_a_page_that_lags_behind_is_found(found: Found, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = tmp_path / PICTURES
    only = {name: record for name, record in found.items() if record["scale"] == "M"}
    page = results_page(only)
    write_page(page, tmp_path / PAGE, pictures)
    assert stale(results_page(only, draw=False), tmp_path / PAGE, pictures) == []
    assert all((tmp_path / target).exists() for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.text))
    student = next(name for name, record in only.items() if not record["role"])
    other = json.loads(json.dumps(only))
    for figures in other[student]["figures"].values():
        figures["robust"]["correct"] -= 20
        figures["robust"]["accuracy"] -= 0.04
    late = stale(results_page(other, draw=False), tmp_path / PAGE, pictures)
    assert str(tmp_path / PAGE) in late
    assert any(file.endswith("M-saturation.svg") for file in late)
    # A picture of ours that nothing refers to any more goes; another's stays.
    (pictures / "S-old.svg").write_text((pictures / "M-saturation.svg").read_text())
    (pictures / "foreign.svg").write_text("<svg/>")
    write_page(page, tmp_path / PAGE, pictures)
    assert not (pictures / "S-old.svg").exists()
    assert (pictures / "foreign.svg").exists()


def test_records_of_no_declared_cell_are_counted_and_left_out(found: Found) -> None:
    name, record = next((n, r) for n, r in found.items() if not r["role"] and r["scale"] == "S")
    strange = {**found, "gone-0-12345678": {**record, "cell": "gone-0-12345678"}}
    before, after = (results_page(each, draw=False).text for each in (found, strange))
    assert "1 records are of cells that no study declares any more" in after
    assert before.split("## Scale S")[0] == after.split("## Scale S")[0]
    assert name in by_scale(found)["S"]


def test_nothing_is_claimed_where_there_is_no_record(found: Found) -> None:
    saturation = {n: r for n, r in found.items() if r["teachers"].get("T", "").startswith("teacher-weak")}
    kept = {n: r for n, r in found.items() if r["scale"] == "S" or n in saturation or r["role"]}
    page = results_page(kept, draw=False)
    verdicts = next(line for line in page.text.splitlines() if line.startswith("| 6 |"))
    assert verdicts.endswith("| not measured |")


def test_provenance_adds_up(found: Found) -> None:
    own = by_scale(found)["S"].values()
    first, commits, machines, _ = provenance(own)
    assert first.startswith(f"{len(own)} cells, 2026-11-22; {len(own) * 60 // 3600} h")
    assert commits == f"Commits: 0000000 ({len(own)})."
    assert machines == "Machines: 2 cores of INVENTED, not measured, 1 thread a cell."
    half = [{**r, "environment": {**r["environment"], "commits": ["1" * 40 + "+dirty"]}} for r in list(own)[:3]]
    assert "1111111 with uncommitted changes (3)" in provenance([*list(own)[3:], *half])[1]
    assert "cnn-4 (4,038 weights)" in recipe(own)
    assert "linf 0.15" in recipe(own)
    assert recipe([r for r in own if r["role"]]) == ""


# commands -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def here(found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, own in by_scale(found).items():
        write(tmp_path / RECORDS / f"{name}.jsonl", own)
    return tmp_path


def test_table_prints_and_writes(here: Path, found: Found, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["study", "table", "plug-and-play"]) == 0
    shown = capsys.readouterr().out
    assert "robust %" in shown
    assert "results/studies/S.jsonl" in shown
    assert "missing" not in shown
    for form in ("markdown", "latex", "csv", "json"):
        assert answer(["study", "table", "plug-and-play", "--format", form, "--which", "last"]) == 0
        assert "rslad" in capsys.readouterr().out
    assert answer(["study", "table", "saturation", "--scale", "M", "--out", "t.tex"]) == 0
    assert (here / "t.tex").read_text().startswith("% Needs")
    row = grid("plug-and-play").rows[0]
    kept = {name: record for name, record in found.items() if name not in row.cells[:2]}
    write(here / "few.jsonl", kept)
    capsys.readouterr()
    assert answer(["study", "table", "plug-and-play", "--records", "few.jsonl"]) == 0
    assert f"missing: {row.host} plain: no record of seeds 0, 1" in capsys.readouterr().out


def test_runs_go_before_records(here: Path, found: Found, capsys: pytest.CaptureFixture[str]) -> None:
    made = grid("plug-and-play")
    name = made.rows[0].cells[0]
    folder = here / "runs" / "study" / "S" / name
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(found[name]))
    assert answer(["study", "table", "plug-and-play"]) == 0
    shown = capsys.readouterr().out
    assert "From runs/study/S." in shown
    assert "(1 of 5 seeds)" in shown.replace("\u00a0", " ")
    assert Reading(made, {name: found[name]}).any


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "plug-and-play", "--scale", "L"], "mmard study run plug-and-play --scale L"),
        (["table", "all"], "expected one study"),
        (["table", "plug-and-play", "--which", "first"], "best or last"),
        (["table", "plug-and-play", "--format", "pdf"], "markdown"),
        (["table", "plug-and-play", "--out", "t.pdf"], "--format"),
        (["table", "plug-and-play", "--records", "none.jsonl"], "a file of records"),
        (["table", "plug-and-play", "--records", "a", "--runs", "b"], "one of them"),
        (["plot", "plug-and-play", "--out", "p.png"], ".svg"),
        (["ledger", "--records", "nowhere"], "mmard study records"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_mend(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(["study", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_plot_and_ledger_write_what_they_say(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert answer(["study", "plot", "saturation", "--scale", "M"]) == 0
    assert drawn_from((here / "M-saturation.svg").read_text()) is not None
    own = ["--records", "results/studies/M.jsonl"]
    assert answer(["study", "ledger", *own, "--check"]) == 1
    assert "RESULTS.md is not as the records have it" in capsys.readouterr().err
    assert answer(["study", "ledger", *own]) == 0
    assert (here / "RESULTS.md").is_file()
    assert (here / "results" / "pictures" / "M-saturation.svg").is_file()
    assert answer(["study", "ledger", *own, "--check"]) == 0
    assert "are as the records have it" in capsys.readouterr().out
