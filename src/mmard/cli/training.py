"""`mmard train` and `mmard distill`: from what was said to a run folder, or to the plan of one."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmard.cli.flags import COMMANDS, Said, with_file
from mmard.cli.live import Watch, watching
from mmard.cli.next_steps import command_of, next_commands, position_of
from mmard.cli.output import INTERRUPTED, busy, commands, complain, console, line
from mmard.config import DistillSettings, Settings
from mmard.errors import Refused
from mmard.words import duration, percent, plural

if TYPE_CHECKING:
    from mmard.job import Job
    from mmard.run import Run
    from mmard.training.checkpoint import Position
    from mmard.training.ranks import Ranks


def train_or_distill(
    kind: type[Settings],
    flags: Said,
    *,
    out: Path | None,
    config: Path | None,
    resume: Path | None,
    dry_run: bool,
    quiet: bool,
) -> None:
    """One call of `mmard train` or `mmard distill`.

    Raises:
        Refused: for anything wrong; a new run's folder does not exist by then.
        typer.Exit: with 130 when the user stopped it, with 1 when the loss ceased to be a number.
    """
    if resume is not None:
        _refuse_beside_resume(flags, out, config)
        run = opened(resume, kind)
        with _joined(kind.resolve(run.config)) as ranks:
            _go_on(run, kind, dry_run, quiet, ranks)
        return
    said = with_file(kind, config, flags)
    if kind is DistillSettings and "teacher" not in said:
        mend = "train one: mmard train --method trades --model cnn-32 --data digits --out runs/teacher"
        raise Refused("distill", expected="--teacher with a run folder or a file of weights", got="none", mend=mend)
    settings = kind.resolve(said)
    if out is not None:
        _folder_refused(out)
    with _joined(settings) as ranks:
        with busy("reading data and networks"):
            from mmard.job import default_out, prepare

            job = prepare(settings, ranks=ranks)
        if dry_run:
            _refuse_several(ranks)
            _show_plan(job, said)
            return
        if out is None:
            out = _free(Path(default_out(settings, job.method.name)))
        _train(job, _created(out, job.settings, ranks), kind, quiet)


def _joined(settings: Settings) -> AbstractContextManager[Ranks | None]:
    """This process among those that PyTorch's launcher started; None if it started only this one or none."""
    from mmard.devices import pick_device
    from mmard.training.ranks import asked_for, joined

    return joined(on_gpus=asked_for() and pick_device(settings.device).type == "cuda")


def _refuse_several(ranks: Ranks | None) -> None:
    if ranks is not None:
        raise Refused("--dry-run", expected="one process", got=f"{ranks.size}", mend="leave torchrun out for the plan")


def _created(out: Path, settings: Settings, ranks: Ranks | None) -> Run:
    """A new run folder, made by the first process."""
    from mmard.run import Run
    from mmard.training.ranks import Silent

    if ranks is None:
        return Run.create(out, settings.as_config())
    if ranks.first:
        run = Run.create(out, settings.as_config())
    path = Path(ranks.told(str(out)))
    return run if ranks.first else Silent(path)


def _refuse_beside_resume(flags: Said, out: Path | None, config: Path | None) -> None:
    others = [f"--{name.replace('_', '-')}" if name != "params" else "--param" for name in flags]
    others += ["--out"] if out is not None else []
    others += ["--config"] if config is not None else []
    if others:
        raise Refused(
            "--resume",
            expected="no other setting",
            got=", ".join(others),
            mend="a run resumes with the settings it began with",
        )


def opened(path: Path, kind: type[Settings]) -> Run:
    """The run in a folder, if it is one of this command's.

    Raises:
        Refused: if there is none, or the other command made it.
    """
    from mmard.run import Run

    run = Run.open(path)
    command = command_of(run.config)
    if command != COMMANDS[kind]:
        mend = f"go on with: mmard {command} --resume {shlex.quote(str(path))}"
        raise Refused(str(path), expected=f"a run of mmard {COMMANDS[kind]}", got=f"one of mmard {command}", mend=mend)
    return run


def _go_on(run: Run, kind: type[Settings], dry_run: bool, quiet: bool, ranks: Ranks | None) -> None:
    from mmard.job import prepare
    from mmard.training.ranks import Silent

    if (position := position_of(run)) is not None and position.finished:
        if ranks is not None and not ranks.first:
            return
        if quiet:
            print(run.path)
            return
        out = console()
        line(out, f"{run.path} is finished: {plural(position.epoch, 'epoch')}.")
        _next_commands(run)
        return
    said = run.config
    with busy("reading data and networks"):
        job = prepare(kind.resolve(said), ranks=ranks)
    if unsaid := [full for full in job.settings.params if full not in said.get("params", {})]:
        # A run of a version that had no such parameter, or did not write defaults down.
        taken = ", ".join(f"{full} {job.settings.params[full]}" for full in unsaid)
        job.notes.append(f"config.json does not say these parameters, and today's defaults are taken: {taken}")
    if dry_run:
        _refuse_several(ranks)
        job.step.twins.keep(run.engine or {})
        _show_plan(job, said, done=position.epoch if position else 0)
        return
    _train(job, run if ranks is None or ranks.first else Silent(run.path), kind, quiet)


def _folder_refused(out: Path) -> None:
    from mmard.run import Run

    Run.refuse_taken(out)


def _free(path: Path) -> Path:
    """This path, or with a number behind it the first that does not exist."""
    free, n = path, 1
    while free.exists():
        n += 1
        free = path.with_name(f"{path.name}-{n}")
    return free


def _show_plan(job: Job, said: Said, done: int = 0) -> None:
    from mmard import plan as planning
    from mmard.cli.planned import show_plan

    with busy(f"measuring steps for about {planning.SECONDS:g} s"):
        made = planning.plan(job, done, planning.SECONDS)
    show_plan(made, said)


def _train(job: Job, run: Run, kind: type[Settings], quiet: bool) -> None:
    from mmard.training.divergence import Diverged
    from mmard.training.fit import Interrupted

    again = f"mmard {COMMANDS[kind]} --resume {shlex.quote(str(run.path))}"
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
    from mmard.training.divergence import Diverged
    from mmard.training.fit import Interrupted

    try:
        job.train(run)
    except (Interrupted, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED) from None
    except Diverged:
        raise typer.Exit(1) from None


def _trained(job: Job, run: Run, quiet: bool) -> Position:
    watch = Watch(job.recipe.epochs, job.batches.steps, validation_label(job))
    watch.recall(run.log())
    with watching(watch, quiet) as observers:
        return job.train(run, observers)


def validation_label(job: Job) -> str:
    """The attack of validation and its budget, e.g. "PGD-10 at linf 8/255"."""
    from mmard.attacks import trial

    found = trial(job.settings.val_attack, job.step.budget)
    return f"{found.label.split(' (')[0]} at {job.step.budget}"


def _introduce(job: Job, run: Run) -> None:
    from mmard.balls import as_fraction
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
    found = f"{percent(position.best_clean)} clean, {percent(position.best_robust)} under {validation_label(job)}"
    line(out, f"  best epoch {position.best_epoch}: {found}, {plural(len(job.validation), 'validation image')}")
    _next_commands(run)


def _next_commands(run: Run) -> None:
    commands(console(), "next", next_commands(run, finished=True))
