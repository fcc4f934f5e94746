"""Accuracy as the radius or the number of steps grows: what a curve must do if the attack works.

Every radius is attacked anew from the clean images. An image that falls at a small radius is not counted as fallen at
larger ones, although the larger ball holds the smaller: a curve that rises is the sign of an attack that fails, and
counting so would hide it.

The curve over steps is one climb looked at from time to time: what PGD returns after k steps is its k-th iterate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mmard.attacks import UntargetedPGD
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.evaluation.evaluate import Measured, Protocol, labelled, measure, random_start, verdict
from mmard.evaluation.journal import Progress, cut
from mmard.modes import evaluating, frozen
from mmard.ops import correct

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Radii of a curve, in units of eps; 0 and `grey_radius` come on top."""
STEPS = (1, 2, 5, 10, 20, 50, 100)


def grey_radius(norm: str, image_shape: Sequence[int]) -> float:
    """A radius at which one image, the even grey of 0.5, lies in the ball around every image.

    There no network can be right on more than the images of one class.

    >>> grey_radius("linf", (3, 32, 32)), round(grey_radius("l2", (3, 32, 32)), 2), grey_radius("l1", (1, 8, 8))
    (0.5, 27.71, 32.0)
    """
    size = math.prod(image_shape)
    return 0.5 * {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]


def radii(budget: Budget, image_shape: Sequence[int]) -> list[float]:
    """Radii of a curve, ascending, without 0: shares and multiples of eps, and the one that reaches grey."""
    far = grey_radius(budget.norm, image_shape)
    return sorted({far, budget.eps, *(r for share in SHARES if (r := share * budget.eps) < far)})


def over_eps(
    model: nn.Module,
    images: ImageSet,
    attack: UntargetedPGD,
    protocol: Protocol,
    clean: Measured,
    known: Measured,
    *,
    radii: Sequence[float],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy against the radius under one attack, whose step grows with the radius.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        attack: at the radius of the protocol.
        protocol: of the evaluation.
        clean, known: the figures without attack and under it, which are points of the curve.
        radii: further radii, in input units.
        progress: told how far each radius is.

    Returns:
        The body of a finding "curve".
    """
    here, eps, norm = known.score, protocol.budget.eps, protocol.budget.norm
    found = {0.0: clean.score.correct, eps: here.correct}
    for r in radii:
        if r in found:
            continue
        climb = replace(attack.climb, step_size=attack.climb.step_size * r / eps)
        _, measured = measure(
            model,
            images,
            protocol.only(replace(attack, climb=climb), budget=Budget(r, norm)),
            split=here.split,
            which=here.which,
            progress=progress and _called(progress, f"eps {r:.3g}"),
        )
        found[r] = measured.score.correct
    return {"over": "eps", "points": _points(found, len(images))}


def eps_label(attack: UntargetedPGD, eps: float) -> str:
    """The attack of a curve over eps, whose step is told in units of eps.

    >>> from mmard.attacks import read_attack
    >>> eps_label(read_attack("pgd-20", Budget(8 / 255)), 8 / 255)
    'PGD-20 (CE, step eps/4, uniform start, 1 restart)'
    """
    share = attack.climb.step_size / eps
    whole = round(1 / share)
    step = "eps" if share == 1 else f"eps/{whole}" if abs(share * whole - 1) < 1e-9 else f"{share:.3g} eps"
    return attack.described(attack.title, step)


@torch.inference_mode(False)
def over_steps(
    model: nn.Module,
    images: ImageSet,
    attack: UntargetedPGD,
    protocol: Protocol,
    clean: Measured,
    *,
    steps: Sequence[int] = STEPS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy against the number of steps of one attack from one random start.

    Args:
        model, images, protocol: as in `over_eps`; the network itself is asked.
        attack: its own number of steps is a point as well, its restarts are not made.
        clean: the figure without attack.
        steps: numbers of steps.
        progress: told how far the climb is.

    Returns:
        The body of a finding "curve".
    """
    counted = sorted({*steps, attack.climb.steps})
    longest = replace(attack, climb=replace(attack.climb, steps=counted[-1], restarts=1))
    who, done = np.flatnonzero(clean.mask), 0
    found = dict.fromkeys(counted, 0)
    with evaluating(model), frozen(model):
        for number, batch in enumerate(cut(who, protocol.batch_size)):
            x, y = labelled(model, images, torch.from_numpy(batch))
            trace = list[torch.Tensor]()
            start = random_start(attack, x, protocol.seed, number)
            x_adv = longest(model, x, y, protocol.budget, generator=start, trace=trace)
            trace.append(verdict(model, x_adv, y, "steps")[1])
            for k in counted:
                found[k] += int(correct(trace[k], y).sum())
            done += len(batch)
            if progress is not None:
                progress("steps", done, len(who), found[counted[-1]])
    return {"over": "steps", "points": _points(found, len(images))}


def steps_label(attack: UntargetedPGD) -> str:
    """The attack of a curve over steps, without their number.

    >>> from mmard.attacks import read_attack
    >>> steps_label(read_attack("cw-30x4", Budget(8 / 255)))
    'CW-PGD (CW margin, step 2/255, uniform start, 1 restart)'
    """
    return attack.described(attack.name, restarts=1)


def _points(found: dict[float, int] | dict[int, int], n: int) -> list[dict[str, Any]]:
    return [{"value": value, "correct": correct, "n": n} for value, correct in sorted(found.items())]


def _called(progress: Progress, name: str) -> Progress:
    return lambda _, done, of, surviving: progress(name, done, of, surviving)
