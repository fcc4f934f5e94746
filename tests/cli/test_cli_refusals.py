"""What is refused: one line that says what to mend, and nothing written."""

from __future__ import annotations

import pickle
import re
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typed import SMALL, Typed, everything

from mmard.cli import answer
from mmard.files import save_tensors
from mmard.models import build
from mmard.networks import network_facts


def weights_of(path: str, name: str = "cnn-4", classes: int = 10, shape: tuple[int, ...] = (1, 8, 8)) -> None:
    """A file as `distill` reads it, of an untrained network."""
    net = build(name, num_classes=classes, image_shape=shape, seed=0)
    facts = {"network": name, "normalised": False, "num_classes": classes, "image_shape": list(shape)}
    save_tensors(Path(path), net.state_dict(), facts)


def arrays(x: Any = None, y: Any = None) -> None:
    """A small set of grey images in the file set.npz, wrong where the test says so."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (40, 8, 8), dtype=np.uint8) if x is None else x
    y = np.arange(40) % 4 if y is None else y
    np.savez("set.npz", x_train=x, y_train=y, x_test=x, y_test=y)


class Planted:
    """Would write a file if it were unpickled without restriction."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("planted"), "")


TRAIN = ("train", *SMALL, "--model", "cnn-1", "--epochs", "1", "--out", "n")
DISTILL = ("distill", *SMALL, "--student", "cnn-1", "--epochs", "1", "--out", "n", "--teacher")
MINE = (
    "train",
    "--data",
    "npz",
    "--data-dir",
    "set.npz",
    "--model",
    "cnn-1",
    "--epochs",
    "1",
    "--batch-size",
    "4",
    "--out",
    "n",
)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ((*TRAIN, "--method", "tradse"), "method 'tradse': expected one of .*; did you mean 'trades'\\?"),
        ((*DISTILL, "t", "--method", "rslad+mmrd"), "plug-in 'mmrd': .*; did you mean 'mmard'\\?"),
        ((*DISTILL, "t", "--method", "trades"), "expected one that reads a teacher, got one without; use mmard train"),
        ((*TRAIN, "--method", "rslad"), "got one that reads T; use mmard distill --teacher"),
        ((*TRAIN, "--model", "resnet81"), "network 'resnet81': .*; did you mean 'resnet18'\\?"),
        ((*TRAIN, "--val-attack", "pdg-10"), "attack 'pdg-10': .*; did you mean 'pgd-10'\\?"),
        (("evaluate", "s", "--attack", "cv-30"), "attack 'cv-30': .*aa, aa-rand, .*; did you mean 'cw-30'\\?"),
        (("evaluate", "s", "--attack", "pgd-2,sqare"), "attack 'sqare': .*; did you mean 'square'\\?"),
        (
            ("evaluate", "s", "--attack", "apgd-dt"),
            "attack 'apgd-dt': .*apgd-ce, apgd-dlr, apgd-t, .*; did you mean 'apgd-t'\\?",
        ),
        ((*TRAIN, "--data", "digts"), "data 'digts': .*; did you mean 'digits'\\?"),
        ((*TRAIN, "--data", "cifar10"), "data 'cifar10': .*--data-dir"),
        ((*TRAIN, "--data", "cifar10", "--data-dir", "."), "get them with: mmard fetch cifar10 --data-dir \\."),
        ((*TRAIN, "--preset", "offical"), "preset 'offical': .*; did you mean 'official'\\?"),
        ((*TRAIN, "--schedule", "cosin"), "schedule 'cosin': .*; did you mean 'cosine'\\?"),
        (
            (*DISTILL, "five.safetensors"),
            "expected 10 classes, as the data has, got a network for 5; is it for other data\\?",
        ),
        (
            (*DISTILL, "large.safetensors"),
            "expected images \\(1, 8, 8\\), as the data has, got a network for \\(3, 32, 32\\)",
        ),
        (
            (*DISTILL, "untrained.safetensors"),
            "expected a clean accuracy .*which is guessing .*; are these its weights, .* in \\[0, 1\\]",
        ),
        ((*DISTILL, "nowhere/at/all"), "teacher nowhere/at/all: expected a run folder or a file, got no such path"),
        (
            (*DISTILL, "torn.safetensors"),
            "torn.safetensors: expected a whole safetensors file, got .*; is it truncated\\?",
        ),
        (
            (*DISTILL, "cnn-4", "--teacher-weights", "planted.pt"),
            "planted.pt: expected a checkpoint that holds tensors alone, got",
        ),
        (
            (*DISTILL, "cnn-4", "--teacher-weights", "page.pt"),
            "got an HTML page.*; download it again",
        ),
        (
            (*DISTILL, "cnn-8", "--teacher-weights", "untrained.safetensors"),
            "of another shape .*; this looks like cnn-4",
        ),
        (
            ("distill", *SMALL, "--out", "n"),
            "expected --teacher with a run folder or a file of weights, got none; train one: mmard",
        ),
        ((*TRAIN, "--eps", "8"), "Budget\\(eps=8\\): expected eps in \\(0, 1\\], got 8; .* did you mean 8/255\\?"),
        ((*TRAIN, "--eps", "eight"), "eps.*expected .*a number or a fraction such as 8/255.*got 'eight'"),
        ((*TRAIN, "--step-size", "80/255"), "expected a step within the diameter .*; are eps and step_size swapped\\?"),
        ((*TRAIN, "--epochs", "ten"), "setting epochs: .*got 'ten'"),
        ((*TRAIN, "--norm", "l3"), "setting norm: .*got 'l3'"),
        ((*TRAIN, "--batch-size", "129"), "batch_size: expected 1 to 128, the images in .*, got 129"),
        (
            (*TRAIN, "--method", "natural", "--param", "natural.foo=1"),
            "parameter 'natural.foo': expected none, since natural has no parameter, got",
        ),
        ((*TRAIN, "--method", "trades", "--param", "trades.foo=1"), "'trades.foo': expected one of trades.beta, got"),
        ((*TRAIN, "--param", "foo"), "--param: expected NAME=VALUE"),
        ((*TRAIN, "--device", "cuda:99"), "device cuda:99: expected a GPU that PyTorch sees"),
        ((*TRAIN, "--out", "t"), "t: expected a new folder, got one that holds a run; resume it with --resume t"),
        ((*TRAIN, "--out", "full"), "full: expected a new or empty folder, got one with other files"),
        ((*TRAIN, "--config", "typo.toml"), "typo.toml, setting 'epoch': .*; did you mean 'epochs'\\?"),
        ((*TRAIN, "--config", "torn.json"), "torn.json: expected JSON"),
        ((*TRAIN, "--config", "none.toml"), "none.toml: expected a file of settings, got No such file"),
        (
            (*TRAIN, "--config", "s/config.json"),
            "got those of mmard distill; run it with: mmard distill --config s/config",
        ),
        (("train", "--resume", "full"), "full: expected a run folder, got a folder without config.json"),
        (("show", "nowhere"), "nowhere: expected a run folder, got no such folder"),
        (("methods", "mmard+rslad"), "expected a method first, got the plug-in 'mmard'; write e.g. rslad\\+mmard"),
        (("fetch", "cifar11", "--data-dir", "d"), "'cifar11': .*; did you mean 'cifar10'"),
        (("evaluate", "s", "--split", "tset"), "split 'tset': .*; did you mean 'test'\\?"),
        (("evaluate", "s", "--first", "0"), "--first: expected at least 1, got 0"),
        (("evaluate", "s", "--processes", "100000"), "--processes: expected at most [0-9]+, got 100000"),
        (("evaluate", "s", "--batch-size", "0"), "--batch-size: expected at least 1, got 0"),
        (("evaluate", "s", "--engine", "plian"), "engine 'plian': expected one of .*; did you mean 'plain'\\?"),
        (("bench", "--threads", "100000"), "--threads: expected at most 512, got 100000"),
        ((*TRAIN, "--threads", "100000"), "setting threads: expected at most 512, got 100000"),
        (("study", "run", "headline", "--jobs", "100000"), "--jobs: expected at most [0-9]+, got 100000"),
        (("distil", "--teacher", "t"), "command 'distil': .*; did you mean 'distill'\\?"),
        ((*TRAIN, "--epoch", "3"), "train: expected an option that it has, got --epoch; did you mean --epochs\\?"),
        (("evaluate",), "evaluate: missing argument"),
        (("demo", "--seeds", "0"), "--seeds: expected at least 1, got 0"),
    ],
)
def test_bad_input(typed: tuple[str, ...], says: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights_of("five.safetensors", classes=5)
    weights_of("large.safetensors", shape=(3, 32, 32))
    weights_of("untrained.safetensors")
    Path("torn.safetensors").write_bytes(Path("untrained.safetensors").read_bytes()[:-100])
    Path("planted.pt").write_bytes(pickle.dumps(Planted()))
    Path("page.pt").write_text("<!DOCTYPE html><html>Sign in</html>")
    Path("typo.toml").write_text("epoch = 3\n")
    Path("torn.json").write_text('{"epochs": ')
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = everything(runs)
    done = Typed(capsys, *typed)
    assert done.status == 2
    assert done.out == ""
    assert re.fullmatch(r"mmard: [^\n]+\n", done.err), f"not one line: {done.err}"
    assert re.search(says, done.err), done.err
    assert everything(runs) == before, "something was written"


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (
            np.linspace(-1, 2, 40 * 64).reshape(40, 8, 8),
            None,
            "expected floats in \\[0, 1\\], got min -1, max 2; .*not normalised",
        ),
        (np.linspace(0, 255, 40 * 64).reshape(40, 8, 8), None, "got min 0, max 255; divide by 255"),
        (None, np.arange(40) % 4 - 1, "label -1"),
        (None, np.repeat([0, 1, 3, 3], 10), "expected a training image of every class, got none of '2'"),
        (None, np.arange(39) % 4, "expected as many labels as images, 40, got 39"),
    ],
)
def test_bad_images(x: Any, y: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays(x, y)
    before = everything(tmp_path)
    done = Typed(capsys, *MINE)
    assert done.status == 2
    assert re.fullmatch(r"mmard: [^\n]+\n", done.err)
    assert re.search(says, done.err), done.err
    assert everything(tmp_path) == before


def test_good_images_train(capsys: pytest.CaptureFixture[str]) -> None:
    """What the bad ones differ from is accepted."""
    arrays()
    assert Typed(capsys, *MINE).status == 0


def test_no_space_left(capsys: pytest.CaptureFixture[str]) -> None:
    """What was saved stays valid, and the run goes on once there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, hard))
    try:
        done = Typed(capsys, "train", *SMALL, "--model", "cnn-4", "--epochs", "2", "--save-seconds", "0", "--out", "n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.status == 2
    assert re.fullmatch(r"mmard: n/state.safetensors: expected to write this file, got no space left; .*\n", done.err)
    assert Typed(capsys, "show", "n").status == 0
    assert Typed(capsys, "train", "--resume", "n").status == 0
    assert "finished: 2 epochs" in Typed(capsys, "show", "n").out


def test_a_loss_that_diverges(capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, *TRAIN[:-2], "--lr", "1e30", "--epochs", "9", "--out", "n")
    assert done.status == 1
    assert re.fullmatch(
        r"mmard: n, epoch \d, step \d+: expected finite .*; try a smaller --lr or --grad-clip 1\n", done.err
    )


def test_an_error_of_ours_keeps_its_traceback(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("mmard.job.prepare", broken)
    with pytest.raises(RuntimeError, match="ours"):
        answer(list(TRAIN))


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = Typed(capsys, *TRAIN, "--tensorboard")
    assert (done.status, everything(tmp_path)) == (2, set())
    assert 'pip install "mmard[tb]"' in done.err


def test_facts_are_those_that_weights_carry() -> None:
    """`weights_of` above writes what a run would, so that the refusals are of what differs and not of the form."""
    from mmard.data import load

    images = load("digits").test
    ours = network_facts("cnn-4", build("cnn-4", num_classes=10, image_shape=(1, 8, 8)), images)
    assert {"network", "normalised", "num_classes", "image_shape"} <= set(ours)
