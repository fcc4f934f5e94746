"""What the engine and its precision change in what is computed: one step of a method, beside the plain path.

Both start from the same x_adv and see the same batch. Float64 shows that the mathematics is the same; in float32 and
bfloat16 the attack follows signs of gradients, so pixels whose gradient is near zero may go the other way, and what
counts is how far the attack came. The plain path in float32 beside itself in float64 says how much of that is rounding
alone.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmard.api import distill, train
from mmard.attacks import Objective, TrainingAttack
from mmard.balls import Budget
from mmard.batch import Batch, Net, Point
from mmard.bench.measure import Progress
from mmard.bench.records import FORMAT, write
from mmard.bench.variants import AGREED, AGREED_ALONE, HOST
from mmard.data import ImageSet
from mmard.engine.ascent import climbs
from mmard.engine.twin import PLAIN, Engine, has_bf16
from mmard.errors import Refused, require
from mmard.files import weights_hash
from mmard.job import load_splits, teacher_of
from mmard.method import Method
from mmard.methods import build
from mmard.modes import evaluating, frozen
from mmard.networks import load_network, pick_device
from mmard.run import Run, environment
from mmard.settings import Settings, is_given
from mmard.training.step import Outcome, Step

STUDENT, TEACHER = "wide_resnet-10-2", "wide_resnet-10-4"
"""Large enough that the engine packs their convolutions, as it does those of networks in earnest."""
EPOCHS = {STUDENT: 5, TEACHER: 3}
EPS = 0.15


@dataclass(frozen=True)
class TrainedPair:
    """Networks and what they are looked at with.

    Attributes:
        nets: the student as S, and the teacher, where there is one, as T.
        images: that none of them was trained on.
        budget, steps, step_size: of their training attack.
        line: what they are, for records.
    """

    nets: Mapping[str, nn.Module]
    images: ImageSet
    budget: Budget
    steps: int
    step_size: float | None
    line: str


def of_run(run: str | Path, data_dir: str | None = None) -> TrainedPair:
    """The student of a run with best weights, and its teacher.

    Raises:
        Refused: if the run, its data or its teacher is not there.
    """
    config: dict[str, Any] = dict(Run.open(run).config)
    if "method" not in config:
        raise Refused(str(run), expected="a run that trained a network", got="one without a method")
    if is_given(config["data"]):
        mend = "choose a run on data that has a name"
        raise Refused(str(run), expected="data that can be loaded by name", got=config["data"], mend=mend)
    settings = Settings.resolve(config | ({"data_dir": data_dir} if data_dir else {}))
    images = load_splits(settings).test
    found = load_network(str(run), num_classes=images.num_classes, image_shape=images.image_shape)
    teacher = teacher_of(settings, images)
    nets = {"S": found.module} | ({"T": teacher.module} if teacher is not None else {})
    line = found.source + (f", taught by {teacher.source}" if teacher is not None else "")
    return TrainedPair(nets, images, Budget(settings.eps, settings.norm), settings.steps, settings.step_size, line)


def on_digits(device: torch.device) -> TrainedPair:
    """A teacher by adversarial training and a student of its, trained on digits now; random states stay as they are."""
    steps = 5
    how: dict[str, Any] = {"data": "digits", "budget": EPS, "steps": steps, "lr": 0.05, "val_attack": "pgd-2"}
    how |= {"device": str(device), "batch_size": 64}
    with tempfile.TemporaryDirectory() as passing:
        teacher = train(TEACHER, method="pgd_at", epochs=EPOCHS[TEACHER], out=Path(passing) / "t", **how)
        student = distill(
            STUDENT, Path(passing) / "t", method=HOST, epochs=EPOCHS[STUDENT], out=Path(passing) / "s", **how
        )
        nets = {"S": student.network("last"), "T": teacher.network("last")}
    assert student.splits is not None
    line = f"{STUDENT} after {EPOCHS[STUDENT]} epochs of {HOST} on digits, taught by {TEACHER}"
    return TrainedPair(nets, student.splits.test, Budget(EPS), steps, None, line)


EQUAL = 1e-6
"""x_adv counts as equal below this distance, in input units; a grey level is 4e-3."""


@dataclass(frozen=True)
class Pairing:
    """What is held beside what: (dtype of the networks, engine) of the one and of the other."""

    name: str
    reference: tuple[torch.dtype, Engine]
    other: tuple[torch.dtype, Engine]


def pairings(device: torch.device) -> list[Pairing]:
    """Those that there are here."""
    found = [
        Pairing("fp64: plain, engine", (torch.float64, PLAIN), (torch.float64, Engine("fast"))),
        Pairing("fp32: plain, engine", (torch.float32, PLAIN), (torch.float32, Engine("fast"))),
        Pairing("fp32 plain, bf16 engine", (torch.float32, PLAIN), (torch.float32, Engine("fast", "bf16"))),
        Pairing("plain: fp64, fp32", (torch.float64, PLAIN), (torch.float32, PLAIN)),
    ]
    return [pair for pair in found if pair.other[1].precision != "bf16" or has_bf16(device)]


def agreement(
    run: str | Path | None = None,
    *,
    only: Sequence[str] = (),
    images: int = 64,
    seed: int = 0,
    data_dir: str | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Take one step of each method plain and with the engine, in float64, float32 and bfloat16, and compare.

    Args:
        run: a run folder, whose student and teacher are taken; without one, two networks are trained on digits first,
            which takes about a minute.
        only: methods, plug-ins included, that read no other networks; a few usual ones if none is named.
        images: of the test set, in one batch.
        seed: of the attack's start.
        data_dir: folder that holds the run's data, where it is no longer where it was.
        device: "cpu", "cuda", "cuda:1", or "auto".
        out: a folder for the record; nothing is written without one.
        progress: hears what is being done.

    Returns:
        The record; docs/benchmarks.md says what it holds. "files" are those that were written.

    Raises:
        Refused: for an unknown run or method, or a method that reads a network which is not there.
    """
    where, tell = pick_device(device), progress or (lambda _: None)
    require(images > 1, "--images", expected="at least 2", got=images)
    made = {spec: build(spec) for spec in only}
    tell("a run's networks" if run is not None else "training two networks on digits")
    subject = of_run(run, data_dir) if run is not None else on_digits(where)
    made = made or {spec: build(spec) for spec in (AGREED if "T" in subject.nets else AGREED_ALONE)}
    for spec, method in made.items():
        missing = [letter for letter in method.nets if letter not in subject.nets]
        if missing:
            raise Refused(f"method {spec}", expected="one that reads S and T alone", got=f"one that reads {missing[0]}")
    began, rows = time.monotonic(), []
    for spec in made:
        for pair in pairings(where):
            tell(f"{spec}, {pair.name}")
            rows.append({"method": spec, **compared(spec, subject, pair, images, seed, where)})
    record = {
        "kind": "agreement",
        "format": FORMAT,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "subject": {
            "line": subject.line,
            "weights": {letter: weights_hash(net) for letter, net in subject.nets.items()},
            "images": subject.images.origin,
            "n": min(images, len(subject.images)),
            "norm": subject.budget.norm,
            "eps": subject.budget.eps,
            "attack_steps": subject.steps,
        },
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
        "notes": [] if has_bf16(where) else ["no bfloat16 in this hardware"],
        "environment": environment(),
    }
    return record if out is None else write(record, Path(out))


def compared(
    spec: str, subject: TrainedPair, pair: Pairing, images: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """One method under one pairing, as a row of the record."""
    some = subject.images.take(slice(0, images))
    x, y = some.inputs(device=device), some.y.to(device)
    judge = _nets(subject, torch.float64, device)
    one, other = (_taken(spec, subject, x, y, dtype, engine, seed) for dtype, engine in (pair.reference, pair.other))
    found: dict[str, Any] = {
        "pairing": pair.name,
        "n": len(y),
        "loss": one.loss,
        "loss_difference": abs(other.loss - one.loss) / max(abs(one.loss), 1e-300),
        "update_difference": float((other.gradient - one.gradient).norm() / one.gradient.norm()),
        "engine": other.record,
    }
    if one.x_adv is None or other.x_adv is None:
        return found
    start, a, b = x.double(), one.x_adv.double(), other.x_adv.double()
    climbed = {name: _inner(spec, judge, start, at, y) for name, at in (("start", start), ("reached", a), ("other", b))}
    return {
        **found,
        "attack_loss": {"start": climbed["start"], "reference": climbed["reached"], "other": climbed["other"]},
        "attack_loss_ratio": climbed["other"] / climbed["reached"] if climbed["reached"] else None,
        "equal_x_adv": float(((a - b).abs() <= EQUAL).double().mean()),
        "equal_signs": float((_signs(a - start) == _signs(b - start)).double().mean()),
        "largest_difference": float((a - b).abs().max()),
    }


def _signs(delta: Tensor) -> Tensor:
    """-1, 0, 1; what is nothing but rounding is 0."""
    return torch.where(delta.abs() <= EQUAL, 0.0, delta).sign()


@dataclass(frozen=True)
class _Taken:
    x_adv: Tensor | None
    loss: float
    gradient: Tensor
    record: dict[str, Any]


def _taken(
    spec: str, subject: TrainedPair, x: Tensor, y: Tensor, dtype: torch.dtype, engine: Engine, seed: int
) -> _Taken:
    method = build(spec)
    nets = _nets(subject, dtype, x.device)
    for letter in method.forwards:
        nets[letter].train()
    attack = method.attack(subject.budget, subject.steps, subject.step_size, method.start)
    step = Step(method, nets, SameStart(attack), subject.budget, seed, engine=engine)
    outcome: Outcome = step.run(x.to(dtype), y)
    outcome.loss.backward()
    step.settle()
    weights = [p for net in step.trained.values() for p in net.parameters()]
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in weights])
    x_adv = None if outcome.batch.x_adv is None else outcome.batch.x_adv.value
    return _Taken(x_adv, outcome.loss.item(), gradient, step.twins.record)


def _nets(subject: TrainedPair, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
    return {letter: copy.deepcopy(net).to(device, dtype).eval() for letter, net in subject.nets.items()}


def _inner(spec: str, nets: dict[str, nn.Module], x: Tensor, x_adv: Tensor, y: Tensor) -> float:
    """The mean of what a method's attack climbs, at x_adv, by networks in float64."""
    method: Method = build(spec)
    assert method.inner is not None
    with evaluating(*nets.values()), frozen(*nets.values()), torch.enable_grad():
        batch = Batch(Point("x", x), None, y, {letter: Net(net) for letter, net in nets.items()})
        at = x_adv.clone().requires_grad_()
        return float(method.inner(batch.at(at, nets["S"](at), 0)).detach().mean())


class SameStart:
    """An attack whose first iterate is drawn in float32, whatever it climbs in, so that two begin at one point."""

    def __init__(self, attack: TrainingAttack) -> None:
        self.attack = attack

    def __call__(
        self,
        model: nn.Module,
        objective: Objective,
        x: Tensor,
        budget: Budget,
        *,
        generator: torch.Generator | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """x_adv (B, ...); an attack of one act draws in its own dtype."""
        return self.attack(model, objective, x, budget, generator=generator, trace=trace)

    def __getattr__(self, name: str) -> Any:
        if name == "begin" and climbs(self.attack):
            return self._begin
        return getattr(self.attack, name)

    def _begin(self, x: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
        assert climbs(self.attack)
        return self.attack.begin(x.float(), budget, generator).to(x.dtype)
