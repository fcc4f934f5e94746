"""MMARD's guidance: its formula on given predictions, and the attack that it makes through networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from laws import over
from nets import (
    BUDGET,
    NONE,
    batch_of,
    buffers,
    build,
    conv,
    generator,
    gradients,
    images,
    labels,
    logits,
    read,
    same,
    step_of,
    target_first,
)
from papers import Views, arrays_of, np_drift
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.batch import Batch, Net, Point
from mmard.method import Method
from mmard.methods import METHODS
from mmard.methods.mmard import DRIFTS

TEACHER = conv(seed=99, width=5).eval()


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)])
def test_the_guidance_grows_over_its_ramp(progress: float, share: float) -> None:
    views, y = logits(4), labels(4)
    plain, grown = build("rslad"), build("rslad+mmard", {"mmard.guide": 0.6, "mmard.ramp": 0.5})
    assert plain.inner is not None
    assert grown.inner is not None
    added = grown.inner(batch_of(views, y, progress)) - plain.inner(batch_of(views, y, progress))
    v = Views(arrays_of(views), y.numpy(), progress)
    np.testing.assert_allclose(added.detach().numpy(), 0.6 * share * np_drift(v, False), rtol=1e-9, atol=1e-12)


def test_a_method_without_an_attack_gets_the_guidance_as_its_attack() -> None:
    views, y = logits(4), labels(4)
    method = build("kd+mmard", {"mmard.guide": 1.0})
    assert method.inner is not None
    assert method.start != "none", "at x itself the drift has no gradient"
    b = batch_of(views, y)
    value = method.inner(b)
    assert read(b, "S") == set()
    np.testing.assert_allclose(value.numpy(), np_drift(Views(arrays_of(views), y.numpy(), 1.0), False), rtol=1e-9)


def climbed(
    method: Method, student: nn.Module, x: Tensor, iterates: list[Tensor], y: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Value and input gradient of an inner objective at given iterates of one attack."""
    batch = Batch(Point("x", x), None, y, {"S": Net(student), "T": Net(TEACHER), "P": Net(conv(seed=97).eval())})
    found = []
    assert method.inner is not None
    for k, iterate in enumerate(iterates):
        at = iterate.clone().requires_grad_()
        value = method.inner(batch.at(at, student(at), k))
        (slope,) = torch.autograd.grad(value.sum(), at)
        found.append((value.detach(), slope))
    return found


def path(x: Tensor, n: int) -> list[Tensor]:
    g = generator(17)
    return [(x + 0.02 * torch.randn(x.shape, generator=g, dtype=x.dtype)).clamp(0, 1) for _ in range(n)]


HOSTS = over("host", [name for name in METHODS if name not in NONE])


@HOSTS
@over("bounded", [False, True])
def test_guidance_at_x_pulls_the_same_way_at_every_iterate(host: str, bounded: bool) -> None:
    student, x, y, iterates = conv().eval(), images(4), labels(4), path(images(4), 3)
    own = {"mmard.guide": 0.7, "mmard.drift": "ce", "mmard.teacher_every": 0, "mmard.bounded": bounded}
    alone, grown = (climbed(build(s, p), student, x, iterates, y) for s, p in ((host, {}), (f"{host}+mmard", own)))
    at = x.clone().requires_grad_()
    start = nn.functional.cross_entropy(TEACHER(at), TEACHER(x).argmax(1), reduction="none")
    start = 1 - torch.exp(-start) if bounded else start
    (slope,) = torch.autograd.grad(start.sum(), at)
    assert slope.norm() > 1e-2
    for (value, gradient), (v, g), iterate in zip(grown, alone, iterates, strict=True):
        rise = start.detach() + (slope * (iterate - x)).flatten(1).sum(1)
        torch.testing.assert_close(value, v + 0.7 * rise, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, g + 0.7 * slope, rtol=0, atol=1e-12)


def test_a_drift_out_of_the_own_class_is_not_climbed_by_making_the_teacher_surer() -> None:
    sure, surer, torn = (torch.tensor([[z, 0.0, 0.0]]) for z in (2.0, 9.0, 0.5))
    for drift, grows in (("kl", True), ("ce", False)):
        far = DRIFTS[drift][0]
        assert bool(far(sure, surer) > far(sure, sure)) is grows
        assert far(sure, torn) > far(sure, sure)


@HOSTS
@over("guide", [0.0, 0.7])
def test_the_student_is_driven_out_of_the_teachers_class_too(host: str, guide: float) -> None:
    student, x, y, iterates = conv().eval(), images(4), labels(4), path(images(4), 2)
    guided = {"mmard.guide": guide, "mmard.drift": "ce", "mmard.teacher_every": 0}
    alone, grown = (
        climbed(build(f"{host}+mmard", {**guided, "mmard.own": own}), student, x, iterates, y)
        if guide or own
        else climbed(build(host), student, x, iterates, y)
        for own in (0.0, 2.0)
    )
    for (value, gradient), (v, g), iterate in zip(grown, alone, iterates, strict=True):
        at = iterate.clone().requires_grad_()
        out = nn.functional.cross_entropy(student(at), TEACHER(x).argmax(1), reduction="none")
        (slope,) = torch.autograd.grad(out.sum(), at)
        torch.testing.assert_close(value, v + 2 * out.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, g + 2 * slope, rtol=0, atol=1e-12)


@HOSTS
@over("bounded", [False, True])
def test_guidance_adds_the_gradient_through_the_teacher(host: str, bounded: bool) -> None:
    student, x, y = conv().eval(), images(4), labels(4)
    guided = build(f"{host}+mmard", {"mmard.guide": 0.7, "mmard.bounded": bounded})
    (alone,), (grown,) = (climbed(m, student, x, path(x, 1), y) for m in (build(host), guided))
    at = path(x, 1)[0].requires_grad_()
    moved = target_first(TEACHER(x).detach(), TEACHER(at))
    (slope,) = torch.autograd.grad(moved.sum(), at)
    moved = moved.detach()
    if bounded:  # d(1 - exp(-KL)) = exp(-KL) dKL
        slope, moved = slope * torch.exp(-moved)[:, None, None, None], 1 - torch.exp(-moved)
    assert slope.norm() > 1e-2
    torch.testing.assert_close(grown[0], alone[0] + 0.7 * moved, rtol=0, atol=1e-12)
    torch.testing.assert_close(grown[1], alone[1] + 0.7 * slope, rtol=0, atol=1e-12)


@over("host", ["rslad", "adaad", "kd"])
@over("every", [2, 3])
@over("bounded", [False, True])
def test_between_refreshes_the_drift_is_its_first_order_model(host: str, every: int, bounded: bool) -> None:
    student, x, y = conv().eval(), images(4), labels(4)
    iterates = path(x, 5)
    exact, lazy = (
        climbed(
            build("kd+mmard", {"mmard.guide": 1.0, "mmard.teacher_every": k, "mmard.bounded": bounded}),
            student,
            x,
            iterates,
            y,
        )
        for k in (1, every)
    )
    expected = []
    for k, iterate in enumerate(iterates):
        value, slope = exact[k - k % every]
        shift = (iterate - iterates[k - k % every]).flatten(1)
        expected.append((value + (slope.flatten(1) * shift).sum(1), slope))
    weight = 1.0
    if host != "kd":
        alone = climbed(build(host), student, x, iterates, y)
        spec = {"mmard.guide": 0.7, "mmard.teacher_every": every, "mmard.bounded": bounded}
        lazy, weight = climbed(build(f"{host}+mmard", spec), student, x, iterates, y), 0.7
        expected = [(a + weight * v, s + weight * d) for (a, s), (v, d) in zip(alone, expected, strict=True)]
    for (value, slope), (v, s) in zip(lazy, expected, strict=True):
        torch.testing.assert_close(value, v, rtol=0, atol=1e-12)
        torch.testing.assert_close(slope, s, rtol=0, atol=1e-12)


def test_a_whole_guided_attack_is_the_one_by_hand() -> None:
    student, x, y = conv(), images(4), labels(4)
    found = step_of("rslad+mmard", student, TEACHER, attack=PGD(5, 2 / 255, "gaussian"), seed=2).run(x, y).batch
    x_adv = PGD(5, 2 / 255, "gaussian")(
        conv().eval(),
        lambda z, at: target_first(TEACHER(x).detach(), z) + 0.3 * target_first(TEACHER(x).detach(), TEACHER(at)),
        x,
        BUDGET,
        generator=_first_generator(2),
    )
    torch.testing.assert_close(found.adv.value, x_adv, rtol=0, atol=1e-12)


def _first_generator(seed: int) -> torch.Generator:
    from mmard import seeds

    return seeds.generator("cpu", seed, "attack", 0)


@HOSTS
def test_without_guidance_the_attack_is_the_hosts_to_the_bit(host: str) -> None:
    x, y = images(4), labels(4)
    plain, grown = (
        step_of(build(s, p), conv()).run(x, y) for s, p in ((host, {}), (f"{host}+mmard", {"mmard.guide": 0.0}))
    )
    assert torch.equal(plain.batch.adv.value, grown.batch.adv.value)
    guided = step_of(f"{host}+mmard", conv()).run(x, y)
    assert guided.batch.adv.value.shape == x.shape


@pytest.mark.parametrize("every", [1, 2])
def test_guidance_moves_the_teacher_further(every: int) -> None:
    x, y = images(16), labels(16)
    drift = {}
    for guide in (0.0, 3.0):
        method = build("rslad+mmard", {"mmard.guide": guide, "mmard.teacher_every": every})
        x_adv = step_of(method, conv(), TEACHER, attack=PGD(10, 2 / 255, "gaussian")).run(x, y).batch.adv.value
        drift[guide] = target_first(TEACHER(x), TEACHER(x_adv)).mean().item()
    assert drift[3.0] > 1.5 * drift[0.0]


def test_a_plain_method_gets_an_attack_by_the_guidance_that_moves_the_teacher() -> None:
    x, y, student = images(8), labels(8), conv()
    before = buffers(student)
    b = step_of("kd+mmard", student, TEACHER, attack=PGD(10, 2 / 255, "gaussian")).run(x, y).batch
    assert (BUDGET.distance(b.adv.value, x) > 0.9 * BUDGET.eps).all()
    assert (target_first(TEACHER(x), TEACHER(b.adv.value)) > 1e-4).all()
    assert int(student[1].num_batches_tracked) == 1, "x_adv is a view of the plug-in, so it is quiet"
    assert not same(before, buffers(student))


@pytest.mark.parametrize("host", ["kd", "rslad", "adaad", "pgd_at", "akd2"])
def test_the_attack_on_the_label_is_that_of_adversarial_training_on_any_host(host: str) -> None:
    off = {"mmard.guide": 0.0, "mmard.own": 0.0, "mmard.beta": 0.0}
    method, plain = build(f"{host}+mmard", {**off, "mmard.attack": "label"}), build("pgd_at")
    assert (method.start, method.says[0]) == (plain.start, plain.says[0])
    views, y = logits(5), labels(5)
    assert method.inner is not None and plain.inner is not None  # noqa: PT018
    found, expected = (inner(batch_of(views, y)) for inner in (method.inner, plain.inner))
    assert torch.equal(found, expected)
    driven = build(f"{host}+mmard", {"mmard.attack": "label", "mmard.guide": 0.0, "mmard.own": 3.0})
    assert driven.inner is not None
    assert not torch.equal(driven.inner(batch_of(views, y)), expected), "the drifts come on top"
    assert "CE(S(x'), y) + 3 CE(S(x'), argmax T(x))" in driven.says[0]


@pytest.mark.parametrize("tau", [0.25, 2.0])
@pytest.mark.parametrize("host", ["rslad", "adaad", "saad", "igdm"])
def test_a_temperature_is_a_teacher_with_other_logits(host: str, tau: float) -> None:
    """In the attack as in the loss, gradient through the teacher included."""
    spec = "adaad+igdm" if host == "igdm" else host
    hot, plain = build(f"{spec}+temperature", {"temperature.tau": tau}), build(spec)
    views, y = logits(5), labels(5)
    other = {k: (v.detach() / tau).requires_grad_() if k.startswith("T.") else v for k, v in views.items()}
    views = {k: v.detach().requires_grad_() if k.startswith("T.") else v for k, v in views.items()}
    for name, term in hot.outer(batch_of(views, y)).items():
        torch.testing.assert_close(term, plain.outer(batch_of(other, y))[name])
    if host == "saad":  # its attack needs a slope by the image, which logits do not have
        return
    assert hot.inner is not None and plain.inner is not None  # noqa: PT018
    found, expected = hot.inner(batch_of(views, y)).sum(), plain.inner(batch_of(other, y)).sum()
    torch.testing.assert_close(found, expected)
    for name, slope in gradients(found, views, "T").items():
        torch.testing.assert_close(slope, gradients(expected, other, "T")[name] / tau)
