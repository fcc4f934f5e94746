"""What an evaluation found beside accuracies, with all that it depends on; and what there is to find.

An image that is misread without an attack is not attacked: for whoever wants errors it is good as it is. So what is
counted here agrees with the figures to the image. Calibration: Guo, Pleiss, Sun, Weinberger, "On calibration of modern
neural networks", ICML 2017, arXiv:1706.04599 (15 bins).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmard.attacks import UntargetedPGD, is_black_box
from mmard.attacks.queries import logits_of
from mmard.balls import Budget
from mmard.data.image_set import ImageSet, as_levels
from mmard.errors import Refused, unknown
from mmard.evaluation.evaluate import Evaluated, Measured, Protocol, inputs
from mmard.evaluation.score import Mask
from mmard.modes import evaluating
from mmard.ops import ce, correct, true_probability

KINDS = ("checks", "curve", "classes", "margins", "calibration", "boundary", "examples")


@dataclass(frozen=True)
class Used:
    """The attack that a finding speaks of.

    Attributes:
        attack, label: short spelling and full description; None without an attack.
        norm, eps: the budget; None without one.
    """

    attack: str | None = None
    label: str | None = None
    norm: str | None = None
    eps: float | None = None

    @classmethod
    def of(cls, measured: Measured) -> Used:
        """The attack of a figure."""
        score = measured.score
        return cls(score.attack, score.label, score.norm, score.eps)


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: one of `KINDS`.
        evaluated: which weights, on which images.
        used: which attack.
        body: what was found, as JSON holds it; docs/run_folder.md has the keys of each kind.
        seconds: wall-clock time that this took beyond what it shares with the figures.
        arrays: what goes into a file of its own, by name.
    """

    kind: str
    evaluated: Evaluated
    used: Used
    body: Mapping[str, Any]
    seconds: float
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        taken = set(self.body) & {"kind", "slug", "seconds", "environment", *asdict(self.evaluated), *asdict(self.used)}
        assert not taken, f"a finding's body has the keys {taken} of its head"

    @property
    def slug(self) -> str:
        """A file name that the same finding made again has, and no other on these weights."""
        s, u = self.evaluated, self.used
        over = f"-{self.body['over']}" if self.kind == "curve" else ""
        attack = "" if u.attack is None else f"-{u.attack}"
        budget = "" if u.eps is None else f"-{u.norm}-{u.eps:.5f}"
        text = f"{s.which}-{s.split}-{s.n}-{self.kind}{over}{attack}{budget}-seed{s.seed}"
        facts = f"{text} {u.label} {u.norm} {u.eps} {s.batch_size} {s.data} {self.body.get('teacher', '')}"
        rest = hashlib.sha256(facts.encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9.,+_-]+', '_', text)[:150]}-{rest[:8]}"

    def record(self) -> dict[str, Any]:
        """Head and body, as JSON holds them.

        NaN and infinity, which JSON does not have, are refused as errors of ours.
        """
        head = {"kind": self.kind, **asdict(self.evaluated), **asdict(self.used)}
        found = {**head, **self.body, "seconds": round(self.seconds, 3)}
        json.dumps(found, allow_nan=False)
        return found


def counts(values: NDArray[Any], edges: NDArray[Any]) -> list[int]:
    """How many values lie between two edges each; those beyond the outer edges are in the outer bins.

    >>> counts(np.array([-9.0, 0.1, 0.2, 0.9, 1.0]), np.array([0.0, 0.5, 1.0]))
    [3, 2]
    """
    inside = np.clip(values, edges[0], edges[-1])
    return [int(n) for n in np.histogram(inside, edges)[0]]


ALSO = ("checks", "classes", "margins", "calibration", "examples", "boundary", "eps", "steps")
"""What an evaluation can find beside accuracies, in the order in which it looks for it: the quick ones first."""
NEED_EXAMPLES = ("margins", "calibration", "examples", "boundary", "eps", "steps")
"""Those that need an attack which hands out its examples."""


@dataclass(frozen=True)
class TeacherBeside:
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
class FindingsPlan:
    """What to look for beside accuracies.

    Attributes:
        also: names out of `ALSO`.
        teacher: for the boundary, and to read the examples.
        own: for the boundary; None leaves the training examples out.
        left_out: a line on each thing that "all" cannot find here.
    """

    also: tuple[str, ...] = ()
    teacher: TeacherBeside | None = None
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


def plan_findings(
    also: str | Sequence[str],
    model: nn.Module,
    protocol: Protocol,
    *,
    teacher: TeacherBeside | None = None,
    own: OwnExamples | None = None,
    everything: bool = False,
) -> FindingsPlan:
    """What can be found of what is asked for.

    Args:
        also: names out of `ALSO`, or "all".
        model, protocol: of the evaluation.
        teacher, own: as in `FindingsPlan`.
        everything: leave out what cannot be found, as for "all".

    Raises:
        Refused: for an unknown name, or one that was asked for by itself and cannot be found: a boundary without a
            teacher, or anything about examples where no attack hands out any.
    """
    names, said_all = read_also(also)
    everything = everything or said_all
    climbs = [attack for attack in protocol.attacks if isinstance(attack, UntargetedPGD)]
    specs = ", ".join(attack.spec for attack in protocol.attacks)
    why: dict[str, tuple[str, str, str]] = {}
    if not climbs or is_black_box(model):
        mend = "add pgd-20 to the attacks" if not is_black_box(model) else ""
        got = specs or "none"
        why |= dict.fromkeys(NEED_EXAMPLES, ("an attack that hands out its examples, as pgd-20 does", got, mend))
    elif all(attack.climb.steps == 1 for attack in climbs):
        why["steps"] = ("an attack of several steps", specs, "add pgd-20 to the attacks")
    if teacher is None and "boundary" not in why:
        why["boundary"] = ("a teacher", "a network without one", "name one with --teacher (teacher=... in Python)")
    for name in names:
        if name in why and not everything:
            expected, got, mend = why[name]
            raise Refused(f"also {name}", expected=expected, got=got, mend=mend)
    left_out = tuple(f"{name}: it needs {why[name][0]}" for name in names if name in why)
    return FindingsPlan(tuple(name for name in names if name not in why), teacher, own, left_out)


class PredictionsByAttack:
    """A witness of an evaluation (see `evaluate`), which remembers logits and, if told so, the images themselves.

    Args:
        images: the images of the evaluation.
        hold: keep the attacked images: four bytes a value for each attack.
    """

    def __init__(self, images: ImageSet, *, hold: bool = False) -> None:
        self.images, self._hold = images, hold
        self._clean: Tensor | None = None
        self._logits: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}

    def __call__(self, attack: str, rows: Tensor, x: Tensor, logits: Tensor) -> None:
        """Remember one batch."""
        said = logits.detach().float().cpu()
        if attack == "clean":
            if self._clean is None:
                self._clean = torch.zeros(len(self.images), said.shape[1])
            self._clean[rows] = said
            return
        if attack not in self._logits:
            self._logits[attack] = self.clean.clone()
            if self._hold:
                self._inputs[attack] = self.images.inputs()
        self._logits[attack][rows] = said
        if self._hold:
            self._inputs[attack][rows] = x.detach().float().cpu()

    @property
    def clean(self) -> Tensor:
        """Logits (n, C) without an attack."""
        assert self._clean is not None, "nothing has been seen yet"
        return self._clean

    def under(self, attack: str) -> Tensor:
        """Logits (n, C) under an attack."""
        return self._logits.get(attack, self.clean)

    def x_adv(self, attack: str) -> Tensor:
        """The attacked images (n, C, H, W), float32 in [0, 1]."""
        assert self._hold, "the attacked images were not to be kept"
        return self._inputs[attack] if attack in self._inputs else self.images.inputs()


FEW_IMAGES = 30
"""Images of a class below which its accuracy is hardly known: its 95 % interval spans a third of the scale."""
MOST_CONFUSED = 100
"""Classes up to which confusions are kept; beyond, the tables would be larger than all else in a record."""


def by_class(
    images: ImageSet, clean: Mask, attacked: Mask, clean_logits: Tensor, attacked_logits: Tensor | None
) -> dict[str, Any]:
    """Images of each class, those read rightly without and under an attack, and for what each class is taken.

    Args:
        images: n images.
        clean, attacked: who is read rightly, (n,).
        clean_logits, attacked_logits: (n, C); None where an attack hands out verdicts alone.

    Returns:
        The body of a finding "classes". Row of a confusion: the true class; column: the prediction. "balanced" is the
        accuracy averaged over the classes that have images, "worst_class" the index of the one with the lowest,
        "few_images" those of fewer than `FEW_IMAGES`.
    """
    count, few = images.class_counts().tolist(), images.num_classes <= MOST_CONFUSED
    right = {"clean": _right(images, clean), "attacked": _right(images, attacked)}
    return {
        "classes": list(images.classes),
        "count": count,
        **right,
        **{f"balanced_{name}": balanced(each, count) for name, each in right.items()},
        **{f"worst_class_{name}": worst(each, count) for name, each in right.items()},
        "few_images": [k for k, n in enumerate(count) if 0 < n < FEW_IMAGES],
        "confusion_clean": confusion(clean_logits, images.y) if few else None,
        "confusion_attacked": confusion(attacked_logits, images.y) if few and attacked_logits is not None else None,
    }


def confusion(logits: Tensor, y: Tensor) -> list[list[int]]:
    """Counts by true class (rows) and prediction (columns)."""
    classes = logits.shape[1]
    cells = torch.bincount(y * classes + logits.argmax(1), minlength=classes * classes)
    found: list[list[int]] = cells.view(classes, classes).tolist()
    return found


def balanced(right: Sequence[int], count: Sequence[int]) -> float | None:
    """Accuracy averaged over the classes that have images, a fraction; None without images.

    >>> balanced([5, 0, 2], [10, 0, 2])
    0.75
    """
    shares = [r / n for r, n in zip(right, count, strict=True) if n]
    return sum(shares) / len(shares) if shares else None


def worst(right: list[int], count: list[int]) -> int | None:
    """The class with the smallest share of images read rightly, the first of equals; None without images.

    >>> worst([5, 0, 2], [10, 0, 5])
    2
    """
    shares = [r / n if n else np.inf for r, n in zip(right, count, strict=True)]
    return int(np.argmin(shares)) if any(count) else None


def _right(images: ImageSet, mask: Mask) -> list[int]:
    found: list[int] = torch.bincount(images.y[torch.from_numpy(mask)], minlength=images.num_classes).tolist()
    return found


BINS = 15
"""Of equal width on [0, 1]; a confidence on an edge belongs to the bin below it."""
_MARGIN_EDGES = np.linspace(-1, 1, 41)
_CONFIDENCE_EDGES = np.linspace(0, 1, 21)


def margins(clean: Tensor, attacked: Tensor, y: Tensor) -> dict[str, Any]:
    """Histograms of the margin in probability and of the confidence; logits (n, C) and labels (n,).

    Returns:
        The body of a finding "margins".
    """
    return {
        "margin": "probability of the true class minus the largest other",
        "edges": _MARGIN_EDGES.tolist(),
        "clean": counts(_margin(clean, y).numpy(), _MARGIN_EDGES),
        "attacked": counts(_margin(attacked, y).numpy(), _MARGIN_EDGES),
        "mean_clean": float(_margin(clean, y).mean()),
        "mean_attacked": float(_margin(attacked, y).mean()),
        "confidence_edges": _CONFIDENCE_EDGES.tolist(),
        "confidence_clean": counts(clean.softmax(1).amax(1).numpy(), _CONFIDENCE_EDGES),
        "confidence_attacked": counts(attacked.softmax(1).amax(1).numpy(), _CONFIDENCE_EDGES),
    }


def calibration(clean: Tensor, attacked: Tensor, y: Tensor) -> dict[str, Any]:
    """Reliability bins, expected calibration error and mean negative log-likelihood (nats); logits (n, C), labels (n,).

    Returns:
        The body of a finding "calibration". A bin without images has no confidence and no accuracy.
    """
    found: dict[str, Any] = {}
    for name, logits in (("clean", clean), ("attacked", attacked)):
        confidence = logits.double().softmax(1).amax(1)
        found[name] = reliability(confidence, correct(logits, y))
        found[f"ece_{name}"] = expected_error(found[name])
        found[f"nll_{name}"] = float(ce(logits.double(), y).mean())
    return found


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the images in each bin of confidence; (n,) in [0, 1] and (n,) bool."""
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    found = []
    for b in range(bins):
        inside = place == b
        n = int(inside.sum())
        found.append(
            {
                "lower": b / bins,
                "upper": (b + 1) / bins,
                "n": n,
                "confidence": float(confidence[inside].mean()) if n else None,
                "accuracy": float(right[inside].double().mean()) if n else None,
            }
        )
    return found


def expected_error(bins: list[dict[str, Any]]) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins, weighed by their images."""
    n = sum(b["n"] for b in bins)
    return sum(b["n"] / n * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"])


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Probability of the true class minus the largest other, (n, C) and (n,) -> (n,) in [-1, 1]."""
    probs = logits.softmax(1)
    return true_probability(logits, y) - probs.scatter(1, y[:, None], -torch.inf).amax(1)


MOST, BROKEN = 12, 8
"""Images at most, and how many of them were broken where there are enough of both kinds."""


def chosen(clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
    """Rows to show, broken ones first: the first 8 in the set's order that were right and fell, and the first 4 that
    held; where one kind has fewer, the other has more, up to 12. Logits (n, C) and labels (n,) -> rows."""
    right, holds = correct(clean, y), correct(attacked, y)
    broken, held = ((right & ~holds).nonzero()[:, 0], (right & holds).nonzero()[:, 0])
    n_broken = min(len(broken), max(BROKEN, MOST - len(held)))
    return torch.cat((broken[:n_broken], held[: MOST - n_broken]))


def examples(
    images: ImageSet, views: PredictionsByAttack, attack: str, teacher: nn.Module | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Some images, what the attack made of them, and the readings.

    Args:
        images: the images of the evaluation.
        views: what was seen, with the attacked images.
        attack: the spec of the attack.
        teacher: another network that reads the same; None where there is none.

    Returns:
        The body of a finding "examples", and its arrays: x and x_adv, uint8 (k, C, H, W), the latter rounded to 8 bits
        to be looked at, and delta, float32, which is x_adv - x as it was.
    """
    clean, attacked = views.clean, views.under(attack)
    rows = chosen(clean, attacked, images.y)
    x, x_adv, y = images.inputs(rows), views.x_adv(attack)[rows], images.y[rows]
    readings = {"clean": clean[rows], "adv": attacked[rows]}
    if teacher is not None and len(rows):
        own = inputs(teacher, images, rows)
        with evaluating(teacher), torch.no_grad():
            for name, at in (("teacher_clean", own), ("teacher_adv", x_adv.to(own))):
                readings[name] = logits_of(teacher, at).float().cpu()
    read = {name: _reading(logits) for name, logits in readings.items()}
    items = []
    for k, row in enumerate(rows.tolist()):
        item: dict[str, Any] = {"index": row, "true": int(y[k])}
        for name in ("clean", "adv", "teacher_clean", "teacher_adv"):
            pred, prob = read[name][k] if name in read else (None, None)
            item |= {f"{name}_pred": pred, f"{name}_prob": prob}
        items.append(item)
    arrays = {
        "x": images.x[rows].numpy(),
        "x_adv": as_levels(x_adv).numpy(),
        "delta": (x_adv - x).numpy().astype(np.float32),
    }
    body = {"items": items, "classes": list(images.classes), "image_shape": list(images.image_shape)}
    return body, arrays if items else {}


def _reading(logits: Tensor) -> list[tuple[int, float]]:
    """Prediction and its probability for each image."""
    probs, predicted = logits.softmax(1), logits.argmax(1)
    return list(zip(predicted.tolist(), probs.gather(1, predicted[:, None])[:, 0].tolist(), strict=True))
