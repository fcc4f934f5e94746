"""The command line: `mmard`, or `python -m mmard`. Each file holds commands, their options and their work.

    app.py       the program, its front page, how a help page looks
    options.py   options made from models; the run, the data and the network that they mean
    screen.py    consoles, lines, tables, and the board that shows what a command is at

Nothing here imports PyTorch before a command runs that needs it, so that help answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from mmard.errors import Refused
from mmard.trust import trust_typed

FILES = (
    *("train", "evaluate", "show", "compare", "report", "transfer", "export", "catalogue", "bench", "share", "doctor"),
    *("new", "study", "study_read", "demo"),
)
ORDER = (
    *("demo", "train", "distill", "evaluate", "show", "compare", "transfer", "report", "methods", "attacks", "models"),
    *("teachers", "bench", "doctor", "new", "export", "data", "fetch", "push", "pull"),
)
"""Commands as the front page has them, under their panels."""


def commands() -> Any:
    """The program with every command; importing a file registers its commands."""
    for name in FILES:
        import_module(f"mmard.cli.{name}")
    from mmard.cli.app import app

    app.registered_commands.sort(key=lambda each: ORDER.index(getattr(each.callback, "__name__", "")))
    return app


def main() -> None:
    """Run the command that the process was started with, and end the process."""
    sys.exit(answer(sys.argv[1:]))


def answer(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status.

    0: done. 1: training diverged, or an error of ours, with its traceback. 2: refused, with one line that says where,
    expected, got and mend. 130: stopped by the user.
    """
    if trust_typed(arguments):
        sys.path.append(os.getcwd())  # code of one's own may lie where one types its name
    app = commands()
    from mmard.screen import complain

    try:
        status = app(list(arguments), prog_name="mmard", standalone_mode=False)
        sys.stdout.flush()
    except Refused as refusal:
        complain(str(refusal))
        return 2
    except OSError as error:
        if error.filename is not None or isinstance(error, BrokenPipeError):
            raise
        # Files are refused by their names; without one it is what all output goes to. What is left of it goes nowhere.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complain(str(Refused("standard output", expected="to write to it", got=str(error.strerror or error))))
        return 2
    except Exception as error:
        # Usage errors have had several homes in Typer's releases; this is what all of them can do.
        if not hasattr(error, "format_message"):
            raise
        complain(_usage(error))
        return 2
    return status if isinstance(status, int) else 0


def _usage(error: Exception) -> str:
    """A usage error of Typer's in the words of ours."""
    import difflib

    context = getattr(error, "ctx", None)
    where = getattr(context, "command_path", "").removeprefix("mmard").strip() or "command line"
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        known = (
            [flag for each in context.command.get_params(context) for flag in (*each.opts, *each.secondary_opts)]
            if context
            else []
        )
        near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]}?" if near else "--help lists them"
        return str(Refused(where, expected="an option that it has", got=option, mend=mend))
    said = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    return f"{where}: {said[:1].lower()}{said[1:]}; --help shows how"
