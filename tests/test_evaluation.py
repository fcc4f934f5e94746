"""Evaluation against what is known without it: linear models image for image, constant ones, and robust ones."""

from __future__ import annotations

import json
from typing import Any

import little
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from little import CLASSES, SHAPE, matcher, net, picture_set, protocol, same, state
from torch import Tensor, nn

from mmard.attacks import UntargetedPGD, read_attack
from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.errors import Refused
from mmard.evaluation import checks
from mmard.evaluation.curves import over_eps, over_steps
from mmard.evaluation.evaluate import Measured, accuracies
from mmard.evaluation.examine import Recorder, examine
from mmard.evaluation.findings import KINDS, FindingsPlan, TeacherBeside
from mmard.evaluation.transfer import Surrogate, measure_transfer
from mmard.files import weights_hash

BUDGET = Budget(0.1)
SPECS = ("fgsm", "pgd-5", "cw-5")
SAID = {"split": "test", "which": "best"}


def measure(
    model: nn.Module, images: ImageSet, specs: tuple[str, ...] = SPECS, budget: Budget = BUDGET, **settings: Any
) -> dict[str, Measured]:
    found = little.measured(model, images, specs, budget, **settings)
    return {each.score.attack: each for each in found}


def grey_set(n: int = 200, seed: int = 0, classes: int = 2) -> ImageSet:
    """Noise away from black and white, so that the ball never meets the box."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(90, 166, (n, *SHAPE), generator=g, dtype=torch.uint8)
    return ImageSet(x, torch.randint(classes, (n,), generator=g), tuple("ab"[:classes]), "grey")


def linear(seed: int = 0) -> nn.Sequential:
    """Two classes, weights of both signs and none near zero, in float64 behind a cast."""
    g = torch.Generator().manual_seed(seed)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            draw = 2 * torch.rand(2, 16, generator=g, dtype=torch.float64) - 1
            self.weight = nn.Parameter(draw + 0.1 * draw.sign())
            self.bias = nn.Parameter(-self.weight.detach().sum(1) / 2)

        def forward(self, x: Tensor) -> Tensor:
            return x.double().flatten(1) @ self.weight.T + self.bias

    return nn.Sequential(Exact())


# against closed forms -------------------------------------------------------------------------------------------------
@over("eps", [0.005, 0.02, 0.05])
@over("norm", ["linf", "l2"])
@over("spec", ["fgsm", "pgd-20", "cw-20"])
def test_a_linear_model_falls_where_its_margin_says(eps: float, norm: str, spec: str) -> None:
    """It survives exactly where the margin exceeds eps times the dual norm of the difference of its weights."""
    model, images, budget = linear(), grey_set(), Budget(eps, norm)
    x, y = images.x.double() / 255, images.y
    with torch.no_grad():
        z = model(x)
    margin = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
    across = (model[0].weight[0] - model[0].weight[1]).detach()
    reach = eps * (across.abs().sum() if norm == "linf" else across.norm())
    sure = (margin - reach).abs() > 1e-5  # the images are float32
    assert sure.double().mean() > 0.9
    expected = (margin > reach).numpy()
    assert 0 < expected.sum() < (margin > 0).sum()
    mask = measure(model, images, (spec,), budget)[spec].mask
    assert np.array_equal(mask[sure], expected[sure])


class Rounding(nn.Module):
    """Robust by construction: every pixel is taken to black or white before anything is decided."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + ((x > 0.5).float() - x).detach())


def test_a_model_that_is_robust_by_construction_keeps_its_accuracy() -> None:
    images = picture_set(60)
    away = images.x.float() / 255
    x = torch.where(away > 0.5, away.clamp_min(0.65), away.clamp_max(0.35))
    images = ImageSet((255 * x).round().to(torch.uint8), images.y, images.classes, "away from grey")
    found = measure(Rounding(matcher(images)), images, ("fgsm", "pgd-10", "cw-10"))
    assert found["clean"].score.accuracy > 0.9
    for each in found.values():
        assert np.array_equal(each.mask, found["clean"].mask)


def test_a_constant_model_is_right_on_its_class_under_any_attack() -> None:
    class Constant(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.register_buffer("logits", torch.tensor(logits))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits + 0 * x.flatten(1)[:, :1]

    images = picture_set(30)
    for each in measure(Constant([0.0, 1.0, 0.0]), images).values():
        assert np.array_equal(each.mask, (images.y == 1).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_tie_every_figure_has_the_first_class(dtype: torch.dtype) -> None:
    """As AutoAttack's code has it: clean, PGD, FGSM, CW, Square, transfer and curves agree."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight + 0 * x.flatten(1).sum(1, keepdim=True)

    images, model = picture_set(30), Tied()
    first = (images.y == 0).numpy()
    assert 0 < first.sum() < 30
    found = little.measured(model, images, ["fgsm", "pgd-5", "cw-5x2", "square", "apgd-ce"], BUDGET, **SAID)
    assert {m.score.attack: m.mask.tolist() for m in found if not np.array_equal(m.mask, first)} == {}
    climb = protocol(["pgd-5"], BUDGET)
    made = measure_transfer(model, Surrogate(matcher(), "another"), images, climb, **SAID)
    assert all(np.array_equal(m.mask, first) for m in made)
    clean, pgd = found[0], found[2]
    over = over_steps(model, images, climb.attacks[0], climb, clean, steps=(1, 5))
    over["points"] += over_eps(model, images, climb.attacks[0], climb, clean, pgd, radii=(0.05,))["points"]
    assert {point["correct"] for point in over["points"]} == {int(first.sum())}
    marks = [each for each in checks.cheap(model, images, climb) if each.suspicious]
    assert [each.check for each in marks if each.check != "vanishing-gradients"] == ["degenerate-predictions"]


def test_a_network_in_float64_is_measured_everywhere() -> None:
    budget, images = Budget(0.05), picture_set(60, seed=5)
    single, double = net(seed=2), net(seed=2).double()
    found = little.measured(double, images, ["fgsm", "pgd-5", "cw-5", "apgd-ce", "fab-t", "square"], budget, **SAID)
    assert 0 < found[-1].score.correct < found[0].score.correct
    fgsm = little.measured(single, images, ["fgsm"], budget, **SAID)
    assert [m.mask.tolist() for m in found[:2]] == [m.mask.tolist() for m in fgsm]
    for one, other in ((single, double), (double, single)):
        made = measure_transfer(one, Surrogate(other, "another"), images, protocol(["fgsm"], budget), **SAID)
        assert [m.mask.tolist() for m in made] == [m.mask.tolist() for m in fgsm]
    look = FindingsPlan(
        ("checks", "classes", "margins", "calibration", "examples", "boundary", "eps", "steps"),
        TeacherBeside(double, "itself"),
    )
    keep = Recorder(None)
    examine(double, images, protocol(["pgd-5"], budget), look, keep, **SAID)
    assert {each.kind for each in keep.found} == set(KINDS)
    assert accuracies(double, images, protocol(["fgsm"], budget)) == tuple(m.score.accuracy for m in fgsm)


def test_a_large_radius_leaves_nothing() -> None:
    found = measure(matcher(), picture_set(30), ("pgd-20",), Budget(0.9))
    assert found["clean"].score.accuracy == 1
    assert found["pgd-20"].score.accuracy == 0


# masks ----------------------------------------------------------------------------------------------------------------
def test_scores_count_their_masks_and_the_worst_is_their_conjunction() -> None:
    images = picture_set(60, seed=3)
    found = measure(net(seed=4), images, budget=Budget(0.03))
    assert list(found) == ["clean", *SPECS, "worst_of_fgsm,pgd-5,cw-5"]
    for each in found.values():
        assert each.mask.shape == (60,)
        assert each.mask.dtype == np.bool_
        assert each.score.correct == each.mask.sum()
        assert each.score.n == 60
        assert not (each.mask & ~found["clean"].mask).any()
    worst = found["worst_of_fgsm,pgd-5,cw-5"]
    assert np.array_equal(worst.mask, np.logical_and.reduce([found[spec].mask for spec in SPECS]))
    assert worst.score.seconds == pytest.approx(sum(found[name].score.seconds for name in ("clean", *SPECS)))


def test_one_attack_needs_no_worst() -> None:
    assert list(measure(matcher(), picture_set(6), ("fgsm",))) == ["clean", "fgsm"]
    assert list(measure(matcher(), picture_set(6), ())) == ["clean"]


def test_an_image_that_is_misread_already_is_not_attacked() -> None:
    images = grey_set(40)
    model = linear()
    attacked: list[Tensor] = []

    class Spying(UntargetedPGD):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, **rest: Any) -> Tensor:
            attacked.append(x)
            return super().__call__(model, x, y, budget, **rest)

    fgsm = read_attack("fgsm", BUDGET)
    clean, _ = little.measured(model, images, [Spying(fgsm.spec, fgsm.name, fgsm.climb)], BUDGET, batch_size=7)
    right = torch.from_numpy(clean.mask)
    assert 0 < right.sum() < 40
    assert torch.equal(torch.cat(attacked), images.x[right].double() / 255)
    assert [len(x) for x in attacked][:-1] == [7] * (len(attacked) - 1)


def test_a_model_that_is_never_right_is_not_attacked_at_all() -> None:
    images = picture_set(12)
    wrong = ImageSet(images.x, (images.y + 1) % CLASSES, images.classes, "relabelled")
    assert [each.score.correct for each in measure(matcher(), wrong).values()] == [0] * 5


# what is left alone ---------------------------------------------------------------------------------------------------
def test_the_model_is_put_back_as_it_was() -> None:
    model = net(seed=1, dropout=0.5)
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = state(model), [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    generators = torch.get_rng_state()
    measure(model, picture_set(20))
    assert same(state(model), before[0])
    assert [m.training for m in model.modules()] == before[1]
    assert [p.requires_grad for p in model.parameters()] == before[2]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generators)


def test_it_is_frozen_and_in_eval_mode_inside_and_after_an_error_as_before() -> None:
    inside: list[tuple[bool, bool]] = []

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = matcher()

        def forward(self, x: Tensor) -> Tensor:
            inside.append((self.training, self.model[1].weight.requires_grad))
            if x.requires_grad:
                raise ZeroDivisionError
            return self.model(x)

    model = Failing().train()
    with pytest.raises(ZeroDivisionError):
        measure(model, picture_set(6))
    assert set(inside) == {(False, False)}
    assert model.training
    assert model.model[1].weight.requires_grad


class Writes(nn.Module):
    """Normalises the images that it is given in place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.sub_(0.5).mul_(2)
        return self.inner(x)


class Pure(Writes):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - 0.5) * 2)


def test_a_network_that_writes_into_its_input_is_measured_as_one_that_does_not() -> None:
    budget, images, attacks = Budget(0.02), picture_set(60, seed=5), ["fgsm", "pgd-5x2", "cw-5", "apgd-ce", "square"]
    inner = net(seed=2)
    pure, writes = (little.measured(kind(inner), images, attacks, budget) for kind in (Pure, Writes))
    assert [m.mask.tolist() for m in writes] == [m.mask.tolist() for m in pure]
    assert 0 < pure[-1].score.correct < pure[0].score.correct
    climb = protocol(["pgd-5"], budget)
    said = {f.check: f.says for f in checks.cheap(Pure(inner), images, climb) if "gradient" not in f.check}
    assert said == {f.check: f.says for f in checks.cheap(Writes(inner), images, climb) if "gradient" not in f.check}
    own, other = (
        measure_transfer(kind(inner), Surrogate(kind(net(seed=4)), "another"), images, climb, **SAID)
        for kind in (Pure, Writes)
    )
    assert [m.mask.tolist() for m in own] == [m.mask.tolist() for m in other]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_figures_are_the_same_where_autograd_is_off(mode: type[torch.no_grad]) -> None:
    budget, images, attacks = Budget(0.05), picture_set(60, seed=5), ["fgsm", "cw-5", "apgd-ce", "fab-t", "square"]
    model = net(seed=2).eval()
    expected = [m.mask.tolist() for m in little.measured(model, images, attacks, budget)]
    marks = [f.verdict for f in checks.cheap(model, images, protocol(attacks, budget))]
    x, y = images.x.float() / 255, images.y
    fgsm = read_attack("fgsm", budget)
    adversarial = fgsm(model, x, y, budget, generator=torch.Generator())
    with mode():
        assert [m.mask.tolist() for m in little.measured(model, images, attacks, budget)] == expected
        assert [f.verdict for f in checks.cheap(model, images, protocol(attacks, budget))] == marks
        assert torch.equal(fgsm(model, x.clone(), y.clone(), budget, generator=torch.Generator()), adversarial)


def test_weights_that_autograd_cannot_record_are_refused_where_gradients_are_needed() -> None:
    with torch.inference_mode():
        model = net(seed=2)
    images = picture_set(20)
    with pytest.raises(Refused, match=r"attacks pgd-5: .* got weights made under torch.inference_mode"):
        little.measured(model, images, ["pgd-5"], BUDGET)
    assert little.measured(model, images, ["square"], BUDGET)[-1].score.n == 20
    found = {f.check: f for f in checks.cheap(model, images, protocol([], BUDGET))}
    assert "inference_mode" in found["vanishing-gradients"].says


@pytest.mark.parametrize(("by", "where"), [(1.5, "in the ball linf 0.1, got a point"), (0.5, "in the box")])
def test_an_attack_that_leaves_the_ball_or_the_box_is_refused(by: float, where: str) -> None:
    class Far(UntargetedPGD):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, **_: Any) -> Tensor:
            return x + by * budget.eps if by > 1 else torch.where(x > 0.9, x + by * budget.eps, x)

    white = ImageSet(torch.full((6, *SHAPE), 255, dtype=torch.uint8), torch.arange(6) % 3, tuple("abc"), "white")
    far = read_attack("fgsm", BUDGET)
    with pytest.raises(Refused, match=f"fgsm, images 0 to .*: expected an attack that stays {where}"):
        little.measured(net(seed=2), white, [Far(far.spec, far.name, far.climb)], BUDGET)


# determinism ----------------------------------------------------------------------------------------------------------
def counting(model: nn.Module, images: ImageSet, **settings: Any) -> list[list[bool]]:
    found = measure(model, images, ("pgd-2", "cw-2"), Budget(0.05), **settings)
    return [each.mask.tolist() for each in found.values()]


def test_a_seed_decides_everything() -> None:
    model, images = net(seed=2), picture_set(150, seed=5)
    assert counting(model, images, seed=3) == counting(model, images, seed=3)
    assert len({json.dumps(counting(model, images, seed=seed)) for seed in range(5)}) > 1


def test_an_attack_does_not_depend_on_the_others_beside_it() -> None:
    model, images = net(seed=2), picture_set(150, seed=5)
    alone = measure(model, images, ("pgd-2",), Budget(0.05))["pgd-2"].mask
    beside = measure(model, images, ("cw-2", "pgd-2"), Budget(0.05))["pgd-2"].mask
    assert np.array_equal(alone, beside)


def test_every_batch_of_every_attack_has_a_random_start_of_its_own() -> None:
    starts: list[int] = []

    class Noting(UntargetedPGD):
        def __call__(
            self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator
        ) -> Tensor:
            starts.append(generator.initial_seed())
            return x

    real = [read_attack(spec, BUDGET) for spec in ("pgd-2", "cw-2", "pgd-3")]
    attacks = [Noting(each.spec, each.name, each.climb, each.loss) for each in real]
    for seed in (0, 1):
        little.measured(matcher(), picture_set(30), attacks, BUDGET, seed=seed, batch_size=10)
    assert len(set(starts)) == len(starts) == 2 * 3 * 3


def test_batches_matter_to_random_starts_alone() -> None:
    """As the docstring has it. FGSM starts at the image and is the same for any batch size."""
    model, images = net(seed=2).double(), picture_set(150, seed=5)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.double())

    for size in (1, 7, 150, 1000):
        found = measure(Exact(), images, ("fgsm",), Budget(0.05), batch_size=size)
        assert np.array_equal(found["fgsm"].mask, measure(Exact(), images, ("fgsm",), Budget(0.05))["fgsm"].mask)
        assert found["fgsm"].score.batch_size == size


@given(st.integers(1, 40), st.integers(1, 50))
def test_every_image_is_looked_at_once(n: int, size: int) -> None:
    seen: list[tuple[str, int, int, int]] = []
    images = picture_set(n)
    found = measure(
        matcher(), images, ("fgsm",), Budget(1e-4), batch_size=size, progress=lambda *told: seen.append(told)
    )
    mask, right = found["clean"].mask, found["clean"].score.correct
    ends = [*range(size, n, size), n]
    assert [told for told in seen if told[0] == "clean"] == [("clean", end, n, mask[:end].sum()) for end in ends]
    assert seen[-1] == ("fgsm", right, right, found["fgsm"].score.correct)


# records and refusals -------------------------------------------------------------------------------------------------
def test_records_say_what_was_measured() -> None:
    model, images = matcher(), picture_set(12)
    found = measure(model, images, ("fgsm", "pgd-5"), seed=4, batch_size=5)
    for name, each in found.items():
        record = json.loads(json.dumps(each.score.record()))
        assert record["weights"] == weights_hash(model)
        assert record["data"] == images.fingerprint()
        assert (record["split"], record["which"], record["images"]) == ("test", "best", "pictures")
        assert (record["seed"], record["batch_size"], record["n"]) == (4, 5, 12)
        assert (record["norm"], record["eps"]) == ((None, None) if name == "clean" else ("linf", 0.1))
        assert record["seconds"] >= 0
    assert found["pgd-5"].score.label == "PGD-5 (CE, step 0.025, uniform start, 1 restart)"
    assert len({each.score.slug for each in found.values()}) == len(found)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    class Broken(nn.Module):
        """Well behaved in the first eight images."""

        def __init__(self) -> None:
            super().__init__()
            self.model = matcher()
            self.seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return self.model(x) if self.seen <= 8 else self.model(x) * value

    with pytest.raises(Refused, match="clean, images 8 to 11: expected finite logits, got NaN or infinity"):
        measure(Broken(), picture_set(12), batch_size=4)


def test_validation_sees_both_accuracies() -> None:
    model, images = net(seed=2), picture_set(150, seed=5)
    budget = Budget(0.05)
    found = measure(model, images, ("pgd-2",), budget, seed=3)
    expected = found["clean"].score.accuracy, found["pgd-2"].score.accuracy
    assert accuracies(model, images, protocol(["pgd-2"], budget, seed=3)) == expected
    assert 0 < expected[1] < expected[0] < 1


def test_weaker_attacks_leave_more() -> None:
    found = measure(net(seed=2), picture_set(150, seed=5), ("fgsm", "pgd-20", "cw-20"), Budget(0.05))
    score = {name: each.score.accuracy for name, each in found.items()}
    worst = score.pop("worst_of_fgsm,pgd-20,cw-20")
    assert worst <= min(score.values())
    assert max(score.values()) == score["clean"]
