"""Every family of the table of teachers: its own file is read, and the file of any other family is refused by name.

`test_teachers.py` has the quirks of single files; here every network that the table names goes through every wrapper.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import over
from torch import Tensor, nn

import mmard
from mmard import teachers as table
from mmard.cli import answer
from mmard.errors import Refused
from mmard.models import Normalised, build
from mmard.teachers import Teacher, find, is_teacher, teachers, without_prefix

State = dict[str, Tensor]
OF_NETWORK = {t.network: f"robustbench:{t.data}/{t.name}" for t in teachers()}
"""A teacher of each network of the table."""
KEPT = ("resnet18", "resnet50", "preact_resnet18", "preact_resnet18-raw", "preact_resnet18-swish")
"""Networks of the table that have one size only."""


def small(network: str) -> str:
    """The same family in a size that builds in no time; twice as wide where the table's is."""
    if network in KEPT:
        return network
    kind, _, size = network.partition("-")
    _, width, *swish = size.split("-")
    return "-".join([kind, "10", "2" if width == "20" else "1", *swish])


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with networks that build in no time."""
    made = tuple(Teacher(**{**vars(t), "network": small(t.network)}) for t in teachers())
    monkeypatch.setattr(table, "teachers", lambda: made)


def trained(network: str, classes: int = 10) -> nn.Module:
    """With statistics of its own in every BatchNorm, so that one left out would show."""
    net = build(network, num_classes=classes, image_shape=(3, 32, 32), seed=3).eval()
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return net


PUBLISHED: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "state_dict, module.": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s},
}
"""Forms in which RobustBench's files come, for all families."""


@pytest.mark.parametrize("form", PUBLISHED)
@pytest.mark.parametrize("network", sorted(OF_NETWORK))
def test_a_file_of_every_family_gives_equal_logits(network: str, form: str, tmp_path: Path, little: None) -> None:
    name = OF_NETWORK[network]
    teacher = find(name)[0]
    bare = trained(teacher.network, teacher.num_classes)
    torch.save(PUBLISHED[form](bare.state_dict()), tmp_path / "w.pt")
    found = mmard.load_teacher(name, weights=tmp_path / "w.pt").module.eval()
    expected = bare if teacher.mean is None else Normalised(bare, teacher.mean, teacher.std or ()).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(x), expected(x))


FAMILIES = {
    "wide_resnet-34-10": "wide_resnet-10-1",
    "wide_resnet-28-10-swish": "wide_resnet-10-1-swish",
    "preact_resnet18": "preact_resnet18",
    "preact_resnet18-swish": "preact_resnet18-swish",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}
"""One network of each set of keys, and a small one of the same keys."""


@over(("wanted", "held"), [*permutations(FAMILIES, 2)])
def test_the_file_of_every_other_family_is_refused_with_its_own_name(wanted: str, held: str, little: None) -> None:
    teacher = find(OF_NETWORK[wanted])[0]
    with torch.device("meta"):  # keys and shapes are all that is looked at
        theirs = build(FAMILIES[held], num_classes=teacher.num_classes, image_shape=(3, 32, 32)).state_dict()
    with pytest.raises(Refused, match=rf"this looks like {FAMILIES[held]}$"):
        teacher.load({f"module.{k}": v for k, v in theirs.items()}, "w.pt")


def test_the_families_are_those_of_the_table() -> None:
    alike = {small(network).replace("-raw", "").replace("10-2", "10-1") for network in OF_NETWORK}
    assert alike == set(FAMILIES.values())


# what a user types ----------------------------------------------------------------------------------------------------
def test_a_prefix_may_be_written_large() -> None:
    assert is_teacher("RobustBench:Standard")
    assert find("RobustBench:standard") == find("robustbench:Standard")


@pytest.mark.parametrize("spec", ["Zhang2019Theoretically", "cifar10/Zhang2019Theoretically", "zhang2019theoretically"])
def test_a_bare_name_is_answered_with_the_whole_one(spec: str, tmp_path: Path, capsys: Any) -> None:
    whole = without_prefix(spec)
    assert whole is not None
    assert find(whole) == find("robustbench:Zhang2019Theoretically")
    with pytest.raises(Refused, match=f"write {whole}$"):
        mmard.load_teacher(spec, weights=tmp_path / "w.pt")
    assert answer(["fetch", spec, "--data-dir", str(tmp_path)]) == 2
    assert f"write {whole}" in " ".join(capsys.readouterr().err.split())
    assert without_prefix("cifar100/Zhang2019Theoretically") is None


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("LTD", "Chen2021LTD_WRN34_20 or Chen2021LTD_WRN34_10"),
        ("resnet50", "did you mean "),
        ("wide_resnet-70-16", " or one of "),
    ],
)
def test_a_part_of_a_name_or_of_its_network_is_enough_for_an_answer(text: str, near: str) -> None:
    with pytest.raises(Refused, match=near) as refusal:
        find(f"robustbench:{text}")
    named = str(refusal.value).split("did you mean ")[1].split(" or ")[0].rstrip("?")
    (teacher, *_) = find(named)
    assert text in teacher.name or teacher.network.startswith(text)


def test_an_unknown_network_is_told_before_data_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="did you mean 'resnet18'"):
        mmard.load_teacher("resnet_81", weights=tmp_path / "w.pt")
    with pytest.raises(Refused, match="num_classes and image_shape in Python"):
        mmard.load_teacher("resnet18", weights=tmp_path / "w.pt")


def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="a file of weights, got a folder"):
        mmard.load_teacher("robustbench:Standard", weights=tmp_path)


def test_a_teacher_that_is_not_robust_is_offered_beside_one_that_is(capsys: pytest.CaptureFixture[str]) -> None:
    natural = [t for t in teachers() if t.robust == 0]
    assert natural
    for teacher in natural:
        assert answer(["teachers", teacher.spec]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert f"--teacher T=RUN --teacher T_nat={teacher.spec}" in out
    assert answer(["teachers", "robustbench:Zhang2019Theoretically"]) == 0
    assert "T_nat" not in capsys.readouterr().out
    assert answer(["teachers", natural[0].name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["spec"] == natural[0].spec
