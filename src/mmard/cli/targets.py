"""What evaluate, transfer and export are about: networks, the images that they are looked at on, and the ball."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmard.catalogue import refuse_nowhere, refuse_unknown_data
from mmard.cli.options import Json, argument, option
from mmard.errors import Refused
from mmard.settings import EVALUATION_BATCH, MOST_THREADS, Numbers, Settings, handed_over

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmard.data import ImageSet
    from mmard.networks import Network
    from mmard.run import Run


class Request(Json):
    """The images that networks are looked at on, and the ball; None where nothing was said."""

    eps: str | None = option(None, "Radius of the ball, in input units: 8/255; the run's if not given.", "X")
    norm: Literal["linf", "l2", "l1"] | None = option(None, "Norm of the ball; the run's if not given.")
    which: Literal["best", "last"] = option("best", "Which weights of a run.")
    data: str | None = option(None, "Data set; the run's if not given.", "NAME")
    data_dir: Path | None = option(None, "Folder that holds the data.", "FOLDER")
    split: Literal["test", "val", "train"] = option("test", "Which images.")
    first: int | None = option(None, "Only the first N of them.", ge=1)

    if TYPE_CHECKING:

        @property
        def target(self) -> str:
            """The network whose data and ball hold where nothing is said."""


class Attacking(Request):
    """A request that attacks are made for."""

    batch_size: int = option(EVALUATION_BATCH, "Images attacked at once.", ge=1)
    seed: int = option(0, "Seed of random starts.")
    device: str = option("auto", "cpu, cuda, cuda:1, or auto.")
    threads: int = option(0, "CPU threads; 0 takes one or all, whichever is faster now.", ge=0, le=MOST_THREADS)


class OneNetwork(Request):
    """A request that is about one network."""

    target: str = argument(
        "RUN|FILE|NAME", "A run, a file of weights that mmard wrote, or a network's name with --weights."
    )
    weights: Path | None = option(None, "Weights for a network given by name (.safetensors, .pt).", "FILE")
    mean: Numbers | None = option(None, "What --weights want their input normalised with.", "X,X,X")
    std: Numbers | None = option(None, "The same: deviation of each channel.", "X,X,X")


def run_of(target: str) -> Run | None:
    """The run that is meant, where a folder is.

    Raises:
        Refused: for what is neither there nor a name, before PyTorch is imported.
    """
    refuse_nowhere(target)
    from mmard.run import Run

    return Run.open(target) if Path(target).is_dir() else None


def settings_of(request: Request, run: Run | None) -> Settings:
    """The data and the budget: what was said, over the run's own.

    Raises:
        Refused: where neither says it, or for data that cannot be named here.
    """
    said: dict[str, Any] = {name: getattr(request, name) for name in ("data", "eps", "norm")}
    said["data_dir"] = str(request.data_dir) if request.data_dir is not None else None
    said = {name: value for name, value in said.items() if value is not None}
    where = f"evaluate {request.target}"
    if "data" in said:
        refuse_unknown_data(said["data"])
    if run is None:
        for name, flag in (("data", "--data digits"), ("eps", "--eps 8/255")):
            if name not in said:
                expected = f"--{name}, since no run says it"
                raise Refused(where, expected=expected, got="none", mend=f"for example {flag}")
        return Settings.resolve(said)
    config = run.config
    if "data" not in said and "data" in handed_over(config):
        raise Refused(
            f"evaluate {request.target}", expected="--data", got="a run on data that was handed over in Python"
        )
    if "data" in said and said["data"] != config.get("data"):
        # A folder, a size or a limit that was meant for other data means nothing for these.
        config = {
            name: value
            for name, value in config.items()
            if name not in ("data_dir", "image_size", "skip_bad", "on_disk", "limit_train")
        }
    return Settings.resolve({**config, **said})


def device_of(request: Attacking) -> torch.device:
    """The device that is meant, with as many CPU threads as were asked for."""
    import torch

    from mmard.networks import pick_device

    if request.threads:
        torch.set_num_threads(request.threads)
    return pick_device(request.device)


def suit_threads(request: Attacking, module: nn.Module, images: ImageSet) -> list[str]:
    """Where no number of threads was asked for, take what suits this network; lines on the choice."""
    from mmard.engine.threads import PASS_SECONDS_OF_ATTACKS, take_threads

    batch = min(request.batch_size, len(images))
    how = (module, images.image_shape, batch)
    return [] if request.threads else take_threads(*how, seconds=PASS_SECONDS_OF_ATTACKS)[1]


def images_of(request: Request, settings: Settings) -> ImageSet:
    """The images that are meant.

    Raises:
        Refused: for data that are not there.
    """
    from mmard.job import load_images

    if request.split != "train":
        # How many images trained says nothing about these, and another folder may hold fewer.
        settings = settings.model_copy(update={"limit_train": None})
    images = load_images(settings, request.split)
    if request.first is None or request.first >= len(images):
        return images
    return images.take(slice(0, request.first), f"the first {request.first:,} of {images.origin}")


def network_of(request: OneNetwork, images: ImageSet) -> Network:
    """The network that is meant, with its weights, for these images.

    Raises:
        Refused: for a network or weights that cannot be read, or do not fit.
    """
    from mmard.networks import load_network

    weights = str(request.weights) if request.weights is not None else None
    if weights is not None and Path(request.target).exists():
        mend = "a run or a file brings its own weights"
        raise Refused("--weights", expected="a network's name before it", got=request.target, mend=mend)
    return load_network(
        request.target,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        which=request.which,
        weights=weights,
        mean=request.mean,
        std=request.std,
    )
