"""What there is besides training steps: PGD, APGD, AutoAttack and batches, in images a second.

Attacks are timed on images that stay as they are: labels are what the network says, and the ball is so small that
nothing in it is misread. So no image is let off early, and the figure is for images that withstand, which cost the
most. The attacked networks are random: what they compute does not decide how long it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmard.attacks import Untargeted, trial
from mmard.attacks.apgd import APGD
from mmard.balls import Budget
from mmard.bench.sizes import Size
from mmard.bench.steps import Row, Told
from mmard.bench.timing import Allowance, Clock, Spread, alternate, ratios
from mmard.bench.variants import Networks, smooth_images
from mmard.data import ImageSet
from mmard.data.augment import augmentation
from mmard.data.batches import SetBatches
from mmard.engine.twins import Engine, Twins
from mmard.evaluation.autoattack import auto_attack
from mmard.evaluation.ensemble import shortened, standard
from mmard.modes import evaluating, frozen
from mmard.seeds import generator

BALL = Budget(1e-6)
VIEWS = "crop-flip"


def attacks(
    size: Size, networks: Networks, now: Clock, allowance: Allowance, told: Told, quick: bool = False
) -> list[Row]:
    """PGD-20 and APGD on the network and on its twin, and AutoAttack as an evaluation runs it, with and without.

    Args:
        quick: a few steps of AutoAttack only, to see that it runs.
    """
    network = networks("S", size.attacked)
    images = _kept(network, smooth_images(size.attack_batch, size.image_shape), networks.device)
    x, y = images.x.to(networks.device).float() / 255, images.y.to(networks.device)
    copies = {"itself": network, "twin": Twins(Engine(), {"": network}).serving(x)[""]}
    pgd, rows = trial("pgd-20", BALL), []

    def climb(model: nn.Module, attack: Any) -> None:
        draw = generator(networks.device if attack is not apgd else "cpu", 0, "bench", "attack")
        with evaluating(model), frozen(model):
            if attack is apgd:
                apgd(model, x, y, BALL, generator=draw)
            else:
                attack.attack(model, Untargeted(y, attack.loss), x, BALL, generator=draw)

    apgd = APGD("ce", steps=100)
    for name, attack in (("PGD-20", pgd), ("APGD-CE, 100 steps", apgd)):
        told(name)
        runs = {kind: (lambda m=model, a=attack: climb(m, a)) for kind, model in copies.items()}
        seconds = alternate(runs, now, repeats=size.repeats, allowance=allowance.part(0.25))
        rows.append(_row(name, size.attacked, len(images), seconds))
    told("AutoAttack")
    judges = Networks(size.judged_shape, networks.device)
    judged = judges("S", size.judged)
    few = _kept(judged, smooth_images(size.judged_images, size.judged_shape), networks.device)
    ensemble = standard(BALL, few.num_classes)
    if quick:
        ensemble = shortened(ensemble, steps=2, queries=5, targets=1)

    def judge(engine: str) -> None:
        auto_attack(judged, few, BALL, ensemble=ensemble, split="bench", which="random", engine=engine)

    both: dict[str, Callable[[], object]] = {"itself": lambda: judge("plain"), "twin": lambda: judge("fast")}
    seconds = alternate(both, now, repeats=size.repeats, allowance=allowance)
    shape = " x ".join(map(str, size.judged_shape))
    rows.append(_row(ensemble.label, f"{size.judged}, {shape}", len(few), seconds))
    return rows


def _kept(network: nn.Module, images: ImageSet, device: torch.device) -> ImageSet:
    """The images under the labels that the network gives them."""
    with evaluating(network), torch.no_grad():
        said = network(images.x.to(device).float() / 255).argmax(1).cpu()
    return replace(images, y=said)


def _row(attack: str, network: str, images: int, seconds: dict[str, list[float]]) -> Row:
    ways = {}
    for name, each in seconds.items():
        middle = Spread.of(each)
        ways[name] = {
            "seconds": each,
            "images_per_second": images / middle.median,
            "ratio": None if name == "itself" else Spread.of(ratios(seconds["itself"], each)).as_record(),
        }
    return {"attack": attack, "network": network, "images": images, "variants": ways}


def loading(size: Size, device: torch.device, now: Clock, allowance: Allowance, told: Told) -> list[Row]:
    """Epochs of batches, with the augmentation of CIFAR-10 and without."""
    images, rows = smooth_images(size.load_images, size.image_shape), []
    for name in (VIEWS, "none"):
        told(f"batches, augmentation {name}")
        batches = SetBatches(images, size.load_batch, device, 0, augmentation(name, size.image_shape))

        def epoch(batches: SetBatches = batches) -> None:
            for _ in batches.epoch(0):
                pass

        epoch()
        each = alternate({name: epoch}, now, repeats=size.repeats, allowance=allowance.part(0.5))[name]
        middle = Spread.of(each)
        rows.append(
            {
                "augmentation": name,
                "batch": size.load_batch,
                "seconds": each,
                "batches_per_second": batches.steps / middle.median,
                "images_per_second": len(images) / middle.median,
                "n": middle.n,
            }
        )
    return rows
