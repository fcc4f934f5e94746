"""Checkpoints as other people lay them out: the same logits come out, or the mend is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmard.errors import Refused
from mmard.models import Normalised, build
from mmard.networks import load_network

SHAPE = (3, 8, 8)
WANTED: dict[str, Any] = {"num_classes": 4, "image_shape": SHAPE}
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


def bare(name: str = "cnn-4") -> nn.Module:
    return build(name, **WANTED, seed=3).eval()


def statistics(prefix: str, mean: str, std: str, shape: tuple[int, ...] = (1, 3, 1, 1)) -> dict[str, Tensor]:
    return {f"{prefix}{mean}": torch.tensor(MEAN).view(shape), f"{prefix}{std}": torch.tensor(STD).view(shape)}


def under(prefix: str, name: str = "cnn-4") -> dict[str, Tensor]:
    return {prefix + key: value for key, value in bare(name).state_dict().items()}


def logits(tmp_path: Path, held: Any, name: str = "cnn-4", **more: Any) -> Tensor:
    torch.save(held, tmp_path / "theirs.pt")
    found = load_network(name, weights=str(tmp_path / "theirs.pt"), **WANTED, **more)
    assert found.source == f"{name} with theirs.pt"
    with torch.no_grad():
        return found.module.eval()(images())


def images() -> Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


def expected(normalised: bool, name: str = "cnn-4") -> Tensor:
    with torch.no_grad():
        return (Normalised(bare(name), MEAN, STD).eval() if normalised else bare(name))(images())


PLAIN = {
    "bare": under(""),
    "state_dict": {"state_dict": under(""), "epoch": 90, "best_acc": torch.tensor(0.5)},
    "model_state_dict": {"model_state_dict": under("module."), "optimizer": {"state": {}}},
    "net": {"net": under("module."), "acc": 51.2},
    "nested": {"model": {"state_dict": under("")}},
    "DataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "both": under("module._orig_mod."),
    "in a model": under("module.model."),
    "in a Sequential alone": under("module.0."),
}


@pytest.mark.parametrize("held", PLAIN.values(), ids=PLAIN)
def test_containers_and_wrappers_are_looked_through(tmp_path: Path, held: Any) -> None:
    assert torch.equal(logits(tmp_path, held), expected(False))


NORMALISED = {
    "mu and sigma beside the network": {**statistics("", "mu", "sigma"), **under("")},
    "mean and std of a wrapper": {**statistics("", "mean", "std"), **under("model.")},
    "of DataParallel": {**statistics("module.", "mean", "std"), **under("module.model.")},
    "a Sequential": {**statistics("0.", "mean", "std"), **under("1.")},
    "a Sequential in DataParallel": {**statistics("module.0.", "mean", "std", (3,)), **under("module.1.")},
    "a named layer": {**statistics("normalize.", "mean", "std", (3, 1, 1)), **under("model.")},
    "ours": {**statistics("", "mean", "std", (3, 1, 1)), **under("net.")},
}


@pytest.mark.parametrize("held", NORMALISED.values(), ids=NORMALISED)
def test_normalisation_in_the_file_becomes_part_of_the_network(tmp_path: Path, held: Any) -> None:
    torch.testing.assert_close(logits(tmp_path, held), expected(True))


@pytest.mark.parametrize("prefix", ["", "module.", "1.", "module.1."])
def test_normalisation_may_be_said(tmp_path: Path, prefix: str) -> None:
    torch.testing.assert_close(logits(tmp_path, under(prefix), mean=MEAN, std=STD), expected(True))


def test_weights_that_no_forward_reads_are_dropped(tmp_path: Path) -> None:
    name = "wide_resnet-10-1"
    dead = {"module.sub_block1.layer.0.conv1.weight": torch.rand(16, 16, 3, 3)}
    assert torch.equal(logits(tmp_path, under("module.", name) | dead, name), expected(False, name))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a Sequential without its first part": (under("1."), {}, "give --mean and --std"),
    "said twice": (NORMALISED["a Sequential"], {"mean": MEAN, "std": STD}, "normalisation in one place"),
    "grey levels": ({**statistics("", "mu", "sigma"), "mu": torch.full((3,), 125.3), **under("")}, {}, "by 255"),
    "half of it": ({"mu": torch.tensor(MEAN), **under("")}, {}, "1 extra"),
    "too few numbers": (under(""), {"mean": [0.5]}, "3 numbers as mean"),
    "another network": (under("", "cnn-8"), {}, "of another shape"),
    "more layers": ({**under(""), "conv9.weight": torch.rand(3)}, {}, "1 extra"),
    "no tensors": ({"epoch": 3}, {}, "a mapping with the keys epoch"),
}


@pytest.mark.parametrize(("held", "more", "says"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_the_mend(tmp_path: Path, held: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        logits(tmp_path, held, **more)


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nothing is unpickled"):
        logits(tmp_path, bare())


def test_a_network_whose_own_keys_look_like_a_wrapper_keeps_them(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).state_dict(), tmp_path / "w.pt")
    found = load_network("test_checkpoints:two_layers", weights=str(tmp_path / "w.pt"), **WANTED)
    assert [name for name, _ in found.module.named_parameters()] == ["1.weight", "1.bias"]


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


@pytest.mark.parametrize("spec", [".", "x.onnx", "test_checkpoints:two_layers"])
def test_mean_and_std_belong_to_foreign_weights_alone(spec: str) -> None:
    with pytest.raises(Refused, match="has its normalisation inside"):
        load_network(spec, **WANTED, mean=MEAN, std=STD)
