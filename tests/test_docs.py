"""What the pages say works: Python runs, commands parse, links lead somewhere, generated tables are fresh."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from laws import over

import mmard
from mmard.cli import answer

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
DESTINATIONS = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)#\s]+)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (f"{name(page)}-{number}", body)
        for page in PAGES
        for number, (kind, body) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if kind == language
    ]


PYTHON = blocks("python")
COMMANDS = [
    (where, line)
    for where, body in blocks("")
    for line in body.splitlines()
    if line.startswith("mmard ") and not line.rstrip().endswith("...")
]


def test_the_pages_hold_examples_of_both_kinds() -> None:
    assert len(PYTHON) >= 5
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize(("where", "body"), PYTHON, ids=[where for where, _ in PYTHON])
def test_python_on_a_page_runs(where: str, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(body, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


@cache
def help_of(command: str) -> str:
    with redirect_stdout(StringIO()) as out:
        assert answer([*command.split(), "--help"]) == 0
    return out.getvalue()


@over(("where", "line"), COMMANDS, ids=[f"{where}: {line[:50]}" for where, line in COMMANDS])
def test_a_command_on_a_page_has_only_options_that_exist(where: str, line: str) -> None:
    _, command, *rest = shlex.split(line, comments=True)
    if command.startswith("--"):
        return
    if rest and rest[0][0] != "-" and f"\n  {rest[0]} " in help_of(command):
        # A command with commands of its own.
        command = f"{command} {rest.pop(0)}"
    known = set(re.findall(r"--[a-z-]+", help_of(command).replace("--[no-]", "--")))
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known


@over("page", PAGES, ids=name)
def test_links_lead_to_files_of_this_project(page: Path) -> None:
    for target in DESTINATIONS.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).resolve().exists(), f"{name(page)} links to {target}"


def test_the_generated_tables_are_fresh(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    runpy.run_path(str(ROOT / "docs" / "make_tables.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("0 of ")


def test_the_picture_on_top_of_the_readme_can_be_drawn_again(tmp_path: Path) -> None:
    run = mmard.train("cnn-2", data="digits", method="natural", limit_train=64, epochs=1, out=tmp_path / "r").run
    script = runpy.run_path(str(ROOT / "docs" / "draw_attacked.py"))
    script["main"].__globals__["OUT"] = tmp_path / "picture.png"
    script["main"](str(run.path), str(run.path))
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
