"""A training put together from settings: what is wrong is told before anything is written, bad teachers are seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import (
    BUDGET,
    CLASSES,
    SHAPE,
    Matcher,
    Wrapped,
    matcher,
    net,
    picture_set,
    picture_splits,
    same,
    state,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mmard.api import distill, train
from mmard.data import ImageSet, Splits
from mmard.data.batches import LoaderBatches, SetBatches
from mmard.errors import Refused
from mmard.evaluation.evaluate import Measured, measure
from mmard.files import tensors_hash
from mmard.job import default_out, prepare
from mmard.methods import mmard, pgd_at, rslad
from mmard.models import Normalised
from mmard.networks import network_facts, pick_device
from mmard.run import Run
from mmard.settings import Settings
from mmard.training.recipe import Recipe

QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "steps": 2,
    "budget": BUDGET,
    "val_attack": "pgd-2",
    "schedule": "cosine",
}


def settled(**said: Any) -> Settings:
    return Settings.resolve({"model": "cnn-4", "data": "digits", "limit_train": 96, **said})


def distilling(**said: Any) -> Settings:
    return Settings.resolve(
        {"student": "cnn-4", "teacher": "little:digits_matcher", "data": "digits", "limit_train": 96, **said}
    )


def loaders(images: ImageSet, validation: ImageSet) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, val = (
        DataLoader(TensorDataset(part.x.float() / 255, part.y), batch_size=16, shuffle=part is images)
        for part in (images, validation)
    )
    return train, val


# what is put together -------------------------------------------------------------------------------------------------
def test_names_become_a_training() -> None:
    job = prepare(settled(method="trades", eps="0.1", step_size=0.03, steps=4, batch_size=32, seed=3, lr=0.2))
    assert job.method.name == job.step.method.name == "trades"
    assert (job.step.budget.eps, job.step.attack.steps, job.step.attack.step_size) == (0.1, 4, 0.03)  # type: ignore[attr-defined]
    assert job.step.attack.start == "gaussian"  # type: ignore[attr-defined]
    assert job.step.seed == 3
    assert job.recipe == Recipe(epochs=40, lr=0.2, schedule="one-cycle", best_by="robust")
    assert isinstance(job.batches, SetBatches)
    assert job.batches.steps == 3
    assert job.splits is not None
    assert job.validation is job.splits.val
    assert (len(job.splits.train), len(job.splits.val), len(job.splits.test)) == (96, 130, 500)
    assert job.facts == network_facts("cnn-4", job.student, job.splits.train)
    assert job.notes == []
    assert same(state(job.student), state(prepare(settled(seed=3)).student)), "the seed decides the weights"
    assert not same(state(job.student), state(prepare(settled(seed=4)).student))


def test_a_step_is_a_quarter_of_the_radius_and_the_start_is_the_methods() -> None:
    for method, start in (("pgd_at", "uniform"), ("trades", "gaussian")):
        attack: Any = prepare(settled(method=method, eps=0.2)).step.attack
        assert (attack.step_size, attack.start) == (0.05, start)
    attack = prepare(settled(start="none")).step.attack
    assert attack.start == "none"


def test_a_teacher_by_name_passes_the_gate_and_is_noted() -> None:
    job = prepare(distilling(method="rslad"))
    assert job.teacher_source == "little:digits_matcher"
    assert len(job.notes) == 1
    accuracy = (job.step.nets["T"](job.validation.x.float() / 255).argmax(1) == job.validation.y).float().mean().item()
    assert job.notes[0].startswith(f"teacher little:digits_matcher: {accuracy:.1%} clean, ")
    assert job.notes[0].endswith("under FGSM at linf 0.15, 130 validation images")


def test_a_standardising_network_takes_its_numbers_from_the_training_images() -> None:
    job = prepare(settled(normalise="data"))
    assert isinstance(job.student, Normalised)
    assert job.splits is not None
    mean, _ = job.splits.train.channel_statistics()
    assert job.student.mean.flatten().tolist() == pytest.approx(mean)
    assert job.facts["normalised"] is True


def test_a_training_begins_from_the_weights_of_a_run_or_a_file(tmp_path: Path) -> None:
    """The network, the normalisation inside it and the words on where they are from; a fresh one is another."""
    old = natural(tmp_path / "run", normalise="data")
    held, _ = Run.open(old).load_weights("best")
    for init in (old, old / "best.safetensors"):
        job = prepare(settled(init=str(init), seed=5))
        assert same(state(job.student), held)
        assert isinstance(job.student, Normalised)
        assert job.student.training
        assert all(weight.requires_grad for weight in job.student.parameters())
        assert job.notes[0].startswith("begins from ")
        assert job.made_from["weights to begin from"] == tensors_hash(held)
    assert not same(state(prepare(settled(normalise="data", seed=5)).student), held)
    foreign = tmp_path / "theirs.pt"
    assert isinstance(job.student, Normalised)
    torch.save(state(job.student.net), foreign)
    assert same(state(prepare(settled(init=str(foreign))).student), torch.load(foreign, weights_only=True))


def natural(out: Path, **said: Any) -> Path:
    said = {"method": "natural", "epochs": 1, "limit_train": 96, "threads": 1, **said}
    train("cnn-4", data="digits", out=out, **said)
    return out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"model": "cnn-2"}, "init .*run: expected cnn-2, got cnn-4; train it as cnn-4"),
        ({"init": "nothing/here"}, "nothing/here"),
        ({"network": "cnn-2", "init": "{run}/best.safetensors"}, "expected .* got"),
    ],
)
def test_weights_of_another_network_begin_nothing(said: dict[str, str], words: str, tmp_path: Path) -> None:
    old = natural(tmp_path / "run")
    said = {"init": str(old), **{name: text.format(run=old) for name, text in said.items()}}
    with pytest.raises(Refused, match=words):
        prepare(Settings.resolve({"model": "cnn-4", "data": "digits", "limit_train": 96, **said}))
    with pytest.raises(Refused, match="init: expected none beside a network that is handed over"):
        prepare(settled(init=str(old)), student=net())


def test_objects_stand_in_for_names() -> None:
    student, teacher, splits, method = net(), matcher(), picture_splits(), mmard(rslad(), guide=0.7)
    settings = Settings.resolve({"student": "given:Sequential", "teacher": "given:Matcher", "batch_size": 8})
    job = prepare(settings, student=student, teacher=teacher, data=splits, method=method)
    assert job.student is student
    assert job.step.nets["T"] is teacher
    assert job.splits is splits
    assert job.method is method
    assert job.facts["network"] == "given:Sequential"
    assert job.teacher_source == "given:Matcher"
    assert "given:Matcher: 100.0% clean" in job.notes[0]


def test_loaders_stand_in_for_data() -> None:
    images, validation = picture_set(40), picture_set(12, 1)
    job = prepare(settled(), student=net(), data=loaders(images, validation))
    assert isinstance(job.batches, LoaderBatches)
    assert job.splits is None
    assert torch.equal(job.validation.x, validation.x)
    assert torch.equal(job.validation.y, validation.y)


def test_a_validation_loader_may_lack_the_last_class() -> None:
    validation = picture_set(12, 1)
    job = prepare(
        settled(), student=net(), data=loaders(picture_set(40), validation.take((validation.y < 2).nonzero()[:, 0]))
    )
    assert job.validation.num_classes == job.facts["num_classes"] == CLASSES
    assert job.validation.y.max() == 1


def test_a_training_loader_without_a_batch_is_refused() -> None:
    images = picture_set(10)
    theirs: DataLoader[Any] = DataLoader(TensorDataset(images.x / 255, images.y), batch_size=16, drop_last=True)
    words = "training loader: expected at least one batch, got none; with drop_last"
    with pytest.raises(Refused, match=words):
        prepare(settled(), student=net(), data=(theirs, loaders(images, images)[1]))


def test_threads_are_set_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    prepare(settled(threads=0))
    prepare(settled(threads=2))
    assert asked == [2]


def test_a_folder_is_named_after_what_is_in_it() -> None:
    settings = distilling(student="package.module:net", seed=7)
    name = default_out(settings, "rslad+mmard")
    assert name.startswith("runs/2")
    assert name.endswith("-rslad+mmard-package.module-net-7")


class Guarded(ImageSet):
    """A set of images that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("x", "y", "take", "_chunks") and self.__dict__.get("guarded"):
            raise AssertionError(f"the test images were looked at: {name}")
        return super().__getattribute__(name)


def test_training_and_selection_never_look_at_the_test_images(tmp_path: Path) -> None:
    splits = picture_splits()
    test = Guarded(splits.test.x, splits.test.y, splits.test.classes, splits.test.origin)
    splits = Splits(splits.train, splits.val, test)
    test.__dict__["guarded"] = True
    with pytest.raises(AssertionError, match="were looked at"):
        _ = test.x
    for number, average in enumerate(("none", "swa")):
        found = distill(
            net(),
            matcher(),
            data=splits,
            method="rslad",
            out=tmp_path / str(number),
            average=average,
            normalise="data",
            **QUICK,
        )
        assert found.position.finished
        job = found.job
        assert job.validate(found.network("best"))[:2] == (found.position.best_clean, found.position.best_robust)


ENOUGH = Splits(picture_set(40, 0, "train"), picture_set(60, 1), picture_set(12, 2))
"""With as many validation images as it takes to tell a teacher that guesses."""


# the gate -------------------------------------------------------------------------------------------------------------
def gate(teacher: nn.Module, splits: Splits | None = None, data: Any = None) -> str:
    job = prepare(
        Settings.resolve({"teacher": "given:T", "student": "given:S", "method": "rslad", "batch_size": 8}),
        student=net(),
        teacher=teacher,
        data=data or splits or picture_splits(),
    )
    return job.notes[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_random_teacher_is_refused(seed: int) -> None:
    splits = Splits(picture_set(40), picture_set(120, 1), picture_set(12, 2))
    words = (
        r"teacher given:Sequential: expected a clean accuracy over classes above 46\.2%, which is guessing "
        r"\(33\.3%\) and three standard deviations of it on 120 validation images, got [\d.]+%; are these its "
        r"weights, and does it take images in \[0, 1\]\? --no-teacher-gate goes on regardless"
    )
    with pytest.raises(Refused, match=words):
        gate(net(seed), splits)


def test_a_teacher_for_other_inputs_is_refused() -> None:
    """One that standardises what has been standardised already, or takes levels up to 255."""

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = matcher()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x / 255)

    with pytest.raises(Refused, match="which is guessing"):
        gate(Levels(), ENOUGH)


def imbalanced(n: int = 200) -> ImageSet:
    """Nine of ten images are of the first class."""
    images = picture_set(3 * n, 1)
    order = torch.cat([torch.arange(0, 3 * n, 3), torch.arange(1, n // 3, 3), torch.arange(2, n // 3, 3)])
    return images.take(order)


def test_always_saying_the_largest_class_is_guessing() -> None:
    splits = Splits(picture_set(40), imbalanced(), picture_set(12, 2))
    constant = matcher()
    constant[1].weight.data.zero_()
    constant[1].bias.data = torch.tensor([2.0, 0.0, 0.0])
    with pytest.raises(Refused, match=r"guessing \(33\.3%\).*got 33\.3%"):
        gate(constant, splits)
    assert "clean" in gate(matcher(), splits)


@pytest.mark.parametrize("n", [6, 700])
def test_a_loader_that_is_sorted_by_class_is_no_reason_to_refuse(n: int) -> None:
    validation = picture_set(n, 1)
    validation = validation.take(validation.y.argsort())
    note = gate(matcher(), data=loaders(picture_set(40), validation))
    assert note.endswith(f"{min(n, 500)} validation images")


def test_a_single_class_says_nothing_about_a_teacher() -> None:
    validation = picture_set(30, 1)
    splits = Splits(picture_set(40), validation.take((validation.y == 2).nonzero()[:, 0]), picture_set(12, 2))
    assert "10 validation images" in gate(matcher(), splits)


def test_a_teacher_without_weights_of_its_own_may_teach() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return matcher()(x)

    assert "100.0% clean" in gate(Fixed())


@pytest.mark.parametrize(("standing", "warned"), [(12, False), (5, False), (4, True), (0, True)])
def test_a_teacher_that_hardly_holds_is_told(standing: int, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of twelve images are read rightly without an attack; half of them is enough."""

    def stub(*arguments: Any, **named: Any) -> list[Measured]:
        found = measure(*arguments, **named)
        return [
            Measured(replace(each.score, correct=right), np.arange(12) < right)
            for each, right in zip(found, (10, standing), strict=True)
        ]

    monkeypatch.setattr("mmard.gate.measure", stub)
    words = "12 validation images; it hardly holds under attack itself: guidance by such a teacher can hurt"
    assert (words in gate(matcher())) == warned


# refusals -------------------------------------------------------------------------------------------------------------
def wide(n: int = 10) -> nn.Module:
    """A teacher of more classes than there are."""
    return Matcher(torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0)))


DISTILLING: tuple[tuple[dict[str, Any], str], ...] = (
    ({"method": "trades"}, "method trades: expected one that reads a teacher, got one without; use mmard train"),
    ({"method": "rlsad"}, "did you mean 'rslad'"),
    ({"method": "rslad+mmmard"}, "plug-in 'mmmard'.*did you mean 'mmard'"),
    ({"method": "mmard"}, "expected a method first"),
    ({"inner": "kd"}, "expected a method that makes adversarial examples"),
    ({"outer": "nothing"}, "method 'nothing'"),
    ({"params": {"mmard.giude": 0.5}}, r"parameter 'mmard\.giude'.*did you mean 'mmard\.guide'"),
    ({"params": {"mmard.guide": "much"}}, r"parameter mmard\.guide: expected a float"),
    ({"student": "resent18"}, "network 'resent18'.*did you mean 'resnet18'"),
    ({"student": "little:absent"}, "no such name there"),
    ({"teacher": "cnn-4"}, "teacher cnn-4: expected a trained network, got a name without weights"),
    ({"teacher": "runs/absent"}, "teacher runs/absent: expected a run folder or a file, got no such path"),
    ({"teacher": "little:plain_net"}, "which is guessing"),
    ({"teacher_which": "latest"}, "setting teacher_which: expected .*'best' or 'last'"),
    ({"budget": 8}, r"Budget\(eps=8\): expected eps in \(0, 1\], got 8; .*did you mean 8/255\?"),
    ({"budget": "8/225x"}, "a number or a fraction such as 8/255"),
    ({"budget": 0.0}, "eps"),
    ({"eps": 8, "budget": None}, "did you mean 8/255"),
    ({"eps": 0.2, "budget": 0.1}, "budget: expected the ball in one place, got budget and eps; leave one out"),
    ({"norm": "l2", "budget": BUDGET}, "budget: expected the ball in one place, got budget and norm"),
    ({"norm": "l3", "budget": 0.1}, "setting norm: expected .*'linf', 'l2' or 'l1', got 'l3'"),
    ({"step_size": "9/255", "budget": "4/255"}, "are eps and step_size swapped"),
    ({"step_size": 0}, r"PGD\(step_size=0\): expected a positive step"),
    ({"steps": 0}, r"PGD\(steps=0\): expected at least 1"),
    ({"start": "middle"}, "start 'middle': expected one of"),
    ({"val_attack": "pdg-10"}, "attack 'pdg-10'.*did you mean 'pgd-10'"),
    ({"val_attack": "pgd"}, "expected the number of steps"),
    ({"schedule": "linear"}, "schedule 'linear': expected one of"),
    ({"average": "sma"}, "average 'sma'"),
    ({"epochs": 0}, "epochs: expected at least 1"),
    ({"lr": -1}, "lr: expected a positive rate"),
    ({"milestones": [5, 3], "schedule": "step"}, "milestones: expected rising"),
    ({"batch_size": 41}, "batch_size: expected 1 to 40, the images in train, got 41"),
    ({"batch_size": 0}, "batch_size: expected 1 to 40"),
    ({"augment": "mixup"}, "augmentation 'mixup': expected one of auto"),
    ({"device": "tpu"}, "device 'tpu': expected one of auto, cpu, cuda"),
    ({"device": "mps"}, "device 'mps': expected one of"),
    ({"preset": "oficial"}, "preset 'oficial'"),
    ({"preset": "replica"}, "preset replica: expected a method of ard, iad_i"),
    ({"epoch": 3}, "did you mean 'epochs'"),
    ({"data": "cifar11"}, "data 'cifar11'.*did you mean 'cifar10'"),
    ({"data": "cifar10"}, "expected the folder that holds it, got none"),
    ({"data": [1, 2]}, "data: expected a name, Splits, or a tuple of a training and a validation loader, got a list"),
    ({"data": (1, 2, 3)}, "got a tuple"),
    ({"method": rslad(), "params": {"mmard.guide": 1}}, "setting params: expected nothing beside a Method"),
    ({"method": rslad(), "inner": "ard"}, "setting inner: expected nothing beside a Method, got ard"),
    ({"method": rslad(), "preset": "official"}, "preset official: expected a method of"),
    ({"method": pgd_at()}, "method pgd_at: expected one that reads a teacher"),
    ({"teacher": wide()}, r"teacher: expected logits \(B, 3\), got \(2, 10\); is this network for CIFAR-10 or SVHN"),
    ({"student": wide(100)}, r"student: expected logits \(B, 3\), got \(2, 100\); is this network for CIFAR-100"),
    ({"student": nn.Sequential(net(), nn.Softmax(1))}, "student: expected logits, got softmax outputs"),
    ({"teacher": nn.Sequential(matcher(), nn.Softmax(1))}, "teacher: expected logits, got softmax outputs"),
    ({"student": nn.Sequential(nn.Flatten(), nn.Linear(784, 3))}, r"expected a network for images \(1, 4, 4\)"),
    ({"teacher": net(5)}, "teacher given:Sequential: .*which is guessing"),
)  # fmt: skip

TRAINING: tuple[tuple[dict[str, Any], str], ...] = (
    ({"method": "rslad"}, "method rslad: expected one without a teacher, got one that reads T; use mmard distill"),
    ({"method": "trades+mmard"}, r"method trades\+mmard: expected one without a teacher"),
    ({"method": rslad()}, "method rslad: expected one without a teacher"),
    ({"model": "cnn"}, "expected cnn-<width>"),
    ({"teacher": "runs/t"}, "train: expected a run of mmard train, got one of mmard distill; use distill"),
    ({"data": "digits", "limit_train": 10**6}, "limit_train: expected 1 to"),
    ({"data": "digits", "val_share": 0.9}, r"val_share: expected a share in \(0, 0\.5\]"),
    ({"data": "digits", "image_size": 16}, "image_size"),
    ({"data": "digits", "on_disk": True}, "on_disk"),
)


def refused(call: Any, said: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"data": ENOUGH, "out": tmp_path / "run", **QUICK}
    with pytest.raises(Refused, match=words) as refusal:
        call(**{**known, **said})
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == [], "something was written before the refusal"


@pytest.mark.parametrize(("said", "words"), DISTILLING, ids=[words for _, words in DISTILLING])
def test_distilling_refuses_before_anything_is_written(
    said: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"student": "cnn-4", "teacher": matcher(), "method": "rslad+mmard"}
    refused(distill, {**known, **said}, words, tmp_path, monkeypatch)


@pytest.mark.parametrize(("said", "words"), TRAINING, ids=[words for _, words in TRAINING])
def test_training_refuses_before_anything_is_written(
    said: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(train, {"model": "cnn-4", **said}, words, tmp_path, monkeypatch)


def test_a_taken_folder_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {})
    with pytest.raises(Refused, match="expected a new folder, got one that holds a run; resume it"):
        train("cnn-4", data="nothing of the kind", out=tmp_path / "run")


@pytest.mark.parametrize(
    "batch", [(torch.rand(4, *SHAPE) * 255, "images in .0, 1."), (torch.rand(4, 4), "float images")]
)
def test_a_loader_of_something_else_is_refused(batch: tuple[Tensor, str], tmp_path: Path) -> None:
    x, words = batch
    theirs: DataLoader[Any] = DataLoader(TensorDataset(x, torch.zeros(len(x), dtype=torch.int64)), batch_size=2)
    with pytest.raises(Refused, match=words):
        train(net(), data=(theirs, theirs), out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_few_images_make_a_batch_of_all_where_no_size_was_asked_for(tmp_path: Path) -> None:
    said = {"network": "given:S", "data": "given:Splits"}
    few = prepare(Settings.resolve(said), student=net(), data=picture_splits())
    count = len(picture_splits().train)
    assert few.settings.batch_size == count < Settings().batch_size
    assert f"batches of {count}, all the training images, instead of {Settings().batch_size}" in few.notes
    assert few.batches.steps == 1
    own = prepare(Settings.resolve({**said, "batch_size": 16}), student=net(), data=picture_splits())
    assert own.settings.batch_size == 16
    assert not any("batches of" in note for note in own.notes)


# what only an object can give -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["student", "teacher", "data", "method"])
def test_a_run_made_of_objects_cannot_go_on_without_them(name: str) -> None:
    given: dict[str, Any] = {"student": net(), "teacher": matcher(), "data": picture_splits(), "method": rslad()}
    said = {
        "student": "given:S",
        "teacher": "given:T",
        "data": "given:Splits",
        "method": "given:rslad",
        "batch_size": 8,
    }
    settings = Settings.resolve(said)
    prepare(settings, **given)
    del given[name]
    words = f"setting {name}: expected the object itself, got {said[name]}; .*resume=True"
    with pytest.raises(Refused, match=words):
        prepare(settings, **given)


# devices --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "gpus", "found"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_devices_by_name(name: str, gpus: int, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device(name) == torch.device(found)


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:1", 1), ("cuda:99", 8)])
def test_a_gpu_that_is_not_there_is_refused(name: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    words = f"device {name}: expected a GPU that PyTorch sees, got {gpus} of them; use --device cpu"
    with pytest.raises(Refused, match=words):
        pick_device(name)


def test_the_memory_of_a_method_goes_where_the_networks_go() -> None:
    class Elsewhere(nn.Module):
        def to(self, *args: Any, **kwargs: Any) -> Any:
            self.went = args
            return self

    memory = Elsewhere()
    prepare(settled(batch_size=8), student=net(), data=picture_splits(), method=replace(pgd_at(), memory=memory))
    assert memory.went == (torch.device("cpu"),)


def test_a_wrapped_network_is_trained_and_rebuilt(tmp_path: Path) -> None:
    """Its keys begin as those of wrappers do, and are not to lose that."""
    found = train("little:Wrapped", data=picture_splits(), out=tmp_path / "run", method="pgd_at", **QUICK)
    assert isinstance(found.network(), Wrapped)
    assert found.job.facts["num_classes"] == CLASSES
