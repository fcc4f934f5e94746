"""The networks of a training beside its student: teachers, which must be given and good, and peers, which are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmard.balls import Budget
from mmard.config import DistillSettings, Settings, teachers_said, weights_said
from mmard.data import ImageSet
from mmard.errors import Refused
from mmard.gate import Claim, pass_gate
from mmard.method import Method
from mmard.models import check_logits
from mmard.networks import GIVEN, load_teacher, network_facts, new_network
from mmard.seeds import derive


@dataclass
class Companions:
    """Networks by letter, and what is known about them.

    Attributes:
        nets: on the device.
        sources: where each teacher came from.
        facts: what a reader of the weights must know, of those that are trained.
        notes: a line on what each teacher achieves.
    """

    nets: dict[str, nn.Module] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def companions(
    settings: Settings,
    method: Method,
    student: str,
    given: Mapping[str, nn.Module],
    images: ImageSet,
    validation: ImageSet,
    budget: Budget,
    device: torch.device,
) -> Companions:
    """The teachers and peers that a method needs.

    Args:
        student: name of the student's network, of which a peer is another.
        given: teachers as objects, by letter; the others are loaded as the settings say.
        images: training images.

    Raises:
        Refused: if one cannot be had, fits neither images nor classes, or does no better than chance, or far worse than
            is claimed of it.
    """
    found = Companions()
    for letter in method.teachers:
        assert isinstance(settings, DistillSettings)
        who = "teacher" if letter == "T" else f"teacher {letter}"
        known: dict[str, Any] = {}
        if letter in given:
            module = given[letter]
            name = found.sources[letter] = f"{GIVEN}{type(module).__name__}"
        else:
            said = teachers_said(settings)[letter]
            loaded = load_teacher(
                said,
                num_classes=validation.num_classes,
                image_shape=validation.image_shape,
                which=settings.teacher_which,
                weights=weights_said(settings).get(letter),
                mix=settings.teacher_mix,
            )
            module, found.sources[letter], known = loaded.module, loaded.source, loaded.facts
            name = said[0] if len(said) == 1 else f"{GIVEN}{type(module).__name__}"
        found.nets[letter] = module.to(device)
        check_logits(module, validation.image_shape, validation.num_classes, who)
        robust = letter == "T"
        claim, source = Claim.of(known), found.sources[letter]
        found.notes.append(pass_gate(module, validation, budget, source, robust=robust, who=who, claim=claim))
        if letter in method.tunes:
            found.facts[letter] = {**network_facts(name, module, images), **known}
    for letter in method.peers:
        peer = settings.peer or student
        if peer.startswith(GIVEN):
            mend = "name a network: --peer, or peer=..."
            raise Refused("peer", expected="a network that can be built anew", got=peer, mend=mend)
        module = new_network(peer, images, settings.normalise, derive(settings.seed, "peer", letter))
        found.nets[letter], found.facts[letter] = module.to(device), network_facts(peer, module, images)
    return found
