"""What holds for whole steps of every method, alone and with every plug-in, on tiny networks.

A new method is covered by its line in the catalogue.
"""

from __future__ import annotations

from typing import Any

import torch
from laws import over
from nets import (
    ATTACK,
    BUDGET,
    CASES,
    COUPLED_HOSTS,
    SPECS,
    Jittered,
    Params,
    buffers,
    build,
    case_id,
    conv,
    images,
    labels,
    same,
    state,
    step_of,
    warm,
)
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.method import Method

EVERY = over(("spec", "params"), CASES, ids=map(case_id, CASES))


def weights_of(student: nn.Module) -> nn.Module:
    """A fresh network whose weights are those of the student, which a plug-in may have moved, and whose buffers not."""
    fresh = conv()
    fresh.load_state_dict({**fresh.state_dict(), **dict(student.named_parameters())})
    return fresh


def made(spec: str, params: Params) -> Method:
    return build(spec, params)


@EVERY
def test_a_step_leaves_the_teacher_the_flags_and_the_modes_as_they_were(spec: str, params: Params) -> None:
    student, teacher, x, y = conv(), conv(seed=5), images(4), labels(4)
    student[1].eval()  # put to sleep by the user, and it goes on sleeping
    student[4].bias.requires_grad_(False)
    teacher.train()  # a user's slip, which must not move the teacher's statistics
    before = state(teacher)
    modes = [m.training for net in (student, teacher) for m in net.modules()]
    asking = [p.requires_grad for net in (student, teacher) for p in net.parameters()]
    kept = x.clone(), y.clone()
    loss, _ = step_of(made(spec, params), student, teacher)(x, y)
    assert [m.training for net in (student, teacher) for m in net.modules()] == modes
    assert [p.requires_grad for net in (student, teacher) for p in net.parameters()] == asking
    assert all(p.grad is None for net in (student, teacher) for p in net.parameters())
    loss.backward()
    assert same(state(teacher), before)
    assert all((p.grad is not None) == ("T" in made(spec, params).tunes) for p in teacher.parameters())
    assert [p.grad is not None for p in student.parameters()] == [True] * 5 + [False]
    assert same(buffers(student), buffers(conv()))
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


class Watched:
    """An attack that looks at the student while it runs: its modes, its weights, and whether its statistics move."""

    def __init__(self, attack: PGD = ATTACK) -> None:
        self.attack, self.moved = attack, False
        self.training, self.asking = set[bool](), set[bool]()

    def __call__(self, model: nn.Module, objective: Any, x: Tensor, budget: Budget, **settings: Any) -> Tensor:
        before = buffers(model)
        self.training |= {m.training for m in model.modules()}
        self.asking |= {p.requires_grad for p in model.parameters()}
        x_adv = self.attack(model, objective, x, budget, **settings)
        self.moved = not same(before, buffers(model))
        return x_adv


@EVERY
def test_statistics_move_by_the_declared_forwards_in_their_order_and_by_nothing_else(spec: str, params: Params) -> None:
    method, student, watched = made(spec, params), conv(), Watched()
    outcome = step_of(method, student, attack=watched).run(images(4), labels(4))
    outcome.loss.backward()
    by_hand = weights_of(student)
    assert not watched.moved
    # In the attack the student is in eval mode, and no graph is built for weights that will not be asked.
    assert watched.training == watched.asking == (set() if method.inner is None else {False})
    with torch.no_grad():
        for name in method.forwards["S"]:
            if name not in method.quiet:
                by_hand(outcome.batch.point(name).value)
    assert same(buffers(student), buffers(by_hand))
    assert int(student[1].num_batches_tracked) == len(method.forwards["S"]) - len(method.quiet)


@EVERY
def test_a_step_sees_each_view_as_a_lone_forward_in_train_mode_would(spec: str, params: Params) -> None:
    method, student = made(spec, params), conv()
    b = step_of(method, student).run(images(4), labels(4)).batch
    fresh = weights_of(student)
    for name in method.forwards["S"]:
        torch.testing.assert_close(b.S(b.point(name)), fresh(b.point(name).value), rtol=0, atol=1e-14)


@EVERY
def test_a_step_permutes_with_its_batch(spec: str, params: Params) -> None:
    """With a student without BatchNorm, and a start that is a function of the image."""
    method, x, y, order = made(spec, params), images(6), labels(6), torch.tensor([3, 0, 5, 1, 4, 2])
    steps = (step_of(warm(spec, params), conv(batch_norm=False), attack=Jittered()) for _ in range(2))
    whole, permuted = next(steps).run(x, y), next(steps).run(x[order], y[order])
    if method.inner is not None:
        torch.testing.assert_close(permuted.batch.adv.value, whole.batch.adv.value[order], rtol=0, atol=1e-12)
    for name, term in permuted.terms.items():
        torch.testing.assert_close(term, whole.terms[name][order], rtol=1e-9, atol=1e-10)


@EVERY
def test_half_a_step_is_half_of_the_step_unless_the_method_couples_the_batch(spec: str, params: Params) -> None:
    method, x, y = made(spec, params), images(6), labels(6)
    steps = (step_of(warm(spec, params), conv(batch_norm=False), attack=Jittered()) for _ in range(2))
    whole, half = next(steps).run(x, y), next(steps).run(x[:3], y[:3])
    if method.inner is not None:  # no attack couples the batch, whatever the loss does
        torch.testing.assert_close(half.batch.adv.value, whole.batch.adv.value[:3], rtol=0, atol=1e-12)
    for name, term in half.terms.items():
        apart = "awp" not in spec.split("+") and spec.split("+")[0] not in COUPLED_HOSTS
        if not method.couples_batch or (apart and not name.startswith("tri_")):
            torch.testing.assert_close(term, whole.terms[name][:3], rtol=1e-9, atol=1e-10)


@EVERY
def test_the_attack_stays_in_its_ball_and_leaves_no_graph(spec: str, params: Params) -> None:
    method, x = made(spec, params), images(4)
    b = step_of(method, conv()).run(x, labels(4)).batch
    if method.inner is None:
        assert b.x_adv is None
        return
    x_adv = b.adv.value
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    moved = BUDGET.distance(x_adv, x)
    assert (moved <= BUDGET.eps + 1e-12).all()
    assert (moved > 0.5 * BUDGET.eps).all()
    assert len(b.trace) == ATTACK.steps


@EVERY
def test_the_same_seed_gives_the_same_step_and_a_resumed_count_the_same_attack(spec: str, params: Params) -> None:
    method, x, y = made(spec, params), images(4), labels(4)
    one, two, other = (step_of(made(spec, params), conv(), seed=seed) for seed in (3, 3, 4))
    rng = torch.get_rng_state()
    runs = [one.run(x, y) for _ in range(3)]
    assert one.count == 3
    assert torch.equal(rng, torch.get_rng_state())
    again = [two.run(x, y) for _ in range(3)]
    assert all(torch.equal(a.loss, b.loss) for a, b in zip(runs, again, strict=True))
    if method.inner is None:
        return
    resumed = step_of(method, conv(), seed=3)
    resumed.count = 2
    assert torch.equal(resumed.run(x, y).batch.adv.value, step_at(method, 2).run(x, y).batch.adv.value)
    # From the same weights, another step of the run or another seed starts the attack elsewhere.
    fresh = step_at(method, 0).run(x, y).batch.adv.value
    assert not torch.equal(fresh, step_at(method, 1).run(x, y).batch.adv.value)
    assert not torch.equal(fresh, other.run(x, y).batch.adv.value)


def step_at(method: Method, count: int) -> Any:
    step = step_of(method, conv(), seed=3)
    step.count = count
    return step


@over("spec", SPECS)
def test_twenty_steps_lower_the_loss(spec: str) -> None:
    student, x, y = conv(), images(12), labels(12)
    method = build(spec, {"ciard.push": 0.0} if "ciard" in spec else {})  # what is pushed away has no floor
    step = step_of(method, student, attack=PGD(2, 4 / 255, "gaussian"))
    optimizer = torch.optim.Adam([p for net in step.trained.values() for p in net.parameters()], lr=0.02)
    losses = []
    for _ in range(21):
        loss, _ = step(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # A contrast within the batch has a floor that no student can pass, and so has a cross-entropy with a teacher.
    assert losses[-1] < (0.9 if "akd2" in spec else 0.77) * losses[0]
