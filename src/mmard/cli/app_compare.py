"""The commands that look at several networks or take one elsewhere: compare, transfer, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmard.cli.app import app
from mmard.cli.help import Page
from mmard.cli.options import AsJson, option


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard compare runs/rslad-* runs/rslad+mmard-*
    mmard compare runs/* --against rslad --attack clean,pgd-20,aa
    mmard compare runs/* --out table.tex
    """,
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that were evaluated.")],
    attack: Annotated[str, option("Only figures under these attacks, as evaluate spells them.", "LIST")] = "",
    which: Annotated[str, option("Only figures of these weights.", "best|last")] = "",
    n: Annotated[int | None, option("Only figures on so many images.", "N", "--n")] = None,
    split: Annotated[str | None, option("Only figures on this split.", "test|val|train")] = None,
    against: Annotated[
        str | None, option("Differences from this row: its name, its method, or one of its runs.", "ROW")
    ] = None,
    parts: Annotated[bool, option("Also what stands after each attack of AutoAttack.", None, "--parts")] = False,
    strict: Annotated[
        bool, option("Refuse figures of one attack by two protocols, rather than two columns.", None, "--strict")
    ] = False,
    form: Annotated[
        str | None, option("Print it as this.", "markdown|latex|csv|json", "--format", shown="a table to look at")
    ] = None,
    out: Annotated[
        Path | None, option("Write it into a file; .md, .tex, .csv or .json says as what.", "FILE", "--out")
    ] = None,
) -> None:
    """One table over runs: mean and deviation over seeds, never two protocols in one column."""
    from mmard.cli.comparing import Wanted, show_comparison

    show_comparison(Wanted(runs, attack, which, n, split, against, parts, strict, form, out))


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard transfer runs/t runs/a runs/b
    mmard transfer runs/* --attack cw-30 --first 1000
    """,
)
def transfer(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RUN|FILE...", help="Runs, files of weights that mmard wrote, or ONNX files."),
    ],
    attack: Annotated[str, option("The attack that is made on each.", "NAME", shown="pgd-20")] = "pgd-20",
    eps: Annotated[str | None, option("Radius of the ball: 8/255; the first run's if not given.", "X")] = None,
    norm: Annotated[str | None, option("Norm of the ball; the first run's if not given.", "linf|l2|l1")] = None,
    which: Annotated[str, option("Which weights of the runs.", "best|last", shown="best")] = "best",
    data: Annotated[str | None, option("Data set; the first run's if not given.", "NAME")] = None,
    data_dir: Annotated[Path | None, option("Folder that holds the data.", "FOLDER")] = None,
    split: Annotated[str, option("Which images.", "test|val|train", shown="test")] = "test",
    first: Annotated[int | None, option("Only the first N of them.", "N")] = None,
    batch_size: Annotated[int, option("Images attacked at once.", "N", shown="250")] = 250,
    seed: Annotated[int, option("Seed of random starts.", "N", shown="0")] = 0,
    device: Annotated[str, option("cpu, cuda, cuda:1, or auto.", "TEXT", shown="auto")] = "auto",
    as_json: AsJson = False,
) -> None:
    """A matrix: examples made on each network, shown to all. Called again, it measures what is missing."""
    from mmard.cli.request import Request
    from mmard.cli.transferring import show_matrix

    request = Request(
        target=targets[0],
        attacks=attack,
        eps=eps,
        norm=norm,
        which=which,
        weights=None,
        data=data,
        data_dir=data_dir,
        split=split,
        first=first,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    show_matrix(targets, request, as_json)


@app.command(
    cls=Page,
    rich_help_panel="Use",
    epilog="""
    mmard export runs/s --to student.onnx
    mmard export resnet18 --weights their.pt --data cifar10 --data-dir D --eps 8/255 --to theirs.onnx
    """,
)
def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN|FILE|NAME", help="A run, a file of weights that mmard wrote, or a name.")
    ],
    to: Annotated[Path, option("The file to write; one that is there is replaced.", "FILE.onnx", "--to")],
    which: Annotated[str, option("Which weights of a run.", "best|last", shown="best")] = "best",
    weights: Annotated[Path | None, option("Weights for a network given by name (.safetensors, .pt).", "FILE")] = None,
    mean: Annotated[str | None, option("What --weights want their input normalised with.", "X,X,X", "--mean")] = None,
    std: Annotated[str | None, option("The same: deviation of each channel.", "X,X,X", "--std")] = None,
    attack: Annotated[
        str, option("Show the file examples of this attack, or none, made on the network.", "LIST", shown="pgd-20")
    ] = "pgd-20",
    eps: Annotated[str | None, option("Radius of the ball: 8/255; the run's if not given.", "X")] = None,
    norm: Annotated[str | None, option("Norm of the ball; the run's if not given.", "linf|l2|l1")] = None,
    data: Annotated[str | None, option("Data set to check it on; the run's if not given.", "NAME")] = None,
    data_dir: Annotated[Path | None, option("Folder that holds the data.", "FOLDER")] = None,
    first: Annotated[int, option("Check on the first N test images.", "N", shown="1000")] = 1000,
    opset: Annotated[int, option("Version of the ONNX operators.", "N", shown="20")] = 20,
    as_json: AsJson = False,
) -> None:
    """Write a network as an ONNX file, normalisation inside and any batch size, and check it on real images."""
    from mmard.cli.exporting import export_network
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
        split="test",
        first=first,
        batch_size=250,
        seed=0,
        device="cpu",
        mean=mean,
        std=std,
    )
    export_network(request, to, opset, as_json)
