"""Distances to decision boundaries, against linear networks whose distances are known."""

from __future__ import annotations

import math

import pytest
import torch
from little import SHAPE, matcher, net, picture_set
from torch import Tensor, nn

from mmard.evaluation.boundary import BINS, SAMPLE, boundary, distance_to_boundary, proximity, sampled


class Linear(nn.Module):
    """Two classes in float64, weights of both signs and none near zero."""

    def __init__(self, seed: int = 0, tilt: float = 1.0) -> None:
        super().__init__()
        draw = 2 * torch.rand(2, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
        self.weight = nn.Parameter(tilt * (draw + 0.1 * draw.sign()))
        self.bias = nn.Parameter(-self.weight.detach().sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x.double().flatten(1) @ self.weight.T + self.bias

    def exact(self, x: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor]:
        """Margins, and distances to the boundary where the box is far away."""
        across = (self.weight[0] - self.weight[1]).detach()
        z = self(x).detach()
        margin = (z[:, 0] - z[:, 1]) * (1 - 2 * y)
        dual = {"linf": across.abs().sum(), "l2": across.norm(), "l1": across.abs().max()}[norm]
        return margin, margin.abs() / dual


def greys(n: int = 60) -> tuple[Tensor, Tensor]:
    """Images away from black and white, and labels that are right about half of the time."""
    g = torch.Generator().manual_seed(1)
    return 0.4 + 0.2 * torch.rand(n, *SHAPE, generator=g), torch.randint(2, (n,), generator=g)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_network_is_as_far_as_its_margin_says(norm: str) -> None:
    model, (x, y) = Linear(), greys()
    margin, distance = model.exact(x, y, norm)
    sample = torch.tensor([0, 5, 7])
    found = proximity(model, x, y, norm, sample, batch_size=7)
    assert torch.allclose(found.margin, margin)
    assert torch.allclose(found.margin.abs() / found.slope, distance, rtol=1e-5)
    record = found.record()
    assert record["mean_margin"] == pytest.approx(float(margin.mean()))
    assert record["wrong"] == pytest.approx(float((margin <= 0).double().mean()))
    assert record["distance_first_order"] == pytest.approx(float(distance.mean()), rel=1e-5)
    assert record["flat"] == 0
    # Where the boundary is linear, the nearest point that FAB finds is the nearest there is.
    assert torch.allclose(found.nearest, distance[sample].to(found.nearest), rtol=0.02)
    assert bool((found.nearest >= distance[sample].to(found.nearest) * (1 - 1e-4)).all())
    assert record["n_minimal"] == 3


def test_the_nearest_point_of_several_classes_is_no_nearer_than_can_be() -> None:
    model, images = matcher(), picture_set(60, seed=3)
    x = images.x.float() / 255
    own = model(x).argmax(1)
    distance = distance_to_boundary(model, x, "linf")
    assert bool(distance.isfinite().all())
    weight = model[1].weight.detach()
    for row in range(0, 60, 7):
        z = model(x[row : row + 1])[0].detach()
        duals = (weight - weight[own[row]]).abs().sum(1)
        gaps = (z[own[row]] - z) / duals
        bound = min(float(gaps[c]) for c in range(3) if c != own[row])
        assert bound * (1 - 1e-4) <= float(distance[row]) <= 2 * bound, "the box is all that can be in the way"


def test_a_flat_network_has_no_first_order_distance() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([2.0, 0.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]

    x, y = greys(8)
    record = proximity(Flat(), x, y, "linf", torch.arange(8)).record()
    assert (record["flat"], record["distance_first_order"], record["distance_minimal"]) == (8, None, None)
    assert record["entropy"] == pytest.approx(
        -sum(p * math.log(p) for p in torch.tensor([2.0, 0.0, 0.0]).double().softmax(0).tolist()), rel=1e-5
    )


def test_both_networks_and_both_sets_are_told_apart() -> None:
    student, teacher = Linear(0), Linear(1, tilt=3.0)
    x, y = greys()
    x_adv = (x + 0.05).clamp(0, 1)
    body = boundary(student, teacher, "a teacher", x, x_adv, y, "linf", seed=0, batch_size=20)
    for name, inputs in (("clean", x), ("attacked", x_adv)):
        for who, model in (("student", student), ("teacher", teacher)):
            margin, distance = model.exact(inputs, y, "linf")
            assert body[name][who]["mean_margin"] == pytest.approx(float(margin.mean()))
            assert body[name][who]["distance_first_order"] == pytest.approx(float(distance.mean()), rel=1e-5)
            assert body[name][who]["n_minimal"] == 60
            assert sum(body["histograms"][f"{who}_{name}"]) == 60, "what lies beyond the edges is in the outer bins"
    assert len(body["histograms"]["edges"]) == BINS + 1


def test_the_sample_is_the_same_for_all_and_a_seed_decides_it() -> None:
    assert torch.equal(sampled(50, 0), torch.arange(50)), "a set smaller than the sample is looked at as a whole"
    many = sampled(4000, 0)
    assert len(many) == SAMPLE == len(set(many.tolist()))
    assert torch.equal(many, sampled(4000, 0))
    assert not torch.equal(many, sampled(4000, 1))


def test_the_networks_are_put_back_as_they_were() -> None:
    model = net(seed=1, dropout=0.5)
    before = [m.training for m in model.modules()]
    images = picture_set(12)
    proximity(model, images.x.float() / 255, images.y, "linf", torch.arange(4))
    assert [m.training for m in model.modules()] == before
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
