"""The Python side of the command line: training, whole or a step at a time, and judging networks.

    trained = train("cnn-32", data="digits", method="trades")
    result = distill("cnn-4", trained.run.path, data="digits", method="rslad+mmard")
    scores = evaluate(result.network(), result.splits.test, ["pgd-20", "cw-30"], budget=0.15)

The same settings under the same names, with objects where names will not do. Networks are probed, images and labels
looked at, and numbers checked before any work begins. A caller under `torch.no_grad` or `torch.inference_mode` gets
the same results: gradients are recorded inside in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.batch import Terms
from mmard.data import ImageSet, Splits
from mmard.data.batches import Labelled, as_image_set
from mmard.engine.twin import Engine
from mmard.errors import Refused, require
from mmard.evaluation import checks
from mmard.evaluation.evaluate import Protocol
from mmard.evaluation.examine import Recorder
from mmard.evaluation.examine import examine as _examine
from mmard.evaluation.findings import Finding, plan_findings, read_also
from mmard.evaluation.multiprocess import measure
from mmard.evaluation.score import Score
from mmard.evaluation.transfer import Surrogate, measure_transfer
from mmard.files import load_into, writing_into
from mmard.job import Job, Loaders, default_out, pair_of, prepare
from mmard.method import Method
from mmard.methods import compose
from mmard.models import check_logits
from mmard.modes import gradients
from mmard.networks import load_network
from mmard.progress import AttackBoard, TrainingBoard, shown_to_python
from mmard.run import Event, Run
from mmard.settings import EVALUATION_BATCH, GIVEN, Settings, code_of, given_label
from mmard.tables.table import Entry, Table
from mmard.training.checkpoint import Position, lengthen
from mmard.training.step import Step
from mmard.trust import trust_code, trust_typed
from mmard.words import percent, radius

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Examined", "Trained", "check", "distill", "evaluate", "examine", "train", "training_step"]

Observer = Callable[[Event], None]
AnyNetwork = nn.Module | str | Path


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

    def __repr__(self) -> str:
        best, job = self.position, self.job
        return (
            f"{job.method.name} on {job.facts['network']}: best epoch {best.best_epoch} of {best.epoch},"
            f" {percent(best.best_clean)} clean, {percent(best.best_robust)} under {job.validation_label}"
            f" (validation); {self.run.path}"
        )

    def _repr_html_(self) -> str:
        """What was trained and what validation thinks of it, for a notebook."""
        job, best = self.job, self.position
        heads = ("method", "network", "epochs", "best", "clean %", f"{job.validation_label} %", "run")
        accuracies = (Entry(f"{100 * share:.1f}", share) for share in (best.best_clean, best.best_robust))
        name = str(job.facts["network"])
        row: list[str | Entry] = [
            job.method.name,
            name,
            str(best.epoch),
            str(best.best_epoch),
            *accuracies,
            str(self.run.path),
        ]
        return str(Table(heads, [row], "On validation images").html(compact=True))

    def plot(self) -> Figure:
        """Validation accuracy and loss over epochs, as a matplotlib figure, which a notebook shows.

        Raises:
            Refused: if matplotlib is not installed.
        """
        from mmard.report.training import plot

        return plot(self.run)

    def network(self, which: str = "best") -> nn.Module:
        """The student with its "best" or "last" weights, in eval mode: the object in training, loaded in place."""
        tensors, _ = self.run.load_weights(which)
        load_into(self.job.student, tensors, f"{which} weights of {self.run.path}")
        return self.job.student.eval()


@gradients()
def train(
    model: str | nn.Module,
    *,
    data: str | Splits | Loaders,
    method: str | Method = "pgd_at",
    budget: Budget | str | float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    progress: bool = True,
    **settings: Any,
) -> Trained:
    """Train a network without a teacher; this is how teachers are made.

    Args:
        model: a name of `mmard.models.names()`, "package.module:function", or a module of your own that takes images
            (B, C, H, W) in [0, 1] and returns logits.
        data: a name of `mmard.data.DATA` (with `data_dir=...`), `Splits`, or your own images to train on and to
            validate on, each a DataLoader, an `ImageSet` or a tuple of two tensors.
        method: a name, plug-ins included, or a `Method`.
        budget: radius as a number or a fraction ("8/255") in the setting `norm`, or a `Budget`; the setting `eps` if
            not given.
        out: folder of the run; runs/<date>-<method>-<network>-<seed> if not given.
        resume: go on with the run in `out`, whose settings then hold; with more `epochs` than it has it is lengthened.
        observers: called with every event of the log.
        progress: show how far it is where somebody watches: bars in a terminal, lines in a notebook.
        settings: any of `mmard.settings.Settings`, under its name.

    Raises:
        Refused: for anything wrong, before the first step.
        Interrupted: after Ctrl-C, with the run saved.
    """
    network = model if isinstance(model, nn.Module) else None
    said = {**settings, "network": _label(model, "model")}
    return _go("train", said, data, method, budget, out, resume, observers, progress, student=network)


@gradients()
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
    progress: bool = True,
    **settings: Any,
) -> Trained:
    """Train a student with a teacher.

    Args:
        student: as `model` in `train`.
        teacher: a run folder, a file of weights that mmard wrote, a name with `teacher_weights=...`, or a module; for
            methods with several, a mapping by letter, e.g. {"T": "runs/robust", "T_nat": "runs/natural"}. A list of
            runs or files is an ensemble, which averages what `teacher_mix` says.
        data, method, budget, out, resume, observers, progress: as in `train`.
        settings: any of `mmard.settings.Settings`, under its name.

    Raises:
        Refused: for anything wrong, before the first step.
        Interrupted: after Ctrl-C, with the run saved.
    """
    own = student if isinstance(student, nn.Module) else None
    by_letter = teacher if isinstance(teacher, Mapping) else {"T": teacher}
    modules = {letter: each for letter, each in by_letter.items() if isinstance(each, nn.Module)}
    labels = {letter: _labels(each, f"teacher {letter}") for letter, each in by_letter.items()}
    said = {**settings, "network": _label(student, "student"), "teachers": labels}
    return _go("distill", said, data, method, budget, out, resume, observers, progress, student=own, teacher=modules)


@gradients()
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
        student: in the mode that you train it in; takes images in [0, 1]. All networks are probed at the first call.
        teacher: left as it is; None for methods without one, a mapping by letter for methods with several.
        peer: trained beside the student, for methods that train one.
        method: a name, plug-ins included, or a `Method`.
        budget: radius as a number or a fraction, or a `Budget`.
        steps, step_size: of the attack; a quarter of the radius (the method's own length) if no step size is given.
        seed: of the attack's random starts.
        engine: what the attack calls: "fast", twins of the networks, or "plain", the networks themselves.
        precision: of the twins: "fp32", "bf16" or "auto".

    Raises:
        Refused: for anything wrong; by the step itself for networks that do not fit its first batch, and for any batch
            whose images or labels are not what they must be.
    """
    _whole(1, steps=steps)
    _whole(None, seed=seed)
    trust_typed([method] if isinstance(method, str) else [])
    made = compose(method) if isinstance(method, str) else _method(method)
    ball = Budget.of(budget)
    step = None if step_size is None else radius(step_size)
    nets = {"S": student, **({"T": teacher} if not isinstance(teacher, Mapping | None) else teacher or {})}
    if peer is not None:
        nets["P"] = peer
    for letter, net in nets.items():
        require(isinstance(net, nn.Module), f"network {letter}", expected="a module", got=f"a {type(net).__name__}")
    attack = made.attack(ball, steps, step, made.start)
    return _OwnLoop(made, nets, attack, ball, seed, engine=Engine(engine, precision))


class _OwnLoop(Step):
    """A step whose networks are probed with the shape of the first batch."""

    def __call__(self, x: Tensor, y: Tensor, progress: float = 1.0) -> tuple[Tensor, Terms]:
        if self.classes is None and isinstance(x, Tensor) and x.ndim == 4:
            classes, (_, c, h, w) = None, x.shape
            for letter, net in self.nets.items():
                classes = check_logits(net, (c, h, w), classes, f"network {letter}", trained=letter in self.trained)
            self.classes = classes
        return super().__call__(x, y, progress)


def _go(
    command: str,
    said: dict[str, Any],
    data: str | Splits | Loaders,
    method: str | Method,
    budget: Budget | str | float | None,
    out: str | Path | None,
    resume: bool,
    observers: Sequence[Observer],
    progress: bool,
    student: nn.Module | None,
    teacher: Mapping[str, nn.Module] | None = None,
) -> Trained:
    if not isinstance(method, str):
        method = _method(method)
    said["data"] = data if isinstance(data, str) else given_label(data)
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
        settings = Settings.resolve(run.config)
        settings.refuse_unless_of(command, str(run.path))
        if int(said.get("epochs", settings.epochs)) != settings.epochs:
            lengthen(run, int(said["epochs"]))
            settings = Settings.resolve(run.config)
    else:
        settings = Settings.resolve(said)
        trust_code(*code_of(dict(settings)))
        settings.refuse_unless_of(command, command)
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
        job.choose_threads()
        run = Run.create(out, job.settings.as_config())

    def board(screen: Console, moves: bool) -> TrainingBoard:
        made = TrainingBoard(screen, job.recipe.epochs, job.batches.steps, job.validation_label, moves)
        made.recall(run.log())
        return made

    with shown_to_python(board, progress) as boards:
        return Trained(run, job.train(run, [*observers, *boards]), job)


def _method(method: object) -> Method:
    mend = "call it, as in mmard.rslad()" if callable(method) and not isinstance(method, Method) else ""
    require(
        isinstance(method, Method), "method", expected="a name or a Method", got=f"a {type(method).__name__}", mend=mend
    )
    assert isinstance(method, Method)
    return method


def _labels(networks: AnyNetwork | Sequence[str | Path], who: str) -> str | list[str]:
    if isinstance(networks, list | tuple) and networks and all(isinstance(each, str | Path) for each in networks):
        return [str(each) for each in networks]
    return _label(networks, who)


def _label(network: object, who: str) -> str:
    if not isinstance(network, str | Path | nn.Module):
        mend = "make one: it is a class" if isinstance(network, type) else ""
        raise Refused(who, expected="a module, a name or a path", got=f"a {type(network).__name__}", mend=mend)
    return given_label(network) if isinstance(network, nn.Module) else str(network)


def _whole(least: int | None, **numbers: object) -> None:
    """Refuse what is no whole number, or too small."""
    for name, value in numbers.items():
        holds = isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
        expected = "a whole number" if least is None else f"a whole number, {least} or more"
        require(holds, name, expected=expected, got=repr(value))


@dataclass(frozen=True)
class _Judged:
    """A network that was probed on images, lines on its weights and on where it comes from, and its run if any."""

    module: nn.Module
    images: ImageSet
    which: str
    source: str
    run: Run | None


def _judged(model: AnyNetwork, data: Labelled, which: str = "best", who: str = "network") -> _Judged:
    images = as_image_set(data, "images")
    source, run = _label(model, who), None
    if isinstance(model, nn.Module):
        module, which = model, "given"
    else:
        run = Run.open(model) if Path(model).is_dir() else None
        classes = images.num_classes if isinstance(data, ImageSet) else None
        shape: dict[str, Any] = {"num_classes": classes, "image_shape": images.image_shape}
        found = load_network(str(model), **shape, which=which, who=who)
        module, source, which = found.module, found.source, which if run is not None else found.source
    if not isinstance(data, ImageSet):
        # Classes were counted by their labels, and the last ones may have no image.
        outputs = check_logits(module, images.image_shape, None, who)
        if outputs > images.num_classes:
            images = replace(images, classes=tuple(map(str, range(outputs))))
    check_logits(module, images.image_shape, images.num_classes, who)
    return _Judged(module, images, which, source, run)


def _keeper(out: str | Path | None) -> Recorder:
    if out is None:
        return Recorder(None)
    folder = Path(out).expanduser()
    with writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return Recorder(Run(folder))


@gradients()
def evaluate(
    model: AnyNetwork,
    images: Labelled,
    attacks: str | Sequence[str],
    *,
    budget: Budget | str | float,
    made_on: AnyNetwork | None = None,
    which: str = "best",
    split: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    batch_size: int = EVALUATION_BATCH,
    processes: int = 1,
    engine: str = "fast",
    progress: bool = True,
) -> list[Score]:
    """Clean accuracy, accuracy under each attack, and under all of them together.

    Args:
        model: a module that takes images in [0, 1], a run folder, a file of weights that mmard wrote, or an ONNX file,
            which has no gradient: "square" alone, or anything with `made_on`. A run folder keeps the verdicts of
            AutoAttack so far; the same call made again goes on from there.
        images: e.g. `load("digits").test`, a DataLoader, or a tuple of images and labels.
        attacks: short spellings, e.g. ["pgd-20", "cw-30"] or "pgd-20,cw-30"; "aa" is AutoAttack, "usual" a group of
            columns (`mmard attacks`).
        budget: radius as a number or a fraction, or a `Budget`.
        made_on: another network, on which the attacks are made: a figure of transfer.
        which: "best" or "last" weights of a run folder.
        split: what the images are, for the records; their origin if not given.
        out: a folder to keep the records in, each as soon as it is known. It may be the run's own.
        seed, batch_size: what random starts depend on.
        processes: how many share the work; a script that asks for more than one must hide its calls behind
            `if __name__ == "__main__":`, as spawned processes import it.
        engine: what the attacks ask: "fast", a twin of the network (docs/engine.md), or "plain", the network itself,
            which gives every verdict in any case. Attacks made on another network ask that network itself.
        progress: show how far the attacks are where somebody watches, in a terminal or a notebook.

    Raises:
        Refused: for anything wrong, before the first attack.
    """
    _whole(1, batch_size=batch_size, processes=processes)
    _whole(None, seed=seed)
    net = _judged(model, images, which)
    how = {"seed": seed, "batch_size": batch_size, "engine": engine}
    protocol = Protocol.read(attacks, Budget.of(budget), net.images.num_classes, **how)
    keep = _keeper(out)
    said: dict[str, Any] = {"split": split or net.images.origin, "which": net.which}
    with shown_to_python(AttackBoard, progress) as boards:
        said["progress"] = next(iter(boards), None)
        if made_on is not None:
            other = _judged(made_on, net.images, who="source")
            surrogate = Surrogate(other.module, other.source)
            for each in measure_transfer(net.module, surrogate, net.images, protocol, **said):
                keep.score(each)
            return [m.score for m in keep.measured]
        said |= {"folder": net.run.autoattack if net.run else None, "processes": processes}
        return [m.score for m in measure(net.module, net.images, protocol, **said, finished=keep.score)]


@gradients()
def check(
    model: AnyNetwork,
    images: Labelled,
    *,
    budget: Budget | str | float,
    thorough: bool = False,
    seed: int = 0,
    batch_size: int = EVALUATION_BATCH,
) -> list[checks.Checked]:
    """Signs that a robust accuracy of this network would say more about the attack than about the network.

    Args:
        model, images, budget, batch_size: as in `evaluate`.
        thorough: attack a sample of the images as well; without it, a few passes are made.
        seed: of the sample and of the attacks.

    Returns:
        One finding for each check of docs/checks.md that was made or had to be skipped.

    Raises:
        Refused: for anything wrong, before the first check. `examine(..., also="checks", out=...)` keeps records.
    """
    _whole(1, batch_size=batch_size)
    _whole(None, seed=seed)
    protocol, net = Protocol((), Budget.of(budget), seed=seed, batch_size=batch_size), _judged(model, images)
    known = checks.cheap(net.module, net.images, protocol)
    return [*known, *checks.thorough(net.module, net.images, protocol, known=known)] if thorough else known


@dataclass(frozen=True)
class Examined:
    """An evaluation with what it found beside accuracies.

    Attributes:
        scores: as `evaluate` returns them.
        findings: the suspicion checks, and what else was asked for; each has a `kind`, a `body` and a `record()`.
        left_out: a line on each thing that "all" could not find, and why.
    """

    scores: list[Score]
    findings: list[Finding]
    left_out: tuple[str, ...]


@gradients()
def examine(
    model: AnyNetwork,
    images: Labelled,
    attacks: str | Sequence[str],
    *,
    budget: Budget | str | float,
    also: str | Sequence[str] = "all",
    teacher: AnyNetwork | None = None,
    which: str = "best",
    split: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    batch_size: int = EVALUATION_BATCH,
    processes: int = 1,
    engine: str = "fast",
    progress: bool = True,
) -> Examined:
    """Accuracies and what lies behind them: suspicion checks, curves, classes, calibration, boundaries, images.

    Args:
        model, images, attacks, budget, seed, batch_size, processes, engine, progress: as in `evaluate`.
        also: out of "checks", "classes", "margins", "calibration", "examples", "boundary", "eps" and "steps" (curves);
            "all" is what can be found here. The cheap checks are always made.
        teacher: a module, a run folder or a file of weights; the run's own if a run is examined.
        which: "best" or "last" weights of a run folder.
        split: what the images are, for the records; their origin if not given.
        out: a folder to keep figures and findings in, each as soon as it is known. It may be the run's own.

    Raises:
        Refused: for anything wrong, before the first attack.
    """
    _whole(1, batch_size=batch_size, processes=processes)
    _whole(None, seed=seed)
    names, everything = read_also(also)
    net = _judged(model, images, which)
    how = {"seed": seed, "batch_size": batch_size, "engine": engine}
    protocol = Protocol.read(attacks, Budget.of(budget), net.images.num_classes, **how)
    pair = pair_of(net.run, net.module, net.images, teacher, names, must="boundary" in names and not everything)
    asked: dict[str, Any] = {"teacher": pair.teacher, "own": pair.own, "everything": everything}
    plan = plan_findings(names, net.module, protocol, **asked)
    keep = _keeper(out)
    with shown_to_python(AttackBoard, progress) as boards:
        examined = _examine(
            net.module,
            net.images,
            protocol,
            plan,
            keep,
            split=split or net.images.origin,
            which=net.which,
            progress=next(iter(boards), None),
            folder=net.run.autoattack if net.run else None,
            processes=processes,
        )
    return Examined([m.score for m in examined], keep.found, (*plan.left_out, *pair.notes))
