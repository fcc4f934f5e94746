"""The ten mistakes that most often make re-implementations of these methods wrong, one by one.

Each passes every smoke test: the loss falls and the curves look normal.
The first six; the others are in `test_pitfalls_of_runs.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laws import over
from nets import (
    BUDGET,
    NONE,
    Logits,
    Params,
    batch_of,
    build,
    conv,
    images,
    labels,
    linear,
    logits,
    state,
    step_of,
)
from torch import Tensor

from mmard.attacks import PGD, Untargeted
from mmard.balls import Budget
from mmard.batch import Batch
from mmard.errors import Refused
from mmard.method import Method
from mmard.methods import METHODS
from mmard.ops import ce

SCALED = ("ard", "iad_i", "rslad", "adaad", "adaiad", "mtard", "b_mtard", "absld", "saad")
ATTACKING = [name for name in METHODS if name not in NONE]


def loss(method: Method, views: Logits, y: Tensor, progress: float = 1.0) -> Tensor:
    return torch.stack([t.mean() for t in method.outer(batch_of(views, y, progress)).values()]).sum()


def slope(value: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


# --- 1. A factor 1/C hidden in the reduction of KL ---


@pytest.mark.parametrize("name", SCALED)
def test_1_an_official_preset_differs_from_the_unified_one_by_its_scale_and_nothing_else(name: str) -> None:
    views, y = logits(6, classes=10), labels(6, classes=10)
    unified, official = build(name), build(name, {f"{name}.scale": 0.1})
    assert (official.scale, unified.scale) == (0.1, 1.0)
    assert loss(official, views, y).item() / loss(unified, views, y).item() == pytest.approx(0.1, rel=1e-12)


BY_CLASSES: dict[str, Params] = {
    "dgad": {"dgad.mu": 0.0},
    "ciard": {"ciard.bounded": False},
    "saad": {"saad.alpha": 0.0},
}
"""Without the terms that by their papers depend on the number of classes: a mean square, a bound of log C, and a
difference of logits."""


@over("name", [name for name in METHODS if name != "lbgat"])  # a mean square over all logits, believed in or not
def test_1_no_loss_is_divided_by_the_number_of_classes(name: str) -> None:
    """Ten times as many classes, and nobody believes in the new ones: a mean over classes would fall to a tenth."""
    params = BY_CLASSES.get(name, {})
    views, y = logits(6, classes=3), labels(6)
    wide = {k: torch.cat([v.detach(), torch.full((6, 27), -1e4, dtype=v.dtype)], 1) for k, v in views.items()}
    assert loss(build(name, params), wide, y).item() == pytest.approx(loss(build(name, params), views, y).item())


# --- 2. Step size and radius swapped or doubled ---


@over("name", [name for name in ATTACKING if name not in ("trades", "lbgat", "hat")])
def test_2_one_step_moves_every_pixel_by_the_step_size(name: str) -> None:
    x = images(4)
    x_adv = step_of(name, conv(), attack=PGD(1, 2 / 255, "none")).run(x, labels(4)).batch.adv.value
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, 2 / 255), rtol=0, atol=1e-15)


@pytest.mark.parametrize("spec", ["trades", "kd+mmard"])
def test_2_a_divergence_from_the_prediction_at_x_needs_a_start_away_from_x(spec: str) -> None:
    """At x the gradient is zero but for rounding, of which the sign would make a step of full length."""
    slopes: list[float] = []

    def watched(b: Batch) -> Tensor:
        value = inner(b)
        slopes.append(slope(value.sum(), b.adv.value).norm().item())
        return value

    method = build(spec)
    inner = method.inner
    assert inner is not None
    for start in ("none", method.start):
        step_of(replace(method, inner=watched), conv(), attack=PGD(1, 2 / 255, start)).run(images(4), labels(4))
    assert slopes[0] < 1e-12
    assert slopes[1] > 1e-5


@pytest.mark.parametrize("name", ["pgd_at", "ard", "mart"])
def test_2_ten_steps_bring_almost_every_pixel_to_the_radius(name: str) -> None:
    x = images(6)
    step = step_of(name, linear((2, 3, 3), classes=3), attack=PGD(10, 2 / 255, "uniform"))
    delta = (step.run(x, labels(6)).batch.adv.value - x).abs()
    assert delta.max().item() == pytest.approx(BUDGET.eps, abs=1e-7)
    assert (delta > BUDGET.eps - 1e-7).double().mean() >= 0.9


def test_2_a_step_of_the_radius_in_a_ball_of_the_step_is_refused() -> None:
    with pytest.raises(Refused, match="swapped"):
        PGD(10, 8 / 255)(conv(), lambda z, _: z.sum(1), images(1), Budget(2 / 255))


# --- 3. The attack, a further forward, or the teacher in train mode ---


def test_3_the_teacher_says_the_same_before_and_after_training() -> None:
    teacher, student, x, y = conv(seed=4), conv(), images(6), labels(6)
    before, weights = teacher.eval()(x).detach(), state(teacher)
    teacher.train()
    step = step_of("adaad+igdm+mmard", student, teacher)
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        step(x, y)[0].backward()
        optimizer.step()
    assert torch.equal(teacher.eval()(x), before)
    assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())


@over("spec", [*(name for name in METHODS if "T" in build(name).nets), "rslad+igdm+mmard"])
def test_3_a_teacher_that_was_left_in_train_mode_teaches_as_in_eval_mode(spec: str) -> None:
    x, y = images(6), labels(6)
    asleep, awake = (step_of(spec, conv(), conv(seed=4).train(mode)).run(x, y).loss for mode in (False, True))
    assert torch.equal(asleep, awake)


# --- 4. Targets detached that are not, and the reverse ---


def test_4_the_target_of_trades_receives_its_gradient() -> None:
    views, y = logits(5), labels(5)
    value = loss(build("trades", {"trades.beta": 6.0}), views, y)
    p, q = views["S.x"].softmax(1), views["S.x_adv"].softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1, keepdim=True)
    onehot = torch.nn.functional.one_hot(y, 3)
    torch.testing.assert_close(slope(value, views["S.x_adv"]), 6 * (q - p) / 5)
    expected = (p - onehot + 6 * p * (p.log() - q.log() - divergence)) / 5
    torch.testing.assert_close(slope(value, views["S.x"]), expected)


@pytest.mark.parametrize("name", ["iad_i", "adaiad"])
def test_4_the_target_of_introspection_receives_its_gradient_and_the_trust_gives_none(name: str) -> None:
    views, y = logits(5), labels(5)
    views["T.x_adv"].requires_grad_()
    value = build(name).outer(batch_of(views, y))["self"].sum()
    p, q = views["S.x"].softmax(1), views["S.x_adv"].softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1, keepdim=True)
    trust = views["T.x_adv"].softmax(1).gather(1, y[:, None]) ** 0.1
    torch.testing.assert_close(slope(value, views["S.x"]), (1 - trust) * p * (p.log() - q.log() - divergence))
    torch.testing.assert_close(slope(value, views["S.x_adv"]), (1 - trust) * (q - p))


def test_4_the_weight_of_mart_receives_its_gradient() -> None:
    """The slope at S(x) has two parts, one through the target of the divergence and one through its weight 1 - p_y."""
    views, y = logits(5), labels(5)
    value = build("mart").outer(batch_of(views, y))["nat"].sum()
    p, q = views["S.x"].softmax(1), views["S.x_adv"].softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1, keepdim=True)
    true = p.gather(1, y[:, None])
    onehot = torch.nn.functional.one_hot(y, 3)
    through_target = (1.0000001 - true) * p * (p.log() - q.log() - divergence)
    through_weight = -divergence * true * (onehot - p)
    torch.testing.assert_close(slope(value, views["S.x"]), 5 * (through_target + through_weight))


@pytest.mark.parametrize("spec", ["adaad", "adaiad", "dgad", "rslad+mmard"])
def test_4_the_teacher_is_differentiated_in_the_attack_and_constant_in_the_loss(spec: str) -> None:
    student, teacher, x, y = conv(), conv(seed=4).eval(), images(4), labels(4)
    method = build(spec, {"mmard.guide": 3.0} if "mmard" in spec else {})
    outcome = step_of(method, student, teacher).run(x, y)
    b = outcome.batch
    assert not b.T(b.adv).requires_grad
    assert not b.T(b.x).requires_grad
    outcome.loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    # Cut the teacher's side of the attack's gradient, and the attack goes elsewhere.

    class Cut(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return teacher(z).detach() + 0 * z.sum()

    assert not torch.equal(step_of(method, conv(), Cut()).run(x, y).batch.adv.value, b.adv.value)


@over("name", [n for n in ATTACKING if n not in ("adaad", "adaiad", "dgad", "saad")])
def test_4_no_other_attack_depends_on_the_teachers_slope(name: str) -> None:
    teacher, x, y = conv(seed=4).eval(), images(4), labels(4)

    class Cut(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return teacher(z).detach() + 0 * z.sum()

    plain, cut = (step_of(name, conv(), t).run(x, y) for t in (teacher, Cut()))
    assert torch.equal(plain.batch.adv.value, cut.batch.adv.value)


# --- 5. A temperature without its square, or on one side ---

TEMPERED = {"kd": "S.x", "ard": "S.x_adv", "iad_i": "S.x_adv", "adaiad": "S.x_adv", "peeraid": "S.x_adv"}


@pytest.mark.parametrize("name", TEMPERED)
def test_5_the_gradient_keeps_its_size_as_the_temperature_grows(name: str) -> None:
    y, lengths = labels(6), []
    for tau in (30.0, 100.0):
        views = logits(6)
        terms = build(name, {f"{name}.tau": tau}).outer(batch_of(views, y))
        tempered = next(term for term in terms.values())
        lengths.append(slope(tempered.mean(), views[TEMPERED[name]]).norm().item())
    assert lengths[1] == pytest.approx(lengths[0], rel=0.05)


@pytest.mark.parametrize("name", ["kd", "ard"])
def test_5_a_great_temperature_compares_centred_logits(name: str) -> None:
    views, y = logits(6), labels(6)
    delta = views["T.x"] - views[TEMPERED[name]]
    limit = (delta - delta.mean(1, keepdim=True)).square().sum(1).mean() / (2 * 3)
    assert loss(build(name, {f"{name}.tau": 1e3}), views, y).item() == pytest.approx(limit.item(), rel=0.01)


@over("name", TEMPERED)
@over("tau", [1.0, 5.0, 30.0])
def test_5_both_sides_are_tempered_so_the_best_student_is_the_teacher_at_any_temperature(name: str, tau: float) -> None:
    views, y = logits(6), labels(6)
    for point in ("x", "x_adv"):
        views[f"S.{point}"] = (views["T.x"] + 2.0).clone().requires_grad_()
        views[f"T.{point}"] = views[f"P.{point}"] = views["T.x"]
    labels_apart = {"peeraid.peer_label": 0.0} if name == "peeraid" else {}
    value = loss(build(name, {f"{name}.tau": tau, **labels_apart}), views, y)
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert slope(value, views[TEMPERED[name]]).norm() < 1e-9


# --- 6. In-place arithmetic and shared memory ---


@over("name", METHODS)
def test_6_nothing_that_a_step_is_given_or_hands_back_is_changed_behind_ones_back(name: str) -> None:
    x, y = images(4), labels(4)
    kept = x.clone()
    outcome = step_of(name, conv()).run(x, y)
    b = outcome.batch
    assert torch.equal(b.x.value, kept)
    assert b.x.value is x
    views = [b.S(b.point(p)) for p in build(name).forwards["S"]]
    before = [v.detach().clone() for v in views]
    outcome.loss.backward()
    assert all(torch.equal(v.detach(), was) for v, was in zip(views, before, strict=True))
    if b.x_adv is not None:
        assert not b.adv.value.requires_grad
        b.adv.value.fill_(0.0)  # whoever writes into x_adv does not write into x
        assert torch.equal(x, kept)


@pytest.mark.parametrize("restarts", [1, 3])
def test_6_an_attack_never_hands_back_the_memory_of_x(restarts: int) -> None:
    model, x = linear((2, 3, 3)), images(3)
    model[1].weight.data.zero_()  # no gradient, no start: the attack has nowhere to go
    x_adv = PGD(2, 0.01, "none", restarts)(model, Untargeted(labels(3, classes=2), ce), x, BUDGET)
    assert torch.equal(x_adv, x)
    assert x_adv.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_every_pitfall_has_a_test() -> None:
    files = Path(__file__).parent.glob("test_pitfalls*.py")
    names = [name for file in files for name in re.findall(r"^def test_(\d+)_", file.read_text("utf-8"), re.MULTILINE)]
    assert {int(name) for name in names} == set(range(1, 11))
