"""How near inputs come to the decision boundaries of a teacher and of its student, for the record of a cell.

The numbers are those of `mmard.evaluation.boundary`, on the same images for every cell of a scale:

    own      training images under the attack that the student was trained with, as in the last epoch
    usual    the same images under the first attack of the scale: what is due to the student and not to its attack
    plain    the same images as they are
    test     test images under the first attack of the scale
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import UntargetedPGD
from mmard.balls import Budget
from mmard.data import ImageSet, Splits
from mmard.errors import Refused
from mmard.evaluation.boundary import METHOD, Proximity, proximity
from mmard.evaluation.evaluate import Protocol, perturbed
from mmard.evaluation.findings import TeacherBeside, counts
from mmard.job import own_examples
from mmard.modes import evaluating, frozen
from mmard.settings import Settings

IMAGES, BATCH = 256, 128
"""Training images, and as many test images, of the boundary part; and how many at a time."""
NEAREST = 64
"""Of these, those for which the nearest point with another prediction is looked for, under "own" and "test"."""
EDGES = [-4.0 + 0.5 * i for i in range(33)]
"""Of the histograms of margins, the same for every cell; what lies beyond is counted in the outer bins."""


def boundary_statistics(
    student: nn.Module,
    teacher: TeacherBeside,
    settings: Settings,
    splits: Splits,
    specs: tuple[str, ...],
    budget: Budget,
) -> dict[str, Any]:
    """The boundary part of a record.

    Args:
        student: with the weights of the last epoch, on the device of the teacher.
        teacher: the robust one.
        settings: of the student's training, as it was made here.
        splits: its data.
        specs: attacks of the scale, of which the first that hands out its examples is made.
        budget: of the attack.
    """
    train = _sampled(splits.train, "train")
    test = _sampled(splits.test, "test")
    attacks = Protocol.read(specs, budget, train.num_classes).attacks
    attack = next(each for each in attacks if isinstance(each, UntargetedPGD))
    device = next(student.parameters()).device
    found: dict[str, Any] = {
        "teacher": teacher.source,
        "images": len(train),
        "test_images": len(test),
        "attack": attack.label,
        "nearest_by": f"{METHOD}, on {min(NEAREST, len(train))} images",
        "edges": EDGES,
    }
    own: Tensor | None = None
    try:
        made = own_examples(settings, student, teacher, len(train), splits)
        found["own_attack"] = made.label
        own = torch.cat([made.attack(x.to(device), y.to(device)).detach().float().cpu() for x, y in _batches(train)])
    except Refused as refusal:
        found["left_out"] = str(refusal)
    inputs = {
        "own": (own, train.y, NEAREST),
        "usual": (_attacked(student, train, attack, budget, device), train.y, 0),
        "plain": (train.inputs(), train.y, 0),
        "test": (_attacked(student, test, attack, budget, device), test.y, NEAREST),
    }
    for name, (x, y, nearest) in inputs.items():
        found[name] = None if x is None else _both(student, teacher.module, x, y, budget.norm, nearest)
    return found


def _both(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, norm: str, nearest: int) -> dict[str, Any]:
    rows = torch.arange(min(nearest, len(x)))
    both = {
        who: proximity(model, x, y, norm, rows, batch_size=BATCH)
        for who, model in (("teacher", teacher), ("student", student))
    }
    return {**{who: _short(each) for who, each in both.items()}, "agree": _agreement(student, teacher, x)}


def _short(found: Proximity) -> dict[str, Any]:
    values = found.margin.double()
    spread = {"sd_margin": float(values.std()), "median_margin": float(values.median())}
    return {**found.record(), **spread, "histogram": counts(values.numpy(), torch.tensor(EDGES).double().numpy())}


def _agreement(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    """Share of inputs on which both say the same class."""
    device = next(student.parameters()).device
    same = 0
    with evaluating(student), evaluating(teacher), torch.no_grad():
        for first in range(0, len(x), BATCH):
            at = x[first : first + BATCH].to(device)
            same += int((student(at).argmax(1) == teacher(at).argmax(1)).sum())
    return same / len(x)


def _attacked(
    model: nn.Module, images: ImageSet, attack: UntargetedPGD, budget: Budget, device: torch.device
) -> Tensor:
    """All images attacked, those too that are misread as they are, as a training attacks them."""
    made = []
    with evaluating(model), frozen(model):
        for number, (x, y) in enumerate(_batches(images)):
            x, y = x.to(device), y.to(device)
            generator = seeds.generator(device, 0, "nearness", attack.spec, number)  # as in every record
            made.append(perturbed(attack, model, x, y, budget, generator, "boundary").float().cpu())
    return torch.cat(made)


def _batches(images: ImageSet) -> list[tuple[Tensor, Tensor]]:
    x = images.inputs()
    return [(x[i : i + BATCH], images.y[i : i + BATCH]) for i in range(0, len(x), BATCH)]


def _sampled(images: ImageSet, split: str) -> ImageSet:
    """The same images in every cell of the data, whatever its seed; all where there are few."""
    if len(images) <= IMAGES:
        return images
    order = torch.randperm(len(images), generator=seeds.generator("cpu", 0, "nearness", split, len(images)))
    rows = order[:IMAGES].sort().values
    return images.take(rows, f"{IMAGES} of {images.origin}")
