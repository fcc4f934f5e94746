"""APGD: closed forms on linear models, its losses recomputed, and what it may never do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import generator, images, labels, linear
from reference_autoattack import Scene, scene_images
from torch import Tensor, nn

from mmard.attacks import apgd
from mmard.attacks import apgd as climb
from mmard.attacks.apgd import APGD, dlr, sparse_start, starting_point, targeted_dlr
from mmard.balls import NORMS, Budget
from mmard.errors import Refused

SHAPE = (2, 3, 3)
NORM = pytest.mark.parametrize("norm", NORMS)
EPS = {"linf": 0.02, "l2": 0.12, "l1": 0.4}


class Counted(nn.Module):
    """Counts the samples that go through a network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked, self.calls = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        self.calls += 1
        return self.inner(x)


def nearest(model: nn.Sequential, x: Tensor, y: Tensor, norm: str) -> np.ndarray:
    """Distance of each sample to the nearest decision boundary of a linear model, (B,); of the box, l1 alone knows."""
    weight, bias = (p.detach().numpy() for p in model[1].parameters())
    logits = x.flatten(1).numpy() @ weight.T + bias
    distances = []
    for point, z, k in zip(x.flatten(1).numpy(), logits, y.tolist(), strict=True):
        slopes = weight - weight[k]
        others = np.arange(len(z)) != k
        if norm == "l1":
            distances.append(min(along_the_steepest(point, slopes[j], z[k] - z[j]) for j in np.flatnonzero(others)))
            continue
        lengths = np.linalg.norm(slopes, axis=1, ord={"linf": 1, "l2": 2}[norm])
        distances.append(((z[k] - z) / np.where(others, lengths, 1))[others].min())
    return np.array(distances)


def along_the_steepest(x: np.ndarray, slope: np.ndarray, missing: float) -> float:
    """How far one must go, the steepest coordinate first and each to the edge of the box, to rise by so much."""
    gone = 0.0
    for i in np.argsort(-np.abs(slope)):
        step = min(1 - x[i] if slope[i] > 0 else x[i], missing / abs(slope[i]))
        gone, missing = gone + step, missing - step * abs(slope[i])
    return gone if missing < 1e-12 else np.inf


def scene(classes: int, n: int = 24) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A linear model and images that it reads rightly, away from the box."""
    model, x = linear(SHAPE, classes), images(n)
    with torch.no_grad():
        model[1].bias -= model(x).mean(0)
        return model, x, model(x).argmax(1)


@NORM
@pytest.mark.parametrize(
    ("attack", "classes", "enough"),
    [
        (APGD("ce", steps=30), 2, 1.02),
        (APGD("targeted-dlr", steps=30, targets=3), 4, 1.02),
        (APGD("targeted-dlr", steps=30, targets=5), 6, 1.02),
        # Toward no class in particular, it may climb to another corner of the ball than the nearest boundary's.
        (APGD("ce", steps=30), 3, 1.7),
        (APGD("dlr", steps=30), 3, 1.7),
    ],
    ids=lambda v: getattr(v, "loss", v),
)
def test_a_linear_model_falls_where_the_ball_reaches_its_boundary_and_never_before(
    attack: APGD, classes: int, enough: float, norm: str
) -> None:
    model, x, y = scene(classes)
    if norm == "l1":  # its smallest step is a tenth of the radius, and the box cuts the ball into many corners
        attack, enough = replace(attack, steps=100), max(enough, 1.2)
    distance = nearest(model, x, y, norm)
    near = np.flatnonzero((distance > 1e-3) & (distance < (3 if norm == "l1" else 0.098 / enough)))[:3]
    assert len(near) == 3
    for i in near:
        one, label = x[i : i + 1], y[i : i + 1]
        beyond, short = Budget(float(distance[i]) * enough, norm), Budget(float(distance[i]) * 0.999, norm)
        fallen = attack(model, one, label, beyond, generator=generator(0))
        assert model(fallen).argmax(1) != label
        assert float(beyond.distance(fallen, one)) <= beyond.eps * (1 + 1e-9)
        assert torch.equal(attack(model, one, label, short, generator=generator(0)), one)


@NORM
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_in_the_ball_and_the_box_and_the_image_itself_where_nothing_was_found(norm: str, batch: int) -> None:
    model = Scene()
    x = scene_images(batch).double() / 255
    y = model(x).argmax(1)
    budget = Budget(EPS[norm], norm)
    before = torch.random.get_rng_state()
    x_adv = APGD("targeted-dlr", steps=10, targets=9)(model, x, y, budget, generator=generator(3))
    assert torch.equal(before, torch.random.get_rng_state())
    misread = model(x_adv).argmax(1) != y
    assert (budget.distance(x_adv, x) <= budget.eps * (1 + 1e-9)).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad
    assert torch.equal((x_adv != x).flatten(1).any(1), misread)
    again = APGD("targeted-dlr", steps=10, targets=9)(model, x, y, budget, generator=generator(3))
    assert torch.equal(x_adv, again)


@NORM
def test_as_on_an_accelerator_where_samples_are_dropped_at_checkpoints_alone(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Counted(Scene()), scene_images(24).double() / 255
    y = model(x).argmax(1)
    budget, attack = Budget(EPS[norm], norm), APGD("targeted-dlr", steps=40, targets=3)
    model.asked = 0
    prompt = attack(model, x, y, budget, generator=generator(0))
    asked, model.asked = model.asked, 0
    monkeypatch.setattr(climb, "prompt", lambda x: False)
    late = attack(model, x, y, budget, generator=generator(0))
    fallen = model(late).argmax(1) != y
    assert 0 < fallen.sum() < len(x)
    assert torch.equal(fallen, model(prompt).argmax(1) != y)
    assert asked < model.asked


@NORM
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "attack", [APGD("targeted-dlr", steps=30, targets=9), APGD("ce", steps=20, restarts=6)], ids=["targets", "restarts"]
)
def test_climbs_side_by_side_are_climbs_in_turn(
    norm: str, late: bool, attack: APGD, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples fall in several of the climbs, after which the next start is drawn for fewer."""
    model, x = Counted(Scene()), scene_images(20).double() / 255
    y = model(x).argmax(1)
    budget = Budget(EPS[norm] * 0.6, norm)
    if late:
        monkeypatch.setattr(climb, "prompt", lambda x: False)
    found, calls = [], []
    for room in (1, 2**20):
        monkeypatch.setattr(apgd, "ROOM", {True: room, False: room})
        model.calls, drawn = 0, generator(7)
        found.append(attack(model, x, y, budget, generator=drawn))
        calls.append(model.calls)
        found.append(torch.rand(3, generator=drawn, dtype=x.dtype))
    assert torch.equal(found[1], found[3]), "as many numbers are drawn"
    fallen, also = ((model(each).argmax(1) != y) for each in (found[0], found[2]))
    assert 0 < fallen.sum() < len(x)
    assert torch.equal(fallen, also)
    if not late:
        torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-9)
    assert calls[1] < calls[0]


def test_who_has_fallen_costs_nothing_more() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Anything but the clean image is read as class 1."""
            moved = (x - clean).flatten(1).abs().sum(1, keepdim=True)
            return torch.cat((0.1 - moved, 10 * moved), 1)

    clean = images(5)
    model = Counted(Wrong())
    x_adv = APGD("ce", steps=100, restarts=3)(
        model, clean, torch.zeros(5, dtype=torch.int64), Budget(0.05), generator=generator(0)
    )
    assert (x_adv != clean).flatten(1).any(1).all()
    assert model.asked == 5 + 5  # the clean images, and the start


def test_restarts_and_targets_are_for_those_who_stand() -> None:
    model, x, y = scene(6)
    counted = Counted(model)
    distance = nearest(model, x, y, "linf")
    eps = float(np.median(distance))
    x_adv = APGD("ce", steps=7, restarts=2)(counted, x, y, Budget(eps), generator=generator(0))
    standing = int((model(x_adv).argmax(1) == y).sum())
    assert 0 < standing < len(x)
    # Those who stand were asked at the start and after every step, twice.
    assert counted.asked >= len(x) + 2 * 8 * standing
    assert counted.asked < len(x) + 2 * 8 * len(x)


def test_a_random_network_is_asked_as_often_as_said_and_nobody_is_dropped() -> None:
    model, x, y = scene(3, n=4)
    counted = Counted(model)
    APGD("ce", steps=5, eot=3)(counted, x, y, Budget(0.1), generator=generator(0))
    assert counted.asked == 4 * (1 + 3 + 4 * 3 + 1)  # ranking; start; four steps; a last look without a gradient


@given(st.integers(0, 10**6), st.integers(4, 12))
def test_the_losses_are_those_of_the_paper(seed: int, classes: int) -> None:
    z = torch.randn(6, classes, generator=generator(seed), dtype=torch.float64)
    y = torch.randint(classes, (6,), generator=generator(seed + 1))
    target = (y + 1) % classes
    for row in range(6):
        v = z[row].numpy()
        top = np.sort(v)[::-1]
        true = v[y[row]]
        rival = np.delete(v, int(y[row])).max()
        untargeted = -(true - rival) / (top[0] - top[2])
        targeted = -(true - v[target[row]]) / (top[0] - (top[2] + top[3]) / 2)
        assert float(dlr(z, y)[row]) == pytest.approx(untargeted, rel=1e-9)
        assert float(targeted_dlr(z, y, target)[row]) == pytest.approx(targeted, rel=1e-9)
    for a, b in ((2.5, 0.0), (1.0, -7.0), (1e3, 4.0)):  # neither scale nor shift of the logits is seen
        torch.testing.assert_close(dlr(a * z + b, y), dlr(z, y), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(targeted_dlr(a * z + b, y, target), targeted_dlr(z, y, target), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("norm", "shrink", "radius"), [("linf", 0, 1), ("l2", 0, 1), ("l1", 0, 1), ("l1", 1, 3)])
def test_the_start_lies_on_the_sphere(norm: str, shrink: int, radius: int) -> None:
    x, budget = images(7), Budget(0.05, norm)
    start = (
        sparse_start(x, budget, bool(shrink), generator(0)) if norm == "l1" else starting_point(x, budget, generator(0))
    )
    np.testing.assert_allclose(budget.distance(start, x).numpy(), radius * 0.05, rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "cross"}, "loss 'cross': expected one of ce, dlr, targeted-dlr, got 'cross'"),
        ({"steps": 0}, r"APGD(steps=0): expected at least 1, got 0"),
        ({"targets": 3}, r"APGD(targets=3): expected the loss targeted-dlr, got 'ce'"),
    ],
)
def test_settings_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(Refused) as refused:
        APGD(**settings)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    ("attack", "classes", "words"),
    [
        (APGD("dlr"), 2, "APGD(dlr): expected 3 classes, got 2"),
        (APGD("targeted-dlr", targets=2), 3, "APGD(targeted-dlr): expected 4 classes, got 3"),
        (APGD("targeted-dlr", targets=4), 4, "APGD(targets=4): expected up to 3 wrong classes, got 4"),
    ],
)
def test_too_few_classes_are_refused(attack: APGD, classes: int, words: str) -> None:
    model, x = linear(SHAPE, classes), images(2)
    with pytest.raises(Refused) as refused:
        attack(model, x, labels(2, classes=classes), Budget(0.1), generator=generator(0))
    assert str(refused.value) == words
