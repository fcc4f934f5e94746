"""The training loop: stopped anywhere and gone on with, it ends where it would have ended, to the bit.

What a run leaves is compared as a whole: state, best and last weights, and the log's lines of epochs.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from little import (
    BUDGET,
    EPOCHS,
    FACTS,
    RECIPE,
    STEPS,
    batches_of,
    matcher,
    net,
    picture_set,
    run_in,
    same,
    state,
    step_of,
    validation,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmard import environment
from mmard.data.batches import Batches, LoaderBatches
from mmard.errors import Refused
from mmard.method import Batch, Method, Terms
from mmard.ops import ce, kl
from mmard.run import Event, Run
from mmard.training.checkpoint import Position
from mmard.training.fit import Diverged, Interrupted, fit
from mmard.training.recipe import Recipe
from mmard.training.step import Step
from mmard.training.tally import LOGGED, Validation
from mmard.weights import load_tensors

NEVER = 1e9
"""Seconds between saves: none but the last."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither power cuts nor commits are what these tests ask about; waiting for disk and git is most of their time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(environment, "commit", lambda: None)


# trainings ------------------------------------------------------------------------------------------------------------
class Memory(nn.Module):
    """Losses of each class summed over an epoch, and the weights that they give the classes in the next."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("sums", 0.0), ("weights", 1.0)):
            self.register_buffer(name, torch.full((3,), value, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))


def remembering() -> Method:
    """A method with memory, of two networks that are both trained: S on labels and its peer P, P on S."""
    memory = Memory()

    def inner(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y)

    def outer(b: Batch) -> Terms:
        loss = ce(b.S(b.adv), b.y)
        memory.sums.index_add_(0, b.y, loss.detach().double())
        peer = b.nets["P"]
        weight = memory.weights[b.y].float()
        return {"label": weight * loss, "peer": kl(b.S(b.adv).detach(), peer(b.x)) + kl(peer(b.x), b.S(b.x))}

    def epoch_end() -> None:
        memory.weights.copy_(0.5 + memory.sums / memory.sums.sum())
        memory.sums.zero_()
        memory.epochs += 1

    return Method(
        "remembering",
        inner,
        outer,
        source="this test",
        says=("", ""),
        forwards={"S": ("x_adv", "x"), "P": ("x",)},
        nets=("S", "P"),
        memory=memory,
        epoch_end=epoch_end,
    )


class Shaken(Dataset[tuple[Tensor, int]]):
    """Pictures under a random transform that draws from all three global generators, as people write them."""

    def __init__(self) -> None:
        self.images = picture_set(40)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.images.x[index].float() / 255
        if random.random() < 0.5:
            x = x.flip(-1)
        x = (x + 0.1 * torch.rand(1) + 0.1 * float(np.random.rand())).clamp(0, 1)
        return x, int(self.images.y[index])


def plain() -> tuple[Step, Batches, Recipe]:
    return step_of("rslad+mmard"), batches_of(), replace(RECIPE, nesterov=True)


def ema() -> tuple[Step, Batches, Recipe]:
    return step_of("iad_i"), batches_of(), replace(RECIPE, average="ema", ema_decay=0.8, schedule="cosine")


def swa() -> tuple[Step, Batches, Recipe]:
    return step_of("rslad+igdm"), batches_of(), replace(RECIPE, average="swa", swa_from=0.3, schedule="step")


def memory() -> tuple[Step, Batches, Recipe]:
    return step_of(remembering(), P=net(seed=5)), batches_of(), RECIPE


def dropout() -> tuple[Step, Batches, Recipe]:
    return step_of("ard", net(dropout=0.4)), batches_of(), replace(RECIPE, average="swa", swa_from=0.0)


def loader() -> tuple[Step, Batches, Recipe]:
    theirs = DataLoader(Shaken(), batch_size=16, shuffle=True, generator=torch.Generator())
    return step_of("trades"), LoaderBatches(theirs, "cpu", seed=7), replace(RECIPE, grad_clip=0.5)


CASES: tuple[Callable[[], tuple[Step, Batches, Recipe]], ...] = (plain, ema, swa, memory, dropout, loader)
Observer = Callable[[Event], None]


def train(
    case: Callable[[], tuple[Step, Batches, Recipe]],
    folder: Path,
    observer: Observer | None = None,
    save_seconds: float = NEVER,
    validate: Callable[[nn.Module], Validation] = validation,
) -> tuple[Step, Position]:
    """Begin or go on, with everything but the folder made anew, as another process would."""
    step, batches, recipe = case()
    run = Run.open(folder) if folder.exists() else run_in(folder)
    observers = [observer] if observer is not None else []
    found = fit(step, batches, recipe, run, validate, facts=FACTS, observers=observers, save_seconds=save_seconds)
    return step, found


class Left:
    """All that a run leaves on disk, but for times."""

    def __init__(self, folder: Path) -> None:
        run = Run.open(folder)
        self.tensors, self.facts = run.load_state()
        for clock in ("seconds", "cpu_seconds"):
            self.facts["position"].pop(clock)
        self.weights = {which: run.weights_file(which).read_bytes() for which in ("best", "last")}
        self.epochs = [
            {k: v for k, v in event.items() if k != "seconds"} for event in run.log() if event["kind"] == "epoch"
        ]
        self.files = sorted(file.name for file in folder.iterdir())

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Left)
        assert same(self.tensors, other.tensors), [
            k for k in self.tensors if not torch.equal(self.tensors[k], other.tensors[k])
        ]
        assert self.facts == other.facts
        assert self.epochs == other.epochs
        assert self.weights == other.weights
        assert self.files == other.files
        return True


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


def left_state(folder: Path) -> dict[str, Tensor]:
    return Run.open(folder).load_state()[0]


class Killed(Exception):
    """The end of a process, as far as the run folder can tell."""


def at(number: int, act: Callable[[], None], kinds: tuple[str, ...] = ("tick", "step")) -> Observer:
    """Act when so many events of these kinds have been seen."""
    seen = 0

    def observe(event: Event) -> None:
        nonlocal seen
        seen += event["kind"] in kinds
        if event["kind"] in kinds and seen == number:
            act()

    return observe


def kill() -> None:
    raise Killed


def control_c() -> None:
    signal.raise_signal(signal.SIGINT)


# to the bit -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_two_runs_are_equal(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    train(case, tmp_path / "run", save_seconds=0)
    assert Left(tmp_path / "run") == whole(case)


@pytest.mark.parametrize("case", CASES)
def test_stopped_by_control_c_after_every_step(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for done in range(1, EPOCHS * STEPS + 1):
        with pytest.raises(Interrupted, match=f"stopped after step {done} and saved"):
            train(case, folder, at(1, control_c))
        _, facts = Run.open(folder).load_state()
        assert facts["position"]["step"] == done
    train(case, folder)
    assert Left(folder) == whole(case)


@pytest.mark.parametrize("case", CASES)
def test_killed_after_every_step(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    deaths = 0
    while True:
        try:
            train(case, folder, at(2, kill), save_seconds=0)
            break
        except Killed:
            deaths += 1
    assert deaths == EPOCHS * STEPS - 1
    assert Left(folder) == whole(case)


@pytest.mark.parametrize("case", CASES)
def test_killed_between_the_best_weights_and_the_state(case: Any, whole: Callable[[Any], Left], tmp_path: Path) -> None:
    """The line of the epoch is in the log and its weights are kept, and then the state of before is gone on with."""
    folder = tmp_path / "run"
    for death in range(EPOCHS):
        # The epoch that the last death cut off is told first.
        with pytest.raises(Killed):
            train(case, folder, at(1 if death == 0 else 2, kill, ("epoch",)), save_seconds=0)
    train(case, folder)
    assert Left(folder) == whole(case)


@pytest.mark.parametrize("case", [plain, swa])
def test_killed_in_a_save_of_the_state(
    case: Any, whole: Callable[[Any], Left], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    save = Run.save_state
    calls = 0

    def failing(self: Run, tensors: Any, facts: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise Killed
        save(self, tensors, facts)

    monkeypatch.setattr(Run, "save_state", failing)
    deaths = 0
    while True:
        try:
            train(case, folder, save_seconds=0)
            break
        except Killed:
            deaths += 1
    assert deaths >= EPOCHS * STEPS
    assert Left(folder) == whole(case)


def test_killed_before_anything_was_saved(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(plain, folder, at(5, kill))
    assert not Run.open(folder).has_state
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"kind": "epo')
    train(plain, folder)
    assert Left(folder) == whole(plain)
    assert [e["kind"] for e in Run.open(folder).log()].count("start") == 1
    assert len(json.loads((folder / "environment.json").read_text())) == 2


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path

import torch
torch.set_num_threads(1)
from test_fit import plain, train
import mmard.weights

written = 0
write = mmard.weights.save_file

def torn(tensors, path, metadata):
    global written
    written += "position" in metadata["mmard"]
    write(tensors, path, metadata=metadata)
    if written == 5:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

mmard.weights.save_file = torn
train(plain, Path(sys.argv[1]), save_seconds=0)
"""


def test_killed_for_good_in_the_middle_of_a_file(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert list(folder.glob(".state.safetensors.*")), "the half of a file"
    train(plain, folder)
    assert Left(folder) == whole(plain)
    assert not list(folder.glob(".state.safetensors.*"))


def test_a_finished_run_has_nothing_left_to_do(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    train(plain, tmp_path / "run")
    _, found = train(plain, tmp_path / "run", at(1, kill))
    assert found.finished
    assert Left(tmp_path / "run") == whole(plain)


def test_the_weights_in_memory_are_those_on_disk(tmp_path: Path) -> None:
    step, found = train(plain, tmp_path / "run")
    last, facts = Run.open(tmp_path / "run").load_weights("last")
    assert same(state(step.nets["S"]), last)
    assert facts == {**FACTS, "epoch": EPOCHS, "step": EPOCHS * STEPS}
    assert found.step == step.count == EPOCHS * STEPS


def test_a_method_is_told_of_every_epochs_end_once(tmp_path: Path) -> None:
    step, _ = train(memory, tmp_path / "run")
    kept = left_state(tmp_path / "run")
    assert kept["memory/epochs"] == EPOCHS
    assert kept["memory/weights"].sum() == pytest.approx(2.5)  # three halves, and shares that add up to one
    assert not kept["memory/sums"].any()
    assert any(key.startswith("P/") for key in kept)
    assert step.method.memory is not None
    assert same(state(step.method.memory), {k.removeprefix("memory/"): v for k, v in kept.items() if "memory/" in k})


# interruption ---------------------------------------------------------------------------------------------------------
def test_the_second_control_c_interrupts_at_once(tmp_path: Path) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "run", at(1, control_c))
    before = left_state(tmp_path / "run")

    def twice() -> None:
        control_c()
        control_c()

    with pytest.raises(KeyboardInterrupt):
        train(plain, tmp_path / "run", at(2, twice))
    assert same(left_state(tmp_path / "run"), before)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_sigterm_is_a_request_as_well(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "run", at(3, lambda: signal.raise_signal(signal.SIGTERM)))
    assert Run.open(tmp_path / "run").load_state()[1]["position"]["step"] == 3


def test_a_training_in_a_thread_leaves_signals_alone(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(plain, tmp_path / "run"))
    thread.start()
    thread.join()
    assert Left(tmp_path / "run") == whole(plain)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file can grow beyond this size, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_left(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(plain, folder, at(5, kill), save_seconds=0)
    before = left_state(folder)
    with pytest.raises(Refused, match="no space left; what was saved before is whole"), disk_of(1000):
        train(plain, folder, save_seconds=0)
    assert same(left_state(folder), before)
    train(plain, folder)
    assert Left(folder) == whole(plain)


def test_no_space_left_for_the_log(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    run.append({"kind": "start", "step": 0, "epoch": 0})
    with pytest.raises(Refused, match=r"log\.jsonl.*no space left"), disk_of(run.log_file.stat().st_size + 5):
        run.append({"kind": "step", "step": 1, "epoch": 0})
    assert [e["kind"] for e in run.log()] == ["start"]


# one at a time --------------------------------------------------------------------------------------------------------
def test_a_run_that_somebody_trains_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = run_in(folder)
    with run.lock(), pytest.raises(Refused, match="expected a run that nobody works on, got one that another process"):
        train(plain, folder)
    assert run.log() == []
    with pytest.raises(Killed):
        train(plain, folder, at(1, kill))
    train(plain, folder)
    with run.lock():
        pass


HOLD = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]).acquire(); print(); sys.stdin.read()"


def test_another_process_holds_the_lock_until_it_dies(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Refused, match="another process"):
            run.lock()
        other.kill()
    with run.lock():
        assert FileLock(run.path / ".lock").lock_file


# what is left alone ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stop", [None, at(2, kill)], ids=["to the end", "killed"])
@pytest.mark.parametrize("case", [dropout, loader])
def test_the_callers_random_state_is_kept(case: Any, stop: Observer | None, tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    try:
        train(case, tmp_path / "run", stop)
    except Killed:
        assert stop is not None
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_callers_random_state_does_not_matter(whole: Callable[[Any], Left], tmp_path: Path) -> None:
    torch.manual_seed(1234)
    random.seed(1234)
    np.random.seed(1234)
    train(dropout, tmp_path / "dropout")
    train(loader, tmp_path / "loader")
    assert Left(tmp_path / "dropout") == whole(dropout)
    assert Left(tmp_path / "loader") == whole(loader)


def test_the_teacher_is_untouched(tmp_path: Path) -> None:
    teacher = net(seed=3)
    teacher[1].eval()
    teacher[5].bias.requires_grad_(False)
    before = state(teacher), [m.training for m in teacher.modules()], [p.requires_grad for p in teacher.parameters()]
    step = step_of("adaad+mmard", teacher=teacher)
    fit(step, batches_of(), RECIPE, run_in(tmp_path / "run"), validation, facts=FACTS)
    assert same(state(teacher), before[0])
    assert [m.training for m in teacher.modules()] == before[1]
    assert [p.requires_grad for p in teacher.parameters()] == before[2]
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(key.startswith("T/") for key in left_state(tmp_path / "run"))


# what is chosen -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([(0.9, 0.1), (0.5, 0.3), (0.6, 0.2)], 2),
        ([(0.5, 0.3), (0.6, 0.3), (0.55, 0.3)], 2),
        ([(0.5, 0.3), (0.5, 0.3), (0.5, 0.3)], 1),
        ([(0.0, 0.0), (0.0, 0.0), (0.9, 0.0)], 3),
    ],
    ids=["robust first", "then clean", "then the earlier", "zero is an accuracy"],
)
def test_the_best_weights_are_chosen_by_robust_then_clean_accuracy(
    found: list[tuple[float, float]], best: int, tmp_path: Path
) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(network: nn.Module) -> Validation:
        seen.append(state(network))
        return Validation(*found[len(seen) - 1])

    _, position = train(plain, tmp_path / "run", validate=validate)
    weights, facts = Run.open(tmp_path / "run").load_weights("best")
    assert position.best_epoch == facts["epoch"] == best
    assert (facts["clean"], facts["robust"]) == found[best - 1] == (position.best_clean, position.best_robust)
    assert facts["step"] == best * STEPS
    assert same(weights, seen[best - 1])
    assert {**facts, **FACTS} == facts
    marked = [e["epoch"] for e in Run.open(tmp_path / "run").log() if e.get("best")]
    assert marked[-1] == best


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(network: nn.Module) -> Validation:
        seen.append(state(network))
        return Validation(0.5, 0.1 * len(seen))

    step, _ = train(swa, tmp_path / "run", validate=validate)
    for which in ("best", "last"):
        assert same(Run.open(tmp_path / "run").load_weights(which)[0], seen[-1])
    assert not same(state(step.nets["S"]), seen[-1])


# events ---------------------------------------------------------------------------------------------------------------
def test_events_come_in_order_and_say_where_they_are(tmp_path: Path) -> None:
    events: list[Event] = []
    train(plain, tmp_path / "run", events.append)
    epoch = ["tick"] * STEPS + ["epoch"]
    assert [e["kind"] for e in events] == ["start", "step", *epoch[1:], *epoch, *epoch]
    places = [(e["step"], e["epoch"], e["epoch_step"]) for e in events]
    assert places[:5] == [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3), (3, 1, 0)]
    assert places[-1] == (9, 3, 0)
    seconds = [e["seconds"] for e in events]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    logged = Run.open(tmp_path / "run").log()
    assert logged == [e for e in events if e["kind"] != "tick"]


def counting() -> Method:
    """A method whose terms are known: the label, and twice the progress."""

    def outer(b: Batch) -> Terms:
        nothing = 0 * b.S(b.x).sum(1)
        return {"label": b.y + nothing, "progress": 2 * b.progress + nothing}

    return Method("counting", None, outer, "this test", ("", ""), forwards={"S": ("x",)}, nets=("S",))


def test_an_epoch_reports_means_over_its_images(tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, lr=0.08, schedule="cosine")
    run = run_in(tmp_path / "run")
    fit(step_of(counting()), batches_of(40), recipe, run, validation, facts=FACTS)
    epochs = [e for e in run.log() if e["kind"] == "epoch"]
    label = picture_set(40).y.double().mean().item()  # of batches of 16, 16 and 8
    for number, event in enumerate(epochs):
        assert event["label"] == pytest.approx(label, abs=1e-6)
        assert event["progress"] == pytest.approx(2 * (number + 1) / 4, abs=1e-6)
        assert event["loss"] == pytest.approx(event["label"] + event["progress"], abs=1e-5)
        assert event["lr"] == recipe.lr_at(number, 2, 3)
        assert "reach" not in event
    assert epochs[-1]["progress"] == 2, "the last epoch is at progress 1"


def test_reach_is_the_radius(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    fit(step_of("pgd_at"), batches_of(), RECIPE, run, validation, facts=FACTS)
    for event in run.log():
        if event["kind"] == "epoch":
            assert event["reach"] == pytest.approx(BUDGET.eps, abs=1e-6)


def test_resuming_is_logged_and_nothing_is_told_twice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(plain, folder, at(4, control_c))
    with pytest.raises(Killed):
        train(plain, folder, at(5, kill), save_seconds=NEVER)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"kind": "epoch", "step": 6, "ep')
    train(plain, folder)
    events = Run.open(folder).log()
    assert [e["kind"] for e in events] == ["start", "step", "epoch", "resume", "resume", "epoch", "epoch"]
    assert [e["step"] for e in events] == [0, 1, 3, 4, 4, 6, 9]
    assert len(json.loads((folder / "environment.json").read_text())) == 3


@pytest.mark.parametrize("name", sorted(LOGGED | set(Validation._fields)))
def test_a_term_cannot_take_a_name_of_the_log(name: str, tmp_path: Path) -> None:
    method = replace(counting(), outer=lambda b: {name: 0 * b.S(b.x).sum(1)})
    with pytest.raises(Refused, match=f"term '{name}' of method counting: .*rename it"):
        fit(step_of(method), batches_of(), RECIPE, run_in(tmp_path / "run"), validation, facts=FACTS)


# numbers that are none ------------------------------------------------------------------------------------------------
def poisoned(from_step: int, **terms: float) -> Method:
    """Plain training whose named terms take these values from a step on."""
    steps = 0

    def outer(b: Batch) -> Terms:
        nonlocal steps
        steps += 1
        found = {"label": ce(b.S(b.x), b.y), "good": 0 * b.S(b.x).sum(1)}
        if steps >= from_step:
            found |= {name: found[name] + value for name, value in terms.items()}
        return found

    return Method("poisoned", None, outer, "this test", ("", ""), forwards={"S": ("x",)}, nets=("S",))


@pytest.mark.parametrize(
    ("terms", "culprit"),
    [
        ({"label": math.nan}, "the term label not finite"),
        ({"good": math.inf}, "the term good not finite"),
        ({"label": math.inf, "good": -math.inf}, "the term label, good not finite"),
        ({"label": 3e38, "good": 3e38}, "the sum of finite terms not finite"),
    ],
)
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_culprit(
    terms: dict[str, float], culprit: str, tmp_path: Path
) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Diverged, match=r"epoch 2, step 5: .*" + culprit + ".*the last save is untouched.*--lr"):
        fit(step_of(poisoned(5, **terms)), batches_of(), RECIPE, run, validation, facts=FACTS, save_seconds=0)
    tensors, facts = run.load_state()
    assert facts["position"]["step"] == 4
    assert all(t.isfinite().all() for t in tensors.values())
    resumed = fit(step_of(poisoned(99)), batches_of(), RECIPE, run, validation, facts=FACTS)
    assert resumed.finished


def test_divergence_before_the_first_save_says_so(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Diverged, match="nothing was saved yet"):
        fit(step_of(poisoned(1, label=math.nan)), batches_of(), RECIPE, run, validation, facts=FACTS)
    assert not run.has_state


def steep(from_step: int) -> Method:
    """A loss that is a number with a gradient that is none: the root of zero."""
    steps = 0

    def outer(b: Batch) -> Terms:
        nonlocal steps
        steps += 1
        return {
            "label": ce(b.S(b.x), b.y),
            "root": (0 * b.S(b.x)).sum(1).sqrt() if steps >= from_step else 0 * b.y.float(),
        }

    return Method("steep", None, outer, "this test", ("", ""), forwards={"S": ("x",)}, nets=("S",))


def test_a_weight_that_is_no_number_is_never_saved(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Diverged, match=r"0\.weight of the network not finite; the last save is untouched"):
        fit(step_of(steep(5)), batches_of(), RECIPE, run, validation, facts=FACTS, save_seconds=0)
    assert all(t.isfinite().all() for t in run.load_state()[0].values())
    assert run.load_state()[1]["position"]["step"] == 4


def test_a_weight_that_is_no_number_is_never_validated(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")

    def validate(network: nn.Module) -> Validation:
        assert all(t.isfinite().all() for t in network.state_dict().values())
        return validation(network)

    with pytest.raises(Diverged, match=r"0\.weight of the network"):
        fit(step_of(steep(6)), batches_of(), RECIPE, run, validate, facts=FACTS)
    assert load_tensors(run.weights_file("best"))[1]["epoch"] == 1


# updates --------------------------------------------------------------------------------------------------------------
def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, lr=0.5, momentum=0, weight_decay=0, schedule="constant", grad_clip=1e-3)
    student = net()
    before = [p.detach().clone() for p in student.parameters()]
    fit(step_of("pgd_at", student), batches_of(16), recipe, run_in(tmp_path / "run"), validation, facts=FACTS)
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(student.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5 * 1e-3, rel=1e-3)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    student = net()
    student[0].weight.requires_grad_(False)
    before = student[0].weight.detach().clone()
    fit(step_of("pgd_at", student), batches_of(), RECIPE, run_in(tmp_path / "run"), validation, facts=FACTS)
    assert torch.equal(student[0].weight, before)
    assert not student[0].weight.requires_grad


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with pytest.raises(Killed):
        fit(
            step_of("pgd_at"),
            batches_of(),
            RECIPE,
            run,
            validation,
            facts=FACTS,
            observers=[at(5, kill)],
            save_seconds=0,
        )
    wider = step_of("pgd_at", net(width=5))
    with pytest.raises(
        Refused, match=r"expected the state of this run's S, got size mismatch.*was the network changed"
    ):
        fit(wider, batches_of(), RECIPE, run, validation, facts=FACTS)
    with pytest.raises(Refused, match="expected the state of this run's average"):
        fit(step_of("pgd_at"), batches_of(), replace(RECIPE, average="ema"), run, validation, facts=FACTS)
    run.save_state(*run.load_weights("best"))
    with pytest.raises(Refused, match="expected the state of a training, got a file without counters"):
        fit(step_of("pgd_at"), batches_of(), RECIPE, run, validation, facts=FACTS)


def test_training_learns(tmp_path: Path) -> None:
    """Thirty steps bring a random student from guessing to its teacher's pictures."""
    student = net()
    assert validation(student).clean < 0.7
    recipe = Recipe(epochs=10, lr=0.1, schedule="one-cycle")
    found = fit(step_of("rslad", student), batches_of(), recipe, run_in(tmp_path / "run"), validation, facts=FACTS)
    assert found.best_clean > 0.9
    assert validation(matcher()).clean == 1
