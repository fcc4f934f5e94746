"""Modes, frozen weights and running statistics, put back exactly; randomness by address."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from nets import buffers, conv, images, same
from torch import nn

from mmard.modes import evaluating, frozen, quiet_statistics
from mmard.seeds import derive, generator


def mixed() -> nn.Sequential:
    """A network whose submodules are in different modes, with parameters of both kinds."""
    model = conv().train()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def tracking(model: nn.Module) -> list[bool | None]:
    return [getattr(module, "track_running_stats", None) for module in model.modules()]


def asking(model: nn.Module) -> list[bool]:
    return [weight.requires_grad for weight in model.parameters()]


def test_inside_evaluating_everything_is_in_eval_mode() -> None:
    one, two = mixed(), conv().train()
    with evaluating(one, two):
        assert not any(modes(one) + modes(two))


def test_inside_frozen_no_parameter_asks_but_an_input_may() -> None:
    model = mixed()
    x = images(2).requires_grad_()
    with frozen(model):
        assert not any(asking(model))
        model(x).sum().backward()
    assert x.grad is not None
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("block", [evaluating, frozen, quiet_statistics])
def test_everything_is_put_back_even_after_an_error(
    block: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    model = mixed()
    before = modes(model), asking(model), tracking(model)
    with block(model):
        pass
    assert (modes(model), asking(model), tracking(model)) == before
    with pytest.raises(RuntimeError, match="inside"), block(model):
        raise RuntimeError("inside")
    assert (modes(model), asking(model), tracking(model)) == before


@pytest.mark.parametrize("block", [evaluating, frozen, quiet_statistics])
def test_blocks_can_be_nested_and_networks_can_be_named_twice(
    block: Callable[..., AbstractContextManager[None]],
) -> None:
    model = mixed()
    before = modes(model), asking(model), tracking(model)
    with block(model), block(model):
        pass
    assert (modes(model), asking(model), tracking(model)) == before
    if block is not quiet_statistics:
        with block(model, model[1], model):
            pass
        assert (modes(model), asking(model), tracking(model)) == before


def test_quiet_statistics_change_nothing_but_the_buffers() -> None:
    quiet, loud = conv().train(), conv().train()
    x = images(4)
    before = buffers(quiet)
    with quiet_statistics(quiet):
        seen = quiet(x)
    assert torch.equal(seen, loud(x))
    assert same(buffers(quiet), before)
    assert not same(buffers(loud), before)


def test_a_quiet_forward_between_loud_ones_can_be_differentiated() -> None:
    model = conv().train()
    first = model(images(3, 1))
    with quiet_statistics(model):
        second = model(images(3, 2))
    third = model(images(3, 3))
    (first + second * third).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_a_layer_that_sleeps_goes_on_sleeping_in_a_quiet_forward() -> None:
    model = conv().eval()
    x = images(4)
    expected = model(x)
    with quiet_statistics(model):
        assert torch.equal(model(x), expected)


@over(
    "layer",
    [
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2, momentum=None),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.InstanceNorm2d(2),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
    ],
    ids=["batch", "cumulative", "plain", "untracked", "instance", "instance-tracked"],
)
@over("training", [True, False])
def test_every_normalisation_gives_the_same_output_quietly_and_moves_nothing(layer: nn.Module, training: bool) -> None:
    layer = layer.double().train(training)
    x = images(4)
    before, had = buffers(layer), layer.track_running_stats
    with quiet_statistics(layer):
        seen = layer(x)
    moved = not same(buffers(layer), before)
    layer.load_state_dict(before, strict=False)
    torch.testing.assert_close(seen, layer(x), rtol=0, atol=0)
    assert not moved, "a quiet forward moved running statistics"
    assert layer.track_running_stats is had


ADDRESSES = st.lists(st.one_of(st.integers(-5, 10**6), st.sampled_from(["attack", "shuffle", "crop"])), max_size=4)


@given(st.integers(-(2**40), 2**40), ADDRESSES)
def test_a_derived_seed_is_repeatable_and_fits_63_bits(seed: int, address: list[int | str]) -> None:
    assert derive(seed, *address) == derive(seed, *address)
    assert 0 <= derive(seed, *address) < 2**63


def test_addresses_do_not_collide() -> None:
    seeds = [
        derive(seed, purpose, *position)
        for seed in (0, 1, 10, -1)
        for purpose in ("attack", "shuffle")
        for position in ((), (0,), (1,), (10,), (0, 1), (1, 0), (1, 10), (11, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert derive(1, 2) != derive(12) != derive(2, 1)


def test_a_derived_seed_is_the_same_everywhere_and_always() -> None:
    """Recorded once: another value would be another run for everyone who repeats an experiment."""
    assert derive(7, "attack", 3) == 56893950646224365


def test_a_generator_is_a_function_of_its_address() -> None:
    before = torch.get_rng_state()
    draws = {k: torch.rand(3, generator=generator("cpu", 0, "attack", k)) for k in (0, 1)}
    assert torch.equal(draws[0], torch.rand(3, generator=generator(torch.device("cpu"), 0, "attack", 0)))
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(before, torch.get_rng_state())
