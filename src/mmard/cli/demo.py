"""`mmard demo`: the study that declared/studies/demo.toml asks for, made, read and said in three minutes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mmard.cli.options import Options, command, option
from mmard.cli.study import exit_where_unmade, make_cells, plan, print_tables
from mmard.errors import Refused
from mmard.screen import busy, commands, console, line
from mmard.words import percent

if TYPE_CHECKING:
    from mmard.study.grid import Choice
    from mmard.study.reading import Reading

QUICK = {"epochs": 2, "limit_train": 256}


class Demo(Options):
    """What `mmard demo` is asked for."""

    out: Path | None = option(None, "Where the runs go.", "FOLDER", shown="runs/demo")
    seeds: int = option(1, "Train the students with so many seeds.", ge=1)
    quick: bool = option(False, "Two epochs on a few images, to see that all works; figures mean nothing.")


@command(
    "Start",
    """
    mmard demo
    mmard demo --seeds 3
    """,
)
def demo(options: Demo) -> None:
    """The whole job on bundled digits: a teacher, four students, attacks, one table. Minutes, no download.

    Called again with the same folder, it skips what is finished and goes on with what is not.
    """
    seeds, quick = options.seeds, options.quick
    folder = options.out or Path("runs/demo-quick" if quick else "runs/demo")
    screen = console()
    line(
        screen, "A robust teacher, and students of 60 times fewer weights: without a defence, trained alone,", "strong"
    )
    line(
        screen,
        "taught by it, and taught by it with MMARD. Handwritten digits, shifted by up to one pixel; all attacked.",
    )
    with busy("counting what there is to do"):
        from mmard.study.cell import Site
        from mmard.study.workers import sites_for

        choice = demo_cells(seeds, quick)
        sites = sites_for(Site(folder), list(choice.cells.values()), None, "cpu")
    expected = plan(choice, sites, screen)
    words = [*(["--seeds", str(seeds)] if seeds > 1 else []), *(["--quick"] if quick else [])]
    if expected:
        again = shlex.join(["mmard", "demo", "--out", str(folder), *words])
        line(screen, "Ctrl-C saves and stops; the same command goes on.")
        exit_where_unmade(choice, sites[0], make_cells(choice, sites, expected, screen, again))
    _conclude(choice, folder, seeds, quick, screen)


def demo_cells(seeds: int = 1, quick: bool = False) -> Choice:
    """The networks of the demo."""
    from mmard.study.grid import choose, load_scale

    scale = load_scale("demo")
    seeds_of = scale.seeds if seeds <= len(scale.seeds) else tuple(range(seeds))
    teachers = {role: said | ({"epochs": QUICK["epochs"]} if quick else {}) for role, said in scale.teachers.items()}
    every = scale.every | (QUICK if quick else {})
    scale = scale.model_copy(update={"seeds": seeds_of, "every": every, "teachers": teachers})
    return choose(["demo"], scale, seeds=seeds)


def _conclude(choice: Choice, folder: Path, seeds: int, quick: bool, screen: Console) -> None:
    from mmard.study.reading import Reading
    from mmard.study.records import collect

    (grid,) = choice.grids
    reading = Reading(grid, collect(folder, choice.cells), choice.scale.which)
    screen.print()
    print_tables(screen, reading)
    screen.print()
    if quick:
        line(screen, "A quick run: two epochs on a few images. These figures mean nothing.")
    else:
        for text in result(reading):
            line(screen, text)
    teacher = reading.teacher(grid.rows[-1])[0]
    runs = [folder / name for name in (teacher, *(row.cells[0] for row in grid.rows))]
    teacher, *_, best = (shlex.quote(str(run)) for run in runs)
    commands(
        screen,
        "next",
        [
            f"mmard show {best}",
            f"mmard evaluate {best} --which last --attack fgsm,pgd-100x5,cw-100",
            f"mmard distill --method adaad+mmard --teacher {teacher} --student cnn-4 --data digits --out runs/adaad",
            "mmard train --method trades --model wide_resnet-16-4 --data folder --data-dir YOUR_IMAGES --dry-run",
        ],
    )
    _report(runs, folder / "report.html", screen)


def _report(runs: list[Path], file: Path, screen: Console) -> None:
    """Write the report of the first seed, where plots can be drawn, and end with its path."""
    from mmard.report.page import write_report

    try:
        with busy("drawing the report"):
            write_report(runs, file)
    except Refused as refusal:
        line(screen, f"No report: {refusal}", "quiet")
        return
    screen.print()
    line(screen, f"All of it as a page: {file}", "strong")


def result(reading: Reading) -> list[str]:
    """What the table shows, and what in it is noise, in sentences whose every number is computed from it."""
    from mmard.study.methods import comparisons
    from mmard.study.reading import CLEAN, ROBUST

    bare = next(row for row in reading.grid.rows if row.host == "natural")
    clean, robust = (reading.mean(bare, quantity) for quantity in (CLEAN, ROBUST))
    lines = []
    if clean is not None and robust is not None:
        lines.append(f"Without a defence, the accuracy of {percent(clean.mean)} falls to {percent(robust.mean)}.")
    lines += comparisons(reading)
    n = max(len(row.cells) for row in reading.grid.rows)
    if n == 1:
        lines.append("One seed cannot tell a method from luck: mmard demo --seeds 5.")
    return lines
