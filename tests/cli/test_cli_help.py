"""Tables of what there is, and help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest
import torch
from typed import SRC, Typed

from mmard import catalogue
from mmard.catalogue import host_of
from mmard.cli.catalogue import argument_sentences
from mmard.methods import METHODS, PLUGINS
from mmard.models import MODELS
from mmard.settings import TAUGHT, Settings


# tables -------------------------------------------------------------------------------------------
def test_methods_are_all_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = Typed(capsys, "methods").out
    for name in (*METHODS, *PLUGINS):
        assert len(re.findall(rf"^{name} ", out, re.MULTILINE)) == 1, name
    assert re.search(r"^rslad +Zi et al., ICCV 2021 +S +12 +2 +10 +2$", out, re.MULTILINE)
    assert re.search(r"^mmard .* S +0 +0 +0 +0\n +.* T +0 +0 +1 +0$", out, re.MULTILINE)


@pytest.mark.parametrize("name", [*METHODS, *(f"{host_of(plugin)}+{plugin}" for plugin in PLUGINS)])
def test_a_method_in_detail(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mmard.methods import parameters

    out = Typed(capsys, "methods", name).out
    for part in name.split("+"):
        make = METHODS.get(part) or PLUGINS[part]
        sentences = argument_sentences(make.__doc__ or "")
        for key in parameters(part):
            assert f"{part}.{key}" in out
            assert sentences.get(key), f"{part} has no sentence for {key}"
            assert " ".join(sentences[key].split()[:3]) in out
    assert "Differences from" in out


def test_lists_as_json_hold_what_the_tables_have(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*typed: str) -> Any:
        done = Typed(capsys, *typed, "--json")
        assert (done.status, done.err) == (0, "")
        return json.loads(done.out)

    assert [row["name"] for row in listed("methods")] == [*METHODS, *PLUGINS]
    rslad = next(row for row in listed("methods") if row["name"] == "rslad")
    found = listed("methods", "rslad")
    assert rslad["passes"]["T"] == {
        "forwards": 1, "train_forwards": 0, "input_backwards": 0, "weight_backwards": 0
    } == found["passes"]["T"]  # fmt: skip
    assert {row["name"]: row["default"] for row in found["parameters"]} == rslad["parameters"]
    assert {row["name"]: row["weights"] for row in listed("models")}["resnet18"] == 11_173_962
    assert next(row for row in listed("data") if row["name"] == "digits")["bundled"]
    assert "pgd-20" in [row["spelling"] for row in listed("attacks")["attacks"]]
    assert listed("teachers", "Zhang2019Theoretically")[0]["spec"] == "robustbench:Zhang2019Theoretically"


def test_where_the_source_has_changed_the_lists_are_made_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method that was added since `make docs` is in the list, and may be trained."""
    monkeypatch.setattr(catalogue, "_source", lambda kind: "another")
    monkeypatch.setattr("mmard.models.MODELS", {"cnn": MODELS["cnn"]})
    catalogue._held.cache_clear()
    try:
        rows = Typed(capsys, "models").out.splitlines()
        catalogue.refuse_unknown_names(Settings(method="unheard_of", data="unheard_of"))
    finally:
        catalogue._held.cache_clear()
    assert [row.split()[0] for row in rows if row.startswith("cnn-")] == ["cnn-4", "cnn-8", "cnn-16", "cnn-32"]
    assert not any(row.startswith("resnet18 ") for row in rows)


def test_models_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"^resnet18 +11,173,962$", Typed(capsys, "models").out, re.MULTILINE)
    out = Typed(capsys, "data").out
    assert "mmard fetch cifar10 --data-dir D" in out
    assert re.search(r"digits .*comes with the package", out)


def test_fetch_says_what_next(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmard.data.fetch.fetch", lambda name, folder, tell: (tell("a file"), folder / name)[1])
    out = Typed(capsys, "fetch", "cifar10", "--data-dir", "my data").out
    assert out.startswith("a file\ncomplete and checked: my data/cifar10\n")
    assert "--data cifar10 --data-dir 'my data'" in out


# help ---------------------------------------------------------------------------------------------
ASKED = """
import contextlib, io, json, sys, time
import mmard.cli
found = []
for arguments in json.loads(sys.argv[1]):
    began = time.process_time() if found else 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        status = mmard.cli.answer(arguments)
    heavy = [name for name in ("torch", "numpy") if name in sys.modules]
    found.append([status, heavy, time.process_time() - began])
print(json.dumps(found))
"""


def test_what_needs_no_torch_does_not_import_it_and_is_quick() -> None:
    answered = ["--help", "distill --help", "--version", "attacks", "methods", "teachers", "models", "data --json"]
    refused = ["train --nonsense", "train --eps 8/x", "train --method nope", "distill --method rslad+nope --teacher t"]
    refused += [
        "train --model nope",
        "train --data nope",
        "evaluate t.pt",
        "evaluate nope",
        "transfer a b",
        "show nope",
    ]
    done = subprocess.run(
        [sys.executable, "-c", ASKED, json.dumps([each.split() for each in (*answered, *refused)])],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.count("\n") == len(refused), done.stderr
    for typed, (status, heavy, seconds) in zip((*answered, *refused), json.loads(done.stdout), strict=True):
        allowed = ["numpy"] if typed == "show nope" else []
        assert (status, heavy) == (2 if typed in refused else 0, allowed), typed
        assert seconds < 1.5, f"{typed}: seconds of the CPU, of the first with all imports"


@pytest.mark.parametrize("command", ["train", "distill"])
def test_every_setting_is_in_help_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = Typed(capsys, command, "--help").out
    whole = " ".join(out.split())
    flags = {"params": "param", "optimizer_params": "optimizer-param", "teachers": "teacher"}
    flags["network"] = "model" if command == "train" else "student"
    for name, info in Settings.model_fields.items():
        if command == "train" and name in {"teachers", *TAUGHT}:
            assert f"--{flags.get(name, name).replace('_', '-')}" not in whole
            continue
        flag = flags.get(name, name.replace("_", "-"))
        shown = rf"^  --\[no-\]{flag}( |$)" if info.annotation is bool else rf"^  --{flag} "
        assert len(re.findall(shown, out, re.MULTILINE)) == 1, name
        assert info.description
        assert info.description in whole, name
    assert "[8/255]" in whole
    panels = [line for line in out.splitlines() if line and not line.startswith((" ", "mmard"))]
    assert panels == ["Examples", "Run", "Method", "Data", "Attack", "Training", "Machine", "Options"]


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    front = Typed(capsys, "--help").out
    assert Typed(capsys).out == front, "no command at all is a question for help"
    commands = ("demo", "train", "distill", "evaluate", "methods", "models", "data", "show", "fetch")
    for command in commands:
        assert re.search(rf"^  {command} ", front, re.MULTILINE)
        page = Typed(capsys, command, "--help").out
        assert re.search(rf"^Examples\n  mmard {command}", page, re.MULTILINE)
        assert page == Typed(capsys, command, "-h").out
    os.environ["COLUMNS"] = "80"
    wide = [line for line in Typed(capsys, "distill", "--help").out.splitlines() if len(line) > 80]
    assert all(line.startswith("  mmard ") for line in wide), "only what is copied may be longer than the terminal"


def test_doctor_says_what_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (9999.0, 0.0, 0.0))
    monkeypatch.setattr("mmard.cli.doctor.FULL", 2**80)
    out = Typed(capsys, "doctor").out
    for words in ("PyTorch", torch.__version__, "bfloat16", "load 9999.0", "GiB free in", "note: other processes"):
        assert words in out, words
    found = json.loads(Typed(capsys, "doctor", "--json").out)
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["cpu"]["capability"] in out
    assert sum("little room" in note for note in found["notes"]) == 2
    assert found["extras"]["onnx"].keys() == {"onnx", "onnxscript", "onnxruntime"}
    assert "dev" not in found["extras"]
    monkeypatch.setattr("mmard.cli.doctor.metadata.version", absent)
    assert "matplotlib not installed" in Typed(capsys, "doctor").out


def absent(package: str) -> str:
    raise metadata.PackageNotFoundError(package)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from mmard import __version__

    assert Typed(capsys, "--version").out == f"mmard {__version__}\n"
