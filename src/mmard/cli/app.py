"""The program itself: its front page, its version, and what its commands are registered with."""

from __future__ import annotations

from typing import Annotated

import typer

from mmard._version import __version__
from mmard.cli.help import FrontPage

app = typer.Typer(
    cls=FrontPage,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="""
    mmard demo
    mmard train --method trades --model wide_resnet-16-4 --data cifar10 --data-dir D --out runs/t
    mmard distill --method rslad+mmard --teacher runs/t --student resnet18 --data cifar10 --data-dir D --out runs/s
    mmard evaluate runs/s --attack pgd-20,cw-30
    """,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mmard {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def front(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Adversarial robustness distillation: train a robust teacher, distil a small student, attack the result.

    A command's own page: mmard COMMAND --help.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
