"""The pitfalls from the seventh on: schedules, views, normalisers and figures. See `test_pitfalls.py`."""

from __future__ import annotations

import pytest
import torch
from laws import over
from nets import (
    CASES,
    Jittered,
    Params,
    batch_of,
    build,
    case_id,
    conv,
    images,
    labels,
    linear,
    logits,
    read,
    step_of,
)

from mmard.attacks import read_attack
from mmard.balls import Budget
from mmard.methods import METHODS
from mmard.ops import correct

# --- 7. Ramps and beginnings that are not what the text says ---


def weight_of(term: str, spec: str, params: Params, epochs: int) -> list[float]:
    """The factor of a term in each epoch, as a share of what it is in the last."""
    views, y, method = logits(4), labels(4), build(spec, params)
    values = [
        method.outer(batch_of(views, y, epoch / epochs)).get(term, torch.zeros(1)).mean().item()
        for epoch in range(1, epochs + 1)
    ]
    return [value / values[-1] for value in values]


@pytest.mark.parametrize("epochs", [1, 20, 200, 300])
def test_7_gradient_matching_ramps_to_its_full_weight_in_the_last_epoch_of_any_run(epochs: int) -> None:
    shares = weight_of("igdm", "adaad+igdm", {}, epochs)
    assert shares == pytest.approx([epoch / epochs for epoch in range(1, epochs + 1)], rel=1e-9)
    views, y = logits(4), labels(4)
    last, doubled = (build("adaad+igdm", {"igdm.alpha": a}).outer(batch_of(views, y, 1.0))["igdm"] for a in (1.0, 2.0))
    torch.testing.assert_close(doubled, 2 * last)


@over("name", ["iad_i", "adaiad"])
@over("epochs", [10, 20, 30, 100, 200, 300])
def test_7_introspection_begins_after_three_tenths_of_the_run(name: str, epochs: int) -> None:
    """After 60 epochs of 200, that is in the one that a program counting from 0 calls 60."""
    shares = weight_of("self", name, {}, epochs)
    assert [share > 0 for share in shares] == [epoch > 3 * epochs // 10 for epoch in range(1, epochs + 1)]


def test_7_before_introspection_iad_is_ard_without_a_temperature() -> None:
    views, y = logits(5), labels(5)
    early = build("iad_i").outer(batch_of(views, y, 0.3))
    assert set(early) == {"teacher"}
    torch.testing.assert_close(early["teacher"], build("ard", {"ard.tau": 1.0}).outer(batch_of(views, y))["adv"])


# --- 8. The wrong teacher, or the wrong view ---

VIEWS: dict[str, tuple[Params, set[str], set[str], set[str], set[str]]] = {
    # Of the loss: views of S, of T. Of the attack: views of S, of T.
    "pgd_at": ({}, {"x_adv"}, set(), {"x_adv"}, set()),
    "trades": ({}, {"x", "x_adv"}, set(), {"x", "x_adv"}, set()),
    "mart": ({}, {"x", "x_adv"}, set(), {"x_adv"}, set()),
    "natural": ({}, {"x"}, set(), set(), set()),
    "kd": ({"kd.alpha": 0.5}, {"x"}, {"x"}, set(), set()),
    "ard": ({}, {"x_adv"}, {"x"}, {"x_adv"}, set()),
    "iad_i": ({}, {"x", "x_adv"}, {"x", "x_adv"}, {"x_adv"}, set()),
    "rslad": ({}, {"x", "x_adv"}, {"x"}, {"x_adv"}, {"x"}),
    "adaad": ({}, {"x_adv"}, {"x_adv"}, {"x_adv"}, {"x_adv"}),
    "adaiad": ({}, {"x", "x_adv"}, {"x_adv"}, {"x_adv"}, {"x_adv"}),
    # T_nat and P have tables of their own below.
    "n_fgsm": ({}, {"x_adv"}, set(), {"x_adv"}, set()),
    "fgsm_rs": ({}, {"x_adv"}, set(), {"x_adv"}, set()),
    "lbgat": ({}, {"x", "x_adv"}, set(), {"x", "x_adv"}, set()),
    "hat": ({}, {"x", "x_adv", "x_times_2"}, set(), {"x", "x_adv"}, set()),
    "akd2": ({}, {"x_adv"}, {"x_adv"}, {"x_adv"}, set()),
    "iad_ii": ({}, {"x", "x_adv"}, {"x_adv"}, {"x_adv"}, set()),
    "mtard": ({}, {"x", "x_adv"}, {"x_adv"}, {"x_adv"}, set()),
    "b_mtard": ({}, {"x", "x_adv"}, {"x_adv"}, {"x_adv"}, set()),
    "absld": ({}, {"x", "x_adv"}, {"x"}, {"x_adv"}, {"x"}),
    "peeraid": ({}, {"x", "x_adv"}, set(), {"x_adv"}, set()),
    "dgad": ({}, {"x", "x_adv"}, {"x", "x_adv"}, {"x_adv"}, {"x_adv"}),
    "ciard": ({}, {"x", "x_adv"}, {"x_adv"}, {"x_adv"}, set()),
    "saad": ({}, {"x_adv", "x_mirror"}, {"x_adv", "x_mirror"}, {"x_adv"}, {"x"}),
    "mtard+fair": ({}, {"x", "x_adv"}, {"x_adv"}, {"x_adv"}, set()),
    "adaad+igdm": ({}, {"x_adv", "x_mirror"}, {"x_adv", "x_mirror"}, {"x_adv"}, {"x_adv"}),
    "pgd_at+mmard": ({}, {"x", "x_adv"}, {"x"}, {"x_adv"}, {"x", "x_adv"}),
}


@over("spec", VIEWS)
def test_8_each_formula_reads_the_views_of_its_paper(spec: str) -> None:
    params, outer_s, outer_t, inner_s, inner_t = VIEWS[spec]
    method, views, y = build(spec, params), logits(4), labels(4)
    b = batch_of(views, y)
    method.outer(b)
    assert (read(b, "S"), read(b, "T")) == (outer_s, outer_t)
    b = batch_of(views, y)
    if method.inner is not None:
        method.inner(b)
    assert (read(b, "S"), read(b, "T")) == (inner_s, inner_t)


def test_8_the_views_of_every_method_are_written_down() -> None:
    assert set(METHODS) <= set(VIEWS)


@pytest.mark.parametrize(
    ("spec", "letter", "outer", "inner"),
    [
        ("akd2", "T_nat", {"x_adv"}, set()),
        ("iad_ii", "T_nat", {"x_adv"}, set()),
        ("mtard", "T_nat", {"x"}, set()),
        ("mtard+fair", "T_nat", {"x"}, set()),  # the released Fair-MTARD trains this branch on the robust teacher
        ("b_mtard", "T_nat", {"x"}, set()),
        ("ciard", "T_nat", {"x", "x_adv"}, set()),
        ("peeraid", "P", {"x_adv"}, {"x"}),
        ("lbgat", "P", {"x"}, set()),
        ("hat", "T_nat", {"x_adv"}, set()),
        ("pgd_at+adr", "S_ema", {"x"}, {"x"}),
        ("trades+adr", "S_ema", {"x"}, {"x"}),
    ],
)
def test_8_the_other_networks_are_read_where_the_papers_say(
    spec: str, letter: str, outer: set[str], inner: set[str]
) -> None:
    method, views, y = build(spec), logits(4), labels(4)
    b = batch_of(views, y)
    method.outer(b)
    assert read(b, letter) == outer
    b = batch_of(views, y)
    assert method.inner is not None
    method.inner(b)
    assert read(b, letter) == inner


PAIRS: dict[tuple[str, str], tuple[str, str]] = {
    ("ard", "adv"): ("T.x", "S.x_adv"),
    ("iad_i", "teacher"): ("T.x", "S.x_adv"),
    ("rslad", "adv"): ("T.x", "S.x_adv"),
    ("rslad", "nat"): ("T.x", "S.x"),
    ("adaad", "adv"): ("T.x_adv", "S.x_adv"),
    ("adaad", "nat"): ("T.x", "S.x"),
    ("adaiad", "teacher"): ("T.x_adv", "S.x_adv"),
    ("kd", "nat"): ("T.x", "S.x"),
    ("iad_ii", "teacher"): ("T.x_adv", "S.x_adv"),
    ("iad_ii", "natural"): ("T_nat.x_adv", "S.x_adv"),
    ("mtard", "adv"): ("T.x_adv", "S.x_adv"),
    ("mtard", "nat"): ("T_nat.x", "S.x"),
    ("b_mtard", "adv"): ("T.x_adv", "S.x_adv"),
    ("b_mtard", "nat"): ("T_nat.x", "S.x"),
    ("absld", "adv"): ("T.x", "S.x_adv"),
    ("absld", "nat"): ("T.x", "S.x"),
    ("peeraid", "peer"): ("P.x_adv", "S.x_adv"),
    ("peeraid", "self"): ("S.x", "S.x_adv"),
    ("peeraid", "peer_student"): ("S.x_adv", "P.x_adv"),
    ("ciard", "adv"): ("T.x_adv", "S.x_adv"),
    ("ciard", "nat"): ("T_nat.x", "S.x"),
}


@over(("name", "term"), PAIRS)
def test_8_each_distillation_term_vanishes_where_its_own_target_is_met(name: str, term: str) -> None:
    """It is enough that this one student view equals this one teacher view; all others are noise."""
    target, learner = PAIRS[name, term]
    views, y = logits(4), labels(4)
    params = {"adaad.alpha": 0.5} if name == "adaad" else {}
    before = build(name, params).outer(batch_of(views, y))[term]
    views[learner] = views[target].clone()
    met = build(name, params).outer(batch_of(views, y))[term]
    assert (before > 1e-4).all()
    assert met.abs().max() < 1e-12


@pytest.mark.parametrize(("name", "view"), [("ard", "S.x"), ("iad_i", "S.x"), ("kd", "S.x"), ("pgd_at", "S.x_adv")])
def test_8_labels_are_taught_on_the_view_of_the_paper(name: str, view: str) -> None:
    params = {} if name == "pgd_at" else {f"{name}.alpha": 0.5}
    views, y = logits(5), labels(5)
    term = build(name, params).outer(batch_of(views, y))["adv" if name == "pgd_at" else "label"]
    weight = 1.0 if name == "pgd_at" else 0.5
    torch.testing.assert_close(term, -weight * views[view].log_softmax(1).gather(1, y[:, None])[:, 0])


@over("spec", [name for name in METHODS if "T" in build(name).nets])
def test_8_another_teacher_gives_another_gradient(spec: str) -> None:
    x, y, found = images(4), labels(4), []
    for seed in (4, 5):
        student = conv()
        step_of(spec, student, conv(seed=seed).eval())(x, y)[0].backward()
        found.append(student[4].weight.grad)
    assert (found[0] - found[1]).norm() > 1e-3


# --- 9. Normalisers and dependence on the batch ---

UNCOUPLED = [case for case in CASES if not build(*case).couples_batch]


@over(("spec", "params"), UNCOUPLED, ids=map(case_id, UNCOUPLED))
def test_9_two_shards_of_unequal_size_give_the_loss_of_the_whole(spec: str, params: Params) -> None:
    """A nominal batch size in a denominator would show in the small one."""
    x, y = images(7), labels(7)
    whole, large, small = (
        step_of(build(spec, params), conv(batch_norm=False), attack=Jittered())(x[part], y[part])[0]
        for part in (slice(None), slice(0, 5), slice(5, 7))
    )
    torch.testing.assert_close(whole, (5 * large + 2 * small) / 7, rtol=1e-9, atol=1e-10)


@over(("spec", "params"), CASES, ids=map(case_id, CASES))
def test_9_a_batch_of_one_is_a_batch(spec: str, params: Params) -> None:
    student = conv()
    loss_of_one, terms = step_of(build(spec, params), student)(images(1), labels(1))
    loss_of_one.backward()
    assert loss_of_one.isfinite()
    assert all(term.shape == (1,) for term in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


# --- 10. Numbers compared that were not measured alike ---


def test_10_attacks_that_differ_in_anything_bear_different_descriptions() -> None:
    budgets = (Budget(8 / 255), Budget(4 / 255))
    specs = ("fgsm", "pgd-10", "pgd-20", "cw-20", "pgd-20x2", "pgd-20@0.003")
    described = {(read_attack(spec, budget).label, str(budget)) for budget in budgets for spec in specs}
    assert len(described) == len(budgets) * len(specs)
    for spec in specs[1:]:
        label = read_attack(spec, budgets[0]).label
        assert all(word in label for word in ("step ", "uniform start", "restart"))
        assert ("CW margin" if spec.startswith("cw") else "CE") in label


@pytest.mark.parametrize("weaker_stronger", [("pgd-3", "pgd-3x4"), ("cw-3", "cw-3x4")])
def test_10_no_sample_survives_the_stronger_attack_that_fell_to_the_weaker(weaker_stronger: tuple[str, str]) -> None:
    model, x, budget = conv().eval(), images(60), Budget(0.04)
    y = model(x).argmax(1)
    fallen = []
    for spec in weaker_stronger:
        t = read_attack(spec, budget)
        x_adv = t(model, x, y, budget, generator=torch.Generator().manual_seed(0))
        fallen.append(~correct(model(x_adv), y))
    assert 0 < fallen[0].sum() < 60
    assert (fallen[1] | ~fallen[0]).all()


@pytest.mark.parametrize("spec", ["fgsm", "pgd-10", "cw-10"])
def test_10_the_measured_accuracy_of_a_linear_model_is_the_exact_one(spec: str) -> None:
    model, x, budget = linear((2, 3, 3)), images(200), Budget(8 / 255)
    y = model(x).argmax(1)
    t = read_attack(spec, budget)
    x_adv = t(model, x, y, budget, generator=torch.Generator().manual_seed(0))
    survived = (model(x_adv).argmax(1) == y).double().mean().item()
    weight = model[1].weight.detach()
    reach = budget.eps * (weight[0] - weight[1]).abs().sum()  # of the difference of the two logits
    gap = (model(x)[:, 0] - model(x)[:, 1]).abs().detach()
    exact = (gap > reach).double().mean().item()
    assert 0.1 < exact < 0.9
    assert survived == exact
