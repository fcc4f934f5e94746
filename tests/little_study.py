"""A study that is made in seconds: digits, networks of two channels, a few epochs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmard.study import workers
from mmard.study.cell import Site
from mmard.study.grid import Choice, choose
from mmard.study.workers import Report, Work

SCALE = """
name = "little"
title = "a few images"
says = "seconds"
data_says = "digits"
seeds = [0, 1]
student = "cnn-2"
attacks = ["pgd-2", "cw-2"]
attack_images = 60
which = "last"

[every]
data = "digits"
threads = 1
epochs = 2
limit_train = 256
batch_size = 32
steps = 2

[teachers.main]
title = "cnn-4"
model = "cnn-4"
method = "trades"
epochs = 9
"""
STUDY = """
name = "two"
title = "With a teacher and without"
question = "Does it run?"
reads = "benchmark"
hosts = ["pgd_at", "ard"]
boundary = true
"""


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker here in place of spawned ones, which tests/test_study_running.py tries."""

    def run_here(work: Work, sites: Sequence[Site], report: Report) -> None:
        workers.take_part(replace(work, site=sites[0]), report)

    monkeypatch.setattr(workers, "run_here", run_here)


def little(folder: Path, **changes: Any) -> Choice:
    """The cells of the study; what is changed is a line of the study, or of what holds for every cell of the scale."""
    scale, study = SCALE, STUDY
    for name, value in changes.items():
        if name in ("hosts", "boundary"):
            study = re.sub(rf"^{name} = .*$", f"{name} = {value}", study, count=1, flags=re.MULTILINE)
        else:
            scale = re.sub(rf"^{name} = .*$", f"{name} = {value}", scale, count=1, flags=re.MULTILINE)
    (folder / "little.toml").write_text(scale)
    (folder / "two.toml").write_text(study)
    return choose([folder / "two.toml"], folder / "little.toml")
