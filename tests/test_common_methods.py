"""What holds for every method, alone and with every plug-in.

Here the formulas on given predictions, where a law is a statement about logits; `test_common_steps.py` has whole steps
on tiny networks. A new method is covered by its line in the catalogue. A law that a formula breaks on purpose is named
with the reason.
"""

from __future__ import annotations

import math

import torch
from laws import over
from nets import (
    CASES,
    COUPLED_HOSTS,
    LETTERS,
    NONE,
    Logits,
    Params,
    batch_of,
    build,
    case_id,
    labels,
    logits,
    read,
    trained,
    warm,
)
from torch import Tensor

from mmard.batch import Terms
from mmard.method import Method
from mmard.methods import METHODS
from mmard.methods.mmard import EDGES
from mmard.run import LOGGED
from mmard.training.fit import Validation

EVERY = over(("spec", "params"), CASES, ids=map(case_id, CASES))

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
    ("fgsm_rs", "adv"),
    ("lbgat", "peer_label"),
    ("hat", "nat"),
    ("hat", "helper"),
    ("peeraid", "label"),
    ("peeraid", "peer_label"),
    ("ciard", "teacher"),
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
@over("progress", [0.01, 1.0])
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
    assert host in COUPLED_HOSTS or coupled <= set(EDGES.values())


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
    edges = str(params.get("mmard.edges", "rn,nq,rc")).count(",") + 1
    expected = once + (method.scale * math.log(2) * edges / 3 if measure(spec, params) == "nce" else 0.0)
    torch.testing.assert_close(doubled, expected, rtol=1e-12, atol=1e-12)


@EVERY
def test_a_student_that_equals_its_teacher_under_an_attack_that_does_nothing_has_nothing_to_learn_from_it(
    spec: str, params: Params
) -> None:
    """Every distillation term is zero there, and at its minimum. Not so, by their meaning: terms that teach labels, and
    the two measures of information, which reward a student that is sure (`mi`) or tells samples apart (`nce`). The
    teacher is right, which two methods ask; a cross-entropy with it has its entropy as value at its minimum."""
    if {"b_mtard.tau_adv", "temperature.tau"} & set(params):
        return  # a teacher at a temperature of its own is another teacher
    method, views, y = made(spec, params), logits(5), labels(5)
    teacher = views["T.x"] + 8 * torch.nn.functional.one_hot(y, 3)
    for name in views:
        views[name] = teacher.clone().requires_grad_(name.split(".")[0] in ("S", "P", "T_tuned"))
    host = spec.split("+")[0]
    for name, term in terms_of(method, views, y).items():
        alive = (
            (host, name) in LABEL_TERMS
            or name == "label_adv"
            or (name.startswith("tri_") and measure(spec, params) in ("nce", "mi"))
        )
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
        if name == "boundary":  # a mean over the classes' squared logits
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
@over("teacher", ["always wrong", "always right", "one class only"])
@over("n", [1, 5])
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


def test_the_common_tests_meet_every_method() -> None:
    assert {spec.split("+")[0] for spec, _ in CASES} == set(METHODS)
