"""`mmard evaluate`: accuracy of a network under attacks, as a table and as records in the run's folder."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from typer import Exit

from mmard.cli.findings import show_every_check, show_findings
from mmard.cli.output import INTERRUPTED, busy, commands, complain, console, line, put
from mmard.cli.request import (
    Request,
    check,
    images_of,
    network_of,
    record_folder,
    refuse_apart,
    run_of,
    settings_of,
    source_of,
)
from mmard.cli.scores import progress_shown, scores_table
from mmard.config import Settings
from mmard.errors import Refused
from mmard.words import duration, plural

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmard.balls import Budget
    from mmard.data import ImageSet
    from mmard.evaluation.evaluate import Measured
    from mmard.evaluation.keeping import Keeper
    from mmard.evaluation.wanted import Wanted
    from mmard.networks import Network
    from mmard.run import Run
    from mmard.training.ranks import Ranks

QUICK = ("quick", "pgd-20,cw-30")
"""How the attacks of a quick look, which is less than AutoAttack, may be said."""


def show_scores(request: Request, as_json: bool) -> None:
    """Evaluate, print, and keep the records of a run in its folder.

    Raises:
        Refused: for anything wrong, before the first attack.
    """
    check(request)
    with busy("starting"):
        from mmard.evaluation.meeting import AGAIN
        from mmard.training.ranks import joined

    with joined(on_gpus=False, mend=AGAIN) as ranks:
        _scores(request, as_json, ranks)


def _scores(request: Request, as_json: bool, ranks: Ranks | None) -> None:
    """The same, in this process or in one of several."""
    if ranks is not None:
        refuse_apart(request)
    with busy("reading data and network"):
        from mmard.balls import Budget
        from mmard.devices import own_device, pick_device
        from mmard.engine.twins import Engine
        from mmard.evaluation.columns import spelled

        Engine(request.engine)
        run = run_of(request.target)
        settings = settings_of(request, run)
        budget = Budget(settings.eps, settings.norm)
        specs = spelled(request.attacks, budget)
        device = pick_device(request.device)
        device = device if ranks is None else own_device(device, ranks)
        images = images_of(request, settings)
        network = network_of(request, images)
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
        with lead(ranks, module, images, kept) as folder, progress_shown() as tell:
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
