"""The numbers that formulas are written in, against NumPy in float64 and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import generator
from torch import Tensor
from torch.nn import functional as F

from mmard.ops import ce, entropy, kl, margin, true_logit, true_probability

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 7)
CLASS_COUNTS = st.integers(2, 12)
SPREADS = st.sampled_from([0.1, 1.0, 10.0, 50.0])


def draw(seed: int, n: int, classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(seed)
    p, q = (spread * torch.randn(n, classes, generator=g, dtype=torch.float64) for _ in range(2))
    return p, q, torch.randint(classes, (n,), generator=g)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_the_target_of_kl_is_its_first_argument() -> None:
    # KL(Bernoulli(1/2) || Bernoulli(1/4)) = log 2 - log 3 / 2; the other way round it is 3/4 log 3 - log 2.
    half, quarter = torch.log(torch.tensor([[1.0, 1.0]])), torch.log(torch.tensor([[1.0, 3.0]]))
    assert kl(half, quarter).item() == pytest.approx(math.log(2) - math.log(3) / 2, abs=1e-6) == 0.143841
    assert kl(quarter, half).item() == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-6) == 0.130812


@given(SEEDS, SIZES, CLASS_COUNTS, SPREADS, st.sampled_from([0.5, 1.0, 4.0, 30.0]))
def test_kl_is_what_numpy_says(seed: int, n: int, classes: int, spread: float, tau: float) -> None:
    p, q, _ = draw(seed, n, classes, spread)
    P, Q = softmax(p.numpy() / tau), softmax(q.numpy() / tau)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(P > 0, P * (np.log(P) - np.log(Q)), 0).sum(1)
    value = kl(p, q, tau)
    assert value.shape == (n,)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(SEEDS, SIZES, CLASS_COUNTS, SPREADS)
def test_kl_is_the_reverse_of_the_function_in_torch(seed: int, n: int, classes: int, spread: float) -> None:
    p, q, _ = draw(seed, n, classes, spread)
    theirs = F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(kl(p, q).mean(), theirs)


@given(SEEDS, SIZES, CLASS_COUNTS, SPREADS)
def test_kl_is_never_negative_and_zero_at_equality(seed: int, n: int, classes: int, spread: float) -> None:
    p, q, _ = draw(seed, n, classes, spread)
    assert (kl(p, q) > -1e-12).all()
    assert (kl(p, p) == 0).all()
    torch.testing.assert_close(kl(p, p + 3.0), torch.zeros(n, dtype=p.dtype))  # a shift of all logits says nothing


@given(SEEDS, SIZES, CLASS_COUNTS)
def test_the_gradients_of_kl_are_the_closed_forms(seed: int, n: int, classes: int) -> None:
    p, q, _ = draw(seed, n, classes)
    p.requires_grad_()
    q.requires_grad_()
    value = kl(p, q)
    g_p, g_q = torch.autograd.grad(value.sum(), (p, q))
    P, Q = p.softmax(1), q.softmax(1)
    torch.testing.assert_close(g_q, Q - P)
    torch.testing.assert_close(g_p, P * (P.log() - Q.log() - value[:, None]))


def test_a_constant_target_keeps_no_graph() -> None:
    p, q, _ = draw(0, 2, 3)
    assert not kl(p, q).requires_grad
    assert kl(p, q.requires_grad_()).requires_grad


@given(SEEDS, SIZES, CLASS_COUNTS)
def test_tau_squared_kl_tends_to_the_distance_of_centred_logits(seed: int, n: int, classes: int) -> None:
    p, q, _ = draw(seed, n, classes)
    delta = (p - p.mean(1, keepdim=True)) - (q - q.mean(1, keepdim=True))
    limit = delta.square().sum(1) / (2 * classes)
    far = [tau**2 * kl(p, q, tau) for tau in (1e3, 2e3)]
    # The error falls as 1 / tau, so twice the second minus the first is rid of it.
    torch.testing.assert_close(2 * far[1] - far[0], limit, rtol=1e-4, atol=1e-6)


@given(SEEDS, SIZES, CLASS_COUNTS)
def test_kl_does_not_see_classes_that_nobody_believes_in(seed: int, n: int, classes: int) -> None:
    p, q, _ = draw(seed, n, classes)
    q.requires_grad_()
    pad = torch.full((n, 7), -1e4, dtype=p.dtype)
    padded = kl(torch.cat([p, pad], 1), torch.cat([q, pad], 1))
    torch.testing.assert_close(padded, kl(p, q), rtol=1e-12, atol=1e-15)
    (g,) = torch.autograd.grad(padded.sum(), q)
    torch.testing.assert_close(g, q.softmax(1) - p.softmax(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_values_and_gradients(dtype: torch.dtype) -> None:
    p = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 0.0, 1e4]], dtype=dtype, requires_grad=True)
    q = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 0.0, 1e4]], dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 1])
    values = (kl(p, q), ce(q, y), margin(q, y), entropy(q), true_probability(q, y))
    for value in values:
        assert value.shape == (2,)
        assert value.isfinite().all()
        assert all(
            g.isfinite().all() for g in torch.autograd.grad(value.sum(), (p, q), allow_unused=True) if g is not None
        )


@given(SEEDS, SIZES, CLASS_COUNTS, SPREADS)
def test_ce_and_true_probability_are_what_numpy_says(seed: int, n: int, classes: int, spread: float) -> None:
    _, z, y = draw(seed, n, classes, spread)
    Z, rows = z.numpy(), np.arange(n)
    log_sum = np.log(np.exp(Z - Z.max(1, keepdims=True)).sum(1)) + Z.max(1)
    np.testing.assert_allclose(ce(z, y).numpy(), log_sum - Z[rows, y.numpy()], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(true_probability(z, y).numpy(), softmax(Z)[rows, y.numpy()], rtol=1e-12)
    np.testing.assert_array_equal(true_logit(z, y).numpy(), Z[rows, y.numpy()])


@given(SEEDS, SIZES, CLASS_COUNTS, SPREADS)
def test_margin_is_positive_exactly_where_a_sample_is_misread(seed: int, n: int, classes: int, spread: float) -> None:
    _, z, y = draw(seed, n, classes, spread)
    assert torch.equal(margin(z, y) > 0, z.argmax(1) != y)
    others = [[z[i, k].item() for k in range(classes) if k != y[i]] for i in range(n)]
    expected = [max(row) - z[i, y[i]].item() for i, row in enumerate(others)]
    assert margin(z, y).tolist() == pytest.approx(expected)


def test_the_margin_of_a_tie_is_zero_and_its_gradient_is_finite() -> None:
    z = torch.tensor([[1.0, 1.0, 1.0]], requires_grad=True)
    value = margin(z, torch.tensor([0]))
    assert value.item() == 0
    (g,) = torch.autograd.grad(value.sum(), z)
    assert g.tolist() == [pytest.approx([-1.0, 0.5, 0.5])]


@given(SEEDS, SIZES, CLASS_COUNTS, SPREADS)
def test_entropy_is_what_numpy_says_and_within_its_bounds(seed: int, n: int, classes: int, spread: float) -> None:
    z, _, _ = draw(seed, n, classes, spread)
    P = softmax(z.numpy())
    expected = -np.where(P > 0, P * np.log(np.where(P > 0, P, 1)), 0).sum(1)
    value = entropy(z)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert ((value > -1e-12) & (value <= math.log(classes) + 1e-12)).all()
    torch.testing.assert_close(entropy(torch.zeros(1, classes)), torch.tensor([math.log(classes)]))


def test_nothing_is_written_into_the_arguments() -> None:
    p, q, y = draw(3, 4, 5)
    before = p.clone(), q.clone(), y.clone()
    kl(p, q, 2.0), ce(p, y), margin(p, y), entropy(p), true_logit(p, y), true_probability(p, y)
    assert all(torch.equal(now, was) for now, was in zip((p, q, y), before, strict=True))
