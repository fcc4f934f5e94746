"""`mmard transfer`: a matrix of networks, each under the examples that were made on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mmard.cli.options import argument, command, option
from mmard.cli.show import keep
from mmard.cli.targets import Attacking, device_of, images_of, run_of, settings_of, suit_threads
from mmard.errors import Refused
from mmard.progress import progress_shown
from mmard.screen import busy, console, line, print_json, put, rich_table
from mmard.words import percent, plural

if TYPE_CHECKING:
    from mmard.data import ImageSet
    from mmard.evaluation.evaluate import Measured, Protocol
    from mmard.evaluation.score import Score
    from mmard.evaluation.transfer import Matrix, Member
    from mmard.run import Run


class Transfer(Attacking):
    """What `mmard transfer` is asked for."""

    targets: list[str] = argument("RUN|FILE...", "Runs, files of weights that mmard wrote, or ONNX files.")
    attacks: str = option("pgd-20", "The attack that is made on each.", "NAME", "--attack")

    @property
    def target(self) -> str:
        """The first network."""
        return self.targets[0]


@command(
    "Look",
    """
    mmard transfer runs/t runs/a runs/b
    mmard transfer runs/* --attack cw-30 --first 1000
    """,
)
def transfer(request: Transfer) -> None:
    """A matrix: examples made on each network, shown to all. Called again, it measures what is missing.

    Data and ball are those of the first run where they are not given.
    """
    targets = request.targets
    if len(targets) < 2:
        raise Refused("transfer", expected="two networks or more", got=str(len(targets)))
    runs = [run_of(target) for target in targets]
    settings = settings_of(request, runs[0])
    specs = [spec for spec in request.attacks.split(",") if spec.strip()]
    if len(specs) != 1:
        raise Refused("--attack", expected="one attack for a matrix, e.g. pgd-20", got=repr(request.attacks))
    with busy("reading data and networks"):
        from mmard.balls import Budget
        from mmard.evaluation.evaluate import Protocol
        from mmard.evaluation.transfer import transfer_matrix, transferable

        budget = Budget(settings.eps, settings.norm)
        protocol = Protocol(transferable(specs, budget), budget, seed=request.seed, batch_size=request.batch_size)
        device = device_of(request)
        images = images_of(request, settings)
        members = [_member(target, request, images, device) for target in targets]
        notes = suit_threads(request, members[0].module, images)

    def kept(j: int, measured: Measured) -> None:
        keep([measured], runs[j])

    def known(j: int, score: Score) -> Measured | None:
        return _known(runs[j], score)

    with progress_shown() as tell:
        how: dict[str, Any] = {"split": request.split, "progress": tell, "known": known, "keep": kept}
        matrix = transfer_matrix(members, images, protocol, **how)
    if request.as_json:
        found = [{"made_on": i, "scored_on": j, **cell.score.record()} for (i, j), cell in sorted(matrix.cells.items())]
        clean = [each.score.record() for each in matrix.clean]
        print_json({"networks": [m.name for m in members], "clean": clean, "cells": found})
        return
    _show_transfer(members, matrix, protocol, images, any(runs), notes)


def _member(target: str, request: Transfer, images: ImageSet, device: Any) -> Member:
    from mmard.evaluation.transfer import Member
    from mmard.networks import load_network

    found = load_network(target, num_classes=images.num_classes, image_shape=images.image_shape, which=request.which)
    which = request.which if Path(target).is_dir() else found.source
    return Member(found.source, found.module.to(device), which)


def _known(run: Run | None, score: Score) -> Measured | None:
    """The figure of an earlier call, if it is on the same weights."""
    import numpy as np

    from mmard.evaluation.evaluate import Measured
    from mmard.files import read_json

    file = None if run is None else run.scores / f"{score.slug}.json"
    if file is None or not file.is_file() or not file.with_suffix(".npy").is_file():
        return None
    record = read_json(file)
    if record["weights"] != score.weights:
        return None
    mask = np.load(file.with_suffix(".npy"), allow_pickle=False)
    return Measured(replace(score, correct=record["correct"], seconds=record["seconds"]), mask)


def _show_transfer(
    members: Sequence[Member],
    matrix: Matrix,
    protocol: Protocol,
    images: ImageSet,
    kept: bool,
    notes: Sequence[str],
) -> None:
    out, (attack,) = console(), protocol.attacks
    title = f"Accuracy under {attack.label} at {protocol.budget}, made on the row's network, scored on the column's."
    line(out, title, "strong")
    line(out, f"  {images.origin}, {plural(len(images), 'image')}")
    out.print()
    heads = [str(j + 1) for j in range(len(members))]
    found = rich_table("", "made on", *heads, right=("", *heads), fold=("made on",))
    hidden = set(matrix.hidden())
    found.add_row("", Text("no attack", "quiet"), *(percent(each.score.accuracy) for each in matrix.clean))
    for i, member in enumerate(members):
        cells = []
        for j in range(len(members)):
            cell = matrix.cells.get((i, j))
            style = "bold red" if (i, j) in hidden else "strong" if i == j else ""
            cells.append(Text("-" if cell is None else percent(cell.score.accuracy), style))
        found.add_row(str(i + 1), member.name, *cells)
    put(out, found)
    out.print()
    widest = max((high - low) / 2 for low, high in (c.score.interval for c in matrix.cells.values()))
    text = f"Diagonal: each network's own examples. 95% intervals over images are ±{100 * widest:.1f} points at most."
    line(out, text, "quiet")
    for i, j in sorted(hidden):
        text = f"examples of {i + 1} fool {j + 1} more often than its own do: its gradient may mislead"
        line(out, f"note: {text}")
    blind = [str(i + 1) for i in range(len(members)) if (i, i) not in matrix.cells]
    if blind:
        line(out, f"note: {', '.join(blind)} has no gradient, so nothing can be made on it")
    for note in notes:
        line(out, note, "quiet")
    if kept:
        line(out, "Records are in the folders of the runs that were scored.", "quiet")
