"""Weights in files: back as they went, other people's opened without running anything, damage named."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from little import net, same, state
from safetensors.torch import save_file
from torch import Tensor, nn

from mmard.deploy.checkpoints import open_weights
from mmard.errors import Refused
from mmard.files import load_into, load_tensors, save_tensors, weights_hash

EVERY_KIND = {
    "a.float32": torch.tensor([[1.5, -2.0], [float("inf"), float("nan")]]),
    "b.float16": torch.tensor([1.0, 2.0]).half(),
    "c.bfloat16": torch.tensor([1.0, 2.0]).bfloat16(),
    "d.float64": torch.tensor([1 / 3], dtype=torch.float64),
    "e.int64": torch.tensor(2**40),
    "f.bool": torch.tensor([True, False]),
    "g.empty": torch.zeros(0, 3),
    "h.uint8": torch.arange(4, dtype=torch.uint8),
}
FACTS = {"network": "cnn-4", "shape": [1, 8, 8], "nested": {"é": None, "x": 0.1}, "epoch": 3}


# our own files --------------------------------------------------------------------------------------------------------
def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", EVERY_KIND, FACTS)
    tensors, facts = load_tensors(tmp_path / "w.safetensors")
    assert facts == FACTS
    assert tensors.keys() == EVERY_KIND.keys()
    for name, value in EVERY_KIND.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name].nan_to_num(), value.nan_to_num())


def test_views_and_shared_weights_are_saved_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    views = {"whole": base, "again": base, "columns": base.T, "row": base[1], "every other": base[:, ::2]}
    save_tensors(
        tmp_path / "w.safetensors", {k: v.requires_grad_() if k == "whole" else v for k, v in views.items()}, {}
    )
    tensors, _ = load_tensors(tmp_path / "w.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in views.items())


def test_the_same_content_makes_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        save_tensors(tmp_path / name, state(net()), FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_files_of_others_have_no_facts(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    assert load_tensors(tmp_path / "w.safetensors")[1] == {}
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert load_tensors(tmp_path / "w.safetensors")[1] == {}


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_safetensors_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, EVERY_KIND, FACTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    for read in (load_tensors, open_weights):
        with pytest.raises(Refused, match=r"w\.safetensors: expected a whole safetensors file.*is it truncated"):
            read(path)


@pytest.mark.parametrize("read", [load_tensors, open_weights])
@pytest.mark.parametrize("name", ["absent.safetensors", "absent.pt"])
def test_what_is_not_there_is_refused(read: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such file"):
        read(tmp_path / name)


def test_a_page_under_the_name_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text("<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(Refused, match="expected a whole safetensors file"):
        open_weights(path)


# files of others ------------------------------------------------------------------------------------------------------
TENSORS = {"conv.weight": torch.arange(4.0), "conv.bias": torch.ones(1)}
BESIDE: tuple[dict[str, Any], ...] = (
    {},
    {"epoch": 3, "acc": 0.84, "arch": "resnet18"},
    {"epoch": torch.tensor(3), "acc": torch.tensor(0.84)},
    {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}},
)


@pytest.mark.parametrize("beside", BESIDE, ids=["alone", "with numbers", "with tensors", "with an optimiser"])
@pytest.mark.parametrize(
    "containers", [("state_dict",), ("model",), ("net",), ("ema", "state_dict"), ("model_state_dict",)]
)
def test_usual_containers_are_looked_through(
    containers: tuple[str, ...], beside: dict[str, Any], tmp_path: Path
) -> None:
    found: Any = OrderedDict(TENSORS)
    for name in reversed(containers):
        found = {**beside, name: found}
    torch.save(found, tmp_path / "w.pt")
    tensors, facts = open_weights(tmp_path / "w.pt")
    assert same(tensors, TENSORS)
    assert facts == {}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_bare_state_dict_in_both_formats(old: bool, tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    assert same(open_weights(tmp_path / "w.pth")[0], state(net()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "lr": 0.1}, "expected a state dict, alone or under .*got a mapping with the keys epoch, lr"),
        ({}, "got a mapping with the keys"),
        ([torch.ones(1)], "got list"),
        (torch.ones(1), "got Tensor"),
        ({"state_dict": {"a": 1}}, "got a mapping with the keys a"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(Refused, match=words):
        open_weights(tmp_path / "w.pt")


class Malicious:
    """What a pickle can do: run a command when it is opened."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["bare", "in a checkpoint", "plain pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(how: str, protocol: int, tmp_path: Path) -> None:
    proof, path = tmp_path / "it-ran", tmp_path / "w.pt"
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(Malicious(proof), protocol=protocol))
    else:
        content = Malicious(proof) if how == "bare" else {"state_dict": TENSORS, "x": Malicious(proof)}
        torch.save(content, path, pickle_protocol=protocol)
    with pytest.raises(Refused, match=r"w\.pt: expected a checkpoint that holds tensors alone") as refusal:
        open_weights(path)
    assert not proof.exists()
    # What PyTorch says at this point is how to run the file all the same.
    assert "weights_only" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_opened_pickle_would_have_run(tmp_path: Path) -> None:
    """The test above can fail: the same file, opened without restriction, does what it wants."""
    torch.save(Malicious(tmp_path / "it-ran"), tmp_path / "w.pt")
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "it-ran").exists()


def test_a_whole_network_is_named_and_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "net.pt")
    with pytest.raises(
        Refused, match=r"got a pickle that calls torch\.nn\.modules\.container\.Sequential; .*safetensors"
    ):
        open_weights(tmp_path / "net.pt")
    torch.save({"state_dict": TENSORS, "acc": np.float64(0.5), "epoch": np.int32(3)}, tmp_path / "acc.pt")
    assert same(open_weights(tmp_path / "acc.pt")[0], TENSORS)


@pytest.mark.parametrize("start", [b"<!DOCTYPE html>", b"\n  <html lang='en'>", b"<HTML>"])
def test_a_page_is_named(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(start + b"<body>404</body></html>")
    with pytest.raises(Refused, match="got an HTML page, a failed download; download it again"):
        open_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", b"PK\x03\x04torn", b"\x80\x02"])
def test_damage_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(Refused, match=r"w\.pt: .*got a damaged file, or one of another kind; is it whole"):
        open_weights(tmp_path / "w.pt")


@given(st.data())
def test_no_damage_gives_anything_but_tensors_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "w.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(Refused):
        tensors, _ = open_weights(path)
        assert all(isinstance(value, Tensor) for value in tensors.values())


# into a network -------------------------------------------------------------------------------------------------------
def test_loading_is_strict_and_lists_what_differs() -> None:
    module, tensors = net(), state(net())
    before = state(module)
    del tensors["1.bias"], tensors["5.weight"]
    tensors |= {"fc.weight": torch.ones(1), "0.weight": torch.ones(3, 1, 5, 5)}
    expected = (
        r"w\.pt: expected the 8 tensors of Sequential, got 2 missing \(1\.bias, 5\.weight\); 1 extra \(fc\.weight\); "
        r"1 of another shape \(0\.weight \(3, 1, 5, 5\) for \(3, 1, 3, 3\)\); is it another architecture\?"
    )
    with pytest.raises(Refused, match=expected):
        load_into(module, tensors, "w.pt")
    assert same(state(module), before), "refused before anything was loaded"


def test_long_lists_are_cut() -> None:
    with pytest.raises(Refused, match=r"8 missing \(0\.weight, 1\.weight, 1\.bias, 1\.running_mean, \.\.\.\)"):
        load_into(net(), {}, "w.pt")


# hashes ---------------------------------------------------------------------------------------------------------------
def test_the_hash_is_of_names_and_numbers() -> None:
    assert weights_hash(net(seed=0)) == weights_hash(net(seed=0)) != weights_hash(net(seed=1))
    assert len(weights_hash(net())) == 64


class Holding(nn.Module):
    """One buffer."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)


def test_the_same_bytes_in_another_shape_or_of_another_kind_have_another_hash() -> None:
    values = (
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(6),
        torch.zeros(6, dtype=torch.int32),
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(0),
        torch.zeros(0, 3),
    )
    assert len({weights_hash(Holding(value)) for value in values}) == len(values)


@pytest.mark.parametrize("name", list(net().state_dict()))
def test_one_bit_changes_the_hash(name: str) -> None:
    module = net()
    before = weights_hash(module)
    value = module.state_dict()[name]
    as_bytes = value.detach().reshape(-1).view(torch.uint8)
    as_bytes[0] ^= 1
    assert weights_hash(module) != before
    as_bytes[0] ^= 1
    assert weights_hash(module) == before


def test_the_hash_knows_kind_and_name_but_not_order_nor_mode() -> None:
    class Two(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Parameter(torch.full((2,), float(ord(name)))))

    assert weights_hash(Two("a", "b")) == weights_hash(Two("b", "a"))
    assert weights_hash(Two("a")) != weights_hash(Two("a").double())
    renamed = Two("a")
    renamed.c = renamed.a
    del renamed.a
    assert weights_hash(renamed) != weights_hash(Two("a"))
    assert weights_hash(net().eval()) == weights_hash(net().train())


def test_facts_are_readable_without_us(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_tensors(tmp_path / "w.safetensors", TENSORS, FACTS)
    with safe_open(tmp_path / "w.safetensors", framework="np") as opened:
        assert json.loads(opened.metadata()["mmard"]) == FACTS


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_newer_pickles_are_called_by_their_name_and_not_damaged(protocol: int, zipped: bool, tmp_path: Path) -> None:
    """PyTorch's reader without execution knows protocols 2 and 3; the mend makes a file that it reads."""
    held = {"state_dict": {"fc.weight": torch.ones(2, 3)}}
    torch.save(held, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused, match=rf"a\.pt: .*got a pickle of protocol {protocol}; have its maker") as refused:
        open_weights(tmp_path / "a.pt")
    assert "\n" not in str(refused.value)
    torch.save(held, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(open_weights(tmp_path / "b.pt")[0]["fc.weight"], torch.ones(2, 3))
