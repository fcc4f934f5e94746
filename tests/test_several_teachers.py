"""Several teachers: by letter on the command line, in Python and in a file, and ensembles of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from little import matcher, net, picture_set, picture_splits
from typer.testing import CliRunner

from mmard.api import distill, train, training_step
from mmard.cli import commands
from mmard.cli.options import read_flags
from mmard.errors import Refused
from mmard.job import prepare
from mmard.models import build
from mmard.models.wrapped import Ensemble
from mmard.modes import evaluating
from mmard.run import Run
from mmard.settings import Settings, read_config

SMALL = {"data": "digits", "limit_train": 96, "batch_size": 32, "epochs": 1, "steps": 1, "val_attack": "fgsm"}


def settled(**said: object) -> Settings:
    known = {"student": "cnn-4", "method": "mtard", "teacher": "little:digits_matcher", **SMALL}
    return Settings.resolve({**known, **said})


BOTH = {"T": "little:digits_matcher", "T_nat": "little:digits_matcher"}


def test_each_letter_has_its_teacher() -> None:
    job = prepare(settled(teacher=BOTH))
    assert set(job.step.nets) == {"S", "T", "T_nat"}
    assert job.step.nets["T"] is not job.step.nets["T_nat"]
    assert job.sources == BOTH
    assert [note.split(":")[0] for note in job.notes] == ["teacher little", "teacher T_nat little"]
    assert Settings.resolve(job.settings.as_config()) == job.settings


@pytest.mark.parametrize(
    ("method", "teacher", "words"),
    [
        ("mtard", "little:digits_matcher", "expected the teachers T and T_nat, got T; say --teacher T_nat=RUN as well"),
        ("mtard", {"T_nat": "little:digits_matcher"}, "got T_nat; say --teacher T=RUN as well"),
        ("rslad", BOTH, "expected the teachers T, got T and T_nat; leave out what no formula reads"),
    ],
)
def test_too_few_and_too_many_teachers_are_refused(method: str, teacher: object, words: str) -> None:
    with pytest.raises(Refused) as refusal:
        prepare(settled(method=method, teacher=teacher))
    assert words in str(refusal.value)


def test_a_natural_teacher_need_not_be_robust_but_must_be_better_than_chance() -> None:
    with pytest.raises(Refused, match=r"teacher T_nat little:plain_net: .*which is guessing"):
        prepare(settled(teacher={**BOTH, "T_nat": "little:plain_net"}))


# --- ensembles ---


def test_an_ensemble_averages_probabilities_or_centred_logits() -> None:
    members = [net(seed).eval() for seed in (1, 2, 3)]
    x = torch.rand(5, 1, 4, 4)
    probs = torch.stack([m(x).softmax(1) for m in members]).mean(0)
    torch.testing.assert_close(Ensemble(members)(x).softmax(1), probs)
    torch.testing.assert_close(Ensemble(members)(x), probs.log())
    logits = torch.stack([m(x) for m in members]).mean(0)
    torch.testing.assert_close(Ensemble(members, "logits")(x).softmax(1), logits.softmax(1))
    torch.testing.assert_close(Ensemble(members[:1])(x).softmax(1), members[0](x).softmax(1))


def test_an_ensemble_can_be_differentiated_and_put_to_rest_as_one() -> None:
    ensemble = Ensemble([net(1), net(2)])
    x = torch.rand(3, 1, 4, 4, requires_grad=True)
    with evaluating(ensemble):
        assert not any(m.training for m in ensemble.modules())
        (slope,) = torch.autograd.grad(ensemble(x)[:, 0].sum(), x)
    assert slope.norm() > 0


@pytest.mark.parametrize("wrong", [([], "probs"), ([net()], "median")])
def test_an_ensemble_of_nothing_or_by_nothing_is_refused(wrong: tuple[list[torch.nn.Module], str]) -> None:
    with pytest.raises(Refused):
        Ensemble(*wrong)


@pytest.mark.parametrize("mix", ["probs", "logits"])
def test_the_same_letter_twice_is_an_ensemble(mix: str) -> None:
    job = prepare(settled(method="rslad", teacher={"T": ["little:digits_matcher"] * 2}, teacher_mix=mix))
    found = job.step.nets["T"]
    assert isinstance(found, Ensemble)
    assert (len(found.members), found.mix) == (2, mix)
    assert job.sources["T"] == f"mean {mix} of little:digits_matcher, little:digits_matcher"


def test_weights_for_an_ensemble_are_refused() -> None:
    with pytest.raises(Refused, match="--teacher-weights: expected one teacher"):
        prepare(settled(method="rslad", teacher={"T": ["cnn-4", "cnn-4"]}, teacher_weights="w.pt"))


def test_what_a_teachers_weights_want_their_input_standardised_with_is_said(tmp_path: Path) -> None:
    bare = build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0).eval()
    torch.save(bare.state_dict(), tmp_path / "w.pt")
    flags = {"teacher_weights": [str(tmp_path / "w.pt")], "teacher_mean": ["0.3"], "teacher_std": ["T=128/256"]}
    job = prepare(settled(method="rslad", teacher="cnn-4", teacher_gate=False, **read_flags(flags)))
    assert job.settings.teacher_mean == {"T": (0.3,)}
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(job.step.nets["T"].eval()(x), bare((x - 0.3) / 0.5))
    again = Settings.resolve(json.loads(json.dumps(job.settings.as_config())))
    assert again == job.settings, "a run folder has what was said"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"teacher_mean": [0.3]}, "expected weights of somebody else beside mean and std, got none"),
        (
            {"teacher_std": {"T_nat": [0.3]}},
            "teacher_std: expected the letter of a teacher that is named, T, got T_nat",
        ),
        ({"teacher": "cnn-4", "teacher_weights": "w.pt", "teacher_mean": "0.3,0.3"}, "expected 1 numbers as mean"),
        ({"teacher": "cnn-4", "teacher_weights": "w.pt", "teacher_mean": "a"}, "expected a number or a fraction"),
    ],
)
def test_what_fits_no_weights_of_a_teacher_is_refused(
    said: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(build("cnn-4", num_classes=10, image_shape=(1, 8, 8), seed=0).state_dict(), "w.pt")
    with pytest.raises(Refused, match=words):
        prepare(settled(method="rslad", **said))


# --- the command line ---


def called(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(commands(), list(words))
    return result.exit_code, result.output


def test_teachers_are_said_by_letter_on_the_command_line(tmp_path: Path) -> None:
    common = ["--student", "cnn-4", "--data", "digits", "--limit-train", "96", "--epochs", "1", "--steps", "1"]
    teachers = ["--teacher", "T=little:digits_matcher", "--teacher", "T_nat=little:digits_matcher"]
    code, output = called("distill", "--method", "mtard", *teachers, *common, "--out", str(tmp_path / "run"), "--quiet")
    assert code == 0, output
    config = Run.open(tmp_path / "run").config
    assert config["teachers"] == {letter: [name] for letter, name in BOTH.items()}
    code, output = called("show", str(tmp_path / "run"))
    assert code == 0, output
    assert "T_nat=little" in output


def test_one_teacher_is_said_as_ever() -> None:
    for words in (["--teacher", "little:digits_matcher"], ["--teacher", "T=little:digits_matcher"]):
        code, output = called(
            "distill", "--method", "rslad", *words, "--student", "cnn-4", "--limit-train", "96", "--dry-run"
        )
        assert code == 0, output
        assert "teacher" in output


def test_a_path_with_an_equals_sign_is_a_path() -> None:
    settings = settled(teacher="runs/lr=0.1")
    assert settings.teachers == {"T": ("runs/lr=0.1",)}


# --- Python ---


def test_teachers_may_be_objects_by_letter(tmp_path: Path) -> None:
    result = distill(
        net(), {"T": matcher(), "T_nat": matcher()}, data=picture_splits(), method="mtard", out=tmp_path / "r",
        epochs=1, batch_size=8, steps=1, val_attack="fgsm",
    )  # fmt: skip
    assert result.run.config["teachers"] == {"T": ["given:Matcher"], "T_nat": ["given:Matcher"]}
    with pytest.raises(Refused, match="setting teacher: expected the object itself"):
        distill(net(), "x", data=picture_splits(), method="mtard", out=tmp_path / "r", resume=True)


def test_one_step_takes_teachers_by_letter_and_a_peer() -> None:
    images = picture_set(8)
    x, y = images.x.float() / 255, images.y
    loss, _ = training_step(net(), {"T": matcher(), "T_nat": matcher()}, method="b_mtard", budget=0.1)(x, y)
    assert loss.isfinite()
    peer = net(3)
    loss, terms = training_step(net(), peer=peer, method="peeraid", budget=0.1)(x, y)
    loss.backward()
    assert "peer_label" in terms
    assert any(p.grad is not None for p in peer.parameters())


# --- settings ---


def test_parameters_may_be_tables_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('method = "rslad+mmard"\n[params.mmard]\nguide = 0.5\n[params.rslad]\nalpha = 0.8\n')
    assert read_config(file)["params"] == {"mmard.guide": 0.5, "rslad.alpha": 0.8}
    settings = settled(method="rslad+mmard", params={"mmard": {"guide": 0.5}, "rslad.alpha": 0.8})
    assert settings.params == {"mmard.guide": 0.5, "rslad.alpha": 0.8}


def test_a_training_attack_can_be_named_for_any_method(tmp_path: Path) -> None:
    job = prepare(settled(method="rslad", attack="noise-fgsm"))
    assert type(job.step.attack).__name__ == "NoiseFGSM"
    with pytest.raises(Refused, match="did you mean 'noise-fgsm'"):
        prepare(settled(method="rslad", attack="noise-fgms"))
    own = train("cnn-4", method="n_fgsm", out=tmp_path / "r", **SMALL)
    assert type(own.job.step.attack).__name__ == "NoiseFGSM"
    reach = [e["reach"] for e in own.run.log() if e["kind"] == "epoch"]
    assert 0.15 < max(reach) <= 3 * 0.15 + 1e-6
    assert json.loads((tmp_path / "r" / "config.json").read_text())["attack"] is None
