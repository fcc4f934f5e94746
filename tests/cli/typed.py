"""Commands as they are typed, and what they came to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmard.cli import answer

SRC = Path(__file__).resolve().parents[2] / "src"
SMALL = ("--data", "digits", "--limit-train", "128", "--steps", "2", "--val-attack", "pgd-2", "--threads", "1")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Typed:
    """What a command came to."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.status = answer(list(arguments))
        self.out, self.err = capsys.readouterr()
        assert not CONTROL.search(self.out + self.err), "control characters where there is no terminal"


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
