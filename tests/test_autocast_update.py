"""The update's forwards in bfloat16: there alone, and said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmard import job
from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.engine import twin as twins
from mmard.errors import Refused
from mmard.methods import build
from mmard.models import build as network
from mmard.settings import Settings
from mmard.training.step import Step

BUDGET, SHAPE = Budget(0.05), (3, 16, 16)


class Seen:
    """The dtypes that the convolutions of a network put out, in train and in eval mode."""

    def __init__(self, net: nn.Module) -> None:
        self.training: set[torch.dtype] = set()
        self.resting: set[torch.dtype] = set()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, taken: object, given: Tensor) -> None:
        (self.training if module.training else self.resting).add(given.dtype)


def step(autocast: bool) -> tuple[Step, Seen]:
    nets = {letter: network("cnn-8", num_classes=4, image_shape=SHAPE, seed=k) for k, letter in enumerate("ST")}
    seen = Seen(nets["S"].train())
    return Step(build("rslad+igdm"), nets, PGD(2, 0.02, "gaussian"), BUDGET, autocast=autocast), seen


def test_it_is_the_forwards_of_the_update_and_nothing_else() -> None:
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    outcomes, gradients = [], []
    for autocast in (False, True):
        made, seen = step(autocast)
        outcome = made.run(x, torch.arange(8) % 4)
        outcome.loss.backward()
        assert seen.resting == {torch.float32}, "the attack"
        assert seen.training == {torch.bfloat16 if autocast else torch.float32}
        weights = list(made.nets["S"].parameters())
        assert {w.dtype for w in weights} | {w.grad.dtype for w in weights} == {torch.float32}
        assert {term.dtype for term in outcome.terms.values()} == {torch.float32}
        outcomes.append(outcome)
        gradients.append(torch.cat([w.grad.flatten() for w in weights]))
    plain, half = outcomes
    assert torch.equal(plain.batch.adv.value, half.batch.adv.value)
    assert plain.loss.item() != half.loss.item()
    assert half.loss.item() == pytest.approx(plain.loss.item(), rel=0.05)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


SAID = {"model": "cnn-4", "data": "digits", "method": "trades", "limit_train": 64, "epochs": 1}


def test_the_plan_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "has_bf16", lambda device: True)
    for on in (False, True):
        made = job.prepare(Settings.resolve({**SAID, "autocast_update": on}))
        assert any("update in bfloat16" in note for note in made.notes) == on


def test_it_is_refused_where_the_hardware_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "has_bf16", lambda device: False)
    with pytest.raises(Refused, match="--autocast-update: expected a cpu with bfloat16, got one without; leave it out"):
        job.prepare(Settings.resolve({**SAID, "autocast_update": True}))
