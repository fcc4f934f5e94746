"""One step of training, made in the ways that are compared: plain, with twins in each precision, with T(x) given."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.data.image_set import as_levels
from mmard.engine.graphs import ascent_for
from mmard.engine.twin import Engine, has_bf16, lay_out
from mmard.errors import unknown
from mmard.method import Method
from mmard.methods import METHODS, build
from mmard.models import build as network
from mmard.modes import evaluating
from mmard.seeds import generator
from mmard.training.step import Step, descend

PARTS = ("methods", "pairs", "price", "attacks", "data")
"""What a benchmark consists of, besides the ceilings; the main table first, so that time suffices for it."""
SHARES = {"methods": 0.34, "pairs": 0.3, "price": 0.28, "attacks": 0.06, "data": 0.02}
"""Of the time; what a part leaves over goes to those that follow."""
GROWN = ("rslad+mmard", "adaad+mmard", "trades+mmard", "rslad+igdm", "adaad+igdm", "rslad+fair", "rslad+awp")
"""Methods with plug-ins that are timed beside every method."""
HOST, GUEST = "rslad", "rslad+mmard"
"""The step that the price of MMARD is given in, and the one that is paid for."""
PRICES: dict[str, dict[str, float]] = {
    "the teacher asked once, at x": {"mmard.teacher_every": 0},
    "at every 5th step": {"mmard.teacher_every": 5},
    "at every step": {"mmard.teacher_every": 1},
    "triangle only (guide = own = 0)": {"mmard.guide": 0.0, "mmard.own": 0.0},
    "guidance only (beta = 0)": {"mmard.beta": 0.0},
}
"""Forms of the guest, with their parameters; what is not said is as shipped."""
RUNS = (HOST, GUEST)
"""The runs whose length is estimated."""
RUN_EPOCHS, RUN_IMAGES = 200, 50_000
"""Of such a run: CIFAR-10."""
AGREED = (HOST, "adaad", "saad", "adaad+igdm", GUEST)
"""Methods whose engine is held beside the plain path."""
AGREED_ALONE = ("pgd_at", "trades")
"""The same without a teacher."""


@dataclass(frozen=True)
class Case:
    """A step.

    Attributes:
        spec: the method.
        student, teacher: names of networks; every teacher of the method is such a one, and a peer is as the student.
        batch: images.
        known: also with T(x) given, as a filled teacher table gives it.
    """

    spec: str
    student: str
    teacher: str
    batch: int
    known: bool = False

    @property
    def networks(self) -> str:
        """Student and teacher, or the only network."""
        return f"{self.student} / {self.teacher}" if build(self.spec).needs_teacher else self.student


@dataclass(frozen=True)
class Size:
    """A benchmark.

    Attributes:
        name: as it is asked for.
        methods: one case for every method.
        pairs: cases with the networks of papers.
        price: the host's case of the price.
        attacked, attack_batch: the network that PGD and APGD are timed on, and images at once.
        judged, judged_images, judged_shape: the same for AutoAttack.
        image_shape: (C, H, W) of all others.
        attack_steps: of the training attack.
        repeats: of every step, at most.
        load_batch, load_images: of the batches that are loaded.
        matmul, copy, convolved: side of the matrices, number of floats and batch that the ceilings are measured with.
    """

    name: str
    methods: tuple[Case, ...]
    pairs: tuple[Case, ...]
    price: Case
    attacked: str
    attack_batch: int
    judged: str
    judged_images: int
    judged_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int] = (3, 32, 32)
    attack_steps: int = 10
    repeats: int = 7
    load_batch: int = 128
    load_images: int = 8192
    matmul: int = 1536
    copy: int = 2**25
    convolved: int = 8

    def only(self, specs: Collection[str], parts: Collection[str]) -> Size:
        """The cases of these methods alone; a method that is in no table is timed as the others are."""
        if not specs:
            return self
        like = self.methods[0]
        named = {case.spec for case in self.methods}
        added = tuple(replace(like, spec=spec) for spec in specs if spec not in named and "methods" in parts)
        return replace(
            self,
            methods=tuple(case for case in self.methods if case.spec in specs) + added,
            pairs=tuple(case for case in self.pairs if case.spec in specs),
        )


def _every(student: str, teacher: str, batch: int) -> tuple[Case, ...]:
    return tuple(Case(spec, student, teacher, batch) for spec in (*METHODS, *GROWN))


SIZES: dict[str, Size] = {
    "laptop": Size(
        name="laptop",
        methods=_every("wide_resnet-16-2", "wide_resnet-16-4", 4),
        pairs=(
            Case(HOST, "resnet18", "wide_resnet-34-10", 8, known=True),
            Case(HOST, "mobilenet_v2", "wide_resnet-16-4", 8),
            Case("adaad", "resnet18", "wide_resnet-16-4", 8),
            Case("rslad+igdm", "resnet18", "wide_resnet-16-4", 8),
        ),
        price=Case(HOST, "resnet18", "wide_resnet-34-10", 8),
        attacked="wide_resnet-16-2",
        attack_batch=8,
        judged="cnn-8",
        judged_images=8,
        judged_shape=(1, 8, 8),
    ),
    "gpu": Size(
        name="gpu",
        methods=_every("resnet18", "wide_resnet-34-10", 128),
        pairs=(
            Case(HOST, "resnet18", "wide_resnet-34-10", 128, known=True),
            Case(HOST, "mobilenet_v2", "wide_resnet-34-10", 128, known=True),
            Case("adaad", "mobilenet_v2", "wide_resnet-34-10", 128),
        ),
        price=Case(HOST, "resnet18", "wide_resnet-34-10", 128),
        attacked="resnet18",
        attack_batch=256,
        judged="resnet18",
        judged_images=64,
        judged_shape=(3, 32, 32),
        repeats=15,
        load_images=50_000,
        matmul=8192,
        copy=2**29,
        convolved=512,
    ),
    "tiny": Size(
        name="tiny",
        methods=_every("cnn-1", "cnn-2", 4),
        pairs=(Case(HOST, "cnn-1", "cnn-2", 4, known=True),),
        price=Case(HOST, "cnn-1", "cnn-2", 4),
        attacked="cnn-1",
        attack_batch=4,
        judged="cnn-1",
        judged_images=2,
        judged_shape=(1, 4, 4),
        image_shape=(1, 8, 8),
        attack_steps=2,
        repeats=2,
        load_batch=16,
        load_images=128,
        matmul=32,
        copy=2**12,
        convolved=1,
    ),
}
"""The table. What "tiny" measures means nothing: it shows that a benchmark runs."""


def size_for(name: str, device: torch.device) -> Size:
    """The size of this name; for "auto" the one that suits the device.

    Raises:
        Refused: for an unknown name.
    """
    name = ("gpu" if device.type == "cuda" else "laptop") if name == "auto" else name
    if name not in SIZES:
        raise unknown("size", name, ("auto", *SIZES))
    return SIZES[name]


def checked(specs: Sequence[str], parts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Methods and parts as they were asked for; all parts if none is named.

    Raises:
        Refused: for a name that is none.
    """
    for spec in specs:
        build(spec)
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    return tuple(dict.fromkeys(specs)), tuple(part for part in PARTS if part in parts) if parts else PARTS


CLASSES = 10
EPS = 8 / 255
KNOWN = "+T(x)"
"""Ends the name of a variant that is given T(x)."""


def smooth_images(n: int, shape: tuple[int, int, int], seed: int = 0) -> ImageSet:
    """Images without a meaning, neighbouring pixels alike as in pictures; labels in turn."""
    c, h, w = shape
    coarse = torch.rand(n, c, max(h // 4, 2), max(w // 4, 2), generator=generator("cpu", seed, "bench", "images"))
    x = nn.functional.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)
    y = torch.arange(n) % CLASSES
    return ImageSet(as_levels(x), y, tuple(map(str, range(CLASSES))), "drawn for a benchmark")


class Networks:
    """Networks with random weights, whose BatchNorm has seen images; each is made once.

    Args:
        shape: of the images.
        device: where they are.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._made: dict[tuple[str, str], nn.Module] = {}

    def __call__(self, letter: str, name: str) -> nn.Module:
        """The network of this name that stands for this letter, in eval mode."""
        if (letter, name) not in self._made:
            # What is not asked for again makes room: one teacher at a time.
            self._made = {key: net for key, net in self._made.items() if key[0] != letter}
            seed = sum(map(ord, letter))
            net = network(name, num_classes=CLASSES, image_shape=self.shape, seed=seed).to(self.device)
            norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
            kept = [m.momentum for m in norms]
            for m in norms:
                m.momentum = None  # the mean of what was seen
            x = smooth_images(8, self.shape, seed=1).inputs(device=self.device)
            with torch.no_grad():
                net.train()(x)
            for m, momentum in zip(norms, kept, strict=True):
                m.momentum = momentum
            self._made[letter, name] = net.eval()
        return self._made[letter, name]


@dataclass
class TimedStep:
    """A way to take a step.

    Attributes:
        step: with networks of its own, but for those that are at rest.
        optimizer: at a rate of zero: networks stay as they are, and a step takes as long as any other.
        x, y: the batch.
        known: predictions at x that are given.
    """

    step: Step
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self) -> None:
        """Attack, loss, gradient, update, as training does it."""
        self.optimizer.zero_grad(set_to_none=True)
        descend(self.step, self.x, self.y, 1.0, self.known)
        self.optimizer.step()
        self.step.settle()

    def warm(self) -> None:
        """A step that makes twins and layouts; on a CPU with an attack of one step, in which everything is met."""
        attack = self.step.attack
        if self.x.device.type == "cpu" and isinstance(attack, PGD):
            self.step.attack = replace(attack, steps=1)
        try:
            self()
        finally:
            self.step.attack = attack


def precisions(device: torch.device) -> tuple[str, ...]:
    """What twins can be made in here, the fastest last."""
    return ("fp32", "bf16") if has_bf16(device) else ("fp32",)


def variants_of(case: Case, device: torch.device) -> tuple[str, ...]:
    """Names of the ways to take this step here, the plain one first."""
    known = (precisions(device)[-1] + KNOWN,) if case.known else ()
    return ("plain", *precisions(device), *known)


def variant(
    case: Case, name: str, networks: Networks, size: Size, params: Mapping[str, Any] | None = None
) -> TimedStep:
    """A case in the way of this name."""
    method = build(case.spec, params)
    device = networks.device
    nets = nets_of(method, case, networks)
    if method.memory is not None:
        method.memory.to(device)
    images = smooth_images(case.batch, size.image_shape)
    x, y = images.inputs(device=device), images.y.to(device)
    budget = Budget(EPS)
    attack = method.attack(budget, size.attack_steps, None, method.start)
    how: dict[str, Any] = {}
    if name != "plain":
        for letter in method.forwards:
            lay_out(nets[letter], size.image_shape)
        ascent, _ = ascent_for(method, attack, device)
        how = {"ascent": ascent, "engine": Engine("fast", name.removesuffix(KNOWN))}
    step = Step(method, nets, attack, budget, **how)
    weights = [p for net in step.trained.values() for p in net.parameters()]
    fused = device.type == "cuda" or None  # as training has it
    optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=5e-4, fused=fused)
    known = {}
    if name.endswith(KNOWN):
        with evaluating(nets["T"]), torch.no_grad():
            known["T"] = nets["T"](x)
    return TimedStep(step, optimizer, x, y, known)


def nets_of(method: Method, case: Case, networks: Networks) -> dict[str, nn.Module]:
    """Networks by letter: copies of those that are trained, in train mode, and the others themselves."""
    nets = {}
    for letter in method.nets:
        made = networks(letter, case.teacher if letter in method.teachers else case.student)
        nets[letter] = copy.deepcopy(made) if letter in (*method.forwards, *method.tunes) else made
        if letter in method.forwards:
            nets[letter].train()
    return nets
