"""What an evaluation finds beside accuracies: against closed forms, against the figures, and on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import CLASSES, SHAPE, matcher, measured, net, picture_set, protocol, short
from suspects import EntropyMinimiser
from torch import nn

from mmard.attacks import named
from mmard.balls import Budget
from mmard.errors import Refused
from mmard.evaluation.checks import CHECKS
from mmard.evaluation.evaluate import Measured
from mmard.evaluation.examine import Recorder, examine
from mmard.evaluation.findings import (
    ALSO,
    BROKEN,
    KINDS,
    MOST,
    Finding,
    FindingsPlan,
    PredictionsByAttack,
    TeacherBeside,
    by_class,
    calibration,
    chosen,
    confusion,
    expected_error,
    margins,
    plan_findings,
    read_also,
    reliability,
)
from mmard.ops import correct
from mmard.run import Run

BUDGET = Budget(0.05)
HOW: dict[str, Any] = {"seed": 3, "batch_size": 20}
SAID: dict[str, Any] = {"split": "test", "which": "best", **HOW}
IMAGES = picture_set(60, seed=5)


def examined(
    *specs: str, also: str = "all", model: nn.Module | None = None, run: Run | None = None, **more: Any
) -> tuple[list[Measured], list[Finding]]:
    model, keep = model or net(seed=2), Recorder(run)
    how = protocol(specs, BUDGET, **{**HOW, **{name: more.pop(name) for name in HOW if name in more}})
    look = plan_findings(also, model, how, teacher=TeacherBeside(matcher(), "a matcher"))
    figures = examine(model, IMAGES, how, look, keep, **{"split": "test", "which": "best", **more})
    assert {m.score for m in keep.measured} == {m.score for m in figures}, "each is kept, AutoAttack after the others"
    assert len(keep.measured) == len(figures)
    assert len({f.slug for f in keep.found}) == len(keep.found)
    return figures, keep.found


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Measured], list[Finding]]:
    """Everything there is to find, under two attacks."""
    figures, found = examined("pgd-5", "cw-5")
    return {m.score.attack: m for m in figures}, found


def of_kind(found: list[Finding], kind: str, attack: str | None = None) -> Finding:
    (one,) = (f for f in found if f.kind == kind and attack in (None, f.used.attack))
    return one


# against the figures --------------------------------------------------------------------------------------------------
def test_everything_is_found_once(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    figures, found = whole
    kinds = [(f.kind, f.used.attack) for f in found]
    each = [(kind, attack) for kind in ("margins", "calibration") for attack in ("pgd-5", "cw-5")]
    classes = [("classes", name) for name in figures if name != "clean"]
    first = [("examples", "pgd-5"), ("boundary", "pgd-5"), ("curve", "pgd-5"), ("curve", "pgd-5")]
    assert kinds == [("checks", None), *classes, *each, *first]
    assert {kind for kind, _ in kinds} == set(KINDS)


def test_figures_are_what_they_are_without_findings(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    figures, _ = whole
    alone = measured(net(seed=2), IMAGES, ["pgd-5", "cw-5"], BUDGET, **SAID)
    assert {m.score.attack: m.mask.tolist() for m in alone} == {name: m.mask.tolist() for name, m in figures.items()}


def test_balanced_and_worst_class_accuracy_are_by_class_and_few_images_are_said() -> None:
    images = picture_set(31)
    rows = torch.cat([(images.y == k).nonzero()[:n, 0] for k, n in enumerate((10, 5, 1))])
    images = images.take(rows)
    clean, attacked = np.ones(16, dtype=np.bool_), np.arange(16) < 12
    body = by_class(images, clean, attacked, torch.zeros(16, 3), None)
    assert (body["count"], body["clean"], body["attacked"]) == ([10, 5, 1], [10, 5, 1], [10, 2, 0])
    assert (body["balanced_clean"], body["balanced_attacked"]) == (1, pytest.approx((1 + 2 / 5 + 0) / 3))
    assert (body["worst_class_clean"], body["worst_class_attacked"]) == (0, 2)
    assert body["few_images"] == [0, 1, 2]
    many = by_class(picture_set(95), np.ones(95, dtype=np.bool_), np.ones(95, dtype=np.bool_), torch.zeros(95, 3), None)
    assert (many["count"], many["few_images"]) == ([32, 32, 31], [])
    absent = by_class(images.take(slice(0, 10)), clean[:10], attacked[:10], torch.zeros(10, 3), None)
    assert (absent["balanced_attacked"], absent["few_images"]) == (1, [0])


def test_classes_add_up_to_the_figures(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    figures, found = whole
    for name, figure in figures.items():
        if name == "clean":
            continue
        body = of_kind(found, "classes", name).body
        assert body["count"] == IMAGES.class_counts().tolist()
        assert sum(body["clean"]) == figures["clean"].score.correct
        assert sum(body["attacked"]) == figure.score.correct
        for right, cells in (("clean", "confusion_clean"), ("attacked", "confusion_attacked")):
            if name.startswith("worst_of") and right == "attacked":
                assert body[cells] is None, "no one image is the worst case's"
                continue
            cells = np.array(body[cells])
            assert cells.sum(1).tolist() == body["count"]
            assert np.diag(cells).tolist() == body[right]


def test_histograms_and_bins_hold_every_image_once(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    figures, found = whole
    for attack in ("pgd-5", "cw-5"):
        body = of_kind(found, "margins", attack).body
        for name in ("clean", "attacked", "confidence_clean", "confidence_attacked"):
            assert sum(body[name]) == 60
        assert sum(body["clean"][20:]) == figures["clean"].score.correct, "right is a margin above 0"
        bins = of_kind(found, "calibration", attack).body
        for name, figure in (("clean", "clean"), ("attacked", attack)):
            assert sum(b["n"] for b in bins[name]) == 60
            right = sum(b["n"] * b["accuracy"] for b in bins[name] if b["n"])
            assert right == pytest.approx(figures[figure].score.correct)


def test_curves_pass_through_the_figures(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    figures, found = whole
    curves = {f.body["over"]: f for f in found if f.kind == "curve"}
    points = {over: {p["value"]: p["correct"] for p in f.body["points"]} for over, f in curves.items()}
    assert points["eps"][0.0] == figures["clean"].score.correct
    assert points["eps"][0.05] == points["steps"][5] == figures["pgd-5"].score.correct
    assert max(points["eps"]) == 0.5
    assert (curves["eps"].used.eps, curves["steps"].used.eps) == (None, 0.05)


def test_examples_are_the_images_that_were_attacked(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    figures, found = whole
    example = of_kind(found, "examples")
    items, arrays = example.body["items"], example.arrays
    rows = [item["index"] for item in items]
    fell = np.flatnonzero(figures["clean"].mask & ~figures["pgd-5"].mask)
    held = np.flatnonzero(figures["pgd-5"].mask)
    assert rows == [*fell[:BROKEN], *held[: MOST - BROKEN]]
    assert arrays["x"].dtype == arrays["x_adv"].dtype == np.uint8
    assert np.array_equal(arrays["x"], IMAGES.x[rows].numpy())
    delta = torch.from_numpy(arrays["delta"])
    assert float(delta.abs().max()) <= 0.05 + 1e-6
    x_adv = IMAGES.x[rows].float() / 255 + delta
    assert float((x_adv - torch.from_numpy(arrays["x_adv"]).float() / 255).abs().max()) <= 0.5 / 255 + 1e-6
    assert not np.array_equal(arrays["x"], arrays["x_adv"])
    with torch.no_grad():
        student, teacher = net(seed=2).eval()(x_adv).softmax(1), matcher()(x_adv).softmax(1)
    for item, mine, its in zip(items, student, teacher, strict=True):
        assert item["true"] == int(IMAGES.y[item["index"]])
        assert (item["adv_pred"], item["teacher_adv_pred"]) == (int(mine.argmax()), int(its.argmax()))
        assert item["adv_prob"] == pytest.approx(float(mine.max()), abs=1e-5)
        assert item["teacher_adv_prob"] == pytest.approx(float(its.max()), abs=1e-5)
        assert (item["adv_pred"] == item["true"]) == bool(figures["pgd-5"].mask[item["index"]])


def test_checks_are_all_there_in_their_order(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    body = of_kind(whole[1], "checks").body
    assert [f["check"] for f in body["findings"]] == list(CHECKS)
    _, few = examined("pgd-2", also="")
    assert [f.kind for f in few] == ["checks"], "the cheap ones belong to every evaluation"
    verdicts = {f["check"]: f["verdict"] for f in few[0].body["findings"]}
    assert verdicts["huge-radius"] == "skipped"
    assert verdicts["randomised"] == "passed"


def test_ensembles_have_classes_and_nothing_that_needs_their_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    def less(*arguments: Any) -> Any:
        return short(named(*arguments), steps=3, queries=5, targets=2)

    monkeypatch.setattr("mmard.attacks.named", less)
    all_figures, found = examined("aa", "pgd-2", also="classes,margins")
    classes = [("classes", name) for name in ("aa", "pgd-2", "worst_of_aa,pgd-2")]
    assert [(f.kind, f.used.attack) for f in found] == [("checks", None), *classes, ("margins", "pgd-2")]
    aa = next(m for m in all_figures if m.score.attack == "aa")
    body = of_kind(found, "classes", "aa").body
    assert (sum(body["attacked"]), body["confusion_attacked"]) == (aa.score.correct, None)


# against closed forms -------------------------------------------------------------------------------------------------
def logits_of(*probs: float) -> torch.Tensor:
    return torch.tensor([[math.log(p), math.log(1 - p)] for p in probs])


def test_calibration_is_the_gap_of_each_bin() -> None:
    logits = logits_of(*[0.8] * 10, *[0.6] * 10)
    y = torch.tensor([0] * 6 + [1] * 4 + [0] * 7 + [1] * 3)
    body = calibration(logits, logits.flip(1), y)
    assert body["ece_clean"] == pytest.approx(0.5 * 0.2 + 0.5 * 0.1, abs=1e-6)
    nll = -(6 * math.log(0.8) + 4 * math.log(0.2) + 7 * math.log(0.6) + 3 * math.log(0.4)) / 20
    assert body["nll_clean"] == pytest.approx(nll, abs=1e-6)
    assert body["ece_attacked"] == pytest.approx(0.5 * (0.8 - 0.4) + 0.5 * (0.6 - 0.3), abs=1e-6)
    empty = [b for b in body["clean"] if not b["n"]]
    assert len(empty) == 13
    assert all(b["confidence"] is None and b["accuracy"] is None for b in empty)


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    bins = reliability(torch.tensor([0.0, 1 / 4, 0.26, 0.5, 1.0]).double(), torch.ones(5, dtype=torch.bool), bins=4)
    assert [b["n"] for b in bins] == [2, 2, 0, 1]
    assert expected_error(bins) == pytest.approx((1 + 0.75 + 0.74 + 0.5 + 0) / 5)


def test_margins_are_of_probabilities() -> None:
    body = margins(logits_of(0.9, 0.9, 0.51), logits_of(0.1, 0.49, 0.999), torch.tensor([0, 1, 0]))
    assert body["mean_clean"] == pytest.approx((0.8 - 0.8 + 0.02) / 3, abs=1e-6)
    edges = [(body["edges"][i], body["edges"][i + 1]) for i, n in enumerate(body["clean"]) if n]
    for value, (low, high) in zip((-0.8, 0.02, 0.8), edges, strict=True):
        assert low - 1e-6 <= value <= high + 1e-6
    assert body["attacked"][-1] == 1
    assert body["confidence_clean"][17] + body["confidence_clean"][18] == 2


def test_of_a_tie_the_first_class_is_predicted_in_every_count() -> None:
    logits, y = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]), torch.tensor([0, 1, 2])
    assert correct(logits, y).tolist() == [True, True, False]
    assert confusion(logits, y) == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert [bin["accuracy"] for bin in reliability(torch.ones(3), correct(logits, y)) if bin["n"]] == [2 / 3]


@pytest.mark.parametrize(("broken", "held"), [(20, 20), (3, 20), (20, 1), (2, 2), (0, 0)])
def test_examples_follow_one_rule(broken: int, held: int) -> None:
    n = broken + held + 1
    y = torch.zeros(n, dtype=torch.int64)
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    # The first image is misread as it is; held and broken ones take turns after it.
    kinds = ["m", *"".join(h + b for h, b in zip("h" * 30, "b" * 30, strict=True))]
    kinds = [k for i, k in enumerate(kinds) if kinds[:i].count(k) < {"m": 1, "h": held, "b": broken}[k]][:n]
    clean = torch.stack([wrong if k == "m" else right for k in kinds])
    attacked = torch.stack([right if k == "h" else wrong for k in kinds])
    rows = chosen(clean, attacked, y).tolist()
    shown = [kinds[row] for row in rows]
    assert shown == ["b"] * shown.count("b") + ["h"] * shown.count("h")
    assert len(rows) == min(MOST, broken + held)
    if broken >= BROKEN and held >= MOST - BROKEN:
        assert shown.count("b") == BROKEN


# what is left out, refused, kept --------------------------------------------------------------------------------------
def test_what_cannot_be_found_is_refused_by_name_and_left_out_of_all() -> None:
    model = net()
    with pytest.raises(Refused, match=r"also 'epss': expected one of .*; did you mean 'eps'"):
        read_also("epss")
    with pytest.raises(Refused, match="also boundary: expected a teacher, got a network without one; name one"):
        plan_findings("boundary", model, protocol(["pgd-2"], BUDGET))
    with pytest.raises(Refused, match=r"also eps: expected an attack that hands .*, got square; add pgd"):
        plan_findings("eps", model, protocol(["square"], BUDGET))
    with pytest.raises(Refused, match="also steps: expected an attack of several steps, got fgsm"):
        plan_findings("steps", model, protocol(["fgsm"], BUDGET))
    look = plan_findings("all", model, protocol(["square"], BUDGET))
    assert look.also == ("checks", "classes")
    assert [text.partition(":")[0] for text in look.left_out] == [name for name in ALSO if name not in look.also]
    assert plan_findings("", model, protocol(["square"], BUDGET)) == FindingsPlan()


def test_records_are_strict_json_and_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    _, found = examined("pgd-2", run=run)
    held = {record["slug"]: record for record in run.findings()}
    assert set(held) == {f.slug for f in found}
    for finding in found:
        record = held[finding.slug]
        again = json.loads(json.dumps(finding.record(), allow_nan=False))
        assert {k: v for k, v in record.items() if k not in ("slug", "environment")} == again
        assert record["environment"]["versions"]["torch"] == torch.__version__
        assert (record["n"], record["data"]) == (60, IMAGES.fingerprint())
        arrays = run.finding_arrays(finding.slug)
        assert {k: v.tolist() for k, v in arrays.items()} == {k: v.tolist() for k, v in finding.arrays.items()}
    assert len(list(run.findings_folder.glob("*.npz"))) == 1
    assert Run(tmp_path / "none").findings() == []


def test_the_same_finding_has_the_same_name_and_no_other() -> None:
    once, again = (examined("pgd-2", also="margins,eps")[1] for _ in range(2))
    assert [f.slug for f in once] == [f.slug for f in again]
    for change in ({"seed": 4}, {"batch_size": 10}, {"which": "last"}, {"split": "val"}):
        _, other = examined("pgd-2", also="margins,eps", **change)
        assert not {f.slug for f in once} & {f.slug for f in other}


def test_what_is_finished_when_it_is_stopped_is_on_disk(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def stop(name: str, *_: int) -> None:
        if name == "eps 0.0125":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examined("pgd-2", "cw-2", also="classes,eps", run=run, progress=stop)
    assert {r["attack"] for r in run.score_records()} == {"clean", "pgd-2", "cw-2", "worst_of_pgd-2,cw-2"}
    assert [r["kind"] for r in run.findings()].count("classes") == 3

    def stop_early(name: str, *_: int) -> None:
        if name == "cw-2":
            raise KeyboardInterrupt

    run = Run(tmp_path / "early")
    with pytest.raises(KeyboardInterrupt):
        examined("pgd-2", "cw-2", also="", run=run, progress=stop_early)
    assert {r["attack"] for r in run.score_records()} == {"clean", "pgd-2"}


def test_a_check_that_was_made_outlives_an_evaluation_without_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    examined("pgd-2", also="checks", run=run)
    (first,) = run.findings()
    examined("pgd-2", also="", run=run)
    (second,) = run.findings()
    made = {f["check"]: f for f in first["findings"] if f["verdict"] != "skipped"}
    now = {f["check"]: f for f in second["findings"]}
    assert "huge-radius" in made
    assert now["huge-radius"] == {**made["huge-radius"], "made": first["environment"]["written"]}
    # Other weights have none of it.
    examined("pgd-2", also="", run=run, model=net(seed=3))
    (third,) = run.findings()
    assert {f["check"]: f["verdict"] for f in third["findings"]}["huge-radius"] == "skipped"


def test_attacked_images_are_kept_only_where_they_are_needed() -> None:
    views = PredictionsByAttack(IMAGES)
    measured(net(seed=2), IMAGES, ["pgd-2"], BUDGET, **SAID, witness=views)
    with pytest.raises(AssertionError, match="were not to be kept"):
        views.x_adv("pgd-2")
    views = PredictionsByAttack(IMAGES, hold=True)
    measured(net(seed=2), IMAGES, ["pgd-2"], BUDGET, **SAID, witness=views)
    x = IMAGES.x.float() / 255
    moved = (views.x_adv("pgd-2") != x).flatten(1).any(1)
    clean = (views.clean.argmax(1) == IMAGES.y).numpy()
    assert np.array_equal(moved.numpy(), clean), "what is misread is left as it is"
    with torch.no_grad():
        again = net(seed=2).eval()(views.x_adv("pgd-2"))
    assert torch.allclose(again, views.under("pgd-2"), atol=1e-5)
    assert views.clean.shape == (60, CLASSES)
    assert IMAGES.image_shape == SHAPE


def test_a_body_may_not_overwrite_its_head(whole: tuple[dict[str, Measured], list[Finding]]) -> None:
    margin = of_kind(whole[1], "margins", "pgd-5")
    with pytest.raises(AssertionError, match=r"has the keys .* of its head"):
        replace(margin, body={"n": 3})


def test_the_mark_that_explains_a_failed_attack_is_kept(tmp_path: Path) -> None:
    keep = Recorder(Run.create(tmp_path / "run", {}))
    model = EntropyMinimiser(net(seed=2).eval())
    model.scale = nn.Parameter(torch.ones(CLASSES))
    model.optimizer = torch.optim.SGD([model.scale], 0.1)
    with pytest.raises(Refused, match=r"marked .*test-time-adaptation.*docs/checks.md"):
        examine(model, IMAGES, protocol(["pgd-2"], BUDGET), FindingsPlan(), keep, split="test", which="best")
    (found,) = keep.found
    marks = {each["check"] for each in found.body["findings"] if each["verdict"] == "suspicious"}
    assert "test-time-adaptation" in marks
