"""Settings: one name each, read from what people write, refused in words, and back from a file as they went."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from pydantic import ValidationError

from mmard.errors import Refused
from mmard.settings import Settings, current_names, differences, given_label, handed_over, of_run, read_config
from mmard.training.recipe import AVERAGES, SCHEDULES, Recipe

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "mmard"


def toml(value: object) -> str:
    """A value as TOML spells it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


# resolving ------------------------------------------------------------------------------------------------------------
@given(
    st.fixed_dictionaries(
        {"teachers": st.sampled_from(["runs/t", ["a", "b"], {"T": "a", "T_nat": ["b"]}])},
        optional={
            "method": st.sampled_from(["rslad", "rslad+mmard", "adaad+igdm+mmard", "ard"]),
            "preset": st.sampled_from(["unified", "official"]),
            "data": st.sampled_from(["digits", "cifar10", "cifar100"]),
            "params": st.dictionaries(
                st.sampled_from(["mmard.guide", "mmard.beta"]), st.floats(0, 2) | st.integers(0, 2)
            ),
            "eps": st.floats(0.01, 0.5) | st.sampled_from(["8/255", "0.031", "4 / 255"]),
            "step_size": st.none() | st.sampled_from(["2/255", 0.01]),
            "epochs": st.integers(1, 400),
            "milestones": st.lists(st.floats(0.1, 0.9), max_size=3),
            "lr": st.floats(1e-5, 1),
            "nesterov": st.booleans(),
            "schedule": st.sampled_from(SCHEDULES),
            "average": st.sampled_from(AVERAGES),
            "val_share": st.none() | st.floats(0.05, 0.5),
            "seed": st.integers(0, 2**31),
            "threads": st.integers(0, 4),
        },
    )
)
def test_a_run_can_be_repeated_from_its_config(said: dict[str, Any]) -> None:
    settings = Settings.resolve(said)
    written = json.dumps(settings.as_config())
    assert Settings.resolve(json.loads(written)) == settings
    assert settings.as_config().keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_files_come_back_as_they_went(ending: str, tmp_path: Path) -> None:
    said = {
        "teachers": "runs/t",
        "params": {"mmard.guide": 0.5, "mmard.measure": "kl"},
        "milestones": [100, 150],
        "eps": "8/255",
        "nesterov": True,
    }
    path = tmp_path / f"settings.{ending}"
    path.write_text(json.dumps(said) if ending == "json" else "\n".join(f"{k} = {toml(v)}" for k, v in said.items()))
    assert read_config(path) == {**said, "teachers": {"T": ["runs/t"]}}
    settings = Settings.resolve(read_config(str(path)))
    assert settings.milestones == (100, 150)
    assert settings.eps == 8 / 255
    assert settings.params == {"mmard.guide": 0.5, "mmard.measure": "kl"}


def test_what_two_runs_say_otherwise() -> None:
    held = {"lr": 0.1, "epochs": 3, "threads": 1, "params": {"mmard.beta": 1.0}, "old": 1}
    wanted = {"lr": 0.2, "epochs": 3, "threads": 2, "params": {"mmard.beta": 1, "mmard.edges": "nq"}, "teacher": "t"}
    found = ["lr 0.1 for 0.2", "teacher unsaid for t", "mmard.edges unsaid for nq"]
    assert differences(held, wanted, {"threads"}) == found
    assert differences(wanted, wanted) == []
    assert differences({}, {"teacher_mean": {}, "lr": 0.1}) == [], "what was no setting yet is what is the default"
    assert differences({}, {"lr": 0.2}) == ["lr 0.1 for 0.2"]


def test_a_run_folder_is_a_config(tmp_path: Path) -> None:
    settings = Settings.resolve({"model": "cnn-4"})
    (tmp_path / "config.json").write_text(json.dumps(settings.as_config()))
    assert Settings.resolve(read_config(tmp_path)) == settings


@pytest.mark.parametrize(
    ("written", "read"),
    [("8/255", 8 / 255), ("0.031", 0.031), (" 8 / 255 ", 8 / 255), (0.15, 0.15), ("1", 1.0), ("1/4", 0.25)],
)
def test_radii_may_be_fractions(written: str | float, read: float) -> None:
    settings = Settings.resolve({"eps": written, "step_size": written})
    assert (settings.eps, settings.step_size) == (read, read)


def test_text_of_a_command_line_is_read() -> None:
    said = {"epochs": "20", "lr": "0.05", "seed": "3", "milestones": ["5", "0.5"], "limit_train": "100"}
    settings = Settings.resolve(said)
    assert (settings.epochs, settings.lr, settings.seed, settings.limit_train) == (20, 0.05, 3, 100)
    assert settings.milestones == (5, 0.5)


def test_settings_are_frozen() -> None:
    settings = Settings.resolve({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.lr = 0.5  # type: ignore[misc]


def test_the_host_is_the_method_under_the_plug_ins() -> None:
    for said, host in (
        ({"method": "rslad + mmard"}, "rslad"),
        ({"method": "adaad+igdm+mmard"}, "adaad"),
        ({"method": "rslad", "inner": "ard"}, "rslad"),
        ({"method": "rslad", "outer": "ard+mmard"}, "ard"),
    ):
        assert Settings.resolve({"teacher": "t", **said}).host == host


# old files ------------------------------------------------------------------------------------------------------------
PUBLISHED = [json.loads(path.read_text()) for path in sorted((PACKAGE.parents[1] / "results").rglob("config.json"))]


def test_published_runs_are_read_as_what_they_were() -> None:
    """Their files say `model` or `student`, and `teacher` as a path or as paths by letter."""
    shapes = [type(config.get("teacher")) for config in PUBLISHED if "method" in config]
    assert {str, dict, type(None)} == set(shapes), "a shape that published runs have is not tried here any more"
    for config in PUBLISHED:
        if "method" not in config:
            continue
        taught = config.get("teacher") or {}
        settings = Settings.resolve(of_run(config))
        assert settings.network == config.get("student", config.get("model"))
        assert settings.teachers == {
            k: (v,) for k, v in (taught if isinstance(taught, dict) else {"T": taught}).items()
        }
        assert settings.command == ("distill" if "student" in config else "train")
        assert settings.engine == config.get("engine", "plain")
        assert Settings.resolve(settings.as_config()) == settings
        ours = {**settings.as_config(), "milestones": list(settings.milestones)}
        assert all(ours[name] == value for name, value in config.items() if name in ours and name != "teacher_weights")


@pytest.mark.parametrize(
    ("old", "teachers", "weights"),
    [
        ({"model": "cnn-4"}, None, None),
        ({"student": "cnn-4", "teacher": "runs/t", "teacher_weights": None}, {"T": ["runs/t"]}, {}),
        ({"student": "cnn-4", "teacher": "wrn", "teacher_weights": "w.pt"}, {"T": ["wrn"]}, {"T": "w.pt"}),
        ({"student": "cnn-4", "teacher": {"T": ["a", "b"], "T_nat": "n"}}, {"T": ["a", "b"], "T_nat": ["n"]}, None),
        ({"student": "cnn-4", "teacher": ["a", "b"]}, {"T": ["a", "b"]}, None),
    ],
)
def test_what_settings_were_called_once(old: dict[str, Any], teachers: object, weights: object) -> None:
    found = current_names(old)
    assert (found["network"], found.get("teachers"), found.get("teacher_weights")) == ("cnn-4", teachers, weights)
    assert current_names(found) == found


def test_objects_are_told_by_their_labels() -> None:
    said = {"student": given_label([]), "teacher": {"T": "runs/t", "T_nat": "given:Net"}, "data": "digits"}
    assert Settings.resolve(said).given == {"network", "T_nat"}
    assert handed_over({"data": "given:Splits", "network": "cnn-4"}) == {"data"}


# refusals -------------------------------------------------------------------------------------------------------------
@over(
    ("said", "words"),
    [
        ({"epoch": 3}, "setting 'epoch': expected the name of a setting.*did you mean 'epochs'?"),
        ({"weight-decay": 0.1}, "did you mean 'weight_decay'"),
        ({"xyzzy": 1}, "`mmard distill --help` lists them"),
        ({"student": "cnn-8", "model": "cnn-4"}, "setting 'model': expected one name for it, got 'network' as well"),
        ({"teacher": 3}, "setting teachers: expected a valid string, got 3"),
        ({"epochs": 20.5}, "^setting epochs: expected a valid integer, got 20.5$"),
        ({"epochs": "many"}, "^setting epochs: expected a valid integer, got 'many'$"),
        ({"threads": 10**6}, "^setting threads: expected at most 512, got 1000000$"),
        ({"threads": -1}, "^setting threads: expected at least 0, got -1$"),
        ({"steps": 10**9}, "^setting steps: expected at most 10000, got 1000000000$"),
        ({"batch_size": 10**12}, "setting batch_size: expected at most"),
        ({"epochs": 10**9}, "setting epochs: expected at most"),
        ({"lr": float("inf")}, "setting lr: expected a finite number"),
        ({"lr": [0.1]}, "setting lr: expected .*number"),
        ({"norm": "l3"}, "^setting norm: expected 'linf', 'l2' or 'l1', got 'l3'$"),
        ({"normalise": "imagenet"}, "setting normalise: expected"),
        ({"eps": "8/0"}, "^setting eps: expected a number or a fraction such as 8/255, got '8/0'$"),
        ({"eps": "eight"}, "setting eps"),
        ({"step_size": "2//255"}, "setting step_size: .*a number or a fraction"),
        ({"milestones": "half"}, "setting milestones: expected"),
        ({"milestones": [1, "x"]}, "setting milestones: expected"),
        ({"params": ["mmard.guide"]}, "setting params: expected"),
        ({"nesterov": "perhaps"}, "setting nesterov: expected .*boolean"),
        ({"preset": "oficial"}, "preset 'oficial'.*did you mean 'official'"),
        ({"preset": "replica"}, "preset replica: expected a method of ard, iad_i, iad_ii, got 'pgd_at'"),
    ],
)
def test_what_cannot_be_read_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words) as refusal:
        Settings.resolve(said)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "{", r"a\.json: expected JSON"),
        ("a.toml", "epochs = ", r"a\.toml: expected TOML"),
        ("a.json", "[1, 2]", "expected settings by name, got list"),
        ("a.json", b"\xff\xff", "expected JSON"),
        ("a.yaml", "epochs: 3", r"expected a \.toml or \.json file of settings, got a file ending in '\.yaml'"),
        ("a", "", "got a file ending in ''"),
    ],
)
def test_files_that_cannot_be_read_are_refused(name: str, content: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Refused, match=words):
        read_config(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"absent\.toml: expected a file of settings, got No such file"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(Refused, match=r"config\.json: expected a file of settings, got No such file"):
        read_config(tmp_path)
    with pytest.raises(Refused, match="mistyped: expected a run folder or a file of settings, got no such path"):
        read_config(tmp_path / "mistyped")


# every setting is used ------------------------------------------------------------------------------------------------
def test_every_setting_has_its_sentence_and_its_panel() -> None:
    for name, info in Settings.model_fields.items():
        assert info.description, name
        assert info.description.endswith("."), name
        extra = info.json_schema_extra
        assert isinstance(extra, dict), name
        assert extra["panel"] in {"Method", "Data", "Attack", "Training", "Machine"}, name


def reads(tree: ast.AST) -> set[str]:
    """Settings that this code reads: attributes of something called settings, and of the settings themselves."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="settings" | "bare"), attr=name, ctx=ast.Load()):
                found.add(name)
            case ast.Attribute(value=ast.Attribute(attr="settings"), attr=name, ctx=ast.Load()):
                found.add(name)
            case ast.Call(
                func=ast.Name(id="getattr"), args=[ast.Name(id="settings"), ast.Constant(value=str(name)), *_]
            ):
                found.add(name)
    return found


def test_every_setting_is_read() -> None:
    """An option that nothing reads is a promise that nothing keeps."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    read = set.union(*map(reads, trees)) | set(Recipe.__dataclass_fields__)
    unread = set(Settings.model_fields) - read
    assert not unread


def test_the_recipe_has_a_setting_for_each_of_its_fields() -> None:
    assert set(Recipe.__dataclass_fields__) <= Settings.model_fields.keys()
