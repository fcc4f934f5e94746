"""SAAD's weights: whom they teach, and whom nothing teaches. docs/methods.md has what it costs on digits."""

from __future__ import annotations

import pytest
import torch
from nets import Logits, batch_of, build, gradients, logits
from torch import Tensor
from torch.nn import functional as F

from mmard.ops import entropy


def sure_of_a_class(sharpness: float = 12.0) -> tuple[Logits, Tensor]:
    """Nine samples in three classes, of the first of which the teacher is sure, at x and at x'."""
    views, y = logits(9, spread=0.5), torch.arange(9) % 3
    for name in ("T.x", "T.x_adv", "T.x_mirror"):
        views[name] = views[name] + sharpness * F.one_hot(y, 3) * (y == 0)[:, None]
    return views, y


def slope_by_class(views: Logits, y: Tensor, params: dict[str, float]) -> list[float]:
    """Length of the loss's gradient at the student's predictions, by class."""
    loss = torch.stack([term.mean() for term in build("saad", params).outer(batch_of(views, y)).values()]).sum()
    length = sum(slope.square().sum(1) for slope in gradients(loss, views).values())
    return [length[y == c].sum().sqrt().item() for c in range(3)]


def test_a_class_that_the_teacher_is_sure_of_is_not_taught() -> None:
    """Though the student is wrong about it by more than about the others."""
    views, y = sure_of_a_class()
    assert entropy(views["T.x_adv"])[y == 0].max() < 1e-3
    taught = slope_by_class(views, y, {})
    assert taught[0] < 1e-3 * min(taught[1:])
    even = slope_by_class(*sure_of_a_class(0.0), {})
    assert even[0] > 0.1 * min(even[1:])


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_natural_term_teaches_what_the_weights_leave_out(beta: float) -> None:
    views, y = sure_of_a_class()
    before, after = slope_by_class(views, y, {}), slope_by_class(views, y, {"saad.beta": beta})
    assert after[0] > 500 * beta * before[0]
    terms = build("saad", {"saad.beta": beta}).outer(batch_of(views, y))
    assert terms["nat"][y == 0].sum() > terms["nat"][y != 0].sum()


def test_the_weights_are_the_entropy_above_the_surest_of_the_batch() -> None:
    """H = (.2, .5, 1.0) gives (0, 1.5, 4.0), and for the natural term 1, 1 - 0.375 and 0."""
    views, y = logits(3), torch.tensor([0, 1, 2])
    h = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    views["T.x_adv"] = torch.stack([_with_entropy(value) for value in h.tolist()])
    torch.testing.assert_close(entropy(views["T.x_adv"]), h, rtol=0, atol=1e-12)
    terms = build("saad", {"saad.beta": 1.0}).outer(batch_of(views, y))
    plain = build("adaad", {"adaad.alpha": 0.5}).outer(batch_of(views, y))
    expected = {"adv": torch.tensor([0, 1.5, 4.0]), "nat": torch.tensor([1, 0.625, 0])}
    for name, weight in expected.items():
        torch.testing.assert_close(terms[name], weight * 2 * plain[name], rtol=1e-7, atol=1e-8)


def _with_entropy(wanted: float) -> Tensor:
    """Logits (3,) of this entropy, by bisection."""
    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        z = torch.tensor([middle, 0.0, 0.0], dtype=torch.float64)
        low, high = (middle, high) if entropy(z[None]).item() > wanted else (low, middle)
    return z
