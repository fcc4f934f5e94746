"""One step of training, made in the ways that are compared: plain, with twins in each precision, with T(x) given."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.bench.sizes import Case, Size
from mmard.data import ImageSet
from mmard.engine.layout import lay_out
from mmard.engine.twins import Engine, has_bf16
from mmard.engine.ways import ascent_for
from mmard.method import Method
from mmard.methods import build
from mmard.models import build as network
from mmard.modes import evaluating
from mmard.seeds import generator
from mmard.training.accumulation import descend
from mmard.training.step import Step

CLASSES = 10
EPS = 8 / 255
KNOWN = "+T(x)"
"""Ends the name of a variant that is given T(x)."""


def smooth_images(n: int, shape: tuple[int, int, int], seed: int = 0) -> ImageSet:
    """Images without a meaning, neighbouring pixels alike as in pictures; labels in turn."""
    c, h, w = shape
    coarse = torch.rand(n, c, max(h // 4, 2), max(w // 4, 2), generator=generator("cpu", seed, "bench", "images"))
    x = nn.functional.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)
    y = torch.arange(n) % CLASSES
    return ImageSet((255 * x).round().to(torch.uint8), y, tuple(map(str, range(CLASSES))), "drawn for a benchmark")


class Networks:
    """Networks with random weights, whose BatchNorm has seen images; each is made once.

    Args:
        shape: of the images.
        device: where they are.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._made: dict[tuple[str, str], nn.Module] = {}

    def __call__(self, letter: str, name: str) -> nn.Module:
        """The network of this name that stands for this letter, in eval mode."""
        if (letter, name) not in self._made:
            # What is not asked for again makes room: one teacher at a time.
            self._made = {key: net for key, net in self._made.items() if key[0] != letter}
            seed = sum(map(ord, letter))
            net = network(name, num_classes=CLASSES, image_shape=self.shape, seed=seed).to(self.device)
            norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
            kept = [m.momentum for m in norms]
            for m in norms:
                m.momentum = None  # the mean of what was seen
            x = smooth_images(8, self.shape, seed=1).x.to(self.device).float() / 255
            with torch.no_grad():
                net.train()(x)
            for m, momentum in zip(norms, kept, strict=True):
                m.momentum = momentum
            self._made[letter, name] = net.eval()
        return self._made[letter, name]


@dataclass
class Variant:
    """A way to take a step.

    Attributes:
        step: with networks of its own, but for those that are at rest.
        optimizer: at a rate of zero: networks stay as they are, and a step takes as long as any other.
        x, y: the batch.
        known: predictions at x that are given.
    """

    step: Step
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self) -> None:
        """Attack, loss, gradient, update, as training does it."""
        self.optimizer.zero_grad(set_to_none=True)
        descend(self.step, self.x, self.y, 1.0, self.known)
        self.optimizer.step()
        self.step.settle()

    def warm(self) -> None:
        """A step that makes twins and layouts; on a CPU with an attack of one step, in which everything is met."""
        attack = self.step.attack
        if self.x.device.type == "cpu" and isinstance(attack, PGD):
            self.step.attack = replace(attack, steps=1)
        try:
            self()
        finally:
            self.step.attack = attack


def precisions(device: torch.device) -> tuple[str, ...]:
    """What twins can be made in here, the fastest last."""
    return ("fp32", "bf16") if has_bf16(device) else ("fp32",)


def variants_of(case: Case, device: torch.device) -> tuple[str, ...]:
    """Names of the ways to take this step here, the plain one first."""
    known = (precisions(device)[-1] + KNOWN,) if case.known else ()
    return ("plain", *precisions(device), *known)


def variant(case: Case, name: str, networks: Networks, size: Size, params: Mapping[str, Any] | None = None) -> Variant:
    """A case in the way of this name."""
    method = build(case.spec, params)
    device = networks.device
    nets = nets_of(method, case, networks)
    if method.memory is not None:
        method.memory.to(device)
    images = smooth_images(case.batch, size.image_shape)
    x, y = images.x.to(device).float() / 255, images.y.to(device)
    budget = Budget(EPS)
    attack = method.attack(budget, size.attack_steps, None, method.start)
    how: dict[str, Any] = {}
    if name != "plain":
        for letter in method.forwards:
            lay_out(nets[letter], size.image_shape)
        ascent, _ = ascent_for(method, attack, device)
        how = {"ascent": ascent, "engine": Engine("fast", name.removesuffix(KNOWN))}
    step = Step(method, nets, attack, budget, **how)
    weights = [p for net in step.trained.values() for p in net.parameters()]
    fused = device.type == "cuda" or None  # as training has it
    optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=5e-4, fused=fused)
    known = {}
    if name.endswith(KNOWN):
        with evaluating(nets["T"]), torch.no_grad():
            known["T"] = nets["T"](x)
    return Variant(step, optimizer, x, y, known)


def nets_of(method: Method, case: Case, networks: Networks) -> dict[str, nn.Module]:
    """Networks by letter: copies of those that are trained, in train mode, and the others themselves."""
    nets = {}
    for letter in method.nets:
        made = networks(letter, case.teacher if letter in method.teachers else case.student)
        nets[letter] = copy.deepcopy(made) if letter in (*method.forwards, *method.tunes) else made
        if letter in method.forwards:
            nets[letter].train()
    return nets
