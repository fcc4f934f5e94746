"""`mmard demo`: how the demo is shown."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mmard.cli.screen import INTERRUPTED, busy, commands, complain, console, is_terminal, line, put, rich_table
from mmard.errors import Refused
from mmard.words import duration, percent, plural

if TYPE_CHECKING:
    from mmard.data import ImageSet, Splits
    from mmard.demo import Result, Stage
    from mmard.tables.statistics import Difference


def show_demo(out: Path | None, seeds: int, quick: bool) -> None:
    """Run the demo, or what is left of it, and print its table.

    Raises:
        Refused: for folders that hold something else.
        typer.Exit: with 130 when the user stopped it.
    """
    if seeds < 1:
        raise Refused("--seeds", expected="at least 1", got=str(seeds))
    folder = out or Path("runs/demo-quick" if quick else "runs/demo")
    screen = console()
    line(screen, "A robust teacher, three small students, and attacks on all four, on handwritten digits.", "strong")
    with busy("measuring a few steps"):
        from mmard.data import load
        from mmard.demo import DATA, estimate, finished, stages

        splits = load(DATA)
        planned = [stages(folder, seed, quick=quick) for seed in range(seeds)]
        left = {stage.path for each in planned for stage in each if not finished(stage)}
        time_needed = estimate(planned[0], splits) if left else None
    if time_needed is not None:
        planned = [stages(folder, seed, quick=quick, threads=time_needed.threads) for seed in range(seeds)]
        cost = {
            s.path: time_needed.training[s.name] + time_needed.attacking[s.name]
            for each in planned
            for s in each
            if s.path in left
        }
        about = f"about {duration(sum(cost.values()))} on this machine, {plural(time_needed.threads, 'thread')}"
        line(screen, f"{plural(len(left), 'network')} to train: {about}. Ctrl-C stops; the same command goes on.")
    else:
        cost = {}
        line(screen, f"All {plural(sum(map(len, planned)), 'network')} are trained already; {folder} has them.")
    screen.print()
    again = (
        f"mmard demo --out {shlex.quote(str(folder))}"
        + (f" --seeds {seeds}" if seeds > 1 else "")
        + (" --quick" if quick else "")
    )
    began = time.monotonic()
    results = _worked(planned, cost, splits, again, screen)
    if left:
        screen.print()
        line(screen, f"Done in {duration(time.monotonic() - began)}.")
    _conclude(results, splits.test, folder, quick, screen)


def _worked(
    planned: list[list[Stage]], cost: dict[Path, float], splits: Splits, again: str, screen: Console
) -> list[list[Result]]:
    """Train and attack every stage; results by seed."""
    from mmard.demo import attack_stage, train_stage
    from mmard.training.fit import Interrupted

    results = []
    try:
        with _display(cost, screen) as shown:
            for seed, each in enumerate(planned):
                done = []
                for stage in each:
                    if stage.path not in cost:
                        done.append(attack_stage(stage, splits))
                        continue
                    shown.begin(stage, stage.title + (f", seed {seed}" if len(planned) > 1 else ""))
                    train_stage(stage, shown.trained)
                    done.append(attack_stage(stage, splits, shown.attacked))
                    shown.end(done[-1])
                results.append(done)
    except (Interrupted, KeyboardInterrupt):
        complain(f"saved; go on with: {again}")
        raise typer.Exit(INTERRUPTED) from None
    return results


class _Shown:
    """Progress of the whole demo: a bar for every network in a terminal, two lines for each elsewhere."""

    def __init__(self, cost: dict[Path, float], screen: Console, bars: Progress | None) -> None:
        self.cost, self.screen, self.bars = cost, screen, bars
        self.began = self.stage_began = self.drawn = time.monotonic()
        self.behind = 0.0
        self.task: Any = None

    def begin(self, stage: Stage, title: str) -> None:
        """A network's turn has come."""
        self.stage, self.stage_began = stage, time.monotonic()
        if self.bars is not None:
            self.task = self.bars.add_task(title, total=1.0, note=self._left(0.0))
        else:
            line(
                self.screen,
                f"{title}: {stage.settings.method} on {stage.network}, {plural(stage.settings.epochs, 'epoch')}",
            )
            self.screen.file.flush()

    def trained(self, share: float) -> None:
        """This share of the network's training is done."""
        now = time.monotonic()
        if self.bars is not None and now - self.drawn >= 0.2:
            self.drawn = now
            self.bars.update(self.task, completed=share, note=self._left(share))

    def attacked(self, name: str, done: int, of: int, standing: int) -> None:
        """So many images of an attack are done, and so many of these are still read rightly."""
        if self.bars is not None:
            self.bars.update(self.task, completed=1.0, note=f"{standing:,}/{done:,} right")

    def end(self, result: Result) -> None:
        """A network is trained and attacked."""
        self.behind += self.cost[self.stage.path]
        clean, worst = (percent(result.scores[i].accuracy) for i in (0, -1))
        spent = duration(time.monotonic() - self.stage_began)
        if self.bars is not None:
            self.bars.update(self.task, completed=1.0, note=spent)
            return
        rest = f", {self._left(0.0)}" if self.behind < sum(self.cost.values()) else ""
        line(self.screen, f"  {clean} clean, {worst} under {attacks(result)}, in {spent}{rest}")
        self.screen.file.flush()

    def _left(self, share: float) -> str:
        """Time to go, from the estimate and from how it has held so far."""
        done = self.behind + share * self.cost[self.stage.path]
        whole = sum(self.cost.values())
        # The estimate rules at the start; what was seen since takes over as it grows.
        trust = done / whole
        pace = (1 - trust) + trust * (time.monotonic() - self.began) / done if done > 0 else 1.0
        return f"{duration((whole - done) * pace)} left"


@contextmanager
def _display(cost: dict[Path, float], screen: Console) -> Iterator[_Shown]:
    if not is_terminal():
        yield _Shown(cost, screen, None)
        return
    columns = (
        TextColumn("{task.description:<30}"),
        BarColumn(None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[note]:>17}"),
    )
    with Progress(*columns, console=screen, expand=True) as bars:
        yield _Shown(cost, screen, bars)


def attacks(result: Result) -> str:
    """The attacks of the worst case and their budget, e.g. "PGD-40 and CW-PGD-40 at linf 0.15"."""
    from mmard.balls import Budget

    names = [score.label.split(" (")[0] for score in result.scores[1:-1]]
    worst = result.scores[-1]
    return f"{' and '.join(names)} at {Budget(worst.eps or 0.0, worst.norm or '')}"


# the table ----------------------------------------------------------------------------------------
def _conclude(results: list[list[Result]], images: ImageSet, folder: Path, quick: bool, screen: Console) -> None:
    seeds, n = len(results), len(images)
    what = "95% interval below" if seeds == 1 else f"mean and standard deviation over {seeds} seeds"
    which = results[0][0].scores[0].which
    line(screen, f"Accuracy on {n} test images, {which} epoch, {what}; attacks: {attacks(results[0][0])}.")
    screen.print()
    put(screen, _table(results))
    screen.print()
    if quick:
        line(screen, "A quick run: two epochs on a few images. These figures mean nothing.")
    else:
        for text in readings(results, n):
            line(screen, text)
    path = shlex.quote(str(results[0][-1].stage.path))
    teacher = shlex.quote(str(results[0][0].stage.path))
    commands(
        screen,
        "next",
        [
            f"mmard report {' '.join(shlex.quote(str(each.stage.path)) for each in results[0])} --out report.html",
            f"mmard show {path}",
            f"mmard evaluate {path} --which {which} --attack fgsm,pgd-100x5,cw-100",
            f"mmard distill --method adaad+mmard --teacher {teacher} --student cnn-4 --data digits --out runs/adaad",
            "mmard train --method trades --model wide_resnet-16-4 --data folder --data-dir YOUR_IMAGES --dry-run",
        ],
    )


def _table(results: list[list[Result]]) -> Table:
    first = results[0]
    heads = ["clean", *(score.label.split(" (")[0] for score in first[0].scores[1:-1]), "worst of both"]
    made = rich_table("network", "weights", *heads, right=("weights", *heads))
    for row, result in enumerate(first):
        cells = []
        for column, score in enumerate(result.scores):
            found = [each[row].scores[column].accuracy for each in results]
            if len(found) > 1:
                text = Text.assemble(
                    (percent(statistics.fmean(found)), "strong" if column in (0, 3) else ""),
                    (f" ±{100 * statistics.stdev(found):.1f}", "quiet"),
                )
            else:
                low, high = score.interval
                text = Text.assemble(
                    (percent(found[0]), "strong" if column in (0, 3) else ""),
                    (f"\n{100 * low:.1f}-{100 * high:.1f}", "quiet"),
                )
            cells.append(text)
        made.add_row(result.stage.title, f"{result.weights:,}", *cells)
    return made


def readings(results: list[list[Result]], n: int) -> list[str]:
    """What the table shows and what in it is noise, in sentences; every number is computed from it."""
    from mmard.tables.statistics import difference

    def between(ours: str, theirs: str) -> Difference:
        of = {each.stage.name: row for row, each in enumerate(results[0])}
        masks = [{seed: each[of[name]].masks[-1] for seed, each in enumerate(results)} for name in (ours, theirs)]
        mine, others = ({seed: float(mask.mean()) for seed, mask in side.items()} for side in masks)
        return difference(mine, others, *masks)

    lines = []
    if len(results) == 1:
        intervals = [each.scores[-1].interval for each in results[0][1:]]
        half = max((high - low) / 2 for low, high in intervals)
        lines.append(
            f"Noise: {n} images leave ±{100 * half:.1f} points around a student's attacked accuracy; "
            "other seeds of training move it further."
        )
    for ours, theirs, says in (
        ("rslad+mmard", "rslad", "MMARD on RSLAD, against plain RSLAD"),
        ("rslad", "pgd_at", "plain RSLAD, against training without a teacher (PGD-AT)"),
    ):
        lines.append(f"{says}: {told(between(ours, theirs))}")
    if len(results) == 1:
        lines.append("One seed cannot tell a method from luck: mmard demo --seeds 3.")
    return lines


def told(found: Difference) -> str:
    """A difference of worst-case accuracies beside the halves of its 95 % intervals; beyond noise is beyond both."""
    gain = f"{100 * found.mean:+.1f} points worst case"
    halves = [(found.over_images, "over images"), (found.over_seeds, "over seeds")]
    known = [(half, of) for half, of in halves if half is not None]
    beyond = all(abs(found.mean) > half for half, _ in known)
    noise = " and ".join(f"±{100 * half:.1f} {of}" for half, of in known)
    of = "noise" if found.over_seeds is not None else "the noise of the test images alone"
    return f"{gain}, {noise}: {'beyond' if beyond else 'within'} {of}."
