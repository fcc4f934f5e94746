"""The one-step attack from noise: its formula, and that neither ball nor number of steps binds it."""

from __future__ import annotations

import pytest
import torch
from nets import BUDGET, conv, images, labels, linear

from mmard.attacks import NoiseFGSM, Untargeted, noise_fgsm, pgd
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.ops import ce


def attacked(attack: NoiseFGSM, model: torch.nn.Module, x: torch.Tensor, **named: object) -> torch.Tensor:
    y = labels(len(x))
    return attack(model, Untargeted(y, ce), x, BUDGET, generator=torch.Generator().manual_seed(3), **named)  # type: ignore[arg-type]


def test_it_is_noise_then_a_step_of_eps_without_projection() -> None:
    model, x = conv().eval(), images(40)
    noise = 2 * BUDGET.eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype) - 1)
    z = (x + noise).clamp(0, 1).requires_grad_()
    (slope,) = torch.autograd.grad(ce(model(z), labels(40)).sum(), z)
    expected = (z.detach() + BUDGET.eps * slope.sign()).clamp(0, 1)
    x_adv = attacked(NoiseFGSM(), model, x)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-15)
    reach = BUDGET.distance(x_adv, x)
    assert reach.max() > 2.5 * BUDGET.eps
    assert reach.max() <= 3 * BUDGET.eps + 1e-12
    assert not x_adv.requires_grad


def test_it_stays_in_the_box_and_leaves_x() -> None:
    x = images(10).round()
    kept = x.clone()
    x_adv = attacked(NoiseFGSM(noise=4.0), conv().eval(), x)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(x, kept)


def test_without_noise_it_is_fgsm() -> None:
    model, x = linear((2, 3, 3), classes=3), images(6)
    x_adv = attacked(NoiseFGSM(noise=0.0), model, x)
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, BUDGET.eps), rtol=0, atol=1e-15)


def test_the_trace_is_the_prediction_at_the_noisy_point() -> None:
    trace: list[torch.Tensor] = []
    attacked(NoiseFGSM(), conv().eval(), images(6), trace=trace)
    assert [t.shape for t in trace] == [(6, 3)]


def test_a_training_makes_it_of_its_own_length_unless_told() -> None:
    budget = Budget(8 / 255)
    assert noise_fgsm(budget, 10, None, "uniform") == NoiseFGSM(2.0, None)
    assert noise_fgsm(budget, 10, 0.02, "uniform", noise=3.0) == NoiseFGSM(3.0, 0.02)
    assert pgd(budget, 10, None, "uniform").step_size == budget.eps / 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(("noise", "step"), [(-1.0, None), (2.0, 0.0), (2.0, -0.1)])
def test_what_cannot_be_is_refused(noise: float, step: float | None) -> None:
    with pytest.raises(Refused):
        NoiseFGSM(noise, step)


def test_a_step_longer_than_the_ball_is_wide_is_refused() -> None:
    with pytest.raises(Refused, match="swapped"):
        NoiseFGSM(2.0, 0.5).check(BUDGET)
