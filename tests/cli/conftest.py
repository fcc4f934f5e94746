"""A folder to type commands in, and two runs to look at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typed import SMALL

from mmard.cli import answer


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test types its commands in a folder of its own, 140 columns wide and without colours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher in `t` and a student distilled from it in `s`; not to be written to."""
    folder = tmp_path_factory.mktemp("home")
    here = Path.cwd()
    os.chdir(folder)
    try:
        teacher = ("--method", "pgd_at", "--model", "cnn-8", "--epochs", "8", "--lr", "0.05", "--limit-train", "512")
        assert answer(["train", *SMALL, *teacher, "--out", "t", "--quiet"]) == 0
        student = ("--teacher", "t", "--student", "cnn-4", "--epochs", "2")
        assert answer(["distill", *SMALL, *student, "--out", "s", "--quiet"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def runs(home: Path, tmp_path: Path) -> Path:
    """Copies of the teacher and the student in the folder of the test."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return tmp_path
