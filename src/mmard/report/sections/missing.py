"""What was not measured, said in one way everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from mmard.report.pieces import Missing
from mmard.report.subject import Shown, Subject
from mmard.report.words import quoted


def missing(about: Subject, runs: Sequence[Shown], what: str, also: str) -> list[Missing]:
    """Nothing if no run lacks it; else what is lacking, and the command for each run.

    Args:
        what: it, in words.
        also: how `mmard evaluate --also` spells it.
    """
    if not runs:
        return []
    names = "" if len(runs) == len(about.runs) else f" of {', '.join(run.name for run in runs)}"
    return [Missing(f"{what}{names}", [f"mmard evaluate {quoted(run)} --also {also}" for run in runs])]
