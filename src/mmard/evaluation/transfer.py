"""Adversarial examples made on one network and shown to another.

What transfers is a lower bound of what an attacker can do who does not have the network, and an upper bound of nothing:
a network on which examples of others work better than its own hides its gradient.

Every image is attacked, whatever either network makes of it, so one set of examples serves every network that it is
shown to. An image that a network misreads without an attack counts as misread, as everywhere.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import Trial, Untargeted, trial
from mmard.attacks.autoattack import SPECS, is_black_box
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.evaluate import Measured, Progress, Subject, evaluate, labelled, together
from mmard.evaluation.score import Score
from mmard.files import weights_hash
from mmard.modes import evaluating, frozen
from mmard.ops import correct
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
class Source:
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


def read_attacks(specs: Sequence[str], budget: Budget) -> list[Trial]:
    """The attacks whose examples are shown to other networks.

    Raises:
        Refused: for an unknown attack, and for those that stop at the edge of the first network's mistake: what they
            find is no more than needed there, and hardly ever enough elsewhere.
    """
    for spec in specs:
        if spec.strip().lower() in SPECS:
            mend = "use pgd-20, pgd-100 or cw-30"
            raise Refused(f"attack {spec!r}", expected="one that goes on after its first success", got=spec, mend=mend)
    return [trial(spec, budget) for spec in specs]


def transfer(
    targets: Mapping[str, nn.Module],
    source: Source,
    images: ImageSet,
    attack: Trial,
    budget: Budget,
    *,
    split: str,
    which: Mapping[str, str],
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> dict[str, Measured]:
    """Make one set of adversarial examples and show it to several networks.

    All networks are in eval mode inside and are put back as they were; each may be on a device of its own.

    Args:
        targets: the networks that read the examples, by any name.
        source: the network that they are made on.
        images: the images to attack.
        attack: how.
        budget: where adversarial examples may be.
        split: what the images are, for the records.
        which: what each target's weights are, for the records.
        seed: of the random starts.
        batch_size: images attacked at once; random starts depend on it.
        progress: told how far it is, and how many images the first target still reads rightly.

    Returns:
        For each target who is right before and after: "transfer-<attack>".

    Raises:
        Refused: if logits are not finite.
    """
    subjects = {
        name: Subject.of(module, images, split=split, which=which[name], seed=seed, batch_size=batch_size)
        for name, module in targets.items()
    }
    masks = {name: np.zeros(len(images), dtype=np.bool_) for name in targets}
    made_on_weights = weights_hash(source.module)
    name = f"transfer-{attack.spec}"
    began = time.monotonic()
    with evaluating(source.module, *targets.values()), frozen(source.module, *targets.values()):
        for rows, x_adv in _examples(source.module, images, attack, budget, seed, batch_size):
            for each, module in targets.items():
                x, y = labelled(module, images, rows)
                shown = x_adv.to(x.device, x.dtype)
                clean, attacked = (_read_rightly(module, batch, y, f"{each}, {name}") for batch in (x, shown))
                masks[each][rows.numpy()] = (clean & attacked).numpy()
            if progress is not None and masks:
                progress(name, int(rows[-1]) + 1, len(images), int(next(iter(masks.values())).sum()))
    seconds = round(time.monotonic() - began, 3)
    return {
        each: Measured(
            _score(subject, source, made_on_weights, attack, budget, int(masks[each].sum()), seconds), masks[each]
        )
        for each, subject in subjects.items()
    }


def planned(
    module: nn.Module, source: Source, images: ImageSet, attack: Trial, budget: Budget, **every: Any
) -> Transferred:
    """The score that `transfer` would give but for its count and seconds: its slug tells whether it is there already.

    Args:
        module: the target.
        every: split, which, seed and batch_size, as in `transfer`, `which` being that of this target.
    """
    subject = Subject.of(module, images, **every)
    return _score(subject, source, weights_hash(source.module), attack, budget, 0, 0.0)


def _score(
    subject: Subject, source: Source, made_on_weights: str, attack: Trial, budget: Budget, correct: int, seconds: float
) -> Transferred:
    return Transferred(
        attack=f"transfer-{attack.spec}",
        label=f"{attack.label} made on {source.name}",
        norm=budget.norm,
        eps=budget.eps,
        correct=correct,
        seconds=seconds,
        **asdict(subject),
        made_on=source.name,
        made_on_weights=made_on_weights,
    )


def measure_transfer(
    model: nn.Module,
    source: Source,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    *,
    split: str,
    which: str,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> list[Measured]:
    """One network under attacks made on another; arguments as in `suite.measure` and `transfer`.

    Returns:
        "clean", one "transfer-..." for each spec, and, with more than one, "worst_of_...".

    Raises:
        Refused: before the first attack for one that is unknown or does not transfer; later if logits are not finite.
    """
    attacks = read_attacks(specs, budget)
    (clean,) = evaluate(
        model, images, [], budget, split=split, which=which, seed=seed, batch_size=batch_size, progress=progress
    )
    found = [
        transfer(
            {"": model},
            source,
            images,
            attack,
            budget,
            split=split,
            which={"": which},
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )[""]
        for attack in attacks
    ]
    if len(found) == 1:
        return [clean, *found]
    worst = together(clean, *found)
    label = f"{worst.score.label} made on {source.name}"
    return [clean, *found, Measured(replace(worst.score, label=label), worst.mask)]


def _examples(
    source: nn.Module, images: ImageSet, attack: Trial, budget: Budget, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (which images, adversarial inputs on the CPU)."""
    for batch, first in enumerate(range(0, len(images), batch_size)):
        rows = torch.arange(first, min(first + batch_size, len(images)))
        x, y = labelled(source, images, rows)
        generator = seeds.generator(x.device, seed, "evaluate", attack.spec, batch)
        yield rows, attack.attack(source, Untargeted(y, attack.loss), x, budget, generator=generator).detach().cpu()


def _read_rightly(module: nn.Module, x: Tensor, y: Tensor, where: str) -> Tensor:
    """Which of a batch are read rightly, (B,) bool on the CPU."""
    with torch.no_grad():
        logits = module(x)
    if not torch.isfinite(logits).all():
        raise Refused(where, expected="finite logits", got="NaN or infinity")
    return correct(logits, y).cpu()


# transfer matrix ------------------------------------------------------------------------------------------------------
# Every network under the examples of every other: who can be attacked through whom.


@dataclass(frozen=True)
class Member:
    """One network of a matrix.

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
    attack: Trial,
    budget: Budget,
    *,
    split: str,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
    known: Callable[[int, Score], Measured | None] = lambda _, __: None,
    keep: Callable[[int, Measured], None] = lambda _, __: None,
) -> Matrix:
    """Make examples on each network in turn and show them to all.

    Args:
        members: the networks.
        images, attack, budget, split, seed, batch_size, progress: as in `transfer`.
        known: asked for a figure before it is measured: (index of the network, its score without the count) -> the
            figure, or None. A row whose figures are all known is not made again.
        keep: told every figure as soon as it is measured, so that a killed matrix goes on.

    Raises:
        Refused: if logits are not finite.
    """
    clean = []
    for j, member in enumerate(members):
        (own,) = evaluate(
            member.module, images, [], budget, split=split, which=member.which, seed=seed, batch_size=batch_size
        )
        keep(j, own)
        clean.append(own)
    cells: dict[tuple[int, int], Measured] = {}
    for i, maker in enumerate(members):
        if is_black_box(maker.module):
            continue
        source = Source(maker.module, maker.name)
        missing = {}
        for j, member in enumerate(members):
            score = planned(
                member.module, source, images, attack, budget,
                split=split, which=member.which, seed=seed, batch_size=batch_size,
            )  # fmt: skip
            found = known(j, score)
            if found is not None:
                cells[i, j] = found
            else:
                missing[str(j)] = member
        made = transfer(
            {name: member.module for name, member in missing.items()},
            source,
            images,
            attack,
            budget,
            split=split,
            which={name: member.which for name, member in missing.items()},
            seed=seed,
            batch_size=batch_size,
            progress=None if progress is None else _renamed(progress, f"on {i + 1} of {len(members)}"),
        ) if missing else {}  # fmt: skip
        for name, measured in made.items():
            keep(int(name), measured)
            cells[i, int(name)] = measured
    return Matrix(tuple(clean), cells)


def _renamed(progress: Progress, name: str) -> Progress:
    return lambda _, done, of, standing: progress(name, done, of, standing)
