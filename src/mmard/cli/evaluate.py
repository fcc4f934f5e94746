"""`mmard evaluate`: accuracy of a network under attacks, as a table and as records in the run's folder."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Exit

from mmard.cli.options import MOST_PROCESSES, argument, command, option
from mmard.cli.show import scores_table, show_findings
from mmard.cli.targets import Attacking, OneNetwork, device_of, images_of, network_of, run_of, settings_of, suit_threads
from mmard.errors import Refused
from mmard.evaluation.spellings import GROUPS
from mmard.progress import progress_shown
from mmard.screen import INTERRUPTED, busy, commands, complain, console, line, print_json, show_table
from mmard.settings import Settings
from mmard.words import duration, plural

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmard.data import ImageSet
    from mmard.evaluation.evaluate import Measured, Protocol
    from mmard.evaluation.examine import Recorder
    from mmard.evaluation.findings import FindingsPlan
    from mmard.evaluation.transfer import Surrogate
    from mmard.networks import Network
    from mmard.ranks import Ranks
    from mmard.run import Run


class Evaluate(OneNetwork, Attacking):
    """What `mmard evaluate` is asked for; None where nothing was said."""

    target: str = argument(
        "RUN|FILE|NAME",
        "A run, a file of weights that mmard wrote, an ONNX file, or a network's name with --weights.",
    )
    attacks: str = option(
        "quick",
        "Attacks, e.g. fgsm, pgd-20, cw-30, pgd-100x10, pgd-20@0.003; aa is AutoAttack. Or a group: "
        f"{', '.join(GROUPS)}. `mmard attacks` lists all.",
        "LIST",
        "--attack",
    )
    also: str = option(
        "", "Find also checks, classes, margins, calibration, examples, boundary, curves (eps, steps), or all.", "LIST"
    )
    teacher: str | None = option(None, "Teacher for --also boundary and examples; the run's if not given.", "RUN|FILE")
    made_on: str | None = option(
        None, "Make the attacks on this other network: run, file or name.", "RUN|FILE|NAME", "--from"
    )
    made_on_weights: Path | None = option(None, "Weights for --from by name.", "FILE", "--from-weights")
    out: Path | None = option(None, "Where records of a network without a run go; compare reads it.", "FOLDER")
    processes: int = option(1, "Share the work among so many processes; same verdicts.", ge=1, le=MOST_PROCESSES)
    engine: Literal["fast", "plain"] = option("fast", "Attacks ask a fast twin, or the plain network; it judges.")


@command(
    "Look",
    """
    mmard evaluate runs/s
    mmard evaluate runs/s --attack fgsm,pgd-20,cw-30,pgd-100x10 --first 1000
    mmard evaluate runs/s --attack aa
    mmard evaluate runs/s --also all --first 1000
    mmard evaluate runs/s --attack pgd-20 --from runs/t
    mmard evaluate resnet18 --weights their.pt --data cifar10 --data-dir D --eps 8/255
    mmard evaluate deployed.onnx --attack square --data cifar10 --data-dir D --eps 8/255
    """,
)
def evaluate(request: Evaluate) -> None:
    """Accuracy without attack and under each attack, with 95% intervals. A run keeps the records in its folder."""
    run = run_of(request.target)
    settings = settings_of(request, run)
    with busy("starting"):
        from mmard.evaluation.multiprocess import AGAIN
        from mmard.ranks import joined

    with joined(on_gpus=False, mend=AGAIN) as ranks:
        _evaluate(request, run, settings, ranks)


def _evaluate(request: Evaluate, run: Run | None, settings: Settings, ranks: Ranks | None) -> None:
    """The same, in this process or in one of several."""
    if ranks is not None:
        refuse_apart(request)
    with busy("reading data and network"):
        from mmard.balls import Budget
        from mmard.evaluation.evaluate import Protocol
        from mmard.networks import own_device

        budget = Budget(settings.eps, settings.norm)
        device = device_of(request)
        device = device if ranks is None else own_device(device, ranks)
        images = images_of(request, settings)
        how = {"seed": request.seed, "batch_size": request.batch_size, "engine": request.engine}
        protocol = Protocol.read(request.attacks, budget, images.num_classes, **how)
        network = network_of(request, images)
        source = source_of(request, images, device)
        which = request.which if run is not None else network.source
        module = network.module.to(device)
        notes = suit_threads(request, module, images) if ranks is None and request.processes == 1 else []
        look = _look(request, run, settings, module, images, protocol, device)
        if request.out is not None and (ranks is None or ranks.first):
            run = record_folder(request.out, run, network, settings)
    from mmard.evaluation.examine import Recorder, examine, examine_transfer
    from mmard.evaluation.multiprocess import follow, lead

    said = {"split": request.split, "which": which}
    if ranks is not None and not ranks.first:
        follow(ranks, module, images, protocol, witnessed=bool(look.also), **said)
        return
    began = time.monotonic()
    keep = Recorder(run)
    try:
        kept = run.autoattack if run is not None else None
        with lead(ranks, module, images, kept) as folder, progress_shown() as tell:
            every: dict[str, Any] = {**said, "progress": tell}
            if source is not None:
                measured = examine_transfer(module, source, images, protocol, keep, **every)
            else:
                shared: dict[str, Any] = {"folder": folder, "processes": request.processes}
                measured = examine(module, images, protocol, look, keep, **every, **shared)
    except KeyboardInterrupt:
        complain(_interrupted(keep))
        raise Exit(INTERRUPTED) from None
    if request.as_json:
        print_json({"scores": keep.scores, "findings": keep.findings})
        return
    _show(request, look, keep, network, images, measured, time.monotonic() - began, notes)


def refuse_apart(request: Evaluate) -> None:
    """Refuse what the processes of a launch cannot do together."""
    if request.processes > 1:
        mend = "torchrun has started several: leave --processes out"
        raise Refused("--processes", expected="1", got=str(request.processes), mend=mend)
    if request.made_on is not None:
        raise Refused("--from", expected="one process", got="several", mend="leave torchrun out")


def source_of(request: Evaluate, images: ImageSet, device: torch.device) -> Surrogate | None:
    """The network on which the attacks are made, where that is another one."""
    from mmard.evaluation.transfer import Surrogate
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
    return Surrogate(found.module.to(device), found.source)


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


def _interrupted(keep: Recorder) -> str:
    """What is left of an evaluation that was stopped."""
    got = f"{plural(len(keep.scores), 'figure')} and {plural(len(keep.findings), 'finding')}"
    if keep.run is None:
        return f"interrupted after {got}, which are lost; --out FOLDER keeps them"
    return f"interrupted; {got} were finished and are in {keep.run.path}"


def _look(
    request: Evaluate,
    run: Run | None,
    settings: Settings,
    module: nn.Module,
    images: ImageSet,
    protocol: Protocol,
    device: torch.device,
) -> FindingsPlan:
    """What to find beside accuracies, and the networks and images that this takes."""
    from mmard.evaluation.findings import FindingsPlan, plan_findings, read_also
    from mmard.job import pair_of

    names, everything = read_also(request.also)
    if request.made_on is not None:
        if names:
            mend = "leave --also out, or look without --from"
            raise Refused("--also", expected="attacks on the network itself", got="--from", mend=mend)
        return FindingsPlan()
    must = "boundary" in names and not everything
    said = {"data": settings.data, "data_dir": settings.data_dir}
    pair = pair_of(run, module, images, request.teacher, names, must=must, said=said, device=device)
    look = plan_findings(names, module, protocol, teacher=pair.teacher, own=pair.own, everything=everything)
    return replace(look, left_out=(*look.left_out, *pair.notes))


def _show(
    request: Evaluate,
    look: FindingsPlan,
    keep: Recorder,
    network: Network,
    images: ImageSet,
    measured: Sequence[Measured],
    spent: float,
    notes: Sequence[str],
) -> None:
    out, run = console(), keep.run
    line(out, network.source, "strong")
    line(out, f"  {images.origin}")
    out.print()
    show_table(out, scores_table([each.score.record() for each in measured]))
    show_findings(out, keep.findings, look.left_out, asked="checks" in look.also)
    out.print()
    took = f"{plural(len(images), 'image')} in {duration(spent)}"
    line(out, f"{took}. Intervals are over the choice of images, not over seeds.", "quiet")
    for note in notes:
        line(out, note, "quiet")
    if request.attacks in ("quick", ",".join(GROUPS["quick"].specs)):
        line(out, "A quick standard set, not AutoAttack: an upper bound of the robust accuracy.", "quiet")
    if run is not None:
        line(out, f"Records are in {run.scores} and {run.findings_folder}.", "quiet")
        path = shlex.quote(str(run.path))
        trained = "method" in run.config
        first = f"mmard show {path}" if trained else f"mmard compare {path} RUN"
        commands(out, "next", [first, f"mmard report {path}"])
