"""Square: what every candidate must satisfy, seen from the network that is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from laws import over
from nets import generator, images
from reference_autoattack import Scene, scene_images
from torch import Tensor, nn

from mmard.attacks import square as square_linf
from mmard.attacks import square as square_moving
from mmard.attacks.square import Square, pyramids, search_linf, search_moving
from mmard.balls import NORMS, Budget
from mmard.errors import Refused
from mmard.ops import margin

NORM = pytest.mark.parametrize("norm", NORMS)
EPS = {"linf": 0.02, "l2": 0.12, "l1": 0.8}


class Asked(nn.Module):
    """Keeps what a network was asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.points = inner, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.clone())
        return self.inner(x)


def scene(n: int = 16) -> tuple[Asked, Tensor, Tensor]:
    model, x = Asked(Scene()), scene_images(n).double() / 255
    return model, x, model.inner(x).argmax(1)


@pytest.fixture
def _one_query_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (square_linf, square_moving):
        monkeypatch.setattr(module, "MOST", 1)


def safest(model: Asked, x: Tensor, y: Tensor) -> slice:
    """The image with the widest margin."""
    first = int(margin(model.inner(x), y).argmin())
    return slice(first, first + 1)


@pytest.mark.usefixtures("_one_query_at_a_time")
@NORM
def test_every_candidate_lies_in_the_ball_and_the_box_and_queries_are_kept_to(norm: str) -> None:
    model, x, y = scene()
    budget, one = Budget(EPS[norm], norm), safest(model, x, y)
    before = torch.random.get_rng_state()
    x_adv = Square(queries=150)(model, x[one], y[one], Budget(EPS[norm] / 4, norm), generator=generator(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(x_adv, x[one]), "this one should stand"
    assert 20 < len(model.points) <= 151
    for point in model.points:
        assert float(budget.distance(point, x[one])) <= budget.eps / 4 * (1 + 1e-9)
        assert point.min() >= 0
        assert point.max() <= 1
    x_adv = Square(queries=150)(model, x, y, budget, generator=generator(0))
    misread = model.inner(x_adv).argmax(1) != y
    assert 0 < misread.sum() < len(x)
    assert torch.equal((x_adv != x).flatten(1).any(1), misread)


@pytest.mark.usefixtures("_one_query_at_a_time")
@NORM
def test_the_margin_only_falls(norm: str) -> None:
    """The best point is the best of all that were asked, and each candidate differs from the best before it."""
    model, x, y = scene()
    one = safest(model, x, y)
    attack, budget = Square(queries=200), Budget(EPS[norm] / 4, norm)
    with torch.no_grad():
        sides = attack.sides(x, budget)
        if norm == "linf":
            best, gap = search_linf(model, x[one], y[one], budget.eps, sides, generator(0))
        else:
            best, gap = search_moving(model, x[one], y[one], budget, sides, generator(0))
        gaps = [float(margin(model.inner(point), y[one])) for point in model.points]
    assert float(gap) == max(gaps)
    assert float(margin(model.inner(best), y[one]).detach()) == max(gaps)
    assert len(set(np.maximum.accumulate(gaps))) >= 3


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_queries_tried_at_once_are_queries_tried_in_turn(batch: int, prompt: bool) -> None:
    model, x, y = scene(batch)
    budget = Budget(EPS["linf"] / 2)
    found: dict[int, list[Tensor]] = {}
    asked: dict[int, int] = {}
    for most in (1, 5, 16):
        model.points.clear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(square_linf, "MOST", most)
            patched.setattr(square_linf, "prompt", lambda x: prompt)
            with torch.no_grad():
                found[most] = list(
                    search_linf(model, x, y, budget.eps, Square(queries=300).sides(x, budget), generator(2))
                )
        asked[most] = len(model.points)
    for most in (5, 16):
        standing = found[1][1] < 0
        assert torch.equal(standing, found[most][1] < 0)
        for one, other in zip(found[1], found[most], strict=True):  # of the others nobody asks where they end
            torch.testing.assert_close(one[standing], other[standing], rtol=0, atol=1e-12)
    assert asked[16] < asked[5] < 0.7 * asked[1]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_moves_tried_at_once_are_moves_tried_in_turn(batch: int, norm: str) -> None:
    """Samples fall on the way, after which a query takes fewer numbers."""
    model, x, y = scene(batch)
    budget = Budget(EPS[norm] * (0.7 if batch == 16 else 0.3), norm)
    found: dict[int, list[Tensor]] = {}
    asked: dict[int, int] = {}
    for most in (1, 5, 16):
        model.points.clear()
        with pytest.MonkeyPatch.context() as patched, torch.no_grad():
            patched.setattr(square_moving, "MOST", most)
            drawn = generator(2)
            sides = Square(queries=300).sides(x, budget)
            found[most] = list(search_moving(model, x, y, budget, sides, drawn))
            found[most].append(torch.rand(3, generator=drawn, dtype=x.dtype))
        asked[most] = len(model.points)
    assert batch < 16 or 0 < (found[1][1] >= 0).sum() < batch
    for most in (5, 16):
        for one, other in zip(found[1], found[most], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert asked[16] <= asked[5] <= asked[1]
    assert batch < 16 or asked[5] < asked[1]


@pytest.mark.usefixtures("_one_query_at_a_time")
def test_asking_nothing_twice_changes_nothing() -> None:
    model, x, y = scene()
    budget = Budget(EPS["linf"])
    saved = Square(queries=400)(model, x, y, budget, generator=generator(1))
    asked = sum(len(p) for p in model.points)
    model.points.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(square_linf.Refusals, "was", lambda self, move, row: torch.zeros_like(row, dtype=torch.bool))
        plain = Square(queries=400)(model, x, y, budget, generator=generator(1))
    assert torch.equal(saved, plain)
    plainly = sum(len(p) for p in model.points)
    assert asked < plainly
    model.points.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(square_linf, "prompt", lambda x: False)
        late = Square(queries=400)(model, x, y, budget, generator=generator(1))
    assert torch.equal(model.inner(late).argmax(1), model.inner(plain).argmax(1))
    assert plainly < sum(len(p) for p in model.points)


@pytest.mark.usefixtures("_one_query_at_a_time")
def test_no_point_is_asked_twice_in_a_row_of_refusals() -> None:
    model, x, y = scene()
    one = safest(model, x, y)
    Square(queries=600)(model, x[one], y[one], Budget(EPS["linf"] / 4), generator=generator(0))
    best, refused = -np.inf, list[Tensor]()
    for point in model.points:
        gap = float(margin(model.inner(point).detach(), y[one]))
        if gap > best:
            best, refused = gap, [point]
        else:
            # Squares of two sizes can give one point; of one size they cannot.
            refused.append(point)
    smallest = refused[-20:]
    assert all(not torch.equal(a, b) for i, a in enumerate(smallest) for b in smallest[:i])


def test_the_side_follows_the_schedule_of_the_paper() -> None:
    x = torch.empty(1, 3, 32, 32)
    at = {0: 29, 10: 29, 11: 20, 50: 20, 51: 14, 201: 10, 501: 7, 1001: 5, 2001: 4, 4001: 3, 6001: 2, 8001: 1}
    assert {q: Square().side(q, x) for q in at} == at


@over("norm", ["l2", "l1"])
@over("side", [1, 2, 3, 5, 8, 13])
def test_pyramids(side: int, norm: str) -> None:
    lying, standing = (pyramids(side, turned, norm, torch.float64) for turned in (False, True))
    assert float((lying**2).sum() if norm == "l2" else lying.abs().sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(standing, lying.T)
    assert (lying[: side // 2] > 0).all()
    assert (lying[side // 2 :] < 0).all()
    if side >= 8:  # one summit each, which falls off on all sides
        top = lying[: side // 2]
        assert top.argmax() == (side // 4) * side + side // 2
        ring = (top[side // 4, side // 2] / top[side // 4, side // 2 + 1]).item()
        m = side // 2 + 1
        power = {"l2": 2, "l1": 4}[norm]
        tail = [sum(1 / (k + 1) ** power for k in range(d, m)) for d in range(m)]
        assert ring == pytest.approx(tail[0] / tail[1], rel=1e-12)


@NORM
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (1, 4, 9), (1, 14, 14), (2, 9, 5)])
def test_images_of_any_size(norm: str, shape: tuple[int, ...]) -> None:
    x = images(3, shape=shape)
    weight = torch.randn(2, x[0].numel(), generator=generator(0), dtype=torch.float64)

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ weight.T

    y = Linear()(x).argmax(1)
    budget = Budget(0.05, norm)
    x_adv = Square(queries=60)(Linear(), x, y, budget, generator=generator(0))
    assert (budget.distance(x_adv, x) <= budget.eps * (1 + 1e-9)).all()


def test_a_linear_model_falls_under_a_wide_margin() -> None:
    """Random search is not exact, but with two thirds of the ball to spare it must get there."""
    weight = torch.ones(2, 36, dtype=torch.float64)
    weight[1] = -1

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 0.5).flatten(1) @ weight.T

    x = torch.full((4, 1, 6, 6), 0.52, dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.int64)
    x_adv = Square(queries=300)(Linear(), x, y, Budget(0.06), generator=generator(0))
    assert (Linear()(x_adv).argmax(1) == 1).all()
    assert torch.equal(Square(queries=300)(Linear(), x, y, Budget(0.019), generator=generator(0)), x)


def test_refusals() -> None:
    with pytest.raises(Refused, match=r"Square\(queries=0\): expected at least 1, got 0"):
        Square(queries=0)
    with pytest.raises(Refused, match=r"Square\(p_init=0\): expected a share in \(0, 1\], got 0"):
        Square(p_init=0)
    with pytest.raises(Refused, match=r"Square: expected images \(B, C, H, W\), got \(2, 5\)"):
        Square()(
            nn.Identity(), torch.rand(2, 5), torch.zeros(2, dtype=torch.int64), Budget(0.1), generator=generator(0)
        )
