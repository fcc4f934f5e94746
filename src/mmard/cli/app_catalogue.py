"""The commands that tell what can be named, and bring it: methods, attacks, models, data, fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmard.cli.app import app
from mmard.cli.help import Page
from mmard.cli.options import option


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard methods
    mmard methods rslad+mmard
    """,
)
def methods(
    spec: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="One method, with plug-ins if any, in detail.")
    ] = None,
) -> None:
    """Methods and plug-ins: their formulas, papers and parameters, and what a step costs."""
    from mmard.cli.catalogue import show_method, show_methods

    if spec is None:
        show_methods()
    else:
        show_method(spec)


@app.command(cls=Page, rich_help_panel="Look", epilog="mmard attacks")
def attacks() -> None:
    """Attacks that an evaluation can be told to make, as they are spelled, and groups of them."""
    from mmard.cli.catalogue import show_attacks

    show_attacks()


@app.command(cls=Page, rich_help_panel="Look", epilog="mmard models")
def models() -> None:
    """Networks that can be named, with their numbers of weights."""
    from mmard.cli.catalogue import show_models

    show_models()


@app.command(cls=Page, rich_help_panel="Data", epilog="mmard data")
def data() -> None:
    """Data sets that can be named, and how to get them."""
    from mmard.cli.catalogue import show_data

    show_data()


@app.command(
    cls=Page,
    rich_help_panel="Data",
    epilog="""
    mmard fetch cifar10 --data-dir D
    mmard fetch robustbench:Zhang2019Theoretically --data-dir D
    """,
)
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A data set of `mmard data`, or a teacher of `mmard teachers`: robustbench:NAME."
        ),
    ],
    data_dir: Annotated[Path, option("Where to put it.", "FOLDER", "--data-dir")],
) -> None:
    """Fetch a data set from the Hugging Face hub, or a teacher from Google Drive, and check every file.

    Called again, it goes on where it stopped.
    """
    from mmard.cli.teaching import fetch_named

    fetch_named(name, data_dir)
