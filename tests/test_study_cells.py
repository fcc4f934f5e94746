"""A cell of a study: an ordinary run, resumed as one, and a record from which it can be made again."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from little_study import little

import mmard
from mmard.data import load
from mmard.errors import Refused
from mmard.files import UNFINISHED, weights_hash
from mmard.networks import load_network
from mmard.run import Run
from mmard.study import boundary
from mmard.study.cell import (
    Site,
    is_complete,
    is_trained,
    make,
    position_of,
    splits_of,
)
from mmard.study.grid import Cell
from mmard.study.records import mismatches, scrubbed, unpacked, without_paths
from mmard.study.rerun import cell_of
from mmard.training.fit import Interrupted


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    """Fewer images than a study looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundary, "IMAGES", 64)
        patch.setattr(boundary, "NEAREST", 4)
        yield


@pytest.fixture(scope="module")
def made(few: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Cell], Site, dict[str, Any]]:
    """A teacher and a student of seed 0, made; their cells, their site, their records."""
    folder = tmp_path_factory.mktemp("cells")
    cells = little(folder).cells
    site = Site(folder / "runs")
    site.runs.mkdir()
    wanted = {name: cell for name, cell in cells.items() if cell.role or (cell.seed == 0 and cell.teachers)}
    return wanted, site, {name: make(cell, site) for name, cell in wanted.items()}


def test_a_record_says_what_was_measured_on_what(made: Any) -> None:
    cells, site, records = made
    teacher, student = cells
    record = records[student]
    assert record == json.loads((site.folder(student) / "cell.json").read_text())
    assert record["teachers"] == {"T": teacher}
    assert record["settings"]["teachers"] == {"T": [teacher]}
    assert record["role"] == ""
    assert records[teacher]["role"] == "teacher main"
    assert record["seed"] == record["settings"]["seed"] == 0
    for which in ("last", "best"):
        module = load_network(str(site.folder(student)), which=which).module
        assert record["weights"][which] == weights_hash(module)
        own = record["figures"][which]
        assert set(own) == {"clean", "pgd-2", "cw-2", "robust"}
        right = {name: unpacked(own[name]["right"], own[name]["n"]) for name in ("clean", "robust")}
        for name, mask in right.items():
            assert own[name]["n"] == 60 == len(mask)
            assert int(mask.sum()) == own[name]["correct"] == round(60 * own[name]["accuracy"])
        assert (right["robust"] <= right["clean"]).all(), "no attack makes a misread image right"
        assert own["robust"]["correct"] <= min(own["pgd-2"]["correct"], own["cw-2"]["correct"])
        images = load("digits", limit_train=256).test.take(slice(0, 60))
        with torch.no_grad():
            logits = module.eval()(images.x.float() / 255)
        assert np.array_equal(right["clean"], (logits.argmax(1) == images.y).numpy())
    assert record["epochs"] == 2 == len(record["curve"]["clean"])
    assert record["best_epoch"] in (1, 2)
    kept = {(r["which"], r["attack"]) for r in Run.open(site.folder(student)).score_records()}
    assert {which for which, _ in kept} == {"last", "best"}, "the run keeps its figures too"
    assert len(kept) == 8


def test_test_images_that_were_looked_at_can_be_left_out(made: Any, tmp_path: Path) -> None:
    cells, site, records = made
    _, student = cells
    whole = replace(cells[student], boundary=False)
    later = replace(whole, first=40, images=20)
    record = make(later, place_of_copy(site, tmp_path, student))
    assert record["test_from"] == 40
    assert "test_from" not in records[student]
    assert is_complete(later, record)
    assert not is_complete(whole, record)
    assert cell_of(record) == later
    for name in ("clean", "robust"):
        few, all_ = (each["figures"]["last"][name] for each in (record, records[student]))
        assert few["n"] == 20
        if name == "clean":
            assert (unpacked(few["right"], 20) == unpacked(all_["right"], 60)[40:]).all()


def place_of_copy(site: Site, folder: Path, name: str) -> Site:
    """The run of a cell without its record, in another folder."""
    copytree(site.folder(name), folder / name, ignore=lambda folder, names: ["cell.json"])
    return replace(site, runs=folder)


def test_a_record_has_the_commit_and_no_path(made: Any) -> None:
    _, site, records = made
    for record in records.values():
        here = record["environment"]
        assert here["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", here["commit"])
        assert here["commits"] == [str(here["commit"])]
        assert {"versions", "cpu", "threads", "python", "command"} <= set(here)
        text = json.dumps(record)
        for path in (site.runs, Path.cwd(), Path.home()):
            assert str(path) not in text
        assert record["settings"]["data_dir"] is None


def test_boundaries_are_measured_on_the_same_images_for_both_networks(made: Any) -> None:
    cells, _, records = made
    teacher, student = cells
    assert records[teacher]["boundary"] is None, "a teacher has none of its own"
    found = records[student]["boundary"]
    assert found["teacher"] == teacher
    assert found["images"] == found["test_images"] == 64
    for name in ("own", "usual", "plain", "test"):
        for who in ("teacher", "student"):
            each = found[name][who]
            assert sum(each["histogram"]) == 64
            assert len(each["histogram"]) == len(found["edges"]) - 1
            assert 0 <= each["wrong"] <= 1
            assert each["entropy"] > 0
        assert 0 <= found[name]["agree"] <= 1
    assert found["own"]["student"]["mean_margin"] < found["plain"]["student"]["mean_margin"], "it is attacked"
    assert 0 < found["own"]["student"]["n_minimal"] <= 4
    assert found["usual"]["student"]["n_minimal"] == 0


def test_the_same_cell_is_the_same_to_the_bit_and_the_run_that_mmard_distill_makes(made: Any, tmp_path: Path) -> None:
    cells, site, records = made
    _, student = cells
    again = Site(tmp_path)
    second = {name: make(cell, again) for name, cell in cells.items()}
    for name in cells:
        assert mismatches(records[name], second[name]) == []
        assert records[name]["weights"] == second[name]["weights"]
    said = Run.open(site.folder(student)).config
    by_letter, data = said.pop("teachers"), said.pop("data")
    trained = mmard.distill(said.pop("network"), by_letter, data=data, out=tmp_path / "plain", **said)
    assert weights_hash(trained.network("last")) == records[student]["weights"]["last"]


def test_a_cell_that_was_stopped_goes_on_to_the_same_weights(made: Any, tmp_path: Path) -> None:
    cells, _, records = made
    teacher = next(iter(cells.values()))
    site = Site(tmp_path)
    steps = 0

    def stop(stage: str, share: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 20:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        make(teacher, site, stop)
    assert not is_trained(site, teacher.name)
    assert site.record(teacher.name) is None
    first = position_of(Run.open(site.folder(teacher.name)))["cpu_seconds"]
    record = make(teacher, site)
    assert mismatches(records[teacher.name], record) == []
    assert 0 < first < record["seconds"]["train_cpu"], "both sittings count"
    assert is_trained(site, teacher.name)


def test_what_a_record_lacks_is_measured_and_what_it_has_stays(made: Any, tmp_path: Path) -> None:
    cells, _, records = made
    teacher, student = cells.values()
    site = Site(tmp_path)
    make(teacher, site)
    first = make(replace(student, boundary=False), site)
    assert first["boundary"] is None
    assert not is_complete(student, first)
    before = (site.folder(student.name) / "last.safetensors").stat().st_mtime_ns
    second = make(student, site)
    assert is_complete(student, second)
    assert mismatches(second, records[student.name]) == []
    assert (site.folder(student.name) / "last.safetensors").stat().st_mtime_ns == before, "nothing is trained again"
    assert make(replace(student, boundary=False), site) == second, "more than is asked for is enough"
    wider = replace(student, attacks=("pgd-2", "cw-2", "pgd-3"))
    assert not is_complete(wider, second)


def test_the_folder_of_another_training_is_refused(made: Any, tmp_path: Path) -> None:
    cells, _, _ = made
    teacher = next(iter(cells.values()))
    site = Site(tmp_path)
    longer = teacher.settings.model_copy(update={"epochs": 30})
    Run.create(site.folder(teacher.name), longer.as_config())
    with pytest.raises(Refused, match="epochs 30 for 9"):
        make(teacher, site)


def test_the_half_of_a_folder_that_a_killed_process_left_is_taken(made: Any, tmp_path: Path) -> None:
    cells, _, records = made
    teacher = next(iter(cells.values()))
    site = Site(tmp_path)
    site.folder(teacher.name).mkdir()
    (site.folder(teacher.name) / f".config.json.x7{UNFINISHED}").write_text("{")
    assert mismatches(make(teacher, site), records[teacher.name]) == []


def test_data_is_read_once_for_all_cells(made: Any, tmp_path: Path) -> None:
    cells, site, _ = made
    teacher, student = cells.values()
    assert splits_of(teacher, site) is splits_of(student, Site(tmp_path))


def test_paths_are_cut_to_their_names() -> None:
    assert scrubbed("/bin/mmard run --runs /a/b/S -x ~/c rel/d.toml") == "mmard run --runs S -x c rel/d.toml"
    home = str(Path.home() / "data")
    assert home not in json.dumps(without_paths({"a": [f"in {home}/x", 3]}, []))
    assert without_paths(["/runs/S/cell", None], [Path("/runs/S")]) == ["S/cell", None]
