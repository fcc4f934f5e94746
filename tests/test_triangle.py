"""The triangle of MMARD: its measures against NumPy, their bounds, and what they do at the edge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from nets import Logits, batch_of, build, gradients, labels, logits
from papers import Views, arrays_of, np_triangle
from torch import Tensor

from mmard.methods.mmard import MEASURES

TRIANGLE = ("tri_nat_adv", "tri_nat_teacher", "tri_adv_teacher")


def edges(measure: str, views: Logits, **params: Any) -> dict[str, Tensor]:
    """The edges as they are, without the third of the weight."""
    spelled = {f"mmard.{k}": v for k, v in {"edges": "nr,nq,rq", **params}.items()}
    terms = build("kd+mmard", {"mmard.measure": measure, **spelled}).outer(batch_of(views, labels(len(views["S.x"]))))
    return {name: 3 * terms[name] for name in TRIANGLE}


@over("measure", MEASURES)
@over(("n", "classes"), [(1, 3), (2, 2), (6, 3), (9, 10)])
def test_each_edge_is_what_numpy_says(measure: str, n: int, classes: int) -> None:
    views = logits(n, 5, classes)
    expected = np_triangle(Views(arrays_of(views), labels(n).numpy(), 1.0), measure)
    found = edges(measure, views)
    for name, value in zip(TRIANGLE, expected, strict=True):
        assert found[name].shape == (n,)
        np.testing.assert_allclose(found[name].mean().item(), value, rtol=1e-10, atol=1e-12)


@over("measure", MEASURES)
@over("name", TRIANGLE)
def test_an_edge_depends_on_its_two_corners_alone(measure: str, name: str) -> None:
    corners = {
        "tri_nat_adv": {"S.x", "S.x_adv"},
        "tri_nat_teacher": {"S.x"},
        "tri_adv_teacher": {"S.x_adv"},
    }[name]
    views = logits(6)
    slopes = gradients(edges(measure, views)[name].sum(), views)
    assert {k for k, g in slopes.items() if g.norm() > 1e-9} == corners


def test_a_student_that_equals_its_teacher_matches_it() -> None:
    views = logits(6)
    for point in ("x", "x_adv"):
        views[f"S.{point}"] = views[f"T.{point}"].clone().requires_grad_()
    for name, value in edges("match", views).items():
        assert value.mean().item() == pytest.approx(0, abs=1e-12), name
    slopes = gradients(torch.stack([v.mean() for v in edges("match", views).values()]).sum(), views)
    assert all(g.norm() < 1e-12 for g in slopes.values()), "not a minimum"


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 6), st.sampled_from([0.1, 1.0, 8.0]))
def test_the_measures_keep_their_bounds(seed: int, n: int, classes: int, spread: float) -> None:
    views = logits(n, seed, classes, spread)
    tau = 0.2
    for d in edges("nce", views, tau=tau).values():
        # The own pair is no more similar than 1 and the others no less than 0; log B - d is at most log B.
        assert (d >= math.log1p((n - 1) * math.exp(-1 / tau)) - 1e-9).all()
        assert (d <= math.log(n) + 1 / tau + 1e-9).all()
        assert math.log(n) - d.mean().item() <= math.log(n) + 1e-12
    for d in edges("mi", views).values():
        assert -1 - 1e-9 <= d.mean().item() <= 1e-9  # 0 <= I <= log C
    for measure in ("match", "kl"):
        for d in edges(measure, views).values():
            assert d.mean().item() >= -1e-9


def test_the_information_of_certain_and_balanced_predictions_is_the_logarithm_of_the_classes() -> None:
    views, certain = logits(6, classes=3), 40 * torch.eye(3, dtype=torch.float64).repeat(2, 1)
    for name in ("S.x", "S.x_adv", "T.x", "T.x_adv"):
        views[name] = certain.clone().requires_grad_(name.startswith("S"))
    for d in edges("mi", views).values():
        assert d.mean().item() == pytest.approx(-1, abs=1e-9)
    for d in edges("nce", views, tau=0.2).values():  # two of six samples in each class: e^5 for two, 1 for four
        assert d.mean().item() == pytest.approx(math.log(2 + 4 * math.exp(-5)), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_class_in_which_nobody_believes_leaves_the_measures_finite(measure: str, dtype: torch.dtype) -> None:
    """A confident teacher on a small batch gives some class the probability 0 in every sample."""
    views = {k: v.detach().to(dtype) for k, v in logits(4).items()}
    for k, v in views.items():
        v[:, 2] -= 2000
        v.requires_grad_(k.startswith("S"))
    found = edges(measure, views)
    slopes = gradients(torch.stack([d.mean() for d in found.values()]).sum(), views)
    assert all(d.isfinite().all() for d in found.values())
    assert all(g.isfinite().all() for g in slopes.values())


@pytest.mark.parametrize("measure", MEASURES)
def test_the_edge_to_the_clean_prediction_is_that_to_a_teacher_that_has_not_moved(measure: str) -> None:
    views = logits(6)
    still = {**views, "T.x_adv": views["T.x"]}
    there = build("kd+mmard", {"mmard.measure": measure, "mmard.edges": "rc"})
    found = there.outer(batch_of(views, labels(6)))["tri_adv_clean"]
    torch.testing.assert_close(3 * found, edges(measure, still)["tri_adv_teacher"])
    # And it asks the teacher nothing at x', which is what it saves.
    unknown = {**views, "T.x_adv": torch.full_like(views["T.x_adv"], math.nan)}
    torch.testing.assert_close(there.outer(batch_of(unknown, labels(6)))["tri_adv_clean"], found)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_edge_that_holds_the_clean_prediction_still_has_its_value_and_half_its_slope(measure: str) -> None:
    views = logits(6)
    both, held = (
        build("kd+mmard", {"mmard.measure": measure, "mmard.edges": edge}).outer(batch_of(views, labels(6)))[name]
        for edge, name in (("nr", "tri_nat_adv"), ("rn", "tri_adv_nat"))
    )
    torch.testing.assert_close(held, both)
    slopes = gradients(held.sum(), views)
    assert {k for k, g in slopes.items() if g.norm() > 1e-9} == {"S.x_adv"}
    torch.testing.assert_close(slopes["S.x_adv"], gradients(both.sum(), views)["S.x_adv"])
