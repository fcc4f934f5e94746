"""One step of training: what it runs and how often, what it leaves alone, and the laws of plug-ins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from nets import (
    ATTACK,
    BUDGET,
    NONE,
    PAIRED,
    PAIRS,
    Params,
    buffers,
    build,
    case_id,
    conv,
    generator,
    images,
    labels,
    linear,
    same,
    state,
    step_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.method import Batch, Method, Net, Point, Terms
from mmard.methods import METHODS
from mmard.modes import evaluating
from mmard.training.step import Step

TEACHER = conv(seed=99, width=5).eval()


# --- what a step is ---


def test_the_loss_is_the_sum_of_the_means_of_the_terms() -> None:
    step = step_of("rslad+igdm+mmard", conv())
    loss, terms = step(images(4), labels(4))
    assert loss.shape == ()
    assert loss.requires_grad
    assert set(terms) == {"adv", "nat", "igdm", "tri_nat_adv", "tri_nat_teacher", "tri_adv_teacher"}
    assert all(term.requires_grad for term in terms.values())
    torch.testing.assert_close(loss, sum(term.mean() for term in terms.values()))


def test_a_loop_of_ones_own_is_three_lines() -> None:
    student, x, y = conv(), images(4), labels(4)
    step = Step(build("trades"), {"S": student}, ATTACK, BUDGET)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before = state(student)
    loss, _ = step(x, y)
    loss.backward()
    optimizer.step()
    assert step.count == 1
    assert not any(torch.equal(before[name], weight) for name, weight in student.named_parameters() if name != "0.bias")


@pytest.mark.parametrize("spec", ["rslad", "kd", "pgd_at+mmard", "trades+igdm"])
def test_a_run_without_the_teacher_that_its_method_reads_is_refused(spec: str) -> None:
    with pytest.raises(Refused, match="give a teacher") as refusal:
        Step(build(spec), {"S": conv()}, ATTACK, BUDGET)
    assert spec in str(refusal.value)


def test_a_run_without_a_student_is_refused() -> None:
    with pytest.raises(Refused, match="no S"):
        Step(build("pgd_at"), {"T": TEACHER}, ATTACK, BUDGET)


def test_swapped_radius_and_step_are_refused_before_the_first_batch() -> None:
    with pytest.raises(Refused, match="swapped"):
        Step(build("pgd_at"), {"S": conv()}, PGD(10, 8 / 255), Budget(2 / 255))


def test_a_teacher_that_no_formula_reads_is_never_run() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the teacher was run")

    step_of("pgd_at", conv(), Never())(images(2), labels(2))


def test_no_graph_is_built_for_the_weights_of_the_teacher() -> None:
    """Their gradients would be thrown away, after the memory for them had been taken at every step of the attack."""
    asking: set[bool] = set()

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv(seed=5)

        def forward(self, x: Tensor) -> Tensor:
            asking.update(p.requires_grad for p in self.parameters())
            return self.net(x)

    step_of("adaad+mmard", conv(), Watched())(images(2), labels(2))
    assert asking == {False}


def test_progress_reaches_both_formulas() -> None:
    seen: list[float] = []

    def told(formula: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        def wrapped(b: Batch) -> Any:
            seen.append(b.progress)
            return formula(b)

        return wrapped

    method = build("rslad")
    assert method.inner is not None
    step_of(replace(method, inner=told(method.inner), outer=told(method.outer)), conv())(images(2), labels(2), 0.25)
    assert seen == [0.25] * (ATTACK.steps + 1)


def test_the_attack_sees_its_iterates_in_order_and_the_outer_formula_sees_their_trace() -> None:
    steps, points, given = [], [], []

    def inner(b: Batch) -> Tensor:
        steps.append(b.attack_step)
        points.append(b.adv.value.detach().clone())
        b.notes["seen"] = b.notes.get("seen", 0) + 1
        return F.cross_entropy(b.S(b.adv), b.y, reduction="none")

    def outer(b: Batch) -> Terms:
        given.append((list(b.trace), dict(b.notes)))
        return {"adv": F.cross_entropy(b.S(b.adv), b.y, reduction="none")}

    student, x, y = conv(), images(3), labels(3)
    step = step_of(replace(build("pgd_at"), inner=inner, outer=outer), student)
    for _ in range(2):
        with evaluating(student):
            before = conv()
            before.load_state_dict(student.state_dict())
            before.eval()
        steps.clear(), points.clear()
        step(x, y)
        trace, notes = given[-1]
        assert steps == [0, 1, 2]
        assert notes == {"seen": 3}, "notes of an earlier attack"
        assert len(trace) == 3
        for logits, point in zip(trace, points, strict=True):
            torch.testing.assert_close(logits, before(point).detach(), rtol=0, atol=1e-14)


def test_the_attack_reads_clean_predictions_in_eval_mode_and_the_loss_in_train_mode() -> None:
    seen: dict[str, Tensor] = {}

    def inner(b: Batch) -> Tensor:
        seen["inner"] = b.S(b.x)
        return F.cross_entropy(b.S(b.adv), b.y, reduction="none")

    def outer(b: Batch) -> Terms:
        seen["outer"] = b.S(b.x)
        return {"nat": F.cross_entropy(b.S(b.x), b.y, reduction="none") + 0 * b.S(b.adv).sum(1)}

    student, awake, asleep, x = conv(), conv(), conv().eval(), images(4)
    step_of(replace(build("trades"), inner=inner, outer=outer), student)(x, labels(4))
    torch.testing.assert_close(seen["inner"], asleep(x).detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(seen["outer"], awake(x), rtol=0, atol=1e-14)
    assert not seen["inner"].requires_grad
    assert seen["outer"].requires_grad


def test_a_formula_that_reads_an_undeclared_view_is_told_which_and_what_was_declared() -> None:
    greedy = replace(build("trades"), forwards={"S": ("x_adv",)})
    with pytest.raises(KeyError) as error:
        step_of(greedy, conv())(images(2), labels(2))
    assert "the prediction at x of a trained network" in str(error.value)
    assert "method trades declares forwards {'S': ('x_adv',)}" in str(error.value)


@pytest.mark.parametrize("wrong", [lambda t: t.mean(), lambda t: t[:, None], lambda t: t[:1]])
def test_a_term_that_is_not_one_number_for_each_sample_is_our_fault(wrong: Callable[[Tensor], Tensor]) -> None:
    method = build("pgd_at")
    careless = replace(method, outer=lambda b: {"adv": wrong(method.outer(b)["adv"])})
    with pytest.raises(AssertionError, match="term adv of pgd_at"):
        step_of(careless, conv())(images(3), labels(3))


@pytest.mark.parametrize("half", ["inner", "outer"])
def test_an_error_in_a_formula_leaves_modes_and_flags_as_they_were(half: str) -> None:
    def broken(b: Batch) -> Any:
        raise RuntimeError("a formula broke")

    student, teacher = conv(), conv(seed=5)
    student[1].eval()
    step = step_of(replace(build("rslad"), **{half: broken}), student, teacher)
    with pytest.raises(RuntimeError, match="a formula broke"):
        step(images(2), labels(2))
    assert [m.training for m in student.modules()] == [True, True, False, True, True, True]
    assert all(m.training for m in teacher.modules())
    assert all(p.requires_grad for net in (student, teacher) for p in net.parameters())
    assert step.count == 0


def test_attacking_in_train_mode_moves_statistics_once_for_each_iterate() -> None:
    """The authors' replicas ask for it; that the switch does something is what its absence elsewhere rests on."""
    tracked = {}
    for mode in ("eval", "train"):
        student = conv()
        step_of(build("ard", {"ard.attack_mode": mode}), student)(images(4), labels(4))
        tracked[mode] = int(student[1].num_batches_tracked)
    assert tracked == {"eval": 1, "train": ATTACK.steps + 1}


def test_a_second_trained_network_runs_its_own_views_after_the_students() -> None:
    order: list[str] = []

    class Noted(nn.Module):
        def __init__(self, letter: str, seed: int) -> None:
            super().__init__()
            self.letter, self.net = letter, conv(seed)

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.letter)
            return self.net(x)

    def outer(b: Batch) -> Terms:
        peer = b.nets["P"](b.adv)
        return {
            "S": F.cross_entropy(b.S(b.adv), b.y, reduction="none"),
            "P": F.cross_entropy(peer, b.y, reduction="none"),
        }

    method = replace(build("pgd_at"), outer=outer, forwards={"S": ("x_adv",), "P": ("x_adv",)}, nets=("S", "P"))
    student, peer = Noted("S", 0), Noted("P", 1)
    step = Step(method, {"S": student, "P": peer, "T": TEACHER}, ATTACK, BUDGET)
    assert set(step.trained) == {"S", "P"}
    loss, _ = step(images(3), labels(3))
    loss.backward()
    assert order == ["S"] * (ATTACK.steps + 1) + ["P"]
    assert int(peer.net[1].num_batches_tracked) == 1
    assert all(p.grad is not None for net in (student, peer) for p in net.parameters())


def test_a_random_start_does_not_depend_on_what_else_is_random() -> None:
    """A student with dropout, or a call to the global generator, draws from elsewhere than the attack does."""
    x, y = images(3), labels(3)
    attack = PGD(1, 2 / 255, "uniform")
    calm = step_of("pgd_at", linear((2, 3, 3), 3), attack=attack).run(x, y).batch.adv.value
    torch.rand(7)
    noisy = nn.Sequential(linear((2, 3, 3), 3), nn.Dropout(0.5))
    assert torch.equal(step_of("pgd_at", noisy, attack=attack).run(x, y).batch.adv.value, calm)


# --- how often it runs what ---


class Tick(torch.autograd.Function):
    """The identity, which counts the backward passes through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meter: Meter, name: str) -> Tensor:
        ctx.meter, ctx.name = meter, name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        setattr(ctx.meter, ctx.name, getattr(ctx.meter, ctx.name) + 1)
        return gradient, None, None


class Meter(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forwards, self.at_input, self.at_output = net, 0, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        z = self.net(Tick.apply(x, self, "at_input") if x.requires_grad else x)
        return Tick.apply(z, self, "at_output") if z.requires_grad else z

    @property
    def counted(self) -> tuple[int, int, int]:
        """Forwards, input-backwards, and views through which the weights receive gradient."""
        return self.forwards, self.at_input, self.at_output - self.at_input


COSTS: tuple[tuple[str, Params, tuple[int, int, int], tuple[int, int, int]], ...] = (
    # Ten steps. Student: forwards, input-backwards, views with a weight-backward; teacher: the same, and no weights.
    ("pgd_at", {}, (11, 10, 1), (0, 0, 0)),
    ("trades", {}, (13, 10, 2), (0, 0, 0)),  # one of them S(x) in eval mode, once for the whole attack
    ("mart", {}, (12, 10, 2), (0, 0, 0)),
    ("natural", {}, (1, 0, 1), (0, 0, 0)),
    ("kd", {}, (1, 0, 1), (1, 0, 0)),
    ("ard", {}, (11, 10, 1), (1, 0, 0)),
    ("ard", {"ard.alpha": 0.5}, (12, 10, 2), (1, 0, 0)),
    ("iad_i", {}, (12, 10, 2), (2, 0, 0)),
    ("rslad", {}, (12, 10, 2), (1, 0, 0)),
    ("adaad", {}, (11, 10, 1), (11, 10, 0)),
    ("adaad", {"adaad.alpha": 0.5}, (12, 10, 2), (12, 10, 0)),
    ("adaiad", {}, (12, 10, 2), (11, 10, 0)),
    ("n_fgsm", {}, (11, 10, 1), (0, 0, 0)),
    ("akd2", {}, (11, 10, 1), (1, 0, 0)),
    ("iad_ii", {}, (12, 10, 2), (1, 0, 0)),
    ("mtard", {}, (12, 10, 2), (1, 0, 0)),
    ("b_mtard", {}, (12, 10, 2), (1, 0, 0)),
    ("absld", {}, (12, 10, 2), (1, 0, 0)),
    ("peeraid", {}, (12, 10, 2), (0, 0, 0)),
    ("dgad", {}, (12, 10, 2), (12, 10, 0)),
    ("ciard", {}, (12, 10, 2), (1, 0, 1)),
    ("saad", {}, (12, 10, 2), (3, 1, 0)),  # T(x) comes with its slope
    ("saad", {"saad.beta": 1.0}, (13, 10, 3), (3, 1, 0)),
    ("rslad+fair", {}, (12, 10, 2), (1, 0, 0)),
    ("rslad+awp", {}, (14, 10, 4), (1, 0, 0)),  # every view twice, the teacher once
    ("adaad+igdm+awp", {}, (14, 10, 4), (12, 10, 0)),
    # A host that asks the teacher at every iterate lends its prediction to the slope.
    ("adaad+mmard", {"mmard.teacher_every": 5}, (12, 10, 2), (12, 12, 0)),
    # Gradient matching: one more view, and of the teacher what the host did not ask for.
    ("pgd_at+igdm", {}, (12, 10, 2), (2, 0, 0)),
    ("rslad+igdm", {}, (13, 10, 3), (3, 0, 0)),
    ("iad_i+igdm", {}, (13, 10, 3), (3, 0, 0)),
    ("adaad+igdm", {}, (12, 10, 2), (12, 10, 0)),
    ("rslad+igdm", {"igdm.alpha": 0.0}, (12, 10, 2), (1, 0, 0)),
    # Guidance: the teacher at every iterate, shared with a host that asks it there anyway; the triangle: both views.
    ("rslad+mmard", {}, (12, 10, 2), (12, 10, 0)),
    ("adaad+mmard", {}, (12, 10, 2), (12, 10, 0)),
    ("pgd_at+mmard", {}, (12, 10, 2), (12, 10, 0)),
    ("rslad+mmard", {"mmard.guide": 0.0}, (12, 10, 2), (2, 0, 0)),
    ("rslad+mmard", {"mmard.beta": 0.0}, (12, 10, 2), (11, 10, 0)),
    ("rslad+mmard", {"mmard.guide": 0.0, "mmard.beta": 0.0}, (12, 10, 2), (1, 0, 0)),
    ("kd+mmard", {}, (12, 0, 2), (12, 10, 0)),
    *(
        ("rslad+mmard", {"mmard.teacher_every": k}, (12, 10, 2), (2 + math.ceil(10 / k), math.ceil(10 / k), 0))
        for k in (2, 3, 5, 10, 11)
    ),
)


@pytest.mark.parametrize(
    ("spec", "params", "of_student", "of_teacher"), COSTS, ids=[case_id((spec, params)) for spec, params, _, _ in COSTS]
)
def test_a_step_costs_what_it_must_and_no_pass_more(
    spec: str, params: Params, of_student: tuple[int, int, int], of_teacher: tuple[int, int, int]
) -> None:
    student, teacher = Meter(conv()), Meter(conv(seed=9).eval())
    step = step_of(build(spec, params), student, teacher, attack=PGD(10, 2 / 255, "gaussian"))
    loss, _ = step(images(3), labels(3))
    loss.backward()
    assert student.counted == of_student
    assert teacher.counted == of_teacher


def test_the_table_of_costs_holds_every_method() -> None:
    assert {spec for spec, params, _, _ in COSTS if not params} >= set(METHODS)


# --- the laws of plug-ins ---

Trajectory = tuple[dict[str, Tensor], tuple[Tensor, ...], Tensor]


def twenty_steps(spec: str, params: Params, progress: float) -> Trajectory:
    """Weights and statistics after twenty steps of SGD, every x_adv on the way, and the global random state."""
    torch.manual_seed(0)
    student = conv()
    step = step_of(build(spec, params), student, TEACHER, attack=PGD(2, 4 / 255, "gaussian"))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    attacked = []
    for k in range(20):
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
    return twenty_steps(host, EARLY.get(host, {}), progress)


def assert_same(found: Trajectory, expected: Trajectory) -> None:
    assert same(found[0], expected[0]), "weights or statistics"
    assert torch.equal(found[2], expected[2]), "the global generator"
    assert not expected[1] or len(found[1]) == len(expected[1]) == 20
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=bool(expected[1]))), "x_adv"


OFF: tuple[tuple[str, Params], ...] = (
    ("+igdm", {"igdm.alpha": 0.0}),
    ("+mmard", {"mmard.guide": 0.0, "mmard.beta": 0.0}),
    ("+igdm+mmard", {"igdm.alpha": 0.0, "mmard.guide": 0.0, "mmard.beta": 0.0}),
    ("+fair", {"fair.beta": 0.0}),
    ("+awp", {"awp.gamma": 0.0}),
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
        if not (host in NONE and ("igdm" in plugin or "fair" in plugin))
    ]


@pytest.mark.parametrize(("host", "plugin", "params"), with_hosts(OFF))
def test_a_plug_in_with_weight_zero_is_the_host_to_the_bit(host: str, plugin: str, params: Params) -> None:
    assert_same(twenty_steps(host + plugin, {**EARLY.get(host, {}), **params}, 1.0), host_alone(host, 1.0))


@pytest.mark.parametrize("pair", PAIRS)
def test_two_plug_ins_with_weight_zero_are_the_host_to_the_bit_in_either_order(pair: str) -> None:
    for host in PAIRED:
        params = {name: value for name, value in NOTHING.items() if name.split(".")[0] in pair.split("+")}
        assert_same(twenty_steps(host + pair, params, 1.0), host_alone(host, 1.0))


@pytest.mark.parametrize(("host", "plugin", "params"), with_hosts(EVALUATED))
def test_a_plug_in_that_is_computed_with_weight_zero_is_the_host_to_the_bit(
    host: str, plugin: str, params: Params
) -> None:
    if host in NONE and params.get("mmard.guide") == 0:
        with pytest.raises(Refused, match="set guide > 0"):
            build(host + plugin, params)
        return
    assert_same(twenty_steps(host + plugin, {**EARLY.get(host, {}), **params}, 0.0), host_alone(host, 0.0))


def test_the_twenty_steps_can_tell_a_difference() -> None:
    expected = host_alone("rslad", 1.0)
    igdm = twenty_steps("rslad+igdm", {"igdm.alpha": 1e-6}, 1.0)
    assert not same(igdm[0], expected[0])
    guided = twenty_steps("rslad+mmard", {"mmard.beta": 0.0}, 1.0)
    assert not all(torch.equal(a, b) for a, b in zip(guided[1], expected[1], strict=True))


def target_first(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) by torch's own function, (B,)."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="none", log_target=True).sum(1)


@pytest.mark.parametrize("host", [name for name in METHODS if name not in NONE])
@pytest.mark.parametrize("plugin", ["igdm", "mmard"])
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
        n, r = S(x), S(x_adv)
        q_n, q_r = TEACHER(x).detach(), TEACHER(x_adv).detach()
        module = (target_first(n, r) + target_first(q_n, n) + target_first(q_r, r)) / 3
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


# --- the guidance, through networks ---


def climbed(
    method: Method, student: nn.Module, x: Tensor, iterates: list[Tensor], y: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Value and input gradient of an inner objective at given iterates of one attack."""
    batch = Batch(Point("x", x), None, y, {"S": Net(student), "T": Net(TEACHER), "P": Net(conv(seed=97).eval())})
    found = []
    assert method.inner is not None
    for k, iterate in enumerate(iterates):
        at = iterate.clone().requires_grad_()
        value = method.inner(batch.at(at, student(at), k))
        (slope,) = torch.autograd.grad(value.sum(), at)
        found.append((value.detach(), slope))
    return found


def path(x: Tensor, n: int) -> list[Tensor]:
    g = generator(17)
    return [(x + 0.02 * torch.randn(x.shape, generator=g, dtype=x.dtype)).clamp(0, 1) for _ in range(n)]


HOSTS = pytest.mark.parametrize("host", [name for name in METHODS if name not in NONE])


@HOSTS
@pytest.mark.parametrize("bounded", [False, True])
def test_guidance_adds_the_gradient_through_the_teacher(host: str, bounded: bool) -> None:
    student, x, y = conv().eval(), images(4), labels(4)
    guided = build(f"{host}+mmard", {"mmard.guide": 0.7, "mmard.bounded": bounded})
    (alone,), (grown,) = (climbed(m, student, x, path(x, 1), y) for m in (build(host), guided))
    at = path(x, 1)[0].requires_grad_()
    moved = target_first(TEACHER(x).detach(), TEACHER(at))
    (slope,) = torch.autograd.grad(moved.sum(), at)
    moved = moved.detach()
    if bounded:  # d(1 - exp(-KL)) = exp(-KL) dKL
        slope, moved = slope * torch.exp(-moved)[:, None, None, None], 1 - torch.exp(-moved)
    assert slope.norm() > 1e-2
    torch.testing.assert_close(grown[0], alone[0] + 0.7 * moved, rtol=0, atol=1e-12)
    torch.testing.assert_close(grown[1], alone[1] + 0.7 * slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize("host", ["rslad", "adaad", "kd"])
@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("bounded", [False, True])
def test_between_refreshes_the_drift_is_its_first_order_model(host: str, every: int, bounded: bool) -> None:
    student, x, y = conv().eval(), images(4), labels(4)
    iterates = path(x, 5)
    exact, lazy = (
        climbed(build("kd+mmard", {"mmard.teacher_every": k, "mmard.bounded": bounded}), student, x, iterates, y)
        for k in (1, every)
    )
    expected = []
    for k, iterate in enumerate(iterates):
        value, slope = exact[k - k % every]
        shift = (iterate - iterates[k - k % every]).flatten(1)
        expected.append((value + (slope.flatten(1) * shift).sum(1), slope))
    weight = 1.0
    if host != "kd":
        alone = climbed(build(host), student, x, iterates, y)
        spec = {"mmard.guide": 0.7, "mmard.teacher_every": every, "mmard.bounded": bounded}
        lazy, weight = climbed(build(f"{host}+mmard", spec), student, x, iterates, y), 0.7
        expected = [(a + weight * v, s + weight * d) for (a, s), (v, d) in zip(alone, expected, strict=True)]
    for (value, slope), (v, s) in zip(lazy, expected, strict=True):
        torch.testing.assert_close(value, v, rtol=0, atol=1e-12)
        torch.testing.assert_close(slope, s, rtol=0, atol=1e-12)


def test_a_whole_guided_attack_is_the_one_by_hand() -> None:
    student, x, y = conv(), images(4), labels(4)
    found = step_of("rslad+mmard", student, TEACHER, attack=PGD(5, 2 / 255, "gaussian"), seed=2).run(x, y).batch
    x_adv = PGD(5, 2 / 255, "gaussian")(
        conv().eval(),
        lambda z, at: target_first(TEACHER(x).detach(), z) + 0.3 * target_first(TEACHER(x).detach(), TEACHER(at)),
        x,
        BUDGET,
        generator=_first_generator(2),
    )
    torch.testing.assert_close(found.adv.value, x_adv, rtol=0, atol=1e-12)


def _first_generator(seed: int) -> torch.Generator:
    from mmard import seeds

    return seeds.generator("cpu", seed, "attack", 0)


@HOSTS
def test_without_guidance_the_attack_is_the_hosts_to_the_bit(host: str) -> None:
    x, y = images(4), labels(4)
    plain, grown = (
        step_of(build(s, p), conv()).run(x, y) for s, p in ((host, {}), (f"{host}+mmard", {"mmard.guide": 0.0}))
    )
    assert torch.equal(plain.batch.adv.value, grown.batch.adv.value)
    guided = step_of(f"{host}+mmard", conv()).run(x, y)
    assert guided.batch.adv.value.shape == x.shape


@pytest.mark.parametrize("every", [1, 2])
def test_guidance_moves_the_teacher_further(every: int) -> None:
    x, y = images(16), labels(16)
    drift = {}
    for guide in (0.0, 3.0):
        method = build("rslad+mmard", {"mmard.guide": guide, "mmard.teacher_every": every})
        x_adv = step_of(method, conv(), TEACHER, attack=PGD(10, 2 / 255, "gaussian")).run(x, y).batch.adv.value
        drift[guide] = target_first(TEACHER(x), TEACHER(x_adv)).mean().item()
    assert drift[3.0] > 1.5 * drift[0.0]


def test_a_plain_method_gets_an_attack_by_the_guidance_that_moves_the_teacher() -> None:
    x, y, student = images(8), labels(8), conv()
    before = buffers(student)
    b = step_of("kd+mmard", student, TEACHER, attack=PGD(10, 2 / 255, "gaussian")).run(x, y).batch
    assert (BUDGET.distance(b.adv.value, x) > 0.9 * BUDGET.eps).all()
    assert (target_first(TEACHER(x), TEACHER(b.adv.value)) > 1e-4).all()
    assert int(student[1].num_batches_tracked) == 1, "x_adv is a view of the plug-in, so it is quiet"
    assert not same(before, buffers(student))
