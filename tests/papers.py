"""The methods as their papers write them, in NumPy, without a line of this package or of torch.

Predictions go in as arrays, the loss is written as on paper, and its gradient is the imaginary part of the loss at a
point moved by 1e-30 i, which is exact to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from nets import SLOPE, Logits, Params

Array = np.ndarray[Any, Any]


def softmax(z: Array, tau: float = 1.0) -> Array:
    e = np.exp((z - z.real.max(-1, keepdims=True)) / tau)
    return e / e.sum(-1, keepdims=True)


def KL(P: Array, Q: Array) -> Array:
    return (P * (np.log(P) - np.log(Q))).sum(-1)


def of_label(P: Array, y: Array) -> Array:
    return P[np.arange(len(y)), y]


def CE(z: Array, y: Array) -> Array:
    return -np.log(of_label(softmax(z), y)) if y.ndim == 1 else -(y * np.log(softmax(z))).sum(-1)


class Views:
    """S(x), S(x'), S(x-) and the teacher's three, as arrays, with the names of the papers' formulas."""

    def __init__(self, arrays: dict[str, Array], y: Array, progress: float) -> None:
        self.S_n, self.S_a, self.S_m = arrays["S.x"], arrays["S.x_adv"], arrays["S.x_mirror"]
        self.T_n, self.T_a, self.T_m = arrays["T.x"], arrays["T.x_adv"], arrays["T.x_mirror"]
        self.N_n, self.N_a = arrays["T_nat.x"], arrays["T_nat.x_adv"]
        self.P_n, self.P_a, self.T_live = arrays["P.x"], arrays["P.x_adv"], arrays["T_tuned.x_adv"]
        self.E_n, self.S_h = arrays["S_ema.x"], arrays["S.x_times_2"]
        self.y, self.progress = y, progress


def np_pgd_at(v: Views) -> Array:
    return CE(v.S_a, v.y)


def np_trades(v: Views, beta: float = 6.0) -> Array:
    return CE(v.S_n, v.y) + beta * KL(softmax(v.S_n), softmax(v.S_a))


def np_lbgat(v: Views, beta: float = 6.0) -> Array:
    return ((v.S_a - v.P_n) ** 2).mean(-1) + CE(v.P_n, v.y) + beta * KL(softmax(v.S_n), softmax(v.S_a))


def np_hat(v: Views, beta: float = 2.5, gamma: float = 0.5) -> Array:
    return np_trades(v, beta) + gamma * CE(v.S_h, v.N_a.real.argmax(-1))


def np_adr_labels(
    v: Views, tau_start: float = 2.5, tau_end: float = 2.0, trust_start: float = 0.7, trust_end: float = 0.95
) -> Array:
    """What stands in place of y."""
    done = (1 - math.cos(math.pi * v.progress)) / 2
    tau, trust = tau_start + (tau_end - tau_start) * done, trust_start + (trust_end - trust_start) * done
    P = softmax(v.E_n, tau)
    mine = np.clip(trust - (P.max(-1) - of_label(P, v.y)), 0, 1)[:, None]
    return mine * P + (1 - mine) * np.eye(P.shape[1])[v.y]


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
    "fgsm_rs": lambda v, **_: np_pgd_at(v),
    "lbgat": np_lbgat,
    "hat": np_hat,
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
    tau, as_is = own.get("temperature", {}).get("tau", 1.0), v
    tempered = copy(v)
    tempered.T_n, tempered.T_a, tempered.T_m = v.T_n / tau, v.T_a / tau, v.T_m / tau

    def seen_by(plugin: str) -> Views:
        """What a plug-in before the temperature reads, or one behind it."""
        behind = "temperature" not in plugins or plugins.index(plugin) > plugins.index("temperature")
        return as_is if behind else tempered

    if "adr" in plugins:
        tempered.y = np_adr_labels(v, **own["adr"])
    unit = own[host].get("scale", 1.0)
    total = ORACLES[host](tempered, **own[host]).mean()
    if "igdm" in plugins:
        total = total + unit * np_igdm(seen_by("igdm"), **own["igdm"]).mean()
    if "mmard" in plugins:
        v = seen_by("mmard")
        beta, measure = own["mmard"].get("beta", 1.0), own["mmard"].get("measure", "nce")
        wanted = own["mmard"].get("edges", "rn,nq,rc").split(",")
        tau, still = own["mmard"].get("tau", 0.2), copy(v)
        still.T_a = v.T_n
        edges = dict(zip(("nr", "nq", "rq"), np_triangle(v, measure, tau), strict=True))
        edges["rc"] = np_triangle(still, measure, tau)[2]
        held = copy(v)
        held.S_n = v.S_n.real
        edges["rn"] = np_triangle(held, measure, tau)[0]
        total = total + unit * beta * sum(edges[name] for name in wanted) / 3
        total = total + unit * own["mmard"].get("label", 0.0) * CE(v.S_a, v.y).mean()
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


def np_drift(v: Views, bounded: bool, drift: str = "kl") -> Array:
    moved = KL(softmax(v.T_n), softmax(v.T_a)) if drift == "kl" else CE(v.T_a, v.T_n.real.argmax(1))
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
    "fgsm_rs": lambda v: CE(v.S_a, v.y),
    "lbgat": lambda v: KL(softmax(v.S_n), softmax(v.S_a)),
    "hat": lambda v: KL(softmax(v.S_n), softmax(v.S_a)),
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
