"""The commands that train: demo, train, distill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from mmard.cli.app import app
from mmard.cli.flags import with_settings
from mmard.cli.help import Page
from mmard.cli.options import option
from mmard.config import DistillSettings, TrainSettings


def _run_option(text: str, metavar: str | None, *flags: str) -> Any:
    return option(text, metavar, *flags, panel="Run")


Out = Annotated[
    Path | None,
    _run_option("Where the run goes; runs/<date>-<method>-<network>-<seed> if not given.", "FOLDER", "--out"),
]
Config = Annotated[
    Path | None,
    _run_option("Settings from a TOML or JSON file, e.g. a run's config.json; options go over it.", "FILE", "--config"),
]
Resume = Annotated[Path | None, _run_option("Go on with this run, with the settings it began with.", "RUN", "--resume")]
DryRun = Annotated[
    bool, _run_option("Check everything, measure a few steps, print the plan, write nothing.", None, "--dry-run")
]
Quiet = Annotated[bool, _run_option("Print the run's folder and nothing else.", None, "--quiet", "-q")]

PRECEDENCE = """
    A setting that is not said here or in --config comes from the preset, and what the preset leaves open from the
    default in brackets.
"""


@app.command(
    cls=Page,
    rich_help_panel="Start",
    epilog="""
    mmard demo
    mmard demo --seeds 3
    """,
)
def demo(
    out: Annotated[Path | None, option("Where the runs go.", "FOLDER", shown="runs/demo")] = None,
    seeds: Annotated[int, option("Repeat everything with so many seeds.", "N", shown="1")] = 1,
    quick: Annotated[bool, option("Two epochs on a few images, to see that all works; figures mean nothing.")] = False,
) -> None:
    """The whole job on bundled digits: a teacher, three students, attacks, one table. Minutes, no download.

    Called again with the same folder, it skips what is finished and goes on with what is not.
    """
    from mmard.cli.demo import show_demo

    show_demo(out, seeds, quick)


@app.command(
    cls=Page,
    rich_help_panel="Train",
    help=f"Train a network without a teacher. This is how teachers are made.\n{PRECEDENCE}",
    epilog="""
    mmard train --method trades --model cnn-32 --data digits --out runs/teacher
    mmard train --method trades --model wide_resnet-16-4 --data cifar10 --data-dir D --out runs/wide --dry-run
    mmard train --resume runs/teacher
    """,
)
@with_settings(TrainSettings, "said")
def train(
    said: dict[str, Any],
    out: Out = None,
    config: Config = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train a network without a teacher."""
    from mmard.cli.training import train_or_distill

    train_or_distill(TrainSettings, said, out=out, config=config, resume=resume, dry_run=dry_run, quiet=quiet)


@app.command(
    cls=Page,
    rich_help_panel="Train",
    help=f"Train a student with a teacher.\n{PRECEDENCE}",
    epilog="""
    mmard distill --teacher runs/teacher --student cnn-4 --data digits --out runs/s
    mmard distill --method adaad+igdm+mmard --param mmard.guide=0.5 --teacher runs/teacher --student cnn-4
    mmard distill --inner adaad --outer rslad --teacher runs/teacher --student cnn-4
    mmard distill --resume runs/s
    """,
)
@with_settings(DistillSettings, "said")
def distill(
    said: dict[str, Any],
    out: Out = None,
    config: Config = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train a student with a teacher."""
    from mmard.cli.training import train_or_distill

    train_or_distill(DistillSettings, said, out=out, config=config, resume=resume, dry_run=dry_run, quiet=quiet)
