"""What is timed: steps of every method on networks that suit the machine, and the pairs that papers report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from mmard.errors import unknown
from mmard.methods import METHODS, build

PARTS = ("data", "attacks", "methods", "pairs", "price")
"""What a benchmark consists of, besides the ceilings; the short ones first, so that time suffices for them."""
SHARES = {"data": 0.02, "attacks": 0.06, "methods": 0.34, "pairs": 0.3, "price": 0.28}
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
