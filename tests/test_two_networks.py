"""Methods that train two networks: a peer from scratch, and a teacher that goes on learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from little import BUDGET, FACTS, RECIPE, batches_of, matcher, net, run_in, same, state, step_of, validation
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.batch import Batch
from mmard.errors import Refused
from mmard.job import prepare
from mmard.methods import build
from mmard.networks import load_network
from mmard.settings import Settings
from mmard.training.fit import fit
from mmard.training.recipe import optimizer_of
from mmard.training.step import Step

OTHERS = {"peeraid": {"P": {"network": "peer's"}}, "ciard": {"T": {"network": "teacher's"}}}
SPECS = ("peeraid", "ciard", "peeraid+awp", "ciard+mmard+fair")


class Killed(Exception):
    pass


def two(spec: str) -> Step:
    return step_of(build(spec), T=net(5), T_nat=matcher(), P=net(9))


def trained(spec: str, folder: Path, stop_after: int | None = None) -> Step:
    """Train; with `stop_after`, kill it after so many steps and go on with fresh objects."""
    step, run = two(spec), run_in(folder)
    others = OTHERS[spec.split("+")[0]]
    if stop_after is not None:

        def killed(event: dict[str, object]) -> None:
            if event["step"] == stop_after:
                raise Killed

        with pytest.raises(Killed):
            fit(
                step,
                batches_of(),
                RECIPE,
                run,
                validation,
                facts=FACTS,
                others=others,
                observers=[killed],
                save_seconds=0.0,
            )
        step = two(spec)
    fit(step, batches_of(), RECIPE, run, validation, facts=FACTS, others=others)
    return step


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_that_was_cut_ends_as_one_that_was_not(spec: str, tmp_path: Path) -> None:
    """At an epoch's end and within one: both networks, the memory and the optimiser are as if nothing had happened."""
    whole = trained(spec, tmp_path / "whole")
    for stop in (3, 5):
        cut = trained(spec, tmp_path / f"cut{stop}", stop)
        for letter in whole.trained:
            assert same(state(cut.nets[letter]), state(whole.nets[letter])), letter
        if whole.method.memory is not None:
            assert cut.method.memory is not None
            assert same(state(cut.method.memory), state(whole.method.memory))


@pytest.mark.parametrize(("spec", "letter"), [("peeraid", "P"), ("ciard", "T")])
def test_both_networks_are_trained_and_their_weights_are_in_the_folder(spec: str, letter: str, tmp_path: Path) -> None:
    before = state(two(spec).nets[letter])
    step = trained(spec, tmp_path / "run")
    assert not same(state(step.nets[letter]), before)
    run = run_in(tmp_path / "other")
    run = type(run).open(tmp_path / "run")
    last, facts = run.load_weights(f"last-{letter}")
    assert same(last, state(step.nets[letter]))
    assert facts["network"] == OTHERS[spec][letter]["network"]
    assert facts["epoch"] == RECIPE.epochs
    assert run.load_weights(f"best-{letter}")[1]["epoch"] <= RECIPE.epochs


# --- PeerAiD ---


def slopes_of(spec: str, term: str) -> dict[str, bool]:
    """Which network's weights receive a gradient from a term."""
    step = two(spec)
    outcome = step.run(*next(iter(batches_of().epoch(0))))
    found = {}
    for letter, module in step.trained.items():
        weights = list(module.parameters())
        got = torch.autograd.grad(outcome.terms[term].mean(), weights, retain_graph=True, allow_unused=True)
        found[letter] = any(g is not None and g.norm() > 0 for g in got)
    return found


@pytest.mark.parametrize("term", ["peer", "self"])
def test_the_students_losses_train_the_student_alone(term: str) -> None:
    assert slopes_of("peeraid", term) == {"S": True, "P": False}


@pytest.mark.parametrize("term", ["peer_label", "peer_student"])
def test_the_peers_losses_train_the_peer_alone(term: str) -> None:
    """The released code does not detach the student there, so the peer's loss trains it too."""
    assert slopes_of("peeraid", term) == {"S": False, "P": True}


def test_the_students_clean_prediction_is_a_target_that_learns() -> None:
    step = two("peeraid")
    outcome = step.run(*next(iter(batches_of().epoch(0))))
    b = outcome.batch
    (slope,) = torch.autograd.grad(outcome.terms["self"].mean(), b.S(b.x), retain_graph=True)
    assert slope.norm() > 0


def test_the_attack_asks_the_peer_in_eval_mode_once_and_the_loss_in_train_mode_once() -> None:
    modes: list[bool] = []
    step = two("peeraid")
    step.nets["P"].register_forward_hook(lambda m, *_: modes.append(m.training))
    before = int(step.nets["P"][1].num_batches_tracked)
    step.run(*next(iter(batches_of().epoch(0))))
    assert modes == [False, True]
    assert int(step.nets["P"][1].num_batches_tracked) == before + 1


def test_a_peer_is_made_as_the_student_is_and_is_another(tmp_path: Path) -> None:
    said = {"model": "cnn-4", "method": "peeraid", "data": "digits", "limit_train": 64, "epochs": 1}
    job = prepare(Settings.resolve(said))
    student, peer = job.step.nets["S"], job.step.nets["P"]
    assert [w.shape for w in student.parameters()] == [w.shape for w in peer.parameters()]
    assert not any(
        torch.equal(a, b) for a, b in zip(student.parameters(), peer.parameters(), strict=True) if a.ndim > 1
    )
    assert job.others["P"]["network"] == "cnn-4"
    again = prepare(Settings.resolve(said)).step.nets["P"]
    assert same(state(peer), state(again))
    wide = prepare(Settings.resolve({**said, "peer": "cnn-8"}))
    assert wide.others["P"]["network"] == "cnn-8"
    with pytest.raises(Refused, match="name a network: --peer"):
        prepare(Settings.resolve({**said, "model": "given:CNN"}), student=student)


def test_a_peer_can_be_loaded_as_any_network(tmp_path: Path) -> None:
    from mmard.api import train

    train("cnn-4", data="digits", method="peeraid", out=tmp_path / "run", epochs=1, limit_train=64, batch_size=32)
    found = load_network(str(tmp_path / "run" / "last-P.safetensors"))
    assert found.facts["network"] == "cnn-4"


# --- CIARD ---


def test_the_teacher_learns_at_a_rate_of_its_own_after_a_sixth_of_the_run() -> None:
    tuning = build("ciard").tunes["T"]
    rates = [tuning.lr((epoch + 1) / 300) for epoch in range(300)]
    assert rates[:50] == [0.0] * 50
    v = [(epoch + 1 - 50) / 250 for epoch in range(50, 300)]
    import math

    expected = [1e-4 * (1 + math.cos(math.pi * u)) / 2 * math.exp(-0.01 * u**2) for u in v]
    assert rates[50:] == pytest.approx(expected)
    assert (tuning.momentum, tuning.weight_decay) == (0.1, 2e-4)


def test_the_optimiser_has_a_group_for_each_network() -> None:
    step = two("ciard")
    groups = {g["letter"]: g for g in optimizer_of(step, replace(RECIPE, nesterov=True)).param_groups}
    assert set(groups) == {"S", "T"}
    assert (groups["S"]["momentum"], groups["S"]["nesterov"]) == (0.9, True)
    assert (groups["T"]["momentum"], groups["T"]["weight_decay"], groups["T"]["nesterov"]) == (0.1, 2e-4, False)


def test_the_teacher_keeps_its_statistics_and_the_students_targets_are_constant() -> None:
    """The released code keeps it in train mode: its BatchNorm drifts from the first step on."""
    step = two("ciard")
    teacher = step.nets["T"].train()
    before = {name: b.clone() for name, b in teacher.named_buffers()}
    outcome = step.run(*next(iter(batches_of().epoch(0))))
    assert same(dict(teacher.named_buffers()), before)
    assert teacher.training
    b = outcome.batch
    assert not b.T(b.adv).requires_grad
    assert torch.equal(b.T(b.adv), b.T_tuned(b.adv))
    for name, term in outcome.terms.items():
        got = torch.autograd.grad(term.mean(), list(teacher.parameters()), retain_graph=True, allow_unused=True)
        assert any(g is not None for g in got) == (name == "teacher"), name


def test_before_its_time_the_teacher_stays_and_its_gradient_is_not_the_students() -> None:
    step = two("ciard")
    optimizer = optimizer_of(step, RECIPE)
    before = state(step.nets["T"])
    for group in optimizer.param_groups:
        tuning = step.method.tunes.get(group["letter"])
        group["lr"] = 0.1 if tuning is None else tuning.lr(0.1)
    step.run(*next(iter(batches_of().epoch(0))), progress=0.1).loss.backward()
    optimizer.step()
    assert same(state(step.nets["T"]), before)


def batch_where(misread: list[bool]) -> tuple[Callable[[], dict[str, Tensor]], Tensor]:
    """A batch of CIARD whose natural teacher misreads these samples at x'."""
    from nets import batch_of, labels, logits

    y, views = labels(len(misread)), logits(len(misread))
    answer = torch.where(torch.tensor(misread), (y + 1) % 3, y)
    views["T_nat.x_adv"] = 6 * torch.nn.functional.one_hot(answer, 3).double()
    return lambda: build("ciard").outer(batch_of(views, y)), y


def test_a_batch_without_an_error_of_the_natural_teacher_has_no_push() -> None:
    """The released code reads a variable that no batch has set yet."""
    terms = batch_where([False] * 4)[0]()
    assert (terms["push"] == 0).all()
    assert all(term.isfinite().all() for term in terms.values())


def test_the_push_is_a_mean_over_the_misread_and_has_the_order_of_the_smaller_loss() -> None:
    terms = batch_where([True, False, False, True])[0]()
    assert ((terms["push"] != 0) == torch.tensor([True, False, False, True])).all()
    smaller, push = min(terms["adv"].mean(), terms["nat"].mean()), -terms["push"].mean()
    assert torch.floor(torch.log10(push)) == torch.floor(torch.log10(smaller))


def test_the_push_is_bounded() -> None:
    """Else the student gains without end by moving away from one teacher's error."""
    from nets import batch_of, labels, logits

    y, views = labels(4), logits(4)
    views["T_nat.x_adv"] = 60 * torch.nn.functional.one_hot((y + 1) % 3, 3).double()
    views["S.x_adv"] = (-300 * torch.nn.functional.one_hot((y + 1) % 3, 3).double()).requires_grad_()
    for bounded in (True, False):
        push = build("ciard", {"ciard.bounded": bounded}).outer(batch_of(views, y))["push"]
        (slope,) = torch.autograd.grad(push.sum(), views["S.x_adv"])
        assert (slope.norm() == 0) == bounded


def test_a_plug_in_reads_the_tuned_teacher_as_a_constant() -> None:
    step = two("ciard+igdm")
    outcome = step.run(*next(iter(batches_of().epoch(0))))
    weights = list(step.nets["T"].parameters())
    assert all(g is None for g in torch.autograd.grad(outcome.terms["igdm"].mean(), weights, allow_unused=True))
    assert isinstance(outcome.batch, Batch)
    assert isinstance(step.attack, PGD)
    assert step.budget == BUDGET
    assert isinstance(weights[0], nn.Parameter)
