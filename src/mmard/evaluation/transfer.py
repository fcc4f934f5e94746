"""Adversarial examples made on one network and shown to another.

What transfers is a lower bound of what an attacker can do who does not have the network, and an upper bound of nothing:
a network on which examples of others work better than its own hides its gradient.

Every image is attacked, whatever either network makes of it, so one set of examples serves every network that it is
shown to. An image that a network misreads without an attack counts as misread, as everywhere.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn

from mmard.attacks import Attack, AutoAttack, is_black_box, read_attacks
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.evaluate import (
    Evaluated,
    Measured,
    Protocol,
    labelled,
    measure,
    perturbed,
    random_start,
    together,
    verdict,
)
from mmard.evaluation.journal import Progress, cut
from mmard.evaluation.score import Score
from mmard.files import weights_hash
from mmard.modes import evaluating, frozen
from mmard.tables.statistics import difference


@dataclass(frozen=True, kw_only=True)
class Transferred(Score):
    """A figure under examples that were made on another network.

    Attributes:
        made_on: a line on the other network: a run folder and which weights, a file, or a name.
        made_on_weights: SHA-256 of its weights.
    """

    made_on: str
    made_on_weights: str

    @property
    def slug(self) -> str:
        """As that of any score; two networks of one name have two."""
        rest = hashlib.sha256(f"{super().slug} {self.made_on_weights}".encode()).hexdigest()
        return f"{super().slug[:-8]}{rest[:8]}"


@dataclass(frozen=True)
class Surrogate:
    """A network that examples are made on.

    Attributes:
        module: inputs (B, C, H, W) in [0, 1] to logits (B, classes), with a gradient.
        name: a line on where it comes from, for records.

    Raises:
        Refused: if it has no gradient.
    """

    module: nn.Module
    name: str

    def __post_init__(self) -> None:
        if is_black_box(self.module):
            mend = "make them on the run that it was exported from, or on another network"
            raise Refused(
                f"examples made on {self.name}", expected="a network with a gradient", got="one without", mend=mend
            )


def transferable(specs: Sequence[str], budget: Budget, num_classes: int = 10) -> tuple[Attack, ...]:
    """The attacks whose examples are shown to other networks.

    Raises:
        Refused: for an unknown attack, and for those that stop at the edge of the first network's mistake: what they
            find is no more than needed there, and hardly ever enough elsewhere.
    """
    found: list[Attack] = []
    for spec, attack in zip(specs, read_attacks(specs, budget, num_classes), strict=True):
        if attack.stops_at_success or isinstance(attack, AutoAttack):
            mend = "use pgd-20, pgd-100 or cw-30"
            raise Refused(f"attack {spec!r}", expected="one that goes on after its first success", got=spec, mend=mend)
        found.append(attack)
    return tuple(found)


@torch.inference_mode(False)
def transfer(
    targets: Mapping[str, nn.Module],
    surrogate: Surrogate,
    images: ImageSet,
    protocol: Protocol,
    *,
    split: str,
    which: Mapping[str, str],
    progress: Progress | None = None,
) -> dict[str, Measured]:
    """Make one set of adversarial examples and show it to several networks.

    All networks are in eval mode inside and are put back as they were; each may be on a device of its own.

    Args:
        targets: the networks that read the examples, by any name.
        surrogate: the network that they are made on, which is asked itself and not by a twin.
        images: the images to attack.
        protocol: of one attack, made on the surrogate.
        split: what the images are, for the records.
        which: what each target's weights are, for the records.
        progress: told how far it is, and how many images the first target still reads rightly.

    Returns:
        For each target who is right before and after: "transfer-<attack>".

    Raises:
        Refused: if logits are not finite.
    """
    (attack,) = protocol.attacks
    assert not isinstance(attack, AutoAttack)
    made_on, name, began = weights_hash(surrogate.module), f"transfer-{attack.spec}", time.monotonic()
    masks = {each: np.zeros(len(images), dtype=np.bool_) for each in targets}
    with evaluating(surrogate.module, *targets.values()), frozen(surrogate.module, *targets.values()):
        for number, batch in enumerate(cut(np.arange(len(images)), protocol.batch_size)):
            rows = torch.from_numpy(batch)
            x, y = labelled(surrogate.module, images, rows)
            start = random_start(attack, x, protocol.seed, number)
            x_adv = perturbed(attack, surrogate.module, x, y, protocol.budget, start, name)
            for each, module in targets.items():
                own, y = labelled(module, images, rows)
                clean, attacked = (verdict(module, at, y, f"{each}, {name}")[0] for at in (own, x_adv.to(own)))
                masks[each][batch] = (clean & attacked).cpu().numpy()
            if progress is not None and masks:
                progress(name, int(rows[-1]) + 1, len(images), int(next(iter(masks.values())).sum()))
    seconds = time.monotonic() - began

    def measured(each: str, module: nn.Module) -> Measured:
        evaluated = Evaluated.of(module, images, protocol, split=split, which=which[each])
        score = _score(evaluated, surrogate, made_on, attack, protocol.budget, masks[each], seconds)
        return Measured(score, masks[each], attack)

    return {each: measured(each, module) for each, module in targets.items()}


def _score(
    evaluated: Evaluated,
    surrogate: Surrogate,
    made_on_weights: str,
    attack: Attack,
    budget: Budget,
    mask: np.ndarray,
    seconds: float,
) -> Transferred:
    label = f"{attack.label} made on {surrogate.name}"
    score = evaluated.score(f"transfer-{attack.spec}", label, mask, seconds, budget)
    return Transferred(**asdict(score), made_on=surrogate.name, made_on_weights=made_on_weights)


def measure_transfer(
    model: nn.Module,
    surrogate: Surrogate,
    images: ImageSet,
    protocol: Protocol,
    *,
    split: str,
    which: str,
    progress: Progress | None = None,
) -> list[Measured]:
    """One network under attacks made on another; arguments as in `evaluate.measure` and `transfer`.

    Returns:
        "clean", one "transfer-..." for each attack, and, with more than one, "worst_of_...".

    Raises:
        Refused: before the first attack for one that does not transfer; later if logits are not finite.
    """
    transferable([attack.spec for attack in protocol.attacks], protocol.budget)
    (clean,) = measure(model, images, protocol.only(), split=split, which=which, progress=progress)
    found = [
        transfer(
            {"": model}, surrogate, images, protocol.only(each), split=split, which={"": which}, progress=progress
        )[""]
        for each in protocol.attacks
    ]
    if len(found) == 1:
        return [clean, *found]
    worst = together(clean, *found)
    label = f"{worst.score.label} made on {surrogate.name}"
    return [clean, *found, Measured(replace(worst.score, label=label), worst.mask)]


@dataclass(frozen=True)
class Member:
    """One network of a matrix, in which every network is under the examples of every other.

    Attributes:
        name: a line on where it comes from, for records.
        module: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        which: what its weights are, for records.
    """

    name: str
    module: nn.Module
    which: str


@dataclass(frozen=True)
class Matrix:
    """Figures by (made on, scored on), indices of members; on the diagonal each network is attacked through itself.

    Attributes:
        clean: of each member, without an attack.
        cells: absent in the row of a network without a gradient, on which no example can be made.
    """

    clean: tuple[Measured, ...]
    cells: dict[tuple[int, int], Measured]

    def hidden(self) -> list[tuple[int, int]]:
        """Cells below their diagonal by more than the paired 95 % interval over images.

        The examples of another network fool it more often than its own do, so its own gradient misleads.
        """
        found = []
        for (i, j), cell in self.cells.items():
            own = self.cells.get((j, j))
            if i == j or own is None:
                continue
            gap = difference({0: cell.score.accuracy}, {0: own.score.accuracy}, {0: cell.mask}, {0: own.mask})
            if gap.over_images is not None and gap.mean < -gap.over_images:
                found.append((i, j))
        return found


def transfer_matrix(
    members: Sequence[Member],
    images: ImageSet,
    protocol: Protocol,
    *,
    split: str,
    progress: Progress | None = None,
    known: Callable[[int, Score], Measured | None] = lambda _, __: None,
    keep: Callable[[int, Measured], None] = lambda _, __: None,
) -> Matrix:
    """Make examples on each network in turn and show them to all.

    Args:
        members: the networks.
        images, protocol, split, progress: as in `transfer`.
        known: asked for a figure before it is measured: (index of the network, its score without the count) -> the
            figure, or None. A row whose figures are all known is not made again.
        keep: told every figure as soon as it is measured, so that a killed matrix goes on.

    Raises:
        Refused: if logits are not finite.
    """
    (attack,) = protocol.attacks
    assert not isinstance(attack, AutoAttack)
    clean = []
    for j, member in enumerate(members):
        (own,) = measure(member.module, images, protocol.only(), split=split, which=member.which)
        keep(j, own)
        clean.append(own)
    evaluated = [Evaluated.of_score(own.score) for own in clean]
    none = np.zeros(len(images), dtype=np.bool_)
    cells: dict[tuple[int, int], Measured] = {}
    for i, maker in enumerate(members):
        if is_black_box(maker.module):
            continue
        surrogate = Surrogate(maker.module, maker.name)
        missing: dict[str, Member] = {}
        for j, member in enumerate(members):
            # What the score will be but for its count: its slug tells whether it is there already.
            empty = _score(evaluated[j], surrogate, evaluated[i].weights, attack, protocol.budget, none, 0.0)
            found = known(j, empty)
            if found is not None:
                cells[i, j] = found
            else:
                missing[str(j)] = member
        if not missing:
            continue
        made = transfer(
            {name: member.module for name, member in missing.items()},
            surrogate,
            images,
            protocol,
            split=split,
            which={name: member.which for name, member in missing.items()},
            progress=None if progress is None else _renamed(progress, f"on {i + 1} of {len(members)}"),
        )
        for name, measured in made.items():
            keep(int(name), measured)
            cells[i, int(name)] = measured
    return Matrix(tuple(clean), cells)


def _renamed(progress: Progress, name: str) -> Progress:
    return lambda _, done, of, surviving: progress(name, done, of, surviving)
