"""The laws of plug-ins: weight zero is the host to the bit, and any other adds what it says."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from laws import over
from nets import (
    NONE,
    PAIRED,
    PAIRS,
    SPECS,
    Params,
    build,
    conv,
    images,
    labels,
    same,
    state,
    step_of,
    target_first,
)
from torch import Tensor

from mmard.attacks import PGD
from mmard.errors import Refused
from mmard.methods import METHODS

TEACHER = conv(seed=99, width=5).eval()


Trajectory = tuple[dict[str, Tensor], tuple[Tensor, ...], Tensor]


def eight_steps(spec: str, params: Params, progress: float) -> Trajectory:
    """Weights and statistics after eight steps of SGD, every x_adv on the way, and the global random state."""
    torch.manual_seed(0)
    student = conv()
    step = step_of(build(spec, params), student, TEACHER, attack=PGD(2, 4 / 255, "gaussian"))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    attacked = []
    for k in range(8):
        outcome = step.run(images(4, seed=k), labels(4, seed=k), progress)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        step.settle()
        if outcome.batch.x_adv is not None:
            attacked.append(outcome.batch.x_adv.value)
    return state(student), tuple(attacked), torch.get_rng_state()


EARLY = {"iad_i": {"iad_i.begin": -1.0}, "iad_ii": {"iad_ii.begin": -1.0}, "adaiad": {"adaiad.begin": -1.0}}
"""At progress 0 the ramps are at 0; introspection is made to begin all the same."""


@cache
def host_alone(host: str, progress: float) -> Trajectory:
    return eight_steps(host, EARLY.get(host, {}), progress)


def assert_same(found: Trajectory, expected: Trajectory) -> None:
    assert same(found[0], expected[0]), "weights or statistics"
    assert torch.equal(found[2], expected[2]), "the global generator"
    assert not expected[1] or len(found[1]) == len(expected[1]) == 8
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=bool(expected[1]))), "x_adv"


OFF: tuple[tuple[str, Params], ...] = (
    ("+igdm", {"igdm.alpha": 0.0}),
    ("+mmard", {"mmard.guide": 0.0, "mmard.beta": 0.0}),
    ("+igdm+mmard", {"igdm.alpha": 0.0, "mmard.guide": 0.0, "mmard.beta": 0.0}),
    ("+fair", {"fair.beta": 0.0}),
    ("+awp", {"awp.gamma": 0.0}),
    ("+temperature", {"temperature.tau": 1.0}),
    ("+adr", {"adr.trust_start": 0.0, "adr.trust_end": 0.0}),
)
NOTHING = {"igdm.alpha": 0.0, "mmard.guide": 0.0, "mmard.beta": 0.0, "fair.beta": 0.0, "awp.gamma": 0.0}
EVALUATED: tuple[tuple[str, Params], ...] = (
    ("+igdm", {}),  # its ramp is at 0
    ("+mmard", {"mmard.guide": 0.5, "mmard.ramp": 1.0, "mmard.beta": 0.0}),
    ("+mmard", {"mmard.guide": 0.5, "mmard.ramp": 1.0, "mmard.teacher_every": 2, "mmard.beta": 0.0}),
    ("+mmard", {"mmard.guide": 0.0, "mmard.beta": 1e-300}),  # computed, and lost in the first sum
    ("+igdm+mmard", {"mmard.guide": 0.5, "mmard.ramp": 1.0, "mmard.beta": 1e-300}),
    ("+fair", {}),  # its weights are 1 in the first epoch
    ("+awp", {"awp.gamma": 1e-300, "awp.begin": -1.0}),  # it looks ahead, and goes nowhere
)


def with_hosts(plugins: tuple[tuple[str, Params], ...]) -> list[tuple[str, str, Params]]:
    return [
        (host, plugin, params)
        for host in METHODS
        for plugin, params in plugins
        if host + plugin in SPECS or (plugin.count("+") > 1 and not (host in NONE and "igdm" in plugin))
    ]


@over(("host", "plugin", "params"), with_hosts(OFF))
def test_a_plug_in_with_weight_zero_is_the_host_to_the_bit(host: str, plugin: str, params: Params) -> None:
    assert_same(eight_steps(host + plugin, {**EARLY.get(host, {}), **params}, 1.0), host_alone(host, 1.0))


@over("pair", [pair for pair in PAIRS if "+adr" not in pair])
def test_two_plug_ins_with_weight_zero_are_the_host_to_the_bit_in_either_order(pair: str) -> None:
    for host in PAIRED:
        params = {name: value for name, value in NOTHING.items() if name.split(".")[0] in pair.split("+")}
        assert_same(eight_steps(host + pair, params, 1.0), host_alone(host, 1.0))


@over(("host", "plugin", "params"), with_hosts(EVALUATED))
def test_a_plug_in_that_is_computed_with_weight_zero_is_the_host_to_the_bit(
    host: str, plugin: str, params: Params
) -> None:
    if host in NONE and params.get("mmard.guide") == 0:
        with pytest.raises(Refused, match="set guide or own > 0"):
            build(host + plugin, params)
        return
    assert_same(eight_steps(host + plugin, {**EARLY.get(host, {}), **params}, 0.0), host_alone(host, 0.0))


def test_the_eight_steps_can_tell_a_difference() -> None:
    expected = host_alone("rslad", 1.0)
    igdm = eight_steps("rslad+igdm", {"igdm.alpha": 1e-6}, 1.0)
    assert not same(igdm[0], expected[0])
    guided = eight_steps("rslad+mmard", {"mmard.beta": 0.0}, 1.0)
    assert not all(torch.equal(a, b) for a, b in zip(guided[1], expected[1], strict=True))


@over("host", [name for name in METHODS if name not in NONE])
@over("plugin", ["igdm", "mmard"])
def test_the_gradient_is_that_of_the_host_plus_the_weight_times_that_of_the_module(host: str, plugin: str) -> None:
    """Through the weights of a network with BatchNorm. The attack is the same, so the two can be compared."""
    unit = {f"{host}.scale": 0.1} if host in ("ard", "iad_i", "rslad", "adaad", "adaiad") else {}
    weight, progress = 2.5, 0.8
    own = {
        "igdm": {"igdm.alpha": weight},
        "mmard": {"mmard.guide": 0.0, "mmard.beta": weight, "mmard.measure": "kl"},
    }[plugin]
    x, y = images(5), labels(5)
    students = [conv() for _ in range(3)]
    outcomes = [
        step_of(build(spec, params), student, TEACHER).run(x, y, progress)
        for spec, params, student in ((host, unit, students[0]), (f"{host}+{plugin}", {**unit, **own}, students[1]))
    ]
    x_adv = outcomes[0].batch.adv.value
    assert torch.equal(x_adv, outcomes[1].batch.adv.value)
    S = students[2]
    if plugin == "igdm":
        mirror = 2 * x - x_adv
        module = progress * target_first(TEACHER(x_adv).detach() - TEACHER(mirror).detach(), S(x_adv) - S(mirror))
    else:
        n, r, q_n = S(x), S(x_adv), TEACHER(x).detach()
        module = (target_first(n.detach(), r) + target_first(q_n, n) + target_first(q_n, r)) / 3
    coefficient = weight * (0.1 if unit else 1.0)
    slopes = [
        torch.autograd.grad(value, list(student.parameters()))
        for value, student in zip((outcomes[0].loss, outcomes[1].loss, module.mean()), students, strict=True)
    ]
    assert max(m.norm() for m in slopes[2]) > 1e-3
    for alone, grown, added in zip(*slopes, strict=True):
        torch.testing.assert_close(grown, alone + coefficient * added, rtol=0, atol=1e-10)


@pytest.mark.parametrize("host", ["ard", "iad_i", "rslad", "adaad", "adaiad"])
def test_a_plug_in_counts_in_the_unit_of_its_host(host: str) -> None:
    x, y = images(5), labels(5)
    spec, fixed = f"{host}+igdm+mmard", {"mmard.guide": 0.0}
    unified = step_of(build(spec, fixed), conv()).run(x, y).terms
    official = step_of(build(spec, {**fixed, f"{host}.scale": 0.1}), conv()).run(x, y).terms
    assert len(unified) >= 5
    for name, term in unified.items():
        torch.testing.assert_close(official[name], 0.1 * term, rtol=1e-12, atol=1e-15)
