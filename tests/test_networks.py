"""Networks from run folders, files and names: what was trained is rebuilt to the bit, what does not fit is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from little import CLASSES, SHAPE, Wrapped, picture_set, same, state
from torch import nn

from mmard.errors import Refused
from mmard.files import save_tensors
from mmard.models import Normalised, build
from mmard.networks import Network, load_network, network_facts, new_network
from mmard.run import Run

IMAGES = picture_set(40)
WANTED: dict[str, Any] = {"num_classes": CLASSES, "image_shape": SHAPE}


def saved(tmp_path: Path, name: str = "cnn-4", normalise: str = "none", seed: int = 5) -> tuple[Run, nn.Module]:
    """A run folder with best weights of a network, and last weights of another seed."""
    run = Run.create(tmp_path / "run", {})
    module = new_network(name, IMAGES, normalise, seed)
    facts = network_facts(name, module, IMAGES)
    run.save_weights("best", module.state_dict(), {**facts, "epoch": 2})
    run.save_weights("last", new_network(name, IMAGES, normalise, seed + 1).state_dict(), {**facts, "epoch": 3})
    return run, module


def agree(found: Network, module: nn.Module) -> bool:
    x = IMAGES.x[:6].float() / 255
    with torch.no_grad():
        return torch.equal(found.module.eval()(x), module.eval()(x))


def test_a_new_network_is_a_function_of_its_name_and_seed() -> None:
    one, two, other = (state(new_network("cnn-4", IMAGES, "none", seed)) for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_a_new_network_may_standardise_by_its_images() -> None:
    module = new_network("cnn-4", IMAGES, "data", 0)
    assert isinstance(module, Normalised)
    x = IMAGES.x.double() / 255
    assert module.mean.item() == pytest.approx(x.mean().item(), abs=1e-6)
    assert module.std.item() == pytest.approx(x.std(unbiased=False).item(), abs=1e-6)


@pytest.mark.parametrize("normalise", ["none", "data"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_folder_is_rebuilt(normalise: str, which: str, tmp_path: Path) -> None:
    run, module = saved(tmp_path, normalise=normalise)
    if which == "last":
        module = new_network("cnn-4", IMAGES, normalise, 6)
    for wanted in ({}, WANTED):
        found = load_network(str(run.path), which=which, **wanted)
        assert same(state(found.module), state(module)), "buffers of the normalisation included"
        assert agree(found, module)
        assert not found.module.training
    assert found.source == f"run ({which}, epoch {2 if which == 'best' else 3})"
    assert found.facts["network"] == "cnn-4"
    assert found.facts["normalised"] == (normalise == "data")


def test_a_file_of_ours_is_rebuilt(tmp_path: Path) -> None:
    run, module = saved(tmp_path)
    found = load_network(str(run.weights_file("best")), **WANTED)
    assert agree(found, module)
    assert found.source == "best.safetensors"


def test_a_name_takes_its_weights_from_a_file(tmp_path: Path) -> None:
    module = build("cnn-4", seed=3, **WANTED)
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, tmp_path / "theirs.pt")
    found = load_network("cnn-4", weights=str(tmp_path / "theirs.pt"), **WANTED)
    assert agree(found, module)
    assert found.source == "cnn-4 with theirs.pt"
    assert found.facts == {}


def test_a_function_of_others_may_bring_weights_or_take_them(tmp_path: Path) -> None:
    brought = load_network("little:matcher", **WANTED)
    assert brought.source == "little:matcher"
    assert (brought.module(IMAGES.x.float() / 255).argmax(1) == IMAGES.y).all()
    module = Wrapped()
    save_tensors(tmp_path / "w.safetensors", module.state_dict(), {})
    taken = load_network("little:Wrapped", weights=str(tmp_path / "w.safetensors"), **WANTED)
    assert agree(taken, module)


def test_a_function_of_others_is_rebuilt_from_a_run(tmp_path: Path) -> None:
    run, module = saved(tmp_path, name="little:Wrapped")
    for spec in (run.path, run.weights_file("best")):
        assert agree(load_network(str(spec), **WANTED), module)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            {"num_classes": 10},
            "teacher .*run: expected 10 classes, as the data has, got a network for 3; is it for other",
        ),
        (
            {"image_shape": (3, 32, 32)},
            r"expected images \(3, 32, 32\), as the data has, got a network for \(1, 4, 4\)",
        ),
    ],
)
def test_a_network_for_other_data_is_refused(wanted: dict[str, Any], words: str, tmp_path: Path) -> None:
    run, _ = saved(tmp_path)
    with pytest.raises(Refused, match=words):
        load_network(str(run.path), who="teacher", **{**WANTED, **wanted})


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    run, _ = saved(tmp_path)
    with pytest.raises(Refused, match=r"expected the .* tensors of Sequential.*another shape.*this looks like cnn-4"):
        load_network("cnn-8", weights=str(run.weights_file("best")), **WANTED)


def test_a_run_that_saved_nothing_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    with pytest.raises(Refused, match="expected best weights, got a run without any"):
        load_network(str(run.path), **WANTED)
    with pytest.raises(Refused, match=r"expected a run folder, got a folder without config\.json"):
        load_network(str(tmp_path), **WANTED)


@pytest.mark.parametrize("who", ["teacher", "network"])
def test_a_file_that_does_not_say_its_network_is_refused(who: str, tmp_path: Path) -> None:
    flag = {"teacher": "--teacher-weights", "network": "--weights"}[who]
    module = build("cnn-4", seed=3, **WANTED)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    save_tensors(tmp_path / "w.safetensors", module.state_dict(), {})
    for name in ("w.pt", "w.safetensors"):
        words = f"{who} .*expected weights that mmard wrote, got a file that does not say its network; .*with {flag}$"
        with pytest.raises(Refused, match=words):
            load_network(str(tmp_path / name), who=who, **WANTED)


@pytest.mark.parametrize("who", ["teacher", "network"])
def test_a_name_without_weights_is_refused(who: str) -> None:
    flag = {"teacher": "--teacher-weights", "network": "--weights"}[who]
    words = f"{who} cnn-4: expected a trained network, got a name without weights; give a run folder, or {flag} FILE"
    with pytest.raises(Refused, match=words):
        load_network("cnn-4", who=who, **WANTED)


def test_a_name_that_is_not_known_is_told_before_its_weights_are_missed() -> None:
    with pytest.raises(Refused, match="did you mean 'resnet18'"):
        load_network("resent18", **WANTED)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("runs/absent", "teacher runs/absent: expected a run folder or a file, got no such path"),
        ("absent.safetensors", "no such file"),
        ("absent.pt", "no such file"),
        ("little:absent", "no such name there"),
        ("absent.module:net", "expected a module 'absent.module' that can be imported"),
    ],
)
def test_what_is_not_there_is_refused(spec: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        load_network(spec, who="teacher", **WANTED)


def test_a_name_needs_data_to_be_built_for() -> None:
    with pytest.raises(Refused, match="expected data to build it for, got none; give --data"):
        load_network("cnn-4")


def test_weights_beside_weights_are_refused(tmp_path: Path) -> None:
    run, _ = saved(tmp_path)
    for spec in (run.path, run.weights_file("best")):
        words = "expected the name of a network beside weights, got a run or a file that has its own; leave one out"
        with pytest.raises(Refused, match=words):
            load_network(str(spec), weights=str(run.weights_file("last")), **WANTED)


def test_an_object_that_was_handed_over_cannot_be_rebuilt(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    module = Wrapped()
    run.save_weights("best", module.state_dict(), network_facts("given:Wrapped", module, IMAGES))
    words = "expected a network that can be built by name, got given:Wrapped; hand the object over in Python"
    with pytest.raises(Refused, match=words):
        load_network(str(run.path), **WANTED)


def test_facts_are_what_a_reader_needs() -> None:
    module = new_network("cnn-4", IMAGES, "data", 0)
    assert network_facts("cnn-4", module, IMAGES) == {
        "network": "cnn-4",
        "normalised": True,
        "num_classes": 3,
        "image_shape": [1, 4, 4],
        "classes": ["a", "b", "c"],
        "images": "pictures",
    }


def test_a_known_teacher_has_its_own_normalisation() -> None:
    with pytest.raises(Refused, match=r"robustbench:Standard: expected no mean and std, since its own are known"):
        load_network("robustbench:Standard", weights="w.pt", mean=[0.5, 0.5, 0.5])
