"""The demo: what it trains, what it remembers, and what it says about noise."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmard import demo
from mmard.cli import answer
from mmard.cli.demo import readings, told
from mmard.data import load
from mmard.demo import Result, Stage, stages
from mmard.errors import Refused
from mmard.evaluation.score import Score
from mmard.files import weights_hash
from mmard.networks import new_network
from mmard.run import Run
from mmard.settings import DistillSettings
from mmard.tables.statistics import Difference
from mmard.training.fit import Interrupted

NAMES = ["teacher", "pgd_at", "rslad", "rslad+mmard"]


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on a tenth of its scale, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(demo, "TEACHER", "cnn-4")
    monkeypatch.setattr(demo, "STUDENT", "cnn-2")
    monkeypatch.setattr(demo, "QUICK_EPOCHS", 4)
    monkeypatch.setattr(demo, "ATTACKS", ("pgd-3", "cw-3"))
    monkeypatch.setattr(demo, "THREADS", (1,))


def test_what_is_trained() -> None:
    planned = stages(Path("runs"), seed=3)
    assert [stage.name for stage in planned] == NAMES
    teacher, *students = planned
    assert {stage.settings.seed for stage in planned} == {3}
    assert {(s.settings.eps, s.settings.batch_size) for s in planned} == {(0.15, 64)}
    assert teacher.settings.epochs == demo.TEACHER_EPOCHS
    assert {s.settings.epochs for s in students} == {demo.STUDENT_EPOCHS}, "students are compared on equal terms"
    assert all(s.settings.teacher == str(teacher.path) for s in students if isinstance(s.settings, DistillSettings))
    assert {s.network for s in students} == {"cnn-2"}
    images = load("digits").train
    starts = {weights_hash(new_network(s.network, images, "none", s.settings.seed)) for s in students}
    assert len(starts) == 1, "the students of a seed start from the same weights"


def test_the_demo_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["demo", "--quick", "--out", "d"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"4 networks to train: about .* on this machine, 1 thread\.", out)
    assert "These figures mean nothing" in out
    assert "PGD-3 and CW-PGD-3 at linf 0.15" in out
    for name, title in zip(NAMES, ("TRADES", "PGD-AT", "RSLAD", "RSLAD\\+MMARD"), strict=True):
        run = Run.open(f"d/{name}-0")
        records = {r["attack"]: r for r in run.score_records()}
        assert set(records) == {"clean", "pgd-3", "cw-3", "worst_of_pgd-3,cw-3"}
        assert all(r["environment"]["python"] and r["split"] == "test" and r["n"] == 500 for r in records.values())
        shares = [f"{100 * records[a]['accuracy']:.1f}%" for a in ("clean", "pgd-3", "cw-3", "worst_of_pgd-3,cw-3")]
        row = re.search(rf"^(?:teacher|student), {title} +[\d,]+ +(\S+) +(\S+) +(\S+) +(\S+)\n(.*)$", out, re.MULTILINE)
        assert row is not None
        assert list(row.groups()[:4]) == shares
        low, high = records["clean"]["interval"]
        assert row[5].split()[0] == f"{100 * low:.1f}-{100 * high:.1f}"
    for command in re.findall(r"^  (mmard .*)$", out, re.MULTILINE):
        assert command.split()[1] in ("report", "show", "evaluate", "distill", "train")
    assert answer(["show", "d/rslad+mmard-0"]) == 0

    # Again: nothing is trained or attacked twice, and the table is the same.
    before = {path: path.stat().st_mtime_ns for path in Path("d").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert answer(["demo", "--quick", "--out", "d"]) == 0
    again = capsys.readouterr().out
    assert "trained already" in again
    assert {path: path.stat().st_mtime_ns for path in Path("d").rglob("*") if path.is_file()} == before
    assert again[again.index("network  ") :] == out[out.index("network  ") :]

    # Another scale into the same folder is refused before anything is done.
    assert answer(["demo", "--out", "d"]) == 2
    refused = capsys.readouterr().err
    assert "d/teacher-0: expected a run of this demo, got limit_train 256 for None, epochs 4 for" in refused
    assert "; choose another --out, or remove d to have all of it made anew" in refused


def test_a_network_made_with_another_default_is_not_taken_for_this_demos() -> None:
    stage = stages(Path("d"), 0, quick=True, threads=1)[-1]
    said = stage.settings.as_config()
    assert said["params"]["mmard.edges"] == "rn,nq,rc", "defaults are written down"
    run = Run.create(stage.path, said | {"params": said["params"] | {"mmard.edges": "nr,nq,rq"}})
    with pytest.raises(Refused, match=r"got mmard\.edges nr,nq,rq for rn,nq,rc; choose another --out, or remove"):
        stages(Path("d"), 0, quick=True, threads=1)
    # A run from before defaults were written down.
    (run.path / "config.json").write_text(json.dumps(said | {"params": {}}))
    with pytest.raises(Refused, match=r"got rslad\.alpha unsaid for 0\.8333"):
        stages(Path("d"), 0, quick=True, threads=1)


def test_an_interrupted_demo_goes_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trained = demo.train_stage

    def stop_at_the_second(stage: Stage, progress: object) -> object:
        if stage.name == "pgd_at":
            raise Interrupted("stopped")
        return trained(stage, progress)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(demo, "train_stage", stop_at_the_second)
        assert answer(["demo", "--quick", "--out", "d"]) == 130
    assert capsys.readouterr().err == "mmard: saved; go on with: mmard demo --out d --quick\n"
    teacher = Path("d/teacher-0/last.safetensors").read_bytes()
    assert answer(["demo", "--quick", "--out", "d"]) == 0
    assert "3 networks to train" in capsys.readouterr().out
    assert Path("d/teacher-0/last.safetensors").read_bytes() == teacher


def test_a_stage_resumes_in_the_middle_with_its_own_thread_count() -> None:
    stage = stages(Path("d"), 0, quick=True, threads=1)[0]

    def stop(share: float) -> None:
        if share >= 0.5:
            os.kill(os.getpid(), 2)

    with pytest.raises(Interrupted):
        demo.train_stage(stage, stop)
    assert not demo.finished(stage)
    later = stages(Path("d"), 0, quick=True, threads=2)[0]
    assert later.settings.threads == 1
    demo.train_stage(later, lambda share: None)
    assert demo.finished(later)
    whole = stages(Path("w"), 0, quick=True, threads=1)[0]
    demo.train_stage(whole, lambda share: None)
    assert (whole.path / "last.safetensors").read_bytes() == (later.path / "last.safetensors").read_bytes()


def test_a_folder_with_other_things_is_left_alone() -> None:
    Path("d/teacher-0").mkdir(parents=True)
    Path("d/teacher-0/mine.txt").write_text("mine")
    with pytest.raises(Refused, match="one with other files"):
        stages(Path("d"), 0)


def test_the_estimate_leaves_the_thread_count_alone() -> None:
    before = torch.get_num_threads()
    found = demo.estimate(stages(Path("d"), 0, quick=True), load("digits"))
    assert torch.get_num_threads() == before
    assert set(found.training) == set(found.attacking) == set(NAMES)
    assert found.seconds == pytest.approx(sum(found.training.values()) + sum(found.attacking.values()))
    assert found.threads == 1
    assert not Path("d").exists()


# noise --------------------------------------------------------------------------------------------
def mask(n: int, right: int) -> np.ndarray:
    return np.arange(n) < right


def test_verdicts() -> None:
    one = Difference(0.031, 0.03, None, True, (1, 1))
    assert told(one) == "+3.1 points worst case, ±3.0 over images: beyond the noise of the test images alone."
    assert told(replace(one, mean=-0.02)).endswith("within the noise of the test images alone.")
    several = Difference(0.04, 0.03, 0.025, True, (3, 3))
    assert told(several) == "+4.0 points worst case, ±3.0 over images and ±2.5 over seeds: beyond noise."
    for short in ({"over_images": 0.05}, {"over_seeds": 0.05}):
        assert told(replace(several, **short)).endswith("within noise.")


def result(name: str, seed: int, right: int, n: int = 200) -> Result:
    stage = next(each for each in stages(Path("none"), seed) if each.name == name)
    score = Score("worst", "worst", "linf", 0.15, "test", n, right, 0.0, 0, 250, "w", "d", "best", "i")
    return Result(stage, 1, (score,) * 4, (mask(n, right),) * 4)


def test_readings_are_computed_from_the_table() -> None:
    rights = dict(zip(NAMES, (180, 150, 140, 152), strict=True))
    lines = readings([[result(name, 0, right) for name, right in rights.items()]], 200)
    low, high = result("rslad", 0, 140).scores[-1].interval
    assert f"±{100 * (high - low) / 2:.1f} points" in lines[0]
    assert lines[1].startswith("MMARD on RSLAD, against plain RSLAD: +6.0 points")
    assert lines[2].startswith("plain RSLAD, against training without a teacher (PGD-AT): -5.0 points")
    assert "mmard demo --seeds 3" in lines[-1]
    several = readings([[result(name, s, right + s) for name, right in rights.items()] for s in range(3)], 200)
    assert len(several) == 2
    assert "over images and ±0.0 over seeds: beyond noise" in several[0]


def test_records_of_an_earlier_run_are_read_back() -> None:
    stage = stages(Path("d"), 0, quick=True)[1]
    demo.train_stage(stage, lambda share: None)
    splits = load("digits")
    made = demo.attack_stage(stage, splits)
    read = demo.attack_stage(stage, splits)
    assert read.scores == made.scores
    assert all(np.array_equal(a, b) for a, b in zip(made.masks, read.masks, strict=True))
    # A torn record set is measured again.
    next(Path(stage.path, "scores").glob("*cw-3-*.json")).unlink()
    assert [s.correct for s in demo.attack_stage(stage, splits).scores] == [s.correct for s in made.scores]
    assert json.loads(next(Path(stage.path, "scores").glob("*-clean-*.json")).read_text())["attack"] == "clean"
