"""Every formula against numbers taken once from the papers' equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import over
from nets import Logits, batch_of, build, gradients, loss_of

from mmard.method import Method
from mmard.methods import METHODS, PLUGINS

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "formulas.json").read_text(encoding="utf-8"))
HALF_A_DIGIT = 0.51e-6
"""The recorded values have six decimals."""


def golden_logits() -> Logits:
    views = {k: torch.tensor(v, dtype=torch.float64) for k, v in GOLDEN["logits"].items()}
    return {k: v.requires_grad_(k.startswith("S")) for k, v in views.items()}


def remembering(method: Method, memory: dict[str, Any]) -> Method:
    """The method with these values in the buffers of its memory, by the last part of their names."""
    if memory:
        assert method.memory is not None
        state = {
            name: torch.tensor(memory.get(name.split(".")[-1], [0.0] * 3 if value.ndim else value.item()))
            for name, value in method.memory.state_dict().items()
        }
        method.memory.load_state_dict(state)
        method.memory.double()
    return method


@over("row", GOLDEN["losses"], ids=lambda row: row["id"])
def test_the_loss_and_its_gradients_are_the_recorded_ones(row: dict[str, Any]) -> None:
    views = golden_logits()
    method = remembering(build(row["method"], row["params"]), row.get("memory", {}))
    loss = loss_of(method, views, torch.tensor(row.get("y", GOLDEN["y"])), row["progress"])
    slopes = gradients(loss, views)
    assert loss.item() == pytest.approx(row["loss"], abs=HALF_A_DIGIT)
    for name, norm in row["gradient"].items():
        assert slopes[name].norm().item() == pytest.approx(norm, abs=HALF_A_DIGIT), name
    assert slopes["S.x_adv"][0, 0].item() == pytest.approx(row["first"], abs=HALF_A_DIGIT)


def test_every_method_and_every_plug_in_with_a_published_loss_has_a_recorded_number() -> None:
    assert {part for row in GOLDEN["losses"] for part in row["method"].split("+")} == {
        *METHODS,
        *PLUGINS,
    } - {"mmard", "awp", "temperature"}  # the first has no published loss, the others have their host's


@pytest.mark.parametrize("row", GOLDEN["wrong"], ids=lambda row: row["id"])
def test_the_gradient_is_not_the_one_of_a_known_mistake(row: dict[str, Any]) -> None:
    views = golden_logits()
    loss = loss_of(build(row["method"], row["params"]), views, torch.tensor(GOLDEN["y"]), row["progress"])
    assert loss.item() == pytest.approx(row["loss"], abs=HALF_A_DIGIT), "the value does not tell them apart"
    for name, norm in row["gradient"].items():
        assert abs(gradients(loss, views)[name].norm().item() - norm) > 0.1


def test_ard_tends_to_the_recorded_limit_as_its_temperature_grows() -> None:
    (row,) = GOLDEN["limits"]
    y, found = torch.tensor(GOLDEN["y"]), []
    for tau in (1e3, 2e3, 4e3):
        views = golden_logits()
        loss = loss_of(build("ard", {"ard.tau": tau}), views, y)
        slope = gradients(loss, views)["S.x_adv"]
        found.append(torch.cat([loss.detach()[None], slope.flatten()]))
    assert (found[2] - found[1]).norm() < 0.6 * (found[1] - found[0]).norm()
    # The error is a/tau + b/tau^2 + ...: two steps of Richardson's extrapolation are rid of both.
    first, second = 2 * found[1] - found[0], 2 * found[2] - found[1]
    limit = (4 * second - first) / 3
    assert limit[0].item() == pytest.approx(row["loss"], abs=1e-6)
    assert limit[1:].norm().item() == pytest.approx(row["gradient"], abs=1e-6)
    assert limit[1].item() == pytest.approx(row["first"], abs=1e-6)


INNERS = [(method, row) for row in GOLDEN["inner"] for method in row["methods"]]


@over(("name", "row"), INNERS, ids=[f"{m}: {row['id']}" for m, row in INNERS])
def test_the_attack_climbs_along_the_recorded_gradients(name: str, row: dict[str, Any]) -> None:
    inner, views = build(name).inner, golden_logits()
    assert inner is not None
    views["T.x_adv"].requires_grad_()
    value = inner(batch_of(views, torch.tensor(GOLDEN["y"])))
    assert value.shape == (2,)
    slope = gradients(value.sum(), views)["S.x_adv"][0]
    assert slope.tolist() == pytest.approx(row["S.x_adv"], abs=HALF_A_DIGIT)
    through_teacher = gradients(value.sum(), views, "T")["T.x_adv"][0]
    if row["T.x_adv"] is None:
        assert (through_teacher == 0).all()
    else:
        assert through_teacher.tolist() == pytest.approx(row["T.x_adv"], abs=HALF_A_DIGIT)


def test_every_attack_of_a_method_has_a_recorded_gradient() -> None:
    attacking = {name for name in METHODS if build(name).inner is not None}
    assert {method for method, _ in INNERS} == attacking - {"saad"}  # of a slope, which logits do not have


@pytest.mark.parametrize("row", GOLDEN["wrong_inner"], ids=lambda row: row["id"])
def test_the_teachers_side_is_not_the_one_of_soft_cross_entropy(row: dict[str, Any]) -> None:
    for name in row["methods"]:
        inner, views = build(name).inner, golden_logits()
        assert inner is not None
        views["T.x_adv"].requires_grad_()
        value = inner(batch_of(views, torch.tensor(GOLDEN["y"])))
        wrong = torch.tensor(row["T.x_adv"], dtype=torch.float64)
        assert (gradients(value.sum(), views, "T")["T.x_adv"][0] - wrong).norm() > 0.1
        # What the mistake is: -sum_k p_T(k) log p_S(k), differentiated by the teacher's logits.
        T, S = views["T.x_adv"], views["S.x_adv"]
        (mistake,) = torch.autograd.grad(-(T.softmax(1) * S.log_softmax(1)).sum(), T)
        assert mistake[0].tolist() == pytest.approx(row["T.x_adv"], abs=HALF_A_DIGIT)
