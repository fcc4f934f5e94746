"""What an evaluation needs that is no run: another network, a folder for records, numbers on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmard.errors import Refused

if TYPE_CHECKING:
    import torch

    from mmard.cli.evaluating import Request
    from mmard.config import Settings
    from mmard.data import ImageSet
    from mmard.evaluation.transfer import Source
    from mmard.networks import Network
    from mmard.run import Run


def numbers(text: str | None) -> list[float] | None:
    """Numbers with commas between them, fractions too.

    >>> numbers("0.5,125/250"), numbers(None)
    ([0.5, 0.5], None)
    """
    from mmard.balls import radius

    return None if text is None else [radius(each.strip()) for each in text.split(",")]


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


def refuse_apart(request: Request) -> None:
    """Refuse what the processes of a launch cannot do together."""
    if request.processes > 1:
        mend = "torchrun has started several: leave --processes out"
        raise Refused("--processes", expected="1", got=str(request.processes), mend=mend)
    if request.made_on is not None:
        raise Refused("--from", expected="one process", got="several", mend="leave torchrun out")


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
