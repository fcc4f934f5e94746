"""The commands, their help and their examples. What they do is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmard._version import __version__
from mmard.cli.flags import with_settings
from mmard.cli.help import FrontPage, Page
from mmard.config import DistillSettings, TrainSettings
from mmard.evaluation.columns import GROUPS


def _option(text: str, metavar: str | None = None, *flags: str, panel: str | None = None, shown: str = "") -> Any:
    return typer.Option(*flags, help=text, metavar=metavar, rich_help_panel=panel, show_default=shown or False)


def _run_option(text: str, metavar: str | None, *flags: str) -> Any:
    return _option(text, metavar, *flags, panel="Run")


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
AsJson = Annotated[bool, _option("Print records as JSON.", None, "--json")]

GROUPS_SAY = ", ".join(GROUPS)

PRECEDENCE = """
    A setting that is not said here or in --config comes from the preset, and what the preset leaves open from the
    default in brackets.
"""

app = typer.Typer(
    cls=FrontPage,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="""
    mmard demo
    mmard train --method trades --model wide_resnet-16-4 --data cifar10 --data-dir D --out runs/t
    mmard distill --method rslad+mmard --teacher runs/t --student resnet18 --data cifar10 --data-dir D --out runs/s
    mmard evaluate runs/s --attack pgd-20,cw-30
    """,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mmard {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def front(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Adversarial robustness distillation: train a robust teacher, distil a small student, attack the result.

    A command's own page: mmard COMMAND --help.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    cls=Page,
    rich_help_panel="Start",
    epilog="""
    mmard demo
    mmard demo --seeds 3
    """,
)
def demo(
    out: Annotated[Path | None, _option("Where the runs go.", "FOLDER", shown="runs/demo")] = None,
    seeds: Annotated[int, _option("Repeat everything with so many seeds.", "N", shown="1")] = 1,
    quick: Annotated[bool, _option("Two epochs on a few images, to see that all works; figures mean nothing.")] = False,
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


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard evaluate runs/s
    mmard evaluate runs/s --attack fgsm,pgd-20,cw-30,pgd-100x10 --first 1000
    mmard evaluate runs/s --attack aa
    mmard evaluate runs/s --also all --first 1000
    mmard evaluate runs/s --attack pgd-20 --from runs/t
    mmard evaluate resnet18 --weights their.pt --data cifar10 --data-dir D --eps 8/255
    mmard evaluate deployed.onnx --attack square --data cifar10 --data-dir D --eps 8/255
    """,
)
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|NAME",
            help="A run, a file of weights that mmard wrote, an ONNX file, or a network's name with --weights.",
        ),
    ],
    attack: Annotated[
        str,
        _option(
            f"Attacks, e.g. fgsm, pgd-20, cw-30, pgd-100x10, pgd-20@0.003; aa is AutoAttack. Or a group: {GROUPS_SAY}. "
            "`mmard attacks` lists all.",
            "LIST",
            shown="quick",
        ),
    ] = "quick",
    also: Annotated[
        str,
        _option(
            "Find also checks, classes, margins, calibration, examples, boundary, curves (eps, steps), or all.",
            "LIST",
        ),
    ] = "",
    eps: Annotated[
        str | None, _option("Radius of the ball, in input units: 8/255; the run's if not given.", "X")
    ] = None,
    norm: Annotated[str | None, _option("Norm of the ball; the run's if not given.", "linf|l2|l1")] = None,
    which: Annotated[str, _option("Which weights of a run.", "best|last", shown="best")] = "best",
    weights: Annotated[Path | None, _option("Weights for a network given by name (.safetensors, .pt).", "FILE")] = None,
    data: Annotated[str | None, _option("Data set; the run's if not given.", "NAME")] = None,
    data_dir: Annotated[Path | None, _option("Folder that holds the data.", "FOLDER")] = None,
    split: Annotated[str, _option("Which images.", "test|val|train", shown="test")] = "test",
    first: Annotated[int | None, _option("Only the first N of them.", "N")] = None,
    batch_size: Annotated[int, _option("Images attacked at once.", "N", shown="250")] = 250,
    seed: Annotated[int, _option("Seed of random starts.", "N", shown="0")] = 0,
    device: Annotated[str, _option("cpu, cuda, cuda:1, or auto.", "TEXT", shown="auto")] = "auto",
    teacher: Annotated[
        str | None, _option("Teacher for --also boundary and examples; the run's if not given.", "RUN|FILE")
    ] = None,
    mean: Annotated[str | None, _option("What --weights want their input normalised with.", "X,X,X", "--mean")] = None,
    std: Annotated[str | None, _option("The same: deviation of each channel.", "X,X,X", "--std")] = None,
    made_on: Annotated[
        str | None, _option("Make the attacks on this other network: run, file or name.", "RUN|FILE|NAME", "--from")
    ] = None,
    made_on_weights: Annotated[Path | None, _option("Weights for --from by name.", "FILE", "--from-weights")] = None,
    out: Annotated[
        Path | None, _option("Where records of a network without a run go; compare reads it.", "FOLDER", "--out")
    ] = None,
    processes: Annotated[int, _option("Share the work among so many processes; same verdicts.", "N", shown="1")] = 1,
    engine: Annotated[
        str, _option("Attacks ask a fast twin, or the plain network; it judges.", "fast|plain", shown="fast")
    ] = "fast",
    as_json: AsJson = False,
) -> None:
    """Accuracy without attack and under each attack, with 95% intervals. A run keeps the records in its folder."""
    from mmard.cli.evaluating import Request, show_scores

    request = Request(
        target=target,
        attacks=attack,
        eps=eps,
        norm=norm,
        which=which,
        weights=weights,
        data=data,
        data_dir=data_dir,
        split=split,
        first=first,
        batch_size=batch_size,
        seed=seed,
        device=device,
        made_on=made_on,
        made_on_weights=made_on_weights,
        out=out,
        also=also,
        teacher=teacher,
        mean=mean,
        std=std,
        processes=processes,
        engine=engine,
    )
    show_scores(request, as_json)


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard show runs/s
    mmard show runs/s --json
    """,
)
def show(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")], as_json: AsJson = False) -> None:
    """What was run, how far it is, how good it is, and what to do next."""
    from mmard.cli.showing import show_run

    show_run(run, as_json)


@app.command(
    cls=Page,
    rich_help_panel="Look",
    epilog="""
    mmard methods
    mmard methods rslad+mmard
    """,
)
def methods(
    spec: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="One method, with plug-ins if any, in detail.")
    ] = None,
) -> None:
    """Methods and plug-ins: their formulas, papers and parameters, and what a step costs."""
    from mmard.cli.catalogue import show_method, show_methods

    if spec is None:
        show_methods()
    else:
        show_method(spec)


@app.command(cls=Page, rich_help_panel="Look", epilog="mmard attacks")
def attacks() -> None:
    """Attacks that an evaluation can be told to make, as they are spelled, and groups of them."""
    from mmard.cli.catalogue import show_attacks

    show_attacks()


@app.command(cls=Page, rich_help_panel="Look", epilog="mmard models")
def models() -> None:
    """Networks that can be named, with their numbers of weights."""
    from mmard.cli.catalogue import show_models

    show_models()


@app.command(cls=Page, rich_help_panel="Data", epilog="mmard data")
def data() -> None:
    """Data sets that can be named, and how to get them."""
    from mmard.cli.catalogue import show_data

    show_data()


@app.command(
    cls=Page,
    rich_help_panel="Data",
    epilog="""
    mmard fetch cifar10 --data-dir D
    mmard fetch robustbench:Zhang2019Theoretically --data-dir D
    """,
)
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A data set of `mmard data`, or a teacher of `mmard teachers`: robustbench:NAME."
        ),
    ],
    data_dir: Annotated[Path, _option("Where to put it.", "FOLDER", "--data-dir")],
) -> None:
    """Fetch a data set from the Hugging Face hub, or a teacher from Google Drive, and check every file.

    Called again, it goes on where it stopped.
    """
    from mmard.cli.teaching import fetch_named

    fetch_named(name, data_dir)


from mmard.cli import app_bench, app_compare, app_report, app_share, app_study  # noqa: E402, F401  they register themselves here
