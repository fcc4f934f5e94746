"""Judging networks from Python: accuracies under attacks, suspicion checks, what lies behind the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.evaluation import checks
from mmard.evaluation.columns import spelled
from mmard.evaluation.examine import examine as _examine
from mmard.evaluation.finding import Finding
from mmard.evaluation.keeping import Keeper
from mmard.evaluation.score import Score
from mmard.evaluation.suite import measure
from mmard.evaluation.transfer import Source, measure_transfer
from mmard.evaluation.wanted import read_also, wanted
from mmard.networks import GIVEN, load_network
from mmard.pair import pair_of
from mmard.run import Run


def evaluate(
    model: nn.Module | str | Path,
    images: ImageSet,
    attacks: str | Sequence[str],
    *,
    budget: Budget | str | float,
    made_on: nn.Module | str | Path | None = None,
    seed: int = 0,
    batch_size: int = 250,
    processes: int = 1,
    engine: str = "fast",
) -> list[Score]:
    """Clean accuracy, accuracy under each attack, and under all of them together.

    Args:
        model: a module that takes images in [0, 1], a run folder, a file of weights that mmard wrote, or an ONNX file,
            which has no gradient: "square" alone, or anything with `made_on`. A run folder keeps the verdicts of
            AutoAttack so far; the same call made again goes on from there.
        images: e.g. `load("digits").test`.
        attacks: short spellings, e.g. ["pgd-20", "cw-30"] or "pgd-20,cw-30"; "aa" is AutoAttack, "usual" a group of
            columns (`mmard attacks`).
        budget: radius as a number or a fraction, or a `Budget`.
        made_on: another network, on which the attacks are made: a figure of transfer.
        seed, batch_size: what random starts depend on.
        processes: how many share the work; a script that asks for more than one must hide its calls behind
            `if __name__ == "__main__":`, as spawned processes import it.
        engine: what the attacks ask: "fast", a twin of the network (docs/engine.md), or "plain", the network itself,
            which gives every verdict in any case. Attacks made on another network ask that network itself.
    """
    folder = None
    wanted: dict[str, Any] = {"num_classes": images.num_classes, "image_shape": images.image_shape}
    if not isinstance(model, nn.Module):
        folder = Run.open(model).autoattack if Path(model).is_dir() else None
        model = load_network(str(model), **wanted).module
    specs = spelled(attacks, Budget.of(budget))
    if made_on is not None:
        if isinstance(made_on, nn.Module):
            source = Source(made_on, f"{GIVEN}{type(made_on).__name__}")
        else:
            found = load_network(str(made_on), **wanted, who="source")
            source = Source(found.module, found.source)
        every: dict[str, Any] = {"split": images.origin, "which": "given", "seed": seed, "batch_size": batch_size}
        return [m.score for m in measure_transfer(model, source, images, specs, Budget.of(budget), **every)]
    measured = measure(
        model,
        images,
        specs,
        Budget.of(budget),
        split=images.origin,
        which="given",
        seed=seed,
        batch_size=batch_size,
        folder=folder,
        processes=processes,
        engine=engine,
    )
    return [m.score for m in measured]


def check(
    model: nn.Module | str | Path,
    images: ImageSet,
    *,
    budget: Budget | str | float,
    thorough: bool = False,
    seed: int = 0,
    batch_size: int = 250,
) -> list[checks.Checked]:
    """Signs that a robust accuracy of this network would say more about the attack than about the network.

    Args:
        model, images, budget, batch_size: as in `evaluate`.
        thorough: attack a sample of the images as well; without it, a few passes are made.
        seed: of the sample and of the attacks.

    Returns:
        One finding for each check of docs/checks.md that was made or had to be skipped.
    """
    if not isinstance(model, nn.Module):
        model = load_network(str(model), num_classes=images.num_classes, image_shape=images.image_shape).module
    ball = Budget.of(budget)
    known = checks.cheap(model, images, ball, seed=seed, batch_size=batch_size)
    if not thorough:
        return known
    return [*known, *checks.thorough(model, images, ball, known=known, seed=seed, batch_size=batch_size)]


@dataclass(frozen=True)
class Examined:
    """An evaluation with what it found beside accuracies.

    Attributes:
        scores: as `evaluate` returns them.
        findings: the suspicion checks, and what else was asked for; each has a `kind`, a `body` and a `record()`.
        left_out: a line on each thing that "all" could not find, and why.
    """

    scores: list[Score]
    findings: list[Finding]
    left_out: tuple[str, ...]


def examine(
    model: nn.Module | str | Path,
    images: ImageSet,
    attacks: str | Sequence[str],
    *,
    budget: Budget | str | float,
    also: str | Sequence[str] = "all",
    teacher: nn.Module | str | Path | None = None,
    which: str = "best",
    split: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 250,
    processes: int = 1,
    engine: str = "fast",
) -> Examined:
    """Accuracies and what lies behind them: suspicion checks, curves, classes, calibration, boundaries, images.

    Args:
        model, images, attacks, budget, seed, batch_size, processes, engine: as in `evaluate`.
        also: out of "checks", "classes", "margins", "calibration", "examples", "boundary", "eps" and "steps" (curves);
            "all" is what can be found here. The cheap checks are always made.
        teacher: a module, a run folder or a file of weights; the run's own if a run is examined.
        which: "best" or "last" weights of a run folder.
        split: what the images are, for the records; their origin if not given.
        out: a folder to keep figures and findings in, each as soon as it is known. It may be the run's own.

    Raises:
        Refused: for anything wrong, before the first attack.
    """
    ball, run = Budget.of(budget), None
    if isinstance(model, nn.Module):
        network, source = model, "given"
    else:
        run = Run.open(model) if Path(model).is_dir() else None
        found = load_network(str(model), num_classes=images.num_classes, image_shape=images.image_shape, which=which)
        network, source = found.module, which if run is not None else found.source
    names, everything = read_also(also)
    specs = spelled(attacks, ball)
    pair = pair_of(run, network, images, teacher, names, must="boundary" in names and not everything)
    look = wanted(
        names, network, specs, ball, images.num_classes, teacher=pair.teacher, own=pair.own, everything=everything
    )
    keep = Keeper(None if out is None else Run(Path(out)))
    examined = _examine(
        network,
        images,
        specs,
        ball,
        look,
        keep,
        split=images.origin if split is None else split,
        which=source,
        seed=seed,
        batch_size=batch_size,
        folder=run.autoattack if run is not None else None,
        processes=processes,
        engine=engine,
    )
    return Examined([m.score for m in examined], keep.found, (*look.left_out, *pair.notes))
