"""AutoAttack: the verdicts of its authors' code, the survivors' protocol, and evaluations that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import over
from little import measured
from reference_autoattack import CLASSES, STANDARD, Scene, in_double, reference_masks, scene_images, scene_labels
from torch import Tensor, nn

from mmard.attacks import named
from mmard.attacks.apgd import APGD
from mmard.attacks.autoattack import AutoAttack, rand, shortened, standard
from mmard.attacks.fab import FAB
from mmard.attacks.square import Square
from mmard.balls import NORMS, Budget
from mmard.data.image_set import ImageSet
from mmard.engine.twin import Twins
from mmard.errors import Refused
from mmard.evaluation import journal
from mmard.evaluation.evaluate import Loop, Measured

GOLDEN = json.loads((Path(__file__).parent / "golden" / "autoattack.json").read_text())
CASES = over("case", GOLDEN["cases"], ids=lambda c: f"{c['norm']}-{c['eps']}")
LESS = {key: GOLDEN["effort"][key] for key in ("steps", "queries", "targets")}
BATCH = GOLDEN["effort"]["batch_size"]


def image_set(n: int = 48, model: nn.Module | None = None, classes: int = CLASSES) -> ImageSet:
    x = scene_images(n)
    return ImageSet(x, scene_labels(model or Scene(classes), x, classes), tuple("abcdefghij"[:classes]), "a scene")


def attacked(
    budget: Budget, ensemble: AutoAttack | None = None, folder: Path | None = None, **more: object
) -> list[Measured]:
    ensemble = ensemble or shortened(standard(budget, CLASSES), **LESS)
    settings = {"split": "test", "which": "best", "batch_size": BATCH, "folder": folder, **more}
    return auto_attack(Scene(), image_set(), budget, ensemble=ensemble, **settings)


def auto_attack(
    model: nn.Module, images: ImageSet, budget: Budget, *, ensemble: AutoAttack | None = None, **more: Any
) -> list[Measured]:
    return measured(model, images, [ensemble or standard(budget, images.num_classes)], budget, **more)


def line(mask: np.ndarray) -> str:
    return "".join("01"[int(v)] for v in mask)


# verdicts ------------------------------------------------------------------------------------------------------------
@CASES
def test_together_as_the_authors_code(case: dict[str, object]) -> None:
    budget = Budget(case["eps"], case["norm"])
    results = attacked(budget)
    assert {name: line(m.mask) for name, m in zip(STANDARD, results[1:-1], strict=True)} == case["together"]
    assert line(results[-1].mask) == case["together"]["square"]
    assert 0 < results[-1].score.accuracy < results[0].score.accuracy < 1


@CASES
@over("name", STANDARD)
def test_alone_as_the_authors_code(case: dict[str, object], name: str) -> None:
    budget = Budget(case["eps"], case["norm"])
    results = attacked(budget, shortened(standard(budget, CLASSES), **LESS).only(name))
    assert line(results[1].mask) == case["alone"][name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.12), ("l1", 0.4)])
def test_side_by_side_with_the_authors_code(
    dtype: torch.dtype, norm: str, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyautoattack")
    model, budget = Scene(smooth=False), Budget(eps, norm)
    data = image_set(60, model)
    model = model.to(dtype)
    ours = auto_attack(
        model, data, budget, ensemble=shortened(standard(budget, CLASSES), **LESS), split="", which="", batch_size=25
    )
    x = data.x.to(dtype) / 255
    if dtype == torch.float64:
        with in_double(monkeypatch):
            theirs = reference_masks(model, x, data.y, budget, **LESS, batch_size=25)
    else:
        theirs = reference_masks(model, x, data.y, budget, **LESS, batch_size=25)
    flips = [int((a.mask != b).sum()) for a, b in zip(ours[1:-1], theirs, strict=True)]
    assert 0 < ours[-1].mask.sum() < 50
    assert max(flips) <= (0 if dtype == torch.float64 else 1), flips


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.7), ("l1", 1.2)])
def test_a_trained_network_under_the_whole_standard_ensemble(
    dtype: torch.dtype, norm: str, eps: float, monkeypatch: pytest.MonkeyPatch, digits: tuple[nn.Module, ImageSet]
) -> None:
    pytest.importorskip("pyautoattack")
    model, data = digits
    model, budget = model.to(dtype), Budget(eps, norm)
    ours = auto_attack(model, data, budget, split="", which="")
    assert ours[-1].score.label == "AutoAttack (standard)"
    whole = {"steps": 100, "queries": 5000, "targets": 9, "batch_size": 250}
    x = data.x.to(dtype) / 255
    if dtype == torch.float64:
        with in_double(monkeypatch):
            theirs = reference_masks(model, x, data.y, budget, **whole)
    else:
        theirs = reference_masks(model, x, data.y, budget, **whole)
    flips = [int((a.mask != b).sum()) for a, b in zip(ours[1:-1], theirs, strict=True)]
    assert 0.2 < ours[-1].score.accuracy < 0.8
    assert max(flips) <= (0 if dtype == torch.float64 else 2), flips


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ImageSet]:
    import mmard

    out = tmp_path_factory.mktemp("runs") / "teacher"
    trained = mmard.train("cnn-8", data="digits", method="pgd_at", epochs=8, budget=0.15, out=out)
    assert trained.splits is not None
    return trained.network(), trained.splits.test.take(slice(0, 200))


def test_under_l1_the_standard_ensemble_is_that_of_its_paper() -> None:
    budget = Budget(12, "l1")
    whole = standard(budget, CLASSES)
    assert whole.label == "AutoAttack (standard)"
    assert whole.attacks["apgd-ce"] == APGD("ce", restarts=5)
    assert whole.attacks["apgd-t"] == APGD("targeted-dlr", targets=5)
    assert whole.attacks["fab-t"] == FAB(targets=9)
    for classes, label in ((2, "AutoAttack, 1 target, no APGD-T"), (3, "AutoAttack, 2 targets, APGD-DLR for APGD-T")):
        few = shortened(standard(budget, classes), steps=5, queries=20, targets=9)
        assert standard(budget, classes).label == label
        images = image_set(20, classes=classes)
        results = auto_attack(Scene(classes), images, Budget(0.5, "l1"), ensemble=few, split="", which="")
        assert 0 <= results[-1].score.accuracy < results[0].score.accuracy
    assert not rand(budget, CLASSES).attacks["apgd-ce"].shrink


# protocol ------------------------------------------------------------------------------------------------------------
def test_each_attack_sees_those_left_and_the_records_say_so() -> None:
    budget = Budget(0.02)
    told = list[tuple[str, int, int, int]]()
    results = attacked(budget, progress=lambda *now: told.append(now))
    assert [m.score.attack for m in results] == [
        *("clean", "aa-short.apgd-ce", "aa-short.apgd-t", "aa-short.fab-t", "aa-short.square", "aa-short")
    ]
    assert len({m.score.slug for m in results}) == len(results)
    for before, after in pairwise(results):
        assert not (after.mask & ~before.mask).any()
        assert after.score.correct == after.mask.sum()
    assert [m.score.eps for m in results] == [None] + [0.02] * 5
    given = {name: total for name, _, total, _ in told}
    left = {name: standing for name, _, _, standing in told}
    names = ["clean", *STANDARD]
    assert list(given) == names
    for name, previous, m in zip(names[1:], names, results[1:], strict=False):
        assert given[name] == left[previous]
        assert left[name] == m.score.correct
    assert [done for name, done, _, _ in told if name == "clean"] == [20, 40, 48]


def test_nothing_of_the_callers_is_moved() -> None:
    model = Scene()
    model.layers[1].train(False)
    modes = [m.training for m in model.modules()]
    data, budget = image_set(), Budget(0.02)
    ensemble = shortened(standard(budget, CLASSES), steps=3, queries=5, targets=2)
    before = torch.random.get_rng_state()
    auto_attack(model, data, budget, ensemble=ensemble, split="", which="")
    assert torch.equal(before, torch.random.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "label", "names"),
    [
        (2, "AutoAttack, 1 target, no APGD-T", ["apgd-ce", "fab-t", "square"]),
        (3, "AutoAttack, 2 targets, APGD-DLR for APGD-T", ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
        (5, "AutoAttack, 4 targets", [*STANDARD]),
        (10, "AutoAttack (standard)", [*STANDARD]),
        (100, "AutoAttack (standard)", [*STANDARD]),
    ],
)
def test_any_number_of_classes(classes: int, label: str, names: list[str]) -> None:
    budget = Budget(0.02)
    whole = standard(budget, classes)
    assert whole.label == label
    assert list(whole.attacks) == names
    if classes <= 10:
        results = auto_attack(
            Scene(classes),
            image_set(20, classes=classes),
            budget,
            ensemble=shortened(whole, steps=5, queries=20, targets=9),
            split="",
            which="",
        )
        assert 0 <= results[-1].score.accuracy < results[0].score.accuracy


def test_only_the_standard_ensemble_is_called_so() -> None:
    budget = Budget(0.02)
    whole = standard(budget, CLASSES)
    assert whole.attacks["apgd-t"] == APGD("targeted-dlr", steps=100, targets=9, restarts=1)
    assert whole.attacks["square"] == Square(queries=5000, p_init=0.8, restarts=1)
    others = [whole.only("apgd-t", "square"), shortened(whole, **LESS), rand(budget, CLASSES), standard(budget, 9)]
    assert all("standard" not in other.label for other in others)
    assert others[0].label == (
        "APGD-T (targeted DLR, 100 steps x 9 targets, random start, 1 restart), "
        "Square (margin, 5,000 queries, random start, 1 restart)"
    )
    with pytest.raises(Refused, match="attacks fab: expected one of apgd-ce, apgd-t, fab-t, square, got fab"):
        whole.only("fab")
    assert named("AA", budget, CLASSES) == whole
    assert named("aa-rand", budget, CLASSES) == rand(budget, CLASSES)
    assert named("square", budget, CLASSES) == Square()
    with pytest.raises(Refused, match="did you mean 'square'"):
        named("sqare", budget, CLASSES)
    with pytest.raises(Refused, match="two classes or more"):
        standard(budget, 1)
    with pytest.raises(Refused, match="three classes or more"):
        rand(budget, 2)


def test_the_random_ensemble_runs() -> None:
    class Noisy(Scene):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.05 * noise.normal(0, 1)

    noise, budget = np.random.default_rng(0), Budget(0.02)
    ensemble = shortened(rand(budget, CLASSES), steps=4, queries=1, targets=1)
    assert all(attack.eot == 20 for attack in ensemble.attacks.values())
    results = auto_attack(Noisy(), image_set(10), budget, ensemble=ensemble, split="", which="")
    assert results[-1].score.accuracy < results[0].score.accuracy


def test_a_twin_gives_the_same_verdicts() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), Scene()).double()
    model[2].running_var.fill_(0.3)
    model[2].running_mean.fill_(0.1)
    data, budget = image_set(model=model.eval()), Budget(0.02)
    ensemble = shortened(standard(budget, CLASSES), steps=10, queries=50, targets=2)
    plain, fast = (
        auto_attack(model, data, budget, ensemble=ensemble, split="", which="", engine=engine)
        for engine in ("plain", "fast")
    )
    assert 0 < plain[-1].score.accuracy < plain[0].score.accuracy
    assert [line(m.mask) for m in plain] == [line(m.mask) for m in fast]
    assert plain[-1].score.weights == fast[-1].score.weights
    assert plain[-1].score.engine == "itself (engine plain)"
    assert fast[-1].score.engine.startswith("a twin in float64, 1 of 2 BatchNorms folded")
    assert plain[0].score.engine == fast[0].score.engine == ""


def test_a_point_that_misleads_the_twin_alone_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scene().double()
    data, budget = image_set(model=model), Budget(0.02)
    misled = []

    class Timid(nn.Module):
        """Reads images as the network does, and everything else as it likes."""

        def __init__(self, everywhere: bool) -> None:
            super().__init__()
            self.everywhere = everywhere

        def forward(self, x: Tensor) -> Tensor:
            pictures = data.x.double() / 255
            strange = (x.flatten(1).unsqueeze(1) != pictures.flatten(1)).any(2).all(1) | self.everywhere
            misled.append(int(strange.sum()))
            return torch.where(strange.unsqueeze(1), model(x).roll(1, dims=1), model(x))

    ensemble = shortened(standard(budget, CLASSES), steps=10, queries=50, targets=2)
    every = {"ensemble": ensemble, "split": "", "which": ""}
    plain = auto_attack(model, data, budget, engine="plain", **every)
    assert 0 < plain[-1].score.accuracy < plain[0].score.accuracy
    for everywhere in (False, True):
        twin = Timid(everywhere)
        monkeypatch.setattr(Twins, "serving", lambda self, x, twin=twin: dict.fromkeys(self.nets, twin))
        fast = auto_attack(model, data, budget, **every)
        assert sum(misled) > 0
        assert [line(m.mask) for m in fast] == [line(m.mask) for m in plain]
        misled.clear()


def test_an_attack_that_cheats_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def far(self: APGD, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, **_: object) -> Tensor:
        return (x + 1.1 * budget.eps).clamp(0, 1)

    def harmless(self: APGD, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, **_: object) -> Tensor:
        return (x + 1e-9).clamp(0, 1)

    budget = Budget(0.02)
    alone = shortened(standard(budget, CLASSES), **LESS).only("apgd-ce")
    monkeypatch.setattr(APGD, "__call__", far)
    with pytest.raises(
        Refused, match=r"apgd-ce, images 0 to 19: expected an attack that stays in the ball linf 0.02, got a point"
    ):
        attacked(budget, alone)
    monkeypatch.setattr(APGD, "__call__", harmless)
    results = attacked(budget, alone)
    assert results[1].score.correct == results[0].score.correct


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_is_no_cheating(norm: str) -> None:
    """The smallest radius in use, where rounding in float32 is the largest share of it."""
    model, budget = Scene(smooth=False).float(), Budget(0.5 / 255, norm)
    ensemble = shortened(standard(budget, CLASSES), steps=5, queries=30, targets=2)
    auto_attack(model, image_set(100, model.double()), budget, ensemble=ensemble, split="", which="")
    auto_attack(model.float(), image_set(100), budget, ensemble=ensemble, split="", which="")


def test_logits_must_be_numbers() -> None:
    class Broken(Scene):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(Refused, match="clean, images 0 to 47: expected finite logits, got NaN or infinity"):
        auto_attack(Broken(), image_set(), Budget(0.02), split="", which="")


# resuming ------------------------------------------------------------------------------------------------------------
class Killed(Exception):
    """Stands for a process that dies."""


def test_killed_after_any_batch_and_resumed(tmp_path: Path) -> None:
    budget = Budget(0.02)
    whole = attacked(budget)
    told = list[tuple[str, int, int, int]]()
    attacked(budget, progress=lambda *now: told.append(now))
    for stop in range(1, len(told)):
        folder = tmp_path / str(stop)
        count = [0]

        def die(*now: object, stop: int = stop, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] == stop:
                raise Killed

        with pytest.raises(Killed):
            attacked(budget, folder=folder, progress=die)
        again = list[tuple[str, int, int, int]]()
        resumed = attacked(budget, folder=folder, progress=lambda *now, again=again: again.append(now))
        assert [line(m.mask) for m in resumed] == [line(m.mask) for m in whole]
        assert [now[0] for now in again] == [now[0] for now in told]
        assert again[-1] == told[-1]


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(0.02)
    first = attacked(budget, folder=tmp_path)

    def never(*_: object) -> Tensor:
        raise AssertionError("a batch was attacked again")

    monkeypatch.setattr(Loop, "_survivors", never)
    second = attacked(budget, folder=tmp_path)
    assert [line(m.mask) for m in second] == [line(m.mask) for m in first]
    for one, other in zip(first, second, strict=True):
        assert other.score.seconds == pytest.approx(one.score.seconds, abs=0.2)
    (file,) = tmp_path.glob("aa-short-*/fab-t.npy")
    stored = np.load(file, allow_pickle=False)
    assert stored.dtype == np.int8
    assert line(stored == journal.SURVIVED) == line(first[3].mask)


def test_verdicts_of_another_evaluation_are_not_taken(tmp_path: Path) -> None:
    attacked(Budget(0.02), folder=tmp_path)
    for count, (budget, more) in enumerate(((Budget(0.03), {}), (Budget(0.02), {"seed": 1})), 2):
        attacked(budget, folder=tmp_path, **more)
        assert len(list(tmp_path.glob("aa-short-*"))) == count
    (folder,) = tmp_path.glob("aa-short-linf-0.03000-*")
    plan = json.loads((folder / "plan.json").read_text())
    with pytest.raises(Refused, match="got verdicts with other eps; choose another folder"):
        journal.Journal(folder, {**plan, "eps": 0.02}, 48)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_autoattack import attacked
from mmard.balls import Budget

def die(name, done, total, left):
    if (name, done) == ("fab-t", 20):
        os.kill(os.getpid(), signal.SIGKILL)

attacked(Budget(0.005), folder=Path({folder!r}), progress=die)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_dash_nine(tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "aa"))
    paths = [str(Path(__file__).parents[1] / "src"), *sys.path]
    died = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert died.returncode == -9, died.stderr.decode()[-2000:]
    (folder,) = (tmp_path / "aa").glob("aa-short-*")
    assert (np.load(folder / "fab-t.npy") == journal.PENDING).any()
    assert not (folder / "square.npy").exists()
    budget = Budget(0.005)
    resumed = attacked(budget, folder=tmp_path / "aa")
    assert [line(m.mask) for m in resumed] == [line(m.mask) for m in attacked(budget)]
