"""`mmard push` and `mmard pull`: a run to the Hugging Face hub and back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from mmard.cli.options import Options, argument, command, option
from mmard.screen import busy, commands, console, line
from mmard.words import plural


class Push(Options):
    """What `mmard push` is asked for."""

    run: Path = argument("RUN", "A run folder.")
    repo: str = argument("USER/NAME", "The repository at the Hugging Face hub.")
    to: Path | None = option(None, "Write the folder here and send nothing.", "FOLDER")
    public: bool = option(False, "A repository that is made is for everybody.")
    licence: str | None = option(None, "Licence of the weights, as the hub names it: mit.", "NAME")


@command(
    "Share",
    """
    mmard push runs/s ada/resnet18-rslad --to shared
    mmard push runs/s ada/resnet18-rslad --public --licence mit
    """,
)
def push(options: Push) -> None:
    """Share a run at the Hugging Face hub: weights, settings, figures, findings, and a model card made from them.

    Folders of this machine are cut out of what is sent. Who you are the hub's client knows from `hf auth login`.
    """
    to = options.to
    with busy("writing" if to is not None else "writing and sending"):
        from mmard.share.hub import push

        done = push(options.run, options.repo, to=to, public=options.public, licence=options.licence)
    out = console()
    line(out, str(done.folder) if done.folder is not None else done.address, "strong")
    line(out, f"  {plural(len(done.files), 'file')}, {done.size / 1e6:.1f} MB; the card is README.md")
    if done.suspicious:
        line(out, f"  suspicious: {', '.join(done.suspicious)}; the card says so above its table")
    if done.folder is not None:
        line(out, "  nothing was sent", "quiet")
    source = shlex.quote(str(done.folder)) if done.folder is not None else options.repo
    commands(out, "next", [f"mmard pull {source} --to runs/pulled"])


class Pull(Options):
    """What `mmard pull` is asked for."""

    repo: str = argument("USER/NAME", "A repository at the hub, or a folder that push --to wrote.")
    to: Path = option(..., "Where the run goes.", "FOLDER")
    revision: str | None = option(None, "Branch, tag or commit.")


@command(
    "Share",
    """
    mmard pull ada/resnet18-rslad --to runs/pulled
    mmard pull shared --to runs/pulled
    """,
)
def pull(options: Pull) -> None:
    """Bring a shared run to a folder that evaluate, compare and --teacher take. Every file is checked."""
    with busy("starting"):
        from mmard.share.hub import pull
    out = console()
    how: dict[str, Any] = {"revision": options.revision, "progress": lambda text: line(out, f"  {text}", "quiet")}
    folder = pull(options.repo, options.to, **how)
    line(out, f"complete and checked: {folder}", "strong")
    where = shlex.quote(str(folder))
    commands(out, "next", [f"mmard show {where}", f"mmard evaluate {where} --attack pgd-20", f"less {where}/README.md"])
