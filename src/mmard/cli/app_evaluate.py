"""The commands that look at one network: evaluate, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmard.cli.app import app
from mmard.cli.help import Page
from mmard.cli.options import AsJson, option
from mmard.evaluation.columns import GROUPS

GROUPS_SAY = ", ".join(GROUPS)


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard evaluate runs/s
    mmard evaluate runs/s --attack fgsm,pgd-20,cw-30,pgd-100x10 --first 1000
    mmard evaluate runs/s --attack aa
    mmard evaluate runs/s --also all --first 1000
    mmard evaluate runs/s --attack pgd-20 --from runs/t
    mmard evaluate resnet18 --weights their.pt --data cifar10 --data-dir D --eps 8/255
    mmard evaluate deployed.onnx --attack square --data cifar10 --data-dir D --eps 8/255
    """,
)
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|NAME",
            help="A run, a file of weights that mmard wrote, an ONNX file, or a network's name with --weights.",
        ),
    ],
    attack: Annotated[
        str,
        option(
            f"Attacks, e.g. fgsm, pgd-20, cw-30, pgd-100x10, pgd-20@0.003; aa is AutoAttack. Or a group: {GROUPS_SAY}. "
            "`mmard attacks` lists all.",
            "LIST",
            shown="quick",
        ),
    ] = "quick",
    also: Annotated[
        str,
        option(
            "Find also checks, classes, margins, calibration, examples, boundary, curves (eps, steps), or all.",
            "LIST",
        ),
    ] = "",
    eps: Annotated[
        str | None, option("Radius of the ball, in input units: 8/255; the run's if not given.", "X")
    ] = None,
    norm: Annotated[str | None, option("Norm of the ball; the run's if not given.", "linf|l2|l1")] = None,
    which: Annotated[str, option("Which weights of a run.", "best|last", shown="best")] = "best",
    weights: Annotated[Path | None, option("Weights for a network given by name (.safetensors, .pt).", "FILE")] = None,
    data: Annotated[str | None, option("Data set; the run's if not given.", "NAME")] = None,
    data_dir: Annotated[Path | None, option("Folder that holds the data.", "FOLDER")] = None,
    split: Annotated[str, option("Which images.", "test|val|train", shown="test")] = "test",
    first: Annotated[int | None, option("Only the first N of them.", "N")] = None,
    batch_size: Annotated[int, option("Images attacked at once.", "N", shown="250")] = 250,
    seed: Annotated[int, option("Seed of random starts.", "N", shown="0")] = 0,
    device: Annotated[str, option("cpu, cuda, cuda:1, or auto.", "TEXT", shown="auto")] = "auto",
    teacher: Annotated[
        str | None, option("Teacher for --also boundary and examples; the run's if not given.", "RUN|FILE")
    ] = None,
    mean: Annotated[str | None, option("What --weights want their input normalised with.", "X,X,X", "--mean")] = None,
    std: Annotated[str | None, option("The same: deviation of each channel.", "X,X,X", "--std")] = None,
    made_on: Annotated[
        str | None, option("Make the attacks on this other network: run, file or name.", "RUN|FILE|NAME", "--from")
    ] = None,
    made_on_weights: Annotated[Path | None, option("Weights for --from by name.", "FILE", "--from-weights")] = None,
    out: Annotated[
        Path | None, option("Where records of a network without a run go; compare reads it.", "FOLDER", "--out")
    ] = None,
    processes: Annotated[int, option("Share the work among so many processes; same verdicts.", "N", shown="1")] = 1,
    engine: Annotated[
        str, option("Attacks ask a fast twin, or the plain network; it judges.", "fast|plain", shown="fast")
    ] = "fast",
    as_json: AsJson = False,
) -> None:
    """Accuracy without attack and under each attack, with 95% intervals. A run keeps the records in its folder."""
    from mmard.cli.evaluating import show_scores
    from mmard.cli.request import Request

    request = Request(
        target=target,
        attacks=attack,
        eps=eps,
        norm=norm,
        which=which,
        weights=weights,
        data=data,
        data_dir=data_dir,
        split=split,
        first=first,
        batch_size=batch_size,
        seed=seed,
        device=device,
        made_on=made_on,
        made_on_weights=made_on_weights,
        out=out,
        also=also,
        teacher=teacher,
        mean=mean,
        std=std,
        processes=processes,
        engine=engine,
    )
    show_scores(request, as_json)


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard show runs/s
    mmard show runs/s --json
    """,
)
def show(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")], as_json: AsJson = False) -> None:
    """What was run, how far it is, how good it is, and what to do next."""
    from mmard.cli.showing import show_run

    show_run(run, as_json)
