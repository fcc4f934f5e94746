"""What holds for every method, alone and with every plug-in.

First the formulas on given predictions, where a law is a statement about logits; then whole steps on tiny networks.
A new method is covered by its line in the catalogue. A law that a formula breaks on purpose is named with the reason.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nets import (
    ATTACK,
    BUDGET,
    CASES,
    SPECS,
    Jittered,
    Logits,
    Params,
    batch_of,
    buffers,
    build,
    case_id,
    conv,
    images,
    labels,
    logits,
    read,
    same,
    state,
    step_of,
)
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.method import Method, Terms
from mmard.methods import METHODS

EVERY = pytest.mark.parametrize(("spec", "params"), CASES, ids=map(case_id, CASES))

LABEL_TERMS = {
    ("pgd_at", "adv"),
    ("trades", "nat"),
    ("mart", "adv"),
    ("kd", "label"),
    ("ard", "label"),
    ("iad_i", "label"),
}
"""Terms that pull toward the label, so they do not end where the student equals its teacher."""


def made(spec: str, params: Params) -> Method:
    return build(spec, params)


def terms_of(method: Method, views: Logits, y: Tensor, progress: float = 1.0) -> Terms:
    return method.outer(batch_of(views, y, progress))


def picked(views: Logits, index: Tensor) -> Logits:
    return {k: v.detach()[index].requires_grad_(v.requires_grad) for k, v in views.items()}


def total(terms: Terms) -> Tensor:
    return torch.stack([term.mean() for term in terms.values()]).sum()


def measure(spec: str, params: Params) -> str | None:
    """The measure of the triangle in this method's loss, if it has one."""
    in_use = "mmard" in spec.split("+") and params.get("mmard.beta", 1.0) > 0
    return params.get("mmard.measure", "nce") if in_use else None


# --- formulas ---


@EVERY
def test_terms_are_one_finite_number_for_each_sample(spec: str, params: Params) -> None:
    for n in (1, 2, 7):
        terms = terms_of(made(spec, params), logits(n), labels(n))
        assert terms
        for name, term in terms.items():
            assert term.shape == (n,), name
            assert term.isfinite().all(), name


@EVERY
@pytest.mark.parametrize("progress", [0.01, 1.0])
def test_the_declared_forwards_are_read_and_nothing_else(spec: str, params: Params, progress: float) -> None:
    method, b = made(spec, params), batch_of(logits(4), labels(4), progress)
    method.outer(b)
    declared = method.forwards["S"]
    assert len(set(declared)) == len(declared)
    assert method.quiet <= set(declared)
    assert "T" not in method.forwards
    assert ("T" in method.nets) or not read(b, "T")
    # Introspection starts late, so until then these two do not need S(x), unless a term that is always there reads it.
    idle = {"x"} if progress < 0.3 and spec.startswith(("iad_i", "adaiad")) and "x" not in read(b, "S") else set()
    assert read(b, "S") | idle == set(declared)


@EVERY
def test_networks_that_are_declared_are_read(spec: str, params: Params) -> None:
    method, b = made(spec, params), batch_of(logits(4), labels(4))
    method.outer(b)
    if method.inner is not None:
        method.inner(b)
    assert {letter for letter in "ST" if read(b, letter)} == set(method.nets)


@EVERY
def test_every_term_has_a_gradient_and_every_declared_view_receives_one(spec: str, params: Params) -> None:
    method, views, y = made(spec, params), logits(5), labels(5)
    student = [views[f"S.{point}"] for point in method.forwards["S"]]
    received = [torch.zeros_like(v) for v in student]
    for name, term in terms_of(method, views, y).items():
        slopes = torch.autograd.grad(term.sum(), student, retain_graph=True, allow_unused=True)
        lengths = [0.0 if g is None else g.norm().item() for g in slopes]
        assert max(lengths) > 1e-6, f"{name} is a term without effect"
        received = [r if g is None else r + g.abs() for r, g in zip(received, slopes, strict=True)]
    assert all(r.norm() > 1e-6 for r in received), dict(zip(method.forwards["S"], received, strict=True))


@EVERY
def test_permuting_the_batch_permutes_the_terms(spec: str, params: Params) -> None:
    method, views, y = made(spec, params), logits(6), labels(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected, found = terms_of(method, views, y), terms_of(method, picked(views, order), y[order])
    for name, term in found.items():
        torch.testing.assert_close(term, expected[name][order], rtol=1e-12, atol=1e-13)


@EVERY
def test_half_a_batch_has_the_terms_it_has_in_the_whole_unless_the_method_couples_the_batch(
    spec: str, params: Params
) -> None:
    method, views, y = made(spec, params), logits(6), labels(6)
    whole, half = terms_of(method, views, y), terms_of(method, picked(views, torch.arange(3)), y[:3])
    coupled = {name for name in whole if not torch.allclose(half[name], whole[name][:3], rtol=1e-12, atol=1e-13)}
    assert bool(coupled) == method.couples_batch
    assert coupled <= {"tri_nat_adv", "tri_nat_teacher", "tri_adv_teacher"}


@EVERY
def test_a_batch_with_every_sample_twice_has_the_same_mean_loss(spec: str, params: Params) -> None:
    """But for a contrast with the other samples, in which everyone gains a double that cannot be told from the pair.

    exp(s_ii) / sum_j exp(s_ij) is then half of what it was, so each edge is larger by log 2: a third, three times.
    """
    method, views, y = made(spec, params), logits(5), labels(5)
    twice = torch.arange(5).repeat(2)
    once, doubled = total(terms_of(method, views, y)), total(terms_of(method, picked(views, twice), y[twice]))
    expected = once + (method.scale * math.log(2) if measure(spec, params) == "nce" else 0.0)
    torch.testing.assert_close(doubled, expected, rtol=1e-12, atol=1e-12)


@EVERY
def test_a_student_that_equals_its_teacher_under_an_attack_that_does_nothing_has_nothing_to_learn_from_it(
    spec: str, params: Params
) -> None:
    """Every distillation term is zero there, and at its minimum. Not so, by their meaning: terms that teach labels, and
    the two measures of information, which reward a student that is sure (`mi`) or tells samples apart (`nce`)."""
    method, views, y = made(spec, params), logits(5), labels(5)
    for name in views:
        views[name] = views["T.x"].clone().requires_grad_(name.startswith("S"))
    host = spec.split("+")[0]
    for name, term in terms_of(method, views, y).items():
        alive = (host, name) in LABEL_TERMS or (name.startswith("tri_") and measure(spec, params) in ("nce", "mi"))
        student = [views[f"S.{point}"] for point in method.forwards["S"]]
        slopes = torch.autograd.grad(term.mean(), student, retain_graph=True, allow_unused=True)
        steepest = max(g.norm().item() for g in slopes if g is not None)
        if alive:
            assert term.abs().max() > 1e-3, name
        else:
            # A mean of log-ratios weighted by joints is zero in the mean, not for each sample.
            value = term.mean() if name.startswith("tri_") else term
            assert value.abs().max() < 1e-10, name
            assert steepest < 1e-10, name


@EVERY
def test_classes_that_nobody_believes_in_change_nothing(spec: str, params: Params) -> None:
    """But for two formulas that depend on the number of classes: `mi` is divided by log C, and `igdm` takes the softmax
    of a difference of logits, in which a class that is impossible at both points has the logit 0 and so a share."""
    method, views, y = made(spec, params), logits(5), labels(5)
    padded = {k: torch.cat([v.detach(), torch.full((5, 7), -1e4, dtype=v.dtype)], 1) for k, v in views.items()}
    padded = {k: v.requires_grad_(k.startswith("S")) for k, v in padded.items()}
    terms, found = terms_of(method, views, y), terms_of(method, padded, y)
    for name, term in found.items():
        assert term.isfinite().all(), name
        if name == "igdm":
            assert not torch.allclose(term, terms[name])
            continue
        expected = terms[name]
        if name.startswith("tri_") and measure(spec, params) == "mi":
            expected = expected * math.log(3) / math.log(10)
        torch.testing.assert_close(term, expected, rtol=1e-9, atol=1e-12)


@EVERY
def test_a_formula_does_not_write_into_what_it_reads(spec: str, params: Params) -> None:
    method, views, y = made(spec, params), logits(5), labels(5)
    before = {k: v.detach().clone() for k, v in views.items()}
    labels_before = y.clone()
    b = batch_of(views, y)
    if method.inner is not None:
        method.inner(b)
    total(method.outer(b)).backward()
    assert all(torch.equal(views[k].detach(), v) for k, v in before.items())
    assert torch.equal(y, labels_before)
    assert all(views[k].grad is None for k in views if k.startswith("T"))


@EVERY
@pytest.mark.parametrize("teacher", ["always wrong", "always right", "one class only"])
@pytest.mark.parametrize("n", [1, 5])
def test_terms_and_gradients_are_finite_on_awkward_batches(spec: str, params: Params, teacher: str, n: int) -> None:
    method, views, y = made(spec, params), logits(n, spread=20.0), labels(n)
    answer = {"always wrong": (y + 1) % 3, "always right": y, "one class only": torch.zeros_like(y)}[teacher]
    if teacher == "one class only":
        y = torch.zeros_like(y)
    for name, value in views.items():
        if name.startswith("T"):
            value[torch.arange(n), answer] = 60.0
    terms = terms_of(method, views, y)
    total(terms).backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert all(views[f"S.{point}"].grad.isfinite().all() for point in method.forwards["S"])


@EVERY
def test_the_attack_asks_for_one_finite_number_for_each_sample_and_couples_none(spec: str, params: Params) -> None:
    method, views, y = made(spec, params), logits(6), labels(6)
    if method.inner is None:
        assert spec == "kd"
        return
    if params.get("mmard.teacher_every", 1) > 1:
        return  # reads the teacher's slope, which takes a network: see the steps below
    whole = method.inner(batch_of(views, y))
    assert whole.shape == (6,)
    assert whole.isfinite().all()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(method.inner(batch_of(picked(views, order), y[order])), whole[order])
    half = method.inner(batch_of(picked(views, torch.arange(3)), y[:3]))
    torch.testing.assert_close(half, whole[:3], rtol=1e-12, atol=1e-13)


# --- whole steps ---


@EVERY
def test_a_step_leaves_the_teacher_the_flags_and_the_modes_as_they_were(spec: str, params: Params) -> None:
    student, teacher, x, y = conv(), conv(seed=5), images(4), labels(4)
    student[1].eval()  # put to sleep by the user, and it goes on sleeping
    student[4].bias.requires_grad_(False)
    teacher.train()  # a user's slip, which must not move the teacher's statistics
    before = state(teacher)
    modes = [m.training for net in (student, teacher) for m in net.modules()]
    asking = [p.requires_grad for net in (student, teacher) for p in net.parameters()]
    kept = x.clone(), y.clone()
    loss, _ = step_of(made(spec, params), student, teacher)(x, y)
    assert [m.training for net in (student, teacher) for m in net.modules()] == modes
    assert [p.requires_grad for net in (student, teacher) for p in net.parameters()] == asking
    assert all(p.grad is None for net in (student, teacher) for p in net.parameters())
    loss.backward()
    assert same(state(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())
    assert [p.grad is not None for p in student.parameters()] == [True] * 5 + [False]
    assert same(buffers(student), buffers(conv()))
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


class Watched:
    """An attack that looks at the student while it runs: its modes, its weights, and whether its statistics move."""

    def __init__(self, attack: PGD = ATTACK) -> None:
        self.attack, self.moved = attack, False
        self.training, self.asking = set[bool](), set[bool]()

    def __call__(self, model: nn.Module, objective: Any, x: Tensor, budget: Budget, **settings: Any) -> Tensor:
        before = buffers(model)
        self.training |= {m.training for m in model.modules()}
        self.asking |= {p.requires_grad for p in model.parameters()}
        x_adv = self.attack(model, objective, x, budget, **settings)
        self.moved = not same(before, buffers(model))
        return x_adv


@EVERY
def test_statistics_move_by_the_declared_forwards_in_their_order_and_by_nothing_else(spec: str, params: Params) -> None:
    method, student, by_hand, watched = made(spec, params), conv(), conv(), Watched()
    outcome = step_of(method, student, attack=watched).run(images(4), labels(4))
    outcome.loss.backward()
    assert not watched.moved
    # In the attack the student is in eval mode, and no graph is built for weights that will not be asked.
    assert watched.training == watched.asking == (set() if method.inner is None else {False})
    with torch.no_grad():
        for name in method.forwards["S"]:
            if name not in method.quiet:
                by_hand(outcome.batch.point(name).value)
    assert same(buffers(student), buffers(by_hand))
    assert int(student[1].num_batches_tracked) == len(method.forwards["S"]) - len(method.quiet)


@EVERY
def test_a_step_sees_each_view_as_a_lone_forward_in_train_mode_would(spec: str, params: Params) -> None:
    method, fresh = made(spec, params), conv()
    b = step_of(method, conv()).run(images(4), labels(4)).batch
    for name in method.forwards["S"]:
        torch.testing.assert_close(b.S(b.point(name)), fresh(b.point(name).value), rtol=0, atol=1e-14)


@EVERY
def test_a_step_permutes_with_its_batch(spec: str, params: Params) -> None:
    """With a student without BatchNorm, and a start that is a function of the image."""
    method, x, y, order = made(spec, params), images(6), labels(6), torch.tensor([3, 0, 5, 1, 4, 2])
    step = step_of(method, conv(batch_norm=False), attack=Jittered())
    whole, permuted = step.run(x, y), step.run(x[order], y[order])
    if method.inner is not None:
        torch.testing.assert_close(permuted.batch.adv.value, whole.batch.adv.value[order], rtol=0, atol=1e-12)
    for name, term in permuted.terms.items():
        torch.testing.assert_close(term, whole.terms[name][order], rtol=1e-9, atol=1e-10)


@EVERY
def test_half_a_step_is_half_of_the_step_unless_the_method_couples_the_batch(spec: str, params: Params) -> None:
    method, x, y = made(spec, params), images(6), labels(6)
    step = step_of(method, conv(batch_norm=False), attack=Jittered())
    whole, half = step.run(x, y), step.run(x[:3], y[:3])
    if method.inner is not None:  # no attack couples the batch, whatever the loss does
        torch.testing.assert_close(half.batch.adv.value, whole.batch.adv.value[:3], rtol=0, atol=1e-12)
    for name, term in half.terms.items():
        if not name.startswith("tri_") or not method.couples_batch:
            torch.testing.assert_close(term, whole.terms[name][:3], rtol=1e-9, atol=1e-10)


@EVERY
def test_the_attack_stays_in_its_ball_and_leaves_no_graph(spec: str, params: Params) -> None:
    method, x = made(spec, params), images(4)
    b = step_of(method, conv()).run(x, labels(4)).batch
    if method.inner is None:
        assert b.x_adv is None
        return
    x_adv = b.adv.value
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    moved = BUDGET.distance(x_adv, x)
    assert (moved <= BUDGET.eps + 1e-12).all()
    assert (moved > 0.5 * BUDGET.eps).all()
    assert len(b.trace) == ATTACK.steps


@EVERY
def test_the_same_seed_gives_the_same_step_and_a_resumed_count_the_same_attack(spec: str, params: Params) -> None:
    method, x, y = made(spec, params), images(4), labels(4)
    one, two, other = (step_of(method, conv(), seed=seed) for seed in (3, 3, 4))
    rng = torch.get_rng_state()
    runs = [one.run(x, y) for _ in range(3)]
    assert one.count == 3
    assert torch.equal(rng, torch.get_rng_state())
    again = [two.run(x, y) for _ in range(3)]
    assert all(torch.equal(a.loss, b.loss) for a, b in zip(runs, again, strict=True))
    if method.inner is None:
        return
    resumed = step_of(method, conv(), seed=3)
    resumed.count = 2
    assert torch.equal(resumed.run(x, y).batch.adv.value, step_at(method, 2).run(x, y).batch.adv.value)
    # From the same weights, another step of the run or another seed starts the attack elsewhere.
    fresh = step_at(method, 0).run(x, y).batch.adv.value
    assert not torch.equal(fresh, step_at(method, 1).run(x, y).batch.adv.value)
    assert not torch.equal(fresh, other.run(x, y).batch.adv.value)


def step_at(method: Method, count: int) -> Any:
    step = step_of(method, conv(), seed=3)
    step.count = count
    return step


@pytest.mark.parametrize("spec", SPECS)
def test_twenty_steps_lower_the_loss(spec: str) -> None:
    student, x, y = conv(), images(12), labels(12)
    step = step_of(spec, student, attack=PGD(2, 4 / 255, "gaussian"))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    losses = []
    for _ in range(21):
        loss, _ = step(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]  # a contrast within the batch has a floor that no student can pass


def test_the_common_tests_meet_every_method() -> None:
    assert {spec.split("+")[0] for spec, _ in CASES} == set(METHODS)
