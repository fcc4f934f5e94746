"""Every network under the examples of every other: who can be attacked through whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mmard.attacks import Trial
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.evaluation.black_box import is_black_box
from mmard.evaluation.evaluate import Measured, Progress, evaluate
from mmard.evaluation.score import Score
from mmard.evaluation.spread import difference
from mmard.evaluation.transfer import Source, planned, transfer


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
