"""The authors' code as a backend: their verdicts under their name, by our protocol."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from little import measured
from reference_autoattack import CLASSES, Scene, reference_masks
from test_autoattack import LESS, image_set, line

from mmard.attacks import authors, named
from mmard.attacks.autoattack import by_authors, shortened, standard
from mmard.balls import NORMS, Budget
from mmard.errors import Refused


@pytest.mark.parametrize("norm", NORMS)
def test_their_verdicts_and_their_name(norm: str) -> None:
    pytest.importorskip("pyautoattack")
    model, budget = Scene(smooth=False), Budget({"linf": 0.02, "l2": 0.12, "l1": 0.4}[norm], norm)
    data = image_set(60, model)
    model = model.float()
    theirs = by_authors(standard(budget, CLASSES))
    assert theirs.spec == "aa@pyautoattack"
    assert re.fullmatch(r"AutoAttack \(standard\), by pyautoattack [\d.]+", theirs.label)
    assert named("AA@pyautoattack", budget, CLASSES) == theirs
    before = torch.random.get_rng_state()
    ensemble = shortened(theirs, **LESS)
    results = measured(model, data, [ensemble], budget, batch_size=25)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all("by pyautoattack" in m.score.label for m in results[1:])
    expected = reference_masks(model, data.x.float() / 255, data.y, budget, **LESS, batch_size=25)
    assert [line(m.mask) for m in results[1:-1]] == [line(mask) for mask in expected]
    assert 0 < results[-1].mask.sum() < 50


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_fewer_classes_than_theirs_can_do_by_itself(classes: int) -> None:
    pytest.importorskip("pyautoattack")
    budget = Budget(0.02)
    own = shortened(standard(budget, classes), **LESS)
    model = Scene(classes)
    data = image_set(24, model, classes=classes)
    masks = [[line(m.mask) for m in measured(model.float(), data, [each], budget)] for each in (own, by_authors(own))]
    assert masks[0] == masks[1]


def test_single_precision_alone() -> None:
    pytest.importorskip("pyautoattack")
    ensemble = by_authors(shortened(standard(Budget(0.02), CLASSES), **LESS).only("apgd-ce"))
    with pytest.raises(Refused, match="apgd-ce by pyautoattack: expected float32, got float64"):
        measured(Scene(), image_set(20), [ensemble], Budget(0.02))


def test_a_backend_is_refused_where_it_is_missing_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authors.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"expected the package .pyautoattack.*pip install .mmard\[autoattack\]"):
        named("square@pyautoattack", Budget(0.02), CLASSES)
    with pytest.raises(Refused, match=r"backend 'pyautoatack': .*did you mean 'pyautoattack'"):
        named("aa@pyautoatack", Budget(0.02), CLASSES)


@pytest.mark.slow
def test_the_benchmark_runs_and_says_where(tmp_path: Path) -> None:
    pytest.importorskip("pyautoattack")
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "benchmarks" / "autoattack.py"), "--short", "--first", "12", "--repeats", "1"]
    environment = {"PYTHONPATH": ":".join([str(root / "src"), *sys.path]), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [*command, "--norm", "l1", "--out", str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("autoattack-*-8px-l1-1.json")
    found = json.loads(file.read_text())
    assert found["flips"] == {"ours": [0, 0, 0, 0]}
    assert found["left"]["ours"] == found["left"]["pyautoattack"]
    assert found["ratio"]["ours"]["whole"]["median"] > 0
    assert {"cpu", "commit", "versions", "command"} <= set(found["environment"])
