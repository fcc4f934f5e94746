"""The student's own average in formulas: how it moves, that it resumes, and what labels are made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from laws import over
from little import FACTS, RECIPE, batches_of, run_in, same, state, step_of, validation
from nets import batch_of, labels, logits
from torch.nn.functional import one_hot

from mmard.errors import Refused
from mmard.method import halves
from mmard.methods import METHODS, build
from mmard.methods.adr import rectified
from mmard.training.fit import fit
from mmard.training.step import Step


class Killed(Exception):
    pass


def made() -> Step:
    return step_of(build("pgd_at+adr"))


def trained(folder: Path, stop_after: int | None = None) -> Step:
    """Train; with `stop_after`, kill it after so many steps and go on with fresh objects."""

    def killed(event: dict[str, object]) -> None:
        if event["step"] == stop_after:
            raise Killed

    step, run = made(), run_in(folder)
    if stop_after is not None:
        with pytest.raises(Killed):
            fit(step, batches_of(), RECIPE, run, validation, facts=FACTS, observers=[killed], save_seconds=0.0)
        step = made()
    fit(step, batches_of(), RECIPE, run, validation, facts=FACTS)
    return step


def test_the_average_moves_after_each_update_by_the_share_of_a_young_average() -> None:
    step = made()
    optimizer = torch.optim.SGD(step.nets["S"].parameters(), lr=0.5)
    expected = state(step.nets["S"])
    for count, (x, y) in enumerate(batches_of().epoch(0), 1):
        optimizer.zero_grad()
        step.run(x, y).loss.backward()
        assert same(state(step.nets["S_ema"]), expected), "before the update it is what it was"
        optimizer.step()
        step.settle()
        step.settle()  # a second call moves nothing
        share = 1 - min(0.995, count / (count + 10))
        for name, now in state(step.nets["S"]).items():
            expected[name] = expected[name].lerp(now, share) if now.is_floating_point() else now
        assert same(state(step.nets["S_ema"]), expected)
    assert not same(expected, state(step.nets["S"]))
    assert not step.nets["S_ema"].training
    assert "S_ema" not in step.trained


def test_a_cut_run_ends_with_the_average_of_one_that_was_not(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    for stop in (3, 5):
        cut = trained(tmp_path / f"cut{stop}", stop)
        for letter in ("S", "S_ema"):
            assert same(state(cut.nets[letter]), state(whole.nets[letter])), letter


def test_the_twin_of_the_average_answers_with_its_present_weights() -> None:
    step = made()
    x = next(iter(batches_of().epoch(0)))[0]
    step.twins.serving(x)
    with torch.no_grad():
        for weight in step.nets["S_ema"].parameters():
            weight.add_(0.1)
        expected = step.nets["S_ema"](x)
        torch.testing.assert_close(step.twins.serving(x)["S_ema"](x), expected, rtol=1e-4, atol=1e-4)


@over("name", [name for name in METHODS if build(name).soft_labels])
def test_labels_as_probabilities_of_one_are_the_labels(name: str) -> None:
    """Up to the order in which a sum is taken."""
    method, views, y = build(name), logits(5), labels(5)
    found = method.outer(batch_of(views, one_hot(y, 3).double()))
    for term, expected in method.outer(batch_of(views, y)).items():
        torch.testing.assert_close(found[term], expected, rtol=1e-14, atol=1e-14)


def test_a_rectified_label_is_a_distribution_whose_largest_class_is_the_true_one() -> None:
    z, y = 4 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), labels(200)
    for trust in (0.3, 0.95, 1.0):
        q = rectified(z, y, trust)
        torch.testing.assert_close(q.sum(1), torch.ones(200, dtype=torch.float64))
        assert (q >= 0).all()
        assert (q.gather(1, y[:, None])[:, 0] >= q.amax(1) - 1e-12).all()
    assert torch.equal(rectified(z, y, 0.0), one_hot(y, 5).double())


def test_hosts_that_need_whole_labels_are_refused() -> None:
    for host in ("mart", "rslad", "pgd_at+fair"):
        with pytest.raises(Refused, match="a host that takes labels as probabilities"):
            build(f"{host}+adr")


def test_two_averages_of_one_student_are_refused() -> None:
    slow, fast = build("trades+adr"), build("pgd_at+adr", {"adr.decay": 0.9})
    assert halves(fast, build("trades")).ema_decay == 0.9
    assert halves(build("trades"), fast).ema_decay == 0.9
    with pytest.raises(Refused, match="ema_decay"):
        halves(fast, slow)
