"""`mmard push` and `mmard pull`: a run to the Hugging Face hub and back."""

from __future__ import annotations

import shlex
from pathlib import Path

from mmard.cli.output import busy, commands, console, line
from mmard.words import plural


def push_run(run: Path, repo: str, to: Path | None, public: bool, licence: str | None) -> None:
    """Share a run, and say what went.

    Raises:
        Refused: for anything that cannot be shared.
    """
    with busy("reading the run"):
        from mmard.share.hub import push
    with busy("writing" if to is not None else "writing and sending"):
        done = push(run, repo, to=to, public=public, licence=licence)
    out = console()
    line(out, str(done.folder) if done.folder is not None else done.address, "strong")
    line(out, f"  {plural(len(done.files), 'file')}, {done.size / 1e6:.1f} MB; the card is README.md")
    if done.suspicious:
        line(out, f"  suspicious: {', '.join(done.suspicious)}; the card says so above its table")
    if done.folder is not None:
        line(out, "  nothing was sent", "quiet")
    source = shlex.quote(str(done.folder)) if done.folder is not None else repo
    commands(out, "next", [f"mmard pull {source} --to runs/pulled"])


def pull_run(repo: str, to: Path, revision: str | None) -> None:
    """Bring a run, and say what to do with it.

    Raises:
        Refused: for anything that is no run that mmard shared.
    """
    with busy("starting"):
        from mmard.share.hub import pull
    out = console()
    folder = pull(repo, to, revision=revision, progress=lambda text: line(out, f"  {text}", "quiet"))
    line(out, f"complete and checked: {folder}", "strong")
    where = shlex.quote(str(folder))
    commands(out, "next", [f"mmard show {where}", f"mmard evaluate {where} --attack pgd-20", f"less {where}/README.md"])
