"""Curves of accuracy over the radius and over steps, against what each point is by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import little
import pytest
import torch
from little import matcher, net, picture_set, protocol
from test_boundary import Linear, greys
from torch import Tensor, nn

from mmard.attacks import PGD, read_attack
from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.evaluation.curves import eps_label, grey_radius, over_eps, over_steps, radii, steps_label
from mmard.evaluation.evaluate import Measured

SAID: dict[str, Any] = {"split": "test", "which": "best", "seed": 3, "batch_size": 20}


def measured(model: nn.Module, images: ImageSet, spec: str, budget: Budget) -> list[Measured]:
    return little.measured(model, images, [spec], budget, **SAID)


def curve(model: nn.Module, images: ImageSet, spec: str, budget: Budget, at: list[float]) -> dict[float, int]:
    how = protocol([spec], budget, seed=3, batch_size=20)
    body = over_eps(model, images, how.attacks[0], how, *measured(model, images, spec, budget), radii=at)
    assert [p["value"] for p in body["points"]] == sorted(p["value"] for p in body["points"])
    assert all(p["n"] == len(images) for p in body["points"])
    return {p["value"]: p["correct"] for p in body["points"]}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("spec", ["fgsm", "pgd-20"])
def test_a_linear_network_falls_at_its_distances(norm: str, spec: str) -> None:
    x, y = greys(200)
    images = ImageSet((255 * x).round().to(torch.uint8), y, ("a", "b"), "grey")
    model, budget = Linear(), Budget(0.02 if norm == "linf" else 0.08, norm)
    margin, distance = model.exact(images.x.float() / 255, y, norm)
    found = curve(model, images, spec, budget, [0.5 * budget.eps, 1.5 * budget.eps])
    assert list(found) == [0.0, 0.5 * budget.eps, budget.eps, 1.5 * budget.eps]
    for r, correct in found.items():
        near = int(((distance - r).abs() < 1e-5).sum())
        assert abs(correct - int(((margin > 0) & (distance > r)).sum())) <= near
    assert len(set(found.values())) == 4


def test_the_point_at_eps_is_the_figure_and_zero_is_clean() -> None:
    model, images, budget = net(seed=2), picture_set(60, seed=5), Budget(0.05)
    clean, attacked = measured(model, images, "pgd-5", budget)
    found = curve(model, images, "pgd-5", budget, [0.02])
    assert (found[0.0], found[0.05]) == (clean.score.correct, attacked.score.correct)
    # The others are what an evaluation at that radius gives, with a step in proportion.
    (_, alone) = measured(model, images, "pgd-5", Budget(0.02))
    assert found[0.02] == alone.score.correct


class Periodic(nn.Module):
    """A network that a single step jumps across: its answer depends on the mean grey by a cosine of period 0.2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2 * torch.pi / 0.2))

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.cos(self.scale * (x.flatten(1).mean(1) - 0.49))
        return torch.stack((wave, -wave), 1)


def test_a_curve_that_rises_again_is_shown_rising() -> None:
    """Each radius by itself: what fell at 0.1 is right again at 0.2, and that is the sign of a bad attack."""
    images = ImageSet(torch.full((10, 1, 4, 4), 127, dtype=torch.uint8), torch.zeros(10).long(), ("a", "b"), "grey")
    found = curve(Periodic(), images, "fgsm", Budget(0.1), [0.2])
    assert found == {0.0: 10, 0.1: 0, 0.2: 10}


def test_radii_reach_grey() -> None:
    assert radii(Budget(8 / 255), (3, 32, 32))[-1] == 0.5
    assert radii(Budget(0.5, "l2"), (3, 32, 32))[-1] == pytest.approx(0.5 * 3072**0.5)
    assert 0.15 in radii(Budget(0.15), (1, 8, 8))
    assert max(radii(Budget(0.15), (1, 8, 8))) == 0.5, "no multiple of eps beyond it"
    assert radii(Budget(0.6), (1, 8, 8))[-1] == 0.6
    budget = Budget(grey_radius("linf", (1, 4, 4)))
    for value in (0, 255):
        x = torch.full((1, 1, 4, 4), value / 255)
        assert torch.allclose(budget.project(torch.full_like(x, 0.5), x), torch.full_like(x, 0.5))


def test_at_grey_nothing_is_left_of_an_honest_network() -> None:
    found = curve(matcher(), picture_set(30), "pgd-20", Budget(0.1), [0.5])
    assert found[0.5] <= 10, "one class of three"


@pytest.mark.parametrize("spec", ["pgd-7", "cw-7"])
def test_every_point_over_steps_is_an_attack_of_so_many_steps(spec: str) -> None:
    model, images, budget = net(seed=2), picture_set(60, seed=5), Budget(0.05)
    of = read_attack(spec, budget)
    clean, own = measured(model, images, spec, budget)
    body = over_steps(model, images, of, protocol([of], budget, seed=3, batch_size=20), clean, steps=(1, 2, 12))
    found = {p["value"]: p["correct"] for p in body["points"]}
    assert list(found) == [1, 2, 7, 12]
    assert found[7] == own.score.correct
    for k in (1, 2, 12):
        shorter = replace(of, climb=PGD(k, of.climb.step_size))
        (_, alone) = little.measured(model, images, [shorter], budget, **SAID)
        assert found[k] == alone.score.correct
    assert found[1] > found[12]


def test_labels_leave_out_what_the_axis_says() -> None:
    ball = Budget(8 / 255)
    assert (
        eps_label(read_attack("pgd-20@0.003", ball), ball.eps)
        == "PGD-20 (CE, step 0.0956 eps, uniform start, 1 restart)"
    )
    assert eps_label(read_attack("fgsm", ball), ball.eps) == "FGSM (CE, step eps, no start)"
    assert steps_label(read_attack("pgd-20x10", ball)) == "PGD (CE, step 2/255, uniform start, 1 restart)"


def test_progress_tells_radii_apart() -> None:
    told: list[str] = []
    model, images, budget = matcher(), picture_set(30), Budget(0.1)
    clean, own = measured(model, images, "fgsm", budget)
    how = protocol(["fgsm"], budget)
    told_by = {"progress": lambda name, *_: told.append(name)}
    over_eps(model, images, how.attacks[0], how, clean, own, radii=[0.05, 0.2], **told_by)
    assert set(told) == {"eps 0.05", "eps 0.2"}
