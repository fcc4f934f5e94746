"""Accuracy as the radius or the number of steps grows: what a curve must do if the attack works.

Every radius is attacked anew from the clean images. An image that falls at a small radius is not counted as fallen at
larger ones, although the larger ball holds the smaller: a curve that rises is the sign of an attack that fails, and
counting so would hide it.

The curve over steps is one climb looked at from time to time: what PGD returns after k steps is its k-th iterate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mmard import seeds
from mmard.attacks import PGD, Trial, Untargeted
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.evaluation.evaluate import Measured, Progress, evaluate, labelled
from mmard.modes import evaluating, frozen

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
    trial: Trial,
    clean: Measured,
    known: Measured,
    *,
    radii: Sequence[float],
    progress: Progress | None = None,
    engine: str = "fast",
) -> dict[str, Any]:
    """Accuracy against the radius under one attack, whose step grows with the radius.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        trial: the attack at the radius of `known`.
        clean, known: the figures without attack and under it, which are points of the curve; the others are measured
            with their seed and batch size.
        radii: further radii, in input units.
        progress: told how far each radius is.
        engine: as in `evaluate`.

    Returns:
        The body of a finding "curve".
    """
    here = known.score
    assert here.eps is not None
    assert here.norm is not None
    found = {0.0: clean.score.correct, here.eps: here.correct}
    for r in radii:
        if r in found:
            continue
        attack = replace(trial.attack, step_size=trial.attack.step_size * r / here.eps)
        _, measured = evaluate(
            model,
            images,
            [replace(trial, attack=attack)],
            Budget(r, here.norm),
            split=here.split,
            which=here.which,
            seed=here.seed,
            batch_size=here.batch_size,
            progress=progress and _called(progress, f"eps {r:.3g}"),
            engine=engine,
        )
        found[r] = measured.score.correct
    return {"over": "eps", "points": _points(found, len(images))}


def eps_label(trial: Trial, eps: float) -> str:
    """The attack of a curve over eps, whose step is told in units of eps.

    >>> from mmard.attacks import trial
    >>> eps_label(trial("pgd-20", Budget(8 / 255)), 8 / 255)
    'PGD-20 (CE, step eps/4, uniform start, 1 restart)'
    """
    share = trial.attack.step_size / eps
    whole = round(1 / share)
    step = "eps" if share == 1 else f"eps/{whole}" if abs(share * whole - 1) < 1e-9 else f"{share:.3g} eps"
    return re.sub(r"step [^,)]+", f"step {step}", trial.label, count=1)


def over_steps(
    model: nn.Module,
    images: ImageSet,
    trial: Trial,
    clean: Measured,
    budget: Budget,
    *,
    steps: Sequence[int] = STEPS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy against the number of steps of one attack from one random start.

    Args:
        model, images: as in `over_eps`.
        trial: the attack; its own number of steps is a point as well, its restarts are not made.
        clean: the figure without attack, whose seed and batch size hold.
        budget: where adversarial examples may be.
        steps: numbers of steps.
        progress: told how far the climb is.

    Returns:
        The body of a finding "curve".
    """
    wanted = sorted({*steps, trial.attack.steps})
    attack: PGD = replace(trial.attack, steps=wanted[-1], restarts=1)
    who, size = np.flatnonzero(clean.mask), clean.score.batch_size
    found = dict.fromkeys(wanted, 0)
    with evaluating(model), frozen(model):
        for batch, first in enumerate(range(0, len(who), size)):
            rows = torch.from_numpy(who[first : first + size])
            x, y = labelled(model, images, rows)
            objective, trace = Untargeted(y, trial.loss), list[torch.Tensor]()
            generator = seeds.generator(x.device, clean.score.seed, "evaluate", trial.spec, batch)
            x_adv = attack(model, objective, x, budget, generator=generator, trace=trace)
            with torch.no_grad():
                trace.append(model(x_adv))
            assert len(trace) == attack.steps + 1
            for k in wanted:
                found[k] += int((~objective.fooled(trace[k])).sum())
            if progress is not None:
                progress("steps", first + len(rows), len(who), found[wanted[-1]])
    return {"over": "steps", "points": _points(found, len(images))}


def steps_label(trial: Trial) -> str:
    """The attack of a curve over steps, without their number.

    >>> from mmard.attacks import trial
    >>> steps_label(trial("cw-30x4", Budget(8 / 255)))
    'CW-PGD (CW margin, step 2/255, uniform start, 1 restart)'
    """
    without = re.sub(r"^([A-Za-z-]+)-\d+ ", r"\1 ", trial.label)
    return re.sub(r"\d+ restarts", "1 restart", without)


def _points(found: dict[float, int] | dict[int, int], n: int) -> list[dict[str, Any]]:
    return [{"value": value, "correct": correct, "n": n} for value, correct in sorted(found.items())]


def _called(progress: Progress, name: str) -> Progress:
    return lambda _, done, of, standing: progress(name, done, of, standing)
