"""The commands about networks of other people, and ours for them: teachers, push, pull."""

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
    mmard teachers
    mmard teachers Chen2021LTD_WRN34_10
    """,
)
def teachers(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them, in detail.")] = None,
    as_json: AsJson = False,
) -> None:
    """Robust networks of other people that can be named as a teacher: claimed accuracies, papers, licences, places.

    Their weights are a file of yours, given with --teacher-weights; `mmard fetch robustbench:NAME` brings most of them.
    """
    from mmard.cli.teaching import show_teachers

    show_teachers(name, as_json)


@app.command(
    cls=Page,
    rich_help_panel="Share",
    epilog="""
    mmard push runs/s ada/resnet18-rslad --to shared
    mmard push runs/s ada/resnet18-rslad --public --licence mit
    """,
)
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository at the Hugging Face hub.")],
    to: Annotated[Path | None, option("Write the folder here and send nothing.", "FOLDER", "--to")] = None,
    public: Annotated[bool, option("A repository that is made is for everybody.", None, "--public")] = False,
    licence: Annotated[str | None, option("Licence of the weights, as the hub names it: mit.", "NAME")] = None,
) -> None:
    """Share a run at the Hugging Face hub: weights, settings, figures, findings, and a model card made from them.

    Folders of this machine are cut out of what is sent. Who you are the hub's client knows from `hf auth login`.
    """
    from mmard.cli.sharing import push_run

    push_run(run, repo, to, public, licence)


@app.command(
    cls=Page,
    rich_help_panel="Share",
    epilog="""
    mmard pull ada/resnet18-rslad --to runs/pulled
    mmard pull shared --to runs/pulled
    """,
)
def pull(
    repo: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="A repository at the hub, or a folder that push --to wrote.")
    ],
    to: Annotated[Path, option("Where the run goes.", "FOLDER", "--to")],
    revision: Annotated[str | None, option("Branch, tag or commit.", "TEXT")] = None,
) -> None:
    """Bring a shared run to a folder that evaluate, compare and --teacher take. Every file is checked."""
    from mmard.cli.sharing import pull_run

    pull_run(repo, to, revision)
