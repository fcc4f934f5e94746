"""The plan: passes counted against what the formulas say, measurements that leave no trace, origins of settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from laws import over
from nets import SPECS as EVERY
from torch import Tensor, nn

from mmard.attacks import read_attack
from mmard.balls import Budget
from mmard.data import load
from mmard.files import weights_hash
from mmard.job import Job, prepare
from mmard.methods import build
from mmard.passes import Passes, count_passes
from mmard.plan import Pace, Plan, attack_seconds, origins, pace, plan
from mmard.settings import Settings
from mmard.training.step import Step

SPECS = [spec for spec in EVERY if spec.count("+") < 2]


def passes(forwards: int, train: int, x: int, w: int) -> Passes:
    return Passes(forwards, train, x, w)


@pytest.mark.parametrize(
    ("spec", "steps", "student", "teacher"),
    [
        # Attack: one forward and one backward to x for every step. Loss: the declared forwards, and back through each.
        ("pgd_at", 10, passes(11, 1, 10, 1), None),
        ("pgd_at", 7, passes(8, 1, 7, 1), None),
        # S(x) once more, for the target of the attack.
        ("trades", 10, passes(13, 2, 10, 2), None),
        ("kd", 10, passes(1, 1, 0, 1), passes(1, 0, 0, 0)),
        # T(x) once for the attack and the loss together.
        ("rslad", 10, passes(12, 2, 10, 2), passes(1, 0, 0, 0)),
        # T(x') at every step with its gradient, and once more in the loss.
        ("adaad", 10, passes(11, 1, 10, 1), passes(11, 0, 10, 0)),
        # The drift costs one backward of the teacher through T(x), which host and triangle read anyway.
        ("rslad+mmard", 10, passes(12, 2, 10, 2), passes(1, 0, 1, 0)),
        # The mirror: a view of the student more, and T(x'), T(x - d).
        ("rslad+igdm", 10, passes(13, 3, 10, 3), passes(3, 0, 0, 0)),
    ],
)
def test_passes(spec: str, steps: int, student: Passes, teacher: Passes | None) -> None:
    counted = count_passes(build(spec), steps)
    assert counted["S"] == student
    assert counted.get("T") == teacher


def test_a_rarely_asked_teacher_costs_less() -> None:
    counted = count_passes(build("rslad+mmard", {"mmard.teacher_every": 5}), 10)["T"]
    # T(x), and two refreshes of slope and value.
    assert counted == passes(3, 0, 2, 0)


@over("spec", SPECS)
def test_every_method_can_be_counted(spec: str) -> None:
    method = build(spec)
    counted = count_passes(method, 3)
    assert set(counted) == set(method.nets)
    looks = 2 if "awp" in spec else 1  # one ahead
    assert counted["S"].train_forwards == counted["S"].weight_backwards == looks * len(method.forwards["S"])
    differentiated = {letter for letter, each in counted.items() if each.input_backwards}
    assert "S" in differentiated or method.inner is None
    if spec in ("kd+mmard", "natural+mmard"):
        assert differentiated == {"S", "T"}, "the attack is the plug-in's, on both boundaries"
    assert counted["S"].input_backwards in ((0, 1) if spec.startswith(("n_fgsm", "fgsm_rs")) else (0, 3))
    # A host that differentiates the teacher at every step pays for the drift's one refresh besides.
    besides = 1 if spec in ("adaad+mmard", "adaiad+mmard", "dgad+mmard") else 0
    assert max(each.input_backwards for each in counted.values()) <= 3 + besides
    if "T" in counted:
        assert counted["T"].train_forwards == 0
        assert counted["T"].weight_backwards == (1 if "T" in method.tunes else 0)


def little(**said: object) -> Job:
    return prepare(Settings.resolve({"model": "cnn-1", "limit_train": 128, "steps": 2, "epochs": 3, **said}))


def test_measuring_leaves_no_trace() -> None:
    job = little(method="trades")
    before, modes = weights_hash(job.student), [m.training for m in job.student.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = plan(job, seconds=0.0)
    assert weights_hash(job.student) == before
    assert [m.training for m in job.student.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in job.student.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert job.step.count == 0
    assert made.pace.steps == 2
    assert made.pace.peak_bytes is None or torch.cuda.is_available()


def test_pace_counts_images_and_goes_round() -> None:
    job = little()
    asked: list[int] = []

    class Short:
        """Two batches an epoch, of 5 images and of 3."""

        steps = 2

        def epoch(self, epoch: int, start: int = 0):  # type: ignore[no-untyped-def]
            for n in (5, 3):
                asked.append(epoch)
                yield torch.rand(n, 1, 8, 8), torch.zeros(n, dtype=torch.int64)

    found = pace(build("pgd_at"), job.step, Short(), seconds=0.0, least=4)
    # The first batch warms up; then 3, 5, 3, 5.
    assert (found.steps, found.images) == (4, 16)
    assert asked == [0, 0, 1, 1, 2]


def test_pace_is_images_over_seconds() -> None:
    found = Pace(steps=4, images=100, seconds=2.0)
    assert (found.step_seconds, found.images_per_second) == (0.5, 50.0)


def test_time_to_go() -> None:
    job = little()
    made = Plan(job, {}, {}, Pace(steps=10, images=640, seconds=5.0), validation=2.0, done=1)
    assert made.epoch_seconds == job.batches.steps * 0.5 + 2.0
    assert made.seconds == 2 * made.epoch_seconds


def test_an_attack_is_timed_on_one_batch_of_everybody() -> None:
    images, budget = load("digits").test, Budget(0.1)
    seen: list[int] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return self.linear(x.flatten(1))

    assert attack_seconds(Net(), images, read_attack("pgd-3", budget), budget, most=50) > 0
    assert seen == [50] * 4


def test_where_every_setting_comes_from() -> None:
    said = {"teacher": "t", "student": "cnn-4", "method": "rslad+mmard", "lr": "0.2", "params": {"mmard.guide": 0.5}}
    settings = Settings.resolve(said)
    found = {origin.name: (origin.value, origin.source) for origin in origins(settings, said)}
    assert found["lr"] == (0.2, "said")
    assert found["eps"] == (0.15, "preset")
    assert found["momentum"] == (0.9, "preset")
    assert found["seed"] == (0, "default")
    assert found["mmard.guide"] == (0.5, "said")
    assert found["mmard.tau"][1] == "default"
    assert found["rslad.alpha"] == (5 / 6, "default")
    assert set(Settings.model_fields) - {"params"} <= set(found)
    assert all(math.isfinite(value) for value, _ in found.values() if isinstance(value, float))


def test_a_preset_speaks_for_parameters_too() -> None:
    said = {"teacher": "t", "student": "cnn-4", "method": "rslad", "preset": "official", "data": "cifar10"}
    found = {o.name: (o.value, o.source) for o in origins(Settings.resolve(said), said)}
    assert found["rslad.scale"] == (0.1, "preset")


def test_halves_show_the_parameters_of_both() -> None:
    said = {"teacher": "t", "student": "cnn-4", "method": "rslad", "inner": "trades", "outer": "adaad+igdm"}
    found = {o.name for o in origins(Settings.resolve(said), said)}
    assert {"trades.beta", "adaad.alpha", "igdm.alpha"} <= found
    assert not any(name.startswith("rslad.") for name in found)


def test_the_step_that_is_timed_is_the_step_that_trains() -> None:
    """Same loss on the same batch: the copies are of the networks, and the attack starts from the same point."""
    job = little(method="pgd_at")
    x, y = next(iter(job.batches.epoch(0)))
    copied: list[Tensor] = []
    taken = Step.in_parts

    def spy(self: Step, *given: Any):  # type: ignore[no-untyped-def]
        for outcome in taken(self, *given):
            copied.append(outcome.loss.detach())
            yield outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "in_parts", spy)
        pace(build("pgd_at"), job.step, job.batches, seconds=0.0)
    job.student.train()
    assert torch.equal(copied[0], job.step(x, y)[0].detach())
