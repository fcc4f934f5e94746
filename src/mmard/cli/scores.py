"""Figures on the command line: how far each attack is, the table of scores, their records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.table import Table
from rich.text import Text

from mmard.cli.output import table, watched
from mmard.words import percent, points

if TYPE_CHECKING:
    from mmard.evaluation.evaluate import Measured, Progress
    from mmard.run import Run

MOST_BARS = 8
"""Attacks whose progress is shown at a time."""


@contextmanager
def progress_shown() -> Iterator[Progress | None]:
    """Tells how far each attack is and how many images it left so far, in a terminal."""
    err = watched()
    if err is None:
        yield None
        return
    columns = (
        bars.TextColumn("{task.description:<10}"),
        bars.BarColumn(None),
        bars.TextColumn("{task.completed:,}/{task.total:,} images, {task.fields[standing]:,} right"),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=err, transient=True, expand=True) as shown:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, of: int, standing: int) -> None:
            if name not in tasks:
                for earlier in list(tasks.values())[: 1 - MOST_BARS]:
                    shown.update(earlier, visible=False)
                tasks[name] = shown.add_task(name, total=of, standing=standing)
            shown.update(tasks[name], completed=done, total=of, standing=standing)

        yield tell


def scores_table(records: Sequence[dict[str, Any]]) -> Table:
    """Records as rows: the attack in full, its budget, accuracy, interval, images and seconds."""
    from mmard.balls import as_fraction

    made = table(
        "attack", "budget", "accuracy", "95% interval", "images", "seconds",
        right=("accuracy", "95% interval", "images", "seconds"), fold=("attack",),
    )  # fmt: skip
    for record in records:
        name, _, details = record["label"].partition(" (")
        label = Text.assemble(name, (f" ({details}" if details else "", "quiet"))
        budget = "none" if record["eps"] is None else f"{record['norm']} {as_fraction(record['eps'])}"
        made.add_row(
            label,
            budget,
            Text(percent(record["accuracy"]), style="strong"),
            points(*record["interval"]),
            f"{record['n']:,}",
            f"{record['seconds']:.1f}",
        )
    return made


def keep(measured: Sequence[Measured], run: Run | None) -> list[dict[str, Any]]:
    """The records of some figures; with a run, written into its folder with their masks."""
    from mmard.evaluation.keeping import Keeper

    keeper = Keeper(run)
    for each in measured:
        keeper.score(each)
    return keeper.scores
