"""What is known before a step: which methods gain by it, what a plan says of it, how it reaches the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from little import SHAPE, batches_of, net, picture_set, step_of
from test_table import augmented, teacher
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mmard.data.augment import Augmentation
from mmard.data.batches import LoaderBatches, SetBatches
from mmard.methods import build
from mmard.training.tables import Tables, cache_folder, saves_a_forward, tables_for

# --- which methods gain ---


@pytest.mark.parametrize(
    ("spec", "gains"),
    [("rslad", True), ("kd", True), ("ard", True), ("adaad", False), ("rslad+mmard", False), ("rslad+igdm", True)],
)
def test_who_reads_the_teacher_at_x(spec: str, gains: bool) -> None:
    assert saves_a_forward(build(spec)) == ({"T"} if gains else set())


def test_asking_leaves_no_trace_in_a_memory() -> None:
    memory = nn.BatchNorm1d(2)

    def outer(b: Any) -> dict[str, Tensor]:
        memory.running_mean += 1
        return build("rslad").outer(b)

    saves_a_forward(replace(build("rslad"), outer=outer, memory=memory))
    assert memory.running_mean.tolist() == [0, 0]


def test_a_method_that_does_not_run_on_toys_is_taken_to_gain() -> None:
    def picky(b: Any) -> Tensor:
        raise RuntimeError("images of 32 x 32 only")

    assert saves_a_forward(replace(build("adaad"), inner=picky)) == {"T"}


def tables(where: str, method: str = "rslad", **given: Any) -> Tables:
    made = {"nets": {"S": net(), "T": teacher()}, "images": picture_set(40), "batches": augmented(), **given}
    return tables_for(where, build(method), made["nets"], made["images"], made["batches"])


def test_the_plan_says_what_table_there_is_and_why_there_is_none(tmp_path: Path) -> None:
    assert tables("off") == tables("cache", "trades") == Tables({})
    (note,) = tables(str(tmp_path)).notes
    assert note.startswith("teacher table for T: 18 views of 40 images, 0 MB ")
    assert note.endswith(".table, 0% filled")
    assert str(tmp_path) in note
    assert tables("memory").notes == ("teacher table for T: 18 views of 40 images, 0 MB in memory, 0% filled",)
    off = tables(str(tmp_path), "adaad")
    assert off.by_letter == {}
    assert off.notes == ("teacher table for T off: knowing its predictions at x saves nothing",)
    theirs: Any = DataLoader(TensorDataset(torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.int64)))
    loader = tables("memory", images=None, batches=LoaderBatches(theirs, "cpu", 0))
    assert loader.notes == ("teacher table off: a loader does not say which images it gives",)
    holes = SetBatches(picture_set(40), 16, "cpu", 7, Augmentation(1, cutout=2))
    assert tables("memory", batches=holes).notes == ("teacher table for T off: views with cutout are not counted",)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_system_has_its_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mmard" / "teachers"
    found = tables("cache").by_letter["T"].path
    assert found is not None
    assert found.parent == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().relative_to(Path.home()) == Path(".cache/mmard/teachers")


def test_batches_come_as_they_are_with_what_is_known_of_them() -> None:
    batches = augmented()
    known = list(tables("memory").epoch(batches, 2, 1))
    plain = list(batches.epoch(2, 1))
    assert len(known) == len(plain) == 2
    for (x, y, said), (a, b) in zip(known, plain, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
        torch.testing.assert_close(said["T"], teacher()(x).detach(), rtol=1e-6, atol=1e-6)
    assert all(said == {} for *_, said in Tables({}).epoch(batches_of(), 0))


def test_a_step_asks_a_teacher_that_is_known_for_nothing() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the teacher was asked")

    x, y, said = next(tables("memory").epoch(augmented(), 0))
    step, reference = step_of("rslad", net(), Never()), step_of("rslad", net(), teacher())
    found, expected = step.run(x, y, known=said), reference.run(x, y)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
