"""The three levels of the Python side: names, objects of one's own, and one step in a loop of one's own."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from little import (
    BUDGET,
    CLASSES,
    FACTS,
    RECIPE,
    batches_of,
    matcher,
    net,
    picture_set,
    picture_splits,
    same,
    state,
    validation,
)
from little import run_in as new_run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mmard as package
from mmard.api import Trained, check, distill, evaluate, examine, train, training_step
from mmard.attacks import PGD
from mmard.attacks.apgd import APGD
from mmard.balls import Budget
from mmard.batch import Batch, Terms
from mmard.data import ImageSet, Splits, load
from mmard.errors import Refused
from mmard.method import Method, halves
from mmard.methods import METHODS, adaad, ard, compose, igdm, mmard, pgd_at, rslad, trades
from mmard.ops import ce
from mmard.report.training import plot
from mmard.run import Event, Run, terms_of
from mmard.training.fit import Interrupted, fit
from mmard.training.step import Step

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "steps": 2, "val_attack": "pgd-2", "schedule": "one-cycle"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to runs/ where nobody says where."""
    monkeypatch.chdir(tmp_path)


# names ----------------------------------------------------------------------------------------------------------------
def test_the_first_level_is_names(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**QUICK, "budget": 0.05, "limit_train": 300}
    teacher = train("cnn-8", data="digits", method="pgd_at", **{**settings, "epochs": 4})
    result = distill("cnn-4", teacher.run.path, data="digits", method="rslad+mmard", **settings)
    assert result.splits is not None
    scores = evaluate(result.network(), result.splits.test.take(slice(0, 60)), ["pgd-2", "cw-2"], budget=0.05)
    assert [score.attack for score in scores] == ["clean", "pgd-2", "cw-2", "worst_of_pgd-2,cw-2"]
    assert [folder.name.split("-", 1)[1] for folder in sorted(Path("runs").iterdir())] == [
        "pgd_at-cnn-8-0",
        "rslad+mmard-cnn-4-0",
    ]
    assert result.job.teacher_source.startswith(f"{teacher.run.path.name} (best, epoch ")
    # The config alone repeats the run.
    config = json.loads((result.run.path / "config.json").read_text())
    assert (config["method"], config["network"], config["eps"]) == ("rslad+mmard", "cnn-4", 0.05)
    del config["network"], config["teachers"], config["data"], config["method"]
    again = distill("cnn-4", teacher.run.path, data="digits", method="rslad+mmard", out="again", **config)
    for which in ("best", "last"):
        assert again.run.weights_file(which).read_bytes() == result.run.weights_file(which).read_bytes()


def test_the_package_offers_the_same() -> None:
    for name in ("train", "distill", "evaluate", "training_step", "Trained"):
        assert getattr(package, name) is globals()[name]


def test_a_radius_may_be_written_in_any_way() -> None:
    for budget, eps, norm in (("4/255", 4 / 255, "linf"), (0.1, 0.1, "linf"), (Budget(0.5, "l2"), 0.5, "l2")):
        found = train(net(), data=picture_splits(), budget=budget, out=f"run-{eps}", **QUICK)
        assert (found.job.step.budget.eps, found.job.step.budget.norm) == (eps, norm)
        assert (found.run.config["eps"], found.run.config["norm"]) == (eps, norm)


def test_a_radius_as_a_number_leaves_the_norm_that_was_said() -> None:
    found = train(net(), data=picture_splits(), budget=0.5, norm="l2", out="run", **QUICK)
    assert found.job.step.budget == Budget(0.5, "l2")


# objects --------------------------------------------------------------------------------------------------------------
def loaders(shuffle: bool = True) -> tuple[DataLoader[Any], DataLoader[Any]]:
    images, held_out = picture_set(40), picture_set(12, 1)
    return (
        DataLoader(TensorDataset(images.x.float() / 255, images.y), batch_size=16, shuffle=shuffle),
        DataLoader(TensorDataset(held_out.x.float() / 255, held_out.y), batch_size=5),
    )


def test_the_second_level_is_objects() -> None:
    student, teacher = net(), matcher()
    before = state(student)
    result = distill(student, teacher, data=loaders(), method="rslad+mmard", budget=BUDGET, out="run", **QUICK)
    assert result.job.student is student
    assert result.splits is None
    assert not same(state(student), before), "the object itself is trained"
    best, _ = result.run.load_weights("best")
    assert result.network() is student
    assert same(state(student), best)
    assert not student.training
    assert same(state(result.network("last")), result.run.load_weights("last")[0])
    config = result.run.config
    assert (config["network"], config["teachers"], config["data"]) == (
        "given:Sequential",
        {"T": ["given:Matcher"]},
        "given:tuple",
    )
    with pytest.raises(Refused, match="can be built by name"):
        evaluate(result.run.path, picture_set(12), ["fgsm"], budget=BUDGET)


def test_methods_are_values() -> None:
    """What is made in Python is what is trained, and its parameters are not lost on the way."""
    weights = {}
    for name, method in {
        "weak": mmard(rslad(), guide=0.0),
        "default": mmard(rslad()),
        "strong": mmard(rslad(), guide=3.0),
        "halves": halves(adaad(), igdm(ard())),
    }.items():
        result = distill(net(), matcher(), data=picture_splits(), method=method, budget=BUDGET, out=name, **QUICK)
        assert result.job.method is method
        assert result.run.config["method"] == f"given:{method.name}"
        weights[name] = result.run.weights_file("last").read_bytes()
    assert len(set(weights.values())) == len(weights)
    by_name = distill(net(), matcher(), data=picture_splits(), method="rslad+mmard", budget=BUDGET, out="name", **QUICK)
    assert by_name.run.weights_file("last").read_bytes() == weights["default"]


def test_a_method_written_here_is_trained_like_any_other() -> None:
    def outer(b: Batch) -> Terms:
        return {"mine": ce(b.S(b.adv), b.y)}

    mine = Method("mine", pgd_at().inner, outer, "this test", ("", ""), {"S": ("x_adv",)}, nets=("S",), start="uniform")
    one = train(net(), data=picture_splits(), method=mine, budget=BUDGET, out="mine", **QUICK)
    two = train(net(), data=picture_splits(), method="pgd_at", budget=BUDGET, out="theirs", **QUICK)
    assert same(state(one.network("last")), state(two.network("last")))


def test_observers_see_what_the_log_keeps() -> None:
    seen: list[Event] = []
    result = train(net(), data=picture_splits(), budget=BUDGET, out="run", observers=[seen.append], **QUICK)
    assert [event for event in seen if event["kind"] != "tick"] == result.run.log()
    assert result.position.best_epoch in (1, 2)


class Terminal(StringIO):
    """Standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_progress_is_shown_where_somebody_watches_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    images = picture_splits().test

    def seen(progress: bool, stream: StringIO, out: str) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        done = train(net(), data=picture_splits(), budget=BUDGET, out=out, progress=progress, **QUICK)
        evaluate(done.network(), images, "fgsm", budget=BUDGET, progress=progress)
        return stream.getvalue()

    shown = seen(True, Terminal(), "a")
    assert "epoch 2/2" in shown or "2/2" in shown
    assert "fgsm" in shown
    assert seen(False, Terminal(), "b") == ""
    assert seen(True, StringIO(), "c") == "", "a script whose output goes to a file is left alone"


def test_in_a_notebook_progress_is_a_line_for_every_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmard.progress.Console", lambda: SimpleNamespace(is_jupyter=True))
    train(net(), data=picture_splits(), budget=BUDGET, out="run", **QUICK)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_results_say_themselves_in_a_line_and_in_a_notebook() -> None:
    done = train(net(), data=picture_splits(), method="pgd_at", budget=BUDGET, out="a<b", **QUICK)
    best = done.position
    assert repr(done).startswith(f"pgd_at on given:Sequential: best epoch {best.best_epoch} of 2, ")
    assert "(validation); a<b" in repr(done)
    assert "<td" in done._repr_html_()
    assert "a&lt;b" in done._repr_html_()
    clean, attacked = evaluate(done.network(), picture_splits().test, "fgsm", budget=BUDGET)[:2]
    low, high = attacked.interval
    figure = f"{attacked.accuracy:.1%} [{low:.1%}, {high:.1%}]"
    assert repr(attacked) == f"<Score fgsm at {BUDGET}: {figure} of {attacked.n}, {attacked.split}, given weights>"
    assert figure in attacked._repr_html_()
    assert repr(clean).startswith("<Score clean: ")


def test_a_plot_of_a_run_shows_its_log() -> None:
    done = train(net(), data=picture_splits(), method="trades", budget=BUDGET, out="run", **QUICK)
    accuracy, loss = done.plot().axes
    epochs = [event for event in done.run.log() if event["kind"] == "epoch"]
    clean, robust = accuracy.lines
    assert list(clean.get_ydata()) == [100 * event["clean"] for event in epochs]
    assert list(robust.get_ydata()) == [100 * event["robust"] for event in epochs]
    assert list(loss.lines[0].get_ydata()) == [event["loss"] for event in epochs]
    assert len(loss.lines) == 1 + len(terms_of(epochs[-1]))
    Run.create("new", done.run.config)
    with pytest.raises(Refused, match="new: expected at least one finished epoch, got none so far"):
        plot("new")


def test_tensorboard_sees_it_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    class Board:
        def __init__(self, folder: Path) -> None:
            self.folder, self.seen = folder, list[Event]()
            boards.append(self)

        def __call__(self, event: Event) -> None:
            self.seen.append(event)

        def close(self) -> None:
            self.seen.append({"kind": "closed"})

    boards: list[Board] = []
    asked: list[bool] = []
    monkeypatch.setattr("mmard.job.TensorBoard", Board)
    monkeypatch.setattr("mmard.job.writer_class", lambda: asked.append(Path("run").exists()))
    train(net(), data=picture_splits(), budget=BUDGET, out="run", tensorboard=True, **QUICK)
    assert asked == [False], "whether it is there is asked before the folder is made"
    assert boards[0].folder == Path("run/tensorboard")
    kinds = [event["kind"] for event in boards[0].seen]
    assert (kinds[0], kinds[-2], kinds[-1]) == ("start", "epoch", "closed")


# resuming -------------------------------------------------------------------------------------------------------------
def stopping(after: int) -> Any:
    def observe(event: Event) -> None:
        if event["kind"] in ("tick", "step") and event["step"] == after:
            signal.raise_signal(signal.SIGINT)

    return observe


@pytest.mark.parametrize("given", [False, True], ids=["names", "objects"])
def test_a_run_goes_on_where_it_stopped(given: bool) -> None:
    def go(out: str, resume: bool = False, observers: Any = ()) -> Trained:
        fixed: dict[str, Any] = {} if resume else {**QUICK, "budget": BUDGET, "average": "ema", "seed": 3}
        if given:
            objects: dict[str, Any] = {"data": loaders(), "method": mmard(rslad(), beta=0.5)}
            return distill(net(), matcher(), out=out, resume=resume, observers=observers, **objects, **fixed)
        named: dict[str, Any] = {"data": picture_splits(), "method": "ard+igdm"}
        return distill("cnn-4", "little:matcher", out=out, resume=resume, observers=observers, **named, **fixed)

    whole = go("whole")
    for step in (1, 2, 3):
        with pytest.raises(Interrupted):
            go("stopped", resume=step > 1, observers=[stopping(step)])
    stopped = go("stopped", resume=True)
    assert stopped.job.settings == whole.job.settings
    for which in ("best", "last"):
        assert stopped.run.weights_file(which).read_bytes() == whole.run.weights_file(which).read_bytes()


def test_a_run_that_goes_on_keeps_its_settings() -> None:
    train("cnn-4", data=picture_splits(), budget=BUDGET, out="run", **QUICK)
    found = train("cnn-8", data=picture_splits(), out="run", resume=True, budget=0.3, method="trades")
    assert found.job.method.name == "pgd_at"
    assert (found.job.recipe.epochs, found.job.step.budget) == (2, BUDGET)
    assert found.position.finished


def test_a_run_is_lengthened_by_name_and_by_nothing_else() -> None:
    train("cnn-4", data=picture_splits(), budget=BUDGET, out="run", **QUICK)
    state = Run.open("run").load_state()
    with pytest.raises(Refused, match="run, --epochs: expected more than its 2, got 1"):
        train("cnn-4", data=picture_splits(), out="run", resume=True, epochs=1)
    found = train("cnn-4", data=picture_splits(), out="run", resume=True, epochs=4)
    assert (found.position.epoch, found.run.config["epochs"]) == (4, 4)
    notes = [event["text"] for event in found.run.log() if event["kind"] == "note"]
    assert notes == ["4 epochs instead of 2: after epoch 2 as a run of 4 has it, lr 0.0536"]
    assert [event["epoch"] for event in found.run.log() if event["kind"] == "epoch"] == [1, 2, 3, 4]
    # An edit by hand is no such name.
    found.run.save_state(*state)
    with pytest.raises(
        Refused, match="setting epochs 4 where it was 2; a run is lengthened by --resume RUN --epochs N"
    ):
        train("cnn-4", data=picture_splits(), out="run", resume=True)


def other_splits() -> Splits:
    splits = picture_splits()
    return replace(splits, train=replace(splits.train, y=splits.train.y.flip(0)))


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "teacher": ({"teacher": matcher(picture_set(40, 5))}, r"teacher T \w{12} where it was \w{12}; put it back"),
    "data": ({"data": other_splits()}, r"training images \w{12} where it was \w{12}"),
    "settings": ({"lr": 0.2, "val_attack": "pgd-1"}, "setting lr 0.2 where it was 0.1; setting val_attack pgd-1"),
    "parameters": ({"params": {"rslad.alpha": 0.5}}, "setting rslad.alpha 0.5 where it was 0.8"),
}


@pytest.mark.parametrize(("change", "says"), CHANGED.values(), ids=CHANGED)
def test_a_run_does_not_go_on_where_its_ground_has_moved(change: dict[str, Any], says: str) -> None:
    def go(data: Splits, teacher: nn.Module, **more: Any) -> Trained:
        return distill(net(), teacher, data=data, method="rslad", out="run", **more)

    given: dict[str, Any] = {"data": picture_splits(), "teacher": matcher()}
    with pytest.raises(Interrupted):
        go(**given, budget=BUDGET, observers=[stopping(2)], **QUICK)
    config = Run.open("run").config
    edited = {k: v for k, v in change.items() if k not in given}
    edited["params"] = config["params"] | edited.get("params", {})
    Run.open("run").write_config(config | edited)
    with pytest.raises(Refused, match=f"run: expected what this run began with, got {says}"):
        go(**{**given, **{k: v for k, v in change.items() if k in given}}, resume=True)
    Run.open("run").write_config(config | {"save_seconds": 5.0, "data_dir": "elsewhere", "threads": 1})
    assert go(**given, resume=True).position.finished


def test_methods_and_loaders_from_python_are_ground_as_well() -> None:
    images = picture_set(40)
    pairs = [(images.x.float() / 255, y) for y in (images.y, images.y.flip(0))]

    def go(alpha: float, train: Any, **more: Any) -> Trained:
        loaders = (DataLoader(TensorDataset(*train), batch_size=16, shuffle=True), pairs[0])
        return distill(net(), matcher(), data=loaders, method=rslad(alpha=alpha), out="run", **more)

    with pytest.raises(Interrupted):
        go(0.5, pairs[0], budget=BUDGET, observers=[stopping(2)], **QUICK)
    with pytest.raises(Refused, match=r"run: expected what this run began with, got the method's code \w{12} where it"):
        go(0.6, pairs[0], resume=True)
    with pytest.raises(Refused, match=r"got training loader's first batch \w{12} where it was \w{12}; put it back"):
        go(0.5, pairs[1], resume=True)
    assert go(0.5, pairs[0], resume=True).position.finished


def test_a_run_from_before_it_said_what_it_was_made_from_goes_on_with_a_note() -> None:
    with pytest.raises(Interrupted):
        train("cnn-4", data=picture_splits(), budget=BUDGET, out="run", observers=[stopping(2)], **QUICK)
    run = Run.open("run")
    tensors, facts = run.load_state()
    del facts["made_from"]
    run.save_state(tensors, facts)
    run.write_config(run.config | {"lr": 0.2})
    assert train("cnn-4", data=picture_splits(), out="run", resume=True).position.finished
    assert ["not compared" in event["text"] for event in run.log() if event["kind"] == "note"] == [True]
    assert "made_from" in run.load_state()[1]


def test_a_finished_run_without_its_state_is_not_trained_again() -> None:
    done = train("cnn-4", data=picture_splits(), budget=BUDGET, out="run", **QUICK)
    before = done.run.weights_file("last").read_bytes()
    (done.run.path / "state.safetensors").unlink()
    for epochs in (2, 4):
        with pytest.raises(Refused, match=r"got its weights alone, state\.safetensors is gone"):
            train("cnn-4", data=picture_splits(), out="run", resume=True, epochs=epochs)
    assert done.run.weights_file("last").read_bytes() == before
    assert done.run.config["epochs"] == 2


def test_what_cannot_go_on_is_refused() -> None:
    with pytest.raises(Refused, match="resume: expected the folder of a run as `out`, got none"):
        train("cnn-4", data=picture_splits(), resume=True)
    with pytest.raises(Refused, match="absent: expected a run folder, got no such folder"):
        train("cnn-4", data=picture_splits(), out="absent", resume=True)
    train(net(), data=picture_splits(), budget=BUDGET, out="run", **QUICK)
    with pytest.raises(Refused, match="expected a new folder, got one that holds a run"):
        train("cnn-4", data=picture_splits(), out="run")
    with pytest.raises(Refused, match="setting model: expected the object itself, got given:Sequential"):
        train("cnn-4", data=picture_splits(), out="run", resume=True)
    with pytest.raises(Refused, match="setting data: expected the object itself, got given:Splits"):
        train(net(), data="digits", out="run", resume=True)
    with pytest.raises(Refused, match="run: expected a run of mmard distill, got one of mmard train"):
        distill(net(), matcher(), data=picture_splits(), out="run", resume=True)


# one step -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", ["pgd_at", "trades", "rslad+mmard", "adaad+igdm", "iad_i", "kd"])
def test_the_third_level_is_one_step_and_equals_the_trainers(spec: str, tmp_path: Path) -> None:
    """A loop of one's own, with one's own optimiser, makes the same weights to the bit."""
    trained, mine, teacher = net(), net(), matcher()
    method = compose(spec)
    nets = {"S": trained, "T": teacher}
    fit(
        Step(method, nets, PGD(3, BUDGET.eps / 4, method.start), BUDGET, seed=5),
        batches_of(),
        RECIPE,
        new_run(tmp_path / "run"),
        validation,
        facts=FACTS,
    )

    step = training_step(mine, teacher, method=spec, budget=BUDGET, steps=3, seed=5)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = batches_of()
    for epoch in range(RECIPE.epochs):
        for number, (x, y) in enumerate(batches.epoch(epoch)):
            optimizer.param_groups[0]["lr"] = RECIPE.lr_at(epoch, number, batches.steps)
            loss, terms = step(x, y, progress=(epoch + 1) / RECIPE.epochs)
            assert loss.item() == pytest.approx(sum(term.mean().item() for term in terms.values()), rel=1e-5)
            assert all(term.shape == y.shape for term in terms.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert same(state(mine), state(trained))


def test_a_step_takes_its_attack_from_what_is_said() -> None:
    step: Any = training_step(net(), matcher(), method=trades(), budget="8/255")
    assert (step.attack.steps, step.attack.step_size, step.attack.start) == (10, 2 / 255, "gaussian")
    step = training_step(net(), matcher(), method=rslad(), budget=0.1, steps=3, step_size="1/255")
    assert (step.attack.steps, step.attack.step_size) == (3, 1 / 255)
    with pytest.raises(Refused, match="are eps and step_size swapped"):
        training_step(net(), matcher(), budget="2/255", step_size="8/255")
    with pytest.raises(Refused, match=r"expected the networks S, T, got no T; give a teacher"):
        training_step(net(), method="rslad", budget=0.1)
    with pytest.raises(Refused, match="did you mean 8/255"):
        training_step(net(), matcher(), budget=8)


def test_a_method_without_a_teacher_needs_none() -> None:
    loss, terms = training_step(net(), method="pgd_at", budget=0.1)(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))
    assert list(terms) == ["adv"]
    loss.backward()


# evaluation -----------------------------------------------------------------------------------------------------------
def test_evaluation_takes_a_module_a_run_or_a_file() -> None:
    found = train("cnn-4", data=picture_splits(), budget=BUDGET, out="run", **QUICK)
    images = picture_set(30, 4)
    module = evaluate(found.network(), images, ["fgsm", "pgd-2"], budget=BUDGET)
    for model in (found.run.path, "run", "run/best.safetensors"):
        scores = evaluate(model, images, "fgsm,pgd-2", budget=BUDGET)
        assert [s.correct for s in scores] == [s.correct for s in module]
        assert [s.weights for s in scores] == [s.weights for s in module]
    with pytest.raises(Refused, match="expected 10 classes"):
        evaluate("run", load("digits").test, ["fgsm"], budget=BUDGET)
    with pytest.raises(Refused, match="attack 'fsgm'"):
        evaluate(found.network(), images, "fsgm", budget=BUDGET)


def test_autoattack_goes_on_in_a_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = train("cnn-4", data=picture_splits(), budget=BUDGET, out="run", **QUICK)
    images = picture_set(30, 4)
    module = evaluate(found.network(), images, "fgsm,apgd-ce", budget=BUDGET)
    assert [score.attack for score in module] == ["clean", "fgsm", "apgd-ce", "worst_of_fgsm,apgd-ce"]
    assert not found.run.scores.exists()
    first = evaluate("run", images, "apgd-ce", budget=BUDGET)
    assert [score.correct for score in first] == [module[0].correct, module[2].correct]

    def again(*_: object, **__: object) -> None:
        raise AssertionError("attacked again")

    monkeypatch.setattr(APGD, "__call__", again)
    assert [score.correct for score in evaluate("run", images, "apgd-ce", budget=BUDGET)] == [s.correct for s in first]
    assert found.run.score_records() == []


def test_a_seed_and_a_batch_size_are_in_the_record() -> None:
    scores = evaluate(matcher(), picture_set(30), ["pgd-2"], budget=0.1, seed=8, batch_size=7)
    assert {(s.seed, s.batch_size, s.n) for s in scores} == {(8, 7, 30)}


# everything in the catalogue ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_trained_by_name(name: str) -> None:
    given: dict[str, Any] = {
        "data": picture_splits(),
        "method": name,
        "budget": BUDGET,
        "out": "run",
        **QUICK,
        "epochs": 1,
    }
    teachers = {letter: matcher() for letter in compose(name).teachers}
    found = distill("cnn-4", teachers, **given) if teachers else train("cnn-4", **given)
    assert found.position.step == 3
    (epoch,) = [event for event in found.run.log() if event["kind"] == "epoch"]
    assert np.isfinite([value for key, value in epoch.items() if key not in ("kind", "best")]).all()
    assert Run.open("run").load_weights("best")[1]["num_classes"] == CLASSES
    assert isinstance(found.network(), nn.Module)


# every entry ----------------------------------------------------------------------------------------------------------
class Around(nn.Module):
    """A network whose logits go through a function."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, x: torch.Tensor) -> Any:
        return self.change(self.net(x))


ENTRIES: dict[str, Any] = {
    "evaluate": lambda m, images: evaluate(m, images, "fgsm", budget=BUDGET),
    "evaluate, made on it": lambda m, images: evaluate(matcher(), images, "fgsm", budget=BUDGET, made_on=m),
    "check": lambda m, images: check(m, images, budget=BUDGET),
    "examine": lambda m, images: examine(m, images, "fgsm", budget=BUDGET, also="classes"),
    "train": lambda m, images: train(m, data=(images, images), budget=BUDGET, **QUICK),
    "distill": lambda m, images: distill(net(), m, data=(images, images), budget=BUDGET, **QUICK),
    "training_step": lambda m, images: training_step(m, matcher(), budget=BUDGET)(images.x[:8] / 255, images.y[:8]),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_probes_its_network(entry: str) -> None:
    for change, words in (
        (lambda z: (z, z), "return the logits alone"),
        (lambda z: z[:, :, None].squeeze(), "for one image; keep the first axis"),
        (lambda z: z[:, :1], "expected logits"),
        (lambda z: z.double(), "float32 logits"),
    ):
        with pytest.raises(Refused, match=words):
            ENTRIES[entry](Around(change), picture_set(24))
    with torch.inference_mode():
        made = net()
    with pytest.raises(Refused, match=r"made outside torch\.inference_mode"):
        ENTRIES[entry](made, picture_set(24))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_decides_nothing(mode: Any, tmp_path: Path) -> None:
    x, y = picture_set(24).x.float() / 255, picture_set(24).y
    first, _ = training_step(net(), matcher(), budget=BUDGET)(x, y)
    figures = [s.correct for s in evaluate(matcher(), picture_set(24), "pgd-3", budget=BUDGET)]
    signs = [(f.check, f.verdict) for f in check(matcher(), picture_set(24), budget=BUDGET)]
    student, step = net(), training_step(net(), matcher(), budget=BUDGET)
    with mode():
        images = ImageSet(picture_set(24).x.clone(), picture_set(24).y.clone(), tuple("abc"), "made there")
        assert [s.correct for s in evaluate(matcher_outside, images, "pgd-3", budget=BUDGET)] == figures
        assert [(f.check, f.verdict) for f in check(matcher_outside, images, budget=BUDGET)] == signs
        loss, _ = step(x.clone(), y.clone())
        done = train(student, data=(images, images), budget=BUDGET, out=tmp_path / "r", **QUICK)
    loss.backward()
    assert torch.equal(loss.detach(), first.detach())
    assert done.position.finished


matcher_outside = matcher()


def test_sets_loaders_and_tensors_are_the_same_images(tmp_path: Path) -> None:
    images = picture_set(30, 4)
    pair = (images.x.float() / 255, images.y)
    forms: list[Any] = [images, pair, (images.x, images.y.int()), DataLoader(TensorDataset(*pair), batch_size=7)]
    figures = [[s.correct for s in evaluate(matcher(), form, "fgsm", budget=BUDGET)] for form in forms]
    assert figures == figures[:1] * 4
    one = train(net(), data=(images, pair), budget=BUDGET, out=str(tmp_path / "a"), **QUICK)
    assert one.position.finished
    # The last class has no image here, and the network an output for it.
    first = images.y < 2
    assert [s.n for s in evaluate(matcher(), (pair[0][first], pair[1][first]), "fgsm", budget=BUDGET)] == [20, 20]
    with pytest.raises(Refused, match=r"images: expected images in \[0, 1\].*max 25\d"):
        evaluate(matcher(), (pair[0] * 255, pair[1]), "fgsm", budget=BUDGET)
    with pytest.raises(Refused, match=r"network: expected logits \(B, 4\)"):
        evaluate(matcher(), (pair[0], pair[1] + 1), "fgsm", budget=BUDGET)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: evaluate(matcher(), picture_set(9), "fgsm", budget=BUDGET, batch_size=0), "batch_size: .*got 0"),
        (lambda: evaluate(matcher(), picture_set(9), "fgsm", budget=BUDGET, batch_size=True), "batch_size: .*got True"),
        (lambda: evaluate(matcher(), picture_set(9), "fgsm", budget=BUDGET, processes=-1), "processes: .*1 or more"),
        (lambda: evaluate(matcher(), picture_set(9), "fgsm", budget=BUDGET, seed=0.5), "seed: expected a whole number"),
        (lambda: evaluate(matcher(), picture_set(9), "fgsm", budget=BUDGET, engine="quick"), "engine 'quick'"),
        (lambda: check(matcher(), picture_set(9), budget=BUDGET, batch_size=-1), "batch_size: .*got -1"),
        (lambda: examine(matcher(), picture_set(9), "fgsm", budget=BUDGET, batch_size=0), "batch_size"),
        (lambda: evaluate(nn.Linear, picture_set(9), "fgsm", budget=BUDGET), "got a type; make one: it is a class"),
        (lambda: train(None, data="digits"), "model: expected a module, a name or a path, got a NoneType"),
        (lambda: train("cnn-4", data="digits", method=pgd_at), r"method: expected a name or a Method.*call it"),
        (lambda: distill("cnn-4", [net()], data="digits"), "teacher T: expected a module.*got a list"),
        (lambda: training_step(net(), matcher(), budget=BUDGET, steps=0), "steps: expected a whole number, 1 or more"),
        (lambda: training_step(net(), "runs/t", budget=BUDGET), "network T: expected a module, got a str"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_one_line(call: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        call()


@pytest.mark.parametrize(
    ("y", "progress", "words"),
    [
        (torch.tensor([0, 1, 2, 3]), 1.0, "labels in 0..2, of 3 classes, got label 3 at image 3"),
        (torch.tensor([0, 1, -100, 2]), 1.0, "label -100 at image 2"),
        (torch.tensor([0, 1, 2, 0]), 1.5, r"progress in \[0, 1\], got 1.5"),
        (torch.tensor([0, 1, 2, 0]), float("nan"), r"progress in \[0, 1\]"),
    ],
)
def test_a_step_of_ones_own_knows_the_classes(y: torch.Tensor, progress: float, words: str) -> None:
    with pytest.raises(Refused, match=words):
        training_step(net(), method="pgd_at", budget=0.1)(torch.rand(4, 1, 4, 4), y, progress)


def test_an_evaluation_keeps_its_records_if_told_to(tmp_path: Path) -> None:
    evaluate(matcher(), picture_set(9), "fgsm,pgd-2", budget=BUDGET, out=str(tmp_path / "kept"))
    records = Run(tmp_path / "kept").score_records()
    assert sorted(r["attack"] for r in records) == ["clean", "fgsm", "pgd-2", "worst_of_fgsm,pgd-2"]
    evaluate(matcher(), picture_set(9), "fgsm", budget=BUDGET, made_on=net(), out=tmp_path / "kept")
    assert len(Run(tmp_path / "kept").score_records()) > len(records)
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"file: expected a folder to write to, got File exists"):
        evaluate(matcher(), picture_set(9), "fgsm", budget=BUDGET, out=tmp_path / "file")
