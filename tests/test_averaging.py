"""Averages of weights against their formulas, worked out beside them in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from little import SHAPE, net, picture_set, same, state
from torch import Tensor, nn

from mmard.training.recipe import Average, Recipe


def averaging(network: nn.Module, **recipe: Any) -> Average:
    return Average(network, Recipe(**{"epochs": 4, **recipe}))


def walk(network: nn.Module, seed: int) -> None:
    """One step of a random walk of all floating-point numbers, statistics included."""
    g = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=g))
        else:
            value.add_(1)


def exact(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.double() for name, value in state(module).items()}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.allclose(a[name].double(), b[name].double(), rtol=1e-6, atol=1e-6) for name in a)


def test_ema_follows_its_recursion() -> None:
    network = net()
    average = averaging(network, average="ema", ema_decay=0.6)
    expected = exact(network)
    for step in range(1, 41):
        walk(network, step)
        average.after_step()
        # The decay grows to its value: 1/11, 2/12, ... until it reaches 0.6 at step 15.
        decay = min(0.6, step / (step + 10))
        now = exact(network)
        expected = {name: decay * past + (1 - decay) * now[name] for name, past in expected.items()}
        expected["1.num_batches_tracked"] = now["1.num_batches_tracked"]
        assert close(state(average.module), expected), step
    assert average.count == 40


def test_ema_of_weights_that_rest_is_those_weights() -> None:
    network = net()
    average = averaging(network, average="ema")
    for _ in range(30):
        average.after_step()
        average.after_epoch(3)
    assert same(state(average.module), state(network))


def test_swa_is_the_mean_of_epoch_ends() -> None:
    network = net()
    average = averaging(network, epochs=8, average="swa", swa_from=0.5)
    ends = []
    for epoch in range(8):
        for step in range(3):
            walk(network, 10 * epoch + step)
            average.after_step()
        average.after_epoch(epoch)
        if epoch >= 4:
            ends.append(exact(network))
    weights = dict(average.module.named_parameters())
    assert average.count == 4
    for name, value in weights.items():
        assert torch.allclose(value.double(), torch.stack([end[name] for end in ends]).mean(0), rtol=1e-6, atol=1e-6)


def test_swa_takes_statistics_from_the_images() -> None:
    network = net()
    average = averaging(network, average="swa", swa_from=0.0)
    for epoch in range(2):
        walk(network, epoch)
        average.after_epoch(epoch)
    images = picture_set(40).x.float() / 255
    batches = images.split(10)
    ready = average.ready(iter(batches))
    assert ready is average.module
    convolved = [ready[0](x).detach().double() for x in batches]
    means = torch.stack([z.mean((0, 2, 3)) for z in convolved]).mean(0)
    variances = torch.stack([z.var((0, 2, 3), unbiased=True) for z in convolved]).mean(0)
    assert torch.allclose(ready[1].running_mean.double(), means, atol=1e-6)
    assert torch.allclose(ready[1].running_var.double(), variances, atol=1e-6)
    first = state(ready)
    assert same(first, state(average.ready(iter(batches)))), "estimated anew, not on top"
    assert ready[1].momentum == network[1].momentum
    assert not any(module.training for module in ready.modules())


def test_ema_needs_no_images() -> None:
    average = averaging(net(), average="ema")
    average.after_step()

    def none() -> Any:
        raise AssertionError("asked for images")
        yield

    assert average.ready(none()) is average.module


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_before_anything_is_averaged_it_is_the_network(kind: str) -> None:
    network = net()
    average = averaging(network, average=kind)
    assert same(state(average.module), state(network))
    average.after_epoch(0)  # before the half from which swa averages
    walk(network, 0)
    assert average.ready(iter(())) is network


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_network_itself_is_left_alone(kind: str) -> None:
    network = net()
    before, modes = state(network), [m.training for m in network.modules()]
    average = averaging(network, average=kind, swa_from=0.0)
    for epoch in range(3):
        average.after_step()
        average.after_epoch(epoch)
        average.ready(iter([torch.rand(8, *SHAPE)]))
    assert same(state(network), before)
    assert [m.training for m in network.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(p.requires_grad for p in average.module.parameters())
    assert not any(m.training for m in average.module.modules())


def test_a_weight_that_is_used_twice_is_averaged_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    network = Tied()
    average = averaging(network, average="swa", swa_from=0.0)
    for epoch, value in enumerate((1.0, 2.0, 6.0)):
        nn.init.constant_(network.one.weight, value)
        average.after_epoch(epoch)
    assert average.module.one.weight is average.module.two.weight
    assert torch.allclose(average.module.one.weight, torch.full((3, 3), 3.0))
