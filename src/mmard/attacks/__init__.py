"""Attacks by name: one table, and the short spelling in which the command line and records write them.

fgsm          one step of eps from x
pgd-20        20 steps on cross-entropy, step eps/4, uniform start           (the 20 steps of 2/255 of the field)
cw-30         30 steps on the margin of Carlini and Wagner, step eps/4, uniform start
pgd-100x10    the same with 10 restarts
pgd-20@0.003  the same with this step
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mmard.attacks.pgd import PGD, STARTS, Attack, NoiseFGSM, Objective, fgsm
from mmard.balls import Budget, as_fraction, radius
from mmard.errors import Refused, unknown
from mmard.ops import ce, correct, margin

__all__ = [
    "ATTACKS",
    "PGD",
    "STARTS",
    "TRAINING_ATTACKS",
    "Attack",
    "NoiseFGSM",
    "Objective",
    "TrainingAttack",
    "Trial",
    "Untargeted",
    "fgsm",
    "noise_fgsm",
    "pgd",
    "trial",
]

TrainingAttack = Callable[[Budget, int, float | None, str], Attack]
"""How a training makes its attack: (budget, steps, step size or None for its own, start) -> the attack."""


def pgd(budget: Budget, steps: int, step_size: float | None, start: str) -> Attack:
    """PGD with these steps, of a quarter of eps if no length is given."""
    return PGD(steps, budget.eps / 4 if step_size is None else step_size, start)


def noise_fgsm(budget: Budget, steps: int, step_size: float | None, start: str, noise: float = 2.0) -> Attack:
    """One step from noise of twice eps, of eps if no length is given; it has its own number of steps and start."""
    return NoiseFGSM(noise, step_size)


TRAINING_ATTACKS: dict[str, TrainingAttack] = {"pgd": pgd, "noise-fgsm": noise_fgsm}
"""Attacks that a training can be told to use, by name."""


@dataclass(frozen=True, eq=False)
class Untargeted:
    """The objective of an evaluation: a loss of the true labels, which also tells who is fooled.

    Args:
        y: true labels (B,).
        loss: (logits (B, C), y (B,)) -> (B,), e.g. `ops.ce` or `ops.margin`.
    """

    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, logits: Tensor, x_adv: Tensor) -> Tensor:
        """The loss (B,), climbed."""
        return self.loss(logits, self.y)

    def fooled(self, logits: Tensor) -> Tensor:
        """Who is misread, (B, C) -> (B,) bool."""
        return ~correct(logits, self.y)


@dataclass(frozen=True)
class Trial:
    """One attack as an evaluation runs it.

    Attributes:
        spec: the short spelling, e.g. "pgd-20".
        label: the full description, e.g. "PGD-20 (CE, step 2/255, uniform start, 1 restart)".
        attack: the attack.
        loss: what it climbs, of logits (B, C) and labels (B,).
    """

    spec: str
    label: str
    attack: PGD
    loss: Callable[[Tensor, Tensor], Tensor]


ATTACKS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "fgsm": ("FGSM", ce),
    "pgd": ("PGD", ce),
    "cw": ("CW-PGD", margin),
}
_LOSS_NAMES: dict[Callable[[Tensor, Tensor], Tensor], str] = {ce: "CE", margin: "CW margin"}
_SPEC = re.compile(r"(?P<kind>[a-z]+)(?:-(?P<steps>\d+))?(?:x(?P<restarts>\d+))?(?:@(?P<step>[\d./e-]+))?")


def trial(spec: str, budget: Budget, *, beside: Sequence[str] = ()) -> Trial:
    """Read the short spelling of an attack.

    >>> trial("pgd-20", Budget(8 / 255)).label
    'PGD-20 (CE, step 2/255, uniform start, 1 restart)'

    Args:
        spec: the short spelling.
        budget: decides the steps.
        beside: names of other attacks, which a refusal offers as well.

    Raises:
        Refused: for a spelling or an attack that is not known, or a step that jumps across the ball.
    """
    text = spec.strip().lower()
    parts = _SPEC.fullmatch(text)
    if parts is None:
        raise Refused(
            f"attack {spec!r}",
            expected=", ".join(("a spelling such as fgsm, pgd-20, cw-30, pgd-100x10, pgd-20@0.003", *beside)),
            got=repr(spec),
            mend=unknown("attack", text, beside).mend,
        )
    kind = parts["kind"]
    if kind not in ATTACKS:
        raise unknown("attack", kind, (*ATTACKS, *beside))
    title, loss = ATTACKS[kind]
    if kind == "fgsm":
        if text != "fgsm":
            raise Refused(f"attack {spec!r}", expected="plain 'fgsm', which is one step of eps", got=repr(spec))
        return Trial(text, f"FGSM (CE, step {as_fraction(budget.eps)}, no start)", fgsm(budget), loss)
    if parts["steps"] is None:
        raise Refused(f"attack {spec!r}", expected=f"the number of steps, e.g. {kind}-20", got=repr(spec))
    step = radius(parts["step"]) if parts["step"] else budget.eps / 4
    attack = PGD(int(parts["steps"]), step, "uniform", int(parts["restarts"] or 1))
    attack.check(budget)
    restarts = f"{attack.restarts} restart" + "s" * (attack.restarts > 1)
    label = f"{title}-{attack.steps} ({_LOSS_NAMES[loss]}, step {as_fraction(step)}, uniform start, {restarts})"
    return Trial(text, label, attack, loss)
