"""Known teachers: each family in the layout of its published file, what is claimed of it, and fetching it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import over
from torch import Tensor, nn

import mmard
from mmard import teachers as table
from mmard.cli import answer
from mmard.deploy.layouts import alike
from mmard.errors import Refused
from mmard.models import Normalised, build, parameter_count
from mmard.networks import load_network
from mmard.share.hub import fetch_teacher
from mmard.teachers import Teacher, find, sources, teachers

C10, C100 = ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]), ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])
SMALL = {
    "wide_resnet-34-10": "wide_resnet-10-1", "wide_resnet-28-10-swish": "wide_resnet-10-1-swish",
    "preact_resnet18-swish": "preact_resnet18-swish", "preact_resnet18-raw": "preact_resnet18-raw",
    "preact_resnet18": "preact_resnet18", "resnet18": "resnet18", "wide_resnet-34-20": "wide_resnet-10-2",
}  # fmt: skip
"""A network of the same family that builds in no time."""


def small(teacher: Teacher) -> Teacher:
    return replace(teacher, network=SMALL[teacher.network])


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with every network that a test builds in a small size."""
    made = tuple(small(t) if t.network in SMALL else t for t in teachers())
    monkeypatch.setattr(table, "teachers", lambda: made)


def network(name: str, classes: int = 10, seed: int = 3) -> nn.Module:
    """With statistics of its own in every BatchNorm, so that one left out would show."""
    net = build(name, num_classes=classes, image_shape=(3, 32, 32), seed=seed)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return net.eval()


def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def statistics(names: tuple[str, str], values: Any, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.tensor(value).view(shape) for name, value in zip(names, values, strict=True)}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def dead(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the second copy of the first stage that the constructor of TRADES makes."""
    copies = {"sub_" + key: torch.rand_like(value.float()) for key, value in state.items() if key.startswith("block1.")}
    assert copies
    return {**state, **copies}


State = dict[str, Tensor]
LAYOUTS: dict[str, tuple[str, str, tuple[Any, Any] | None, Callable[[State], Any]]] = {
    "T, bare": ("Chen2021LTD_WRN34_10", "cifar10", None, lambda s: s),
    "T+, sub_block1": ("Zhang2019Theoretically", "cifar10", None, dead),
    "T+ of 100": ("Chen2021LTD_WRN34_10", "cifar100", None, lambda s: {"state_dict": under("module.", dead(s))}),
    "T of width 20": ("Chen2021LTD_WRN34_20", "cifar10", None, lambda s: under("module.", s)),
    "T, mu and sigma": (
        "Wu2020Adversarial", "cifar100", None,
        lambda s: {**statistics(("mu", "sigma"), (find("robustbench:cifar100/Wu2020Adversarial")[0].mean,
                                                  find("robustbench:cifar100/Wu2020Adversarial")[0].std),
                                (1, 3, 1, 1)), **s},
    ),
    "T, mu and sigma missing": ("Wu2020Adversarial", "cifar100", None, lambda s: s),
    "DM, mean and std missing": ("Wang2023Better_WRN-28-10", "cifar10", C10, lambda s: {"model_state_dict": s}),
    "DM, buffers": (
        "Wang2023Better_WRN-28-10", "cifar100", C100,
        lambda s: under("module.", {**statistics(("mean", "std"), C100, (3, 1, 1)), **s}),
    ),
    "DM, in a Sequential": ("Wang2023Better_WRN-28-10", "cifar10", C10, lambda s: under("module.1.", s)),
    "DMP": ("Rebuffi2021Fixing_R18_ddpm", "cifar10", C10, lambda s: {"model": under("module.", s)}),
    "P18, raw": ("Wong2020Fast", "cifar10", C10, lambda s: s),
    "P18, last and best": (
        "Andriushchenko2020Understanding", "cifar10", None,
        lambda s: {"last": {**s, "model_preact_hl1.1.weight": torch.rand(4)}, "best": under("x", s)},
    ),
    "P18 with a last BatchNorm": ("Addepalli2021Towards_PARN18", "cifar100", None, lambda s: {"net": s}),
    "R18": ("Addepalli2022Efficient_RN18", "cifar10", None, lambda s: under("_orig_mod.", s)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data", "norm", "laid_out"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_published_layout_gives_equal_logits(
    name: str, data: str, norm: Any, laid_out: Callable[[State], Any], tmp_path: Path, little: None
) -> None:
    teacher = find(f"robustbench:{data}/{name}")[0]
    bare = network(teacher.network, teacher.num_classes)
    torch.save(laid_out(bare.state_dict()), tmp_path / "theirs.pt")
    found = mmard.load_teacher(f"robustbench:{name}", weights=tmp_path / "theirs.pt")
    assert found.source == f"{teacher.spec} with theirs.pt"
    assert found.facts["num_classes"] == teacher.num_classes
    assert found.facts["claim"]["clean"] == teacher.clean
    assert norm is None or (list(teacher.mean or ()), list(teacher.std or ())) == (norm[0], norm[1])
    expected = bare if teacher.mean is None else Normalised(bare, teacher.mean, teacher.std or ()).eval()
    assert isinstance(found.module, Normalised) == (teacher.mean is not None)
    with torch.no_grad():
        assert torch.equal(found.module.eval()(images()), expected(images()))


def test_the_table_is_whole() -> None:
    seen = [(t.data, t.name) for t in teachers()]
    assert len(seen) == len(set(seen))
    for t in teachers():
        assert 0 <= t.robust < t.clean < 1, t.name
        assert t.lowest is None or t.robust - 0.01 < t.lowest < t.robust, t.name
        assert (t.mean is None) == (t.std is None), t.name
        assert t.link.startswith("https://"), t.name
        assert t.paper, t.name
        assert set(t.read) == {"figures", "network", "drive"}, t.name
        assert {at for at in t.read.values() if at} <= set(sources()), t.name
        assert (t.read["drive"] is None) == (t.drive is None), t.name
        strict = t.name.startswith(("Gowal", "Rebuffi", "Hendrycks2019"))
        assert t.licence == ("Apache-2.0" if strict else "MIT"), t.name
        if t.mean is not None and t.network.endswith("-swish"):
            assert [list(t.mean), list(t.std or ())] == list(C10 if t.data == "cifar10" else C100), t.name
    drives = [t.drive for t in teachers() if t.drive]
    assert len(drives) == len(set(drives))


COUNTS = {
    "wide_resnet-28-10": 36.5, "wide_resnet-28-10-swish": 36.5, "wide_resnet-34-10": 46.2,
    "wide_resnet-34-10-swish": 46.2, "wide_resnet-34-20": 184.5, "wide_resnet-34-20-swish": 184.5,
    "wide_resnet-70-16-swish": 266.8, "wide_resnet-94-16-swish": 365.9, "resnet18": 11.2, "resnet50": 23.5,
    "preact_resnet18": 11.2,
    "preact_resnet18-raw": 11.2, "preact_resnet18-swish": 12.5,
}  # fmt: skip


@over("name", sorted({t.network for t in teachers()}))
def test_every_network_of_the_table_builds_in_its_published_size(name: str) -> None:
    with torch.device("meta"):
        net = build(name, num_classes=10, image_shape=(3, 32, 32))
    assert round(parameter_count(net) / 1e6, 1) == COUNTS[name]


# what is refused ------------------------------------------------------------------------------------------------------
FAMILIES = (
    "wide_resnet-10-1", "wide_resnet-16-2", "wide_resnet-10-1-swish", "wide_resnet-16-2-swish", "preact_resnet18",
    "preact_resnet18-swish", "resnet18", "resnet50", "mobilenet_v2", "cnn-12",
)  # fmt: skip


@over("prefix", ["", "module.", "module.1."])
@over("name", FAMILIES)
def test_a_state_dict_is_recognised(name: str, prefix: str) -> None:
    with torch.device("meta"):
        state = build(name, num_classes=17, image_shape=(3, 32, 32)).state_dict()
    # A Sequential has its normalisation under 0 and the network under 1.
    held = under(prefix.replace("1.", "0."), statistics(("mean", "std"), C10, (3, 1, 1))) | under(prefix, state)
    assert alike(held, 3, ("sub_block1.",)) == ((name,), 1.0)


WRONG = {
    "SiLU for ReLU": ("Chen2021LTD_WRN34_10", "wide_resnet-10-1-swish", "this looks like wide_resnet-10-1-swish"),
    "ReLU for SiLU": ("cifar10/Wang2023Better_WRN-28-10", "wide_resnet-10-1", "this looks like wide_resnet-10-1"),
    "width": ("Chen2021LTD_WRN34_20", "wide_resnet-10-1", "this looks like wide_resnet-10-1"),
    "no last BatchNorm": (
        "Addepalli2021Towards_PARN18", "preact_resnet18-nobn",
        "this looks like preact_resnet18-nobn or preact_resnet18-raw, which no key tells apart",
    ),
    "ResNet for PreActResNet": ("Wong2020Fast", "resnet18", "this looks like resnet18"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "theirs", "says"), WRONG.values(), ids=WRONG)
def test_another_family_is_refused_with_the_right_one(
    name: str, theirs: str, says: str, tmp_path: Path, little: None
) -> None:
    torch.save({"state_dict": under("module.", network(theirs).state_dict())}, tmp_path / "w.pt")
    with pytest.raises(Refused, match=rf"(missing|another shape).*{says}$"):
        mmard.load_teacher(f"robustbench:{name}", weights=tmp_path / "w.pt")


def test_missing_and_extra_tensors_are_listed_and_the_nearest_named(tmp_path: Path, little: None) -> None:
    state = network("resnet18").state_dict()
    torch.save({k: v for k, v in state.items() if k != "layer1.0.bn1.bias"} | {"odd": torch.rand(3)}, tmp_path / "w.pt")
    says = r"1 missing \(layer1\.0\.bn1\.bias\); 1 extra \(odd\); the nearest is resnet18, which has 98% of these"
    with pytest.raises(Refused, match=says):
        mmard.load_teacher("robustbench:cifar10/Addepalli2022Efficient_RN18", weights=tmp_path / "w.pt")


def test_foreign_weights_by_a_networks_name_are_recognised_as_well(tmp_path: Path) -> None:
    torch.save(network("wide_resnet-16-2-swish").state_dict(), tmp_path / "w.pt")
    with pytest.raises(Refused, match=r"this looks like wide_resnet-16-2-swish$"):
        load_network("resnet18", weights=str(tmp_path / "w.pt"), num_classes=10, image_shape=(3, 32, 32))


REFUSED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "mean of the other set": (
        "cifar100/Wang2023Better_WRN-28-10", (C10, "wide_resnet-10-1-swish", 100), {},
        r"expected mean \[0\.5071.* in the file; is it the file of another data set",
    ),
    "mean where there is none": (
        "cifar10/Chen2021LTD_WRN34_10", (C10, "wide_resnet-10-1", 10), {}, "expected no mean and std",
    ),
    "no file": ("Zhang2019Theoretically", None, {}, r"give --teacher-weights FILE; mmard fetch robustbench:Zhang2019"),
    "no file and no place": ("Xu2023Exploring_WRN-28-10", None, {}, "see https://arxiv.org/abs/2302.03015"),
    "other classes": ("Zhang2019Theoretically", None, {"num_classes": 100}, "100 classes.*got one for cifar10"),
    "other images": ("Zhang2019Theoretically", None, {"image_shape": (1, 8, 8)}, r"images \(1, 8, 8\)"),
    "a misspelling": ("Zhang2019Theoreticaly", None, {}, "did you mean 'Zhang2019Theoretically'"),
    "half a name": ("chen2021ltd", None, {}, "did you mean Chen2021LTD_WRN34_20 or Chen2021LTD_WRN34_10"),
    "another set's": ("cifar100/Zhang2019Theoretically", None, {}, "one of the 69"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "held", "wanted", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_this_teacher_is_refused(
    name: str, held: Any, wanted: dict[str, Any], says: str, tmp_path: Path, little: None
) -> None:
    weights = None
    if held is not None:
        values, theirs, classes = held
        weights = tmp_path / "w.pt"
        state = network(theirs, classes).state_dict()
        torch.save({**statistics(("mean", "std"), values, (3, 1, 1)), **state}, weights)
    with pytest.raises(Refused, match=says):
        mmard.load_teacher(f"robustbench:{name}", weights=weights, **wanted)


def test_a_pickle_is_not_executed(tmp_path: Path, little: None) -> None:
    torch.save(network("resnet18"), tmp_path / "whole.pt")
    with pytest.raises(Refused, match="nothing is unpickled"):
        mmard.load_teacher("robustbench:Addepalli2022Efficient_RN18", weights=tmp_path / "whole.pt")


# fetching -------------------------------------------------------------------------------------------------------------
class Drive:
    """What a stand-in for Google Drive answers, by the id that is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.announces = 0


class Answer(BaseHTTPRequestHandler):
    def __init__(self, drive: Drive, *args: Any) -> None:
        self.drive = drive
        super().__init__(*args)

    def do_GET(self) -> None:
        self.drive.asked.append(self.path)
        content = next((c for i, c in self.drive.files.items() if f"id={i}" in self.path), None)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"") + self.drive.announces))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def drive() -> Iterator[tuple[Drive, str]]:
    drive = Drive()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, drive))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield drive, f"http://127.0.0.1:{server.server_port}/uc"
    server.shutdown()
    thread.join()
    server.server_close()


SPEC = "robustbench:cifar10/Addepalli2022Efficient_RN18"
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


def saved(state: Any, file: Path) -> bytes:
    torch.save(state, file)
    return file.read_bytes()


def test_a_fetched_file_is_looked_at_and_recorded(drive: tuple[Drive, str], tmp_path: Path) -> None:
    served, base = drive
    net = network("resnet18")
    served.files[str(find(SPEC)[0].drive)] = saved({"state_dict": net.state_dict()}, tmp_path / "w.pt")
    lines: list[str] = []
    file = fetch_teacher(SPEC, tmp_path / "D", lines.append, base=base)
    assert file == tmp_path / "D" / "teachers" / "cifar10" / "Addepalli2022Efficient_RN18.pt"
    assert file.read_bytes() == (tmp_path / "w.pt").read_bytes()
    assert sorted(p.name for p in file.parent.iterdir()) == [f"{file.stem}.json", file.name]
    record = json.loads(file.with_suffix(".json").read_text())
    assert (record["size"], record["licence"], len(record["sha256"])) == (file.stat().st_size, "MIT", 64)
    with torch.no_grad():
        found = mmard.load_teacher(SPEC, weights=file)
        assert torch.equal(found.module.eval()(images()), net(images()))
    fetch_teacher(SPEC, tmp_path / "D", lines.append, base=base)
    assert len(served.asked) == 1
    assert "already there" in lines[-1]


BAD: dict[str, tuple[Callable[[Path], bytes], int, str]] = {
    "a page": (lambda p: PAGE, 0, "expected a checkpoint, got an HTML page.*in a browser"),
    "nothing of the kind": (lambda p: b"\x1f\x8b\x08 a tar", 0, r"expected a checkpoint, got b'"),
    "cut off": (lambda p: saved({"a": torch.rand(9)}, p), 10, "bytes, got"),
    "damaged": (lambda p: b"PK\x03\x04" + bytes(500), 0, "a damaged file.*; deleted"),
    "another network": (lambda p: saved(network("cnn-4").state_dict(), p), 0, "this looks like cnn-4; deleted"),
}


@pytest.mark.parametrize(("content", "more", "says"), BAD.values(), ids=BAD)
def test_what_is_not_the_file_leaves_nothing(
    content: Callable[[Path], bytes], more: int, says: str, drive: tuple[Drive, str], tmp_path: Path
) -> None:
    served, base = drive
    served.files[str(find(SPEC)[0].drive)] = content(tmp_path / "w.pt")
    served.announces = more
    with pytest.raises(Refused, match=says):
        fetch_teacher(SPEC, tmp_path / "D", base=base)
    assert list((tmp_path / "D" / "teachers" / "cifar10").iterdir()) == []


def test_a_fetch_that_cannot_be_is_one_line(drive: tuple[Drive, str], tmp_path: Path) -> None:
    for spec, says in (
        (SPEC, "expected an answer from Google Drive, got HTTPError.*404"),
        ("robustbench:Chen2021LTD_WRN34_10", "expected one teacher, got two; robustbench:cifar10/Chen"),
        ("robustbench:Xu2023Exploring_WRN-28-10", "a known place of its file, got none"),
    ):
        with pytest.raises(Refused, match=says):
            fetch_teacher(spec, tmp_path / "D", base=drive[1])


# the command line -----------------------------------------------------------------------------------------------------
def test_the_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert answer(["teachers"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") > len(teachers())
    assert "Chen2021LTD_WRN34_10" in out
    assert "85.21" in out
    assert answer(["teachers", "Gowal2020Uncovering_70_16"]) == 0
    out = capsys.readouterr().out
    claimed = "85.29% clean, 57.20% under AutoAttack at linf 8/255; 57.14% by"
    for needed in ("mean [0.4914", claimed, "Apache-2.0", "8QKzl"):
        assert needed in out
    assert answer(["teachers", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(teachers())
    assert answer(["teachers", "nobody"]) == 2
    assert "one of the 69 that `mmard teachers` lists" in capsys.readouterr().err
    assert answer(["fetch", "robustbench:Xu2023Exploring_WRN-28-10", "--data-dir", str(tmp_path)]) == 2
    assert "a known place of its file" in capsys.readouterr().err
