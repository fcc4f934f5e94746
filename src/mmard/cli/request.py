"""What was asked of a network on the command line, and the run, data and network that it means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.errors import Refused, unknown

if TYPE_CHECKING:
    import torch

    from mmard.data import ImageSet
    from mmard.evaluation.transfer import Source
    from mmard.networks import Network
    from mmard.run import Run

SPLITS = ("test", "val", "train")
WHICH = ("best", "last")


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


def check(request: Request) -> None:
    """Refuse words and counts that no network, run or data could make right."""
    if request.split not in SPLITS:
        raise unknown("split", request.split, SPLITS)
    if request.which not in WHICH:
        raise unknown("which", request.which, WHICH)
    counts = (("--first", request.first), ("--batch-size", request.batch_size), ("--processes", request.processes))
    for name, value in counts:
        if value is not None and value < 1:
            raise Refused(name, expected="at least 1", got=str(value))


def refuse_apart(request: Request) -> None:
    """Refuse what the processes of a launch cannot do together."""
    if request.processes > 1:
        mend = "torchrun has started several: leave --processes out"
        raise Refused("--processes", expected="1", got=str(request.processes), mend=mend)
    if request.made_on is not None:
        raise Refused("--from", expected="one process", got="several", mend="leave torchrun out")


def run_of(target: str) -> Run | None:
    """The run that is meant, where a folder is."""
    from mmard.run import Run

    return Run.open(target) if Path(target).is_dir() else None


def settings_of(request: Request, run: Run | None) -> Settings:
    """The data and the budget: what was said, over the run's own.

    Raises:
        Refused: where neither says it, or nothing is where the target points.
    """
    from mmard.networks import GIVEN, refuse_nowhere

    said: dict[str, Any] = {
        "data": request.data,
        "data_dir": str(request.data_dir) if request.data_dir is not None else None,
        "eps": request.eps,
        "norm": request.norm,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if run is None:
        refuse_nowhere(request.target)
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


def images_of(request: Request, settings: Settings) -> ImageSet:
    """The images that are meant.

    Raises:
        Refused: for data that cannot be named here, or are not there.
    """
    from mmard.data import DATA
    from mmard.images import load_images

    if settings.data not in DATA:
        raise unknown("data", settings.data, DATA)
    if request.split != "train":
        # How many images trained says nothing about these, and another folder may hold fewer.
        settings = settings.model_copy(update={"limit_train": None})
    images = load_images(settings, request.split)
    if request.first is None or request.first >= len(images):
        return images
    return images.take(slice(0, request.first), f"the first {request.first:,} of {images.origin}")


def network_of(request: Request, images: ImageSet) -> Network:
    """The network that is meant, with its weights, for these images.

    Raises:
        Refused: for a network or weights that cannot be read, or do not fit.
    """
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


def source_of(request: Request, images: ImageSet, device: torch.device) -> Source | None:
    """The network on which the attacks are made, where that is another one."""
    from mmard.evaluation.transfer import Source
    from mmard.networks import load_network

    weights = str(request.made_on_weights) if request.made_on_weights is not None else None
    if request.made_on is None:
        if weights is not None:
            raise Refused("--from-weights", expected="--from NAME before it", got="none")
        return None
    found = load_network(
        request.made_on,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        which=request.which if Path(request.made_on).is_dir() else "best",
        weights=weights,
        who="source",
    )
    return Source(found.module.to(device), found.source)


def record_folder(out: Path, run: Run | None, network: Network, settings: Settings) -> Run:
    """A folder for the records of a network that has no run, to be compared with runs.

    Raises:
        Refused: if the network has a run, or the folder holds a run or the records of another network.
    """
    from mmard.run import Run

    if run is not None:
        raise Refused("--out", expected="a network without a run", got=str(run.path), mend="its records go there")
    config = {"network": network.source, "data": settings.data, "eps": settings.eps, "norm": settings.norm, "seed": 0}
    if not (out / "config.json").is_file():
        return Run.create(out, config)
    held = Run.open(out)
    if "method" in held.config or held.config.get("network") != network.source:
        got = f"those of {held.config.get('network', 'a run')}"
        raise Refused(str(out), expected=f"records of {network.source}", got=got, mend="choose another --out")
    return held


def numbers(text: str | None) -> list[float] | None:
    """Numbers with commas between them, fractions too.

    >>> numbers("0.5,125/250"), numbers(None)
    ([0.5, 0.5], None)
    """
    from mmard.balls import radius

    return None if text is None else [radius(each.strip()) for each in text.split(",")]
