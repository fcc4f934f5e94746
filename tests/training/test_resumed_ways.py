"""Tables, slices, micro-batches and recorded attacks in whole trainings: stopped anywhere, they end the same."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from little import BUDGET, EPOCHS, FACTS, RECIPE, STEPS, matcher, net, picture_set, run_in, same, validation
from rich.console import Console
from torch import Tensor, nn
from trainings import NEVER, Killed, Left, Observer, at, control_c, kill

from mmard.attacks import PGD
from mmard.data import Splits
from mmard.data.augment import Augmentation
from mmard.data.batches import SetBatches
from mmard.engine.ascent import Ascent, Chunks, plain
from mmard.engine.graphs import Graphs, Rerun
from mmard.errors import Refused
from mmard.job import Job, prepare
from mmard.method import Method
from mmard.methods import build
from mmard.plan import plan
from mmard.progress import TrainingBoard
from mmard.run import Run
from mmard.screen import THEME
from mmard.settings import Settings
from mmard.training.fit import Interrupted, fit
from mmard.training.step import Step
from mmard.training.tables import tables_for
from mmard.trust import VARIABLE

VIEWS = Augmentation(pad=1)


class Cramped(nn.Module):
    """A student that cannot be attacked on more than five images at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) > 5 and not torch.is_grad_enabled():
            return self.net(x)  # validation
        if not self.training and len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net(x)


@dataclass
class Way:
    """How to train, everything made anew for each process."""

    name: str
    method: str = "rslad+mmard"
    ascent: Callable[[], Any] = lambda: plain
    student: Callable[[], nn.Module] = net
    table: str = "off"
    accumulate: int = 1
    recipe: Any = field(default_factory=lambda: RECIPE)

    def __str__(self) -> str:
        return self.name


WAYS = (
    Way("table on disk", "rslad+igdm", table="disk"),
    Way("table in memory", "iad_i", table="memory"),
    Way("slices", ascent=lambda: Chunks(6)),
    Way("slices found by running out", "rslad", ascent=Chunks, student=Cramped),
    Way("micro-batches", "rslad+igdm", accumulate=3, recipe=replace(RECIPE, grad_clip=0.5, average="ema")),
    Way("recorded", ascent=lambda: Graphs(Rerun())),
    Way("AdamW", recipe=replace(RECIPE, optimizer="adamw", lr=1e-3, optimizer_params={"amsgrad": True})),
    Way("an optimiser that factors what it remembers", recipe=replace(RECIPE, optimizer="torch.optim:Adafactor")),
    Way("an optimiser that counts in its groups", recipe=replace(RECIPE, optimizer="trainings:Counting")),
    Way("all", "rslad+igdm", ascent=lambda: Chunks(0, Graphs(Rerun())), student=Cramped, table="disk", accumulate=2),
)


@pytest.fixture(scope="module", autouse=True)
def _typed() -> Iterator[None]:
    """The optimisers that are code, as if a person had typed them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "torch.optim:Adafactor,trainings:Counting")
        yield


def step_of(method: Method, student: nn.Module, ascent: Ascent) -> Step:
    nets = {"S": student, "T": matcher()}
    return Step(method, nets, PGD(2, 0.05, method.start), BUDGET, seed=7, ascent=ascent)


def train(way: Way, folder: Path, observer: Observer | None = None, save_seconds: float = NEVER) -> Step:
    """Begin or go on, with everything but the folder made anew, as another process would."""
    made = build(way.method)
    step = step_of(made, way.student(), way.ascent())
    batches = SetBatches(picture_set(40), 16, "cpu", 7, VIEWS)
    where = str(folder.parent / "tables") if way.table == "disk" else way.table
    tables = tables_for(where, made, step.nets, picture_set(40), batches)
    run = Run.open(folder) if folder.exists() else run_in(folder)
    observers = [observer] if observer is not None else []
    fit(
        step,
        batches,
        way.recipe,
        run,
        validation,
        facts=FACTS,
        observers=observers,
        save_seconds=save_seconds,
        tables=tables,
        accumulate=way.accumulate,
    )
    return step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Way], Left]:
    known: dict[str, Left] = {}

    def of(way: Way) -> Left:
        if way.name not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            train(way, folder)
            known[way.name] = Left(folder)
        return known[way.name]

    return of


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_killed_after_every_step(way: Way, whole: Callable[[Way], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    deaths = 0
    while True:
        try:
            train(way, folder, at(2, kill), save_seconds=0)
            break
        except Killed:
            deaths += 1
    assert deaths == EPOCHS * STEPS - 1
    assert Left(folder) == whole(way)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_stopped_by_control_c_in_the_middle_of_an_epoch(way: Way, whole: Callable[[Way], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for stop in (2, 3):
        with pytest.raises(Interrupted):
            train(way, folder, at(stop, control_c))
    train(way, folder)
    assert Left(folder) == whole(way)


def test_a_run_does_not_depend_on_what_the_table_held(whole: Callable[[Way], Left], tmp_path: Path) -> None:
    """Empty, filled by another student's run, or lost in the middle: the same bits."""
    way = WAYS[0]
    train(replace(way, student=lambda: net(5), recipe=replace(RECIPE, epochs=6)), tmp_path / "other")
    train(way, tmp_path / "run")
    assert Left(tmp_path / "run") == whole(way)
    lost = tmp_path / "lost"
    lost.mkdir()
    with pytest.raises(Interrupted):
        train(way, lost / "run", at(4, control_c))
    shutil.rmtree(lost / "tables")
    train(way, lost / "run")
    assert Left(lost / "run") == whole(way)


def test_a_run_with_a_table_is_the_run_without_up_to_rounding(whole: Callable[[Way], Left], tmp_path: Path) -> None:
    """Here to the bit even, for this teacher answers the same bits in batches of 16 and of 8."""
    train(replace(WAYS[0], table="off"), tmp_path / "run")
    assert Left(tmp_path / "run") == whole(WAYS[0])


def test_running_out_of_memory_is_told_once_and_remembered_over_a_stop(tmp_path: Path) -> None:
    way = WAYS[3]
    told: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            told.append(event["text"])

    with pytest.raises(Interrupted):
        train(way, tmp_path / "run", lambda event: (listen(event), at(1, control_c)(event))[0])
    assert [text.split(":")[0] for text in told] == [
        "out of memory in an attack on 16 images",
        "out of memory in an attack on 8 images",
    ]
    step = train(way, tmp_path / "run", listen)
    assert len(told) == 2
    assert isinstance(step.ascent, Chunks)
    assert step.ascent.size == 4
    notes = [event for event in Run.open(tmp_path / "run").log() if event["kind"] == "note"]
    assert [event["text"] for event in notes] == told
    assert notes[0]["step"] == 0


# --- from settings ---


def job(**said: Any) -> Job:
    splits = Splits(picture_set(40), picture_set(30, 1), picture_set(12, 2))
    settings = Settings.resolve(
        {"teacher": "given:T", "student": "given:S", "method": "rslad", "batch_size": 16, "epochs": 2, **said}
    )
    return prepare(settings, student=net(), teacher=matcher(), data=splits)


def test_settings_reach_the_training(tmp_path: Path) -> None:
    made = job(teacher_table=str(tmp_path / "tables"), fill_table=True, attack_chunk=5, accumulate=2)
    assert isinstance(made.step.ascent, Chunks)
    assert made.step.ascent.size == 5
    assert made.notes[-2:] == [
        "2 micro-batches of 8 images an update; BatchNorm normalises each by itself",
        f"teacher table for T: {made.tables.by_letter['T']}, 0% filled",
    ]
    assert not (tmp_path / "tables").exists()
    run, shown = Run.create(tmp_path / "run", made.settings.as_config()), list[str]()
    assert made.train(run, [lambda event: shown.append(event.get("text", ""))]).finished
    assert shown[0] == "teacher table: 100% of 40 predictions are known"
    table = made.tables.by_letter["T"]
    assert (table.made, table.read) == (40, 80)
    assert run.config["attack_chunk"] == 5
    assert run.config["accumulate"] == 2


def test_a_dry_run_says_so_and_writes_nothing(tmp_path: Path) -> None:
    made = job(teacher_table=str(tmp_path / "tables"), accumulate=4)
    planned = plan(made, seconds=0.0)
    assert planned.pace.steps == 2
    assert "teacher table for T: 1 views of 40 images" in planned.job.notes[-1]
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_effect_is_said() -> None:
    assert job(method="ard", attack_chunk=4, params={"ard.attack_mode": "train"}).notes[-1] == (
        "--attack-chunk 4 has no effect: it attacks in train mode, where BatchNorm ties the images of a batch together"
    )
    assert job(method="kd", attack_chunk=4).notes[-1].endswith("this method makes no adversarial examples")
    assert job(attack="noise-fgsm", attack_chunk=4).notes[-1].endswith("not made in steps from a start")
    assert job(teacher_table="memory", method="adaad").notes[-1].endswith("saves nothing")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"accumulate": 0}, "setting accumulate: expected at least 1, got 0"),
        ({"attack_chunk": -1}, "setting attack_chunk: expected at least 0, got -1"),
        ({"accumulate": 9}, "--accumulate 9: expected micro-batches of two images or more, got a batch of 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        job(**said)


def test_with_a_table_no_student_asks_again(tmp_path: Path) -> None:
    way = Way("first", "rslad", table="disk")
    train(way, tmp_path / "one")
    made = build("rslad")
    batches = SetBatches(picture_set(40), 16, "cpu", 7, VIEWS)
    step = step_of(made, net(9), plain)
    tables = tables_for(str(tmp_path / "tables"), made, step.nets, picture_set(40), batches)
    fit(step, batches, RECIPE, run_in(tmp_path / "two"), validation, facts=FACTS, tables=tables)
    table = tables.by_letter["T"]
    assert (table.made, table.read) == (0, EPOCHS * 40)
    assert not same(dict(step.nets["S"].state_dict()), dict(net(9).state_dict()))


@pytest.mark.parametrize("moves", [False, True])
def test_a_note_is_shown_and_does_not_count_as_progress(moves: bool) -> None:
    out = Console(file=io.StringIO(), width=80, theme=THEME)
    watch = TrainingBoard(out, 2, 3, "PGD", moves)
    watch({"kind": "note", "text": "teacher table: 10% of 40 predictions are known"})
    assert "10% of 40 predictions" in out.file.getvalue()
    assert (watch.now, watch.first) == ({}, {})
