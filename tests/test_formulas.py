"""Every loss and its gradient, and what every attack climbs, against NumPy written beside the papers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from nets import CASES, Params, batch_of, build, case_id, gradients, labels, logits, loss_of
from papers import NP_INNERS, ORACLES, Array, Views, arrays_of, np_drift, np_gradient, np_loss

from mmard.methods import METHODS

EXTRA: tuple[tuple[str, Params], ...] = (
    ("rslad+igdm", {"rslad.scale": 0.1, "igdm.alpha": 3.0}),
    ("rslad+mmard", {"rslad.scale": 0.1, "mmard.beta": 2.0, "mmard.tau": 0.7}),
    ("adaad+igdm+mmard", {"adaad.scale": 0.1, "mmard.measure": "match"}),
    ("kd+mmard", {"mmard.measure": "mi", "mmard.beta": 0.5}),
)
WRITTEN = over(("spec", "params"), [*CASES, *EXTRA], ids=map(case_id, [*CASES, *EXTRA]))


def np_params(params: Params) -> Params:
    """Without what acts in the attack alone."""
    if params.get("ciard.lr_teacher") == 0:
        params = {**params, "ciard.teacher": False}
    inner = ("guide", "ramp", "drift", "teacher_every", "attack_mode", "lam", "quiet_mirror", "lr_teacher", "cool_at")
    return {k: v for k, v in params.items() if k.split(".")[1] not in inner and k != "mmard.bounded"}


@WRITTEN
@over("progress", [0.2, 0.7])
def test_the_gradient_of_every_loss_is_that_of_the_paper(spec: str, params: Params, progress: float) -> None:
    views, y = logits(4, seed=7), labels(4, seed=7)
    loss = loss_of(build(spec, params), views, y, progress)
    slopes = gradients(loss, views)

    def oracle(arrays: dict[str, Array]) -> Array:
        return np_loss(spec, np_params(params), Views(arrays, y.numpy(), progress))

    arrays = arrays_of(views)
    np.testing.assert_allclose(loss.item(), oracle(arrays), rtol=1e-10)
    for name, slope in slopes.items():
        np.testing.assert_allclose(slope.numpy(), np_gradient(oracle, arrays, name), rtol=1e-9, atol=1e-10)


@given(
    st.sampled_from([*CASES, *EXTRA]),
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(2, 11),
    st.sampled_from([0.1, 1.0, 5.0]),
    st.floats(0.01, 1.0),
)
def test_every_loss_is_that_of_the_paper(
    case: tuple[str, Params], seed: int, n: int, classes: int, spread: float, progress: float
) -> None:
    spec, params = case
    views, y = logits(n, seed, classes, spread), labels(n, seed, classes)
    expected = np_loss(spec, np_params(params), Views(arrays_of(views), y.numpy(), progress))
    np.testing.assert_allclose(loss_of(build(spec, params), views, y, progress).item(), expected, rtol=1e-9, atol=1e-12)


@over("host", NP_INNERS)
@over(
    ("plugin", "weight", "bounded", "drift"),
    [("", 0.0, False, "kl"), ("+mmard", 0.3, False, "kl"), ("+mmard", 2.0, True, "kl"), ("+mmard", 0.5, False, "ce")],
)
def test_the_attack_climbs_what_the_paper_says_plus_the_drift_of_the_teacher(
    host: str, plugin: str, weight: float, bounded: bool, drift: str
) -> None:
    own: Params = {"mmard.guide": weight, "mmard.bounded": bounded, "mmard.drift": drift}
    method = build(host + plugin, own if plugin else {})
    views, y = logits(4, seed=3), labels(4, seed=3)
    views["T.x_adv"].requires_grad_()
    assert method.inner is not None
    value = method.inner(batch_of(views, y))

    def oracle(arrays: dict[str, Array]) -> Array:
        v = Views(arrays, y.numpy(), 1.0)
        return (NP_INNERS[host](v) + weight * np_drift(v, bounded, drift)).sum()

    arrays = arrays_of(views)
    assert value.shape == (4,)
    np.testing.assert_allclose(value.sum().item(), oracle(arrays), rtol=1e-10)
    for letter in "ST":
        slope = gradients(value.sum(), views, letter)[f"{letter}.x_adv"]
        np.testing.assert_allclose(slope.numpy(), np_gradient(oracle, arrays, f"{letter}.x_adv"), rtol=1e-9, atol=1e-10)


def test_every_attack_is_written_down_here() -> None:
    assert set(NP_INNERS) == {name for name in METHODS if build(name).inner is not None}
    assert set(ORACLES) == set(METHODS)
