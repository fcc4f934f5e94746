"""The command line: `mmard`, or `python -m mmard`.

    app.py         the program and its front page              commands.py    every command, in order
    app_*.py       options, help and examples of commands      options.py     what options have in common
    flags.py       the options of `train` and `distill`, made from the settings
    help.py        how a help page looks
    request.py     the run, data and network that are meant    scores.py      figures as a table, and as they come
    training.py    train, distill, resume, dry run             live.py        the display while training
    evaluating.py  evaluate                                    showing.py     show
    catalogue.py   methods, models, data                       teaching.py    teachers, fetch
    comparing.py   compare                                     transferring.py transfer
    exporting.py   export                                      sharing.py     push, pull
    reporting.py   report                                      benching.py    bench
    studying.py    study run                                   study_told.py  study list, status, records, rerun
    reading.py     study table, plot, ledger                   study_board.py the display while cells are made
    demo.py        demo                                        findings.py    findings as people read them
    output.py      consoles, lines and tables                  study_sheet.py a table of a study on a console

Nothing here imports PyTorch before a command runs that needs it, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mmard.errors import Refused


def main() -> None:
    """Run the command that the process was started with, and end the process."""
    sys.exit(answer(sys.argv[1:]))


def answer(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status.

    0: done. 1: training diverged, or an error of ours, with its traceback. 2: refused, with one line that says where,
    expected, got and mend. 130: stopped by the user.
    """
    from mmard.cli.commands import app
    from mmard.cli.output import complain

    try:
        status = app(list(arguments), prog_name="mmard", standalone_mode=False)
    except Refused as refusal:
        complain(str(refusal))
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
