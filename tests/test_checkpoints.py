"""Checkpoints as other people lay them out: the same logits come out, or the mend is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
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


PLAIN |= {
    "AveragedModel": {"n_averaged": torch.tensor(5), **under("module.")},
    "AveragedModel of DataParallel": {"swa": {"n_averaged": torch.tensor(5), **under("module.module.")}},
    "an average alone": {"epoch": 1, "state_dict_ema": under("")},
    "no counters of BatchNorm": {k: v for k, v in under("").items() if "num_batches" not in k},
    "a student": under("student."),
    "a network": under("net."),
    "twice the same": {"last": under(""), "best": under("")},
    "a matrix beside it": {"state_dict": under(""), "confusion": torch.rand(4, 4), "rng": {"cpu": torch.ones(9)}},
}
MADRY = {**under("module.model."), **under("module.attacker.model.")}


NORMALISED = {
    "mu and sigma beside the network": {**statistics("", "mu", "sigma"), **under("")},
    "mean and std of a wrapper": {**statistics("", "mean", "std"), **under("model.")},
    "of DataParallel": {**statistics("module.", "mean", "std"), **under("module.model.")},
    "a Sequential": {**statistics("0.", "mean", "std"), **under("1.")},
    "a Sequential in DataParallel": {**statistics("module.0.", "mean", "std", (3,)), **under("module.1.")},
    "a named layer": {**statistics("normalize.", "mean", "std", (3, 1, 1)), **under("model.")},
    "robustness": {
        "model": {
            **statistics("module.normalizer.", "new_mean", "new_std", (3, 1, 1)),
            **statistics("module.attacker.normalize.", "new_mean", "new_std", (3, 1, 1)),
            **MADRY,
        },
        "epoch": 1,
    },
    "beside its container": {"state_dict": under(""), **statistics("", "mean", "std", (3,))},
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


def other(prefix: str = "") -> dict[str, Tensor]:
    return {name: value + 1 for name, value in under(prefix).items()}


def resnet_of_torchvision() -> dict[str, Tensor]:
    """Names and shapes that matter of torchvision's resnet18."""
    blocks = {
        f"layer{i}.{j}.conv{k}.weight": torch.rand(2, 2, 3, 3) for i in range(1, 5) for j in (0, 1) for k in (1, 2)
    }
    stem = {"conv1.weight": torch.rand(64, 3, 7, 7)}
    return {**stem, **blocks, "layer2.0.downsample.0.weight": torch.rand(2, 2, 1, 1), "fc.weight": torch.rand(4, 2)}


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a Sequential without its first part": (under("1."), {}, "give --mean and --std"),
    "said twice": (NORMALISED["a Sequential"], {"mean": MEAN, "std": STD}, "normalisation in one place"),
    "grey levels": ({**statistics("", "mu", "sigma"), "mu": torch.full((3,), 125.3), **under("")}, {}, "by 255"),
    "half of it": ({"mu": torch.tensor(MEAN), **under("")}, {}, "1 extra"),
    "too few numbers": (under(""), {"mean": [0.5]}, "3 numbers as mean"),
    "another network": (under("", "cnn-8"), {}, "of another shape"),
    "more layers": ({**under(""), "conv9.weight": torch.rand(3)}, {}, "1 extra"),
    "raw and average": ({"model": other(), "ema": under("")}, {}, "got model and ema; say which.*theirs.pt::ema"),
    "last and best": ({"last": {"net": other()}, "best": under("")}, {}, "got last.net and best"),
    "student and teacher": (
        other("teacher.") | under("student."),
        {},
        "one set of weights, got teacher and student; say which is meant: FILE::student",
    ),
    "an attacker without its normalizer": (MADRY, {}, "without its normalizer; .* --mean and --std"),
    "whole numbers": (
        {k: (9 * v).to(torch.int8) for k, v in under("").items()},
        {},
        r"of another kind \(conv1.weight int8",
    ),
    "complex numbers": ({k: v.to(torch.complex64) for k, v in under("").items()}, {}, "of another kind"),
    "torchvision": (resnet_of_torchvision(), {}, "names of torchvision's resnet18: give torchvision.models:resnet18"),
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


KEYED = {"model": other(), "ema": {"decay": 0.9, "shadow": under("module.")}, "optimizer": {"param_groups": []}}


@pytest.mark.parametrize(
    ("held", "key"),
    [(KEYED, "ema"), (KEYED, "ema.shadow"), (other("teacher.") | under("student."), "student"), (under("odd."), "odd")],
)
def test_a_key_says_which_weights_are_meant(tmp_path: Path, held: Any, key: str) -> None:
    torch.save(held, tmp_path / "theirs.pt")
    found = load_network("cnn-4", weights=f"{tmp_path}/theirs.pt::{key}", **WANTED)
    assert found.source == f"cnn-4 with theirs.pt::{key}"
    with torch.no_grad():
        assert torch.equal(found.module(images()), expected(False))


def test_an_unknown_key_is_told_those_that_there_are(tmp_path: Path) -> None:
    torch.save(KEYED, tmp_path / "theirs.pt")
    with pytest.raises(Refused, match=r"one set of weights under 'emma', got none, but model, ema\.shadow"):
        load_network("cnn-4", weights=f"{tmp_path}/theirs.pt::emma", **WANTED)


def test_a_key_chooses_in_a_safetensors_file_as_well(tmp_path: Path) -> None:
    save_file(other("teacher.") | under("student."), tmp_path / "w.safetensors")
    found = load_network("cnn-4", weights=f"{tmp_path}/w.safetensors::student", **WANTED)
    assert torch.equal(found.module.state_dict()["conv1.weight"], under("")["conv1.weight"])


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_weights_in_another_precision_are_noted(tmp_path: Path, kind: torch.dtype) -> None:
    torch.save({k: v.to(kind) if v.is_floating_point() else v for k, v in under("").items()}, tmp_path / "theirs.pt")
    found = load_network("cnn-4", weights=f"{tmp_path}/theirs.pt", **WANTED)
    said = str(kind).removeprefix("torch.")
    assert found.source == f"cnn-4 with theirs.pt ({said} weights, read as float32)"


def test_a_loaded_network_is_in_eval_mode(tmp_path: Path) -> None:
    torch.save(under(""), tmp_path / "w.pt")
    for weights in (f"{tmp_path}/w.pt", None):
        spec = "cnn-4" if weights else "test_checkpoints:two_layers"
        assert not any(m.training for m in load_network(spec, weights=weights, **WANTED).module.modules())


def test_a_function_that_hands_keywords_on_is_given_no_image_shape() -> None:
    assert load_network("test_checkpoints:handing_on", **WANTED).module(images()).shape == (5, 4)


def handing_on(**keywords: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, **{"out_features": keywords.pop("num_classes"), **keywords}))
