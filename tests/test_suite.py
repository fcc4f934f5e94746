"""Attacks of every kind in one evaluation: their order, what all of them leave, and evaluations that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import little
import numpy as np
import pytest
from little import matcher, net, picture_set, short
from torch import Tensor, nn

import mmard.attacks
from mmard.attacks import ATTACKS, named
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.evaluation.evaluate import Loop, Measured

BUDGET = Budget(0.05)
SAID = {"split": "test", "which": "best", "seed": 3, "batch_size": 20}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack and its attacks under their own names, at a fraction of their effort."""

    def less(*arguments: Any) -> Any:
        return short(named(*arguments), steps=3, queries=10, targets=2)

    monkeypatch.setattr(mmard.attacks, "named", less)


def found(*specs: str, model: nn.Module | None = None, **more: Any) -> dict[str, Measured]:
    results = little.measured(model or net(seed=2), picture_set(60, seed=5), specs, BUDGET, **SAID, **more)
    assert len({each.score.slug for each in results}) == len(results)
    return {each.score.attack: each for each in results}


def test_each_is_what_it_is_alone_and_the_worst_covers_all() -> None:
    model, images = net(seed=2), picture_set(60, seed=5)
    together = found("pgd-2", "aa", "cw-2")
    parts = ["aa.apgd-ce", "aa.apgd-dlr", "aa.fab-t", "aa.square"]
    assert list(together) == ["clean", "pgd-2", *parts, "aa", "cw-2", "worst_of_pgd-2,aa,cw-2"]
    clean, *singles = little.measured(model, images, ["pgd-2", "cw-2"], BUDGET, **SAID)[:3]
    own, *ensemble = little.measured(model, images, ["aa"], BUDGET, **SAID)
    assert np.array_equal(own.mask, clean.mask)
    for each in (clean, *singles, *ensemble):
        assert np.array_equal(together[each.score.attack].mask, each.mask)
        assert together[each.score.attack].score.label == each.score.label
    worst = together["worst_of_pgd-2,aa,cw-2"]
    assert np.array_equal(worst.mask, singles[0].mask & ensemble[-1].mask & singles[1].mask)
    assert worst.score.correct == worst.mask.sum() > 0
    assert worst.score.label == "right under each of pgd-2, aa, cw-2"
    parts_seconds = sum(together[name].score.seconds for name in ("clean", "pgd-2", "aa", "cw-2"))
    assert worst.score.seconds == pytest.approx(parts_seconds, abs=2e-3)


@pytest.mark.parametrize("spec", [name for name, kind in ATTACKS.items() if kind.backend])
def test_every_attack_of_autoattack_has_its_spelling(spec: str) -> None:
    if spec == "apgd-t":
        with pytest.raises(Refused, match="attack 'apgd-t': expected four classes or more, got 3"):
            found(spec)  # the little pictures have three classes
        return
    assert list(found(f" {spec.upper()} "))[-1] == spec


def test_an_unknown_attack_is_refused_before_the_first() -> None:
    class Untouched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("an attack has begun")

    with pytest.raises(
        Refused, match=r"attack 'sqare': expected a spelling such as fgsm, pgd-20, .*square, .*did you mean 'square'"
    ):
        found("pgd-2", "sqare", model=Untouched())
    with pytest.raises(Refused, match=r"expected a spelling such as .*, aa, aa-rand, .*; did you mean 'apgd-t'\?"):
        found("apgd-tt", model=Untouched())


def test_progress_is_told_by_all_in_the_same_terms() -> None:
    told: list[tuple[str, int, int, int]] = []
    results = found("pgd-2", "apgd-ce", progress=lambda *now: told.append(now))
    for name in ("clean", "pgd-2", "apgd-ce"):
        last = [now for now in told if now[0] == name][-1]
        assert last[1] == last[2]
        assert last[3] == results[name].score.correct
    assert all(standing <= done <= of for _, done, of, standing in told)


def test_a_killed_evaluation_goes_on_and_others_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die(name: str, *_: int) -> None:
        if name == "fab-t":
            raise Killed

    with pytest.raises(Killed):
        found("aa", folder=tmp_path, progress=die)
    (folder,) = tmp_path.glob("aa-*")
    assert folder.name.startswith("aa-linf-0.05000-seed3-")
    attacked: list[str] = []
    stage = Loop._survivors

    def noting(*arguments: Any) -> tuple[Tensor, bool]:
        attacked.append(arguments[-1].split(",")[0])
        return stage(*arguments)

    monkeypatch.setattr(Loop, "_survivors", noting)
    again = found("aa", folder=tmp_path)
    assert set(attacked) == {"square"}, "what is left after the only batch of FAB"
    assert {name: each.mask.tolist() for name, each in again.items()} == {
        name: each.mask.tolist() for name, each in found("aa").items()
    }
    # Other weights, as those of a run that was trained further, begin anew.
    found("aa", model=net(seed=3), folder=tmp_path)
    assert len(list(tmp_path.glob("aa-*"))) == 2


def test_a_model_without_weights_is_attacked() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return matcher()(x)

    masks = [found("apgd-ce", model=model)["apgd-ce"].mask for model in (Fixed(), matcher())]
    assert np.array_equal(*masks)
