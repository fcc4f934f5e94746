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
    LETTERS,
    NONE,
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
    trained,
    warm,
)
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.method import Method, Terms
from mmard.methods import METHODS
from mmard.training.fit import LOGGED, Validation

EVERY = pytest.mark.parametrize(("spec", "params"), CASES, ids=map(case_id, CASES))

LABEL_TERMS = {
    ("pgd_at", "adv"),
    ("trades", "nat"),
    ("mart", "adv"),
    ("natural", "nat"),
    ("kd", "label"),
    ("ard", "label"),
    ("iad_i", "label"),
    ("iad_ii", "label"),
    ("akd2", "label"),
    ("n_fgsm", "adv"),
    ("peeraid", "label"),
    ("peeraid", "peer_label"),
    ("ciard", "teacher"),
}
"""Terms that pull toward the label, so they do not end where the student equals its teacher."""
COUPLED_HOSTS = ("mtard", "b_mtard", "ciard", "saad")
"""Methods whose own terms depend on the other samples of the batch."""


def weights_of(student: nn.Module) -> nn.Module:
    """A fresh network whose weights are those of the student, which a plug-in may have moved, and whose buffers not."""
    fresh = conv()
    fresh.load_state_dict({**fresh.state_dict(), **dict(student.named_parameters())})
    return fresh


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
        assert not set(terms) & (LOGGED | set(Validation._fields)), "names that the log has for itself"
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
    assert not set(method.teachers) & set(method.forwards)
    assert set(method.tunes) <= set(method.teachers)
    # Introspection starts late, so until then these do not need S(x), unless a term that is always there reads it.
    idle = {"x"} if progress < 0.2 and spec.startswith(("iad_i", "adaiad")) and "x" not in read(b, "S") else set()
    assert read(b, "S") | idle == set(declared)
    assert read(b, "P") == set(method.forwards.get("P", ()))
    assert read(b, "T_tuned") == {point for tuning in method.tunes.values() for point in tuning.points}
    assert all(letter in method.nets or not read(b, letter) for letter in ("T", "T_nat", "P"))


@EVERY
def test_networks_that_are_declared_are_read(spec: str, params: Params) -> None:
    method, b = made(spec, params), batch_of(logits(4), labels(4))
    method.outer(b)
    if method.inner is not None:
        method.inner(b)
    tuned = {f"{letter}_tuned" for letter in method.tunes}
    assert {letter for letter in LETTERS if read(b, letter)} == set(method.nets) | tuned


@EVERY
def test_every_term_has_a_gradient_and_every_declared_view_receives_one(spec: str, params: Params) -> None:
    method, views, y = made(spec, params), logits(5), labels(5)
    student = [views[name] for name in trained(method)]
    received = [torch.zeros_like(v) for v in student]
    for name, term in terms_of(method, views, y).items():
        slopes = torch.autograd.grad(term.sum(), student, retain_graph=True, allow_unused=True)
        lengths = [0.0 if g is None else g.norm().item() for g in slopes]
        assert max(lengths) > 1e-6, f"{name} is a term without effect"
        received = [r if g is None else r + g.abs() for r, g in zip(received, slopes, strict=True)]
    assert all(r.norm() > 1e-6 for r in received), dict(zip(trained(method), received, strict=True))


@EVERY
def test_permuting_the_batch_permutes_the_terms(spec: str, params: Params) -> None:
    views, y = logits(6), labels(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = terms_of(warm(spec, params), views, y)
    found = terms_of(warm(spec, params), picked(views, order), y[order])
    for name, term in found.items():
        torch.testing.assert_close(term, expected[name][order], rtol=1e-12, atol=1e-13)


@EVERY
def test_half_a_batch_has_the_terms_it_has_in_the_whole_unless_the_method_couples_the_batch(
    spec: str, params: Params
) -> None:
    coupled: set[str] = set()
    for seed in (0, 2):  # what sets the scale for a batch may by chance be in its first half
        views, y = logits(6, seed), labels(6)
        whole = terms_of(warm(spec, params), views, y)
        half = terms_of(warm(spec, params), picked(views, torch.arange(3)), y[:3])
        coupled |= {name for name in whole if not torch.allclose(half[name], whole[name][:3], rtol=1e-12, atol=1e-13)}
    host, *plugins = spec.split("+")
    # Weights that a batch has moved couple its samples, but not as formulas of logits.
    formulas = "+".join([host, *(name for name in plugins if name != "awp")])
    known = {name: value for name, value in params.items() if not name.startswith("awp.")}
    assert bool(coupled) == made(formulas, known).couples_batch
    assert host in COUPLED_HOSTS or coupled <= {"tri_nat_adv", "tri_nat_teacher", "tri_adv_teacher"}


@EVERY
def test_a_batch_with_every_sample_twice_has_the_same_mean_loss(spec: str, params: Params) -> None:
    """But for a contrast with the other samples, in which everyone gains a double that cannot be told from the pair.

    exp(s_ii) / sum_j exp(s_ij) is then half of what it was, so each edge is larger by log 2: a third, three times.
    """
    method, views, y = warm(spec, params), logits(5), labels(5)
    twice = torch.arange(5).repeat(2)
    once = total(terms_of(method, views, y))
    doubled = total(terms_of(warm(spec, params), picked(views, twice), y[twice]))
    if "mmard" in spec.split("+fair")[0] and "+fair" in spec:
        return  # log 2 times a weight
    expected = once + (method.scale * math.log(2) if measure(spec, params) == "nce" else 0.0)
    torch.testing.assert_close(doubled, expected, rtol=1e-12, atol=1e-12)


@EVERY
def test_a_student_that_equals_its_teacher_under_an_attack_that_does_nothing_has_nothing_to_learn_from_it(
    spec: str, params: Params
) -> None:
    """Every distillation term is zero there, and at its minimum. Not so, by their meaning: terms that teach labels, and
    the two measures of information, which reward a student that is sure (`mi`) or tells samples apart (`nce`). The
    teacher is right, which two methods ask; a cross-entropy with it has its entropy as value at its minimum."""
    if "b_mtard.tau_adv" in params:
        return  # a teacher at a temperature of its own is another teacher
    method, views, y = made(spec, params), logits(5), labels(5)
    teacher = views["T.x"] + 8 * torch.nn.functional.one_hot(y, 3)
    for name in views:
        views[name] = teacher.clone().requires_grad_(name.split(".")[0] in ("S", "P", "T_tuned"))
    host = spec.split("+")[0]
    for name, term in terms_of(method, views, y).items():
        alive = (host, name) in LABEL_TERMS or (name.startswith("tri_") and measure(spec, params) in ("nce", "mi"))
        student = [views[name] for name in trained(method)]
        slopes = torch.autograd.grad(term.mean(), student, retain_graph=True, allow_unused=True)
        steepest = max(g.norm().item() for g in slopes if g is not None)
        if host == "akd2" and name in ("teacher", "natural"):
            assert steepest < 1e-10, name
            continue
        if alive:
            assert term.abs().max() > 1e-4, name
        else:
            # A mean of log-ratios weighted by joints is zero in the mean, not for each sample.
            value = term.mean() if name.startswith("tri_") else term
            assert value.abs().max() < 1e-10, name
            assert steepest < 1e-10, name


@EVERY
def test_classes_that_nobody_believes_in_change_nothing(spec: str, params: Params) -> None:
    """But for formulas that depend on the number of classes: `mi` is divided by log C, `dgad` squares a distance and
    divides it by C, `ciard` bounds a divergence by log C, and `igdm` (and `saad` with it) takes the softmax of a
    difference of logits, in which a class that is impossible at both points has the logit 0 and so a share."""
    method, views, y = made(spec, params), logits(5), labels(5)
    again = made(spec, params)
    padded = {k: torch.cat([v.detach(), torch.full((5, 7), -1e4, dtype=v.dtype)], 1) for k, v in views.items()}
    padded = {k: v.requires_grad_(k.startswith("S")) for k, v in padded.items()}
    terms, found = terms_of(method, views, y), terms_of(again, padded, y)
    for name, term in found.items():
        assert term.isfinite().all(), name
        if name in ("igdm", "gradient"):
            assert not torch.allclose(term, terms[name])
            continue
        if name == "push" and params.get("ciard.bounded", True):
            continue
        expected = terms[name] * (3 / 10 if name == "consistency" else 1)
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
    assert all(views[k].grad is None for k in views if k.startswith(("T.", "T_nat.")))


@EVERY
@pytest.mark.parametrize("teacher", ["always wrong", "always right", "one class only"])
@pytest.mark.parametrize("n", [1, 5])
def test_terms_and_gradients_are_finite_on_awkward_batches(spec: str, params: Params, teacher: str, n: int) -> None:
    method, views, y = made(spec, params), logits(n, spread=20.0), labels(n)
    answer = {"always wrong": (y + 1) % 3, "always right": y, "one class only": torch.zeros_like(y)}[teacher]
    if teacher == "one class only":
        y = torch.zeros_like(y)
    for name, value in views.items():
        if name.startswith(("T.", "T_nat.")):
            value[torch.arange(n), answer] = 60.0
    terms = terms_of(method, views, y)
    total(terms).backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert all(views[name].grad.isfinite().all() for name in trained(method))


@EVERY
def test_the_attack_asks_for_one_finite_number_for_each_sample_and_couples_none(spec: str, params: Params) -> None:
    method, views, y = made(spec, params), logits(6), labels(6)
    if method.inner is None:
        assert spec.split("+")[0] in NONE
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
    assert all((p.grad is not None) == ("T" in made(spec, params).tunes) for p in teacher.parameters())
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
    method, student, watched = made(spec, params), conv(), Watched()
    outcome = step_of(method, student, attack=watched).run(images(4), labels(4))
    outcome.loss.backward()
    by_hand = weights_of(student)
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
    method, student = made(spec, params), conv()
    b = step_of(method, student).run(images(4), labels(4)).batch
    fresh = weights_of(student)
    for name in method.forwards["S"]:
        torch.testing.assert_close(b.S(b.point(name)), fresh(b.point(name).value), rtol=0, atol=1e-14)


@EVERY
def test_a_step_permutes_with_its_batch(spec: str, params: Params) -> None:
    """With a student without BatchNorm, and a start that is a function of the image."""
    method, x, y, order = made(spec, params), images(6), labels(6), torch.tensor([3, 0, 5, 1, 4, 2])
    steps = (step_of(warm(spec, params), conv(batch_norm=False), attack=Jittered()) for _ in range(2))
    whole, permuted = next(steps).run(x, y), next(steps).run(x[order], y[order])
    if method.inner is not None:
        torch.testing.assert_close(permuted.batch.adv.value, whole.batch.adv.value[order], rtol=0, atol=1e-12)
    for name, term in permuted.terms.items():
        torch.testing.assert_close(term, whole.terms[name][order], rtol=1e-9, atol=1e-10)


@EVERY
def test_half_a_step_is_half_of_the_step_unless_the_method_couples_the_batch(spec: str, params: Params) -> None:
    method, x, y = made(spec, params), images(6), labels(6)
    steps = (step_of(warm(spec, params), conv(batch_norm=False), attack=Jittered()) for _ in range(2))
    whole, half = next(steps).run(x, y), next(steps).run(x[:3], y[:3])
    if method.inner is not None:  # no attack couples the batch, whatever the loss does
        torch.testing.assert_close(half.batch.adv.value, whole.batch.adv.value[:3], rtol=0, atol=1e-12)
    for name, term in half.terms.items():
        apart = "awp" not in spec.split("+") and spec.split("+")[0] not in COUPLED_HOSTS
        if not method.couples_batch or (apart and not name.startswith("tri_")):
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
    one, two, other = (step_of(made(spec, params), conv(), seed=seed) for seed in (3, 3, 4))
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
    method = build(spec, {"ciard.push": 0.0} if "ciard" in spec else {})  # what is pushed away has no floor
    step = step_of(method, student, attack=PGD(2, 4 / 255, "gaussian"))
    optimizer = torch.optim.Adam([p for net in step.trained.values() for p in net.parameters()], lr=0.02)
    losses = []
    for _ in range(21):
        loss, _ = step(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # A contrast within the batch has a floor that no student can pass, and so has a cross-entropy with a teacher.
    assert losses[-1] < (0.9 if "akd2" in spec else 0.77) * losses[0]


def test_the_common_tests_meet_every_method() -> None:
    assert {spec.split("+")[0] for spec, _ in CASES} == set(METHODS)
