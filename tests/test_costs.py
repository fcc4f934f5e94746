"""How often a step runs what: every pass through each network is counted."""

from __future__ import annotations

import math
from typing import Any

import torch
from laws import over
from nets import (
    Params,
    build,
    case_id,
    conv,
    images,
    labels,
    step_of,
)
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.methods import METHODS


class Tick(torch.autograd.Function):
    """The identity, which counts the backward passes through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meter: Meter, name: str) -> Tensor:
        ctx.meter, ctx.name = meter, name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        setattr(ctx.meter, ctx.name, getattr(ctx.meter, ctx.name) + 1)
        return gradient, None, None


class Meter(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forwards, self.at_input, self.at_output = net, 0, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        z = self.net(Tick.apply(x, self, "at_input") if x.requires_grad else x)
        return Tick.apply(z, self, "at_output") if z.requires_grad else z

    @property
    def counted(self) -> tuple[int, int, int]:
        """Forwards, input-backwards, and views through which the weights receive gradient."""
        return self.forwards, self.at_input, self.at_output - self.at_input


COSTS: tuple[tuple[str, Params, tuple[int, int, int], tuple[int, int, int]], ...] = (
    # Ten steps. Student: forwards, input-backwards, views with a weight-backward; teacher: the same, and no weights.
    ("pgd_at", {}, (11, 10, 1), (0, 0, 0)),
    ("trades", {}, (13, 10, 2), (0, 0, 0)),  # one of them S(x) in eval mode, once for the whole attack
    ("mart", {}, (12, 10, 2), (0, 0, 0)),
    ("natural", {}, (1, 0, 1), (0, 0, 0)),
    ("kd", {}, (1, 0, 1), (1, 0, 0)),
    ("ard", {}, (11, 10, 1), (1, 0, 0)),
    ("ard", {"ard.alpha": 0.5}, (12, 10, 2), (1, 0, 0)),
    ("iad_i", {}, (12, 10, 2), (2, 0, 0)),
    ("rslad", {}, (12, 10, 2), (1, 0, 0)),
    ("adaad", {}, (11, 10, 1), (11, 10, 0)),
    ("adaad", {"adaad.alpha": 0.5}, (12, 10, 2), (12, 10, 0)),
    ("adaiad", {}, (12, 10, 2), (11, 10, 0)),
    ("n_fgsm", {}, (11, 10, 1), (0, 0, 0)),
    ("fgsm_rs", {}, (11, 10, 1), (0, 0, 0)),
    ("lbgat", {}, (13, 10, 2), (0, 0, 0)),
    ("hat", {}, (14, 10, 3), (0, 0, 0)),
    ("pgd_at+adr", {}, (11, 10, 1), (0, 0, 0)),
    ("akd2", {}, (11, 10, 1), (1, 0, 0)),
    ("iad_ii", {}, (12, 10, 2), (1, 0, 0)),
    ("mtard", {}, (12, 10, 2), (1, 0, 0)),
    ("b_mtard", {}, (12, 10, 2), (1, 0, 0)),
    ("absld", {}, (12, 10, 2), (1, 0, 0)),
    ("peeraid", {}, (12, 10, 2), (0, 0, 0)),
    ("dgad", {}, (12, 10, 2), (12, 10, 0)),
    ("ciard", {}, (12, 10, 2), (1, 0, 1)),
    ("saad", {}, (12, 10, 2), (3, 1, 0)),  # T(x) comes with its slope
    ("saad", {"saad.beta": 1.0}, (13, 10, 3), (3, 1, 0)),
    ("rslad+fair", {}, (12, 10, 2), (1, 0, 0)),
    ("rslad+awp", {}, (14, 10, 4), (1, 0, 0)),  # every view twice, the teacher once
    ("adaad+igdm+awp", {}, (14, 10, 4), (12, 10, 0)),
    # A host that asks the teacher at every iterate lends its prediction to the slope.
    ("adaad+mmard", {"mmard.teacher_every": 5}, (12, 10, 2), (12, 12, 0)),
    # Gradient matching: one more view, and of the teacher what the host did not ask for.
    ("pgd_at+igdm", {}, (12, 10, 2), (2, 0, 0)),
    ("rslad+igdm", {}, (13, 10, 3), (3, 0, 0)),
    ("iad_i+igdm", {}, (13, 10, 3), (3, 0, 0)),
    ("adaad+igdm", {}, (12, 10, 2), (12, 10, 0)),
    ("rslad+igdm", {"igdm.alpha": 0.0}, (12, 10, 2), (1, 0, 0)),
    # Guidance: the teacher at every iterate, shared with a host that asks it there anyway; the triangle: both views,
    # and T(x') where an edge ends in it.
    ("rslad+mmard", {}, (12, 10, 2), (11, 10, 0)),
    ("adaad+mmard", {}, (12, 10, 2), (12, 10, 0)),
    ("pgd_at+mmard", {}, (12, 10, 2), (11, 10, 0)),
    ("rslad+mmard", {"mmard.edges": "nr,nq,rq"}, (12, 10, 2), (12, 10, 0)),
    ("rslad+mmard", {"mmard.guide": 0.0}, (12, 10, 2), (1, 0, 0)),
    ("rslad+mmard", {"mmard.guide": 0.0, "mmard.edges": "rq"}, (12, 10, 2), (2, 0, 0)),
    ("rslad+mmard", {"mmard.beta": 0.0}, (12, 10, 2), (11, 10, 0)),
    ("rslad+mmard", {"mmard.guide": 0.0, "mmard.beta": 0.0}, (12, 10, 2), (1, 0, 0)),
    ("kd+mmard", {}, (12, 0, 2), (11, 10, 0)),
    # Taken once at x, the guidance is one backward through the T(x) that the loss reads anyway.
    ("rslad+mmard", {"mmard.drift": "ce", "mmard.teacher_every": 0}, (12, 10, 2), (1, 1, 0)),
    ("pgd_at+mmard", {"mmard.drift": "ce", "mmard.teacher_every": 0}, (12, 10, 2), (1, 1, 0)),
    *(
        ("rslad+mmard", {"mmard.teacher_every": k}, (12, 10, 2), (1 + math.ceil(10 / k), math.ceil(10 / k), 0))
        for k in (2, 3, 5, 10, 11)
    ),
)


@over(
    ("spec", "params", "of_student", "of_teacher"), COSTS, ids=[case_id((spec, params)) for spec, params, _, _ in COSTS]
)
def test_a_step_costs_what_it_must_and_no_pass_more(
    spec: str, params: Params, of_student: tuple[int, int, int], of_teacher: tuple[int, int, int]
) -> None:
    student, teacher = Meter(conv()), Meter(conv(seed=9).eval())
    step = step_of(build(spec, params), student, teacher, attack=PGD(10, 2 / 255, "gaussian"))
    loss, _ = step(images(3), labels(3))
    loss.backward()
    assert student.counted == of_student
    assert teacher.counted == of_teacher


def test_the_table_of_costs_holds_every_method() -> None:
    assert {spec for spec, params, _, _ in COSTS if not params} >= set(METHODS)
