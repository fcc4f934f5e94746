"""ONNX files: what is exported does what the network does, and what is read is measured as any network is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from little import CLASSES, SHAPE, matcher, measured, net, picture_set, protocol
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.cli import answer
from mmard.data import load
from mmard.deploy.export import attacked_parity, export_checked, export_onnx, parity
from mmard.deploy.onnx import OnnxNetwork
from mmard.errors import Refused
from mmard.files import save_tensors, weights_hash
from mmard.models import Normalised, build
from mmard.networks import load_network, network_facts
from mmard.run import Run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

IMAGES = picture_set(40)
BUDGET = Budget(0.1)


def normalised() -> nn.Module:
    """A network with BatchNorm that has seen data, dropout, and normalisation inside; in train mode."""
    inner = net(1, dropout=0.5)
    inner(torch.rand(64, *SHAPE))
    return Normalised(inner, [0.4], [0.3])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    module, path = normalised(), tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(module, path, SHAPE, facts={"network": "little:net", "num_classes": CLASSES})
    assert module.training
    return module, path


def written(
    path: Path,
    shape: tuple[Any, ...] = ("batch", *SHAPE),
    dtype: int = 1,
    *,
    outputs: int = 1,
    softmax: bool = False,
    two_inputs: bool = False,
) -> Path:
    """A linear network written by hand: pixels, in whatever order they come, times the matcher's weights."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    linear = matcher()[1]
    weight = numpy_helper.from_array(linear.weight.detach().numpy().T.copy(), "w")
    bias = numpy_helper.from_array(linear.bias.detach().numpy(), "b")
    nodes = [helper.make_node("Cast", ["x"], ["xf"], to=1), helper.make_node("Flatten", ["xf"], ["flat"], axis=1)]
    nodes += [helper.make_node("Gemm", ["flat", "w", "b"], ["y0"])]
    nodes += [helper.make_node("Softmax", ["y0"], ["p"], axis=1)] if softmax else []
    names = ["p" if softmax else "y0", "flat"][:outputs]
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    inputs += [helper.make_tensor_value_info("more", 1, [1])] if two_inputs else []
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(name, 1, None) for name in names], [weight, bias]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, str(path))
    return path


# export ---------------------------------------------------------------------------------------------------------------
def test_an_exported_network_gives_the_same_logits_for_any_batch(exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    module.eval()
    read = OnnxNetwork(path)
    assert read.batch is None
    assert read.shape == SHAPE
    for size in (1, 2, 7, 40):
        x = torch.rand(size, *SHAPE, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            torch.testing.assert_close(read(x), module(x), rtol=1e-5, atol=1e-5)
    module.train()


def test_an_exported_file_is_valid_and_says_what_it_is(exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["logits"]
    facts = OnnxNetwork(path).facts
    assert facts["network"] == "little:net"
    assert facts["weights"] == weights_hash(module)
    assert "[0, 1]" in facts["input"]
    assert not list(path.parent.glob("*.data"))


def test_parity_counts_every_image(exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    found = parity(module, path, IMAGES, batch_size=16)
    assert found.holds
    assert found.n == 40
    assert found.flips == 0
    assert found.correct == found.correct_exported
    assert found.largest > 0
    low, high = found.interval
    assert low <= found.correct / 40 <= high


def test_parity_sees_another_network(exported: tuple[nn.Module, Path]) -> None:
    _, path = exported
    found = parity(matcher(), path, IMAGES)
    assert not found.holds
    assert found.flips > 0


def test_a_file_that_would_differ_is_not_written(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        """Another function while it is traced."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = matcher()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * (-1 if torch.compiler.is_exporting() else 1)

    path = tmp_path / "x.onnx"
    path.write_text("what was there before")
    with pytest.raises(Refused, match="nothing was written"):
        export_checked(Fickle(), path, IMAGES)
    assert path.read_text() == "what was there before"
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_a_network_that_cannot_be_traced_is_refused_in_words(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] if float(x.sum()) > 1 else x.flatten(1)[:, 1:4]

    with pytest.raises(Refused, match="plain tensor operations"):
        export_onnx(Branching(), tmp_path / "x.onnx", SHAPE)
    with pytest.raises(Refused, match="no such folder"):
        export_onnx(matcher(), tmp_path / "none" / "x.onnx", SHAPE)
    assert not list(tmp_path.iterdir())


def test_the_same_verdicts_under_attack(exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    own, theirs = attacked_parity(module, path, IMAGES, protocol(["pgd-3"], BUDGET))
    np.testing.assert_array_equal(own.mask, theirs.mask)
    assert own.score.weights != theirs.score.weights


# reading --------------------------------------------------------------------------------------------------------------
def test_a_foreign_file_is_read_as_it_is(tmp_path: Path) -> None:
    read = OnnxNetwork(written(tmp_path / "x.onnx"))
    x = IMAGES.x.float() / 255
    with torch.no_grad():
        torch.testing.assert_close(read(x), matcher()(x), rtol=1e-5, atol=1e-5)
    assert read.facts == {}


@pytest.mark.parametrize("size", [1, 3, 8, 11])
def test_a_fixed_batch_size_is_filled_up(tmp_path: Path, size: int) -> None:
    fixed, free = OnnxNetwork(written(tmp_path / "f.onnx", (8, *SHAPE))), OnnxNetwork(written(tmp_path / "x.onnx"))
    assert (fixed.batch, free.batch) == (8, None)
    x = IMAGES.x[:size].float() / 255
    torch.testing.assert_close(fixed(x), free(x))
    assert len(fixed(x)) == size


def test_two_files_have_two_hashes(tmp_path: Path, exported: tuple[nn.Module, Path]) -> None:
    one, same, other = (
        OnnxNetwork(path) for path in (written(tmp_path / "a.onnx"), written(tmp_path / "b.onnx"), exported[1])
    )
    assert weights_hash(one) == weights_hash(same) != weights_hash(other)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"shape": ("batch", 4, 4, 1)}, "channels come last there"),
    ({"shape": ("batch", 16)}, "an input of 2 dimensions"),
    ({"dtype": 2}, "uint8"),
    ({"dtype": 10}, "float16"),
    ({"outputs": 2}, "one input and one output"),
    ({"two_inputs": True}, "one input and one output"),
]


@pytest.mark.parametrize(("wrong", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_files_for_other_inputs_are_refused_with_the_mend(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        OnnxNetwork(written(tmp_path / "x.onnx", **wrong))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(Refused, match="is it whole"):
        OnnxNetwork(tmp_path / "x.onnx")
    with pytest.raises(Refused, match="no such file"):
        OnnxNetwork(tmp_path / "y.onnx")
    whole = written(tmp_path / "z.onnx").read_bytes()
    (tmp_path / "z.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match="is it whole"):
        OnnxNetwork(tmp_path / "z.onnx")


def test_a_missing_runtime_is_told_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mmard.deploy.onnx", "mmard.deploy.export"):
        monkeypatch.setattr(f"{module}.find_spec", lambda _: None)
    with pytest.raises(Refused, match=r"mmard\[onnx\]"):
        OnnxNetwork(written(tmp_path / "x.onnx"))
    with pytest.raises(Refused, match=r"mmard\[onnx\]"):
        export_onnx(matcher(), tmp_path / "y.onnx", SHAPE)


def test_load_network_holds_a_file_to_the_data(tmp_path: Path, exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    found = load_network(str(path), num_classes=CLASSES, image_shape=SHAPE)
    assert found.source == "net.onnx"
    assert found.facts["weights"] == weights_hash(module)
    with pytest.raises(Refused, match="expected 10 classes"):
        load_network(str(path), num_classes=10, image_shape=SHAPE)
    with pytest.raises(Refused, match=r"expected images \(3, 8, 8\)"):
        load_network(str(path), num_classes=CLASSES, image_shape=(3, 8, 8))
    with pytest.raises(Refused, match="with a gradient"):
        load_network(str(path), who="teacher")
    foreign = written(tmp_path / "x.onnx")
    with pytest.raises(Refused, match="give --data"):
        load_network(str(foreign))
    with pytest.raises(Refused, match=r"expected logits \(B, 10\)"):
        load_network(str(foreign), num_classes=10, image_shape=SHAPE)
    with pytest.raises(Refused, match="softmax"):
        load_network(str(written(tmp_path / "p.onnx", softmax=True)), num_classes=CLASSES, image_shape=SHAPE)


def test_square_on_a_file_gives_the_verdicts_of_the_network(tmp_path: Path) -> None:
    """Logits agree to rounding, and the search reads nothing else."""
    path = written(tmp_path / "x.onnx")
    few = {"split": "t", "which": "", "batch_size": 16}
    theirs, own = (
        measured(model, picture_set(16), ["square"], BUDGET, **few) for model in (OnnxNetwork(path), matcher())
    )
    assert [m.score.attack for m in theirs] == ["clean", "square"]
    for a, b in zip(theirs, own, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)


# the command ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    images = load("digits").test
    made = Run.create("r", {"method": "pgd_at", "model": "cnn-4", "data": "digits", "eps": 0.1, "norm": "linf"})
    module = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0)
    made.save_weights("best", module.state_dict(), {**network_facts("cnn-4", module, images), "epoch": 1})
    return made


def test_export_writes_checks_and_says_what_it_found(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(["export", "r", "--to", "r.onnx", "--attack", "pgd-2", "--first", "50", "--json"]) == 0
    shown = capsys.readouterr()
    held = json.loads(shown.out)
    assert shown.err == ""
    assert held["n"] == 50
    assert held["flips"] == 0
    assert held["attacked"][0]["file"]["correct"] == held["attacked"][0]["network"]["correct"]
    assert OnnxNetwork(Path("r.onnx")).facts["source"] == "r (best, epoch 1)"
    use = ["--data", "digits", "--eps", "0.1", "--first", "10"]
    assert answer(["evaluate", "r.onnx", *use]) == 2
    assert "--attack square" in capsys.readouterr().err
    assert answer(["evaluate", "r.onnx", *use, "--attack", "pgd-2", "--from", "r"]) == 0
    assert "made on r" in " ".join(capsys.readouterr().out.split())
    assert answer(["export", "r.onnx", *use, "--to", "s.onnx"]) == 2


def test_export_refuses_another_ending(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["export", "r", "--to", "r.pb"]) == 2
    assert ".onnx" in capsys.readouterr().err


def test_a_named_network_with_weights_is_exported_with_its_normalisation(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, _ = run.load_weights("best")
    save_tensors(Path("theirs.safetensors"), tensors, {})
    call = [
        "export",
        "cnn-4",
        "--weights",
        "theirs.safetensors",
        "--data",
        "digits",
        "--eps",
        "0.1",
        "--attack",
        "none",
    ]
    assert answer([*call, "--mean", "0.3", "--std", "0.25", "--to", "n.onnx", "--first", "20"]) == 0
    assert "0 of 20 differ" in capsys.readouterr().out
    bare = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0).eval()
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(OnnxNetwork(Path("n.onnx"))(x), bare((x - 0.3) / 0.25), rtol=1e-4, atol=1e-5)
