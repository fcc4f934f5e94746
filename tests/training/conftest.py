"""No waiting for disks, and what a training leaves that nobody stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from trainings import (
    Left,
    train,
)

from mmard import run as environment


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither power cuts nor commits are what these tests ask about; waiting for disk and git is most of their time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(environment, "commit", lambda: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Left]:
    """What the uninterrupted run of a case leaves."""
    known: dict[Any, Left] = {}

    def of(case: Any) -> Left:
        if case not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            train(case, folder)
            known[case] = Left(folder)
        return known[case]

    return of
