"""Learning rates in closed form and by their properties; values that no training can run with."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from nets import build, conv, step_of

from mmard.errors import Refused
from mmard.job import recipe_of
from mmard.settings import Settings
from mmard.training.recipe import SCHEDULES, Recipe, optimizer_of
from mmard.trust import VARIABLE

POSITIONS = tuple((epoch, step) for epoch in range(20) for step in range(7))
"""Every step of a run of 20 epochs of 7."""


def rates(recipe: Recipe, steps: int = 7) -> list[float]:
    return [recipe.lr_at(epoch, step, steps) for epoch in range(recipe.epochs) for step in range(steps)]


@pytest.mark.parametrize(
    ("milestones", "drops"),
    [((0.5, 0.75), {10: 1, 15: 2}), ((4, 7, 19), {4: 1, 7: 2, 19: 3}), ((0.5, 12), {10: 1, 12: 2}), ((), {})],
)
def test_the_step_schedule_drops_where_it_says(milestones: tuple[float, ...], drops: dict[int, int]) -> None:
    recipe = Recipe(epochs=20, lr=0.1, milestones=milestones, drop=0.2)
    for epoch, step in POSITIONS:
        power = max((n for first, n in drops.items() if epoch >= first), default=0)
        assert recipe.lr_at(epoch, step, 7) == pytest.approx(0.1 * 0.2**power, rel=1e-12)


@given(st.integers(2, 400).flatmap(lambda epochs: st.tuples(st.just(epochs), st.integers(1, epochs - 1))))
def test_a_share_that_falls_on_an_epoch_is_that_epoch(case: tuple[int, int]) -> None:
    epochs, first = case
    recipe = Recipe(epochs=epochs, milestones=(first / epochs,), swa_from=first / epochs)
    assert recipe.lr_at(first - 1, 0, 1) == recipe.lr
    assert recipe.lr_at(first, 0, 1) < recipe.lr
    assert recipe.swa_epoch() == first


def test_shares_with_few_digits_fall_on_their_epochs() -> None:
    # 0.07 * 100 and 0.55 * 20 are a little more than 7 and 11.
    assert Recipe(epochs=100, milestones=(0.07, 0.29)).drop_epochs() == (7, 29)
    assert Recipe(epochs=20, swa_from=0.55).swa_epoch() == 11


def test_cosine_in_closed_form() -> None:
    recipe = Recipe(epochs=20, lr=0.3, schedule="cosine")
    for epoch, step in POSITIONS:
        share = (7 * epoch + step) / 140
        assert recipe.lr_at(epoch, step, 7) == pytest.approx(0.3 * math.cos(math.pi * share / 2) ** 2, rel=1e-9)


def test_one_cycle_in_closed_form() -> None:
    recipe = Recipe(epochs=20, lr=0.3, schedule="one-cycle")
    for epoch, step in POSITIONS:
        middle = 7 * epoch + step + 0.5
        expected = 0.3 * (middle / 42 if middle < 42 else (140 - middle) / 98)
        assert recipe.lr_at(epoch, step, 7) == pytest.approx(expected, rel=1e-9)


def test_warmup_grows_in_equal_steps_and_then_leaves_the_schedule_alone() -> None:
    recipe = Recipe(epochs=20, lr=0.1, schedule="constant", warmup=2)
    assert rates(recipe)[:14] == pytest.approx([0.1 * (k + 0.5) / 14 for k in range(14)])
    assert set(rates(recipe)[14:]) == {0.1}
    for schedule in SCHEDULES:
        bare = Recipe(epochs=20, lr=0.1, schedule=schedule)
        assert rates(replace(bare, warmup=2))[14:] == rates(bare)[14:]


@st.composite
def recipes(draw: st.DrawFn) -> tuple[Recipe, int]:
    epochs = draw(st.integers(1, 60))
    milestones = sorted(draw(st.sets(st.floats(0.01, 0.99), max_size=3)))
    recipe = Recipe(
        epochs=epochs,
        lr=draw(st.floats(1e-4, 1)),
        schedule=draw(st.sampled_from(SCHEDULES)),
        milestones=tuple(milestones) if len({round(m * epochs, 9) for m in milestones}) == len(milestones) else (),
        warmup=draw(st.floats(0, 0.9)) * epochs,
    )
    return recipe, draw(st.integers(1, 9))


@given(recipes())
def test_a_rate_is_positive_and_never_above_lr(case: tuple[Recipe, int]) -> None:
    recipe, steps = case
    found = rates(recipe, steps)
    assert min(found) > 0
    assert max(found) <= recipe.lr * (1 + 1e-12)


@given(recipes())
def test_lr_is_reached_and_the_schedules_end_where_they_say(case: tuple[Recipe, int]) -> None:
    recipe, steps = case
    found = rates(replace(recipe, warmup=0.0), steps)
    n = len(found)
    if recipe.schedule == "one-cycle":
        # Half a step beside the peak at most, and half a step before zero at the end.
        assert max(found) >= recipe.lr * (1 - 0.5 / n / min(recipe.peak, 1 - recipe.peak)) - 1e-12
        assert found[-1] <= recipe.lr * 0.5 / n / (1 - recipe.peak) + 1e-12
        top = found.index(max(found))
        assert found[: top + 1] == sorted(found[: top + 1])
        assert found[top:] == sorted(found[top:], reverse=True)
    else:
        assert found[0] == recipe.lr
        assert found == sorted(found, reverse=True)
    if recipe.schedule == "cosine":
        assert found[-1] <= recipe.lr * (math.pi / 2 / n) ** 2 + 1e-12
    if recipe.schedule == "step":
        assert found[-1] == pytest.approx(recipe.lr * recipe.drop ** len(recipe.milestones))
    if recipe.schedule == "constant":
        assert set(found) == {recipe.lr}


@over(
    ("values", "words"),
    [
        ({"optimizer": "adamv"}, "did you mean 'adam'"),
        ({"schedule": "steps"}, "did you mean 'step'"),
        ({"average": "sma"}, "did you mean"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"lr": 0}, "lr: expected a positive rate, got 0"),
        ({"lr": math.inf}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"momentum": 1}, r"momentum: expected a number in \[0, 1\), got 1"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"drop": 0}, "drop"),
        ({"drop": 1.5}, "drop"),
        ({"warmup": 20}, "warmup: expected fewer than the 20 epochs, got 20"),
        ({"ema_decay": 1}, "ema_decay"),
        ({"swa_from": 1}, "swa_from"),
        ({"grad_clip": -1}, "grad_clip: expected 0 or a positive norm, got -1"),
        ({"grad_clip": math.nan}, "grad_clip"),
        ({"nesterov": True, "momentum": 0}, "nesterov: expected a momentum above 0"),
        ({"milestones": (100, 150)}, "milestones: expected rising epochs below 20, or shares .* got 100, 150"),
        ({"milestones": (0.75, 0.5)}, "milestones"),
        ({"milestones": (10, 0.5)}, "milestones"),
        ({"milestones": (0.0,)}, "milestones"),
        ({"milestones": (-3,)}, "milestones"),
        ({"milestones": (math.nan,)}, "milestones"),
    ],
)
def test_what_cannot_run_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        Recipe(**{"epochs": 20, **values})


def test_milestones_matter_to_the_step_schedule_alone() -> None:
    assert Recipe(epochs=20, schedule="cosine", milestones=(100, 150)).lr_at(0, 0, 1) == 0.1


def optimizer(recipe: Recipe) -> torch.optim.Optimizer:
    return optimizer_of(step_of(build("pgd_at"), conv()), recipe)


def test_adamw_takes_pytorchs_numbers_and_what_is_said_and_sgd_those_of_the_field() -> None:
    made = optimizer(Recipe(epochs=1, optimizer="adamw", lr=1e-3, weight_decay=0.05, optimizer_params={"eps": 1e-6}))
    (group,) = made.param_groups
    assert type(made) is torch.optim.AdamW
    assert (group["lr"], group["weight_decay"], group["eps"], group["betas"]) == (1e-3, 0.05, 1e-6, (0.9, 0.999))
    (group,) = optimizer(Recipe(epochs=1)).param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"], group["nesterov"]) == (0.1, 5e-4, 0.9, False)


def test_another_optimiser_has_rates_of_its_own_unless_they_are_said() -> None:
    def rates(**said: Any) -> tuple[float, float]:
        recipe = recipe_of(Settings.resolve({"optimizer": "adamw", **said}))
        return recipe.lr, recipe.weight_decay

    assert rates() == rates(preset="official", method="trades") == (1e-3, 0.01)
    assert rates(lr=0.3) == (0.3, 0.01)
    assert rates(preset="transformer", weight_decay=0.1) == (1e-3, 0.1)
    preset = recipe_of(Settings.resolve({"preset": "transformer", "epochs": 10}))
    assert (preset.optimizer, preset.lr, preset.weight_decay, preset.warmup) == ("adamw", 5e-4, 0.05, 0.5)


@over(
    ("name", "params", "words"),
    [
        ("adamw", {"epsilon": 1e-6}, "unexpected keyword argument 'epsilon'; see --optimizer-param"),
        ("torch.optim:LBFGS", {}, "one whose step needs no closure"),
        ("torch.optim:Adan", {}, "a function 'Adan' in torch.optim"),
        ("builtins:dict", {}, "expected a class of torch optimisers, got dict"),
    ],
)
def test_an_optimiser_that_cannot_be_made_is_refused(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, name)
        with pytest.raises(Refused, match=words):
            optimizer(Recipe(epochs=1, optimizer=name, optimizer_params=params))


def test_an_optimiser_that_only_a_file_names_is_refused() -> None:
    with pytest.raises(Refused, match="code that a file names"):
        optimizer(Recipe(epochs=1, optimizer="torch.optim:NAdam"))


def test_a_teacher_that_is_tuned_by_sgd_stands_beside_no_other_optimiser() -> None:
    with pytest.raises(Refused, match="optimizer on ciard: expected sgd"):
        optimizer_of(step_of(build("ciard"), conv()), Recipe(epochs=1, optimizer="adamw"))
