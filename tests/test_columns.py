"""Columns by name: what a group is, and that the documents and the command line list what can be spelled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmard.attacks import ATTACKS, attack_settings, attack_title, read_attacks, spellings
from mmard.balls import Budget
from mmard.cli import commands
from mmard.errors import Refused
from mmard.evaluation.spellings import GROUPS, spelled

BUDGET = Budget(8 / 255)
PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"


def test_every_spelling_can_be_read_and_says_all_in_its_label() -> None:
    specs = [spec for spec in spellings() if "pyautoattack" not in spec]
    assert all(any(spec.startswith(name) for spec in kind.says) for name, kind in ATTACKS.items())
    labels = [attack.label for attack in read_attacks(specs, BUDGET, num_classes=10)]
    for label in labels:
        if label.startswith("AutoAttack"):
            continue
        for word in ("start", "step" if "Square" not in label else "queries"):
            assert word in label, label
        assert "restart" in label or "no start" in label or "no random start" in label, label
        assert any(loss in label for loss in ("CE", "DLR", "margin")), label
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("spec", [spec for spec in spellings() if "@py" not in spec and not spec.startswith("aa")])
def test_the_title_of_a_spelling_is_that_of_the_attack(spec: str) -> None:
    (attack,) = read_attacks([spec], Budget(8 / 255), 10)
    assert attack_title(spec) == attack.title
    assert all(each in attack.label for each in attack_settings(spec, 8 / 255))


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_columns_that_can_be_read(group: str) -> None:
    specs = spelled(group, BUDGET)
    assert specs == list(GROUPS[group].specs)
    assert len(read_attacks(specs, BUDGET, num_classes=10)) == len(specs)
    for budget in (Budget(0.5, "l2"), Budget(12, "l1"), Budget(0.3)):
        left = spelled(group, budget)
        assert left == [spec for spec in specs if spec != "pgd-20@0.003"]
        assert [each.spec for each in read_attacks(left, budget, num_classes=10)] == left


def test_the_usual_columns_are_those_of_papers() -> None:
    labels = [a.label for a in read_attacks(spelled("full", BUDGET), BUDGET, num_classes=10)]
    assert labels == [
        "FGSM (CE, step 8/255, no start)",
        "PGD-20 (CE, step 2/255, uniform start, 1 restart)",
        "PGD-20 (CE, step 0.003, uniform start, 1 restart)",
        "PGD-100 (CE, step 2/255, uniform start, 10 restarts)",
        "CW-PGD-30 (CW margin, step 2/255, uniform start, 1 restart)",
        "Square (margin, 5,000 queries, random start, 1 restart)",
        "AutoAttack (standard)",
    ]


def test_groups_stand_in_lists_and_nothing_is_measured_twice() -> None:
    assert spelled(" quick ,pgd-20, AA,Usual", BUDGET) == [*GROUPS["quick"].specs, "aa", "fgsm", "pgd-20@0.003"]
    assert spelled(["fgsm", "quick"], BUDGET) == ["fgsm", "pgd-20", "cw-30"]
    for nothing in ("", " , ", []):
        with pytest.raises(Refused, match=r"expected attacks such as .* or one of quick, usual, full"):
            spelled(nothing, BUDGET)


def test_the_page_lists_what_the_tables_do() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for spec, says in spellings().items():
        assert f"| `{spec}` | {says} |" in text
    for name, group in GROUPS.items():
        assert f"| `{name}` | `{','.join(group.specs)}` | {group.says} |" in text


def test_the_command_line_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    listed = CliRunner().invoke(commands(), ["attacks"])
    assert listed.exit_code == 0
    for spec, says in spellings().items():
        assert spec in listed.stdout
        assert says in listed.stdout
    for name, group in GROUPS.items():
        assert ",".join(group.specs) in listed.stdout
        assert name in listed.stdout
    helped = CliRunner().invoke(commands(), ["evaluate", "--help"]).stdout
    assert all(name in helped for name in (*GROUPS, "mmard attacks", "--processes"))


def test_a_list_of_columns_needs_no_torch() -> None:
    code = "import sys, mmard.evaluation.spellings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
