"""A data set, networks and a training so small that a whole run takes no time; and a digits teacher that needs none."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmard.attacks import PGD, Attack, AutoAttack, UntargetedPGD, read_attacks
from mmard.attacks.autoattack import shortened
from mmard.balls import Budget
from mmard.data import ImageSet, Splits, load
from mmard.data.batches import Batches, SetBatches
from mmard.evaluation.evaluate import Measured, Protocol, measure
from mmard.method import Method
from mmard.methods import build
from mmard.run import Run
from mmard.training.fit import Validation
from mmard.training.recipe import Recipe
from mmard.training.step import Step

CLASSES = 3
SHAPE = (1, 4, 4)
EPOCHS, STEPS = 3, 3
"""Of `RECIPE` on `picture_set(40)` in batches of 16, the last of which has 8."""
BUDGET = Budget(0.1)
RECIPE = Recipe(epochs=EPOCHS, lr=0.05, schedule="one-cycle")
FACTS = {"network": "given:little", "num_classes": CLASSES, "image_shape": list(SHAPE)}


def patterns() -> Tensor:
    """One picture for each class, of black and white thirds, float (CLASSES, *SHAPE)."""
    rows = torch.arange(16).view(1, 1, 4, 4) // 2 % CLASSES
    return (rows == torch.arange(CLASSES).view(-1, 1, 1, 1)).float()


def picture_set(n: int = 40, seed: int = 0, origin: str = "pictures") -> ImageSet:
    """The class's picture, dimmed and blurred by noise; classes in turn."""
    y = torch.arange(n) % CLASSES
    noise = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    x = (255 * (0.45 * patterns()[y] + 0.55 * noise)).round().to(torch.uint8)
    return ImageSet(x, y, tuple("abc"[:CLASSES]), origin)


def picture_splits() -> Splits:
    return Splits(picture_set(40, 0, "train"), picture_set(12, 1, "val"), picture_set(12, 2, "test"))


def net(seed: int = 0, dropout: float = 0.0, width: int = 3) -> nn.Sequential:
    """A network with BatchNorm, on `SHAPE`, in train mode; a copy of one that is made once."""
    return copy.deepcopy(_net(seed, dropout, width))


@cache
def _net(seed: int, dropout: float, width: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(SHAPE[0], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width * 16, CLASSES),
        )


class Matcher(nn.Sequential):
    """The class whose mean image is nearest: linear logits, right on most images, and nothing to be trained."""

    def __init__(self, means: Tensor, sharpness: float = 5.0) -> None:
        with torch.random.fork_rng():
            super().__init__(nn.Flatten(), nn.Linear(means[0].numel(), len(means)))
        flat = means.flatten(1)
        self[1].weight.data = sharpness * flat
        self[1].bias.data = -sharpness * flat.square().sum(1) / 2
        self.eval()


def matcher(images: ImageSet | None = None) -> Matcher:
    """For these images; for the little pictures if none are given, so that `little:matcher` names a trained network."""
    if images is None:
        images = picture_set(40)
    x = images.x.float() / 255
    return Matcher(torch.stack([x[images.y == c].mean(0) for c in range(images.num_classes)]))


def digits_matcher() -> Matcher:
    """For the bundled digits."""
    return matcher(load("digits").train)


def plain_net(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """A network of somebody else's, for `little:plain_net`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(image_shape).numel(), num_classes))


class Wrapped(nn.Module):
    """A network whose own keys begin as those of wrappers do."""

    def __init__(self, num_classes: int = CLASSES, image_shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        self.model = plain_net(num_classes, image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def step_of(
    method: str | Method = "rslad+mmard",
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    **others: nn.Module,
) -> Step:
    """A method on little networks."""
    made = build(method) if isinstance(method, str) else method
    nets = {"S": student or net(), "T": teacher or matcher(), **others}
    return Step(made, nets, PGD(2, 0.05, made.start), BUDGET, seed=7)


def batches_of(n: int = 40) -> Batches:
    return SetBatches(picture_set(n), 16, "cpu", seed=7)


def run_in(folder: Path, config: Mapping[str, Any] | None = None) -> Run:
    return Run.create(folder, config or {"made": "by a test"})


def validation(network: nn.Module) -> Validation:
    """Accuracy on other pictures, and under grey noise in place of an attack: quick, and a function of the weights."""
    images = picture_set(12, seed=1)
    was = network.training
    network.eval()
    with torch.no_grad():
        x = images.x.float() / 255
        clean, noisy = (network(v).argmax(1).eq(images.y).float().mean().item() for v in (x, 0.7 * x + 0.15))
    network.train(was)
    return Validation(clean, noisy)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal to the bit, NaN included."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].numpy().tobytes() == b[k].numpy().tobytes()
        for k in a
    )


# evaluations ----------------------------------------------------------------------------------------------------------
Attacks = Sequence[str | Attack | AutoAttack]


def protocol(attacks: Attacks, budget: Budget, num_classes: int = CLASSES, **settings: Any) -> Protocol:
    """Attacks by spelling or as they are, in a budget."""
    read = [read_attacks([each], budget, num_classes)[0] if isinstance(each, str) else each for each in attacks]
    return Protocol(tuple(read), budget, **settings)


def measured(
    model: nn.Module,
    images: ImageSet,
    attacks: Attacks,
    budget: Budget,
    *,
    split: str = "test",
    which: str = "best",
    progress: Any = None,
    witness: Any = None,
    folder: Path | None = None,
    ranks: Any = None,
    **settings: Any,
) -> list[Measured]:
    """`evaluate.measure` under a protocol that is read here."""
    how = protocol(attacks, budget, images.num_classes, **settings)
    more: dict[str, Any] = {"progress": progress, "witness": witness, "folder": folder, "ranks": ranks}
    return measure(model, images, how, split=split, which=which, **more)


def short(attack: Attack | AutoAttack, *, steps: int, queries: int, targets: int) -> Attack | AutoAttack:
    """An attack of AutoAttack, or all, under its own name at a fraction of its effort."""
    if isinstance(attack, UntargetedPGD):
        return attack
    whole = attack if isinstance(attack, AutoAttack) else AutoAttack("", "", {attack.spec: attack})  # type: ignore[dict-item]
    less = shortened(whole, steps=steps, queries=queries, targets=targets).attacks
    return AutoAttack(attack.spec, attack.label, less) if isinstance(attack, AutoAttack) else less[attack.spec]
