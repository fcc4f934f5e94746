"""Methods of one's own: begun by `mmard new`, trained as package.module:function, not run because a file says so."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmard
from mmard.cli import answer
from mmard.errors import Refused
from mmard.methods import build, every_parameter
from mmard.run import Run
from mmard.trust import VARIABLE, trust_code

SMALL = ["--data", "digits", "--limit-train", "96", "--epochs", "1", "--steps", "1", "--val-attack", "fgsm"]
TAUGHT = [*SMALL, "--teacher", "little:digits_matcher", "--student", "cnn-4"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test types in a folder of its own, where nothing is trusted or imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("kind", "name", "spec"), [("method", "mine_a", "{0}:{0}"), ("plug-in", "mine_b", "rslad+{0}:{0}")]
)
def test_what_is_begun_is_tested_trained_shown_and_resumed(
    kind: str, name: str, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec.format(name)
    assert answer(["new", kind, name]) == 0
    assert f"mmard distill --method {spec} --teacher RUN" in capsys.readouterr().out
    sys.path.append(str(Path.cwd()))
    written = importlib.import_module(f"test_{name}")
    tests = [getattr(written, test) for test in vars(written) if test.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    parameter = "alpha" if kind == "method" else "beta"
    said = ["--param", f"{name}:{name}.{parameter}=0.25", "--out", "r", "--quiet"]
    assert answer(["distill", "--method", spec, *TAUGHT, *said]) == 0
    assert Run.open("r").config["method"] == spec
    assert Run.open("r").config["params"][f"{name}:{name}.{parameter}"] == 0.25
    capsys.readouterr()
    assert answer(["methods", spec, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["parameters"][-1]["name"]) == (spec, f"{name}:{name}.{parameter}")
    assert "weight of the" in found["parameters"][-1]["says"]


def test_a_run_is_shown_and_not_resumed_where_nobody_typed_its_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(["new", "method", "mine_c"])
    spec = "mine_c:mine_c"
    assert answer(["distill", "--method", spec, *TAUGHT, "--out", "r", "--quiet"]) == 0
    monkeypatch.setenv(VARIABLE, "")
    del sys.modules["mine_c"]
    sys.path.remove(str(Path.cwd()))
    for line in (["show", "r"], ["distill", "--resume", "r"], ["evaluate", "r", "--attack", "fgsm"], ["compare", "r"]):
        assert answer(line) == 0, "what needs no formula runs nobody's code"
    assert "mine_c" not in sys.modules
    state = Run.open("r").load_state()
    state[1]["position"]["finished"] = False
    Run.open("r").save_state(*state)
    capsys.readouterr()
    assert answer(["show", "r"]) == 0
    again = re.search(r"mmard (--trust-code .* distill --resume r)", capsys.readouterr().out)
    assert again is not None
    assert answer(["distill", "--resume", "r"]) == 2
    assert f"--trust-code {spec}" in capsys.readouterr().err
    assert "mine_c" not in sys.modules
    assert answer(again[1].split()) == 0, "the command that show prints goes on with the run"


def test_a_name_that_was_typed_in_python_counts(tmp_path: Path) -> None:
    (tmp_path / "mine_d.py").write_text("from mmard.methods.trades import trades\nmine = trades\n")
    sys.path.append(str(tmp_path))
    with pytest.raises(Refused, match="code that a file names; to run that code, say --trust-code mine_d:mine"):
        build("mine_d:mine")
    few = {"epochs": 1, "steps": 1, "val_attack": "fgsm", "limit_train": 96}
    done = mmard.train(
        "cnn-4", data="digits", method="mine_d:mine", budget=0.1, out="r", params={"mine_d:mine.beta": 2.0}, **few
    )
    assert done.run.config["params"] == {"mine_d:mine.beta": 2.0}


WRONG = """
import mmard
def nothing():
    return 3
def without(alpha):
    return mmard.rslad(alpha)
def fails(alpha=1.0):
    raise OSError("no such thing")
def plug(host, beta=1.0):
    return host
method = 5
"""


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine_e:nothing", "expected a Method from the call, got a int"),
        ("mine_e:without", "expected parameters whose defaults are numbers, .*, got alpha without one"),
        ("mine_e:fails", "got OSError: no such thing"),
        ("mine_e:plug", "expected a method, which takes no host, got a plug-in"),
        ("rslad+mine_e:fails", "expected a plug-in, whose first parameter is host, got a method"),
        ("mine_e:method", "expected a function or class that makes a method, got an object of type int"),
        (
            "mine_e:nothign",
            "expected a function 'nothign' in mine_e, got no such name there; did you mean 'mine_e:nothing'",
        ),
        ("absent_e:method", "a module 'absent_e' that can be imported, .*; is its folder on PYTHONPATH"),
        ("rslad+mine_e:plug+mine_e:plug", "each plug-in once"),
    ],
)
def test_code_that_makes_no_method_is_refused(spec: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine_e.py").write_text(WRONG)
    sys.path.append(str(tmp_path))
    trust_code(*(part for part in spec.split("+")))
    with pytest.raises(Refused, match=words):
        build(spec)


def test_parameters_of_ones_own_are_read_as_all_are(tmp_path: Path) -> None:
    (tmp_path / "mine_f.py").write_text(WRONG)
    sys.path.append(str(tmp_path))
    trust_code("mine_f:plug")
    assert build("rslad+mine_f:plug+mmard").name == "rslad+mine_f:plug+mmard"
    assert every_parameter(["rslad+mine_f:plug"], {"mine_f:plug.beta": "0.5"})["mine_f:plug.beta"] == 0.5
    with pytest.raises(Refused, match=r"did you mean 'mine_f:plug\.beta'"):
        every_parameter(["rslad+mine_f:plug"], {"mine_f:plug.bate": "0.5"})


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["new", "method", "rslad"], "expected a name that is free, got one of mmard's own"),
        (["new", "method", "My-Method"], "expected a name of small letters"),
        (["new", "methd", "mine_g"], "did you mean 'method'"),
        (["new", "method", "taken"], "taken.py: expected no such file"),
    ],
)
def test_what_cannot_be_begun_is_refused(
    typed: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken.py").write_text("")
    assert answer(typed) == 2
    assert words in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["taken.py"]
