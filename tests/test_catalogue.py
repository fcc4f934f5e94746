"""How methods are named, put together and refused."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from laws import over
from nets import (
    BUDGET,
    NONE,
    PAIRED,
    PAIRS,
    PLUGGED,
    SPECS,
    Jittered,
    Params,
    batch_of,
    conv,
    images,
    labels,
    logits,
    read,
    step_of,
)

from mmard.errors import Refused
from mmard.method import Method, halves
from mmard.methods import METHODS, PLUGINS, build, compose, every_parameter, parameters
from mmard.methods.mmard import MEASURES

# --- the catalogue ---


@over("name", METHODS)
def test_a_method_bears_the_name_that_finds_it(name: str) -> None:
    method = build(name)
    assert method.name == name
    assert method.needs_teacher == any(letter.startswith("T") for letter in method.nets)
    assert method.source
    assert all(method.says)
    assert (method.inner is None) == (name in NONE)


@over("spec", SPECS)
def test_a_composed_method_bears_its_whole_name_and_all_its_sources(spec: str) -> None:
    method = build(spec)
    assert method.name == spec
    assert method.source.startswith(build(spec.split("+")[0]).source)
    assert ("IGDM" in method.source, "MMARD" in method.source) == ("igdm" in spec, "mmard" in spec)


@over("name", [*METHODS, *PLUGINS])
def test_the_parameters_of_a_method_are_those_of_its_function_without_the_host(name: str) -> None:
    found = parameters(name)
    make = METHODS.get(name) or PLUGINS[name]
    assert list(found) == [k for k in inspect.signature(make).parameters if k != "host"]
    assert all(p.default is not inspect.Parameter.empty for p in found.values())
    doc = inspect.getdoc(make) or ""
    assert all(re.search(rf"^    {k}: ", doc, re.MULTILINE) for k in found), "a parameter without a sentence"


def test_the_parameters_of_an_unknown_name_are_refused() -> None:
    with pytest.raises(Refused, match="did you mean 'rslad'"):
        parameters("rlsad")


@pytest.mark.parametrize("spec", [" rslad + mmard ", "rslad +mmard", "\trslad+mmard\n"])
def test_blanks_in_a_name_do_not_matter(spec: str) -> None:
    assert build(spec, {"mmard.guide": 0.0}).name == "rslad+mmard"


@over(
    ("spec", "words"),
    [
        ("rlsad", "did you mean 'rslad'"),
        ("adadd", "did you mean 'adaad'"),
        ("tradse+mmard", "did you mean 'trades'"),
        ("rslad+mmadr", "did you mean 'mmard'"),
        ("rslad+idgm", "did you mean 'igdm'"),
        ("mmard", "write e.g. rslad+mmard"),
        ("igdm+rslad", "write e.g. rslad+igdm"),
        ("rslad+ard", "plug-in 'ard'"),
        ("rslad+", "plug-in ''"),
        ("", "method ''"),
        ("kd+igdm", "a host that makes adversarial examples"),
        ("kd+igdm+mmard", "a host that makes adversarial"),
    ],
)
def test_a_name_that_means_nothing_is_refused(spec: str, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        build(spec)


def test_all_plug_ins_go_with_all_methods_but_for_gradient_matching_without_an_attack() -> None:
    every = {host + plugins for host in METHODS for plugins in PLUGGED + (PAIRS if host in PAIRED else ())}
    hard = {spec for spec in every if "+adr" in spec} - {f"{host}+adr" for host in METHODS if build(host).soft_labels}
    assert len(hard) < len([spec for spec in every if "+adr" in spec])
    assert every - set(SPECS) == hard | {f"{host}+{plugin}" for host in NONE for plugin in ("igdm", "fair")}


@pytest.mark.parametrize("spec", ["rslad+mmard+mmard", "rslad+igdm+mmard+igdm"])
def test_a_plug_in_that_is_named_twice_is_refused(spec: str) -> None:
    """The second overwrites the terms of the first, so the name would promise what is not computed."""
    with pytest.raises(Refused, match="twice"):
        build(spec)


@over(
    ("spec", "params", "words"),
    [
        ("rslad", {"rslad.alhpa": 0.5}, "did you mean 'rslad.alpha'"),
        ("rslad", {"alpha": 0.5}, "did you mean 'rslad.alpha'"),
        ("rslad", {"ard.tau": 4.0}, "parameter 'ard.tau'"),
        ("rslad+mmard", {"mmard.host": 1.0}, "parameter 'mmard.host'"),
        ("pgd_at", {"pgd_at.beta": 1.0}, "parameter 'pgd_at.beta'"),
        ("rslad", {"rslad.alpha": "much"}, "rslad.alpha: expected a float, such as 0.8333333333333334, got 'much'"),
        ("rslad", {"rslad.alpha": True}, "expected a float"),
        ("rslad+mmard", {"mmard.teacher_every": 1.5}, "expected a int, such as 0, got 1.5"),
        ("rslad+mmard", {"mmard.teacher_every": "two"}, "expected a int"),
        ("rslad+mmard", {"mmard.teacher_every": True}, "expected a int"),
        ("rslad+mmard", {"mmard.bounded": 1}, "expected a bool, such as False"),
        ("rslad+mmard", {"mmard.bounded": "yes"}, "expected a bool"),
        ("rslad+mmard", {"mmard.measure": 3}, "expected a str, such as 'nce'"),
        ("rslad+mmard", {"mmard.measure": "nec"}, "did you mean 'nce'"),
        ("rslad+mmard", {"mmard.guide": -0.1}, "mmard.guide: expected at least 0, got -0.1"),
        ("rslad+mmard", {"mmard.beta": -1}, "mmard.beta: expected at least 0"),
        ("rslad+mmard", {"mmard.ramp": -1}, "mmard.ramp: expected at least 0"),
        ("rslad+mmard", {"mmard.teacher_every": -1}, "mmard.teacher_every: expected at least 0"),
        ("rslad+mmard", {"mmard.drift": "kl"}, "mmard.teacher_every: expected at least 1 with the drift kl"),
        ("rslad+mmard", {"mmard.drift": "lk"}, "did you mean 'kl'"),
        ("rslad+mmard", {"mmard.edges": "nr,nn"}, "mmard.edges 'nn'"),
        ("rslad+mmard", {"mmard.edges": "nr,nr"}, "each edge once"),
        ("kd+mmard", {"mmard.guide": 0.0, "mmard.own": 0.0}, "set guide or own > 0, or attack = label"),
        (
            "kd+mmard",
            {"mmard.guide": 0.0, "mmard.own": 0.0, "mmard.beta": 0.0, "mmard.label": 1.0},
            "set guide or own > 0",
        ),
        ("rslad+mmard", {"mmard.attack": "labels"}, "did you mean 'label'"),
        ("rslad+mmard", {"mmard.label": -1.0}, "mmard.label: expected at least 0"),
        ("rslad+temperature", {"temperature.tau": 0.0}, "temperature.tau: expected a positive temperature"),
        ("kd+mmard+igdm", {"mmard.guide": 0.0, "mmard.own": 0.0, "mmard.beta": 0.0}, "a host that makes adversarial"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(spec: str, params: Params, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        build(spec, params)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mmard.teacher_every", "inf"),
        ("mmard.teacher_every", "nan"),
        ("mmard.guide", "nan"),
        ("rslad.alpha", float("nan")),
    ],
)
def test_a_parameter_that_is_no_finite_number_is_refused(name: str, value: str | float) -> None:
    with pytest.raises(Refused, match=re.escape(name)):
        build("rslad+mmard", {name: value})


@pytest.mark.parametrize(
    ("spec", "params"),
    [
        ("kd", {"kd.tau": 0.0}),
        ("ard", {"ard.tau": 0.0}),
        ("iad_i", {"iad_i.tau": 0.0}),
        ("adaiad", {"adaiad.tau": 0.0}),
        ("rslad+mmard", {"mmard.tau": 0.0}),
        ("rslad+mmard", {"mmard.tau": -0.2}),
    ],
)
def test_a_temperature_that_is_not_positive_is_refused(spec: str, params: Params) -> None:
    """At zero the loss is a NaN, and a contrast with a negative one drives pairs apart."""
    with pytest.raises(Refused, match="tau"):
        build(spec, params)


@pytest.mark.parametrize("spec", ["ard", "iad_i"])
def test_a_mode_of_attack_that_does_not_exist_is_refused(spec: str) -> None:
    """Anything but "eval" would be train mode, so a slip of the pen would let the attack move BatchNorm."""
    with pytest.raises(Refused, match="eval"):
        build(spec, {f"{spec}.attack_mode": "evla"})


@pytest.mark.parametrize(
    ("spec", "text", "value"),
    [
        ("rslad", {"rslad.scale": "0.1"}, {"rslad.scale": 0.1}),
        ("rslad", {"rslad.scale": "1"}, {"rslad.scale": 1.0}),
        ("rslad", {"rslad.scale": 1}, {"rslad.scale": 1.0}),
        ("iad_i", {"iad_i.weigh_teacher": "False"}, {"iad_i.weigh_teacher": False}),
        ("iad_i", {"iad_i.weigh_teacher": "true"}, {"iad_i.weigh_teacher": True}),
        ("rslad+mmard", {"mmard.teacher_every": "2"}, {"mmard.teacher_every": 2}),
        ("rslad+mmard", {"mmard.measure": "mi"}, {"mmard.measure": "mi"}),
    ],
)
def test_text_from_a_command_line_is_read_as_the_kind_of_the_default(spec: str, text: Params, value: Params) -> None:
    b = batch_of(logits(4), labels(4))
    one, two = build(spec, text), build(spec, value)
    assert one.scale == two.scale
    assert isinstance(one.scale, float)
    terms, expected = one.outer(b), two.outer(b)
    assert terms.keys() == expected.keys()
    assert all(torch.equal(terms[k], expected[k]) for k in terms)


def test_each_parameter_reaches_its_own_method() -> None:
    b = batch_of(logits(4), labels(4), progress=0.5)
    plain, heavy = build("rslad+igdm"), build("rslad+igdm", {"igdm.alpha": 4.0, "rslad.alpha": 0.5})
    before, after = plain.outer(b), heavy.outer(b)
    torch.testing.assert_close(after["igdm"], 4 * before["igdm"])
    torch.testing.assert_close(after["nat"], 3 * before["nat"])
    torch.testing.assert_close(after["adv"], before["adv"] * 0.6)


def test_every_parameter_is_said_in_the_kind_of_its_default() -> None:
    for name in (*METHODS, *PLUGINS):
        assert every_parameter([name]) == {f"{name}.{key}": p.default for key, p in parameters(name).items()}
    said = every_parameter(["trades", "rslad + mmard"], {"mmard.beta": 2, "rslad.alpha": "0.5"})
    assert set(said) == {f"{name}.{key}" for name in ("trades", "rslad", "mmard") for key in parameters(name)}
    assert (said["mmard.beta"], said["rslad.alpha"]) == (2.0, 0.5)
    assert isinstance(said["mmard.beta"], float), "or 2 and 2.0 would be two configurations"
    with pytest.raises(Refused, match=r"parameter 'mmard\.gide'"):
        every_parameter(["rslad+mmard"], {"mmard.gide": 1})


def test_plug_ins_are_applied_from_left_to_right() -> None:
    assert tuple(build("adaad+igdm+mmard").forwards["S"]) == ("x_adv", "x_mirror", "x")
    assert tuple(build("adaad+mmard+igdm").forwards["S"]) == ("x_adv", "x", "x_mirror")


def test_the_measures_that_are_offered_can_be_built_and_tell_whether_they_couple_the_batch() -> None:
    for measure in MEASURES:
        assert build("rslad+mmard", {"mmard.measure": measure}).couples_batch == (measure != "kl")
    assert not build("rslad+mmard", {"mmard.beta": 0.0}).couples_batch


# --- halves and compose ---


@over("inner", [name for name in METHODS if name not in NONE])
@over("outer", METHODS)
def test_any_attack_goes_with_any_loss(inner: str, outer: str) -> None:
    if "P" in build(inner).nets and "P" not in build(outer).nets:
        with pytest.raises(Refused, match="an outer method that trains the network P"):
            compose("pgd_at", inner=inner, outer=outer)
        return
    method = compose("pgd_at", inner=inner, outer=outer)
    a, o = build(inner), build(outer)
    assert method.name == f"{inner}/{outer}"
    assert (method.start, method.attack_mode) == (a.start, a.attack_mode)
    assert (method.forwards, method.quiet, method.scale) == (o.forwards, o.quiet, o.scale)
    assert set(method.nets) == {*a.nets, *o.nets}
    assert method.says == (a.says[0], o.says[1])
    assert a.source in method.source
    assert o.source in method.source
    student, x, y = conv(), images(3), labels(3)
    outcome = step_of(method, student, attack=Jittered(1)).run(x, y)
    outcome.loss.backward()
    assert outcome.loss.isfinite()
    assert set(outcome.terms) == set(step_of(o, conv()).run(x, y).terms)
    # The attack is the inner's own: the same x_adv as that method makes on its own.
    alone = step_of(a, conv(), attack=Jittered(1)).run(x, y).batch.adv.value
    assert torch.equal(outcome.batch.adv.value, alone)
    assert (BUDGET.distance(alone, x) <= BUDGET.eps + 1e-12).all()


def test_one_half_may_be_exchanged_alone() -> None:
    assert compose("rslad").name == "rslad"
    assert compose("rslad", inner="adaad").name == "adaad/rslad"
    assert compose("rslad", outer="adaad").name == "rslad/adaad"
    assert compose("rslad+mmard", inner="pgd_at").name == "pgd_at/rslad+mmard"
    assert compose("rslad+mmard", inner="pgd_at").couples_batch
    assert compose(" rslad ", outer=" adaad + igdm ").nets == ("S", "T")


def test_an_attack_cannot_be_taken_from_a_method_that_makes_none() -> None:
    with pytest.raises(Refused, match="a method that makes adversarial examples"):
        compose("rslad", inner="kd")
    with pytest.raises(Refused, match="a method that makes adversarial examples"):
        halves(build("kd"), build("rslad"))


def test_a_parameter_reaches_the_half_that_it_belongs_to() -> None:
    b = batch_of(logits(4), labels(4))
    method = compose("trades", outer="rslad+mmard", params={"rslad.scale": 0.1, "mmard.beta": 0.0})
    assert method.scale == 0.1
    expected = build("rslad", {"rslad.scale": 0.1}).outer(b)
    assert all(torch.equal(expected[k], value) for k, value in method.outer(b).items())


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"rslad.alpha": 0.5}, "parameter 'rslad.alpha'"),  # neither half is rslad any more
        ({"adaad.alhpa": 0.5}, "did you mean 'adaad.alpha'"),
        ({"ard.tau": "hot"}, "expected a float"),
    ],
)
def test_a_parameter_that_belongs_to_neither_half_is_refused(params: Params, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        compose("rslad", inner="adaad", outer="ard", params=params)


@pytest.mark.parametrize(("inner", "outer"), [("rlsad", None), (None, "rlsad"), ("rslad", "rlsad")])
def test_an_unknown_half_is_answered_with_the_nearest(inner: str | None, outer: str | None) -> None:
    with pytest.raises(Refused, match="did you mean 'rslad'"):
        compose("trades", inner=inner, outer=outer)


def test_the_attack_of_a_plug_in_can_be_taken_without_its_loss() -> None:
    method: Method = compose("rslad", inner="rslad+mmard", params={"mmard.teacher_every": 1})
    b = batch_of(logits(4), labels(4))
    assert set(method.outer(b)) == {"adv", "nat"}
    assert not read(b, "T") - {"x"}
    assert method.inner is not None
    value = method.inner(b)
    assert read(b, "T") == {"x", "x_adv"}
    assert value.shape == (4,)
