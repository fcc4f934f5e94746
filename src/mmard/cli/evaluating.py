"""`mmard evaluate`: accuracy of a network under attacks, as a table and as records in the run's folder."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.table import Table
from rich.text import Text
from typer import Exit

from mmard.cli.elsewhere import numbers, record_folder, refuse_apart, source_of
from mmard.cli.findings import show_every_check, show_findings
from mmard.cli.output import (
    INTERRUPTED,
    commands,
    complain,
    console,
    duration,
    line,
    percent,
    plural,
    points,
    put,
    table,
    watched,
)
from mmard.cli.training import busy
from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.errors import Refused, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmard.balls import Budget
    from mmard.data import ImageSet
    from mmard.evaluation.evaluate import Measured, Progress
    from mmard.evaluation.keeping import Keeper
    from mmard.evaluation.wanted import Wanted
    from mmard.networks import Network
    from mmard.run import Run
    from mmard.training.distributed import Ranks

SPLITS = ("test", "val", "train")
WHICH = ("best", "last")
QUICK = ("quick", "pgd-20,cw-30")
"""How the attacks of a quick look, which is less than AutoAttack, may be said."""
MOST_BARS = 8
"""Attacks whose progress is shown at a time."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for; None where it said nothing."""

    target: str
    attacks: str
    eps: str | None
    norm: str | None
    which: str
    weights: Path | None
    data: str | None
    data_dir: Path | None
    split: str
    first: int | None
    batch_size: int
    seed: int
    device: str
    made_on: str | None = None
    made_on_weights: Path | None = None
    out: Path | None = None
    also: str = ""
    teacher: str | None = None
    mean: str | None = None
    std: str | None = None
    processes: int = 1
    engine: str = "fast"


def show_scores(request: Request, as_json: bool) -> None:
    """Evaluate, print, and keep the records of a run in its folder.

    Raises:
        Refused: for anything wrong, before the first attack.
    """
    _check(request)
    with busy("starting"):
        from mmard.evaluation.meeting import AGAIN
        from mmard.training.distributed import joined

    with joined(on_gpus=False, mend=AGAIN) as ranks:
        _scores(request, as_json, ranks)


def _scores(request: Request, as_json: bool, ranks: Ranks | None) -> None:
    """The same, in this process or in one of several."""
    if ranks is not None:
        refuse_apart(request)
    with busy("reading data and network"):
        from mmard.balls import Budget
        from mmard.engine.twins import Engine
        from mmard.evaluation.columns import spelled
        from mmard.job import own_device, pick_device

        Engine(request.engine)
        run = _run(request.target)
        settings = _settings(request, run)
        budget = Budget(settings.eps, settings.norm)
        specs = spelled(request.attacks, budget)
        device = pick_device(request.device)
        device = device if ranks is None else own_device(device, ranks)
        images = _images(request, settings)
        network = _network(request, images)
        source = source_of(request, images, device)
        which = request.which if run is not None else network.source
        module = network.module.to(device)
        look = _look(request, run, settings, module, images, specs, budget, device)
        if request.out is not None and (ranks is None or ranks.first):
            run = record_folder(request.out, run, network, settings)
    from mmard.evaluation.examine import examine, examine_transfer
    from mmard.evaluation.keeping import Keeper
    from mmard.evaluation.meeting import follow, lead

    said = {"split": request.split, "which": which, "seed": request.seed, "batch_size": request.batch_size}
    if ranks is not None and not ranks.first:
        follow(ranks, module, images, specs, budget, witnessed=bool(look.also), engine=request.engine, **said)
        return
    began = time.monotonic()
    keep = Keeper(run)
    try:
        kept = run.autoattack if run is not None else None
        with lead(ranks, module, images, kept) as folder, _progress() as tell:
            every: dict[str, Any] = {**said, "progress": tell}
            if source is not None:
                measured = examine_transfer(module, source, images, specs, budget, keep, **every)
            else:
                shared: dict[str, Any] = {"folder": folder, "processes": request.processes, "engine": request.engine}
                measured = examine(module, images, specs, budget, look, keep, **every, **shared)
    except KeyboardInterrupt:
        complain(_interrupted(keep))
        raise Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps({"scores": keep.scores, "findings": keep.findings}, indent=2))
        return
    _show(request, look, keep, network, images, measured, time.monotonic() - began)


def _interrupted(keep: Keeper) -> str:
    """What is left of an evaluation that was stopped."""
    got = f"{plural(len(keep.scores), 'figure')} and {plural(len(keep.findings), 'finding')}"
    if keep.run is None:
        return f"interrupted after {got}, which are lost; --out FOLDER keeps them"
    return f"interrupted; {got} were finished and are in {keep.run.path}"


def keep(measured: Sequence[Measured], run: Run | None) -> list[dict[str, Any]]:
    """The records of some figures; with a run, written into its folder with their masks."""
    from mmard.evaluation.keeping import Keeper

    keeper = Keeper(run)
    for each in measured:
        keeper.score(each)
    return keeper.scores


def _check(request: Request) -> None:
    if request.split not in SPLITS:
        raise unknown("split", request.split, SPLITS)
    if request.which not in WHICH:
        raise unknown("which", request.which, WHICH)
    counts = (("--first", request.first), ("--batch-size", request.batch_size), ("--processes", request.processes))
    for name, value in counts:
        if value is not None and value < 1:
            raise Refused(name, expected="at least 1", got=str(value))


def _run(target: str) -> Run | None:
    from mmard.run import Run

    return Run.open(target) if Path(target).is_dir() else None


def _settings(request: Request, run: Run | None) -> Settings:
    """The data and the budget: what was said, over the run's own."""
    from mmard.networks import GIVEN

    said: dict[str, Any] = {
        "data": request.data,
        "data_dir": str(request.data_dir) if request.data_dir is not None else None,
        "eps": request.eps,
        "norm": request.norm,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if run is None:
        for name, flag in (("data", "--data digits"), ("eps", "--eps 8/255")):
            if name not in said:
                raise Refused(
                    f"evaluate {request.target}",
                    expected=f"--{name}, since no run says it",
                    got="none",
                    mend=f"for example {flag}",
                )
        return TrainSettings.resolve(said)
    config = run.config
    if "data" not in said and str(config.get("data")).startswith(GIVEN):
        raise Refused(
            f"evaluate {request.target}", expected="--data", got="a run on data that was handed over in Python"
        )
    kind: type[Settings] = DistillSettings if "student" in config else TrainSettings
    if "data" in said and said["data"] != config.get("data"):
        # A folder, a size or a limit that was meant for other data means nothing for these.
        config = {
            name: value
            for name, value in config.items()
            if name not in ("data_dir", "image_size", "on_disk", "limit_train")
        }
    return kind.resolve({**config, **said})


def _images(request: Request, settings: Settings) -> ImageSet:
    from mmard.data import DATA
    from mmard.job import load_images

    if settings.data not in DATA:
        raise unknown("data", settings.data, DATA)
    if request.split != "train":
        # How many images trained says nothing about these, and another folder may hold fewer.
        settings = settings.model_copy(update={"limit_train": None})
    images = load_images(settings, request.split)
    if request.first is None or request.first >= len(images):
        return images
    return images.take(slice(0, request.first), f"the first {request.first:,} of {images.origin}")


def _network(request: Request, images: ImageSet) -> Network:
    from mmard.networks import load_network

    weights = str(request.weights) if request.weights is not None else None
    if weights is not None and Path(request.target).exists():
        raise Refused(
            "--weights",
            expected="a network's name before it",
            got=request.target,
            mend="a run or a file brings its own weights",
        )
    return load_network(
        request.target,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        which=request.which,
        weights=weights,
        mean=numbers(request.mean),
        std=numbers(request.std),
    )


def _look(
    request: Request,
    run: Run | None,
    settings: Settings,
    module: nn.Module,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    device: torch.device,
) -> Wanted:
    """What to find beside accuracies, and the networks and images that this takes."""
    from mmard.evaluation.wanted import Wanted, read_also, wanted
    from mmard.pair import pair_of

    names, everything = read_also(request.also)
    if request.made_on is not None:
        if names:
            mend = "leave --also out, or look without --from"
            raise Refused("--also", expected="attacks on the network itself", got="--from", mend=mend)
        return Wanted()
    pair = pair_of(
        run,
        module,
        images,
        request.teacher,
        names,
        must="boundary" in names and not everything,
        said={"data": settings.data, "data_dir": settings.data_dir},
        device=device,
    )
    look = wanted(
        names,
        module,
        specs,
        budget,
        images.num_classes,
        teacher=pair.teacher,
        own=pair.own,
        everything=everything,
    )
    return replace(look, left_out=(*look.left_out, *pair.notes))


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """Tells how far each attack is and how many images it left so far, in a terminal."""
    err = watched()
    if err is None:
        yield None
        return
    columns = (
        bars.TextColumn("{task.description:<10}"),
        bars.BarColumn(None),
        bars.TextColumn("{task.completed:,}/{task.total:,} images, {task.fields[standing]:,} right"),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=err, transient=True, expand=True) as shown:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, of: int, standing: int) -> None:
            if name not in tasks:
                for earlier in list(tasks.values())[: 1 - MOST_BARS]:
                    shown.update(earlier, visible=False)
                tasks[name] = shown.add_task(name, total=of, standing=standing)
            shown.update(tasks[name], completed=done, total=of, standing=standing)

        yield tell


def scores_table(records: Sequence[dict[str, Any]]) -> Table:
    """Records as rows: the attack in full, its budget, accuracy, interval, images and seconds."""
    from mmard.balls import as_fraction

    made = table(
        "attack", "budget", "accuracy", "95% interval", "images", "seconds",
        right=("accuracy", "95% interval", "images", "seconds"), fold=("attack",),
    )  # fmt: skip
    for record in records:
        name, _, details = record["label"].partition(" (")
        label = Text.assemble(name, (f" ({details}" if details else "", "quiet"))
        budget = "none" if record["eps"] is None else f"{record['norm']} {as_fraction(record['eps'])}"
        made.add_row(
            label,
            budget,
            Text(percent(record["accuracy"]), style="strong"),
            points(*record["interval"]),
            f"{record['n']:,}",
            f"{record['seconds']:.1f}",
        )
    return made


def _show(
    request: Request,
    look: Wanted,
    keep: Keeper,
    network: Network,
    images: ImageSet,
    measured: Sequence[Measured],
    spent: float,
) -> None:
    out, run = console(), keep.run
    folder = run.findings_folder if run is not None else None
    line(out, network.source, "strong")
    line(out, f"  {images.origin}")
    out.print()
    put(out, scores_table([each.score.record() for each in measured]))
    checks = [record for record in keep.findings if record["kind"] == "checks"]
    if "checks" in look.also:
        for record in checks:
            show_every_check(out, record)
        show_findings(out, [record for record in keep.findings if record["kind"] != "checks"], look.left_out, folder)
    else:
        show_findings(out, keep.findings, look.left_out, folder)
    out.print()
    took = f"{plural(len(images), 'image')} in {duration(spent)}"
    line(out, f"{took}. Intervals are over the choice of images, not over seeds.", "quiet")
    if request.attacks in QUICK:
        line(out, "A quick standard set, not AutoAttack: an upper bound of the robust accuracy.", "quiet")
    if run is not None:
        line(out, f"Records are in {run.scores} and {run.findings_folder}.", "quiet")
        path = shlex.quote(str(run.path))
        trained = "method" in run.config
        told = [f"mmard show {path}" if trained else f"mmard compare {path} RUN"]
        commands(out, "next", [*told, f"mmard report {path}"])
