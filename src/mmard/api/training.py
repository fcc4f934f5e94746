"""Training from Python: by names or with objects of your own, whole or a step for a loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmard.balls import Budget, radius
from mmard.config import DistillSettings, Settings, TrainSettings
from mmard.data import Splits
from mmard.engine.twins import Engine
from mmard.errors import Refused
from mmard.images import Loaders
from mmard.job import Job, default_out, prepare
from mmard.method import Method
from mmard.methods import compose
from mmard.networks import GIVEN
from mmard.run import Event, Run
from mmard.training.checkpoint import Position
from mmard.training.step import Step
from mmard.weights import load_into

Observer = Callable[[Event], None]


@dataclass
class Trained:
    """A finished training.

    Attributes:
        run: its folder.
        position: final counters, among them which epoch validation liked best.
        job: what was trained, with the student as the last step left it.
    """

    run: Run
    position: Position
    job: Job

    @property
    def splits(self) -> Splits | None:
        """The data, unless a user's own loaders were trained on."""
        return self.job.splits

    def network(self, which: str = "best") -> nn.Module:
        """The student with its "best" or "last" weights, in eval mode: the object in training, loaded in place."""
        tensors, _ = self.run.load_weights(which)
        load_into(self.job.student, tensors, f"{which} weights of {self.run.path}")
        return self.job.student.eval()


def train(
    model: str | nn.Module,
    *,
    data: str | Splits | Loaders,
    method: str | Method = "pgd_at",
    budget: Budget | str | float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Trained:
    """Train a network without a teacher; this is how teachers are made.

    Args:
        model: a name of `mmard.models.names()`, "package.module:function", or a module of your own that takes images
            (B, C, H, W) in [0, 1] and returns logits.
        data: a name of `mmard.data.DATA` (with `data_dir=...`), `Splits`, or your own loaders (training, validation).
        method: a name, plug-ins included, or a `Method`.
        budget: radius as a number or a fraction ("8/255") in the setting `norm`, or a `Budget`; the setting `eps` if
            not given.
        out: folder of the run; runs/<date>-<method>-<network>-<seed> if not given.
        resume: go on with the run in `out`, whose settings then hold.
        observers: called with every event of the log.
        settings: any setting of `TrainSettings`, under its name.

    Raises:
        Refused: for anything wrong, before the first step.
        Interrupted: after Ctrl-C, with the run saved.
    """
    network = model if isinstance(model, nn.Module) else None
    said = {**settings, "model": _label(model)}
    return _go(TrainSettings, said, data, method, budget, out, resume, observers, student=network)


def distill(
    student: str | nn.Module,
    teacher: str | Path | nn.Module | Mapping[str, str | Path | nn.Module | Sequence[str | Path]],
    *,
    data: str | Splits | Loaders,
    method: str | Method = "rslad+mmard",
    budget: Budget | str | float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Trained:
    """Train a student with a teacher.

    Args:
        student: as `model` in `train`.
        teacher: a run folder, a file of weights that mmard wrote, a name with `teacher_weights=...`, or a module; for
            methods with several, a mapping by letter, e.g. {"T": "runs/robust", "T_nat": "runs/natural"}. A list of
            runs or files is an ensemble, which averages what `teacher_mix` says.
        data, method, budget, out, resume, observers: as in `train`.
        settings: any setting of `DistillSettings`, under its name.

    Raises:
        Refused: for anything wrong, before the first step.
        Interrupted: after Ctrl-C, with the run saved.
    """
    own = student if isinstance(student, nn.Module) else None
    by_letter = teacher if isinstance(teacher, Mapping) else {"T": teacher}
    modules = {letter: each for letter, each in by_letter.items() if isinstance(each, nn.Module)}
    labels = {letter: _labels(each) for letter, each in by_letter.items()}
    said = {**settings, "student": _label(student), "teacher": labels if isinstance(teacher, Mapping) else labels["T"]}
    return _go(DistillSettings, said, data, method, budget, out, resume, observers, student=own, teacher=modules)


def training_step(
    student: nn.Module,
    teacher: nn.Module | Mapping[str, nn.Module] | None = None,
    *,
    peer: nn.Module | None = None,
    method: str | Method = "rslad+mmard",
    budget: Budget | str | float,
    steps: int = 10,
    step_size: float | str | None = None,
    seed: int = 0,
    engine: str = "fast",
    precision: str = "fp32",
) -> Step:
    """One step for a loop of your own: `loss, terms = step(x, y)`, then you call backward and the optimiser.

    Args:
        student: in the mode that you train it in; takes images in [0, 1].
        teacher: left as it is; None for methods without one, a mapping by letter for methods with several.
        peer: trained beside the student, for methods that train one.
        method: a name, plug-ins included, or a `Method`.
        budget: radius as a number or a fraction, or a `Budget`.
        steps, step_size: of the attack; a quarter of the radius (the method's own length) if no step size is given.
        seed: of the attack's random starts.
        engine: what the attack calls: "fast", twins of the networks, or "plain", the networks themselves.
        precision: of the twins: "fp32", "bf16" or "auto".
    """
    made = method if isinstance(method, Method) else compose(method)
    ball = Budget.of(budget)
    step = None if step_size is None else radius(step_size)
    nets = {"S": student, **({"T": teacher} if isinstance(teacher, nn.Module) else teacher or {})}
    if peer is not None:
        nets["P"] = peer
    attack = made.attack(ball, steps, step, made.start)
    return Step(made, nets, attack, ball, seed, engine=Engine(engine, precision))


def _go(
    kind: type[Settings],
    said: dict[str, Any],
    data: str | Splits | Loaders,
    method: str | Method,
    budget: Budget | str | float | None,
    out: str | Path | None,
    resume: bool,
    observers: Sequence[Observer],
    student: nn.Module | None,
    teacher: Mapping[str, nn.Module] | None = None,
) -> Trained:
    said["data"] = data if isinstance(data, str) else f"{GIVEN}{type(data).__name__}"
    if budget is not None:
        ball = {"eps": budget.eps, "norm": budget.norm} if isinstance(budget, Budget) else {"eps": radius(budget)}
        twice = [name for name in ball if name in said]
        if twice:
            got = f"budget and {twice[0]}"
            raise Refused("budget", expected="the ball in one place", got=got, mend="leave one out")
        said |= ball
    said["method"] = method if isinstance(method, str) else f"{GIVEN}{method.name}"
    if resume:
        if out is None:
            raise Refused("resume", expected="the folder of a run as `out`", got="none")
        run = Run.open(out)
        settings = kind.resolve(run.config)
    else:
        settings = kind.resolve(said)
        out = out or default_out(settings, method if isinstance(method, str) else method.name)
        Run.refuse_taken(out)
    job = prepare(
        settings,
        data=None if isinstance(data, str) else data,
        method=None if isinstance(method, str) else method,
        student=student,
        teacher=teacher,
    )
    if not resume:
        assert out is not None
        run = Run.create(out, job.settings.as_config())
    return Trained(run, job.train(run, observers), job)


def _labels(networks: str | Path | nn.Module | Sequence[str | Path]) -> str | list[str]:
    if isinstance(networks, str | Path | nn.Module):
        return _label(networks)
    return [str(each) for each in networks]


def _label(network: str | Path | nn.Module) -> str:
    return f"{GIVEN}{type(network).__name__}" if isinstance(network, nn.Module) else str(network)
