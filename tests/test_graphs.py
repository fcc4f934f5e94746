"""Climbs that are recorded and played back: on a CPU by a stand-in that runs the same buffers, copies and keys."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws import over
from nets import ATTACK, BUDGET, CASES, build, case_id, conv, images, labels, some_of
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.batch import Batch
from mmard.engine.ascent import Chunks, plain, why_whole
from mmard.engine.graphs import WARM_UPS, CudaRecorder, Graphs, Rerun, Work
from mmard.engine.twin import PLAIN, Engine
from mmard.method import Method
from mmard.ops import ce
from mmard.training.step import Outcome, Step

TEACHER = conv(seed=99, width=5).eval()
ATTACKING = [case for case in some_of(CASES) if build(*case).inner is not None and not why_whole(build(*case))]


def step_of(
    method: Method, ascent: Any, attack: Any = ATTACK, student: nn.Module | None = None, engine: Engine = PLAIN
) -> Step:
    peers = {letter: conv(seed=3) for letter in method.peers}
    nets = {"S": student or conv(), **dict.fromkeys(method.teachers, TEACHER), **peers}
    return Step(method, nets, attack, BUDGET, seed=4, ascent=ascent, engine=engine)


def steps(step: Step, batches: list[tuple[int, int]], progress: Callable[[int], float] = lambda _: 1.0) -> list[Any]:
    """Steps with updates on batches of (size, seed); of each the loss, x_adv and trace."""
    optimizer = torch.optim.SGD([p for net in step.trained.values() for p in net.parameters()], lr=0.05, momentum=0.9)
    seen = []
    for number, (n, seed) in enumerate(batches):
        outcome = step.run(images(n, seed), labels(n, seed), progress(number))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        step.settle()
        seen.append((outcome.loss.detach(), outcome.batch.adv.value, list(outcome.batch.trace)))
    return seen


EPOCHS = [(5, 0), (5, 1), (5, 2), (3, 3), (5, 4), (5, 5), (5, 6), (3, 7)]
"""Two epochs whose last batch is smaller."""


@over("case", ATTACKING, ids=case_id)
def test_played_steps_are_the_plain_ones_to_the_bit(case: Any) -> None:
    graphs = Graphs(Rerun())
    some = [(5, 0), (5, 1), (3, 2), (5, 3)]
    played = steps(step_of(build(*case), graphs), some)
    plainly = steps(step_of(build(*case), plain), some)
    torch.testing.assert_close(played, plainly, rtol=0, atol=0)
    assert graphs.failed == ""
    assert graphs.recorded == 1
    assert graphs.played == 2, "the second batch is recorded and played, the smaller one is not, the last is"


def test_each_epoch_is_recorded_anew_where_progress_changes() -> None:
    method = build("rslad+mmard", {"mmard.ramp": 1.0})
    graphs = Graphs(Rerun())
    ramp: Callable[[int], float] = lambda number: 0.5 if number < 4 else 1.0  # noqa: E731
    played = steps(step_of(method, graphs), EPOCHS, ramp)
    torch.testing.assert_close(played, steps(step_of(method, plain), EPOCHS, ramp), rtol=0, atol=0)
    assert graphs.recorded == 2


def test_weights_in_other_memory_are_recorded_anew() -> None:
    graphs = Graphs(Rerun())
    step = step_of(build("pgd_at"), graphs)
    steps(step, EPOCHS[:3])
    student = step.nets["S"]
    student[0].weight = nn.Parameter(student[0].weight.detach().flip(0).clone())
    other = conv()
    other.load_state_dict(student.state_dict())
    reference = step_of(build("pgd_at"), plain, student=other)
    reference.count = step.count
    found, expected = steps(step, [(5, 9), (5, 10)]), steps(reference, [(5, 9), (5, 10)])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert graphs.recorded == 2


@pytest.mark.parametrize("spec", ["rslad+mmard", "adaad", "trades"])
def test_twins_are_refreshed_where_a_recording_reads_them(spec: str) -> None:
    """Updates move the weights; were a twin's numbers put elsewhere, each step would have to be recorded anew."""
    graphs = Graphs(Rerun())
    played = steps(step_of(build(spec), graphs, engine=Engine("fast")), EPOCHS)
    torch.testing.assert_close(
        played, steps(step_of(build(spec), plain, engine=Engine("fast")), EPOCHS), rtol=0, atol=0
    )
    torch.testing.assert_close(played, steps(step_of(build(spec), plain), EPOCHS), rtol=1e-8, atol=1e-8)
    assert (graphs.failed, graphs.recorded, graphs.played) == ("", 1, 5)


def test_slices_are_played_one_after_the_other() -> None:
    graphs = Graphs(Rerun())
    batches = [(8, 0), (8, 1), (5, 2), (8, 3)]
    played = steps(step_of(build("rslad"), Chunks(4, graphs)), batches)
    sliced = steps(step_of(build("rslad"), Chunks(4)), batches)
    torch.testing.assert_close(played, sliced, rtol=0, atol=0)
    assert graphs.recorded == 1
    assert graphs.played >= 5


def test_what_a_step_hands_out_is_not_overwritten_by_the_next() -> None:
    step = step_of(build("rslad+mmard", {"mmard.teacher_every": 2}), Graphs(Rerun()))
    outcomes: list[Outcome] = []
    copies: list[list[Tensor]] = []

    def held(outcome: Outcome) -> list[Tensor]:
        b = outcome.batch
        return [b.adv.value, *b.trace, b.T(b.x), *b.notes["drift"]]

    for seed in range(5):
        outcomes.append(step.run(images(4, seed), labels(4, seed)))
        copies.append([t.clone() for t in held(outcomes[-1])])
    for outcome, copy in zip(outcomes, copies, strict=True):
        torch.testing.assert_close(held(outcome), copy, rtol=0, atol=0)


def test_known_predictions_are_copied_in() -> None:
    graphs = Graphs(Rerun())
    step, reference = (step_of(build("rslad"), ascent) for ascent in (graphs, plain))
    for seed in range(5):
        x, y = images(4, seed), labels(4, seed)
        known = {"T": TEACHER(x).detach()}
        found, expected = (each.run(x, y, known=known) for each in (step, reference))
        assert torch.equal(found.batch.adv.value, expected.batch.adv.value)
        assert torch.equal(found.batch.T(found.batch.x), known["T"])
    assert graphs.played == 4


# --- giving up ---


class Unwilling:
    """A recorder that fails as CUDA does when a formula waits for the device."""

    def __call__(self, work: Work) -> Work:
        work()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")


class Stale:
    """A recorder that plays what it saw when it recorded, whatever has been copied in since."""

    def __call__(self, work: Work) -> Work:
        work()
        return lambda: None


@pytest.mark.parametrize(
    ("recorder", "reason"), [(Unwilling(), "not permitted when stream is capturing"), (Stale(), "x_adv apart by")]
)
def test_what_cannot_be_recorded_runs_the_plain_way_and_says_why_once(recorder: Any, reason: str) -> None:
    graphs, told = Graphs(recorder), list[str]()
    graphs.tell = told.append
    found = steps(step_of(build("rslad+mmard"), graphs), EPOCHS)
    torch.testing.assert_close(found, steps(step_of(build("rslad+mmard"), plain), EPOCHS), rtol=0, atol=0)
    assert reason in graphs.failed
    assert told == [graphs.failed]
    assert "\n" not in graphs.failed
    assert graphs.played <= 1


def test_a_climb_that_branches_on_something_else_is_found_out() -> None:
    """A formula that changes from call to call cannot be played; the first iterate's logits are where it shows."""

    class Shifty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = conv(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += not self.training
            return self.net(x) * (-1) ** (self.calls // (ATTACK.steps * 2))

    graphs = Graphs(Rerun())
    steps(step_of(build("pgd_at"), graphs, student=Shifty()), EPOCHS[:3])
    assert "of their spread" in graphs.failed


def test_memory_that_runs_out_while_recording_is_for_the_slices_to_mend() -> None:
    class Greedy:
        failed = False

        def __call__(self, work: Work) -> Work:
            if not Greedy.failed:
                Greedy.failed = True
                raise torch.OutOfMemoryError("CUDA out of memory")
            return Rerun()(work)

    graphs = Graphs(Greedy())
    chunks = Chunks(0, graphs)
    found = steps(step_of(build("rslad"), chunks), EPOCHS)
    torch.testing.assert_close(found, steps(step_of(build("rslad"), plain), EPOCHS), rtol=1e-9, atol=1e-9)
    assert chunks.size == 3
    assert graphs.failed == ""
    assert graphs.played > 0


def test_an_error_in_a_formula_is_not_swallowed() -> None:
    def broken(b: Batch) -> Tensor:
        raise KeyError("a formula broke")

    step = step_of(replace(build("pgd_at"), inner=broken), Graphs(Rerun()))
    for _ in range(2):
        with pytest.raises(KeyError, match="a formula broke"):
            step.run(images(4), labels(4))


def test_weights_per_sample_run_the_plain_way() -> None:
    """They are no input of a recording; a method that had them in its attack would be played with old ones."""
    seen: list[Batch] = []

    def climber(batch: Batch, first: Tensor) -> Batch:
        seen.append(batch)
        return batch

    step = step_of(build("pgd_at"), plain)
    batch = replace(step.run(images(5), labels(5)).batch, weight=torch.ones(5))
    graphs = Graphs(Rerun())
    for _ in range(3):
        graphs(climber, batch, batch.x.value)  # type: ignore[arg-type]
    assert [each is batch for each in seen] == [True] * 3
    assert graphs.recorded == 0


def test_nothing_of_cuda_is_touched_without_it() -> None:
    code = (
        "import torch\n"
        "import mmard.engine.graphs as g\n"
        "g.Graphs(g.CudaRecorder())\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]


def test_warming_up_is_not_playing() -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1

    play = Rerun()(work)
    assert calls == WARM_UPS
    play()
    assert calls == WARM_UPS + 1


# --- on a GPU ---


def gpu_step(ascent: Any, spec: str, dtype: torch.dtype) -> Step:
    method = build(spec)
    nets = {"S": conv().to("cuda", dtype)} | ({"T": conv(seed=99).eval().to("cuda", dtype)} if method.teachers else {})
    return Step(method, nets, PGD(10, 2 / 255), BUDGET, seed=4, ascent=ascent)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ["pgd_at", "trades", "rslad", "adaad", "rslad+mmard", "rslad+igdm"])
def test_a_cuda_graph_climbs_as_the_plain_way(spec: str) -> None:
    graphs = Graphs(CudaRecorder())
    played, plainly = (gpu_step(ascent, spec, torch.float64) for ascent in (graphs, plain))
    for number, (n, seed) in enumerate(EPOCHS):
        x, y = images(n, seed).cuda(), labels(n, seed).cuda()
        found, expected = (each.run(x, y, 0.5 if number < 4 else 1.0) for each in (played, plainly))
        torch.testing.assert_close(found.batch.adv.value, expected.batch.adv.value, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-11, atol=1e-12)
        for each, outcome in ((played, found), (plainly, expected)):
            outcome.loss.backward()
            with torch.no_grad():
                for p in each.nets["S"].parameters():
                    p.sub_(0.05 * p.grad)
                    p.grad = None
    assert graphs.failed == ""
    assert graphs.recorded == 2
    assert graphs.played >= 4


@pytest.mark.gpu
def test_a_formula_that_waits_for_the_gpu_falls_back_and_training_goes_on() -> None:
    def waiting(b: Batch) -> Tensor:
        loss = ce(b.S(b.adv), b.y)
        return loss if loss.mean().item() > -1 else -loss

    graphs = Graphs(CudaRecorder())
    step = Step(
        replace(build("pgd_at"), inner=waiting), {"S": conv().cuda()}, PGD(3, 2 / 255), BUDGET, seed=4, ascent=graphs
    )
    for seed in range(4):
        step.run(images(5, seed).cuda(), labels(5, seed).cuda()).loss.backward()
    assert graphs.failed
    torch.cuda.synchronize()
    assert torch.isfinite(step.run(images(5).cuda(), labels(5).cuda()).loss)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ["rslad", "rslad+mmard", "adaad"])
def test_a_played_step_does_not_wait_for_the_gpu(spec: str) -> None:
    graphs = Graphs(CudaRecorder())
    step = gpu_step(graphs, spec, torch.float32)
    optimizer = torch.optim.SGD(step.nets["S"].parameters(), lr=0.05, momentum=0.9, fused=True)
    x, y = images(8).float().cuda(), labels(8).cuda()

    def update() -> None:
        outcome = step.run(x, y)
        optimizer.zero_grad(set_to_none=True)
        outcome.loss.backward()
        optimizer.step()

    for _ in range(3):
        update()
    assert graphs.failed == ""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
