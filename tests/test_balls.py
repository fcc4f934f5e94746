"""The ball and the box, mostly as laws over random points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from nets import generator
from torch import Tensor

from mmard.balls import NORMS, Budget, gaussian, ranked
from mmard.errors import Refused
from mmard.words import as_fraction, radius

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((1,), (6,), (3, 4), (2, 3, 3))
ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}


@st.composite
def scenes(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> tuple[Budget, Tensor, Tensor]:
    """A budget, clean points of the box (many of them on its faces), and points anywhere near."""
    g = generator(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 4)), *draw(st.sampled_from(SHAPES)))
    dtype = draw(st.sampled_from(dtypes))
    norm = draw(st.sampled_from(NORMS))
    budget = Budget(draw(st.sampled_from([2 / 255, 8 / 255, 0.3, 1.0] + [2.5] * (norm != "linf"))), norm)
    x = (1.6 * torch.rand(shape, generator=g, dtype=torch.float64) - 0.3).clamp(0, 1)
    far = x + draw(st.sampled_from([1e-3, 0.1, 1.0, 30.0])) * torch.randn(shape, generator=g, dtype=torch.float64)
    return budget, x.to(dtype), far.to(dtype)


def slack(budget: Budget, x: Tensor) -> float:
    """What rounding may add to a distance: an ulp of 1 for each coordinate, as they are added."""
    ulp = torch.finfo(x.dtype).eps
    size = x[0].numel()
    return 2 * ulp * (1 + budget.eps) * {"linf": 1, "l2": math.sqrt(size), "l1": size}[budget.norm]


def distance(budget: Budget, a: Tensor, b: Tensor) -> Tensor:
    delta = (a.double() - b.double()).flatten(1)
    return delta.norm(dim=1, p=ORDERS[budget.norm])


@given(scenes())
def test_a_projected_point_is_in_the_ball_and_in_the_box(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, far = scene
    near = budget.project(far, x)
    assert near.shape == x.shape
    assert near.dtype == x.dtype
    assert ((near >= 0) & (near <= 1)).all()
    assert (distance(budget, near, x) <= budget.eps + slack(budget, x)).all()


@given(scenes())
def test_projecting_twice_is_projecting_once(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, far = scene
    once = budget.project(far, x)
    again = budget.project(once, x)
    assert (again.double() - once.double()).abs().max() <= slack(budget, x)


@given(scenes())
def test_a_point_inside_stays_where_it_is(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, far = scene
    delta = far.double() - x.double()
    length = delta.flatten(1).norm(dim=1, p=ORDERS[budget.norm]).view(-1, *[1] * (x.ndim - 1))
    length = delta.abs() if budget.norm == "linf" else length
    inside = (x.double() + 0.9 * budget.eps * delta / length.clamp_min(budget.eps)).clamp(0, 1).to(x.dtype)
    assert (budget.project(inside, x).double() - inside.double()).abs().max() <= slack(budget, x)
    assert (budget.project(x, x) == x).all()


@given(scenes(dtypes=(torch.float64,)))
def test_a_point_outside_lands_on_the_sphere_nearest_to_it(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, far = scene
    x = 0.5 + 0 * x  # the middle of the box, and a ball that fits into it: only the ball acts
    budget = Budget(min(budget.eps, 0.3), budget.norm)
    near = budget.project(far, x)
    outside = distance(budget, far, x) > budget.eps
    torch.testing.assert_close(
        distance(budget, near, x)[outside], torch.full_like(x[outside].flatten(1)[:, 0], budget.eps)
    )
    if budget.norm == "l2":  # along the ray to the centre
        ray = ((far - x) / (near - x))[outside].flatten(1)
        torch.testing.assert_close(ray, ray[:, :1].expand_as(ray))
    elif budget.norm == "l1":  # all coordinates lose the same, or all they have
        delta, lost = (far - x)[outside].flatten(1).abs(), (far - near)[outside].flatten(1).abs()
        torch.testing.assert_close(lost, torch.minimum(delta, lost.amax(1, keepdim=True)), rtol=0, atol=1e-12)
    else:  # coordinate by coordinate
        torch.testing.assert_close(near, far.clamp(0.5 - budget.eps, 0.5 + budget.eps), rtol=0, atol=1e-15)


@given(scenes(dtypes=(torch.float64,)), st.integers(0, 2**32 - 1))
def test_no_point_of_the_l1_ball_and_the_box_is_nearer(scene: tuple[Budget, Tensor, Tensor], seed: int) -> None:
    budget, x, far = Budget(scene[0].eps, "l1"), scene[1], scene[2]
    near = budget.project(far, x)
    # Of a convex set, the nearest point is the one from which no other lies in the direction of `far`.
    for other in (budget.project(budget.sample(x, generator(seed)), x), x, budget.project(far + near - x, x)):
        assert ((far - near) * (other - near)).flatten(1).sum(1).max() <= 1e-9 * (1 + far.abs().sum())


@given(scenes(dtypes=(torch.float64,)))
def test_the_l1_projection_found_by_bisection(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, far = Budget(scene[0].eps, "l1"), scene[1], scene[2]
    near = budget.project(far, x)
    for i in range(len(x)):
        delta = far[i] - x[i]
        room = torch.where(delta > 0, 1 - x[i], x[i])

        def moved(t: float, delta: Tensor = delta, room: Tensor = room) -> Tensor:
            return torch.minimum((delta.abs() - t).clamp_min(0), room)

        low, high = 0.0, float(delta.abs().max()) + 1
        for _ in range(200):
            t = (low + high) / 2
            low, high = (t, high) if moved(t).sum() > budget.eps else (low, t)
        torch.testing.assert_close(near[i], x[i] + delta.sign() * moved(high), rtol=0, atol=1e-10)


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_ranking_is_sorting(seed: int, dtype: torch.dtype) -> None:
    g = generator(seed)
    v = torch.rand(3, 40, generator=g, dtype=dtype) * 10 ** (20 * torch.rand(3, 40, generator=g, dtype=dtype) - 10)
    v = torch.where(torch.rand(3, 40, generator=g) < 0.3, v[:, :1], v)  # equals
    v[0, 3], v[1, 5], v[2, 7] = 0.0, -0.0, torch.inf
    rising, order = ranked(v)
    assert torch.equal(rising, v.sort(dim=1).values)
    assert torch.equal(v.gather(1, order), rising)
    assert torch.equal(order.sort(dim=1).values, torch.arange(40).expand(3, 40))


def test_a_sparse_step_moves_a_hundredth_of_what_can_move() -> None:
    gradient = torch.arange(1.0, 501.0).view(1, 10, 50).repeat(2, 1, 1)
    gradient[:, :, ::2] *= -1
    at = torch.full_like(gradient, 0.5)
    step = Budget(1.0, "l1").steepest(gradient, at)
    assert torch.equal(step, Budget(1.0, "l1").steepest(gradient))
    assert torch.equal(step != 0, gradient.abs() > 495)
    torch.testing.assert_close(step.abs().sum((1, 2)), torch.ones(2))
    assert (step * gradient >= 0).all()
    stuck = gradient[1] > 490  # the steepest rise to the edge of the box, and can rise no more
    assert stuck.sum() == 5
    at[1][stuck] = 1.0
    step = Budget(1.0, "l1").steepest(gradient, at)
    assert torch.equal(step[0] != 0, gradient[0].abs() > 495)
    assert torch.equal(step[1] != 0, gradient[1].abs() > 490)
    torch.testing.assert_close(step[1][~stuck].abs().sum(), torch.tensor(1.0))
    assert (step[1][stuck] == 0.2).all()


@given(scenes(dtypes=(torch.float64, torch.float32)))
def test_projection_does_not_write_into_its_arguments(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, far = scene
    before = x.clone(), far.clone()
    near = budget.project(far, x)
    assert torch.equal(x, before[0])
    assert torch.equal(far, before[1])
    assert near.data_ptr() not in (x.data_ptr(), far.data_ptr())


@given(scenes(dtypes=(torch.float64, torch.float32)))
def test_distance_is_the_distance(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, far = scene
    assert budget.distance(far, x).shape == (len(x),)
    torch.testing.assert_close(budget.distance(far, x).double(), distance(budget, far, x), rtol=1e-5, atol=1e-6)


@given(scenes())
def test_a_sample_is_in_the_ball(scene: tuple[Budget, Tensor, Tensor]) -> None:
    budget, x, _ = scene
    drawn = budget.sample(x, generator(0))
    assert (drawn.shape, drawn.dtype) == (x.shape, x.dtype)
    assert (distance(budget, drawn, x) <= budget.eps * (1 + 4 * torch.finfo(x.dtype).eps) + slack(budget, x)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_samples_fill_the_ball_evenly(norm: str) -> None:
    n, d = 4000, 3
    x = torch.full((n, d), 0.5, dtype=torch.float64)
    delta = (Budget(0.25, norm).sample(x, generator(2)) - x) / 0.25
    assert delta.mean(0).abs().max() < 0.04
    # The share of the ball's volume inside a sample's own sphere is uniform exactly when the samples are.
    length = delta.norm(dim=1, p=ORDERS[norm])
    volume = (length**d).sort().values
    assert (volume - torch.linspace(0, 1, n, dtype=torch.float64)).abs().max() < 1.63 / math.sqrt(n)  # Kolmogorov, 1 %
    octants = (delta > 0).long() @ torch.tensor([1, 2, 4])
    assert ((octants.bincount(minlength=8) / n - 1 / 8).abs() < 0.025).all()


@pytest.mark.parametrize("norm", NORMS)
def test_samples_follow_their_generator_and_leave_the_global_one_alone(norm: str) -> None:
    x, budget = torch.full((3, 4), 0.5), Budget(0.1, norm)
    state = torch.get_rng_state()
    first, second, other = (budget.sample(x, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES), st.sampled_from([1e-30, 1e-25, 1e-6, 1.0, 1e6, 1e25]))
def test_the_steepest_step_has_unit_length_however_small_the_gradient(
    seed: int, shape: tuple[int, ...], size: float
) -> None:
    gradient = size * torch.randn(3, *shape, generator=generator(seed), dtype=torch.float32)
    linf, l2 = (Budget(0.1, norm).steepest(gradient) for norm in ("linf", "l2"))
    assert torch.equal(linf, gradient.sign())
    torch.testing.assert_close(l2.flatten(1).norm(dim=1), torch.ones(3), rtol=1e-5, atol=0)
    direction = gradient.double().flatten(1)
    direction = direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(l2.flatten(1).double(), direction, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from(NORMS))
def test_no_step_of_the_same_length_rises_more_than_the_steepest(seed: int, norm: str) -> None:
    g = generator(seed)
    gradient, other = (torch.randn(2, 5, generator=g, dtype=torch.float64) for _ in range(2))
    budget = Budget(1.0, norm)
    other = other / other.norm(dim=1, p=ORDERS[norm], keepdim=True)
    rise = (gradient * budget.steepest(gradient)).sum(1)
    assert (rise >= (gradient * other).sum(1) - 1e-12).all()
    dual = gradient.norm(dim=1, p={"linf": 1, "l2": 2, "l1": math.inf}[norm])
    torch.testing.assert_close(rise, dual)


@over("dtype", DTYPES, ids=str)
@over("norm", NORMS)
def test_the_steepest_step_of_nothing_is_nothing(norm: str, dtype: torch.dtype) -> None:
    gradient = torch.zeros(3, 2, 2, dtype=dtype)
    gradient[1] = 1
    step = Budget(0.1, norm).steepest(gradient)
    assert (step[[0, 2]] == 0).all()
    if norm == "l1":  # one of four coordinates is more than 1 % of them
        assert step[1].flatten().sort().values.tolist() == [0, 0, 0, 1]
    else:
        assert torch.equal(step[1], torch.full((2, 2), 1.0 if norm == "linf" else 0.5, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_smallest_gradient_of_a_kind_gives_a_finite_step(dtype: torch.dtype) -> None:
    gradient = torch.zeros(1, 4, dtype=dtype)
    gradient[0, 2] = torch.finfo(dtype).tiny
    torch.testing.assert_close(Budget(0.1, "l2").steepest(gradient), torch.tensor([[0.0, 0, 1, 0]], dtype=dtype))


def test_gaussian_noise_has_the_deviation_that_is_asked_for() -> None:
    x = torch.zeros(20_000, dtype=torch.float64)
    noise = gaussian(x, 0.001, generator(2))
    assert noise.std().item() == pytest.approx(0.001, rel=0.03)
    assert torch.equal(noise, gaussian(x, 0.001, generator(2)))


@pytest.mark.parametrize(
    ("eps", "norm", "words"),
    [
        (8, "linf", "8/255"),
        (1.5, "linf", "did you mean 1.5/255"),
        (0, "linf", "eps in (0, 1]"),
        (-0.1, "linf", "eps in (0, 1]"),
        (float("nan"), "linf", "eps in (0, 1]"),
        (0, "l2", "positive radius"),
        (-1, "l2", "positive radius"),
        (float("inf"), "l2", "positive radius"),
        (float("nan"), "l2", "positive radius"),
        (0.1, "Linf", "did you mean 'linf'"),
        (0.1, "l3", "one of l1, l2, linf"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(eps: float, norm: str, words: str) -> None:
    with pytest.raises(Refused) as refusal:
        Budget(eps, norm)
    assert words in str(refusal.value)


def test_a_budget_is_written_as_the_field_writes_it() -> None:
    assert str(Budget(8 / 255)) == "linf 8/255"
    assert str(Budget(128 / 255, "l2")) == "l2 128/255"
    assert str(Budget(0.15)) == "linf 0.15"


@pytest.mark.parametrize("value", [0.1, 0.3, 0.5])
def test_a_round_decimal_is_not_turned_into_half_grey_levels(value: float) -> None:
    """0.5 is how the field writes its L2 radius, 0.3 its radius for digits; nobody writes 127.5/255."""
    assert as_fraction(value) == str(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.031", 0.031), ("1e-3", 0.001), (0.1, 0.1), (1, 1.0), ("1/2", 0.5)],
)
def test_a_radius_is_read(text: str | float, value: float) -> None:
    assert radius(text) == value


@pytest.mark.parametrize("text", ["", "eight", "8/", "/255", "1/0", "8/255/2", "8%"])
def test_a_radius_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="8/255"):
        radius(text)


@given(st.integers(1, 2550))
def test_a_radius_that_is_written_can_be_read_again(tenths: int) -> None:
    """In whole 255ths, tenths of them and short decimals: what a label or a record says can be typed in."""
    value = tenths / 2550
    text = as_fraction(value)
    assert radius(text) == pytest.approx(value, rel=1e-12)


@given(st.floats(1e-6, 10.0))
def test_any_radius_survives_being_written(value: float) -> None:
    text = as_fraction(value)
    number = float(text.removesuffix("/255")) / 255 if text.endswith("/255") else float(text)
    assert number == pytest.approx(value, rel=1e-5)
