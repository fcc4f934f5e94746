"""The update's forwards compiled: the same step, and the network itself where a compiler will not have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little import FACTS, RECIPE, SHAPE, batches_of, matcher, net, picture_set, run_in, same, state, validation
from nets import BUDGET, images, labels
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.engine.ascent import Compiled
from mmard.methods import build
from mmard.run import Run
from mmard.training.fit import fit
from mmard.training.step import Step

# torch's own compiler scripts a module when it is imported, and says that nobody should.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::UserWarning:torch")


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no C++ compiler\nwas found")


def half_broken() -> Callable[..., Any]:
    """A compiler that fails on what comes behind the first break."""
    seen = 0

    def compile_one(graph: Any, inputs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > 1:
            raise RuntimeError("not this one")
        return graph.forward

    return compile_one


class Broken(nn.Module):
    """A network with a break in its graph behind the BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        x = self.net[1](self.net[0](x))
        torch._dynamo.graph_break()
        return self.net[2:](x)


def with_backend(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers cost a minute; what stands around them is what is tested."""
    whole = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda module, **how: whole(module, **{**how, "backend": backend}))


def step_of(student: nn.Module, compiled: bool) -> Step:
    nets = {"S": student, "T": matcher()}
    return Step(build("rslad+igdm"), nets, PGD(2, 0.02), BUDGET, seed=1, compiled=compiled)


@pytest.mark.parametrize(
    "backend", [pytest.param("eager", marks=pytest.mark.slow), broken], ids=["compiled", "not compiled"]
)
def test_steps_are_the_same(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a view that moves no statistics, and a smaller last batch."""
    with_backend(backend, monkeypatch)
    ends = []
    for compiled in (False, True):
        student = net()
        step, told = step_of(student, compiled), list[str]()
        step.listen(told.append)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for n in (6, 6, 4):
            x = images(n, n, SHAPE, torch.float32)
            optimizer.zero_grad()
            step(x, labels(n))[0].backward()
            optimizer.step()
        ends.append(state(student))
        expected = ["the update is not compiled: backend='broken' raised:"] if compiled and backend is broken else []
        assert told == expected
    assert same(*ends)


def test_a_compiler_that_fails_half_way_moves_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(half_broken(), monkeypatch)
    module, plain = Broken(), Broken()
    compiled = Compiled(module)
    x = images(6, 0, SHAPE, torch.float32)
    assert torch.equal(compiled(x), plain(x))
    assert compiled.failed
    assert same(state(module), state(plain))


def test_running_out_of_memory_is_not_the_compilers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Compiled(net())

    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    compiled._held = (full,)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(images(6, 0, SHAPE, torch.float32))
    assert compiled.failed == ""


def test_the_log_has_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(broken, monkeypatch)
    run = run_in(tmp_path / "run")
    step = step_of(net(), True)
    assert fit(step, batches_of(), RECIPE, run, validation, facts=FACTS).finished
    notes = [event["text"] for event in Run.open(tmp_path / "run").log() if event["kind"] == "note"]
    assert len(notes) == 1
    assert len(picture_set(40)) == 40
    weights, _ = run.load_weights("last")
    assert weights.keys() == net().state_dict().keys(), "a wrapper's names got into the weights"


@pytest.mark.gpu
def test_compiled_updates_on_a_gpu() -> None:
    torch._dynamo.reset()
    student, plain = net().cuda(), net().cuda()
    compiled = Compiled(student)
    x = images(8, 0, SHAPE, torch.float32).cuda()
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-3, atol=1e-4)
    assert compiled.failed == ""
