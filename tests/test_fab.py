"""FAB: the shortest way to a hyperplane within the box, and the nearest boundary of linear models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import generator, images, labels, linear
from reference_autoattack import Scene, scene_images
from torch import Tensor

from mmard.attacks import fab
from mmard.attacks.fab import FAB, shortest_way
from mmard.balls import NORMS, Budget
from mmard.errors import Refused

SHAPE = (2, 3, 3)
NORM = pytest.mark.parametrize("norm", NORMS)
EPS = {"linf": 0.02, "l2": 0.12, "l1": 0.4}


def way_by_bisection(u: np.ndarray, w: np.ndarray, level: float, norm: str) -> np.ndarray:
    """The same, one point at a time: how far must every coordinate go, against w and within the box?"""
    if w @ u < level:
        w, level = -w, -level
    room = np.where(w < 0, 1 - u, u)
    if norm == "l1":  # the heaviest first
        d, missing = np.zeros_like(u), w @ u - level
        for i in np.argsort(-np.abs(w)):
            step = min(room[i], missing / abs(w[i])) if w[i] else 0
            d[i], missing = -np.sign(w[i]) * step, missing - step * abs(w[i])
        return d
    pace = np.abs(w) if norm == "l2" else np.ones_like(w)

    def way(t: float) -> np.ndarray:
        return np.where(w == 0, 0, -np.sign(w) * np.minimum(t * pace, room))

    low, high = 0.0, 1e9
    for _ in range(300):
        t = (low + high) / 2
        low, high = (t, high) if w @ (u + way(t)) > level else (low, t)
    return way(high)


@st.composite
def hyperplanes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the box, many of them on its faces, and hyperplanes on both sides, some out of reach."""
    g = generator(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 5, 40]))
    u = (1.6 * torch.rand(n, d, generator=g, dtype=torch.float64) - 0.3).clamp(0, 1)
    w = torch.randn(n, d, generator=g, dtype=torch.float64) * draw(st.sampled_from([1e-3, 1.0, 50.0]))
    w = torch.where(torch.rand(n, d, generator=g) < 0.2, 0.0, w)
    reach = draw(st.sampled_from([0.0, 0.1, 1.0])) * w.abs().sum(1)
    level = (w * u).sum(1) + reach * (2 * torch.rand(n, generator=g, dtype=torch.float64) - 1)
    return u, w, level


@NORM
@pytest.mark.parametrize("prompt", [True, False])
@given(hyperplanes())
def test_the_shortest_way(norm: str, prompt: bool, scene: tuple[Tensor, Tensor, Tensor]) -> None:
    u, w, level = scene
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fab, "prompt", lambda x: prompt)
        d = shortest_way(u, w, level, norm)
    assert torch.isfinite(d).all()
    assert ((u + d >= -1e-12) & (u + d <= 1 + 1e-12)).all()
    for i in range(len(u)):
        exact = way_by_bisection(u[i].numpy(), w[i].numpy(), float(level[i]), norm)
        np.testing.assert_allclose(d[i].numpy(), exact, rtol=0, atol=1e-7)


@NORM
def test_no_slope_no_way(norm: str) -> None:
    u = images(3).flatten(1)
    for level in (0.0, 1.0, -1.0):
        d = shortest_way(u, torch.zeros_like(u), torch.full((3,), level, dtype=u.dtype), norm)
        assert torch.equal(d, torch.zeros_like(u))


@NORM
@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_nearest_boundary_of_a_linear_model(norm: str, boxed: bool, batch: int) -> None:
    model, x = linear(SHAPE), images(batch)
    if boxed:  # two coordinates in three within a hair of a face
        k = torch.arange(18).view(SHAPE) % 3
        x = torch.where(k == 0, 0.01 * x, torch.where(k == 1, 1 - 0.01 * x, x))
    y = model(x).argmax(1)
    weight = model[1].weight.detach()
    slope = torch.stack([weight[1 - k] - weight[k] for k in y.tolist()])
    gap = (model(x).gather(1, (1 - y)[:, None]) - model(x).gather(1, y[:, None]))[:, 0].detach()
    level = (slope * x.flatten(1)).sum(1) - gap
    wide = Budget(18.0 if norm == "l1" else 1.0, norm)  # all of the box
    found, within = FAB(steps=60).walk(model, x, y, 1 - y, wide)
    for i in range(batch):
        way = way_by_bisection(x[i].flatten().numpy(), slope[i].numpy(), float(level[i]), norm)
        exact = np.linalg.norm(way, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm])
        distance = float(wide.distance(found[i : i + 1], x[i : i + 1]))
        assert exact - 1e-9 <= distance <= 1.01 * exact
    assert within.all()
    assert (model(found).argmax(1) != y).all()
    assert found.min() >= 0
    assert found.max() <= 1


@NORM
def test_a_linear_model_falls_exactly_where_the_ball_reaches_its_boundary(norm: str) -> None:
    model, x = linear(SHAPE, 5), images(12)
    with torch.no_grad():
        model[1].bias -= model(x).mean(0)
        logits = model(x).detach()
    y, weight = logits.argmax(1), model[1].weight.detach()
    checked = 0
    for i in range(len(x)):
        slopes = weight - weight[y[i]]
        gaps = (logits[i, y[i]] - logits[i]).tolist()
        levels = [float(slope @ x[i].flatten()) + gap for slope, gap in zip(slopes, gaps, strict=True)]
        ways = [
            way_by_bisection(x[i].flatten().numpy(), slopes[k].numpy(), levels[k], norm) for k in range(5) if k != y[i]
        ]
        exact = min(np.linalg.norm(way, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm]) for way in ways)
        if exact < 1e-3 or checked == 4:
            continue
        checked += 1
        beyond = Budget(1.01 * exact, norm)
        fallen = FAB(steps=30, targets=4)(model, x[i : i + 1], y[i : i + 1], beyond)
        assert (model(fallen).argmax(1) != y[i]).all()
        assert float(beyond.distance(fallen, x[i : i + 1])) <= beyond.eps
        short = Budget(0.999 * exact, norm)
        assert torch.equal(FAB(steps=30, targets=4)(model, x[i : i + 1], y[i : i + 1], short), x[i : i + 1])
    assert checked == 4


@NORM
def test_dropping_samples_late_as_on_an_accelerator_or_never_changes_no_verdict(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Scene(), scene_images(24).double() / 255
    y = model(x).argmax(1)
    target = model(x).sort(dim=1).indices[:, -2]
    budget = Budget(EPS[norm], norm)
    attack = FAB(steps=30)
    found, broken = attack.walk(model, x, y, target, budget, stop=True)
    nearest, within = attack.walk(model, x, y, target, budget)
    assert 0 < broken.sum() < len(x)
    assert torch.equal(broken, within)
    assert (budget.distance(found, x) >= budget.distance(nearest, x))[broken].all()
    monkeypatch.setattr(fab, "prompt", lambda x: False)
    late, still = attack.walk(model, x, y, target, budget, stop=True)
    assert torch.equal(still, broken)
    assert (model(late).argmax(1) != y)[broken].all()


@NORM
@pytest.mark.parametrize("late", [False, True])
def test_targets_side_by_side_are_targets_in_turn(norm: str, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Scene(), scene_images(24).double() / 255
    y = model(x).argmax(1)
    budget, attack = Budget(EPS[norm], norm), FAB(steps=20, targets=9)
    if late:
        monkeypatch.setattr(fab, "prompt", lambda x: False)
    fallen = []
    for room in (1, 4 * x.numel(), 2**20):  # one, four, and all at once
        monkeypatch.setattr(fab, "ROOM", {True: room, False: room})
        x_adv = attack(model, x, y, budget)
        misread = model(x_adv).argmax(1) != y
        assert torch.equal((x_adv != x).flatten(1).any(1), misread)
        assert (budget.distance(x_adv, x) <= budget.eps).all()
        fallen.append(misread)
    assert 0 < fallen[0].sum() < len(x)
    assert torch.equal(fallen[0], fallen[1])
    assert torch.equal(fallen[0], fallen[2])


def test_no_weight_collects_a_gradient() -> None:
    model, x = Scene(), scene_images(4).double() / 255
    FAB(steps=3, targets=2)(model, x, model(x).argmax(1), Budget(0.02))
    assert all(p.grad is None for p in model.parameters())


def test_refusals() -> None:
    with pytest.raises(Refused, match=r"FAB\(steps=0\): expected at least 1, got 0"):
        FAB(steps=0)
    with pytest.raises(Refused, match=r"FAB\(targets=9\): expected up to 1 wrong classes, got 9"):
        FAB()(linear(SHAPE), images(2), labels(2, classes=2), Budget(0.1))
