"""`mmard evaluate`: accuracy of a network under attacks, as a table and as records in the run's folder."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.table import Table
from rich.text import Text

from mmard.cli.output import commands, console, duration, line, percent, plural, points, put, table, watched
from mmard.cli.training import busy
from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.errors import Refused, unknown

if TYPE_CHECKING:
    from mmard.data import ImageSet
    from mmard.evaluation.evaluate import Measured, Progress
    from mmard.networks import Network
    from mmard.run import Run

SPLITS = ("test", "val", "train")
WHICH = ("best", "last")
QUICK = "pgd-20,cw-30"
"""Attacks of a quick look, which is less than AutoAttack."""


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


def show_scores(request: Request, as_json: bool) -> None:
    """Evaluate, print, and keep the records of a run in its folder.

    Raises:
        Refused: for anything wrong, before the first attack.
    """
    _check(request)
    with busy("reading data and network"):
        from mmard.balls import Budget
        from mmard.job import pick_device

        run = _run(request.target)
        settings = _settings(request, run)
        budget = Budget(settings.eps, settings.norm)
        specs = [spec for spec in request.attacks.split(",") if spec.strip()]
        if not specs:
            raise Refused("--attack", expected="attacks such as pgd-20,cw-30 or aa", got=repr(request.attacks))
        device = pick_device(request.device)
        images = _images(request, settings)
        network = _network(request, images)
    from mmard.evaluation.suite import measure

    began = time.monotonic()
    with _progress() as tell:
        measured = measure(
            network.module.to(device),
            images,
            specs,
            budget,
            split=request.split,
            which=request.which if run is not None else network.source,
            seed=request.seed,
            batch_size=request.batch_size,
            progress=tell,
            folder=run.autoattack if run is not None else None,
        )
    spent = time.monotonic() - began
    records = keep(measured, run)
    if as_json:
        print(json.dumps(records, indent=2))
        return
    _show(request, run, network, images, measured, spent)


def keep(measured: Sequence[Measured], run: Run | None) -> list[dict[str, Any]]:
    """The records of some figures; with a run, written into its folder with their masks."""
    from mmard.environment import environment

    here = environment()
    records = [each.score.record() | {"environment": here} for each in measured]
    if run is not None:
        for each, record in zip(measured, records, strict=True):
            run.save_score(each.score.slug, record, each.mask)
    return records


def _check(request: Request) -> None:
    if request.split not in SPLITS:
        raise unknown("split", request.split, SPLITS)
    if request.which not in WHICH:
        raise unknown("which", request.which, WHICH)
    for name, value in (("--first", request.first), ("--batch-size", request.batch_size)):
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
    from mmard.job import load_splits

    if settings.data not in DATA:
        raise unknown("data", settings.data, DATA)
    if request.split != "train":
        # How many images trained says nothing about these, and another folder may hold fewer.
        settings = settings.model_copy(update={"limit_train": None})
    images: ImageSet = getattr(load_splits(settings), request.split)
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
    )


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
    request: Request, run: Run | None, network: Network, images: ImageSet, measured: Sequence[Measured], spent: float
) -> None:
    out = console()
    line(out, network.source, "strong")
    line(out, f"  {images.origin}")
    out.print()
    put(out, scores_table([each.score.record() for each in measured]))
    out.print()
    took = f"{plural(len(images), 'image')} in {duration(spent)}"
    line(out, f"{took}. Intervals are over the choice of images, not over seeds.", "quiet")
    if request.attacks == QUICK:
        line(out, "A quick standard set, not AutoAttack: an upper bound of the robust accuracy.", "quiet")
    if run is not None:
        line(out, f"Records are in {run.scores}.", "quiet")
        commands(out, "next", [f"mmard show {shlex.quote(str(run.path))}"])
