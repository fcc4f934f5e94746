"""The attack in slices: the same x_adv, trace, notes and predictions; and what happens when memory runs out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from nets import ATTACK, BUDGET, CASES, VARIANTS, Jittered, build, case_id, conv, images, labels, same, some_of, state
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.batch import Batch
from mmard.engine.ascent import Chunks, even, out_of_memory, plain, why_whole
from mmard.method import Method
from mmard.ops import ce, kl
from mmard.training.step import Outcome, Step

TEACHER = conv(seed=99, width=5).eval()
ATTACKING = [case for case in some_of(CASES) if build(*case).inner is not None and not why_whole(build(*case))]


def run(method: Method, ascent: Any = plain, n: int = 5, attack: Any = ATTACK, **given: Any) -> tuple[Outcome, Any]:
    """One step on a fresh student, with the gradient of its loss."""
    student = conv()
    peers = {letter: conv(seed=3) for letter in method.peers}
    teachers = dict.fromkeys(method.teachers, TEACHER)
    step = Step(method, {"S": student, **teachers, **peers}, attack, BUDGET, seed=4, ascent=ascent)
    outcome = step.run(images(n), labels(n), 0.9, **given)
    outcome.loss.backward()
    step.settle()
    return outcome, [p.grad for p in student.parameters()]


# --- the same climb ---


@over("case", ATTACKING, ids=case_id)
def test_slices_climb_as_the_batch_does(case: Any) -> None:
    whole, whole_gradient = run(build(*case))
    for size in (1, 3):
        sliced, gradient = run(build(*case), Chunks(size))
        a, b = sliced.batch, whole.batch
        torch.testing.assert_close(a.adv.value, b.adv.value, rtol=0, atol=1e-12)
        assert len(a.trace) == len(b.trace)
        torch.testing.assert_close(a.trace, b.trace, rtol=0, atol=1e-10)
        torch.testing.assert_close(sliced.loss, whole.loss, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-9, atol=1e-12)


def test_one_slice_is_the_batch_to_the_bit() -> None:
    whole, gradient = run(build("rslad+mmard"))
    for size in (0, 5, 99):
        sliced, same_gradient = run(build("rslad+mmard"), Chunks(size))
        assert torch.equal(sliced.batch.adv.value, whole.batch.adv.value)
        assert all(torch.equal(a, b) for a, b in zip(gradient, same_gradient, strict=True))


@given(st.integers(1, 300), st.integers(1, 80))
def test_slices_are_even_and_cover_the_batch(n: int, size: int) -> None:
    rows = even(n, size)
    lengths = [each.stop - each.start for each in rows]
    assert [i for each in rows for i in range(each.start, each.stop)] == list(range(n))
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(rows) == -(-n // size)


def test_no_network_sees_more_images_than_a_slice_and_the_teacher_is_asked_about_x_once() -> None:
    seen: dict[str, list[tuple[str, int]]] = {"S": [], "T": []}

    class Watched(nn.Module):
        def __init__(self, letter: str, net: nn.Module) -> None:
            super().__init__()
            self.letter, self.net = letter, net

        def forward(self, x: Tensor) -> Tensor:
            seen[self.letter].append(("train" if self.training else "eval", len(x)))
            return self.net(x)

    nets = {"S": Watched("S", conv()), "T": Watched("T", TEACHER)}
    Step(build("rslad"), nets, ATTACK, BUDGET, ascent=Chunks(3)).run(images(7), labels(7))
    assert seen["T"] == [("eval", 3), ("eval", 2), ("eval", 2)], "T(x) was asked for again by the loss"
    attacked = [n for mode, n in seen["S"] if mode == "eval"]
    assert attacked == [3] * ATTACK.steps + [2] * 2 * ATTACK.steps
    assert [n for mode, n in seen["S"] if mode == "train"] == [7, 7]


def test_what_is_known_of_x_is_sliced_with_it() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the teacher was asked for what was known")

    x, y = images(5), labels(5)
    known = {"T": TEACHER(x).detach()}
    expected, _ = run(build("rslad"))
    step = Step(build("rslad"), {"S": conv(), "T": Never()}, ATTACK, BUDGET, seed=4, ascent=Chunks(2))
    found = step.run(x, y, 0.9, known)
    torch.testing.assert_close(found.batch.adv.value, expected.batch.adv.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)


def test_notes_are_put_together_again() -> None:
    def inner(b: Batch) -> Tensor:
        loss = ce(b.S(b.adv), b.y)
        if b.attack_step == 0:
            b.notes["first"] = (loss.detach(), b.adv.value.detach(), torch.tensor(3.0))
        b.notes["asked"] = b.attack_step + 1
        return loss

    method = replace(build("pgd_at"), inner=inner)
    whole, sliced = (run(method, ascent)[0].batch.notes for ascent in (plain, Chunks(2)))
    assert sliced["asked"] == whole["asked"] == ATTACK.steps
    torch.testing.assert_close(sliced["first"], whole["first"], rtol=0, atol=1e-12)


# --- what cannot be sliced ---


def test_what_ties_images_together_is_attacked_whole() -> None:
    def coupled(b: Batch) -> Tensor:
        return kl(b.S(b.adv), b.S(b.adv).mean(0, keepdim=True).expand(len(b.y), -1))

    method = replace(build("rslad"), inner=coupled, inner_couples=True)
    assert "ties the images" in why_whole(method)
    whole, sliced = run(method)[0], run(method, Chunks(2))[0]
    assert torch.equal(whole.batch.adv.value, sliced.batch.adv.value)
    # and it has to be: in slices the climb would be another
    other = run(replace(method, inner_couples=False), Chunks(2))[0]
    assert not torch.equal(whole.batch.adv.value, other.batch.adv.value)
    train_mode = build("ard", {"ard.attack_mode": "train"})
    assert "train mode" in why_whole(train_mode)
    assert torch.equal(run(train_mode)[0].loss, run(train_mode, Chunks(2))[0].loss)
    assert "no adversarial examples" in why_whole(build("kd"))


def test_an_attack_that_is_one_act_is_not_sliced() -> None:
    a, b = (run(build("pgd_at"), ascent, attack=Jittered())[0] for ascent in (plain, Chunks(2)))
    assert torch.equal(a.batch.adv.value, b.batch.adv.value)


# --- out of memory ---


class Cramped(nn.Module):
    """A network that takes so many images at most, in eval mode."""

    def __init__(self, net: nn.Module, room: int, error: Exception) -> None:
        super().__init__()
        self.net, self.room, self.error, self.asked = net, room, error, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.asked.append(len(x))
            if len(x) > self.room:
                raise self.error
        return self.net(x)


ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"),
)


@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "cpu"])
def test_when_memory_runs_out_slices_are_halved_once_and_for_all(error: Exception) -> None:
    student = Cramped(conv(), 4, error)
    chunks, told = Chunks(), list[str]()
    chunks.tell = told.append
    step = Step(build("rslad"), {"S": student, "T": TEACHER}, ATTACK, BUDGET, seed=4, ascent=chunks)
    found = step.run(images(10), labels(10), 0.9)
    expected, _ = run(build("rslad"), n=10)
    torch.testing.assert_close(found.batch.adv.value, expected.batch.adv.value, rtol=0, atol=1e-12)
    assert len(found.batch.trace) == ATTACK.steps
    assert chunks.size == 3
    assert len(told) == 2
    assert "attack on 10 images" in told[0]
    assert told[1].endswith("--attack-chunk 3 starts so")
    student.asked.clear()
    step.run(images(10), labels(10), 0.9)
    assert max(student.asked) == 3, "the second step did not remember"
    assert len(told) == 2


def test_a_single_image_that_does_not_fit_is_an_error() -> None:
    error = ERRORS[0]
    chunks = Chunks()
    step = Step(build("pgd_at"), {"S": Cramped(conv(), 0, error)}, ATTACK, BUDGET, ascent=chunks)
    with pytest.raises(torch.OutOfMemoryError):
        step.run(images(6), labels(6))
    assert step.count == 0


def test_other_errors_are_not_taken_for_it() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))
    chunks = Chunks()
    step = Step(build("pgd_at"), {"S": Cramped(conv(), 2, RuntimeError("shapes"))}, ATTACK, BUDGET, ascent=chunks)
    with pytest.raises(RuntimeError, match="shapes"):
        step.run(images(6), labels(6))
    assert chunks.size == 0


def test_weights_and_statistics_are_those_of_a_step_with_memory_enough() -> None:
    """What was begun before memory ran out leaves nothing behind."""
    after = []
    for room in (99, 2):
        student = conv()
        chunks = Chunks(5 if room == 99 else 0)
        cramped = Cramped(student, room, ERRORS[0])
        step = Step(build("trades"), {"S": cramped}, PGD(3, 2 / 255), BUDGET, seed=4, ascent=chunks)
        step.run(images(5), labels(5)).loss.backward()
        after.append((state(student), {str(i): p.grad for i, p in enumerate(student.parameters())}))
    assert same(after[0][0], after[1][0])
    for name, gradient in after[0][1].items():
        torch.testing.assert_close(gradient, after[1][1][name], rtol=1e-9, atol=1e-12)


def test_the_variants_are_among_what_is_sliced() -> None:
    assert {spec for spec, _ in VARIANTS} & {spec for spec, _ in ATTACKING}
