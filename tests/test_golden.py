"""Every formula against numbers taken once from the papers' equations, and against NumPy written beside the papers.

The second half knows nothing of this package or of torch: predictions go in as arrays, the loss is written as on paper,
and its gradient is the imaginary part of the loss at a point moved by 1e-30 i, which is exact to rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import CASES, SLOPE, Logits, Params, batch_of, build, case_id, labels, logits, read
from torch import Tensor

from mmard.method import Method
from mmard.methods import METHODS, PLUGINS
from mmard.methods.mmard import MEASURES

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "formulas.json").read_text(encoding="utf-8"))
HALF_A_DIGIT = 0.51e-6
"""The recorded values have six decimals."""


def golden_logits() -> Logits:
    views = {k: torch.tensor(v, dtype=torch.float64) for k, v in GOLDEN["logits"].items()}
    return {k: v.requires_grad_(k.startswith("S")) for k, v in views.items()}


def loss_of(method: Method, views: Logits, y: Tensor, progress: float = 1.0) -> Tensor:
    terms = method.outer(batch_of(views, y, progress))
    return torch.stack([term.mean() for term in terms.values()]).sum()


def gradients(value: Tensor, views: Logits, letter: str = "S") -> Logits:
    wanted = {k: v for k, v in views.items() if k.startswith(letter) and v.requires_grad}
    found = torch.autograd.grad(value, list(wanted.values()), retain_graph=True, allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(wanted.items(), found, strict=True)}


# --- recorded numbers ---


def remembering(method: Method, memory: dict[str, Any]) -> Method:
    """The method with these values in the buffers of its memory, by the last part of their names."""
    if memory:
        assert method.memory is not None
        state = {
            name: torch.tensor(memory.get(name.split(".")[-1], [0.0] * 3 if value.ndim else value.item()))
            for name, value in method.memory.state_dict().items()
        }
        method.memory.load_state_dict(state)
        method.memory.double()
    return method


@pytest.mark.parametrize("row", GOLDEN["losses"], ids=lambda row: row["id"])
def test_the_loss_and_its_gradients_are_the_recorded_ones(row: dict[str, Any]) -> None:
    views = golden_logits()
    method = remembering(build(row["method"], row["params"]), row.get("memory", {}))
    loss = loss_of(method, views, torch.tensor(row.get("y", GOLDEN["y"])), row["progress"])
    slopes = gradients(loss, views)
    assert loss.item() == pytest.approx(row["loss"], abs=HALF_A_DIGIT)
    for name, norm in row["gradient"].items():
        assert slopes[name].norm().item() == pytest.approx(norm, abs=HALF_A_DIGIT), name
    assert slopes["S.x_adv"][0, 0].item() == pytest.approx(row["first"], abs=HALF_A_DIGIT)


def test_every_method_and_every_plug_in_with_a_published_loss_has_a_recorded_number() -> None:
    assert {part for row in GOLDEN["losses"] for part in row["method"].split("+")} == {
        *METHODS,
        *PLUGINS,
    } - {"mmard", "awp"}  # the first has no published loss, the second has its host's


@pytest.mark.parametrize("row", GOLDEN["wrong"], ids=lambda row: row["id"])
def test_the_gradient_is_not_the_one_of_a_known_mistake(row: dict[str, Any]) -> None:
    views = golden_logits()
    loss = loss_of(build(row["method"], row["params"]), views, torch.tensor(GOLDEN["y"]), row["progress"])
    assert loss.item() == pytest.approx(row["loss"], abs=HALF_A_DIGIT), "the value does not tell them apart"
    for name, norm in row["gradient"].items():
        assert abs(gradients(loss, views)[name].norm().item() - norm) > 0.1


def test_ard_tends_to_the_recorded_limit_as_its_temperature_grows() -> None:
    (row,) = GOLDEN["limits"]
    y, found = torch.tensor(GOLDEN["y"]), []
    for tau in (1e3, 2e3, 4e3):
        views = golden_logits()
        loss = loss_of(build("ard", {"ard.tau": tau}), views, y)
        slope = gradients(loss, views)["S.x_adv"]
        found.append(torch.cat([loss.detach()[None], slope.flatten()]))
    assert (found[2] - found[1]).norm() < 0.6 * (found[1] - found[0]).norm()
    # The error is a/tau + b/tau^2 + ...: two steps of Richardson's extrapolation are rid of both.
    first, second = 2 * found[1] - found[0], 2 * found[2] - found[1]
    limit = (4 * second - first) / 3
    assert limit[0].item() == pytest.approx(row["loss"], abs=1e-6)
    assert limit[1:].norm().item() == pytest.approx(row["gradient"], abs=1e-6)
    assert limit[1].item() == pytest.approx(row["first"], abs=1e-6)


INNERS = [(method, row) for row in GOLDEN["inner"] for method in row["methods"]]


@pytest.mark.parametrize(("name", "row"), INNERS, ids=[f"{m}: {row['id']}" for m, row in INNERS])
def test_the_attack_climbs_along_the_recorded_gradients(name: str, row: dict[str, Any]) -> None:
    inner, views = build(name).inner, golden_logits()
    assert inner is not None
    views["T.x_adv"].requires_grad_()
    value = inner(batch_of(views, torch.tensor(GOLDEN["y"])))
    assert value.shape == (2,)
    slope = gradients(value.sum(), views)["S.x_adv"][0]
    assert slope.tolist() == pytest.approx(row["S.x_adv"], abs=HALF_A_DIGIT)
    through_teacher = gradients(value.sum(), views, "T")["T.x_adv"][0]
    if row["T.x_adv"] is None:
        assert (through_teacher == 0).all()
    else:
        assert through_teacher.tolist() == pytest.approx(row["T.x_adv"], abs=HALF_A_DIGIT)


def test_every_attack_of_a_method_has_a_recorded_gradient() -> None:
    attacking = {name for name in METHODS if build(name).inner is not None}
    assert {method for method, _ in INNERS} == attacking - {"saad"}  # of a slope, which logits do not have


@pytest.mark.parametrize("row", GOLDEN["wrong_inner"], ids=lambda row: row["id"])
def test_the_teachers_side_is_not_the_one_of_soft_cross_entropy(row: dict[str, Any]) -> None:
    for name in row["methods"]:
        inner, views = build(name).inner, golden_logits()
        assert inner is not None
        views["T.x_adv"].requires_grad_()
        value = inner(batch_of(views, torch.tensor(GOLDEN["y"])))
        wrong = torch.tensor(row["T.x_adv"], dtype=torch.float64)
        assert (gradients(value.sum(), views, "T")["T.x_adv"][0] - wrong).norm() > 0.1
        # What the mistake is: -sum_k p_T(k) log p_S(k), differentiated by the teacher's logits.
        T, S = views["T.x_adv"], views["S.x_adv"]
        (mistake,) = torch.autograd.grad(-(T.softmax(1) * S.log_softmax(1)).sum(), T)
        assert mistake[0].tolist() == pytest.approx(row["T.x_adv"], abs=HALF_A_DIGIT)


# --- the papers, in NumPy ---

Array = np.ndarray[Any, Any]


def softmax(z: Array, tau: float = 1.0) -> Array:
    e = np.exp((z - z.real.max(-1, keepdims=True)) / tau)
    return e / e.sum(-1, keepdims=True)


def KL(P: Array, Q: Array) -> Array:
    return (P * (np.log(P) - np.log(Q))).sum(-1)


def of_label(P: Array, y: Array) -> Array:
    return P[np.arange(len(y)), y]


def CE(z: Array, y: Array) -> Array:
    return -np.log(of_label(softmax(z), y))


class Views:
    """S(x), S(x'), S(x-) and the teacher's three, as arrays, with the names of the papers' formulas."""

    def __init__(self, arrays: dict[str, Array], y: Array, progress: float) -> None:
        self.S_n, self.S_a, self.S_m = arrays["S.x"], arrays["S.x_adv"], arrays["S.x_mirror"]
        self.T_n, self.T_a, self.T_m = arrays["T.x"], arrays["T.x_adv"], arrays["T.x_mirror"]
        self.N_n, self.N_a = arrays["T_nat.x"], arrays["T_nat.x_adv"]
        self.P_n, self.P_a, self.T_live = arrays["P.x"], arrays["P.x_adv"], arrays["T_tuned.x_adv"]
        self.y, self.progress = y, progress


def np_pgd_at(v: Views) -> Array:
    return CE(v.S_a, v.y)


def np_trades(v: Views, beta: float = 6.0) -> Array:
    return CE(v.S_n, v.y) + beta * KL(softmax(v.S_n), softmax(v.S_a))


def np_mart(v: Views, beta: float = 5.0) -> Array:
    q, p = softmax(v.S_a), softmax(v.S_n)
    rows = np.arange(len(v.y))
    others = q.real.copy()
    others[rows, v.y] = -1
    bce = -np.log(of_label(q, v.y)) - np.log(1.0001 - q[rows, others.argmax(1)] + 1e-12)
    return bce + beta * KL(p, q) * (1.0000001 - of_label(p, v.y))


def np_kd(v: Views, alpha: float = 1.0, tau: float = 4.0) -> Array:
    return alpha * tau**2 * KL(softmax(v.T_n, tau), softmax(v.S_n, tau)) + (1 - alpha) * CE(v.S_n, v.y)


def np_ard(v: Views, alpha: float = 1.0, tau: float = 30.0, scale: float = 1.0) -> Array:
    return scale * alpha * tau**2 * KL(softmax(v.T_n, tau), softmax(v.S_a, tau)) + (1 - alpha) * CE(v.S_n, v.y)


def np_iad_i(
    v: Views,
    alpha: float = 1.0,
    beta: float = 0.1,
    tau: float = 1.0,
    begin: float = 0.3,
    weigh_teacher: bool = True,
    scale: float = 1.0,
) -> Array:
    late = v.progress > begin
    A = of_label(softmax(v.T_a), v.y) ** beta if late else 1.0
    guidance = tau**2 * KL(softmax(v.T_n, tau), softmax(v.S_a, tau))
    introspection = KL(softmax(v.S_n), softmax(v.S_a))
    both = (A if weigh_teacher else 1.0) * guidance + (1 - A) * introspection
    return scale * alpha * both + (1 - alpha) * CE(v.S_n, v.y)


def np_rslad(v: Views, alpha: float = 5 / 6, scale: float = 1.0) -> Array:
    return scale * (alpha * KL(softmax(v.T_n), softmax(v.S_a)) + (1 - alpha) * KL(softmax(v.T_n), softmax(v.S_n)))


def np_adaad(v: Views, alpha: float = 1.0, scale: float = 1.0) -> Array:
    return scale * (alpha * KL(softmax(v.T_a), softmax(v.S_a)) + (1 - alpha) * KL(softmax(v.T_n), softmax(v.S_n)))


def np_adaiad(
    v: Views, beta: float = 0.1, tau: float = 1.0, begin: float = 0.3, weigh_teacher: bool = False, scale: float = 1.0
) -> Array:
    A = of_label(softmax(v.T_a), v.y) ** beta if v.progress > begin else 1.0
    guidance = tau**2 * KL(softmax(v.T_a, tau), softmax(v.S_a, tau))
    introspection = KL(softmax(v.S_n), softmax(v.S_a))
    return scale * ((A if weigh_teacher else 1.0) * guidance + (1 - A) * introspection)


def np_akd2(
    v: Views, label: float = 0.3, robust: float = 0.6, natural: float = 0.1, tau: float = 2.0, scale: float = 1.0
) -> Array:
    def H(t: Array) -> Array:
        return -(softmax(t, tau) * np.log(softmax(v.S_a, tau))).sum(-1)

    return label * CE(v.S_a, v.y) + scale * tau**2 * (robust * H(v.T_a) + natural * H(v.N_a))


def np_iad_ii(v: Views, beta: float = 0.1, tau: float = 1.0, begin: float = 0.2, scale: float = 1.0) -> Array:
    A = of_label(softmax(v.T_a), v.y) ** beta if v.progress > begin else 1.0
    S_a = softmax(v.S_a, tau)
    trusted = A * KL(softmax(v.T_a, tau), S_a) + (1 - A) * KL(softmax(v.S_n, tau), S_a)
    return 0.25 * CE(v.S_a, v.y) + scale * tau**2 * (0.5 * trusted + 0.25 * KL(softmax(v.N_a, tau), S_a))


def np_mtard(v: Views, scale: float = 1.0) -> Array:
    """Of the first step, when both losses have come equally far."""
    return scale * 0.5 * (KL(softmax(v.T_a), softmax(v.S_a)) + KL(softmax(v.N_n), softmax(v.S_n)))


def np_b_mtard(v: Views, tau_adv: float = 1.0, tau_nat: float = 1.0, scale: float = 1.0) -> Array:
    adv, nat = KL(softmax(v.T_a, tau_adv), softmax(v.S_a)), KL(softmax(v.N_n, tau_nat), softmax(v.S_n))
    return scale * 0.5 * (adv + nat)


def np_peeraid(
    v: Views,
    label: float = 0.0,
    guide: float = 1.0,
    own: float = 1.0,
    tau: float = 5.0,
    peer_label: float = 1.0,
    peer_guide: float = 0.1,
    peer_tau: float = 1.0,
    scale: float = 1.0,
) -> Array:
    S, P = v.S_a, v.P_a
    student = guide * KL(softmax(P.real, tau), softmax(S, tau)) + own * KL(softmax(v.S_n, tau), softmax(S, tau))
    peer = peer_guide * peer_tau**2 * KL(softmax(S.real, peer_tau), softmax(P, peer_tau))
    return label * CE(S, v.y) + peer_label * CE(P, v.y) + scale * (tau**2 * student + peer)


def np_swapped(z: Array, y: Array) -> Array:
    out = z.copy()
    for i, label in enumerate(y):
        top = z[i].real.argmax()
        out[i, label], out[i, top] = z[i, top], z[i, label]
    return out


def np_dgad(v: Views, alpha: float = 1.0, mu: float = 1.0, scale: float = 1.0) -> Array:
    misread = v.T_n.real.argmax(-1) != v.y
    nat = KL(softmax(np_swapped(v.T_n, v.y)), softmax(v.S_n))
    adv = KL(softmax(np_swapped(v.T_a, v.y)), softmax(v.S_a))
    gap = ((softmax(v.S_a) - softmax(v.S_n)) ** 2).mean(-1)
    return scale * alpha * np.where(misread, nat, adv) + mu * gap


def np_ciard(
    v: Views, push: float = 1.0, bounded: bool = True, balanced: bool = False, teacher: bool = True, scale: float = 1.0
) -> Array:
    """Per batch, since its mean over the misread is not one over the batch; balanced as in the first step."""
    weight = 0.5 if balanced else 1.0
    adv, nat = KL(softmax(v.T_a), softmax(v.S_a)).mean(), KL(softmax(v.N_n), softmax(v.S_n)).mean()
    total = scale * weight * (adv + nat) + (CE(v.T_live, v.y).mean() if teacher else 0.0)
    misread = v.N_a.real.argmax(-1) != v.y
    if not push or not misread.any():
        return np.array([total])
    away = KL(softmax(v.N_a), softmax(v.S_a, 5.0))[misread]
    if bounded:
        away = np.where(away.real > math.log(v.S_a.shape[1]), math.log(v.S_a.shape[1]), away)
    orders = [math.floor(math.log10(max(loss.real, 1e-12))) for loss in (adv, nat, away.mean())]
    return np.array([total - scale * push * 10.0 ** (min(orders[:2]) - orders[2]) * away.mean()])


def np_saad(
    v: Views, alpha: float = 1.0, beta: float = 0.0, spread: float = 5.0, order: float = 1.0, scale: float = 1.0
) -> Array:
    p = softmax(v.T_a)
    H = -(p * np.log(p)).sum(-1) if order == 1 else np.log((p**order).sum(-1)) / (1 - order)
    w = spread * (H - H.min())
    u = (w - w.min()) / (w.max() - w.min() + 1e-8)
    adv = KL(p, softmax(v.S_a)) + alpha * v.progress * KL(softmax(v.T_a - v.T_m), softmax(v.S_a - v.S_m))
    return scale * (w * adv + beta * (1 - u) * KL(softmax(v.T_n), softmax(v.S_n)))


def np_igdm(v: Views, alpha: float = 1.0) -> Array:
    return alpha * v.progress * KL(softmax(v.T_a - v.T_m), softmax(v.S_a - v.S_m))


def joint(a: Array, b: Array) -> Array:
    """J(a, b) = mean_i a_i (outer product) b_i, (C, C)."""
    return sum(np.outer(a_i, b_i) for a_i, b_i in zip(a, b, strict=True)) / len(a)


def information(a: Array, b: Array) -> Array:
    J = joint(a, b)
    return (J * np.log(J / np.outer(J.sum(1), J.sum(0)))).sum()


def info_nce(a: Array, b: Array, tau: float) -> Array:
    """-log of the share that the own pair has among all pairs, averaged over both directions and the batch."""
    s = np.exp(np.array([[(a_i * b_j).sum() / tau for b_j in b] for a_i in a]))
    own = np.diag(s)
    return (-np.log(own / s.sum(1)) - np.log(own / s.sum(0))).mean() / 2


def np_triangle(v: Views, measure: str = "nce", tau: float = 0.2) -> tuple[Array, Array, Array]:
    """The three edges, averaged over the batch: student natural - robust, natural - teacher, robust - teacher."""
    N, R, Q_n, Q_r = softmax(v.S_n), softmax(v.S_a), softmax(v.T_n), softmax(v.T_a)
    match measure:
        case "nce":
            return info_nce(N, R, tau), info_nce(N, Q_n, tau), info_nce(R, Q_r, tau)
        case "mi":
            log_C = math.log(N.shape[1])
            return -information(N, R) / log_C, -information(N, Q_n) / log_C, -information(R, Q_r) / log_C
        case "match":

            def between(P: Array, Q: Array) -> Array:
                return (P * np.log(P / Q)).sum()

            return (
                between(joint(Q_n, Q_r), joint(N, R)),
                between(joint(Q_n, Q_n), joint(N, Q_n)),
                between(joint(Q_r, Q_r), joint(R, Q_r)),
            )
        case "kl":
            return KL(N, R).mean(), KL(Q_n, N).mean(), KL(Q_r, R).mean()
    raise AssertionError(measure)


ORACLES: dict[str, Callable[..., Array]] = {
    "natural": lambda v: CE(v.S_n, v.y),
    "pgd_at": np_pgd_at,
    "trades": np_trades,
    "mart": np_mart,
    "kd": np_kd,
    "ard": np_ard,
    "iad_i": np_iad_i,
    "rslad": np_rslad,
    "adaad": np_adaad,
    "adaiad": np_adaiad,
    "n_fgsm": np_pgd_at,
    "akd2": np_akd2,
    "iad_ii": np_iad_ii,
    "mtard": np_mtard,
    "b_mtard": np_b_mtard,
    "absld": np_rslad,  # while the temperatures are 1
    "peeraid": np_peeraid,
    "dgad": np_dgad,
    "ciard": np_ciard,
    "saad": np_saad,
}


def np_loss(spec: str, params: Params, v: Views) -> Array:
    """The loss of a composed method: the host's mean, and the plug-ins' in the host's unit of KL."""
    own: dict[str, Params] = {name: {} for name in spec.split("+")}
    for full, value in params.items():
        name, key = full.split(".")
        own[name][key] = value
    host, *plugins = own
    unit = own[host].get("scale", 1.0)
    total = ORACLES[host](v, **own[host]).mean()
    if "igdm" in plugins:
        total = total + unit * np_igdm(v, **own["igdm"]).mean()
    if "mmard" in plugins:
        beta, measure = own["mmard"].get("beta", 1.0), own["mmard"].get("measure", "nce")
        total = total + unit * beta * sum(np_triangle(v, measure, own["mmard"].get("tau", 0.2))) / 3
    return total


def arrays_of(views: Logits) -> dict[str, Array]:
    return {k: v.detach().numpy().copy() for k, v in views.items()}


def np_gradient(loss: Callable[[dict[str, Array]], Array], arrays: dict[str, Array], name: str) -> Array:
    """By a complex step: Im f(z + i h) / h. There is no difference in it, so nothing cancels."""
    slope = np.zeros_like(arrays[name])
    for where in np.ndindex(slope.shape):
        moved = arrays[name].astype(complex)
        moved[where] += 1e-30j
        slope[where] = loss({**arrays, name: moved}).imag / 1e-30
    return slope


EXTRA: tuple[tuple[str, Params], ...] = (
    ("rslad+igdm", {"rslad.scale": 0.1, "igdm.alpha": 3.0}),
    ("rslad+mmard", {"rslad.scale": 0.1, "mmard.beta": 2.0, "mmard.tau": 0.7}),
    ("adaad+igdm+mmard", {"adaad.scale": 0.1, "mmard.measure": "match"}),
    ("kd+mmard", {"mmard.measure": "mi", "mmard.beta": 0.5}),
)
WRITTEN = pytest.mark.parametrize(("spec", "params"), [*CASES, *EXTRA], ids=map(case_id, [*CASES, *EXTRA]))


def np_params(params: Params) -> Params:
    """Without what acts in the attack alone."""
    if params.get("ciard.lr_teacher") == 0:
        params = {**params, "ciard.teacher": False}
    inner = ("guide", "ramp", "teacher_every", "attack_mode", "lam", "quiet_mirror", "lr_teacher", "cool_at")
    return {k: v for k, v in params.items() if k.split(".")[1] not in inner and k != "mmard.bounded"}


@WRITTEN
@pytest.mark.parametrize("progress", [0.2, 0.7])
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


# --- the triangle ---

TRIANGLE = ("tri_nat_adv", "tri_nat_teacher", "tri_adv_teacher")


def edges(measure: str, views: Logits, **params: Any) -> dict[str, Tensor]:
    """The edges as they are, without the third of the weight."""
    spelled = {f"mmard.{k}": v for k, v in params.items()}
    terms = build("kd+mmard", {"mmard.measure": measure, **spelled}).outer(batch_of(views, labels(len(views["S.x"]))))
    return {name: 3 * terms[name] for name in TRIANGLE}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("n", "classes"), [(1, 3), (2, 2), (6, 3), (9, 10)])
def test_each_edge_is_what_numpy_says(measure: str, n: int, classes: int) -> None:
    views = logits(n, 5, classes)
    expected = np_triangle(Views(arrays_of(views), labels(n).numpy(), 1.0), measure)
    found = edges(measure, views)
    for name, value in zip(TRIANGLE, expected, strict=True):
        assert found[name].shape == (n,)
        np.testing.assert_allclose(found[name].mean().item(), value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", TRIANGLE)
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


# --- the guidance ---


def np_drift(v: Views, bounded: bool) -> Array:
    moved = KL(softmax(v.T_n), softmax(v.T_a))
    return 1 - np.exp(-moved) if bounded else moved


NP_INNERS: dict[str, Callable[[Views], Array]] = {
    "pgd_at": lambda v: CE(v.S_a, v.y),
    "trades": lambda v: KL(softmax(v.S_n), softmax(v.S_a)),
    "mart": lambda v: CE(v.S_a, v.y),
    "ard": lambda v: CE(v.S_a, v.y),
    "iad_i": lambda v: CE(v.S_a, v.y),
    "rslad": lambda v: KL(softmax(v.T_n), softmax(v.S_a)),
    "adaad": lambda v: KL(softmax(v.T_a), softmax(v.S_a)),
    "adaiad": lambda v: KL(softmax(v.T_a), softmax(v.S_a)),
    "n_fgsm": lambda v: CE(v.S_a, v.y),
    "akd2": lambda v: CE(v.S_a, v.y),
    "iad_ii": lambda v: CE(v.S_a, v.y),
    "mtard": lambda v: CE(v.S_a, v.y),
    "b_mtard": lambda v: CE(v.S_a, v.y),
    "ciard": lambda v: CE(v.S_a, v.y),
    "absld": lambda v: KL(softmax(v.T_n), softmax(v.S_a)),
    "peeraid": lambda v: KL(softmax(v.P_n), softmax(v.S_a)),
    "dgad": lambda v: KL(softmax(v.T_a), softmax(v.S_a)),
    "saad": lambda v: KL(softmax(v.T_n + 0.1 * SLOPE * np.eye(v.T_n.shape[1])[v.y]), softmax(v.S_a)),
}
"""The first-order teacher of the last is that of `Spy`: x' is 0.1 from x, and its slope is the same everywhere."""


@pytest.mark.parametrize("host", NP_INNERS)
@pytest.mark.parametrize(
    ("plugin", "weight", "bounded"), [("", 0.0, False), ("+mmard", 0.3, False), ("+mmard", 2.0, True)]
)
def test_the_attack_climbs_what_the_paper_says_plus_the_drift_of_the_teacher(
    host: str, plugin: str, weight: float, bounded: bool
) -> None:
    method = build(host + plugin, {"mmard.guide": weight, "mmard.bounded": bounded} if plugin else {})
    views, y = logits(4, seed=3), labels(4, seed=3)
    views["T.x_adv"].requires_grad_()
    assert method.inner is not None
    value = method.inner(batch_of(views, y))

    def oracle(arrays: dict[str, Array]) -> Array:
        v = Views(arrays, y.numpy(), 1.0)
        return (NP_INNERS[host](v) + weight * np_drift(v, bounded)).sum()

    arrays = arrays_of(views)
    assert value.shape == (4,)
    np.testing.assert_allclose(value.sum().item(), oracle(arrays), rtol=1e-10)
    for letter in "ST":
        slope = gradients(value.sum(), views, letter)[f"{letter}.x_adv"]
        np.testing.assert_allclose(slope.numpy(), np_gradient(oracle, arrays, f"{letter}.x_adv"), rtol=1e-9, atol=1e-10)


def test_every_attack_is_written_down_here() -> None:
    assert set(NP_INNERS) == {name for name in METHODS if build(name).inner is not None}
    assert set(ORACLES) == set(METHODS)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)])
def test_the_guidance_grows_over_its_ramp(progress: float, share: float) -> None:
    views, y = logits(4), labels(4)
    plain, grown = build("rslad"), build("rslad+mmard", {"mmard.guide": 0.6, "mmard.ramp": 0.5})
    assert plain.inner is not None
    assert grown.inner is not None
    added = grown.inner(batch_of(views, y, progress)) - plain.inner(batch_of(views, y, progress))
    v = Views(arrays_of(views), y.numpy(), progress)
    np.testing.assert_allclose(added.detach().numpy(), 0.6 * share * np_drift(v, False), rtol=1e-9, atol=1e-12)


def test_a_method_without_an_attack_gets_the_guidance_as_its_attack() -> None:
    views, y = logits(4), labels(4)
    method = build("kd+mmard")
    assert method.inner is not None
    assert method.start != "none", "at x itself the drift has no gradient"
    b = batch_of(views, y)
    value = method.inner(b)
    assert read(b, "S") == set()
    np.testing.assert_allclose(value.numpy(), np_drift(Views(arrays_of(views), y.numpy(), 1.0), False), rtol=1e-9)
