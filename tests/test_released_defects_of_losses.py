"""Defects of released code in losses and their weights. Each test is named after one, and passes where ours has it not.

`ELSEWHERE` lists the defects that have a test in another file. `docs/released_code.md` is made from both.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import Logits, Params, batch_of, build, gradients, labels, logits, loss_of
from released import defect
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmard.job import recipe_of
from mmard.method import Method
from mmard.methods import METHODS, compose
from mmard.methods.absld import ClassTemperatures
from mmard.ops import ce, kl, renyi_entropy
from mmard.settings import Settings

ELSEWHERE: tuple[tuple[str, str, str, str], ...] = (
    (
        "ARD, RSLAD, MTARD, B-MTARD, ABSLD, CIARD, Fair-ARD, PeerAiD, AdaAD on CIFAR-10",
        "KL is averaged over classes as well, so the weight of a loss changes with the data set",
        "KL is summed over classes; `scale` restores theirs",
        "test_pitfalls.py::test_1_no_loss_is_divided_by_the_number_of_classes",
    ),
    (
        "others' TRADES",
        "the target S(x) is detached",
        "it receives its gradient",
        "test_pitfalls.py::test_4_the_target_of_trades_receives_its_gradient",
    ),
    (
        "others' IAD, MART",
        "S(x), or the weight 1 - p_y, is detached",
        "both receive their gradient",
        "test_pitfalls.py::test_4_the_weight_of_mart_receives_its_gradient",
    ),
    (
        "others' IAD, MART",
        "the target of introspection is detached",
        "it receives its gradient, and the trust A gives none",
        "test_pitfalls.py::test_4_the_target_of_introspection_receives_its_gradient_and_the_trust_gives_none",
    ),
    (
        "PeerAiD",
        "the student is not detached in the peer's loss, which so trains the student too",
        "each loss trains its own network",
        "test_two_networks.py::test_the_peers_losses_train_the_peer_alone",
    ),
    (
        "others' AdaAD",
        "the attack climbs a soft cross-entropy, without the entropy of the teacher that moves",
        "it climbs the KL",
        "test_golden.py::test_the_teachers_side_is_not_the_one_of_soft_cross_entropy",
    ),
    (
        "others' KD, ARD",
        "the factor tau^2 is missing",
        "gradients keep their size at any temperature",
        "test_pitfalls.py::test_5_the_gradient_keeps_its_size_as_the_temperature_grows",
    ),
    (
        "IAD-I",
        "the teacher's term is not weighed by A",
        "it is, but for the presets that replay the code",
        "test_presets.py::test_the_official_teacher_of_iad_is_not_weighed",
    ),
    (
        "others' ARD",
        "reads T(x') where the paper has T(x)",
        "every formula reads the views of its paper",
        "test_pitfalls_of_runs.py::test_8_each_formula_reads_the_views_of_its_paper",
    ),
    (
        "Fair-MTARD",
        "the natural branch is trained on the robust teacher, the natural one is ignored",
        "the natural branch reads T_nat",
        "test_pitfalls_of_runs.py::test_8_the_other_networks_are_read_where_the_papers_say",
    ),
    (
        "MTARD",
        "both teachers are made by one placeholder without a path",
        "each letter has its own teacher",
        "test_several_teachers.py::test_each_letter_has_its_teacher",
    ),
    (
        "Fair-ARD",
        "divides by N / C, as if classes were equally large",
        "divides by the samples that a class had",
        "test_memory.py::test_classes_are_counted_by_what_they_had",
    ),
    (
        "ABSLD",
        "two views of one tensor are divided in place: both branches and the attack see T / (t_adv t_nat)",
        "each branch has its own temperature",
        "test_memory.py::test_the_two_branches_have_each_their_own_temperature",
    ),
    (
        "ABSLD, CIARD",
        "a controller's rate falls once a parameter group, or in every batch of an epoch, to nothing",
        "it falls once at each share of the run",
        "test_memory.py::test_a_rate_falls_once_at_each_share_and_not_once_a_batch",
    ),
    (
        "MTARD, B-MTARD, ABSLD, Fair-ARD",
        "weights and temperatures are lost when a run is resumed",
        "they ride in the checkpoint",
        "test_memory.py::test_a_memory_goes_through_a_checkpoint",
    ),
    (
        "IGDM",
        "the ramp divides by a literal 200",
        "it is whole in the last epoch of a run of any length",
        "test_pitfalls_of_runs.py::test_7_gradient_matching_ramps_to_its_full_weight_in_the_last_epoch_of_any_run",
    ),
    (
        "others' IGDM, SAAD",
        "x - d is clamped to [0, 1], so that d is no longer symmetric",
        "it is not clamped",
        "test_method.py::test_the_mirror_is_symmetric_about_x_and_is_not_clamped",
    ),
    (
        "others' SAAD",
        "each process takes the least entropy of its own part of the batch",
        "that of the whole batch",
        "test_distributed.py::test_two_processes_equal_one",
    ),
    (
        "CIARD",
        "subtracts a divergence that has no bound",
        "it counts up to log C",
        "test_two_networks.py::test_the_push_is_bounded",
    ),
    (
        "CIARD",
        "fails where the first batch has no error of the natural teacher",
        "such a batch has no push",
        "test_two_networks.py::test_a_batch_without_an_error_of_the_natural_teacher_has_no_push",
    ),
    (
        "DGAD",
        "divides by the nominal batch size, also in the last batch",
        "the mean is over the samples that there are",
        "test_pitfalls_of_runs.py::test_9_two_shards_of_unequal_size_give_the_loss_of_the_whole",
    ),
    (
        "DGAD",
        "swaps inside the teacher's tensors",
        "no formula writes into what it reads",
        "test_common_methods.py::test_a_formula_does_not_write_into_what_it_reads",
    ),
    (
        "DGAD + IAD",
        "introspection compares S(x') with itself: a term without effect",
        "every term has a gradient",
        "test_common_methods.py::test_every_term_has_a_gradient_and_every_declared_view_receives_one",
    ),
    (
        "ABSLD, AdaAD, B-MTARD",
        "undefined names, absent files or misspelt options: some runs end at the start",
        "every method trains",
        "test_common_steps.py::test_twenty_steps_lower_the_loss",
    ),
)


def settled(method: str, preset: str = "unified", data: str = "cifar10", **said: Any) -> Settings:
    return Settings.resolve({"teacher": "t", "method": method, "preset": preset, "data": data, **said})


def made(settings: Settings) -> Method:
    return compose(settings.method, settings.inner, settings.outer, settings.params)


def terms(spec: str, views: Logits, y: Tensor, params: Params | None = None) -> dict[str, Tensor]:
    return build(spec, params).outer(batch_of(views, y))


# --- weights ---


@defect(
    "AdaAD",
    "KL is averaged over classes on CIFAR-10 and summed on CIFAR-100: ten times the loss on other data",
    "one scale for both, but for the preset that replays the code",
)
def test_adaad_weighs_its_loss_by_the_data_set() -> None:
    scales = {
        (preset, data): made(settled("adaad", preset, data)).scale
        for preset in ("unified", "official")
        for data in ("cifar10", "cifar100")
    }
    assert scales["unified", "cifar10"] == scales["unified", "cifar100"] == 1.0
    assert (scales["official", "cifar10"], scales["official", "cifar100"]) == (0.1, 1.0)


@defect("AdaIAD", "inherits tau = 30 and with it the weight 900", "tau = 1; `tau` restores theirs")
def test_adaiad_inherits_the_temperature_of_another_method() -> None:
    views, y = logits(), labels(5)
    torch.testing.assert_close(terms("adaiad", views, y)["teacher"], kl(views["T.x_adv"], views["S.x_adv"]))


@defect("others' ARD", "tau = 1 without a word", "tau = 30, as the paper has it")
def test_ard_has_no_temperature() -> None:
    views, y = logits(), labels(5)
    expected = 900 * kl(views["T.x"], views["S.x_adv"], 30.0)
    torch.testing.assert_close(terms("ard", views, y)["adv"], expected)


@defect(
    "others' AKD2",
    "other weights (0.25, 0.5, 0.25 at tau = 1) under its name",
    "its own: 0.3, 0.6 and 0.1 at tau = 2",
)
def test_akd2_has_the_weights_of_iad() -> None:
    views, y = logits(), labels(5)
    found = terms("akd2", views, y)
    torch.testing.assert_close(found["label"], 0.3 * F.cross_entropy(views["S.x_adv"], y, reduction="none"))
    for name, letter, weight in (("teacher", "T", 0.6), ("natural", "T_nat", 0.1)):
        p, log_q = (views[f"{letter}.x_adv"] / 2).softmax(1), (views["S.x_adv"] / 2).log_softmax(1)
        torch.testing.assert_close(found[name], -weight * 4 * (p * log_q).sum(1))


@defect("others' RSLAD", "the clean sixth of the loss is dropped, the start is uniform", "both are the paper's")
def test_rslad_without_its_clean_term() -> None:
    views, y = logits(), labels(5)
    torch.testing.assert_close(terms("rslad", views, y)["nat"], kl(views["T.x"], views["S.x"]) / 6)
    assert build("rslad").start == "gaussian"


@defect("SAAD", "the argument for the entropy's scale is ignored, 5 is in the code", "`saad.spread` is read")
def test_saad_ignores_its_entropy_scale() -> None:
    views, y = logits(), labels(5)
    five, two = terms("saad", views, y), terms("saad", views, y, {"saad.spread": 2.0})
    for name, term in five.items():
        torch.testing.assert_close(two[name], 0.4 * term)
    assert five["adv"].max() > 0


@defect("SAAD, IGDM", "the weight decay that is asked for is ignored, 2e-4 is in the code", "it is the user's")
@pytest.mark.parametrize("spec", ["saad", "adaad+igdm"])
@pytest.mark.parametrize("preset", ["official", "unified"])
def test_saad_ignores_the_weight_decay(spec: str, preset: str) -> None:
    assert recipe_of(settled(spec, preset, weight_decay=3e-3)).weight_decay == 3e-3


@defect("CIARD", "the balance of its two teachers is computed and not used", "`balanced` uses it, or nothing is kept")
def test_ciard_computes_weights_for_nothing() -> None:
    views, y = logits(), labels(5)
    found = []
    for params in ({"ciard.balanced": True}, {}):
        method = build("ciard", params)
        method.outer(batch_of(views, y))
        views["S.x"] = views["T_nat.x"].detach().requires_grad_()  # one loss is gone, so the other is to gain
        found.append((method.outer(batch_of(views, y))["adv"], method))
        views = logits()
    (balanced, _), (plain, _) = found
    assert (balanced > 0.5 * plain).all(), "weights begin at a half"
    assert (balanced < plain).all()


# --- which network, which view ---


@defect("Fair-IAD", "the labels are taught at x', where IAD teaches them at x", "the host's view")
def test_fair_iad_teaches_labels_at_the_attacked_image() -> None:
    views, y = logits(), labels(5)
    found = loss_slopes("iad_i+fair", {"iad_i.alpha": 0.5}, "label", views, y)
    assert found["S.x"] > 0
    assert found["S.x_adv"] == 0


def loss_slopes(spec: str, params: Params, term: str, views: Logits, y: Tensor) -> dict[str, float]:
    value = terms(spec, views, y, params)[term].sum()
    return {name: slope.norm().item() for name, slope in gradients(value, views).items()}


@defect("others' AdaAD+IGDM", "the matching of gradients is in the attack as well", "the attack is the host's")
def test_gradient_matching_in_the_attack() -> None:
    views, y = logits(), labels(5)
    host, grown = build("adaad").inner, build("adaad+igdm").inner
    assert host is not None
    assert grown is not None
    assert torch.equal(host(batch_of(views, y)), grown(batch_of(views, y)))


# --- arithmetic ---


@defect(
    "MTARD, B-MTARD, ABSLD, CIARD",
    "1e-5 is added inside the logarithm of the teachers' probabilities, and enters what the losses are balanced by",
    "the divergence of equal predictions is zero",
)
@pytest.mark.parametrize(
    ("name", "view"), [("mtard", "x_adv"), ("b_mtard", "x_adv"), ("ciard", "x_adv"), ("absld", "x")]
)
def test_a_divergence_of_equal_predictions_is_zero(name: str, view: str) -> None:
    views, y = logits(), labels(5)
    views["S.x_adv"] = views[f"T.{view}"].detach().clone().requires_grad_()
    assert terms(name, views, y)["adv"].abs().max() < 1e-12


EXTREME = {"dgad": {"dgad.mu": 0.0}}


@defect(
    "RSLAD on CIFAR-100, ABSLD",
    "log(softmax) of a class that is all but impossible is minus infinity",
    "log_softmax throughout: finite in single precision",
)
@pytest.mark.parametrize("name", METHODS)
def test_the_logarithm_of_a_softmax_is_minus_infinity(name: str) -> None:
    views = {k: v.detach().float() for k, v in logits(spread=150.0).items()}
    learning = {k: v.requires_grad_(k.startswith(("S", "P", "T_tuned"))) for k, v in views.items()}
    assert learning["S.x"].softmax(1).min() == 0, "the case is not one"
    method = build(name, EXTREME.get(name))
    loss = loss_of(method, learning, labels(5))
    assert loss.isfinite()
    assert all(slope.isfinite().all() for slope in gradients(loss, learning).values())


@defect("MART", "log(q + 1e-12) cannot exceed 27.6, and has no gradient there", "log_softmax has both")
def test_mart_saturates_where_it_is_most_wrong() -> None:
    views, y = logits(1), torch.tensor([1])
    views["S.x"] = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    views["S.x_adv"] = torch.tensor([[0.0, 60.0, 0.0]], dtype=torch.float64, requires_grad=True)
    term = terms("mart", views, y)["nat"]
    assert term.item() / 5 == pytest.approx(60, rel=1e-6)
    assert gradients(term.sum(), views)["S.x_adv"].norm() > 1


@defect("others' SAAD", "the entropy of a half-precision teacher is no number", "it is finite")
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_the_entropy_of_a_teacher_in_half_precision(order: float) -> None:
    z = torch.tensor([[40.0, 0.0, -40.0], [1.0, 0.0, 0.0]], dtype=torch.float16)
    found = renyi_entropy(z, order)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), renyi_entropy(z.double(), order), rtol=0, atol=5e-3)


class NoValues(TorchDispatchMode):
    """Raises where the value of a tensor is asked for, which is where a GPU would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), "a wait"
        return func(*args, **(kwargs or {}))


@defect(
    "IAD, Fair-ARD",
    "weights are made sample by sample, with a wait for the GPU at each",
    "no formula asks for a number's value",
)
@pytest.mark.parametrize("spec", [*METHODS, "ard+fair", "rslad+igdm", "rslad+mmard"])
def test_a_loop_over_samples_waits_for_the_gpu(spec: str) -> None:
    method, b = build(spec), batch_of(logits(), labels(5))
    with NoValues():
        method.outer(b)
    with NoValues(), pytest.raises(AssertionError, match="a wait"):
        [p.item() for p in b.T(b.x)[:, 0]]


@defect("ABSLD", "cross-entropies of a class are summed, which measures its size too", "they are averaged")
def test_a_large_class_counts_as_a_hard_one() -> None:
    tau = ClassTemperatures(0.1, ())
    tau.sized(torch.zeros(1, 2))
    easy_and_large, hard_and_small = [1.0] * 9, [3.0]
    risk = torch.tensor(easy_and_large + hard_and_small)
    tau.see(torch.tensor([0] * 9 + [1]), risk, risk, 0.1)
    tau.renew()
    assert tau.adv.tolist() == tau.nat.tolist() == pytest.approx([1.1, 0.9])


@defect("Fair-RSLAD", "ten classes are in the code", "as many as the network has")
@pytest.mark.parametrize("classes", [3, 17])
def test_fair_knows_ten_classes(classes: int) -> None:
    method, views, y = build("rslad+fair"), logits(8, classes=classes), torch.arange(8) % classes
    method.outer(batch_of(views, y))
    method.epoch_end()
    assert method.memory is not None
    assert method.memory.weight.shape == (classes,)
    assert all(term.isfinite().all() for term in method.outer(batch_of(views, y)).values())


@defect(
    "HAT",
    "the loss called by itself has h = 3.5, beta = 1 and gamma = 1; the script hands other values on",
    "h = 2, beta = 2.5 and gamma = 0.5, as its command for CIFAR-10 has them",
)
def test_hat_has_two_sets_of_defaults() -> None:
    views, y = logits(5), labels(5)
    found, expected = terms("hat", views, y), terms("trades", views, y, {"trades.beta": 2.5})
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    helped = ce(views["S.x_times_2"], views["T_nat.x_adv"].argmax(1))
    torch.testing.assert_close(found["helper"], 0.5 * helped)


@defect(
    "DGAD",
    "a misplaced bracket for MobileNetV2 multiplies the two losses",
    "`alpha` = 0.5, which it means, is half of their sum",
)
def test_dgad_multiplies_its_two_losses() -> None:
    views, y = logits(8), labels(8)
    whole, half = (terms("dgad", views, y, {"dgad.alpha": a, "dgad.mu": 0.0}) for a in (1.0, 0.5))
    assert all(term.sum() > 0 for term in whole.values()), "both halves of the batch are met"
    total = [torch.stack([term.mean() for term in found.values()]).sum() for found in (whole, half)]
    torch.testing.assert_close(total[1], 0.5 * total[0])


@defect("DGAD", "divides by zero where the teacher misreads the whole batch", "that half of the loss is zero")
def test_dgad_divides_by_zero_where_the_teacher_is_always_wrong() -> None:
    views, y = logits(6), labels(6)
    views["T.x"] = 9.0 * F.one_hot((y + 1) % 3, 3).double()
    found = terms("dgad", views, y)
    assert (found["adv"] == 0).all()
    assert (found["nat"] > 0).all()
    loss = torch.stack([term.mean() for term in found.values()]).sum()
    assert all(slope.isfinite().all() for slope in gradients(loss, views).values())
