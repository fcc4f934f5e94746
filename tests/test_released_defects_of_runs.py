"""Defects of released code in attacks, statistics, schedules, selection and files of weights.

As in `test_released_defects_of_losses.py`, each test is named after one, and passes where ours has it not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from little import FACTS, RECIPE, batches_of, net, run_in, validation
from little import step_of as little_step
from nets import BUDGET, build, conv, images, labels, step_of
from released import defect, defects, names_in
from torch import Tensor

import mmard
from mmard.attacks import PGD, read_attack
from mmard.attacks.pgd import STARTS
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.job import recipe_of
from mmard.methods import METHODS
from mmard.models import build as build_network
from mmard.networks import load_network
from mmard.settings import Settings
from mmard.teachers import find, teachers
from mmard.training.fit import fit

ELSEWHERE: tuple[tuple[str, str, str, str], ...] = (
    (
        "ARD, IAD, AKD2, Fair-ARD, FGSM-RS, N-FGSM, PGD-AT of Rice et al., AT-AWP",
        "the attack runs in train mode, so that every iterate moves BatchNorm's statistics",
        "eval mode, but where a preset or `attack_mode` replays the code",
        "test_common_steps.py::test_statistics_move_by_the_declared_forwards_in_their_order_and_by_nothing_else",
    ),
    (
        "CIARD",
        "S(x) is run in train mode before the attack, which so climbs on statistics that the step has moved",
        "attacks come before the forwards of a step",
        "test_common_steps.py::test_statistics_move_by_the_declared_forwards_in_their_order_and_by_nothing_else",
    ),
    (
        "CIARD",
        "the robust teacher stands in train mode: its statistics drift and its labels depend on the batch",
        "it is trained in eval mode, with the statistics that it came with",
        "test_two_networks.py::test_the_teacher_keeps_its_statistics_and_the_students_targets_are_constant",
    ),
    (
        "others'",
        "a teacher is left in train mode",
        "every teacher is put to rest inside a step",
        "test_pitfalls.py::test_3_a_teacher_that_was_left_in_train_mode_teaches_as_in_eval_mode",
    ),
    (
        "SAAD",
        "an attack (its CW) goes backward into the weights' gradients",
        "a step leaves no gradient before its own backward",
        "test_common_steps.py::test_a_step_leaves_the_teacher_the_flags_and_the_modes_as_they_were",
    ),
    (
        "TRADES, LBGAT",
        "S(x) is evaluated again at every step of the attack",
        "once",
        "test_costs.py::test_a_step_costs_what_it_must_and_no_pass_more",
    ),
    (
        "AdaIAD, SAAD",
        "a teacher is asked twice for the same logits, once with a graph that nobody reads",
        "once",
        "test_costs.py::test_a_step_costs_what_it_must_and_no_pass_more",
    ),
    (
        "others' TRADES",
        "the attack starts at x, where its gradient is zero",
        "it starts 0.001 away",
        "test_pitfalls.py::test_2_a_divergence_from_the_prediction_at_x_needs_a_start_away_from_x",
    ),
    (
        "RSLAD, AdaAD and IGDM as SAAD's authors have them",
        "radius and step are swapped: 2/255 in steps of 8/255",
        "a step above the ball's diameter is refused",
        "test_pitfalls.py::test_2_a_step_of_the_radius_in_a_ball_of_the_step_is_refused",
    ),
    (
        "IGDM, SAAD",
        "where the attack does nothing, the matching of gradients vanishes without a word",
        "the log says how far the attack went",
        "training/test_fit.py::test_reach_is_the_radius",
    ),
    (
        "AWP",
        "w + v - v leaves rounding behind",
        "the weights come back to the bit",
        "test_awp.py::test_a_learning_rate_of_zero_leaves_the_weights_to_the_bit",
    ),
    (
        "others' AWP",
        "one length for all weights together, BatchNorm and biases among them",
        "gamma of each layer's own length, of weights alone",
        "test_awp.py::test_every_weight_tensor_moves_by_gamma_of_its_length_and_nothing_else_moves",
    ),
    (
        "others' AWP",
        "the weights are put back before the optimiser works",
        "after",
        "test_awp.py::test_the_optimiser_works_where_the_weights_were_moved_to",
    ),
    (
        "others'",
        "averaged weights keep statistics that are of other weights, or are estimated in eval mode, which does nothing",
        "they are estimated anew from training images",
        "test_averaging.py::test_swa_takes_statistics_from_the_images",
    ),
    (
        "others' IGDM, SAAD in several processes",
        "a further forward in train mode before backward fails, or each process has statistics of its own",
        "two processes give what one gives",
        "test_distributed.py::test_two_processes_equal_one",
    ),
    (
        "IAD, RSLAD, AdaAD, DGAD, MTARD, B-MTARD, ABSLD, PeerAiD, CIARD",
        "the best epoch is chosen on the test images",
        "training and selection never see them",
        "test_job.py::test_training_and_selection_never_look_at_the_test_images",
    ),
    (
        "SAAD",
        "keeps the last weights alone",
        "best and last are kept, and never share a row",
        "training/test_fit.py::test_the_best_weights_are_chosen_by_robust_then_clean_accuracy",
    ),
    (
        "SAAD",
        "the average of the last epochs stands beside the best on the test images",
        "which weights a figure is of is in its record",
        "test_comparison.py::test_best_and_last_are_apart",
    ),
    (
        "AdaAD, DGAD",
        "CW is an L2 attack, and PGD has ten steps, in columns that others fill with linf and twenty",
        "attacks that differ bear different descriptions",
        "test_pitfalls_of_runs.py::test_10_attacks_that_differ_in_anything_bear_different_descriptions",
    ),
    (
        "SAAD, AdaAD",
        "options that are read and ignored, or crash",
        "every setting is read somewhere",
        "test_config.py::test_every_setting_is_read",
    ),
    (
        "others'",
        "ramps and milestones count from 0 in one place and from 1 in another",
        "every epoch of every preset has the rate that its script has there",
        "test_presets.py::test_the_schedule_is_that_of_the_released_code",
    ),
    (
        "others'",
        "an input is standardised twice",
        "normalisation stands in one place, or the file is refused",
        "test_checkpoints.py::test_what_does_not_fit_is_refused_with_the_mend",
    ),
)


def settled(method: str, preset: str, data: str = "cifar10") -> Settings:
    return Settings.resolve({"teacher": "t", "method": method, "preset": preset, "data": data})


# --- attacks ---


@defect(
    "ARD, IAD, Fair-ARD, RSLAD, AdaAD, MTARD",
    "the random start is not clamped, so the first gradient is taken outside of [0, 1]",
    "every iterate is an image",
)
@pytest.mark.parametrize("start", [start for start in STARTS if start != "none"])
def test_the_attack_starts_outside_of_the_box(start: str) -> None:
    x = (images(8) > 0.5).double()  # nothing but the faces of the box
    asked: list[Tensor] = []
    model = conv().eval()
    model.register_forward_pre_hook(lambda _, given: asked.append(given[0].detach()))
    PGD(2, 2 / 255, start)(model, lambda z, _: z[:, 0], x, BUDGET, generator=torch.Generator().manual_seed(1))
    assert (asked[0] != x).any()
    assert all(((z >= 0) & (z <= 1)).all() for z in asked)


@defect("AdaAD", "the radius is 16/255 unless one says otherwise", "8/255 in every preset")
@pytest.mark.parametrize("method", ["adaad", "adaiad"])
@pytest.mark.parametrize("preset", ["unified", "official"])
def test_adaad_trains_at_twice_the_radius(method: str, preset: str) -> None:
    settings = settled(method, preset)
    assert settings.eps == 8 / 255
    assert (settings.step_size or settings.eps / 4) == 2 / 255


@defect("SAAD", "the step of its PGD is 2/225", "pgd-20 at 8/255 has steps of 2/255")
def test_the_step_of_pgd_has_a_misprint() -> None:
    attack = read_attack("pgd-20", Budget(8 / 255)).climb
    assert isinstance(attack, PGD)
    assert attack.step_size == pytest.approx(2 / 255, rel=1e-12)


@defect("AdaAD, DGAD", "the teacher's weights collect gradients", "teachers are frozen")
@pytest.mark.parametrize("spec", ["adaad", "adaiad", "dgad", "saad", "rslad+igdm"])
def test_the_teacher_collects_gradients(spec: str) -> None:
    asking: set[bool] = set()
    teacher = conv(seed=5).eval()
    teacher.register_forward_pre_hook(lambda m, _: asking.update(p.requires_grad for p in m.parameters()))
    step_of(spec, conv(), teacher)(images(3), labels(3))[0].backward()
    assert asking == {False}
    assert all(p.grad is None for p in teacher.parameters())


# --- statistics ---

SEEN = {
    "ard": 1, "adaad": 1, "saad": 1, "pgd_at": 1, "adaad+igdm": 1, "n_fgsm": 1,
    "trades": 2, "mart": 2, "iad_i": 2, "rslad": 2, "peeraid": 2, "rslad+igdm": 2, "rslad+awp": 2,
}  # fmt: skip
"""Forwards of a step that move the student's statistics."""


@defect(
    "ARD, AdaAD, IAD-I, PeerAiD, TRADES, SAAD",
    "views that no loss reads, or the same view twice, are run in train mode and move BatchNorm's statistics",
    "each view that a loss reads, once",
)
@pytest.mark.parametrize("spec", SEEN)
def test_a_forward_without_a_loss_moves_the_statistics(spec: str) -> None:
    student = conv()
    step_of(spec, student)(images(4), labels(4))
    assert int(student[1].num_batches_tracked) == SEEN[spec]


@defect("IGDM, SAAD", "S(x - d) moves BatchNorm's statistics", "a plug-in's own view is quiet")
@pytest.mark.parametrize(("spec", "moves"), [("adaad+igdm", False), ("saad", False), ("saad loud", True)])
def test_the_mirror_moves_the_statistics(spec: str, moves: bool) -> None:
    student, alone = conv(), conv()
    params: dict[str, Any] = {"saad.quiet_mirror": False} if "loud" in spec else {}
    b = step_of(build(spec.split()[0], params), student).run(images(4), labels(4)).batch
    alone(b.adv.value)
    assert (not torch.equal(student[1].running_mean, alone[1].running_mean)) == moves


@defect(
    "PGD-AT of Rice et al., AT-AWP",
    "the clean batch goes through the student in train mode after every step, for the log alone",
    "validation is in eval mode and on other images: it moves nothing",
)
def test_a_forward_for_the_log_moves_the_statistics(tmp_path: Path) -> None:
    student = net()
    step, batches = little_step("pgd_at", student), batches_of()
    fit(step, batches, RECIPE, run_in(tmp_path / "run"), validation, facts=FACTS)
    assert int(student[1].num_batches_tracked) == RECIPE.epochs * batches.steps == step.count


# --- schedules ---


@defect(
    "ARD, IAD-I, IAD-II, Fair-ARD",
    "the second drop of the learning rate never happens",
    "it happens where the text says, but for the preset `replica`",
)
@pytest.mark.parametrize("method", ["ard", "iad_i", "iad_ii", "ard+fair", "iad_i+fair"])
def test_the_second_drop_never_happens(method: str) -> None:
    for preset in ("unified", "official"):
        recipe = recipe_of(settled(method, preset))
        assert recipe.lr_at(recipe.epochs - 1, 0, 1) == pytest.approx(recipe.lr / 100)
    replica = recipe_of(settled(method.split("+")[0], "replica"))
    assert replica.lr_at(replica.epochs - 1, 0, 1) == pytest.approx(replica.lr / 10)


@defect("Fair-ARD", "Nesterov's momentum, which the methods that it wraps do not have", "the host's")
@pytest.mark.parametrize("method", ["ard+fair", "rslad+fair", "mtard+fair", "iad_i+fair"])
def test_fair_changes_the_momentum(method: str) -> None:
    for preset in ("unified", "official"):
        recipes = [recipe_of(settled(name, preset)) for name in (method, method.split("+")[0])]
        assert recipes[0] == recipes[1]
        assert not recipes[0].nesterov


# --- teachers and their files ---


@defect(
    "RSLAD, MTARD",
    "the teacher of CIFAR-100 standardises by the statistics of CIFAR-10",
    "a teacher has its own, and a file that says otherwise is refused",
)
def test_a_teacher_of_cifar100_standardises_by_the_numbers_of_cifar10(tmp_path: Path) -> None:
    means = {data: {t.mean for t in teachers() if t.data == data and t.mean} for data in ("cifar10", "cifar100")}
    assert means["cifar10"]
    assert means["cifar100"]
    assert not means["cifar10"] & means["cifar100"]
    wrong, right = (find(f"robustbench:{data}/Wang2023Better_WRN-28-10")[0] for data in ("cifar10", "cifar100"))
    state = {"mean": torch.tensor(wrong.mean).view(3, 1, 1), "std": torch.tensor(wrong.std).view(3, 1, 1)}
    torch.save(state | {"logits.weight": torch.rand(100, 640), "logits.bias": torch.rand(100)}, tmp_path / "w.pt")
    with pytest.raises(Refused, match="is it the file of another data set"):
        mmard.load_teacher(right.spec, weights=tmp_path / "w.pt")


@defect(
    "RSLAD on CIFAR-100",
    "the teacher is turned to half precision and given images in single",
    "weights of half precision are read into a network of single precision",
)
def test_a_teacher_in_half_precision_is_given_single(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"num_classes": 10, "image_shape": (1, 8, 8)}
    state = build_network("cnn-4", **wanted).state_dict()
    halved = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
    torch.save(halved, tmp_path / "half.pt")
    teacher = load_network("cnn-4", weights=str(tmp_path / "half.pt"), **wanted).module
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert teacher(torch.rand(2, 1, 8, 8)).dtype == torch.float32


# --- the table ---


def test_every_row_has_a_test_and_no_row_stands_twice() -> None:
    rows = list(defects())
    assert len(rows) > 60
    assert len({(row.code, row.theirs) for row in rows}) == len(rows)
    for row in rows:
        file, _, name = row.test.partition("::")
        assert name in names_in(file), row.test


def test_every_test_of_these_files_is_a_row() -> None:
    own = {
        (file.name, name) for file in Path(__file__).parent.glob("test_released_*.py") for name in names_in(file.name)
    }
    rows = {tuple(row.test.split("::")) for row in defects()}
    assert {name for pair in own - rows for name in pair[1:]} == {
        "test_every_row_has_a_test_and_no_row_stands_twice",
        "test_every_test_of_these_files_is_a_row",
        "test_every_method_of_a_paper_with_code_is_in_the_table",
    }


def test_every_method_of_a_paper_with_code_is_in_the_table() -> None:
    """A new method is compared with its authors' code, or it is said here that there is nothing to compare."""
    said = {word.lower().replace("-", "_") for row in defects() for word in re.findall(r"[\w-]+", row.code)}
    assert set(METHODS) - said == {"natural", "kd"} - said
    assert {"igdm", "awp", "fair_ard"} <= said
