"""What a formula may read: points, networks, batches, and the views of a method."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws import over
from nets import (
    CLASSES,
    SPECS,
    conv,
    images,
    labels,
)
from torch import Tensor, nn

from mmard.batch import Batch, Net, Point
from mmard.methods import build


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.calls = conv(batch_norm=False), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x)


# --- Point, Net, Batch ---


def test_a_prediction_is_computed_when_first_read_and_never_twice() -> None:
    module = Counted()
    net, point = Net(module), Point("x", images(2))
    assert module.calls == 0
    assert net(point) is net(point)
    assert module.calls == 1
    net(Point("x", point.value))  # another point, though its name and value are the same
    assert module.calls == 2


@pytest.mark.parametrize("ambient", [True, False])
@pytest.mark.parametrize("asks", [True, False])
def test_gradient_follows_the_point(ambient: bool, asks: bool) -> None:
    net, point = Net(conv()), Point("x", images(2).requires_grad_(asks))
    with torch.set_grad_enabled(ambient):
        assert net(point).requires_grad is asks
        assert torch.is_grad_enabled() is ambient


def test_a_sealed_network_gives_what_was_put_and_names_what_was_not() -> None:
    net, x, x_adv = (
        Net(conv(), "method trades declares forwards {'S': ('x',)}"),
        Point("x", images(2)),
        Point("x_adv", images(2)),
    )
    known = torch.ones(2, CLASSES)
    assert net.put(x, known) is x
    assert net(x) is known
    with pytest.raises(KeyError) as error:
        net(x_adv)
    assert "x_adv" in str(error.value)
    assert "trades declares forwards {'S': ('x',)}" in str(error.value)


def test_a_prediction_dies_with_its_point() -> None:
    """An attack makes a point for every iterate: remembering their graphs would fill the memory."""
    net, point = Net(conv()), Point("x_adv", images(2).requires_grad_())
    prediction = weakref.ref(net(point))
    assert prediction() is not None
    del point
    gc.collect()
    assert prediction() is None


def test_slope_is_value_and_input_gradient_both_constant_and_not_remembered() -> None:
    module, x = Counted(), images(3)
    net, point = Net(module, sealed="slopes are no predictions"), Point("x", x)
    value, slope = net.slope(point, lambda z: z[:, 1] ** 2)
    at = x.clone().requires_grad_()
    expected = module.model(at)[:, 1] ** 2
    (gradient,) = torch.autograd.grad(expected.sum(), at)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(slope, gradient)
    assert not value.requires_grad
    assert not slope.requires_grad
    assert not x.requires_grad
    assert all(weight.grad is None for weight in module.parameters())
    with torch.no_grad():
        assert torch.equal(net.slope(point, lambda z: z[:, 1] ** 2)[1], slope)
    with pytest.raises(KeyError, match="slopes are no predictions"):
        net(point)


def batch(**changes: Any) -> Batch:
    x = images(2)
    made = Batch(Point("x", x), Point("x_adv", x + 0.01), labels(2), {"S": Net(conv()), "T": Net(conv(1))})
    return replace(made, **changes)


def test_a_batch_names_its_networks_and_points() -> None:
    b = batch()
    assert (b.nets["S"], b.nets["T"]) == (b.S, b.T)
    assert (b.point("x"), b.point("x_adv"), b.point("x_mirror")) == (b.x, b.x_adv, b.x_mirror)
    assert b.adv is b.x_adv


def test_a_network_that_the_run_does_not_have_is_named() -> None:
    b = batch(nets={"S": Net(conv())})
    with pytest.raises(KeyError, match="reads network T, this run has S"):
        _ = b.T


def test_a_formula_that_reads_x_adv_where_there_is_none_is_our_fault() -> None:
    with pytest.raises(KeyError, match="makes none"):
        _ = batch(x_adv=None).adv


def test_the_mirror_is_symmetric_about_x_and_is_not_clamped() -> None:
    x = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    x_adv = torch.tensor([[0.03, 0.47, 0.97]], dtype=torch.float64)
    b = batch(x=Point("x", x), x_adv=Point("x_adv", x_adv))
    torch.testing.assert_close(b.x_mirror.value, torch.tensor([[-0.03, 0.53, 1.03]], dtype=torch.float64))
    assert b.x_mirror is b.x_mirror
    assert b.x_mirror.name == "x_mirror"


def test_another_iterate_is_the_same_batch_with_another_x_adv() -> None:
    b, known = batch(), torch.ones(2, CLASSES)
    b.notes["kept"] = 1
    other = b.at(b.x.value + 0.02, known, 4)
    assert other.attack_step == 4
    assert other.S(other.adv) is known
    assert torch.equal(other.adv.value, b.x.value + 0.02)
    assert other.x is b.x
    assert other.notes is b.notes
    assert other.trace is b.trace
    assert b.attack_step == 0
    torch.testing.assert_close(other.x_mirror.value, b.x.value - 0.02)


def test_batches_do_not_share_their_notes() -> None:
    x = Point("x", images(1))
    one, two = (Batch(x, None, labels(1), {}) for _ in range(2))
    assert one.notes is not two.notes
    assert one.trace is not two.trace


# --- with_view ---


def test_with_view_adds_quiet_views_after_those_of_the_host() -> None:
    host = build("trades")
    assert host.forwards == {"S": ("x", "x_adv")}
    grown = host.with_view("x_adv", "x_mirror", "x")
    assert grown.forwards == {"S": ("x", "x_adv", "x_mirror")}
    assert grown.quiet == {"x_mirror"}
    assert grown.with_view("x_mirror").quiet == {"x_mirror"}
    assert host.forwards == {"S": ("x", "x_adv")}
    assert host.quiet == frozenset()


def test_with_view_leaves_other_trained_networks_alone() -> None:
    host = replace(build("rslad"), forwards={"S": ("x_adv",), "P": ("x", "x_adv")})
    assert host.with_view("x").forwards == {"S": ("x_adv", "x"), "P": ("x", "x_adv")}


@over("spec", [spec for spec in SPECS if "+" in spec])
def test_a_plug_in_keeps_the_order_of_its_host_and_is_quiet_about_the_rest(spec: str) -> None:
    plain, grown = build(spec.split("+")[0]), build(spec)
    own = plain.forwards["S"]
    assert grown.forwards["S"][: len(own)] == own
    assert grown.quiet == plain.quiet | (set(grown.forwards["S"]) - set(own))
    assert (grown.start, grown.attack_mode, grown.scale) == (plain.start, plain.attack_mode, plain.scale)
    kept = [] if plain.memory is None else list(plain.memory.state_dict())
    added = [] if grown.memory is None else list(grown.memory.state_dict())
    assert len(added) == len(kept) + 3 * ("fair" in spec)
    assert (grown.around is not None) == ("awp" in spec)
    assert (grown.forwards.get("P"), grown.tunes.keys()) == (plain.forwards.get("P"), plain.tunes.keys())
