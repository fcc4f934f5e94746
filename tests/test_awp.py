"""Moving the weights around a loss: lengths by layer, where the optimiser works, and that nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from nets import buffers, build, conv, images, labels, same, state, step_of

from mmard.errors import Refused
from mmard.method import Method
from mmard.methods import build as plain_build


def moved(spec: str = "rslad+awp", gamma: float = 0.05) -> tuple[dict[str, torch.Tensor], torch.nn.Module, object]:
    student, before = conv(), state(conv())
    step = step_of(build(spec, {"awp.gamma": gamma}), student)
    step.run(images(5), labels(5))
    return before, student, step


def test_every_weight_tensor_moves_by_gamma_of_its_length_and_nothing_else_moves() -> None:
    before, student, _ = moved()
    for name, after in student.named_parameters():
        share = ((after - before[name]).norm() / before[name].norm()).item()
        assert share == pytest.approx(0.05 if after.ndim > 1 else 0.0, rel=1e-9), name


def test_the_loss_is_larger_where_the_weights_go() -> None:
    x, y = images(5), labels(5)
    values = [step_of(build("rslad+awp", {"awp.gamma": g}), conv()).run(x, y).loss.item() for g in (0.0, 0.02)]
    assert values[1] > values[0]


def test_a_learning_rate_of_zero_leaves_the_weights_to_the_bit() -> None:
    before, student, step = moved()
    step.settle()  # type: ignore[attr-defined]
    assert same({k: v for k, v in state(student).items() if "running" not in k and "num" not in k},
                {k: v for k, v in before.items() if "running" not in k and "num" not in k})  # fmt: skip


def test_the_optimiser_works_where_the_weights_were_moved_to() -> None:
    """w <- w + (SGD at w + v) - (w + v), with the gradient and the weight decay of w + v."""
    student, x, y = conv(), images(5), labels(5)
    before = {name: w.clone() for name, w in student.named_parameters()}
    step = step_of(build("rslad+awp", {"awp.gamma": 0.05}), student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, weight_decay=0.01)
    step(x, y)[0].backward()
    there = {name: w.detach().clone() for name, w in student.named_parameters()}
    slopes = {name: w.grad.clone() for name, w in student.named_parameters()}
    optimizer.step()
    step.settle()
    for name, w in student.named_parameters():
        expected = before[name] - 0.1 * (slopes[name] + 0.01 * there[name])
        torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-14)


def test_a_step_that_was_not_settled_is_settled_by_the_next() -> None:
    runs = []
    for settled in (True, False):
        student = conv()
        step = step_of("rslad+awp", student)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for k in range(4):
            loss, _ = step(images(5, seed=k), labels(5))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if settled:
                step.settle()
        step.settle()
        runs.append(state(student))
    assert same(*runs)


def test_looking_ahead_moves_no_statistics_no_memory_and_no_random_state() -> None:
    x, y = images(5), labels(5)
    for spec in ("rslad", "mtard", "mtard+fair"):
        torch.manual_seed(3)
        plain, grown = (
            build(f"{spec}{plugin}", params) for plugin, params in (("", {}), ("+awp", {"awp.gamma": 1e-300}))
        )
        one, two = conv(), conv()
        a, b = step_of(plain, one).run(x, y), step_of(grown, two).run(x, y)
        assert torch.equal(a.loss, b.loss)
        assert same(buffers(one), buffers(two))
        if plain.memory is not None and grown.memory is not None:
            assert same(state(plain.memory), state(grown.memory))


def test_a_student_with_dropout_is_looked_at_with_the_same_draws_as_it_is_trained_with() -> None:
    student = torch.nn.Sequential(*conv()[:4], torch.nn.Dropout(0.5), conv()[4])
    method = build("pgd_at+awp", {"awp.gamma": 1e-300})
    torch.manual_seed(0)
    with_look = step_of(method, student).run(images(5), labels(5)).loss
    torch.manual_seed(0)
    without = step_of("pgd_at", torch.nn.Sequential(*conv()[:4], torch.nn.Dropout(0.5), conv()[4]))
    assert torch.equal(with_look, without.run(images(5), labels(5)).loss)


def test_it_begins_after_its_share_of_the_run() -> None:
    asked: list[float] = []

    def gradients() -> dict[str, torch.Tensor]:
        asked.append(1.0)
        return {"a.weight": torch.ones(2, 2)}

    around = plain_build("trades+awp").around
    assert around is not None
    weights = {"a.weight": torch.eye(2), "a.bias": torch.ones(2)}
    assert around(0.05, weights, gradients) == {}
    assert not asked
    assert set(around(0.055, weights, gradients)) == {"a.weight"}


def test_a_layer_without_a_gradient_stays() -> None:
    around = plain_build("trades+awp").around
    assert around is not None
    step = around(1.0, {"a.weight": torch.eye(2)}, lambda: {"a.weight": torch.zeros(2, 2)})
    assert torch.equal(step["a.weight"], torch.zeros(2, 2))


def test_only_the_student_is_moved() -> None:
    step = step_of("peeraid+awp", conv())
    before = state(step.nets["P"])
    step.run(images(5), labels(5))
    after = state(step.nets["P"])
    assert all(torch.equal(before[k], after[k]) for k in before if "running" not in k and "num" not in k)


@pytest.mark.parametrize("params", [{"awp.gamma": -0.1}])
def test_a_negative_length_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(Refused, match=r"awp\.gamma"):
        build("rslad+awp", params)


def test_weights_that_move_already_are_not_moved_again() -> None:
    from mmard.methods.awp import awp

    host: Method = plain_build("rslad+awp")
    with pytest.raises(Refused, match="a host at its own weights"):
        awp(host)
