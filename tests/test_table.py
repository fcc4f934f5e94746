"""The teacher table: equal to the teacher, whatever the file held, whoever wrote it, and however a writer died."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from little import CLASSES, SHAPE, Matcher, matcher, net, picture_set, same, state
from torch import Tensor, nn

from mmard.data import ImageSet
from mmard.data.augment import Augmentation
from mmard.data.batches import SetBatches
from mmard.engine import table
from mmard.engine.table import SAMPLE, TeacherTable, Unsteady
from mmard.errors import Refused

VIEWS = Augmentation(pad=1, flip=True)
"""18 views."""


def teacher(seed: int = 3) -> nn.Module:
    """With a BatchNorm that has seen something, in eval mode."""
    made = net(seed, width=5)
    made(torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(seed)))
    return made.eval()


def augmented(n: int = 40, batch_size: int = 16, seed: int = 7) -> SetBatches:
    return SetBatches(picture_set(n), batch_size, "cpu", seed, VIEWS)


def table_of(where: Path | None, module: nn.Module | None = None, images: ImageSet | None = None) -> TeacherTable:
    return TeacherTable(module or teacher(), images or picture_set(40), VIEWS, where)


def looked_up(it: TeacherTable, batches: SetBatches, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """The predictions of one epoch from the table, and straight from the teacher."""
    found, said = [], []
    for rows, views in batches.rows(epoch):
        x, _ = batches.batch(rows, views)
        found.append(it.look_up(rows, views, x))
        with torch.no_grad():
            said.append(it.teacher(x))
    return torch.cat(found), torch.cat(said)


# --- equal to the teacher ---


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_look_up_is_the_teachers_prediction(on_disk: bool, tmp_path: Path) -> None:
    it = table_of(tmp_path if on_disk else None)
    for epoch in range(4):
        found, said = looked_up(it, augmented(), epoch)
        torch.testing.assert_close(found, said, rtol=1e-6, atol=1e-6)
        assert found.dtype == torch.float32
        assert not found.requires_grad
    assert it.made + it.read == 4 * 40
    assert 0 < it.read < it.made, "18 views are met again now and then"
    read_before = it.read
    again, _ = looked_up(it, augmented(), 3)
    assert it.read == read_before + 40
    assert torch.equal(again, found), "what is read differs from what was made"


def test_in_float64_it_is_equal_to_twelve_digits() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher().double()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.double())

    it = table_of(None, Double())
    found, said = looked_up(it, augmented())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, said, rtol=0, atol=1e-12)
    torch.testing.assert_close(looked_up(it, augmented())[0], said, rtol=0, atol=1e-12)
    assert it.read == 40


def test_a_prediction_is_the_same_bits_whoever_asks_for_it_first() -> None:
    """In the order of training, in that of another seed, one at a time, or ahead: the table ends up the same."""
    ways = []
    for way in ("epochs", "others first", "alone", "ahead"):
        it, batches = table_of(None), augmented()
        if way == "others first":
            looked_up(it, augmented(batch_size=7, seed=1))
        if way == "ahead":
            it.fill(lambda rows, views, b=batches: b.batch(rows, views)[0], lambda done, of: None)
        if way == "alone":
            for rows, views in batches.rows(0):
                x, _ = batches.batch(rows, views)
                for i in range(len(rows)):
                    one = type(views)(*(v[i : i + 1] for v in vars(views).values()))
                    it.look_up(rows[i : i + 1], one, x[i : i + 1])
        ways.append(looked_up(it, batches)[0])
    assert all(torch.equal(each, ways[0]) for each in ways)


def test_filling_ahead_leaves_nothing_to_make(tmp_path: Path) -> None:
    it, batches = table_of(tmp_path), augmented()
    looked_up(it, batches)
    told: list[tuple[int, int]] = []
    it.fill(lambda rows, views: batches.batch(rows, views)[0], lambda done, of: told.append((done, of)))
    assert it.made == 40 * 18
    assert it.filled() == 1
    assert told == [(720, 720)]
    again = table_of(tmp_path)
    assert again.filled() == 1
    again.fill(lambda rows, views: pytest.fail("made again"), lambda done, of: None)
    found, said = looked_up(again, augmented(seed=8), 5)
    assert again.made == 0
    torch.testing.assert_close(found, said, rtol=1e-6, atol=1e-6)


def test_processes_fill_a_file_together_and_memory_each_for_itself(tmp_path: Path) -> None:
    images = picture_set(500)
    batches = SetBatches(images, 50, "cpu", 7, VIEWS)
    made = []
    for where in (tmp_path, None):
        for rank in range(2):
            it = table_of(where, images=images)
            it.fill(lambda rows, views: batches.batch(rows, views)[0], lambda done, of: None, rank, 2)
            made.append(it.made)
    assert made[0] + made[1] == made[2] == made[3] == 9000
    assert min(made) >= SAMPLE
    assert table_of(tmp_path, images=images).filled() == 1


def test_without_augmentation_there_is_one_view() -> None:
    images = picture_set(40)
    it = TeacherTable(teacher(), images, None, None)
    batches = SetBatches(images, 16, "cpu", 7)
    for epoch in range(2):
        for rows, views in batches.rows(epoch):
            x, _ = batches.batch(rows, views)
            torch.testing.assert_close(it.look_up(rows, views, x), it.teacher(x).detach(), rtol=1e-6, atol=1e-6)
    assert (it.views, it.made, it.read) == (1, 40, 40)


@given(st.integers(0, 4), st.booleans(), st.data())
def test_views_are_numbered_both_ways(pad: int, flip: bool, data: Any) -> None:
    augmentation = Augmentation(pad, flip)
    assert augmentation.distinct is not None
    numbers = torch.tensor(data.draw(st.lists(st.integers(0, augmentation.distinct - 1), min_size=1, max_size=8)))
    assert torch.equal(augmentation.number(augmentation.numbered(numbers)), numbers)


# --- what a prediction may depend on ---


def test_another_teacher_other_images_or_other_views_have_a_table_of_their_own(tmp_path: Path) -> None:
    other_order = picture_set(40).take(torch.arange(39, -1, -1))
    paths = [
        table_of(tmp_path).path,
        table_of(tmp_path, teacher(4)).path,
        table_of(tmp_path, images=other_order).path,
        TeacherTable(teacher(), picture_set(40), Augmentation(1, flip=False), tmp_path).path,
        table_of(tmp_path, nn.Sequential(teacher(), nn.Hardtanh(-1, 1))).path,
        table_of(tmp_path, teacher().double().float().requires_grad_(False)).path,
    ]
    assert paths[0] == paths[-1], "the same numbers are the same teacher"
    assert len(set(paths)) == 5


def test_code_that_no_weight_tells_of_is_in_the_key(tmp_path: Path) -> None:
    class Sharper(Matcher):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    plain = matcher()
    sharper = Sharper(torch.zeros(CLASSES, *SHAPE))
    sharper.load_state_dict(plain.state_dict())
    assert table_of(tmp_path, plain).path != table_of(tmp_path, sharper).path


def test_a_teacher_whose_prediction_depends_on_its_batch_has_no_table() -> None:
    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher()

        def forward(self, x: Tensor) -> Tensor:
            logits = self.net(x)
            return logits + logits.mean(0) if len(x) > 1 else logits + torch.rand(1)

    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return matcher()(x) + 1e-6 * torch.rand(len(x), 1)

    for bad in (Coupled(), Random()):
        with pytest.raises(Unsteady, match="depends on the other images of the batch, or on chance"):
            table_of(None, bad)


def test_a_teacher_that_is_steady_on_single_images_alone_is_asked_so() -> None:
    """Batches in which the place decides are what a kernel with tiles of odd sizes would be."""
    sizes: list[int] = []

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher()

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return self.net(x) + 1e-7 * torch.arange(len(x))[:, None]

    it = table_of(None, Placed())
    assert it.facts["batch"] == 1
    sizes.clear()
    looked_up_in = augmented()
    for rows, views in looked_up_in.rows(0):
        it.look_up(rows, views, looked_up_in.batch(rows, views)[0])
    assert set(sizes) == {1}


def test_cutout_has_no_countable_views() -> None:
    with pytest.raises(Unsteady, match="cutout"):
        TeacherTable(teacher(), picture_set(40), Augmentation(1, cutout=2), None)


def test_a_teacher_that_changes_under_its_table_is_found_out(tmp_path: Path) -> None:
    it = table_of(tmp_path)
    looked_up(it, augmented())
    again = table_of(tmp_path)
    with torch.no_grad():
        again.teacher[5].bias += 0.01
    with pytest.raises(Refused, match=r"expected this teacher's predictions, got others, apart by 0\.01"):
        looked_up(again, augmented())


def test_a_look_up_leaves_the_teachers_modes_alone() -> None:
    awake = teacher().train()
    it = table_of(None, awake)
    before = state(awake)
    looked_up_rows, views = next(augmented().rows(0))
    it.look_up(looked_up_rows, views, augmented().batch(looked_up_rows, views)[0])
    assert awake.training
    assert all(p.requires_grad for p in awake.parameters())
    assert same(state(awake), before)


# --- sizes and devices ---


def test_a_large_table_is_sampled_for_how_full_it_is() -> None:
    it = TeacherTable(teacher(), picture_set(300), VIEWS, None)
    assert SAMPLE < 300 * 18
    batches = augmented(300, 50)
    for epoch in range(6):
        looked_up(it, batches, epoch)
    assert it.filled() == pytest.approx(it.made / 5400, abs=0.03)


def test_the_constants_leave_room_for_a_form_on_every_device() -> None:
    assert table.BLOCKS["cpu"][-1] == 1


@pytest.mark.gpu
def test_on_a_gpu_look_ups_are_the_teachers_predictions(tmp_path: Path) -> None:
    it = TeacherTable(teacher().cuda(), picture_set(400), VIEWS, tmp_path)
    batches = SetBatches(picture_set(400), 128, "cuda", 7, VIEWS)
    first = looked_up(it, batches)
    torch.testing.assert_close(*first, rtol=1e-3, atol=1e-4)
    assert torch.equal(looked_up(it, batches)[0], first[0])
    assert (it.made, it.read) == (400, 400)
    it.close()
    again = TeacherTable(teacher().cuda(), picture_set(400), VIEWS, tmp_path)
    assert torch.equal(looked_up(again, batches)[0], first[0])
    assert again.made == 0
