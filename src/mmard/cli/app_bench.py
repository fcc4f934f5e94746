"""The command `bench`: its options and its help page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmard.cli.app import app
from mmard.cli.help import Page
from mmard.cli.options import option


def _speed(text: str, metavar: str, *flags: str, shown: str = "") -> Any:
    return option(text, metavar, *flags, panel="Speed", shown=shown)


def _agreement(text: str, metavar: str, *flags: str, shown: str = "") -> Any:
    return option(text, metavar, *flags, panel="Agreement", shown=shown)


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard bench
    mmard bench --only rslad,adaad --part methods,pairs
    mmard bench --size gpu --minutes 4 --out here
    mmard bench --agreement
    mmard bench --agreement --run runs/s --only rslad+mmard
    """,
)
def bench(
    size: Annotated[
        str,
        _speed(
            "Networks and batches: laptop, gpu, or auto by device; tiny shows that it runs.",
            "NAME",
            "--size",
            shown="auto",
        ),
    ] = "auto",
    only: Annotated[
        str, typer.Option("--only", help="These methods, e.g. rslad,adaad+igdm.", metavar="LIST", show_default=False)
    ] = "",
    part: Annotated[
        str, _speed("Of methods, pairs, price (of MMARD), attacks, data.", "LIST", "--part", shown="all")
    ] = "",
    minutes: Annotated[
        float, _speed("Time that is kept, by fewer repetitions where it must be.", "X", "--minutes", shown="8")
    ] = 8.0,
    threads: Annotated[int, _speed("Of the CPU; with one, time of the process counts.", "N", shown="1")] = 1,
    agreement: Annotated[
        bool,
        typer.Option(
            "--agreement",
            help="Instead of speed: what engine and precision change in x_adv, loss and update.",
            rich_help_panel="Agreement",
            show_default=False,
        ),
    ] = False,
    run: Annotated[
        Path | None,
        _agreement("On this run's student and teacher; on two trained on digits now if not given.", "RUN", "--run"),
    ] = None,
    images: Annotated[int, _agreement("Of the test set.", "N", shown="64")] = 64,
    seed: Annotated[int, _agreement("Of the attack's start.", "N", shown="0")] = 0,
    data_dir: Annotated[Path | None, _agreement("Folder that holds the run's data.", "FOLDER", "--data-dir")] = None,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto.", metavar="TEXT", show_default="auto")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the record and its chart; benchmarks/results in a checkout, else the working directory.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.", show_default=False)] = False,
) -> None:
    """How fast training, attacks and data are on this machine, the engine beside the plain path in alternation.

    With --agreement: how far the engine's results are from the plain path's.
    """
    from mmard.cli.benching import show_agreement, show_benchmark

    specs = [word.strip() for word in only.split(",") if word.strip()]
    if agreement:
        show_agreement(run, specs, images, seed, None if data_dir is None else str(data_dir), device, out, as_json)
    else:
        parts = [word.strip() for word in part.split(",") if word.strip()]
        show_benchmark(size, specs, parts, minutes, threads, device, out, as_json, run)
