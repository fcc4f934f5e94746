"""Attacks against closed forms: on a linear model with two classes the worst case of a ball is known exactly."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from laws import over
from nets import conv, generator, images, labels, linear, state
from torch import Tensor, nn

from mmard.attacks import ATTACKS, PGD, Untargeted, UntargetedPGD, fgsm, read_attack, read_attacks
from mmard.attacks.pgd import LOSSES as NAMED
from mmard.balls import NORMS, Budget
from mmard.errors import Refused
from mmard.ops import ce, margin

LOSSES = over("loss", [ce, margin], ids=["ce", "margin"])
BATCHES = over("n", [1, 3, 8])
SHAPES = over("shape", [(12,), (3, 4), (2, 3, 3)], ids=lambda shape: f"rank{len(shape)}")
EPS = {"linf": 8 / 255, "l2": 0.2, "l1": 0.09}
CONV_NORMS = [Budget(EPS[norm], norm) for norm in NORMS]


def rise_of(model: nn.Sequential, y: Tensor) -> np.ndarray:
    """Gradient of (wrong logit - true logit) of a linear model with two classes, (B, D)."""
    weight = model[1].weight.detach().numpy()
    return np.stack([weight[1 - k] - weight[k] for k in y.tolist()])


def worst_linf(x: np.ndarray, direction: np.ndarray, eps: float) -> np.ndarray:
    """argmax of direction . x' over the ball and the box, coordinate by coordinate."""
    return np.clip(x + eps * np.sign(direction), 0, 1)


def worst_l2(x: np.ndarray, direction: np.ndarray, eps: float) -> np.ndarray:
    """argmax of direction . x' over the ball and the box: clip(x + s direction) with s such that the length is eps."""
    rows = []
    for point, d in zip(x, direction, strict=True):
        low, high = 0.0, 1e6
        for _ in range(200):
            s = (low + high) / 2
            short = np.linalg.norm(np.clip(point + s * d, 0, 1) - point) < eps
            low, high = (s, high) if short else (low, s)
        rows.append(np.clip(point + low * d, 0, 1))
    return np.stack(rows)


def worst_l1(x: np.ndarray, direction: np.ndarray, eps: float) -> np.ndarray:
    """argmax of direction . x' over the ball and the box: the steepest coordinate to the edge of the box, then the
    next, as far as eps goes."""
    rows = []
    for point, d in zip(x, direction, strict=True):
        moved, left = point.copy(), eps
        for i in np.argsort(-np.abs(d)):
            step = min(left, 1 - point[i] if d[i] > 0 else point[i])
            moved[i], left = point[i] + np.sign(d[i]) * step, left - step
        rows.append(moved)
    return np.stack(rows)


def flat(x: Tensor) -> np.ndarray:
    return x.flatten(1).numpy()


def on_faces(x: Tensor) -> Tensor:
    """The same points with two coordinates in three within a hair of a face of the box, which then cuts the ball."""
    k = torch.arange(x[0].numel()).view(x.shape[1:]) % 3
    return torch.where(k == 0, 0.01 * x, torch.where(k == 1, 1 - 0.01 * x, x))


@SHAPES
@BATCHES
@LOSSES
@over("boxed", [False, True])
@over("start", ["gaussian", "uniform", "none"])
def test_pgd_reaches_the_worst_case_of_a_linear_model_linf(
    shape: tuple[int, ...], n: int, loss: Callable[[Tensor, Tensor], Tensor], boxed: bool, start: str
) -> None:
    model, y, eps = linear(shape), labels(n, classes=2), EPS["linf"]
    x = on_faces(images(n, shape=shape)) if boxed else images(n, shape=shape)
    x_adv = PGD(10, eps / 4, start)(model, Untargeted(y, loss), x, Budget(eps), generator=generator(0))
    exact = worst_linf(flat(x), rise_of(model, y), eps)
    assert x_adv.shape == x.shape
    np.testing.assert_allclose(flat(x_adv), exact, rtol=0, atol=1e-12)
    assert ((x_adv == 0) | (x_adv == 1)).any() == boxed


@SHAPES
@BATCHES
@LOSSES
@over("start", ["gaussian", "uniform", "none"])
def test_pgd_reaches_the_worst_case_of_a_linear_model_l2(
    shape: tuple[int, ...], n: int, loss: Callable[[Tensor, Tensor], Tensor], start: str
) -> None:
    model, x, y, eps = linear(shape), images(n, shape=shape), labels(n, classes=2), 0.08
    x_adv = PGD(60, eps / 2, start)(model, Untargeted(y, loss), x, Budget(eps, "l2"), generator=generator(0))
    direction = rise_of(model, y)
    exact = flat(x) + eps * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    np.testing.assert_allclose(flat(x_adv), exact, rtol=0, atol=1e-9)
    np.testing.assert_allclose(exact, worst_l2(flat(x), direction, eps), rtol=0, atol=1e-9)


@SHAPES
@BATCHES
def test_pgd_comes_near_the_worst_case_l2_where_the_box_cuts_the_ball(shape: tuple[int, ...], n: int) -> None:
    """Ball, then box, is not the projection onto both: what the box takes is missing, in proportion to the step."""
    model, x, y, eps = linear(shape), on_faces(images(n, shape=shape)), labels(n, classes=2), EPS["l2"]
    direction = rise_of(model, y)
    best = (direction * (worst_l2(flat(x), direction, eps) - flat(x))).sum(1)
    unboxed = eps * np.linalg.norm(direction, axis=1)
    assert (best < 0.99 * unboxed).all(), "the box does not act here"
    for step, share in ((eps / 4, 0.9), (eps / 100, 0.99)):
        x_adv = PGD(300, step, "none")(model, Untargeted(y, ce), x, Budget(eps, "l2"))
        rise = (direction * (flat(x_adv) - flat(x))).sum(1)
        assert (rise <= best + 1e-9).all()
        assert (rise >= share * best).all()


@SHAPES
@BATCHES
@LOSSES
@over("boxed", [False, True])
@over("start", ["gaussian", "uniform", "none"])
def test_pgd_reaches_the_worst_case_of_a_linear_model_l1(
    shape: tuple[int, ...], n: int, loss: Callable[[Tensor, Tensor], Tensor], boxed: bool, start: str
) -> None:
    model, y, eps = linear(shape), labels(n, classes=2), 1.5
    x = on_faces(images(n, shape=shape)) if boxed else images(n, shape=shape)
    x_adv = PGD(80, eps / 4, start)(model, Untargeted(y, loss), x, Budget(eps, "l1"), generator=generator(0))
    direction = rise_of(model, y)
    exact = worst_l1(flat(x), direction, eps)
    assert ((exact == 0) | (exact == 1)).any(), "the box does not act here"
    np.testing.assert_allclose(flat(x_adv), exact, rtol=0, atol=1e-9)


@BATCHES
@over("classes", [2, 5])
def test_fgsm_is_the_closed_form(n: int, classes: int) -> None:
    model, x, y, eps = linear((2, 3, 3), classes), on_faces(images(n)), labels(n, classes=classes), EPS["linf"]
    x_adv = fgsm(Budget(eps))(model, Untargeted(y, ce), x, Budget(eps))
    weight, bias = model[1].weight.detach().numpy(), model[1].bias.detach().numpy()
    z = flat(x) @ weight.T + bias
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = (p - np.eye(classes)[y.numpy()]) @ weight
    np.testing.assert_array_equal(flat(x_adv), np.clip(flat(x) + eps * np.sign(gradient), 0, 1))


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_has_exactly_the_length_of_a_step(norm: str) -> None:
    model, x, y = conv().eval(), images(6), labels(6)
    budget = Budget(0.05, norm)
    x_adv = PGD(1, 0.0125, "none")(model, Untargeted(y, ce), x, budget)
    np.testing.assert_allclose(budget.distance(x_adv, x).numpy(), 0.0125, rtol=0, atol=1e-15)


def test_ten_steps_reach_the_radius_almost_everywhere() -> None:
    model, x, y, eps = linear((2, 3, 3)), images(8), labels(8, classes=2), 8 / 255
    x_adv = PGD(10, 2 / 255, "uniform")(model, Untargeted(y, ce), x, Budget(eps), generator=generator(0))
    delta = (x_adv - x).abs()
    np.testing.assert_allclose(delta.flatten(1).amax(1).numpy(), eps, rtol=0, atol=1e-7)
    assert ((delta - eps).abs() < 1e-12).double().mean() >= 0.9


def by_hand(attack: PGD, model: nn.Module, objective: Untargeted, x: Tensor, budget: Budget) -> list[Tensor]:
    """All iterates from x, written once more with NumPy for everything but the gradient."""
    iterates = [x]
    for _ in range(attack.steps):
        at = iterates[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(model(at), at).sum(), at)
        g, here, clean = (flat(t.detach()) for t in (gradient, at, x))
        if budget.norm == "linf":
            moved = clean + np.clip(here + attack.step_size * np.sign(g) - clean, -budget.eps, budget.eps)
        elif budget.norm == "l1":
            # One coordinate is 1 % of these and more; images lie away from the box by more than the budget.
            step = np.sign(g) * (np.abs(g) == np.abs(g).max(1, keepdims=True))
            moved = here + attack.step_size * step - clean
            low, high = np.zeros((len(moved), 1)), np.ones((len(moved), 1))
            for _ in range(60):
                t = (low + high) / 2
                over = np.maximum(np.abs(moved) - t, 0).sum(1, keepdims=True) > budget.eps
                low, high = np.where(over, t, low), np.where(over, high, t)
            moved = clean + np.sign(moved) * np.maximum(np.abs(moved) - high, 0)
        else:
            moved = here + attack.step_size * g / np.linalg.norm(g, axis=1, keepdims=True) - clean
            moved = clean + moved * np.minimum(1, budget.eps / np.linalg.norm(moved, axis=1, keepdims=True))
        iterates.append(torch.from_numpy(np.clip(moved, 0, 1)).view_as(x))
    return iterates


def near_a_value(logits: Tensor, y: Tensor) -> Tensor:
    """Highest where the true logit is 0.05, so that steps of eps/2 jump over the top and back."""
    return -(logits.gather(1, y[:, None])[:, 0] - 0.05).square()


@pytest.mark.parametrize("budget", CONV_NORMS, ids=str)
@pytest.mark.parametrize("loss", [ce, margin, near_a_value])
def test_the_last_iterate_is_returned_and_the_trace_holds_the_others(
    budget: Budget, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    model, x, y = conv().eval(), images(5), torch.zeros(5, dtype=torch.long)
    model[4].bias.data[0] -= model(x)[:, 0].mean().detach()
    attack, objective, trace = PGD(6, budget.eps / 2, "none"), Untargeted(y, loss), list[Tensor]()
    x_adv = attack(model, objective, x, budget, trace=trace)
    iterates = by_hand(attack, model, objective, x, budget)
    torch.testing.assert_close(x_adv, iterates[-1], rtol=0, atol=1e-9)
    assert len(trace) == attack.steps
    for logits, iterate in zip(trace, iterates[:-1], strict=True):
        assert not logits.requires_grad
        torch.testing.assert_close(logits, model(iterate).detach(), rtol=0, atol=1e-7)
    if loss is near_a_value and budget.norm != "l1":  # the last is not the best: returning the best would be seen
        values = torch.stack([loss(model(iterate), y).detach() for iterate in iterates])
        assert (values.amax(0) > values[-1] + 1e-6).any()


@pytest.mark.parametrize("start", ["gaussian", "uniform", "none"])
@pytest.mark.parametrize("budget", CONV_NORMS, ids=str)
def test_the_first_iterate_is_the_start(start: str, budget: Budget) -> None:
    seen: list[Tensor] = []

    def objective(logits: Tensor, x_adv: Tensor) -> Tensor:
        seen.append(x_adv.detach().clone())
        return logits.sum(1)

    x = on_faces(images(4))
    PGD(1, budget.eps, start)(conv().eval(), objective, x, budget, generator=generator(3))
    (first,) = seen
    moved = budget.distance(first, x)
    assert ((first >= 0) & (first <= 1)).all()
    assert (moved <= budget.eps + 1e-12).all()
    if start == "none":
        assert torch.equal(first, x)
    if start == "gaussian":
        drawn = x + 0.001 * torch.randn(x.shape, generator=generator(3), dtype=x.dtype)
        torch.testing.assert_close(first, drawn.clamp(0, 1), rtol=0, atol=1e-15)
    if start == "uniform":
        assert (moved > 0.1 * budget.eps).all()
        assert torch.equal(first, budget.project(budget.sample(x, generator(3)), x))


class Landscape:
    """An objective and a verdict that depend on the place alone, so that the best of several starts is known."""

    def __init__(self, verdict: bool) -> None:
        if verdict:
            self.fooled = lambda logits: logits[:, 0].frac().abs() > 0.75

    def __call__(self, logits: Tensor, x_adv: Tensor) -> Tensor:
        return logits[:, 1]


@pytest.mark.parametrize("verdict", [False, True])
def test_restarts_keep_the_best_last_iterate_of_each_sample(verdict: bool) -> None:
    model, x, budget, objective = linear((6,)), images(40, shape=(6,)), Budget(0.1), Landscape(verdict)
    model[1].weight.data *= 8
    several = PGD(1, 1e-3, "uniform", restarts=6)(model, objective, x, budget, generator=generator(9))
    g, one = generator(9), PGD(1, 1e-3, "uniform")
    ends = torch.stack([one(model, objective, x, budget, generator=g) for _ in range(6)])  # (6, B, 6)
    z = model(ends.flatten(0, 1)).detach().view(6, len(x), 2)
    fooled = torch.stack([objective.fooled(end) if verdict else torch.zeros(len(x), dtype=torch.bool) for end in z])
    value = z[..., 1]
    best = (value + 1e6 * fooled).argmax(0)
    assert torch.equal(several, ends[best, torch.arange(len(x))])
    # The verdict must have mattered: the highest objective alone would have chosen otherwise for some sample.
    assert (best != value.argmax(0)).any() == verdict


def test_a_restart_that_fools_is_never_lost() -> None:
    model, x, y = conv().eval(), images(30), conv()(images(30)).argmax(1)
    objective, budget = Untargeted(y, ce), Budget(0.05)
    one, two = (PGD(2, 0.0125, "uniform", r)(model, objective, x, budget, generator=generator(1)) for r in (1, 4))
    fooled_by_one, fooled_by_four = (objective.fooled(model(x_adv)) for x_adv in (one, two))
    assert fooled_by_one.any()
    assert not fooled_by_one.all()
    assert (fooled_by_four | ~fooled_by_one).all()


class RightAtOneHalf(nn.Module):
    """Right where every input is one half, and a NaN anywhere else."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(1, keepdim=True)
        away = (x != 0.5).any(1, keepdim=True)
        return torch.cat([total, total - 1], 1) + torch.where(away, torch.nan, 0.0)


@pytest.mark.parametrize("restarts", [1, 2])
def test_an_iterate_whose_prediction_is_a_nan_is_kept(restarts: int) -> None:
    """It counts as misread, so it ranks above the clean input, on which the model is right."""
    model, x, objective = RightAtOneHalf(), torch.full((3, 4), 0.5), Untargeted(torch.zeros(3, dtype=torch.long), ce)
    x_adv = PGD(1, 0.01, "none", restarts)(model, objective, x, Budget(0.05))
    assert not objective.fooled(model(x)).any()
    assert objective.fooled(model(x_adv)).all()


@over("norm", NORMS)
@over("start", ["uniform", "none"])
@over("restarts", [1, 2])
def test_without_a_gradient_the_attack_stays_where_it_starts(norm: str, start: str, restarts: int) -> None:
    x, budget = images(3), Budget(0.05, norm)
    model = linear((2, 3, 3))
    model[1].weight.data.zero_()
    x_adv = PGD(4, 0.0125, start, restarts)(
        model, Untargeted(labels(3, classes=2), ce), x, budget, generator=generator(0)
    )
    assert x_adv.isfinite().all()
    assert (budget.distance(x_adv, x) <= budget.eps + 1e-12).all()
    assert start != "none" or torch.equal(x_adv, x)


def test_of_a_tie_the_first_class_is_predicted_and_what_is_not_finite_is_misread() -> None:
    z = torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0], [torch.nan, 0.0], [0.0, torch.nan], [torch.inf, torch.inf]])
    fooled = Untargeted(torch.zeros(6, dtype=torch.long), ce).fooled(z)
    assert fooled.tolist() == [False, False, True, True, True, True]
    assert Untargeted(torch.ones(6, dtype=torch.long), ce).fooled(z).tolist() == [True, True, False, True, True, True]


# --- every attack by its spelling ---

SPELLINGS = ("fgsm", "pgd-3", "pgd-3x2", "cw-3", "cw-4x3", "pgd-2@0.01")
ALL_FAMILY = over("spec", SPELLINGS)
ALL_BUDGETS = over("budget", CONV_NORMS, ids=str)


def test_the_common_tests_meet_every_kind_of_attack() -> None:
    assert {spec.split("-")[0] for spec in SPELLINGS} == {
        name
        for name in ATTACKS
        if isinstance(read_attacks([next(iter(ATTACKS[name].says))], Budget(0.1), 10)[0], UntargetedPGD)
    }


def attacked(t: UntargetedPGD, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, seed: int = 0) -> Tensor:
    return t(model, x, y, budget, generator=generator(seed))


@ALL_FAMILY
@ALL_BUDGETS
def test_an_attack_stays_in_the_ball_and_the_box_and_raises_the_loss(spec: str, budget: Budget) -> None:
    model, x, y, t = conv().eval(), on_faces(images(8)), labels(8), read_attack(spec, budget)
    trace: list[Tensor] = []
    x_adv = t(model, x, y, budget, generator=generator(0), trace=trace)
    assert x_adv.shape == x.shape
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert (budget.distance(x_adv, x) <= budget.eps + 1e-12).all()
    assert len(trace) == t.climb.steps * t.climb.restarts
    before = trace[0] if t.climb.restarts == 1 else model(x)
    loss = NAMED[t.loss][0]
    assert (loss(model(x_adv), y) > loss(before, y)).all()


@ALL_FAMILY
@ALL_BUDGETS
def test_an_attack_leaves_no_trace_on_what_it_is_given(spec: str, budget: Budget) -> None:
    model, x, y, t = conv().eval(), images(4), labels(4), read_attack(spec, budget)
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    kept, weights, rng = x.clone(), state(model), torch.get_rng_state()
    x_adv = attacked(t, model, x.requires_grad_(), y, budget)
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    assert x_adv.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert torch.equal(x, kept)
    assert x.grad is None
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == {"4.weight"}
    assert (model[4].weight.grad == 1).all()
    assert [weight.requires_grad for weight in model.parameters()] == [False] + [True] * 5
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(rng, torch.get_rng_state())


@ALL_FAMILY
@ALL_BUDGETS
def test_an_attack_is_a_function_of_its_generator(spec: str, budget: Budget) -> None:
    model, x, y, t = conv().eval(), images(4), labels(4), read_attack(spec, budget)
    first, again, other = (attacked(t, model, x, y, budget, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (spec == "fgsm")


@ALL_FAMILY
@ALL_BUDGETS
def test_an_attack_works_where_gradients_are_switched_off(spec: str, budget: Budget) -> None:
    model, x, y, t = conv().eval(), images(4), labels(4), read_attack(spec, budget)
    expected = attacked(t, model, x, y, budget)
    with torch.no_grad():
        assert torch.equal(attacked(t, model, x, y, budget), expected)
        assert not torch.is_grad_enabled()


@ALL_BUDGETS
@over("loss", [ce, margin])
def test_no_sample_of_an_attack_depends_on_its_neighbours(budget: Budget, loss: Callable[..., Tensor]) -> None:
    model, x, y = conv().eval(), images(6), labels(6)
    attack = PGD(5, budget.eps / 4, "none")
    whole = attack(model, Untargeted(y, loss), x, budget)
    parts = [attack(model, Untargeted(y[i : i + 2], loss), x[i : i + 2], budget) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


@over("dtype", [torch.float32, torch.bfloat16])
@ALL_BUDGETS
def test_an_attack_keeps_the_kind_of_its_numbers(budget: Budget, dtype: torch.dtype) -> None:
    model, x, y = conv().eval().to(dtype), images(4).to(dtype), labels(4)
    x_adv = PGD(3, budget.eps / 4)(model, Untargeted(y, ce), x, budget, generator=generator(0))
    assert x_adv.dtype == dtype
    assert x_adv.isfinite().all()
    assert (budget.distance(x_adv.double(), x.double()) <= budget.eps + 4 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize(
    ("spec", "label", "attack"),
    [
        ("fgsm", "FGSM (CE, step 8/255, no start)", PGD(1, 8 / 255, "none")),
        ("pgd-20", "PGD-20 (CE, step 2/255, uniform start, 1 restart)", PGD(20, 2 / 255, "uniform")),
        ("cw-30", "CW-PGD-30 (CW margin, step 2/255, uniform start, 1 restart)", PGD(30, 2 / 255, "uniform")),
        ("pgd-100x10", "PGD-100 (CE, step 2/255, uniform start, 10 restarts)", PGD(100, 2 / 255, "uniform", 10)),
        ("pgd-20@0.003", "PGD-20 (CE, step 0.003, uniform start, 1 restart)", PGD(20, 0.003, "uniform")),
        ("pgd-20x2@1/255", "PGD-20 (CE, step 1/255, uniform start, 2 restarts)", PGD(20, 1 / 255, "uniform", 2)),
        (" PGD-20 ", "PGD-20 (CE, step 2/255, uniform start, 1 restart)", PGD(20, 2 / 255, "uniform")),
    ],
)
def test_a_spelling_is_read(spec: str, label: str, attack: PGD) -> None:
    t = read_attack(spec, Budget(8 / 255))
    assert (t.spec, t.label, t.climb) == (spec.strip().lower(), label, attack)
    assert NAMED[t.loss][0] is (margin if "cw" in spec else ce)
    assert t.title == label.partition(" (")[0]


@over(
    ("spec", "words"),
    [
        ("pdg-20", "did you mean 'pgd-20'"),
        ("pgdd-20", "did you mean 'pgd-20'"),
        ("fgms", "did you mean 'fgsm'"),
        ("apgd-20", "did you mean 'apgd-ce' or 'apgd-dlr' or 'apgd-t'?"),
        ("pgd", "number of steps, e.g. pgd-20"),
        ("cw", "number of steps, e.g. cw-20"),
        ("fgsm-3", "plain 'fgsm'"),
        ("fgsmx2", "plain 'fgsm'"),
        ("pgd-0", "at least 1"),
        ("pgd-5x0", "at least 1"),
        ("pgd-5@0", "a positive step"),
        ("pgd-5@-1", "a positive step"),
        ("pgd-5@0.1", "swapped"),
        ("pgd-5@1e99", "swapped"),
        ("pgd-5@1/0", "a step such as 2/255"),
        ("pgd-5@/", "a step such as 2/255"),
        ("pgd-5@0.01x2", "did you mean 'pgd-5x2@0.01'?"),
        ("pgd 20", "did you mean 'pgd-20'?"),
        ("20", "a spelling such as"),
        ("", "a spelling such as"),
    ],
)
def test_a_spelling_that_says_nothing_is_refused_and_told_why(spec: str, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        read_attack(spec, Budget(8 / 255))


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_that_jumps_across_the_ball_is_refused(norm: str) -> None:
    budget = Budget(2 / 255, norm)
    with pytest.raises(Refused, match="swapped") as refusal:
        PGD(10, 8 / 255)(conv(), Untargeted(labels(2), ce), images(2), budget)
    assert "8/255" in str(refusal.value)
    assert "4/255" in str(refusal.value)
    PGD(10, 4 / 255).check(budget)  # the diameter itself is allowed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": "unifrom"}, "did you mean 'uniform'"),
        ({"start": "gauss"}, "did you mean 'gaussian'"),
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"step_size": 0.0}, "a positive step"),
        ({"step_size": -0.1}, "a positive step"),
        ({"step_size": float("nan")}, "a positive step"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        PGD(**{"steps": 1, "step_size": 0.1, **settings})  # type: ignore[arg-type]


def test_eight_as_a_radius_is_refused_with_the_mend() -> None:
    with pytest.raises(Refused, match="8/255"):
        fgsm(Budget(8))


@pytest.mark.parametrize(
    ("spec", "classes", "says"),
    [
        (
            "square-5",
            10,
            "attack 'square-5': expected plain 'square', got 'square-5'; its numbers are fixed; say square",
        ),
        ("aa-rand-3", 10, "expected plain 'aa-rand'"),
        ("square5000", 10, "expected plain 'square', got 'square5000'; its numbers are fixed; say square"),
        ("square@0.1", 10, "expected plain 'square', got 'square@0.1'; its numbers are fixed; say square"),
        ("fgsm-2", 10, "expected plain 'fgsm', got 'fgsm-2'; its numbers are fixed; say fgsm"),
        ("aax2", 10, "expected plain 'aa', got 'aax2'; its numbers are fixed; say aa"),
        ("aa@", 10, "expected plain 'aa', got 'aa@'"),
        ("aa.square", 10, "expected plain 'aa', got 'aa.square'; say square for that attack alone"),
        ("autoattack", 10, "did you mean 'aa'?"),
        ("Auto-Attack", 10, "did you mean 'aa'?"),
        ("apgd_ce", 10, "did you mean 'apgd-ce'?"),
        ("apgd", 10, "did you mean 'apgd-ce' or 'apgd-dlr' or 'apgd-t'?"),
        ("fab", 10, "did you mean 'fab-t'?"),
        ("bim-10", 10, "did you mean 'pgd-10'?"),
        ("mim", 10, "fab-t, square, got 'mim'"),
        ("pgd-20@pyautoattack", 10, "got 'pgd-20@pyautoattack'; say pgd-20"),
        ("pgd-20-10", 10, "did you mean 'pgd-20x10'?"),
        ("pgd-20*10", 10, "did you mean 'pgd-20x10'?"),
        ("pgd-20@", 10, "did you mean 'pgd-20'?"),
        ("pgd-20x", 10, "did you mean 'pgd-20'?"),
        ("pgd\u201320", 10, "did you mean 'pgd-20'?"),
        ("pgd-20@1/255x10", 10, "did you mean 'pgd-20x10@1/255'?"),
        ("pgd-20@e", 10, "attack 'pgd-20@e': expected a step such as 2/255 or 0.003 after the @, got 'e'"),
        ("pgd-20@nan", 10, "attack 'pgd-20@nan': expected a positive step after the @, got nan"),
        (
            "pgd-20@2",
            10,
            "expected a step within the diameter 16/255 of the ball linf 8/255, got 2; did you mean 2/255?",
        ),
        ("pgd-99999999", 10, "expected at least 1 and at most 1,000,000 steps, got 99999999"),
        ("pgd-x10", 10, "expected the number of steps, e.g. pgd-20, pgd-20x10 with restarts"),
        ("apgd-ce-50", 10, "expected plain 'apgd-ce'"),
        ("pgd20", 10, "did you mean 'pgd-20'?"),
        ("cw_30", 10, "did you mean 'cw-30'?"),
        ("pgd20x3", 10, "did you mean 'pgd-20x3'?"),
        ("pgd", 10, "expected the number of steps, e.g. pgd-20"),
        (
            "apgd-t",
            2,
            "expected four classes or more, got 2, on which its loss is not defined; take aa, apgd-ce, fab-t, square",
        ),
    ],
)
def test_a_spelling_that_is_none_is_told_the_one_that_is_meant(spec: str, classes: int, says: str) -> None:
    with pytest.raises(Refused, match=re.escape(says)) as refusal:
        read_attacks([spec], Budget(8 / 255), classes)
    assert "\n" not in str(refusal.value)
    for meant in re.findall(r"'([^']*)'(?:\?| or)", refusal.value.mend):
        assert read_attacks([meant], Budget(8 / 255), 10)[0].spec == meant


def test_what_follows_the_steps_of_pgd_is_given_nothing_else() -> None:
    with pytest.raises(Refused, match=r"attack 'aa': expected FGSM, PGD or CW-PGD, e\.g\. fgsm, pgd-20, cw-30"):
        read_attack("aa", Budget(8 / 255))
