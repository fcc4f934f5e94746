"""One step of training: what it runs, what it refuses, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import (
    ATTACK,
    BUDGET,
    build,
    conv,
    images,
    labels,
    linear,
    state,
    step_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.batch import Batch, Terms
from mmard.errors import Refused
from mmard.modes import evaluating
from mmard.training.step import Step

TEACHER = conv(seed=99, width=5).eval()


def test_the_loss_is_the_sum_of_the_means_of_the_terms() -> None:
    step = step_of("rslad+igdm+mmard", conv())
    loss, terms = step(images(4), labels(4))
    assert loss.shape == ()
    assert loss.requires_grad
    assert set(terms) == {"adv", "nat", "igdm", "tri_adv_nat", "tri_nat_teacher", "tri_adv_clean"}
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
def test_a_term_that_is_not_one_number_for_each_sample_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    method = build("pgd_at")
    careless = replace(method, outer=lambda b: {"adv": wrong(method.outer(b)["adv"])})
    with pytest.raises(Refused, match=r"term adv of method pgd_at: expected shape \(3,\)"):
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


class Scribbling(nn.Module):
    """A network that computes on a copy of its input and then wipes the input out."""

    def __init__(self, net: nn.Module, in_eval: bool = True) -> None:
        super().__init__()
        self.net, self.in_eval = net, in_eval

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.clone())
        if self.training or self.in_eval:
            x.data.zero_()
        return logits


@pytest.mark.parametrize("spec", ["rslad+igdm+mmard", "adaad", "saad", "ciard", "kd"])
def test_a_network_that_writes_into_its_input_changes_no_step(spec: str) -> None:
    """The trained ones are attacked in eval mode, where an attack's own copies are its own matter."""
    x, y = images(4), labels(4)
    found = []
    for wrap in (False, True):
        nets: dict[str, nn.Module] = {"S": conv(), "T": conv(seed=9).eval(), "T_nat": conv(seed=8).eval()}
        if wrap:
            nets = {letter: Scribbling(net, in_eval=letter != "S").train(net.training) for letter, net in nets.items()}
        method = build(spec)
        given = x.clone()
        loss, _ = Step(method, {k: nets[k] for k in method.nets}, ATTACK, BUDGET)(given, y)
        loss.backward()
        assert torch.equal(given, x)
        weights = [p.grad for letter in method.forwards for p in nets[letter].parameters() if p.grad is not None]
        found.append([loss.detach(), *weights])
    assert all(torch.equal(own, other) for own, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (2 * images(4), labels(4), r"images in \[0, 1\]"),
        (images(4) * float("nan"), labels(4), r"images in \[0, 1\]"),
        ((255 * images(4)).byte(), labels(4), "divide by 255"),
        (images(4), labels(4) - 100, "labels counted from 0, got label -99 at image 0"),
        (images(4), labels(4)[:, None], "integer labels"),
        (images(4), F.one_hot(labels(4), 3).double(), "not one-hot"),
    ],
)
def test_a_wrong_batch_is_refused_by_the_step_of_ones_own_loop(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(Refused, match=message):
        step_of("pgd_at", conv())(x, y)


def test_labels_of_any_whole_type_train() -> None:
    one, two = (step_of("pgd_at", conv())(images(4), y)[0] for y in (labels(4), labels(4).int()))
    assert torch.equal(one, two)
