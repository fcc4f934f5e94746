"""`mmard train` and `mmard distill`: from what was said to a run folder, or to the plan of one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from mmard.catalogue import refuse_unknown_names
from mmard.cli.options import Options, Said, command, flag_of, option, with_file
from mmard.errors import Refused, require
from mmard.progress import TrainingBoard
from mmard.screen import INTERRUPTED, busy, commands, complain, console, line, put, rich_table
from mmard.settings import Settings, code_of, command_of, handed_over, teachers_text
from mmard.words import as_fraction, duration, percent, plural

if TYPE_CHECKING:
    from mmard.job import Job
    from mmard.plan import Plan
    from mmard.ranks import Ranks
    from mmard.run import Run
    from mmard.training.checkpoint import Position


class RunOptions(Options):
    """Where a run goes, or comes from, and what is said of it."""

    out: Path | None = option(
        None, "Where the run goes; runs/<date>-<method>-<network>-<seed> if not given.", "FOLDER", panel="Run"
    )
    config: Path | None = option(
        None, "Settings from a TOML or JSON file, e.g. a run's config.json; options go over it.", "FILE", panel="Run"
    )
    resume: Path | None = option(None, "Go on with this run, with the settings it began with.", "RUN", panel="Run")
    dry_run: bool = option(False, "Check everything, measure a few steps, print the plan, write nothing.", panel="Run")
    quiet: bool = option(False, "Print the run's folder and nothing else.", flag="--quiet,-q", panel="Run")


@command(
    "Train",
    """
    mmard train --method trades --model cnn-32 --data digits --out runs/teacher
    mmard train --method trades --model wide_resnet-16-4 --data cifar10 --data-dir D --out runs/wide --dry-run
    mmard train --resume runs/teacher
    """,
)
def train(options: RunOptions, said: Said) -> None:
    """Train a network without a teacher. This is how teachers are made.

    A setting that is not said here or in --config comes from the preset, and what the preset leaves open from the
    default in brackets.
    """
    _train_or_distill("train", said, options)


@command(
    "Train",
    """
    mmard distill --teacher runs/teacher --student cnn-4 --data digits --out runs/s
    mmard distill --method adaad+igdm+mmard --param mmard.guide=0.5 --teacher runs/teacher --student cnn-4
    mmard distill --inner adaad --outer rslad --teacher runs/teacher --student cnn-4
    mmard distill --resume runs/s
    """,
)
def distill(options: RunOptions, said: Said) -> None:
    """Train a student with a teacher.

    A setting that is not said here or in --config comes from the preset, and what the preset leaves open from the
    default in brackets.
    """
    _train_or_distill("distill", said, options)


def _train_or_distill(command: str, flags: Said, options: RunOptions) -> None:
    """One call of either; a run's folder is made when nothing can be refused any more.

    Raises:
        Refused: for anything wrong.
        typer.Exit: with 130 when the user stopped it, with 1 when the loss ceased to be a number.
    """
    if options.resume is not None:
        _resume(command, flags, options.resume, options)
        return
    said = with_file(command, options.config, flags)
    if command == "distill" and not said.get("teachers"):
        mend = "train one: mmard train --method trades --model cnn-32 --data digits --out runs/teacher"
        raise Refused("distill", expected="--teacher with a run folder or a file of weights", got="none", mend=mend)
    settings = Settings.resolve(said)
    refuse_unknown_names(settings)
    from mmard.run import Run

    if options.out is not None:
        Run.refuse_taken(options.out)
    with _joined(settings.device) as ranks:
        with busy("reading data and networks"):
            from mmard.job import default_out, prepare

            job = prepare(settings, ranks=ranks)
            job.choose_threads()
        if options.dry_run:
            _show_plan(job, said)
            return
        out = options.out or _free(Path(default_out(settings, job.method.name)))
        if ranks is None or ranks.first:
            run = Run.create(out, job.settings.as_config())
        if ranks is not None:
            out = Path(ranks.broadcast(str(out)))
        _train(job, run if ranks is None or ranks.first else Run(out, writes=False), options.quiet)


def _joined(device: str) -> AbstractContextManager[Ranks | None]:
    """This process among those that PyTorch's launcher started; None if it started only this one or none."""
    from mmard.networks import pick_device
    from mmard.ranks import joined, launched

    return joined(on_gpus=launched() and pick_device(device).type == "cuda")


def _resume(command: str, flags: Said, path: Path, options: RunOptions) -> None:
    others = [flag_of(name) for name in flags if name != "epochs"]
    others += [f"--{name}" for name in ("out", "config") if getattr(options, name) is not None]
    if others:
        expected = "no other setting than --epochs, which lengthens the run"
        mend = "a run resumes with the settings it began with"
        raise Refused("--resume", expected=expected, got=", ".join(others), mend=mend)
    from mmard.run import Run

    run = Run.open(path)
    settings = Settings.resolve(run.config)
    settings.refuse_unless_of(command, str(path), f"go on with: {resume_command(path, run.config)}")
    with _joined(settings.device) as ranks:
        if "epochs" in flags:
            from mmard.training.checkpoint import lengthen

            where, mend = "--resume with --epochs", "it writes the new length"
            require(not options.dry_run, where, expected="no --dry-run", got="one", mend=mend)
            if ranks is None or ranks.first:
                lengthen(run, Settings.resolve(run.config | {"epochs": flags["epochs"]}).epochs)
            if ranks is not None:
                ranks.barrier()
        _go_on(run, options.dry_run, options.quiet, ranks)


def _go_on(run: Run, dry_run: bool, quiet: bool, ranks: Ranks | None) -> None:
    from mmard.job import prepare

    if (position := position_of(run)) is not None and position.finished:
        if ranks is not None and not ranks.first:
            return
        if quiet:
            print(run.path)
            return
        out = console()
        line(out, f"{run.path} is finished: {plural(position.epoch, 'epoch')}.")
        commands(out, "next", next_commands(run, finished=True))
        return
    said = run.config
    with busy("reading data and networks"):
        job = prepare(Settings.resolve(said), ranks=ranks)
    if unsaid := [full for full in job.settings.params if full not in said.get("params", {})]:
        # A run of a version that had no such parameter, or did not write defaults down.
        taken = ", ".join(f"{full} {job.settings.params[full]}" for full in unsaid)
        job.notes.append(f"config.json does not say these parameters, and today's defaults are taken: {taken}")
    if dry_run:
        job.step.twins.keep(run.engine or {})
        _show_plan(job, said, done=position.epoch if position else 0)
        return
    run.writes = ranks is None or ranks.first
    _train(job, run, quiet)


def _free(path: Path) -> Path:
    """This path, or with a number behind it the first that does not exist."""
    free, n = path, 1
    while free.exists():
        n += 1
        free = path.with_name(f"{path.name}-{n}")
    return free


def _show_plan(job: Job, said: Said, done: int = 0) -> None:
    from mmard import plan as planning

    if (ranks := job.step.ranks) is not None:
        raise Refused("--dry-run", expected="one process", got=f"{ranks.size}", mend="leave torchrun out for the plan")
    with busy(f"measuring steps for about {planning.SECONDS:g} s"):
        made = planning.plan(job, done, planning.SECONDS)
    show_plan(made, said)


def _train(job: Job, run: Run, quiet: bool) -> None:
    from mmard.training.fit import Diverged, Interrupted

    again = resume_command(run.path, run.config)
    ranks = job.step.ranks
    if ranks is not None and not ranks.first:
        _follow(job, run)
        return
    if not quiet:
        _introduce(job, run)
    try:
        position = _trained(job, run, quiet)
    except Interrupted:
        complain(f"saved; go on with: {again}")
        raise typer.Exit(INTERRUPTED) from None
    except KeyboardInterrupt:
        complain(f"stopped at once; the last save stands; go on with: {again}")
        raise typer.Exit(INTERRUPTED) from None
    except Diverged as error:
        complain(str(error))
        raise typer.Exit(1) from None
    if quiet:
        print(run.path)
        return
    _conclude(job, run, position)


def _follow(job: Job, run: Run) -> None:
    """Train beside the first process, which speaks for all."""
    from mmard.training.fit import Diverged, Interrupted

    try:
        job.train(run)
    except (Interrupted, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED) from None
    except Diverged:
        raise typer.Exit(1) from None


def _trained(job: Job, run: Run, quiet: bool) -> Position:
    if quiet:
        return job.train(run)
    with TrainingBoard(console(), job.recipe.epochs, job.batches.steps, job.validation_label).shown() as board:
        board.recall(run.log())
        return job.train(run, [board])


def _introduce(job: Job, run: Run) -> None:
    from mmard.models import parameter_count

    out, settings = console(), job.settings
    weights = f"{job.facts['network']} with {plural(parameter_count(job.student), 'weight')}"
    line(out, f"{job.method.name}: {weights}", "strong")
    shape = "x".join(map(str, job.validation.image_shape))
    train = f"{len(job.splits.train):,} training, " if job.splits else ""
    line(out, f"  {settings.data}: {train}{plural(len(job.validation), 'validation image')} of {shape}")
    attack = f"attack {settings.steps} x {as_fraction(settings.step_size or settings.eps / 4)} at {job.step.budget}"
    line(out, f"  {plural(job.recipe.epochs, 'epoch')} of {plural(job.batches.steps, 'step')}, {attack}")
    for note in job.notes:
        line(out, f"  {note}")
    line(out, f"  {run.path}")
    out.print()


def _conclude(job: Job, run: Run, position: Position) -> None:
    out = console()
    line(out, f"{run.path}: {plural(position.epoch, 'epoch')} in {duration(position.seconds)}", "strong")
    found = f"{percent(position.best_clean)} clean, {percent(position.best_robust)} under {job.validation_label}"
    line(out, f"  best epoch {position.best_epoch}: {found}, {plural(len(job.validation), 'validation image')}")
    commands(out, "next", next_commands(run, finished=True))


def position_of(run: Run) -> Position | None:
    """Where a run stands; None before its first save."""
    from mmard.training.checkpoint import load

    return load(run)[1].position if run.has_state else None


FEW_IMAGES = 5_000
"""Training images below which no large network is proposed."""


def resume_command(path: Path, config: Mapping[str, Any]) -> str:
    """The command that goes on with a run, with the code of one's own that it names."""
    trust = "".join(f" --trust-code {name}" for name in dict.fromkeys(code_of(config)))
    return f"mmard{trust} {command_of(config)} --resume {shlex.quote(str(path))}"


def next_commands(run: Run, finished: bool) -> list[str]:
    """What to type next about a run; what was made of Python objects can only be looked at from here."""
    path, config = shlex.quote(str(run.path)), run.config
    if handed_over(config) & {"network", "data", "method"}:
        return [f"mmard show {path}"]
    if not finished:
        return [resume_command(run.path, config), f"mmard show {path}"]
    lines = [f"mmard evaluate {path} --attack pgd-20,cw-30", f"mmard show {path}"]
    if command_of(config) == "train" and _teaches(run):
        use = f"--data {config['data']} --eps {as_fraction(config['eps'])}"
        if config.get("data_dir"):
            use += f" --data-dir {shlex.quote(config['data_dir'])}"
        lines.append(f"mmard distill --teacher {path} --student {_smaller(run)} {use}")
    return lines


def _teaches(run: Run) -> bool:
    """Whether the gate in front of a distillation would let a trained network pass."""
    import torch

    from mmard.gate import GATE_IMAGES, guessing

    _, facts = run.load_weights("best")
    classes = len(facts["classes"])
    _, least = guessing(torch.full((classes,), GATE_IMAGES / classes))
    return float(facts["clean"]) > least


def _smaller(run: Run) -> str:
    """A student to try: one of the small family where the teacher is of it, or images are few."""
    if run.config["network"].startswith("cnn"):
        return "cnn-4"
    epochs = [event for event in run.log() if event["kind"] == "epoch"]
    images = epochs[-1]["step"] / epochs[-1]["epoch"] * run.config["batch_size"] if epochs else FEW_IMAGES
    return "cnn-16" if images < FEW_IMAGES else "resnet18"


ROLES = {"S": "student", "T": "teacher", "T_nat": "natural teacher", "P": "peer", "S_ema": "student's average"}
PASSES = "forward: passes, of them train: in train mode; back x, back w: gradients to the input, to the weights"


def show_plan(plan: Plan, said: Said) -> None:
    """Networks, data, formulas, passes, speed, time, and every setting with where it comes from."""
    from mmard.engine.twin import described
    from mmard.plan import origins

    out, job = console(), plan.job
    line(out, "networks, and their passes in a step", "strong")
    grid = passes_table("", "network", "weights")
    roles = {**ROLES, "S": "student" if job.sources else "model"}
    names = {"S": job.facts["network"], **{k: own["network"] for k, own in job.others.items()}, **job.sources}
    for letter, passes in plan.passes.items():
        grid.add_row(
            roles.get(letter, letter),
            names.get(letter, ""),
            f"{plan.weights[letter]:,}",
            *map(str, vars(passes).values()),
        )
    put(out, grid, 2)
    line(out, f"  {PASSES}", "quiet")
    out.print()
    line(out, "method", "strong")
    line(out, f"  {job.method.name}  ({job.method.source})")
    line(out, f"  attack climbs  {job.method.says[0]}")
    line(out, f"  loss descends  {job.method.says[1]}")
    for note in job.notes:
        line(out, f"  {note}")
    out.print()
    line(out, "data", "strong")
    parts = (
        [(job.splits.train, "train"), (job.splits.val, "validation"), (job.splits.test, "test")] if job.splits else []
    )
    shape = " x ".join(map(str, job.validation.image_shape))
    line(
        out,
        f"  {job.settings.data}: "
        + ", ".join(f"{len(part):,} {name}" for part, name in parts)
        + f" images of {shape}, {job.validation.num_classes} classes",
    )
    out.print()
    line(out, "engine", "strong")
    for letter, chosen in plan.engine.items():
        line(out, f"  {roles.get(letter, letter)}: {described(chosen)}")
    out.print()
    line(out, "time on this machine", "strong")
    measured = f"measured over {plural(plan.pace.steps, 'step')} of {plan.pace.step_seconds:.3g} s"
    line(out, f"  {plan.pace.images_per_second:,.0f} images/s, {measured}")
    epoch = f"{plural(job.batches.steps, 'step')}, then about {duration(plan.validation)} of validation"
    line(out, f"  {duration(plan.epoch_seconds)} an epoch: {epoch}")
    behind = f" ({plan.done} of {job.recipe.epochs} are done)" if plan.done else ""
    line(out, f"  {duration(plan.seconds)} to go for {plural(job.recipe.epochs - plan.done, 'epoch')}{behind}")
    if plan.pace.peak_bytes is not None:
        line(out, f"  {plan.pace.peak_bytes / 2**30:.2f} GiB at most on the GPU")
    out.print()
    line(out, "settings", "strong")
    found = origins(job.settings, said)
    rows = rich_table("setting", "value", "from")
    for source in ("said", "preset"):
        for each in (each for each in found if each.source == source):
            rows.add_row(
                each.name, value_text(each.name, each.value), source, style="" if source == "said" else "quiet"
            )
    put(out, rows, 2)
    usual = ", ".join(f"{each.name} {value_text(each.name, each.value)}" for each in found if each.source == "default")
    line(out, f"  by default: {usual}", "quiet")
    out.print()
    line(out, "Nothing was written. Leave out --dry-run to start.")


def passes_table(*columns: str) -> Table:
    """A table that ends in the four counts of passes."""
    counted = ("forward", "train", "back x", "back w")
    return rich_table(*columns, *counted, right=("weights", *counted), fold=("network",))


def value_text(name: str, value: Any) -> str:
    """A setting's value as it would be said."""
    if value in (None, {}):
        return "not set"
    if name in ("eps", "step_size"):
        return as_fraction(value)
    if name == "teachers":
        return teachers_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={own}" for key, own in value.items())
    if isinstance(value, list | tuple):
        return ",".join(f"{each:g}" for each in value)
    return str(value)
