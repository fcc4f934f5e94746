"""Code for GPUs, checked where there is none: every method's step on a device that has shapes and no numbers.

PyTorch's `meta` device stands in for CUDA and MPS (fake tensors that say they are on `cuda` have no autograd in builds
without CUDA). It knows what belongs to it and has nothing to read back, so what would make a GPU wait, fail on two
devices, or bake a number into a recorded graph fails here: `.item()`, `bool(tensor)`, boolean indexing, tensors of
the CPU beside its own. `Rules` adds what `meta` lets pass: a tensor of the CPU as an index, and copies from the host.
What stands between epochs may read back, and so may whoever asks an attack for its verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws import over
from nets import BUDGET, build, conv, images, labels, step_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmard import seeds
from mmard.attacks import PGD, read_attack
from mmard.balls import Budget
from mmard.batch import Batch, Terms
from mmard.catalogue import host_of
from mmard.method import Method
from mmard.methods import METHODS, PLUGINS
from mmard.ops import ce
from mmard.training.log import Tally
from mmard.training.recipe import Recipe, optimizer_of
from mmard.training.step import Step, descend

DEVICE = torch.device("meta")
ATTACK = PGD(2, 2 / 255, "gaussian")


class Broken(AssertionError):
    """A rule for code on a GPU."""


class Rules(TorchDispatchMode):
    """Every operation takes tensors of one device; copies from the host are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        # A number without dimensions goes along with a kernel's launch.
        devices = {t.device.type for t in taken if t.ndim or t.device == DEVICE}
        made = func(*args, **(kwargs or {}))
        moved = str(func).startswith(("aten._to_copy", "aten.copy_"))
        if len(devices) > 1 and not moved:
            raise Broken(f"{func} on {' and '.join(sorted(devices))}")
        there = [t.device for t in tree_leaves(made) if isinstance(t, Tensor)]
        if moved and DEVICE in there and any(t.device != DEVICE for t in taken):
            self.copies.append(str(func))
        return made


@contextmanager
def no_copies(rules: Rules) -> Iterator[None]:
    """Nothing is copied from the host inside, which would be no part of a recorded graph."""
    before = len(rules.copies)
    yield
    if rules.copies[before:]:
        raise Broken(f"copied from the host: {', '.join(rules.copies[before:])}")


@pytest.fixture(autouse=True)
def _generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` has no generators of its own, and takes those of the CPU."""
    monkeypatch.setattr(seeds, "generator", lambda device, *address: torch.Generator())


def there(made: Method, attack: PGD = ATTACK) -> Step:
    """A step whose networks, memory and all are on the device."""
    nets = {letter: net.to(DEVICE) for letter, net in step_of(made, conv(), attack=attack).nets.items()}
    step = Step(made, nets, attack, BUDGET)
    if made.memory is not None:
        made.memory.to(DEVICE)
    return step


def updated(step: Step, parts: int = 1, progresses: tuple[float, ...] = (1.0,)) -> None:
    """Updates under the rules, with attack, loss, optimiser and the sums for the log."""
    x, y = images(6).to(DEVICE), labels(6).to(DEVICE)
    optimizer, tally = optimizer_of(step, Recipe(epochs=2, nesterov=True)), Tally(step)
    with Rules() as rules:
        attack = step.ascent

        def climbed(*args: Any) -> Batch:
            with no_copies(rules):
                return attack(*args)

        step.ascent = climbed
        for progress in progresses:
            optimizer.zero_grad()
            outcome = descend(step, x, y, progress, {}, 1 if step.method.around is not None else parts)
            optimizer.step()
            step.settle()
            tally.count(outcome)


@over("spec", [*METHODS, *(f"{host_of(name)}+{name}" for name in PLUGINS)])
def test_a_step_reads_nothing_back_and_mixes_no_devices(spec: str) -> None:
    updated(there(build(spec)))


def test_nor_does_it_where_terms_change_on_the_way() -> None:
    updated(there(build("iad_i+mmard")), progresses=(0.2, 0.6, 1.0))


@over("spec", ["mtard", "rslad+mmard", "peeraid"])
def test_nor_does_a_step_in_micro_batches(spec: str) -> None:
    updated(there(build(spec)), parts=2)


def test_nor_does_a_start_of_another_kind() -> None:
    for start in ("none", "uniform", "gaussian"):
        updated(there(build("rslad"), PGD(2, 2 / 255, start)))
    updated(there(build("n_fgsm")))


@over("name", ["pgd-2", "cw-2", "fgsm"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attacks_of_an_evaluation_read_nothing_back(name: str, norm: str) -> None:
    budget = Budget(0.1, norm)
    network, x, y = conv().eval().to(DEVICE), images(4).to(DEVICE), labels(4).to(DEVICE)
    with Rules():
        found = read_attack(name, budget)(network, x, y, budget, generator=torch.Generator())
    assert found.shape == x.shape
    assert found.device == DEVICE


# --- the rules hold what they promise: each planted fault is found ---


def planted(term: Any) -> Method:
    """A method whose attack climbs cross-entropy and whose loss has a further term."""

    def outer(b: Batch) -> Terms:
        loss = ce(b.S(b.adv), b.y)
        return {"adv": loss, "planted": term(b, loss)}

    return replace(build("pgd_at"), outer=outer)


FAULTS = {
    "item": lambda b, loss: loss * loss.mean().item(),
    "a branch on a tensor": lambda b, loss: loss if loss.mean() > 1 else 2 * loss,
    "boolean indexing": lambda b, loss: loss[b.y == 0].sum() + loss,
    "nonzero": lambda b, loss: loss + (b.y == 0).nonzero().sum(),
    "a weight of the CPU": lambda b, loss: loss * torch.ones(len(loss), dtype=loss.dtype),
    "an index of the CPU": lambda b, loss: loss[torch.arange(len(loss))],
    "a gather by the CPU": lambda b, loss: b.S(b.adv).gather(1, torch.zeros(len(loss), 1, dtype=torch.int64))[:, 0],
    "numpy": lambda b, loss: loss * float(loss.detach().cpu().numpy().mean()),
    "tolist": lambda b, loss: loss * b.y.tolist()[0],
}


@over("name", list(FAULTS))
def test_a_planted_fault_is_found(name: str) -> None:
    with pytest.raises((RuntimeError, Broken, TypeError, NotImplementedError)):
        updated(there(planted(FAULTS[name])))


def test_a_fault_in_an_attack_is_found() -> None:
    def copying(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y) * torch.tensor([2.0], dtype=torch.float64).to(b.y.device)

    def reading(b: Batch) -> Tensor:
        return ce(b.S(b.adv), b.y) * float(b.S(b.adv).amax())

    for inner, error in ((copying, Broken), (reading, RuntimeError)):
        with pytest.raises(error):
            updated(there(replace(build("pgd_at"), inner=inner)))
    updated(there(build("pgd_at")))
