"""What methods remember: each controller against the numbers of its paper, and every memory through a checkpoint."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from nets import batch_of, build, labels, logits, same, state, warm
from torch import Tensor, nn

from mmard.errors import Refused
from mmard.memory import ByClass, EntropyBalance, LossBalance, cooled, shares_of_run
from mmard.methods import METHODS
from mmard.methods.absld import ClassTemperatures
from mmard.methods.fair import ClassWeights

REMEMBERING = [name for name in METHODS if build(name).memory is not None]


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- MTARD: two weights ---


def test_the_weights_follow_the_relative_losses() -> None:
    """L = (0.2, 0.1) where both began at 0.2: the natural share is 1/3, and its weight goes a 40th of the way there."""
    balance = LossBalance(0.025)
    assert [w.item() for w in balance(d(0.2)[0], d(0.2)[0], 0.5)] == pytest.approx([0.5, 0.5])
    adv, nat = balance(d(0.2)[0], d(0.1)[0], 0.5)
    assert (adv.item(), nat.item()) == pytest.approx((0.504167, 0.495833), abs=5e-7)
    assert balance.first.tolist() == pytest.approx([0.2, 0.2])


def test_the_weights_move_before_the_loss_of_the_same_step() -> None:
    method = build("mtard")
    y, one, other = labels(6), logits(6, seed=1), logits(6, seed=2)
    method.outer(batch_of(one, y))
    terms = method.outer(batch_of(other, y))
    assert method.memory is not None
    w = method.memory.w
    assert not torch.equal(w, d(0.5, 0.5))
    plain = build("mtard").outer(batch_of(other, y))
    torch.testing.assert_close(terms["adv"], 2 * w[0] * plain["adv"])
    torch.testing.assert_close(terms["nat"], 2 * w[1] * plain["nat"])


def test_losses_of_zero_leave_the_weights_finite() -> None:
    balance = LossBalance(1.0)
    for pair in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        weights = balance(d(pair[0])[0], d(pair[1])[0], 0.5)
        assert all(w.isfinite() and 0 <= w <= 1 for w in weights)
        assert sum(w.item() for w in weights) == pytest.approx(1)


# --- B-MTARD: two temperatures ---


def test_the_teacher_with_more_entropy_is_sharpened_and_the_other_softened_within_bounds() -> None:
    flat, sharp = torch.zeros(3, 4, dtype=torch.float64), 9 * torch.eye(4, dtype=torch.float64)[:3]
    balance = EntropyBalance((1.5, 2.0), 0.4)
    balance.see(flat, sharp, 0.5)
    assert balance.tau.tolist() == pytest.approx([1.1, 2.4])
    balance.see(flat, sharp, 0.5)
    assert balance.tau.tolist() == pytest.approx([1.0, 2.8])  # not below 1
    for _ in range(40):
        balance.see(flat, sharp, 0.5)
    assert balance.tau.tolist() == pytest.approx([1.0, 10.0])


def test_equal_entropies_leave_the_temperatures() -> None:
    z = logits(4)["T.x"]
    balance = EntropyBalance((2.0, 2.0), 0.4)
    balance.see(z, z.clone(), 0.5)
    assert balance.tau.tolist() == [2.0, 2.0]


def test_a_cooled_rate_still_moves_a_temperature() -> None:
    """A millionth, at a temperature of 8, is less than what single precision can hold."""
    flat, sharp = torch.zeros(3, 4), 9 * torch.eye(4)[:3]
    balance = EntropyBalance((8.0, 8.0), 1e-3, tuple(Fraction(k, 10) for k in (1, 2, 3)))
    for _ in range(1000):
        balance.see(flat, sharp, 1.0)
    assert balance.tau.tolist() == pytest.approx([8 - 1e-3, 8 + 1e-3], abs=1e-9)


def test_the_temperatures_move_after_the_loss_and_act_on_the_teachers_alone() -> None:
    method, y, views = build("b_mtard", {"b_mtard.rate_tau": 0.5}), labels(6), logits(6)
    first, second = method.outer(batch_of(views, y)), method.outer(batch_of(views, y))
    plain = build("mtard").outer(batch_of(views, y))
    torch.testing.assert_close(first["adv"], plain["adv"])
    assert not torch.allclose(second["nat"], first["nat"]) or not torch.allclose(second["adv"], first["adv"])


# --- rates ---


def test_a_rate_falls_once_at_each_share_and_not_once_a_batch() -> None:
    """The released CIARD lets it fall in every batch of three epochs, to 1e-394."""
    at = shares_of_run("215/300,260/300,285/300", "x")
    rates = [cooled(1.0, (epoch + 1) / 300, at) for epoch in range(300)]
    expected = [1.0] * 215 + [0.1] * 45 + [0.01] * 25 + [0.001] * 15
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("text", ["much", "1/0", "2", "0", "-1/2", "1/2;3/4"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"mtard\.cool_at"):
        build("mtard", {"mtard.cool_at": text})


# --- Fair: a weight for each class ---


def test_classes_that_fall_early_weigh_more_within_bounds() -> None:
    """k = (8, 4) at beta 2: raw weights 0.4 and 1.6, of which the first is clipped to 5/6."""
    classes = ClassWeights(2.0).double()
    right, wrong = d(5, 0).expand(3, 2), d(0, 5).expand(3, 2)
    y = torch.tensor([0, 0, 1])
    trace = [torch.stack([right[0], right[0], wrong[0]])] * 4 + [torch.stack([right[0]] * 3)] * 4
    classes.see(y, trace)
    assert classes.survived.tolist() == [16, 4]
    classes.renew()
    assert classes.weight.tolist() == pytest.approx([5 / 6, 1.6], abs=1e-4)
    assert classes.survived.tolist() == classes.met.tolist() == [0, 0]


def test_classes_are_counted_by_what_they_had() -> None:
    """Twice as many samples of a class, which fall alike, do not make it harder."""
    trace = [5 * torch.eye(3)[torch.tensor([0, 1, 1, 1])]]
    classes = ClassWeights(2.0)
    classes.see(torch.tensor([0, 1, 1, 1]), trace)
    classes.renew()
    assert classes.weight.tolist() == pytest.approx([1, 1, 1])  # and the class that was not met keeps 1


def test_no_iterate_that_is_right_gives_finite_weights() -> None:
    classes = ClassWeights(2.0)
    classes.see(torch.tensor([0, 1]), [5 * torch.eye(2)[torch.tensor([1, 1])]])
    classes.renew()
    assert classes.weight.tolist() == pytest.approx([2.0, 5 / 6], abs=1e-3)


def test_an_epoch_of_weights_is_decided_by_the_one_before() -> None:
    method, y, views = build("rslad+fair"), labels(9), logits(9)
    first = method.outer(batch_of(views, y))
    host = build("rslad").outer(batch_of(views, y))
    assert all(torch.equal(first[name], host[name]) for name in host)
    method.epoch_end()
    second = method.outer(batch_of(views, y))
    assert method.memory is not None
    w = method.memory.weight[y]
    assert w.unique().numel() > 1
    assert all(torch.allclose(second[name], w * host[name]) for name in host)


def test_a_host_that_balances_its_losses_balances_the_weighted_ones() -> None:
    y, views = labels(9), logits(9)
    method, plain = warm("mtard+fair"), warm("mtard")
    method.outer(batch_of(views, y))
    plain.outer(batch_of(views, y))
    assert method.memory is not None
    assert plain.memory is not None
    assert not torch.allclose(dict(method.memory.named_buffers())["0.w"], plain.memory.w, rtol=1e-9)


# --- ABSLD: two temperatures for each class ---


def test_a_harder_class_gets_a_sharper_teacher() -> None:
    """R = (1, 3) from temperatures of 1, rate 0.1: 1.1 and 0.9."""
    tau = ClassTemperatures(0.1, ()).double()
    tau.sized(torch.zeros(1, 2))
    tau.see(torch.tensor([0, 0, 1]), d(1, 1, 3), d(3, 3, 1), 0.5)
    tau.renew()
    assert tau.adv.tolist() == pytest.approx([1.1, 0.9])
    assert tau.nat.tolist() == pytest.approx([0.9, 1.1])
    for _ in range(60):
        tau.see(torch.tensor([0, 1]), d(1, 3), d(2, 2), 0.5)
        tau.renew()
    assert tau.adv.tolist() == pytest.approx([5.0, 0.5])
    assert tau.nat.tolist() == pytest.approx([0.9, 1.1])  # equal risks move nothing


def test_the_two_branches_have_each_their_own_temperature() -> None:
    """The released code divides one storage twice: both branches and the attack get T / (t_adv t_nat)."""
    method, views, y = build("absld"), logits(6), labels(6)
    teacher = views["T.x"].clone()
    method.outer(batch_of(views, y))
    memory = method.memory
    assert memory is not None
    memory.adv.copy_(d(1.1, 0.9, 1.3))
    memory.nat.copy_(d(0.8, 1.2, 0.7))
    terms = method.outer(batch_of(views, y))

    def expected(tau: Tensor, student: Tensor) -> Tensor:
        log_p, log_q = (teacher / tau[y, None]).log_softmax(1), student.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(1)

    torch.testing.assert_close(terms["adv"], 5 / 6 * expected(d(1.1, 0.9, 1.3), views["S.x_adv"]))
    torch.testing.assert_close(terms["nat"], 1 / 6 * expected(d(0.8, 1.2, 0.7), views["S.x"]))
    assert torch.equal(views["T.x"], teacher)
    assert method.inner is not None
    torch.testing.assert_close(method.inner(batch_of(views, y)), expected(d(1.1, 0.9, 1.3), views["S.x_adv"]))


# --- all of them ---


def test_the_methods_that_remember_are_these() -> None:
    assert set(REMEMBERING) == {"mtard", "b_mtard", "absld", "ciard"}


@pytest.mark.parametrize("spec", [*REMEMBERING, "rslad+fair", "mtard+fair", "absld+fair+mmard"])
def test_a_memory_goes_through_a_checkpoint(spec: str) -> None:
    """Also into a method that has not met a batch, and so does not know how many classes there are."""
    old, new = warm(spec), build(spec)
    assert isinstance(old.memory, nn.Module)
    assert isinstance(new.memory, nn.Module)
    new.memory.load_state_dict(state(old.memory))
    assert same(state(new.memory), state(old.memory))
    y, views = labels(9), logits(9)
    for _ in range(2):
        before, after = (method.outer(batch_of(views, y)) for method in (old, new))
        assert all(torch.equal(before[name], after[name]) for name in before)
        old.epoch_end()
        new.epoch_end()
    assert same(state(new.memory), state(old.memory))


@pytest.mark.parametrize("spec", [*REMEMBERING, "rslad+fair"])
def test_a_memory_asks_for_no_gradient_and_holds_no_graph(spec: str) -> None:
    method = warm(spec)
    assert method.memory is not None
    assert not list(method.memory.parameters())
    assert all(not b.requires_grad and b.grad_fn is None for b in method.memory.buffers())


@pytest.mark.parametrize("spec", [*REMEMBERING, "rslad+fair"])
def test_a_step_goes_back_through_terms_whose_memory_has_moved(spec: str) -> None:
    method, views, y = warm(spec), logits(9), labels(9)
    torch.stack([term.mean() for term in method.outer(batch_of(views, y)).values()]).sum().backward()
    assert views["S.x_adv"].grad is not None


def test_buffers_by_class_grow_once() -> None:
    memory = ByClass(one=1.0, none=0.0)
    memory.sized(torch.zeros(2, 5))
    assert memory.one.tolist() == [1.0] * 5
    memory.one[2] = 7.0
    memory.sized(torch.zeros(3, 5))
    assert memory.one[2] == 7.0
