"""The training loop: what it chooses, tells, updates, and leaves alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import (
    BUDGET,
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
from trainings import (
    NEVER,
    Killed,
    Left,
    Observer,
    at,
    control_c,
    dropout,
    kill,
    left_state,
    loader,
    plain,
    swa,
    train,
)

from mmard.batch import Batch, Terms
from mmard.data.batches import Batches
from mmard.errors import Refused
from mmard.method import Method
from mmard.run import LOGGED, Event, Run
from mmard.training.fit import Interrupted, Validation, fit
from mmard.training.recipe import Recipe
from mmard.training.step import Step


# what is chosen -----------------------------------------------------------------------------------
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


@pytest.mark.parametrize(
    ("found", "epoch"),
    [
        ([(0.5, 0.4), (0.6, 0.1), (0.6, 0.1)], 2),  # said once
        ([(0.5, 0.4), (0.6, 0.5), (0.8, 0.0)], 3),
        ([(0.5, 0.4), (0.5, 0.25), (0.5, 0.2)], 0),  # half is left
        ([(0.5, 0.4), (0.2, 0.1), (0.1, 0.1)], 0),  # all is lost: no overfitting
        ([(0.5, 0.08), (0.6, 0.0), (0.6, 0.0)], 0),  # of a few images
    ],
)
def test_catastrophic_overfitting_is_said_once_and_where(
    found: list[tuple[float, float]], epoch: int, tmp_path: Path
) -> None:
    answers = iter(found)
    position = fit(
        step_of(), batches_of(), RECIPE, run_in(tmp_path / "run"), lambda _: Validation(*next(answers)), facts=FACTS
    )
    said = [e for e in Run.open(tmp_path / "run").log() if "catastrophic" in e.get("text", "")]
    assert position.overfitted == epoch
    assert [e["epoch"] for e in said] == ([epoch] if epoch else [])
    if epoch:
        fall = f"{found[epoch - 2][1]:.1%} (epoch {epoch - 1}) to {found[epoch - 1][1]:.1%}"
        assert fall in said[0]["text"]


@pytest.mark.parametrize(
    ("best_by", "attacked", "best"),
    [("auto", True, 1), ("auto", False, 2), ("clean", True, 2), ("robust", False, 1)],
)
def test_without_an_attack_or_if_said_the_best_weights_are_the_most_accurate_on_clean_images(
    best_by: str, attacked: bool, best: int, tmp_path: Path
) -> None:
    found = iter([(0.2, 0.19), (0.6, 0.1), (0.6, 0.05)])

    def made() -> tuple[Step, Batches, Recipe]:
        return step_of("pgd_at" if attacked else "natural"), batches_of(), replace(RECIPE, best_by=best_by)

    _, position = train(made, tmp_path / "run", validate=lambda network: Validation(*next(found)))
    assert position.best_epoch == best


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(network: nn.Module) -> Validation:
        seen.append(state(network))
        return Validation(0.5, 0.1 * len(seen))

    step, _ = train(swa, tmp_path / "run", validate=validate)
    for which in ("best", "last"):
        assert same(Run.open(tmp_path / "run").load_weights(which)[0], seen[-1])
    assert not same(state(step.nets["S"]), seen[-1])


# events -------------------------------------------------------------------------------------------
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


# updates ------------------------------------------------------------------------------------------
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


# what is left alone -------------------------------------------------------------------------------
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
