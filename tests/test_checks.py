"""Suspicion checks: known tricks raise their marks and no other, honest networks raise none."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import little
import numpy as np
import pytest
import suspects
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from suspects import honest
from torch import Tensor, nn

import mmard
from mmard.attacks import AutoAttack, read_attacks
from mmard.attacks.authors import Authors
from mmard.attacks.autoattack import standard
from mmard.balls import Budget
from mmard.data import load
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.checks import CHECKS, Checked, cheap, compared, thorough
from mmard.evaluation.checks.checked import CHANCE, exceeds, reversal, tail
from mmard.evaluation.evaluate import Measured, Protocol
from mmard.evaluation.score import Score
from mmard.evaluation.transfer import Transferred
from mmard.files import weights_hash
from mmard.models import build

PAGE = Path(__file__).resolve().parent.parent / "docs" / "checks.md"
BUDGET = Budget(0.15)
PROTOCOL = Protocol((), BUDGET)
SAMPLE = 80


def digits(n: int = SAMPLE) -> ImageSet:
    return load("digits").test.take(slice(0, n))


def marks(findings: list[Checked]) -> set[str]:
    return {f.check for f in findings if f.suspicious}


def by_name(findings: list[Checked]) -> dict[str, Checked]:
    assert len({f.check for f in findings}) == len(findings)
    return {f.check: f for f in findings}


TRICKS: list[tuple[type[suspects.Around], set[str], set[str]]] = [
    (suspects.Around, set(), set()),
    (suspects.Saturated, {"vanishing-gradients"}, {"rescaled-loss", "huge-radius"}),
    (suspects.Noisy, {"randomised"}, set()),
    (suspects.SameNoise, {"randomised"}, set()),
    (suspects.OwnNoise, {"randomised"}, set()),
    (suspects.Softmax, {"softmax-outputs"}, set()),
    (suspects.LogSoftmax, set(), set()),
    (suspects.Rounding, {"vanishing-gradients"}, {"black-box-beats-white-box", "huge-radius"}),
    (suspects.Stairs, {"vanishing-gradients"}, {"black-box-beats-white-box", "huge-radius"}),
    (suspects.Threshold, {"vanishing-gradients"}, set()),
    (suspects.StraightThrough, set(), set()),
    (suspects.Shattered, {"misleading-gradients"}, {"black-box-beats-white-box", "huge-radius"}),
    (suspects.MaskedAround, set(), {"fgsm-beats-pgd", "black-box-beats-white-box", "huge-radius"}),
    (suspects.BatchStatistics, {"test-time-adaptation"}, set()),
    (suspects.EntropyMinimiser, {"test-time-adaptation"}, set()),
    (suspects.Purifier, {"test-time-adaptation"}, set()),
    (suspects.Memory, {"test-time-adaptation"}, set()),
    (suspects.Counting, set(), set()),
]


@over(("trick", "at_once", "by_attack"), TRICKS, ids=[trick.__name__ for trick, _, _ in TRICKS])
def test_a_known_trick_raises_its_marks_and_no_other(
    trick: type[suspects.Around], at_once: set[str], by_attack: set[str]
) -> None:
    model, images = trick(honest("mlp", eps=0.05)), digits()
    known = cheap(model, images, PROTOCOL)
    assert marks(known) == at_once
    assert marks(thorough(model, images, PROTOCOL, known=known, first=SAMPLE)) == by_attack


@over("budget", [BUDGET, Budget(1.0, "l2"), Budget(4.0, "l1")], ids=str)
@over(
    ("kind", "seed", "eps"),
    [("linear", 0, 0.0), ("conv", 0, 0.0), ("conv", 1, 0.1), ("mlp", 0, 0.0), ("mlp", 1, 0.15)],
)
def test_an_honest_network_raises_no_mark(kind: str, seed: int, eps: float, budget: Budget) -> None:
    model, images, how = honest(kind, seed, eps), digits(), Protocol((), budget, seed)
    known = cheap(model, images, how)
    made = by_name([*known, *thorough(model, images, how, known=known, first=SAMPLE)])
    assert set(made) == set(CHECKS)
    assert {name: f.verdict for name, f in made.items() if f.verdict != "passed"} == {"autoattack-above-pgd": "skipped"}


@pytest.mark.parametrize("name", ["mobilenet_v2", "preact_resnet18", "cnn-8"])
def test_no_network_of_ours_raises_a_mark_at_once(name: str) -> None:
    model = build(name, num_classes=10, image_shape=(1, 8, 8), seed=0)
    # Untrained, so one class may be predicted for all images.
    assert marks(cheap(model, digits(64), PROTOCOL)) <= {"degenerate-predictions"}


def test_a_network_is_left_as_it_was_and_so_is_everybodys_chance() -> None:
    model = suspects.EntropyMinimiser(suspects.BatchStatistics(copy.deepcopy(honest())))
    model.train()
    model.net.norm.eval()
    before, modes = little.state(model), [m.training for m in model.modules()]
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert marks(cheap(model, digits(20), PROTOCOL)) == {"test-time-adaptation"}
    assert little.same(before, little.state(model))
    assert modes == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert model.scale.requires_grad
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert python_state == random.getstate()


def test_a_network_that_fails_is_put_back_too() -> None:
    class Failing(suspects.BatchStatistics):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ArithmeticError

    model = Failing(copy.deepcopy(honest())).train()
    before = little.state(model)
    with pytest.raises(ArithmeticError):
        cheap(model, digits(20), PROTOCOL)
    assert little.same(before, little.state(model))
    assert model.training


def test_the_same_call_finds_the_same() -> None:
    model = suspects.Noisy(honest())
    one, two = (cheap(model, digits(), Protocol((), BUDGET, seed=5)) for _ in range(2))
    assert one == two


class Constant(nn.Module):
    """Says the same of every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(Refused, match="finite logits"):
        cheap(Constant(torch.tensor([0.0, value] + [0.0] * 8)), digits(8), PROTOCOL)


def test_a_network_without_gradients_that_says_so_is_not_suspected_for_it() -> None:
    model = suspects.Threshold(honest())
    model.black_box = True
    known = cheap(model, digits(), PROTOCOL)
    made = by_name([*known, *thorough(model, digits(), PROTOCOL, known=known)])
    assert not marks(list(made.values()))
    assert {name for name, f in made.items() if f.verdict == "passed"} == set(CHECKS[:4])


def test_one_class_for_all_and_logits_that_tie_are_marked() -> None:
    """An accuracy that no attack can lower; everything else passes, as no attack finds anything."""
    images = digits(60)
    names = {name for name, f in by_name(cheap(Constant(torch.arange(10.0)), images, PROTOCOL)).items() if f.suspicious}
    assert "degenerate-predictions" in names
    tied = by_name(cheap(suspects.Stairs(honest("mlp", eps=0.05)), images, PROTOCOL))["degenerate-predictions"]
    plain = by_name(cheap(honest("mlp", eps=0.05), images, PROTOCOL))["degenerate-predictions"]
    assert (plain.verdict, plain.figures["tied"]) == ("passed", 0)
    assert tied.figures["predicted_classes"] > 1
    few = ImageSet(images.x[:9], images.y[:9], images.classes, "nine")
    assert by_name(cheap(Constant(torch.arange(10.0)), few, PROTOCOL))["degenerate-predictions"].verdict == "passed"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_images_are_enough_to_run(n: int) -> None:
    model, images = honest(), digits(n)
    known = cheap(model, images, PROTOCOL)
    assert not marks([*known, *thorough(model, images, PROTOCOL, known=known)])


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    test = load("digits").test
    rows = (test.y < classes).nonzero()[:, 0][:40]
    images = ImageSet(test.x[rows], test.y[rows], test.classes[:classes], "digits below")
    model = little.matcher(images)
    known = cheap(model, images, PROTOCOL)
    made = by_name([*known, *thorough(model, images, PROTOCOL, known=known)])
    assert not marks(list(made.values()))
    assert made["black-box-beats-white-box"].verdict == "passed"


def test_double_precision_and_batches_smaller_than_the_sample() -> None:
    model = copy.deepcopy(honest()).double()
    assert not marks(cheap(model, digits(), Protocol((), BUDGET, batch_size=16)))


def test_an_untold_thorough_look_asks_first() -> None:
    model = suspects.BatchStatistics(honest())
    assert by_name(thorough(model, digits(20), PROTOCOL))["huge-radius"].verdict == "skipped"


def test_the_public_call_makes_what_it_is_told_to() -> None:
    model, images = suspects.Saturated(honest("mlp", eps=0.05)), digits(40)
    at_once = mmard.check(model, images, budget="0.15")
    assert tuple(f.check for f in at_once) == CHECKS[:6]
    everything = mmard.check(model, images, budget=BUDGET, thorough=True)
    assert tuple(f.check for f in everything) == CHECKS
    assert marks(everything) == {"vanishing-gradients", "rescaled-loss", "huge-radius"}


# verdicts -------------------------------------------------------------------------------------------------------------
def figure(attack: str, standing: int | list[int], n: int = 100, eps: float = 0.1, **other: object) -> Measured:
    """A figure whose first images stand, or those given."""
    mask = np.zeros(n, dtype=np.bool_)
    mask[list(range(standing)) if isinstance(standing, int) else standing] = True
    score = Score(attack, attack, "linf", eps, "test", n, int(mask.sum()), 0.0, 0, 250, "w", "d", "best", "images")
    score = replace(score, **other)  # type: ignore[arg-type]
    whole, _, stage = attack.partition(".") if attack.startswith("aa") else (attack, "", "")
    made_on, spec = attack.startswith("transfer-"), attack.removeprefix("transfer-")
    if made_on:
        score = Transferred(**asdict(score), made_on="another", made_on_weights="v")
    if "@pyautoattack" in attack:  # of a package that need not be installed
        own = standard(Budget(eps), 10)
        theirs = AutoAttack(whole, "", {name: Authors(name, each, "") for name, each in own.attacks.items()})
        return Measured(score, mask, theirs.attacks[stage] if stage else theirs)
    (read,) = read_attacks([whole if stage else spec], Budget(eps), 10)
    return Measured(score, mask, read.attacks[stage] if stage else read)


FIGURES = [
    ("more-steps", figure("pgd-20", 30), figure("pgd-100", 60)),
    ("more-steps", figure("cw-10@0.003", 30), figure("cw-20x3@0.003", 60)),
    ("larger-radius", figure("pgd-20", 30), figure("pgd-20", 60, eps=0.2)),
    ("larger-radius", figure("aa", 30), figure("aa", 60, eps=0.2)),
    ("fgsm-beats-pgd", figure("fgsm", 30), figure("pgd-20", 60)),
    ("autoattack-above-pgd", figure("pgd-20", 30), figure("aa", 60)),
    ("autoattack-above-pgd", figure("cw-30", 30), figure("aa@pyautoattack", 60)),
    ("rescaled-loss", figure("cw-30", 30), figure("pgd-20", 60)),
    ("rescaled-loss", figure("aa.apgd-t", 30), figure("aa.apgd-ce", 60)),
    ("black-box-beats-white-box", figure("square", 30), figure("pgd-20", 60)),
    ("black-box-beats-white-box", figure("aa@pyautoattack.square", 30), figure("aa@pyautoattack.fab-t", 60)),
    ("black-box-beats-white-box", figure("transfer-pgd-20", 30), figure("pgd-20", 60)),
]
IDS = [f"{weaker.score.attack}-{stronger.score.attack}" for _, weaker, stronger in FIGURES]


@over(("check", "few", "many"), FIGURES, ids=IDS)
def test_figures_the_wrong_way_round_are_marked(check: str, few: Measured, many: Measured) -> None:
    found = by_name(compared([few, many]))[check]
    assert found.suspicious
    assert few.score.attack in found.says
    # Either of the two alone, or of other images, other weights or fewer of them, says nothing.
    n = len(few.mask) - 1
    others = [
        [few],
        [many],
        [few, figure(many.score.attack, 60, eps=many.score.eps or 0, data="other")],
        [few, figure(many.score.attack, 60, eps=many.score.eps or 0, weights="other")],
        [few, figure(many.score.attack, 60, n=n, eps=many.score.eps or 0)],
    ]
    assert [by_name(compared(other))[check].verdict for other in others] == ["skipped"] * len(others)


@over(("check", "few", "many"), FIGURES, ids=IDS)
def test_figures_the_right_way_round_pass(check: str, few: Measured, many: Measured) -> None:
    turned = [replace(m, mask=other.mask, score=replace(m.score, correct=int(other.mask.sum()))) for m, other in
              ((few, many), (many, few))]  # fmt: skip
    assert by_name(compared(turned))[check].verdict == "passed"


def test_images_that_change_sides_by_chance_raise_no_mark() -> None:
    fewer = figure("pgd-20", [*range(50), *range(60, 72)])
    more = figure("pgd-100", [*range(50), *range(72, 90)])
    found = by_name(compared([fewer, more]))["more-steps"]
    assert found.verdict == "passed"
    assert dict(found.figures) == pytest.approx(
        {"images": 100, "against": 18, "along": 12, "chance": sum(math.comb(30, k) for k in range(18, 31)) / 2**30}
    )


def test_a_rise_too_small_to_matter_raises_no_mark_but_for_autoattack() -> None:
    n, gained = 10_000, 60
    pgd, later, whole = figure("pgd-20", 5000, n), figure("pgd-100", 5000 + gained, n), figure("aa", 5000 + gained, n)
    assert marks(compared([pgd, later])) == set()
    assert marks(compared([pgd, whole])) == {"autoattack-above-pgd"}


def test_the_pair_that_speaks_most_against_the_attack_is_named() -> None:
    n = 10_000
    later = figure("pgd-40", [*range(4900), *range(5060, 5300)], n)
    runs = [figure("pgd-10", 5000, n), figure("pgd-20", 5060, n), later]
    found = by_name(compared(runs))["more-steps"]
    assert (found.figures["against"], found.figures["along"], found.suspicious) == (240, 100, True)
    assert found.says.startswith("pgd-40 leaves 5140 of 10000 images, pgd-10 5000; only pgd-10 breaks 240, only")


def test_other_balls_are_not_compared() -> None:
    figures = [figure("square", 30), figure("pgd-20", 60, norm="l2"), figure("cw-20", 10, eps=0.2)]
    assert {f.verdict for f in compared(figures)} == {"skipped"}


def test_draws_are_not_counted() -> None:
    known = [Checked("randomised", "suspicious", "")]
    found = by_name(compared([figure("square", 30), figure("pgd-20", 60), figure("cw-20", 30)], known=known))
    assert found["black-box-beats-white-box"].verdict == found["rescaled-loss"].verdict == "skipped"


def test_what_was_measured_is_not_measured_again() -> None:
    model, images, said = honest(), digits(40), list[str]()

    def note(attack: str, done: int, of: int, standing: int) -> None:
        said.append(attack)

    these = {"data": images.fingerprint(), "weights": weights_hash(model)}
    known = cheap(model, images, PROTOCOL)
    measured = [figure(attack, 20, 40, 0.15, **these) for attack in ("pgd-20", "cw-20", "square")]
    found = by_name(thorough(model, images, PROTOCOL, measured=measured, known=known, first=30, progress=note))
    assert found["rescaled-loss"].figures["images"] == found["black-box-beats-white-box"].figures["images"] == 40
    assert found["more-steps"].figures["images"] == 30
    # The radius itself of the larger ones was measured, and so was PGD-20 beside FGSM and PGD-100.
    assert set(said) - {"check: clean"} == {"check: fgsm", "check: pgd-20", "check: pgd-100", "check: pgd-huge"}
    assert said.count("check: pgd-20") == 2


# numbers --------------------------------------------------------------------------------------------------------------
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 19))
def test_the_tail_is_that_of_the_binomial_distribution(k: int, n: int, twentieths: int) -> None:
    p = Fraction(twentieths, 20)
    exact = sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)), Fraction(0))
    assert tail(k, n, float(p)) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("n", [1, 10, 11, 40, 200])
def test_chance_alone_raises_a_mark_as_seldom_as_said(n: int) -> None:
    false_alarms = sum(math.comb(n, b) / 2**n for b in range(n + 1) if reversal(b, n - b) < CHANCE)
    assert false_alarms <= CHANCE
    for share in (0.01, 0.1):
        wrong = [k for k in range(n + 1) if exceeds(k, n, share)]
        assert (tail(min(wrong), n, share) if wrong else 0.0) < CHANCE


def test_a_finding_is_json() -> None:
    for finding in cheap(honest(), digits(16), PROTOCOL):
        record = finding.record()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert set(record) == {"check", "verdict", "says", "figures"}
        assert "\n" not in finding.says


def test_every_check_has_its_section() -> None:
    sections = re.findall(r"^## ([a-z-]+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(sections) == CHECKS
    assert Checked("more-steps", "passed", "").page == "docs/checks.md#more-steps"
