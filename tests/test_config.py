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
from mmard.settings import DistillSettings, Settings, TrainSettings, differences, read_config
from mmard.training.recipe import AVERAGES, SCHEDULES, Recipe

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "mmard"
KINDS: tuple[type[Settings], ...] = (TrainSettings, DistillSettings)


def toml(value: object) -> str:
    """A value as TOML spells it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


# resolving ------------------------------------------------------------------------------------------------------------
@given(
    st.fixed_dictionaries(
        {"teacher": st.just("runs/t")},
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
    settings = DistillSettings.resolve(said)
    written = json.dumps(settings.as_config())
    assert DistillSettings.resolve(json.loads(written)) == settings
    assert settings.as_config().keys() == DistillSettings.model_fields.keys()


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_files_come_back_as_they_went(ending: str, tmp_path: Path) -> None:
    said = {
        "teacher": "runs/t",
        "params": {"mmard.guide": 0.5, "mmard.measure": "kl"},
        "milestones": [100, 150],
        "eps": "8/255",
        "nesterov": True,
    }
    path = tmp_path / f"settings.{ending}"
    path.write_text(json.dumps(said) if ending == "json" else "\n".join(f"{k} = {toml(v)}" for k, v in said.items()))
    assert read_config(path) == said
    settings = DistillSettings.resolve(read_config(str(path)))
    assert settings.milestones == (100, 150)
    assert settings.eps == 8 / 255
    assert settings.params == {"mmard.guide": 0.5, "mmard.measure": "kl"}


def test_what_two_runs_say_otherwise() -> None:
    held = {"lr": 0.1, "epochs": 3, "threads": 1, "params": {"mmard.beta": 1.0}, "old": 1}
    wanted = {"lr": 0.2, "epochs": 3, "threads": 2, "params": {"mmard.beta": 1, "mmard.edges": "nq"}, "teacher": "t"}
    found = ["lr 0.1 for 0.2", "teacher unsaid for t", "mmard.edges unsaid for nq"]
    assert differences(held, wanted, {"threads"}) == found
    assert differences(wanted, wanted) == []


def test_a_run_folder_is_a_config(tmp_path: Path) -> None:
    settings = TrainSettings.resolve({"model": "cnn-4"})
    (tmp_path / "config.json").write_text(json.dumps(settings.as_config()))
    assert TrainSettings.resolve(read_config(tmp_path)) == settings


@pytest.mark.parametrize(
    ("written", "read"),
    [("8/255", 8 / 255), ("0.031", 0.031), (" 8 / 255 ", 8 / 255), (0.15, 0.15), ("1", 1.0), ("1/4", 0.25)],
)
def test_radii_may_be_fractions(written: str | float, read: float) -> None:
    settings = TrainSettings.resolve({"eps": written, "step_size": written})
    assert (settings.eps, settings.step_size) == (read, read)


def test_text_of_a_command_line_is_read() -> None:
    said = {"epochs": "20", "lr": "0.05", "seed": "3", "milestones": ["5", "0.5"], "limit_train": "100"}
    settings = TrainSettings.resolve(said)
    assert (settings.epochs, settings.lr, settings.seed, settings.limit_train) == (20, 0.05, 3, 100)
    assert settings.milestones == (5, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_frozen(kind: type[Settings]) -> None:
    settings = kind.resolve({"teacher": "t"} if kind is DistillSettings else {})
    with pytest.raises(ValidationError, match="frozen"):
        settings.lr = 0.5  # type: ignore[misc]


def test_the_host_is_the_method_under_the_plug_ins() -> None:
    for said, host in (
        ({"method": "rslad + mmard"}, "rslad"),
        ({"method": "adaad+igdm+mmard"}, "adaad"),
        ({"method": "rslad", "inner": "ard"}, "rslad"),
        ({"method": "rslad", "outer": "ard+mmard"}, "ard"),
    ):
        assert DistillSettings.resolve({"teacher": "t", **said}).host == host


# refusals -------------------------------------------------------------------------------------------------------------
@over(
    ("kind", "said", "words"),
    [
        (
            TrainSettings,
            {"epoch": 3},
            "setting 'epoch': expected a name that TrainSettings has.*did you mean 'epochs'?",
        ),
        (TrainSettings, {"weight-decay": 0.1}, "did you mean 'weight_decay'"),
        (TrainSettings, {"teacher": "runs/t"}, "setting 'teacher'"),
        (TrainSettings, {"xyzzy": 1}, "`mmard distill --help` lists them"),
        (DistillSettings, {"teacher": "t", "model": "cnn-4"}, "setting 'model'"),
        (DistillSettings, {}, "setting teacher: expected field required, got nothing"),
        (TrainSettings, {"epochs": 20.5}, "^setting epochs: expected a valid integer, got 20.5$"),
        (TrainSettings, {"epochs": "many"}, "^setting epochs: expected a valid integer, got 'many'$"),
        (TrainSettings, {"lr": [0.1]}, "setting lr: expected .*number"),
        (TrainSettings, {"norm": "l3"}, "^setting norm: expected 'linf', 'l2' or 'l1', got 'l3'$"),
        (TrainSettings, {"normalise": "imagenet"}, "setting normalise: expected"),
        (TrainSettings, {"eps": "8/0"}, "^setting eps: expected a number or a fraction such as 8/255, got '8/0'$"),
        (TrainSettings, {"eps": "eight"}, "setting eps"),
        (TrainSettings, {"step_size": "2//255"}, "setting step_size: .*a number or a fraction"),
        (TrainSettings, {"milestones": "half"}, "setting milestones: expected"),
        (TrainSettings, {"milestones": [1, "x"]}, "setting milestones: expected"),
        (TrainSettings, {"params": ["mmard.guide"]}, "setting params: expected"),
        (TrainSettings, {"nesterov": "perhaps"}, "setting nesterov: expected .*boolean"),
        (TrainSettings, {"preset": "oficial"}, "preset 'oficial'.*did you mean 'official'"),
        (TrainSettings, {"preset": "replica"}, "preset replica: expected a method of ard, iad_i, iad_ii, got 'pgd_at'"),
    ],
)
def test_what_cannot_be_read_is_refused(kind: type[Settings], said: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words) as refusal:
        kind.resolve(said)
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
@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_its_sentence_and_its_panel(kind: type[Settings]) -> None:
    for name, info in kind.model_fields.items():
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
    unread = {name for kind in KINDS for name in kind.model_fields} - read
    assert not unread


def test_the_recipe_has_a_setting_for_each_of_its_fields() -> None:
    assert set(Recipe.__dataclass_fields__) <= Settings.model_fields.keys()
