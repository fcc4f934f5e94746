"""The fast engine takes the same step as the plain path: x_adv, losses and updates, for every method."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from laws import over
from nets import (
    ATTACK,
    BUDGET,
    CASES,
    Params,
    build,
    case_id,
    conv,
    generator,
    images,
    labels,
    state,
    step_of,
)
from test_twin import lively, needs_bf16
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.attacks import PGD
from mmard.engine.twin import Engine, Twin
from mmard.models import build as network
from mmard.training.step import Step

FAST, PLAIN = Engine("fast"), Engine("plain")
SIDE = (3, 8, 8)
UPDATES = 3


def trained(step: Step, x: Tensor, y: Tensor, updates: int = UPDATES, **sgd: Any) -> list[dict[str, Tensor]]:
    """A few updates: for each the loss, its terms, x_adv, and the weights and statistics after it."""
    letters = sorted(step.trained)
    optimizer = torch.optim.SGD([p for k in letters for p in step.nets[k].parameters()], lr=0.05, momentum=0.9, **sgd)
    found = []
    for i in range(updates):
        outcome = step.run(x, y, progress=(i + 1) / updates)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        step.settle()
        said = {"loss": outcome.loss.detach(), **{name: term.detach() for name, term in outcome.terms.items()}}
        if outcome.batch.x_adv is not None:
            said["x_adv"] = outcome.batch.x_adv.value
        said |= {f"{k}.{name}": t.double() for k in letters for name, t in state(step.nets[k]).items()}
        found.append(said)
    return found


def both(make: Any, x: Tensor, y: Tensor, **settings: Any) -> tuple[Step, Step]:
    """A plain and a fast step that have taken the same updates, to ten digits."""
    steps = make(PLAIN), make(FAST)
    plain, fast = (trained(step, x, y, **settings) for step in steps)
    for at, (one, other) in enumerate(zip(plain, fast, strict=True)):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(
                other[name], one[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name, i=at: f"{n} after {i}: {m}"
            )
    return steps


@over("case", CASES, ids=case_id)
def test_every_method_trains_the_same(case: tuple[str, Params]) -> None:
    def make(engine: Engine) -> Step:
        return step_of(build(*case), conv(), engine=engine)

    plain, fast = both(make, images(6), labels(6))
    record = fast.twins.record
    assert set(record) == set(fast.nets)
    # What is attacked in eval mode, and every teacher, has a twin.
    for letter, chosen in record.items():
        itself = letter in fast.method.forwards and (fast.method.inner is None or fast.method.attack_mode == "train")
        assert chosen["twin"] != itself
    assert not any(chosen["twin"] for chosen in plain.twins.record.values())


MODELS = ("cnn-4", "preact_resnet18", "mobilenet_v2", "wide_resnet-10-1")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spec", ["adaad+mmard"])
def test_every_model_trains_the_same(name: str, spec: str) -> None:
    def make(engine: Engine) -> Step:
        student = lively(network(name, num_classes=3, image_shape=SIDE, seed=0)).double()
        teacher = lively(network("wide_resnet-10-2", num_classes=3, image_shape=SIDE, seed=1), 1).double().eval()
        attack = PGD(3, BUDGET.eps / 4, "gaussian")
        return Step(build(spec), {"S": student, "T": teacher}, attack, BUDGET, engine=engine)

    _, fast = both(make, images(4, shape=SIDE), labels(4), updates=2)
    assert all(chosen["twin"] for chosen in fast.twins.record.values())


@pytest.mark.parametrize("spec", ["rslad", "adaad+igdm", "trades+mmard", "saad"])
def test_twenty_steps_of_training_stay_the_same(spec: str) -> None:
    """Twenty updates, so a twin that lagged behind its source by one would be far off by now."""

    def make(engine: Engine) -> Step:
        return step_of(build(spec), conv(), engine=engine)

    both(make, images(8), labels(8), updates=20)


def test_an_attack_of_twenty_steps_is_the_same() -> None:
    def make(engine: Engine) -> Step:
        return step_of(build("adaad+mmard"), conv(), attack=PGD(20, BUDGET.eps / 8, "uniform"), engine=engine)

    both(make, images(8), labels(8), updates=1)


@pytest.mark.parametrize("sgd", [{"foreach": True}, {"fused": True}])
def test_twins_follow_updates_that_raise_no_version(sgd: dict[str, bool]) -> None:
    both(lambda engine: step_of("rslad", conv(), engine=engine), images(4), labels(4), **sgd)


def test_a_teacher_that_is_changed_between_steps_is_followed() -> None:
    x, y = images(4), labels(4)
    steps = [step_of("adaad", conv(), conv(seed=9).eval(), engine=engine) for engine in (PLAIN, FAST)]
    for step in steps:
        step(x, y)
        with torch.no_grad():
            step.nets["T"][0].weight.mul_(0.5)
    plain, fast = (step.run(x, y) for step in steps)
    torch.testing.assert_close(fast.loss, plain.loss, rtol=1e-10, atol=0)
    for step in steps:  # another layer in its place: the twin is made anew
        step.nets["T"][2] = nn.ReLU()
    plain, fast = (step.run(x, y) for step in steps)
    torch.testing.assert_close(fast.loss, plain.loss, rtol=1e-10, atol=0)


def test_slopes_are_taken_through_the_twin() -> None:
    asked: list[nn.Module] = []
    method = build("saad")
    step = step_of(method, conv(), engine=FAST)
    step.twins.serving(images(2))
    teacher = step.twins.serving(images(2))["T"]
    assert isinstance(teacher, Twin)
    teacher.register_forward_hook(lambda net, *_: asked.append(net))
    step(images(2), labels(2))
    assert asked
    assert set(map(id, asked)) == {id(teacher)}


def test_what_has_no_twin_is_called_itself() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = conv(seed=4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.net(x)

    student = Own()
    student.net[2].register_forward_hook(lambda *_: None)
    step = step_of("rslad", student, engine=FAST)
    step(images(2), labels(2))
    assert step.twins.record["S"] == {"twin": False, "precision": "float64", "why": "it has hooks"}
    assert step.twins.record["T"]["twin"]
    assert student.calls == ATTACK.steps + 2


# --- precision ------------------------------------------------------------------------------------


def taught(seed: int = 0, width: int = 16) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network in float32 that has learnt to read the brightest of three bands, and images with labels."""
    g = generator(seed)
    y = torch.randint(3, (96,), generator=g)
    x = 0.35 + 0.3 * torch.rand(96, 3, 12, 12, generator=g)
    for i, label in enumerate(y):
        x[i, :, 4 * label : 4 * label + 4] += 0.15
    net = network(f"cnn-{width}", num_classes=3, image_shape=(3, 12, 12), seed=seed).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval(), x, y


@needs_bf16
def test_attacks_in_bfloat16_reach_as_far() -> None:
    """As issue and docs promise: the loss that is reached within one per cent, 95 of 100 signs."""
    (student, x, y), (teacher, _, _) = taught(0), taught(1)
    reached = {}
    for precision in ("fp32", "bf16"):
        nets = {"S": copy.deepcopy(student), "T": teacher}
        step = Step(build("rslad"), nets, PGD(10, 2 / 255, "gaussian"), BUDGET, engine=Engine("fast", precision))
        outcome = step.run(x, y)
        assert {chosen["precision"] for chosen in step.twins.record.values()} == {precision}
        x_adv = outcome.batch.adv.value
        assert x_adv.dtype == torch.float32
        assert (x_adv - x).abs().max() <= BUDGET.eps + 1e-7
        with torch.no_grad():
            wrong = F.kl_div(student(x_adv).log_softmax(1), teacher(x).softmax(1), reduction="batchmean")
        reached[precision] = wrong, (x_adv - x).sign(), outcome.loss.detach()
    (far, signs, loss), (half_far, half_signs, half_loss) = reached["fp32"], reached["bf16"]
    assert abs(half_far - far) < 0.01 * far
    assert (half_signs == signs).float().mean() > 0.95
    assert 0 < abs(half_loss - loss) < 0.02 * loss


def test_attacks_in_float32_differ_by_rounding() -> None:
    """On trained networks: the same pixels but for those whose gradient is as good as zero, the same loss."""
    (student, x, y), (teacher, _, _) = taught(0), taught(1)
    outcomes = []
    for engine in (PLAIN, FAST):
        nets = {"S": copy.deepcopy(student), "T": teacher}
        outcomes.append(Step(build("rslad"), nets, PGD(10, 2 / 255, "gaussian"), BUDGET, engine=engine).run(x, y))
    plain, fast = outcomes
    equal = (fast.batch.adv.value - plain.batch.adv.value).abs() < 1e-6
    assert equal.float().mean() > 0.998
    torch.testing.assert_close(fast.loss, plain.loss, rtol=1e-4, atol=0)
