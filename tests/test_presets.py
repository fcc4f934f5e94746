"""Presets against the authors' released code: the rate of every epoch, scales of losses, which layer has the say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import over
from nets import SPECS, batch_of, labels, logits

from mmard.job import recipe_of
from mmard.method import Method
from mmard.methods import METHODS, PLUGINS, compose
from mmard.ops import kl
from mmard.settings import Settings, preset_values
from mmard.training.recipe import Recipe

HERE = Path(__file__).resolve().parent
GOLDEN = [
    {**row, "method": method}
    for row in json.loads((HERE / "golden" / "schedules.json").read_text(encoding="utf-8"))["rows"]
    for method in row["methods"]
]
FILES = {path.stem: path for path in (HERE.parent / "src" / "mmard" / "presets").glob("*.toml")}
PRESETS = {name: tomllib.loads(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def settled(method: str, preset: str = "unified", data: str = "cifar10", **said: Any) -> Settings:
    return Settings.resolve({"teacher": "t", "method": method, "preset": preset, "data": data, **said})


def made(settings: Settings) -> Method:
    return compose(settings.method, settings.inner, settings.outer, settings.params)


def hosts(preset: str) -> list[str]:
    return list(METHODS) if "every" in PRESETS[preset] else list(PRESETS[preset])


def name_of(row: dict[str, Any]) -> str:
    return f"{row['preset']}-{row['method']}-{row['data']}"


# schedules ------------------------------------------------------------------------------------------------------------
@over("row", GOLDEN, ids=name_of)
def test_the_schedule_is_that_of_the_released_code(row: dict[str, Any]) -> None:
    settings = settled(row["method"], row["preset"], row["data"])
    recipe = recipe_of(settings)
    assert recipe.epochs == row["epochs"]
    for epoch, rate in row.get("curve", ()):
        assert recipe.lr_at(int(epoch), int(391 * (epoch % 1)), 391) == pytest.approx(rate, rel=2e-3), epoch
    for epoch in range(recipe.epochs if row["lr"] else 0):
        expected = next(rate for first, rate in reversed(row["lr"]) if epoch >= first)
        for step in (0, 390):
            assert recipe.lr_at(epoch, step, 391) == pytest.approx(expected, rel=1e-9), epoch
    assert recipe.weight_decay == row["weight_decay"]
    assert settings.batch_size == row["batch_size"]
    assert settings.eps == pytest.approx(row.get("eps", 8 / 255))
    assert (settings.step_size or settings.eps / 4) == pytest.approx(row.get("step_size", 2 / 255))
    assert (recipe.momentum, recipe.nesterov) == (0.9, row.get("nesterov", False))
    assert (recipe.warmup, recipe.grad_clip) == (row.get("warmup", 0), row.get("grad_clip", 0))
    assert recipe.optimizer == row.get("optimizer", "sgd")
    assert (settings.steps, settings.norm) == (10, "linf")
    assert recipe.average == ("swa" if "swa" in row else "none")
    assert "swa" not in row or recipe.swa_epoch() == row["swa"]


def test_every_preset_of_every_method_is_in_the_table() -> None:
    known = {(row["preset"], row["method"]) for row in GOLDEN}
    assert known == {(preset, host) for preset in PRESETS for host in hosts(preset)}
    on = {
        (preset, host, data)
        for preset in PRESETS
        for host in hosts(preset)
        for data in PRESETS[preset].get(host, {}).get("on", {})
    }
    assert on <= {(row["preset"], row["method"], row["data"]) for row in GOLDEN}


@over("row", GOLDEN, ids=name_of)
def test_a_shorter_run_keeps_its_drops_by_share(row: dict[str, Any]) -> None:
    recipe = recipe_of(settled(row["method"], row["preset"], row["data"], epochs=20))
    assert recipe.epochs == 20
    if not row["lr"]:
        whole = recipe_of(settled(row["method"], row["preset"], row["data"]))
        for epoch in range(20):
            expected = whole.lr_at(0, 0, 10**6) if epoch == 0 else whole.lr_at(0, epoch * whole.epochs, 20)
            assert recipe.lr_at(epoch, 0, 10**6) == pytest.approx(expected, abs=0.05 * recipe.lr)
        return
    shares = [first / row["epochs"] for first, _ in row["lr"]]
    for epoch in range(20):
        expected = next(
            rate for s, (_, rate) in zip(reversed(shares), reversed(row["lr"]), strict=True) if epoch / 20 >= s - 1e-9
        )
        assert recipe.lr_at(epoch, 0, 1) == pytest.approx(expected, rel=1e-9), epoch
    assert recipe.lr_at(0, 0, 1) == recipe.lr


@over("row", GOLDEN, ids=name_of)
def test_saying_the_length_that_it_has_changes_nothing(row: dict[str, Any]) -> None:
    implicit = recipe_of(settled(row["method"], row["preset"], row["data"]))
    explicit = recipe_of(settled(row["method"], row["preset"], row["data"], epochs=row["epochs"]))
    rates = [[recipe.lr_at(e, 0, 1) for e in range(row["epochs"])] for recipe in (implicit, explicit)]
    assert rates[0] == rates[1]


def test_milestones_that_are_said_are_taken_as_they_are() -> None:
    settings = settled("rslad", "official", epochs=100, milestones=[10, 0.5])
    assert recipe_of(settings).drop_epochs() == (10, 50)


def test_digits_have_a_short_schedule_of_their_own() -> None:
    settings = settled("rslad", data="digits")
    assert (settings.epochs, settings.batch_size, settings.eps, settings.schedule) == (40, 64, 0.15, "one-cycle")
    assert recipe_of(settings) == Recipe(epochs=40, schedule="one-cycle")


@pytest.mark.parametrize("method", ["iad_i", "adaiad"])
@pytest.mark.parametrize(("epochs", "first"), [(200, 60), (20, 6)])
def test_introspection_begins_after_three_tenths_of_the_run(method: str, epochs: int, first: int) -> None:
    outer = made(settled(method, "official", epochs=epochs)).outer
    views, y = logits(), labels(5)
    begun = ["self" in outer(batch_of(views, y, (epoch + 1) / epochs)) for epoch in range(epochs)]
    assert begun == [epoch >= first for epoch in range(epochs)]


@pytest.mark.parametrize("epochs", [200, 20])
def test_ramps_are_whole_in_the_last_epoch(epochs: int) -> None:
    outer = made(settled("adaad+igdm", epochs=epochs)).outer
    views, y = logits(), labels(5)
    ramp = [outer(batch_of(views, y, (epoch + 1) / epochs))["igdm"].mean().item() for epoch in range(epochs)]
    whole = kl(views["T.x_adv"] - views["T.x_mirror"], views["S.x_adv"] - views["S.x_mirror"]).mean().item()
    assert ramp == pytest.approx([whole * (epoch + 1) / epochs for epoch in range(epochs)])


# scales ---------------------------------------------------------------------------------------------------------------
@over(
    ("method", "data", "ratio"),
    [
        ("rslad", "cifar10", 0.1),
        ("rslad", "cifar100", 0.1),  # a tenth of a hundredth, times ten
        ("ard", "cifar10", 0.1),
        ("ard", "cifar100", 0.01),
        ("adaad", "cifar10", 0.1),
        ("adaad", "cifar100", 1.0),
        ("trades", "cifar10", 1.0),
        ("mart", "cifar10", 1.0),
        ("pgd_at", "cifar10", 1.0),
        ("mtard", "cifar10", 0.1),
        ("b_mtard", "cifar10", 0.1),
        ("absld", "cifar10", 0.1),
        ("dgad", "cifar10", 1.0),
        ("saad", "cifar10", 1.0),
        ("akd2", "cifar10", 1.0),
        ("iad_ii", "cifar10", 1.0),
    ],
)
def test_official_losses_are_the_unified_ones_at_the_tabulated_scale(method: str, data: str, ratio: float) -> None:
    views, y = logits(), labels(5)
    official, unified = (
        sum(term.mean().item() for term in made(settled(method, preset, data)).outer(batch_of(views, y)).values())
        for preset in ("official", "unified")
    )
    assert official / unified == pytest.approx(ratio, rel=1e-12)


def test_official_adaiad_weighs_its_teacher_by_nine_hundred_at_temperature_thirty() -> None:
    views, y = logits(), labels(5)
    terms = made(settled("adaiad", "official")).outer(batch_of(views, y))
    plain = made(settled("adaiad", "unified")).outer(batch_of(views, y))
    assert torch.allclose(terms["teacher"], 900 * kl(views["T.x_adv"] / 30, views["S.x_adv"] / 30))
    assert torch.allclose(plain["teacher"], kl(views["T.x_adv"], views["S.x_adv"]))
    assert torch.equal(terms["self"], plain["self"])


def test_the_official_teacher_of_iad_is_not_weighed() -> None:
    views, y = logits(), labels(5)
    for preset, weighed in (("official", False), ("replica", False), ("unified", True)):
        terms = made(settled("iad_i", preset)).outer(batch_of(views, y))
        assert torch.allclose(terms["teacher"], kl(views["T.x"], views["S.x_adv"])) is not weighed


@pytest.mark.parametrize("preset", PRESETS)
def test_only_replicas_of_old_scripts_attack_in_train_mode(preset: str) -> None:
    in_train_mode = {host for host in hosts(preset) if made(settled(host, preset)).attack_mode == "train"}
    known = {
        "unified": set(),
        "transformer": set(),
        "replica": {"ard", "iad_i", "iad_ii"},
        "official": {"ard", "iad_i", "iad_ii", "akd2", "fgsm_rs", "n_fgsm", "pgd_at"},
    }
    assert in_train_mode == known[preset]


def test_plug_ins_speak_in_the_unit_of_their_host() -> None:
    """The triangle keeps its share of the loss where the host is scaled."""
    views, y = logits(), labels(5)
    official, unified = (
        made(settled("rslad+mmard", preset)).outer(batch_of(views, y)) for preset in ("official", "unified")
    )
    for name, term in official.items():
        assert torch.allclose(term, 0.1 * unified[name]), name


# layers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_built_for_every_host_and_plug_in(preset: str) -> None:
    for host in hosts(preset):
        tables = [PRESETS[preset].get(t, {}) for t in ("every", host)]
        for data in {"cifar10", *(data for table in tables for data in table.get("on", {}))}:
            for plugin in ("", *(f"+{name}" for name in PLUGINS)):
                if host + plugin not in SPECS:  # what refuses each other
                    continue
                settings = settled(host + plugin, preset, data)
                assert made(settings).name == host + plugin
                assert recipe_of(settings).lr_at(settings.epochs - 1, 0, 1) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_say_settings_and_nothing_else(preset: str) -> None:
    for host, table in PRESETS[preset].items():
        assert host == "every" or host in METHODS
        for layer in (table, *table.get("on", {}).values()):
            assert set(layer) <= set(Settings.model_fields) | {"on"}
            assert not {"method", "preset", "data", "seed", "device"} & set(layer)
            assert all(name.split(".")[0] == host for name in layer.get("params", {}))


def test_what_was_said_is_over_data_over_method_over_default() -> None:
    assert settled("rslad", "official").batch_size == 128  # nobody's word: the default
    assert settled("ard", "official").weight_decay == 2e-4  # the method's
    assert settled("ard", "official", "cifar100").batch_size == 256  # the method's on this data
    assert settled("ard", "official", "cifar100", batch_size=32).batch_size == 32  # the user's
    assert settled("ard", "official", "cifar100").weight_decay == 2e-4, "what the data does not say stays"


def test_parameters_are_laid_over_each_other_one_by_one() -> None:
    params = settled("ard", "official", "cifar100", params={"ard.tau": 1.0, "ard.attack_mode": "eval"}).params
    assert params == {"ard.scale": 0.01, "ard.attack_mode": "eval", "ard.tau": 1.0}
    assert settled("ard", "official").params == {"ard.scale": 0.1, "ard.attack_mode": "train"}


def test_asking_for_a_preset_does_not_change_it() -> None:
    first = json.dumps(preset_values("official", "ard", "cifar100"))
    values = preset_values("official", "ard", "cifar100")
    values["epochs"] = 1
    values["params"]["ard.scale"] = 7
    assert json.dumps(preset_values("official", "ard", "cifar100")) == first


def test_the_preset_follows_the_outer_half() -> None:
    settings = settled("rslad", "official", inner="ard")
    assert settings.epochs == 300
    assert made(settings).scale == 0.1
    settings = settled("rslad", "official", outer="ard")
    assert settings.epochs == 200
    assert made(settings).scale == 0.1
