"""A batch in micro-batches: the gradient of the batch where images do not see each other, and what is said else."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws import over
from nets import ATTACK, BUDGET, CASES, Jittered, build, case_id, conv, images, labels, some_of
from torch import Tensor, nn

from mmard.batch import Batch, Terms
from mmard.engine.ascent import Chunks
from mmard.engine.graphs import accumulation_notes
from mmard.errors import Refused
from mmard.method import Method
from mmard.ops import ce
from mmard.training.step import Outcome, Step, descend

TEACHER = conv(seed=99, width=5).eval()
ALONE = [
    case
    for case in some_of(CASES)
    if not (made := build(*case)).couples_batch and made.around is None and made.memory is None
]
"""Methods whose terms of a sample are its own, and stay so from one micro-batch to the next."""


def step_of(method: Method, student: nn.Module, attack: Any = ATTACK, **settings: Any) -> Step:
    teachers = dict.fromkeys(method.teachers, TEACHER)
    peers = {letter: conv(seed=3, batch_norm=False) for letter in method.peers}
    return Step(method, {"S": student, **teachers, **peers}, attack, BUDGET, seed=4, **settings)


def gradient(
    method: Method, parts: int, n: int = 7, known: dict[str, Tensor] | None = None, **settings: Any
) -> tuple[Outcome, list[Tensor]]:
    student = conv(batch_norm=False)
    step = step_of(method, student, **settings)
    outcome = descend(step, images(n), labels(n), 0.9, known or {}, parts)
    assert step.count == 1
    return outcome, [p.grad for p in student.parameters() if p.grad is not None]


@over("case", ALONE, ids=case_id)
def test_micro_batches_have_the_gradient_of_the_batch(case: Any) -> None:
    method = build(*case)
    outcome, whole = gradient(method, 1)
    for parts in (2, 3):
        put_together, found = gradient(build(*case), parts)
        torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(put_together.loss, outcome.loss.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            put_together.terms, {k: v.detach() for k, v in outcome.terms.items()}, rtol=1e-11, atol=1e-12
        )
        if outcome.batch.x_adv is not None:
            torch.testing.assert_close(put_together.batch.adv.value, outcome.batch.adv.value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_a_small_last_batch_counts_its_images(n: int) -> None:
    """Five images in four parts are two and three; two images are a batch of their own."""
    _, whole = gradient(build("rslad+igdm"), 1, n)
    _, found = gradient(build("rslad+igdm"), 4, n)
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "parts", "sizes"),
    [
        (8, 1, [8]),
        (8, 4, [2, 2, 2, 2]),
        (7, 2, [4, 3]),
        (9, 4, [3, 2, 2, 2]),
        (3, 4, [3]),
        (5, 99, [3, 2]),
        (1, 4, [1]),
    ],
)
def test_no_micro_batch_is_a_single_image(n: int, parts: int, sizes: list[int]) -> None:
    step = step_of(build("rslad"), conv())
    assert [len(outcome.batch.y) for outcome in step.in_parts(images(n), labels(n), parts=parts)] == sizes
    assert step.count == 1


def test_all_attacks_come_before_the_first_update_forward() -> None:
    """So the attack on the last micro-batch sees the statistics that the attack on the first has seen."""
    order: list[tuple[str, int]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv()

        def forward(self, x: Tensor) -> Tensor:
            order.append(("train" if self.training else "eval", len(x)))
            return self.net(x)

    descend(step_of(build("pgd_at"), Watched()), images(7), labels(7), 1.0, {}, 2)
    steps = ATTACK.steps
    assert order == [("eval", 4)] * steps + [("eval", 3)] * steps + [("train", 4), ("train", 3)]


def test_batch_norm_makes_each_micro_batch_a_batch_of_its_own() -> None:
    """What the pages say: with BatchNorm the gradient is another, that of micro-batches normalised by themselves."""
    gradients = []
    for parts in (1, 2):
        student = conv()
        descend(step_of(build("pgd_at"), student), images(8), labels(8), 1.0, {}, parts)
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
        assert int(student[1].num_batches_tracked) == parts
    distance = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 1e-3 < distance < 1


def test_only_one_micro_batch_has_a_graph_at_a_time() -> None:
    alive: list[int] = []
    kept: list[Any] = []

    def outer(b: Batch) -> Terms:
        gc.collect()
        alive.append(sum(ref() is not None for ref in kept))
        loss = ce(b.S(b.adv), b.y)
        kept.append(weakref.ref(loss))
        return {"adv": loss}

    gradient(replace(build("pgd_at"), outer=outer), 3, n=9)
    assert alive == [0, 0, 0]


def test_it_goes_with_slices_and_with_what_is_known() -> None:
    known = {"T": TEACHER(images(7)).detach()}
    _, whole = gradient(build("rslad"), 1)
    _, found = gradient(build("rslad"), 2, known=known, ascent=Chunks(2))
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-12)


def test_an_attack_of_one_act_is_made_on_each_micro_batch() -> None:
    _, whole = gradient(build("pgd_at"), 1, attack=Jittered())
    _, found = gradient(build("pgd_at"), 3, attack=Jittered())
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-12)


def test_every_outcome_is_looked_at_before_its_gradient_is_added() -> None:
    class Stop(Exception):
        pass

    seen: list[int] = []

    def look(outcome: Outcome) -> None:
        seen.append(len(outcome.batch.y))
        if len(seen) == 2:
            raise Stop

    student = conv()
    step = step_of(build("rslad"), student)
    with pytest.raises(Stop):
        descend(step, images(7), labels(7), 1.0, {}, 2, look)
    assert seen == [4, 3]
    assert student.training
    assert step.count == 0


# --- what is said ---


def test_what_it_means_for_a_method_is_said() -> None:
    assert accumulation_notes(build("rslad"), 1, 128) == []
    (plain,) = accumulation_notes(build("rslad"), 4, 128)
    assert plain == "4 micro-batches of 32 images an update; BatchNorm normalises each by itself"
    _, coupled = accumulation_notes(build("rslad+mmard"), 4, 130)
    assert coupled == "terms that couple samples couple those of a micro-batch, 33 images"
    remembering = replace(build("rslad"), memory=nn.BatchNorm1d(1))
    assert "remembers" in accumulation_notes(remembering, 2, None)[-1]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match=r"--accumulate 5: expected micro-batches of two images or more.*at most 4"):
        accumulation_notes(build("rslad"), 5, 8)
    ahead = replace(build("rslad"), around=lambda progress, weights, gradients: {})
    with pytest.raises(Refused, match="looks ahead on the whole batch"):
        accumulation_notes(ahead, 2, 8)
    with pytest.raises(Refused, match="looks ahead"):
        descend(step_of(ahead, conv()), images(8), labels(8), 1.0, {}, 2)
    descend(step_of(ahead, conv()), images(8), labels(8), 1.0, {}, 1)
