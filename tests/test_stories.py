"""The stories of docs/, told again: every command of the page, as a shell would run it, on less data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mmard.cli import answer

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)
LOOP = re.compile(r"for (\w+) in (.*?); do")


def commands(lines: list[str]) -> Iterator[list[str]]:
    """The words of every command, loops unrolled."""
    while lines:
        line = lines.pop(0).strip()
        if not (loop := LOOP.fullmatch(line)):
            yield shlex.split(line)
            continue
        depth, body = 1, []
        while depth:
            inner = lines.pop(0)
            depth += bool(LOOP.fullmatch(inner.strip())) - (inner.strip() == "done")
            body += [inner] if depth else []
        for value in loop[2].split():
            yield from commands([each.replace(f"${loop[1]}", value) for each in body])


def cifar10(folder: Path) -> None:
    """CIFAR-10 as its authors' binary files: few images, each class brighter than the one before."""
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    (batches / "batches.meta.txt").write_text("\n".join(CIFAR10))
    draws = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        y = np.arange(30) % 10
        x = draws.integers(0, 40, (30, 3072)) + 20 * y[:, None]
        (batches / name).write_bytes(np.concatenate([y[:, None], x], axis=1).astype(np.uint8).tobytes())


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

STORIES: dict[str, tuple[Callable[[Path], None], dict[str, str], tuple[str, ...]]] = {
    "comparing_three.md": (
        cifar10,
        {"--limit-train 2000 --epochs 4": "--epochs 1 --batch-size 40 --steps 1", "--first 100": "--first 2",
         "cnn-16": "cnn-2", "cnn-4": "cnn-2"},
        ("table.tex", "report.html"),
    ),
}  # fmt: skip
"""By page: what makes the data in the folder D, what is made less of, and the files that the story ends with."""


@pytest.mark.parametrize("page", STORIES)
def test_a_story_goes_as_it_is_told(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, less, files = STORIES[page]
    make(Path("D"))
    text = "".join(BLOCK.findall((DOCS / page).read_text(encoding="utf-8")))
    for long, short in less.items():
        assert long in text
        text = text.replace(long, short)
    ran = list(commands(text.splitlines()))
    assert len(ran) > 3
    for program, *words in ran:
        assert program == "mmard"
        assert answer(words) == 0, words
    assert [file for file in files if not Path(file).is_file()] == []
