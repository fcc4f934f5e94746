"""The diffs of docs/extending.md: applied to a copy of the package, and what they add is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import invented_runs
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extending.md"


def diff_of(title: str) -> str:
    """The diff under a title."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None, title
    (diff,) = re.findall(r"^```diff\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    return str(diff)


def applied(title: str, folder: Path, lines: int = 1) -> Path:
    """A copy of the package with the diff, which adds so many lines to what was there before and changes none."""
    diff = diff_of(title)
    files = re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]
    assert len(files) <= 2, "one file and one line"
    changed = [file for file in files if not file.startswith("/dev/null")]
    assert sum(line.startswith("+") for file in changed for line in file.splitlines()[2:]) == lines
    assert not any(line.startswith("-") for file in changed for line in file.splitlines()[2:])
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-"], input=diff, text=True, check=True, cwd=folder)
    return folder / "src"


def run(source: Path, code: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(source), *sys.path[1:]))}
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


ATTACK = """
import torch
from mmard.attacks import attack_title, named, spellings
from mmard.balls import Budget
from mmard.cli import answer
from mmard.data import load
from mmard.errors import Refused
from mmard.evaluation.evaluate import Protocol, measure
from mmard.models import build

budget = Budget(0.1)
attack = named("mi-fgsm-3", budget, 10)
assert attack.label == "MI-FGSM-3 (CE, step 0.025, momentum 1, no start)", attack.label
assert attack_title("mi-fgsm-3") == attack.title == "MI-FGSM-3"
assert attack_title("transfer-mi-fgsm-10") == "MI-FGSM-10"
assert "mi-fgsm-10" in spellings()
for wrong, meant in (("mifgsm-3", "mi-fgsm-3"), ("mi-fgsm3", "mi-fgsm-3"), ("mi-fsgm-5", "mi-fgsm-5")):
    try:
        named(wrong, budget, 10)
        raise AssertionError(wrong)
    except Refused as refusal:
        assert f"did you mean {meant!r}?" in str(refusal), refusal
images = load("digits").test.take(slice(0, 64))
torch.manual_seed(0)
x, y = images.x.float() / 255, images.y
means = torch.stack([x[y == c].mean(0) for c in range(10)]).flatten(1)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
net[1].weight.data, net[1].bias.data = 5 * means, -2.5 * means.square().sum(1)
clean, attacked = measure(net, images, Protocol((attack,), budget), split="test", which="means")
assert attacked.score.correct < clean.score.correct, "an attack finds something"
assert attacked.score.label == attack.label
# One step from x without an average is FGSM on any network.
(fgsm,) = Protocol.read("fgsm", budget, 10).attacks
one = named("mi-fgsm-1@0.1", budget, 10)
given = {"generator": torch.Generator()}
assert torch.equal(one(net, x, y, budget, **given), fgsm(net, x, y, budget, **given))
assert answer(["attacks"]) == 0
"""


def test_an_attack_is_one_file_and_one_line(tmp_path: Path) -> None:
    assert "MI-FGSM" not in run(ROOT / "src", "from mmard.attacks import ATTACKS; print(ATTACKS)")
    assert "mi-fgsm-10" in run(applied("An attack", tmp_path), ATTACK)


SOURCE = """
import sys
import numpy as np
from mmard.data import load
from mmard.errors import Refused

rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (12, 3, 5, 4), dtype=np.uint8), np.arange(12) % 3
folder = sys.argv[1] + "/"
for name, array in (("x_train", x), ("y_train", y), ("x_test", x[:6]), ("y_test", y[:6])):
    np.save(f"{folder}{name}.npy", array)
found = load("npy", data_dir=folder, val_share=0.25)
assert (len(found.train), len(found.val), len(found.test)) == (9, 3, 6)
assert np.array_equal(found.test.x.numpy(), x[:6]) and found.test.y.tolist() == y[:6].tolist()
np.save(f"{folder}x_test.npy", x[:6] / 255)
try:
    load("npy", data_dir=folder)
    raise AssertionError("floats are no bytes")
except Refused as refusal:
    print(refusal)
"""


def test_a_data_source_is_one_file_and_one_line(tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['', {str(tmp_path)!r}]\n{SOURCE}"
    assert "expected uint8 (N, C, H, W), got float64 (6, 3, 5, 4)" in run(applied("A data source", tmp_path, 2), code)


MODEL = """
import torch
from mmard.models import build, names, parameter_count
assert "mlp-64" in names()
net = build("mlp-32", num_classes=7, image_shape=(3, 9, 8), seed=0).eval()
assert parameter_count(net) == 48 * 32 + 32 + 32 * 7 + 7
x = torch.rand(5, 3, 9, 8)
assert net(x).shape == (5, 7)
same = build("MLP_32", num_classes=7, image_shape=(3, 9, 8), seed=0)
assert torch.equal(same(x), net(x)), "the seed draws the weights"
"""


def test_a_model_is_one_file_and_one_line(tmp_path: Path) -> None:
    run(applied("A model", tmp_path, 2), MODEL)


def test_a_finding_is_one_file_and_one_line(tmp_path: Path) -> None:
    folder = invented_runs.run(tmp_path / "r", epochs=1, kinds=())
    for file in (folder / "scores").glob("*.json"):
        file.write_text(file.read_text().replace('"seconds": 1.0', '"seconds": 12.5'))
    code = (
        "from mmard.report.page import findings_sections; from mmard.report.runs import read_runs;"
        f"print(*[t.markdown() for s in findings_sections(read_runs([{str(folder)!r}])) for t in s.tables])"
    )
    out = run(applied("A finding", tmp_path), code)
    assert "| run | attack | images | seconds |" in out
    assert "| r | AutoAttack (standard) | 1,000 | 12.5 |" in out


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_a_column_of_a_table_is_one_line(tmp_path: Path, form: str) -> None:
    folder = invented_runs.run(tmp_path / "r", epochs=7, kinds=())
    code = (
        "from mmard.tables.comparison import comparison; from mmard.tables.paper import FORMATS;"
        f"print(FORMATS[{form!r}](comparison([{str(folder)!r}])))"
    )
    out = run(applied("A column of a table", tmp_path), code)
    assert {"markdown": "|  | seeds | epochs | clean |", "latex": " & seeds & epochs & clean & "}[form] in out
    assert re.search({"markdown": r"\| rslad \| 1 \| 7 \|", "latex": r"rslad & 1 & 7 &"}[form], out)
