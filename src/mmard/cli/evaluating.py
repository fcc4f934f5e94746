"""`mmard evaluate`: accuracy of a network under attacks, as a table and as records in the run's folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mmard.cli.output import commands, console, duration, line, percent, plural, points, put, table, watched
from mmard.cli.training import busy
from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.errors import Refused, unknown

if TYPE_CHECKING:
    from mmard.balls import Budget
    from mmard.data import ImageSet
    from mmard.evaluation.evaluate import Measured
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
        from mmard.attacks import trial
        from mmard.balls import Budget
        from mmard.job import pick_device

        run = _run(request.target)
        settings = _settings(request, run)
        budget = Budget(settings.eps, settings.norm)
        trials = [trial(spec, budget) for spec in request.attacks.split(",") if spec.strip()]
        if not trials:
            raise Refused("--attack", expected="attacks such as pgd-20,cw-30", got=repr(request.attacks))
        device = pick_device(request.device)
        images = _images(request, settings)
        network = _network(request, images)
    from mmard.evaluation.evaluate import evaluate

    with _progress() as tell:
        measured = evaluate(
            network.module.to(device),
            images,
            trials,
            budget,
            split=request.split,
            which=request.which if run is not None else network.source,
            seed=request.seed,
            batch_size=request.batch_size,
            progress=tell,
        )
    records = keep(measured, run)
    if as_json:
        print(json.dumps(records, indent=2))
        return
    _show(request, run, network, images, budget, measured)


def keep(measured: Sequence[Measured], run: Run | None) -> list[dict[str, Any]]:
    """The records of some figures; with a run, written into its folder with their masks."""
    from mmard.environment import environment

    here = environment()
    records = [each.score.record() | {"environment": here} for each in measured]
    if run is not None:
        for each, record in zip(measured, records, strict=True):
            run.save_score(each.score.slug, record, _writer(each.mask))
    return records


def _writer(mask: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        # Through an open file, because np.save would put a suffix behind a name that lacks it.
        with path.open("wb") as file:
            np.save(file, mask)

    return write


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
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Tells how far each attack is, in a terminal."""
    err = watched()
    if err is None:
        yield None
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(None),
        TextColumn("{task.completed:,}/{task.total:,} images"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, expand=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

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
    request: Request, run: Run | None, network: Network, images: ImageSet, budget: Budget, measured: Sequence[Measured]
) -> None:
    out = console()
    line(out, network.source, "strong")
    line(out, f"  {images.origin}")
    out.print()
    put(out, scores_table([each.score.record() for each in measured]))
    out.print()
    spent = duration(sum(m.score.seconds for m in measured if not m.score.attack.startswith("worst")))
    line(
        out,
        f"{plural(len(images), 'image')} in {spent}. Intervals are over the choice of images, not over seeds.",
        "quiet",
    )
    if request.attacks == QUICK:
        line(out, "A quick standard set, not AutoAttack: an upper bound of the robust accuracy.", "quiet")
    if run is not None:
        line(out, f"Records are in {run.scores}.", "quiet")
        commands(out, "next", [f"mmard show {shlex.quote(str(run.path))}"])
