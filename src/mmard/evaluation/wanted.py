"""What to look for in an evaluation beside accuracies, and whether it can be found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from mmard.attacks import Trial
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused, unknown
from mmard.evaluation.black_box import is_black_box
from mmard.evaluation.suite import read

ALSO = ("checks", "classes", "margins", "calibration", "examples", "boundary", "eps", "steps")
"""What an evaluation can find beside accuracies, in the order in which it looks for it: the quick ones first."""
NEED_EXAMPLES = ("margins", "calibration", "examples", "boundary", "eps", "steps")
"""Those that need an attack which hands out its examples."""


@dataclass(frozen=True)
class Teacher:
    """A network to look at the same images.

    Attributes:
        module: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        source: a line on where it comes from.
    """

    module: nn.Module
    source: str


@dataclass(frozen=True)
class OwnExamples:
    """Training images, and the attack that a student was trained with.

    Attributes:
        images: training images.
        attack: (x (B, C, H, W), y (B,)) -> x_adv, on the device of x.
        label: the attack in full.
        budget: its ball.
    """

    images: ImageSet
    attack: Callable[[Tensor, Tensor], Tensor]
    label: str
    budget: Budget


@dataclass(frozen=True)
class Wanted:
    """What to look for beside accuracies.

    Attributes:
        also: names out of `ALSO`.
        teacher: for the boundary, and to read the examples.
        own: for the boundary; None leaves the training examples out.
        left_out: a line on each thing that "all" cannot find here.
    """

    also: tuple[str, ...] = ()
    teacher: Teacher | None = None
    own: OwnExamples | None = None
    left_out: tuple[str, ...] = field(default=())


def read_also(also: str | Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Names out of `ALSO`, and whether "all" was said, which leaves out what cannot be found.

    >>> read_also("eps,checks")
    (('checks', 'eps'), False)

    Raises:
        Refused: for an unknown name.
    """
    names = [name.strip().lower() for name in (also.split(",") if isinstance(also, str) else also) if name.strip()]
    for name in names:
        if name not in (*ALSO, "all"):
            raise unknown("also", name, (*ALSO, "all"))
    return (ALSO, True) if "all" in names else (tuple(name for name in ALSO if name in names), False)


def wanted(
    also: str | Sequence[str],
    model: nn.Module,
    specs: Sequence[str],
    budget: Budget,
    num_classes: int,
    *,
    teacher: Teacher | None = None,
    own: OwnExamples | None = None,
    everything: bool = False,
) -> Wanted:
    """What can be found of what is asked for.

    Args:
        also: names out of `ALSO`, or "all".
        model, specs, budget: of the evaluation.
        num_classes: of its images.
        teacher, own: as in `Wanted`.
        everything: leave out what cannot be found, as for "all".

    Raises:
        Refused: for an unknown name, or one that was asked for by itself and cannot be found: a boundary without a
            teacher, or anything about examples where no attack hands out any.
    """
    names, said_all = read_also(also)
    everything = everything or said_all
    trials = [attack for attack in read(specs, budget, num_classes) if isinstance(attack, Trial)]
    why: dict[str, tuple[str, str, str]] = {}
    if not trials or is_black_box(model):
        mend = "add pgd-20 to the attacks" if not is_black_box(model) else ""
        got = ", ".join(specs) or "none"
        why |= dict.fromkeys(NEED_EXAMPLES, ("an attack that hands out its examples, as pgd-20 does", got, mend))
    elif all(trial.attack.steps == 1 for trial in trials):
        why["steps"] = ("an attack of several steps", ", ".join(specs), "add pgd-20 to the attacks")
    if teacher is None and "boundary" not in why:
        why["boundary"] = ("a teacher", "a network without one", "name one with --teacher (teacher=... in Python)")
    for name in names:
        if name in why and not everything:
            expected, got, mend = why[name]
            raise Refused(f"also {name}", expected=expected, got=got, mend=mend)
    left_out = tuple(f"{name}: it needs {why[name][0]}" for name in names if name in why)
    return Wanted(tuple(name for name in names if name not in why), teacher, own, left_out)
