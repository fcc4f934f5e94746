"""Tiny networks, batches and attacks that the tests share. In float64, so that a difference is a difference."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmard import methods
from mmard.attacks import PGD
from mmard.balls import Budget
from mmard.batch import Batch, Net, Point, line
from mmard.errors import Refused
from mmard.method import Method
from mmard.methods import METHODS, PLUGINS
from mmard.training.step import Step

CLASSES = 3
SHAPE = (2, 3, 3)
BUDGET = Budget(8 / 255)
ATTACK = PGD(steps=3, step_size=2 / 255, start="gaussian")
PLUGGED = ("", *(f"+{name}" for name in PLUGINS))
PAIRS = tuple(f"+{one}+{other}" for one, other in permutations(PLUGINS, 2))
PAIRED = ("rslad", "mtard")
"""Hosts on which every pair of plug-ins is tried, in both orders: one without a memory, one that has a memory, couples
its batch and reads two teachers."""
SLOPE = 0.7
"""What `Spy` says of every gradient by the input."""
LETTERS = ("S", "T", "T_nat", "P", "T_tuned", "S_ema")
POINTS = ("x", "x_adv", "x_mirror")
NONE = ("natural", "kd")
"""Methods that make no adversarial examples."""
COUPLED_HOSTS = ("mtard", "b_mtard", "ciard", "saad")
"""Methods whose own terms depend on the other samples of the batch."""


def build(spec: str, params: Mapping[str, Any] | None = None) -> Method:
    """`methods.build` with MMARD's weights fixed and its teacher exact where nothing else is said.

    What is tested here are the formulas; the defaults are chosen by measurement and may change.
    """
    exact = {"mmard.guide": 0.3, "mmard.own": 0.0, "mmard.drift": "kl", "mmard.teacher_every": 1, "mmard.beta": 1.0}
    plain = exact if "mmard" in spec.split("+") else {}
    made = methods.build(spec, {**plain, **(params or {})})
    if made.memory is not None:
        made.memory.double()
    return made


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> Tensor:
    """Away from the faces of the box by more than any budget used here."""
    return 0.1 + 0.8 * torch.rand(n, *shape, generator=generator(seed), dtype=dtype)


def labels(n: int, seed: int = 0, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (n,), generator=generator(1000 + seed))


def linear(shape: tuple[int, ...], classes: int = 2, seed: int = 0) -> nn.Sequential:
    """Logits that are linear in the input; weights of both signs, none near zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes)).double()
    draw = 2 * torch.rand(model[1].weight.shape, generator=generator(seed), dtype=torch.float64) - 1
    model[1].weight.data = draw + 0.2 * draw.sign()
    model[1].bias.data = torch.zeros(classes, dtype=torch.float64)
    return model


def conv(seed: int = 0, width: int = 4, batch_norm: bool = True, classes: int = CLASSES) -> nn.Sequential:
    """A smooth network on `SHAPE` with lively weights, in train mode, with a BatchNorm that has seen something.

    A copy of one that is made once: seeding all of PyTorch's generators costs more than most of what is asked of it.
    """
    return copy.deepcopy(_conv(seed, width, batch_norm, classes))


@cache
def _conv(seed: int, width: int, batch_norm: bool, classes: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(SHAPE[0], width, 3, padding=1),
            nn.BatchNorm2d(width) if batch_norm else nn.Identity(),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(width * SHAPE[1] * SHAPE[2], classes),
        ).double()
        for weight in model.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
        if batch_norm:
            model[1].running_mean.normal_(0, 0.2)
            model[1].running_var.uniform_(0.5, 1.5)
    with torch.no_grad():  # no class wins everywhere, so that boundaries pass between the images
        model[4].bias -= model.eval()(images(32, seed=77)).mean(0)
    return model.train()


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Spy(Net):
    """A network of a formula that knows by heart what it is going to be asked, and keeps a list of it."""

    def __init__(self, letter: str) -> None:
        super().__init__(nn.Identity(), sealed="the test gave no such prediction")
        self.letter, self.read = letter, set[str]()

    def __call__(self, point: Point) -> Tensor:
        self.read.add(point.name)
        return super().__call__(point)

    def slope(self, point: Point, pick: Any) -> tuple[Tensor, Tensor]:
        """A gradient that is the same everywhere, so that a formula with slopes can be written down too."""
        return pick(self(point)), torch.full_like(point.value, SLOPE)


Logits = dict[str, Tensor]
"""Predictions by network and point, e.g. "S.x_adv" -> (B, C)."""


def logits(n: int = 5, seed: int = 0, classes: int = CLASSES, spread: float = 1.5) -> Logits:
    """Random predictions of all networks at all points; those of networks that are trained ask for gradient."""
    g = generator(seed)
    return {
        f"{letter}.{point}": (spread * torch.randn(n, classes, generator=g, dtype=torch.float64)).requires_grad_(
            letter in ("S", "P", "T_tuned")
        )
        for letter, points in (*((letter, POINTS) for letter in LETTERS), ("S", (line(2),)))
        for point in points
    }


def batch_of(views: Mapping[str, Tensor], y: Tensor, progress: float = 1.0) -> Batch:
    """A batch in which every prediction is given, so that a formula is a function of logits.

    The attack's trace is the student's predictions at x and at x'.
    """
    x = torch.zeros(len(y), 1, dtype=torch.float64)
    nets = {letter: Spy(letter) for letter in LETTERS}
    batch = Batch(Point("x", x), Point("x_adv", x + 0.1), y, nets, progress)
    batch.trace.extend(views[name].detach() for name in ("S.x", "S.x_adv"))
    for name, value in views.items():
        letter, point = name.split(".")
        nets[letter].put(batch.point(point), value)
    return batch


def loss_of(method: Method, views: Logits, y: Tensor, progress: float = 1.0) -> Tensor:
    terms = method.outer(batch_of(views, y, progress))
    return torch.stack([term.mean() for term in terms.values()]).sum()


def gradients(value: Tensor, views: Logits, letter: str = "S") -> Logits:
    wanted = {k: v for k, v in views.items() if k.startswith(letter) and v.requires_grad}
    found = torch.autograd.grad(value, list(wanted.values()), retain_graph=True, allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(wanted.items(), found, strict=True)}


def target_first(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) by torch's own function, (B,)."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="none", log_target=True).sum(1)


def warm(spec: str, params: Mapping[str, Any] | None = None) -> Method:
    """A method that remembers something: it has seen a batch, the end of an epoch, and a batch."""
    method = build(spec, params)
    method.outer(batch_of(logits(9, seed=50), labels(9, seed=50)))
    method.epoch_end()
    method.outer(batch_of(logits(9, seed=51), labels(9, seed=51)))
    return method


def trained(method: Method) -> list[str]:
    """The predictions that carry gradient to weights, as `Logits` name them."""
    own = [f"{letter}.{point}" for letter, points in method.forwards.items() for point in points]
    return own + [f"{letter}_tuned.{point}" for letter, tuning in method.tunes.items() for point in tuning.points]


def read(batch: Batch, letter: str) -> set[str]:
    net = batch.nets[letter]
    assert isinstance(net, Spy)
    return net.read


def specs() -> Iterator[str]:
    """Every method with every plug-in, and pairs of plug-ins in both orders on some, as far as they go together."""
    for host in METHODS:
        for plugins in PLUGGED + (PAIRS if host in PAIRED else ()):
            try:
                build(host + plugins)
            except Refused:
                continue
            yield host + plugins


SPECS = tuple(specs())

Params = dict[str, Any]
VARIANTS: tuple[tuple[str, Params], ...] = (
    ("kd", {"kd.alpha": 0.4}),
    ("ard", {"ard.alpha": 0.6}),
    ("ard", {"ard.scale": 0.1, "ard.tau": 1.0}),
    ("iad_i", {"iad_i.alpha": 0.7, "iad_i.tau": 2.0}),
    ("iad_i", {"iad_i.weigh_teacher": False}),
    ("adaad", {"adaad.alpha": 0.5, "adaad.scale": 0.1}),
    ("adaiad", {"adaiad.weigh_teacher": True, "adaiad.tau": 3.0}),
    ("akd2", {"akd2.scale": 0.1, "akd2.tau": 1.0}),
    ("iad_ii", {"iad_ii.scale": 0.1, "iad_ii.tau": 2.0}),
    ("mtard", {"mtard.scale": 0.1, "mtard.cool_at": ""}),
    ("b_mtard", {"b_mtard.scale": 0.1, "b_mtard.tau_adv": 2.0, "b_mtard.tau_nat": 3.0}),
    ("absld", {"absld.scale": 0.1, "absld.alpha": 0.5}),
    ("peeraid", {"peeraid.label": 0.5, "peeraid.own": 0.0, "peeraid.scale": 0.1}),
    ("dgad", {"dgad.alpha": 0.5, "dgad.mu": 0.0, "dgad.scale": 0.1}),
    ("ciard", {"ciard.bounded": False, "ciard.balanced": True, "ciard.scale": 0.1}),
    ("ciard", {"ciard.push": 0.0, "ciard.lr_teacher": 0.0}),
    ("saad", {"saad.beta": 0.5, "saad.alpha": 0.0, "saad.order": 2.0, "saad.scale": 0.1}),
    ("saad", {"saad.beta": 0.5, "saad.lam": 0.5, "saad.quiet_mirror": False}),
    ("ard+fair", {"fair.beta": 1.0}),
    ("rslad+mmard", {"mmard.measure": "mi"}),
    ("rslad+mmard", {"mmard.measure": "match"}),
    ("rslad+mmard", {"mmard.measure": "kl"}),
    ("rslad+mmard", {"mmard.teacher_every": 2, "mmard.bounded": True, "mmard.ramp": 0.5}),
    ("rslad+mmard", {"mmard.drift": "ce", "mmard.teacher_every": 0, "mmard.edges": "nr,rq", "mmard.own": 2.0}),
    ("adaad+mmard", {"mmard.drift": "ce", "mmard.teacher_every": 3, "mmard.edges": "nq"}),
    ("rslad+mmard", {"mmard.edges": "nr,nq,rc"}),
    ("rslad+mmard", {"mmard.edges": "nr,nq,rq"}),
    ("rslad+mmard", {"mmard.measure": "match", "mmard.edges": "nr,rc"}),
    ("rslad+mmard", {"mmard.measure": "match", "mmard.edges": "rn"}),
    ("ard+mmard", {"mmard.guide": 0.0}),
    ("trades+mmard", {"mmard.beta": 0.0}),
    ("rslad+mmard", {"mmard.attack": "label", "mmard.guide": 0.0, "mmard.own": 0.0, "mmard.label": 0.3}),
    ("rslad+temperature", {"temperature.tau": 0.5}),
    ("saad+temperature", {"temperature.tau": 0.5}),
    ("lbgat", {"lbgat.beta": 0.0}),
    ("hat", {"hat.beta": 1.0, "hat.gamma": 1.0}),
    ("fgsm_rs", {"fgsm_rs.length": 1.0}),
    ("trades+adr", {"adr.trust_start": 0.3, "adr.trust_end": 0.3, "adr.tau_end": 1.0}),
    ("pgd_at+adr+fair", {"fair.beta": 1.0}),
    ("pgd_at+adr+mmard", {"mmard.label": 0.3}),
    ("adaad+temperature+mmard", {"temperature.tau": 0.5, "mmard.label": 0.3, "mmard.teacher_every": 2}),
)
"""What the defaults leave out: every branch of every formula is in `SPECS` or here."""

CASES: tuple[tuple[str, Params], ...] = (*((spec, {}) for spec in SPECS), *VARIANTS)


def some_of(cases: tuple[tuple[str, Params], ...]) -> tuple[tuple[str, Params], ...]:
    """All methods, and plug-ins on two of them, for what does not look into formulas."""
    return tuple(case for case in cases if "+" not in case[0] or case[0].split("+")[0] in ("rslad", "adaad"))


def case_id(case: tuple[str, Params]) -> str:
    spec, params = case
    return spec + "".join(f",{name.split('.')[-1]}={value}" for name, value in params.items())


def jitter(x: Tensor, eps: float) -> Tensor:
    """Noise in [-eps, eps] that is a function of each number alone: no sample's start depends on its neighbours."""
    return eps * torch.sin(1e4 * x)


class Jittered:
    """PGD whose start is `jitter`: away from x, and the same for a sample wherever it stands in a batch."""

    def __init__(self, steps: int = 2, step_size: float = 3 / 255) -> None:
        self.steps, self.step_size = steps, step_size

    def __call__(
        self, model: nn.Module, objective: Any, x: Tensor, budget: Budget, *, trace: list[Tensor], **_: Any
    ) -> Tensor:
        x_adv = budget.project(x + jitter(x, budget.eps), x)
        for _step in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            said = model(x_adv)
            trace.append(said.detach())
            (gradient,) = torch.autograd.grad(objective(said, x_adv).sum(), x_adv)
            x_adv = budget.project(x_adv.detach() + self.step_size * budget.steepest(gradient), x)
        return x_adv.detach()


def step_of(
    method: Method | str, student: nn.Module, teacher: nn.Module | None = None, attack: Any = ATTACK, **settings: Any
) -> Step:
    """A step with the teachers in eval mode and the peer in train mode, as a user would set it up."""
    if isinstance(method, str):
        method = build(method)
    teacher = conv(seed=99, width=5).eval() if teacher is None else teacher
    nets = {
        "S": student,
        "T": teacher,
        "T_nat": conv(seed=98, width=3).eval(),
        "P": conv(seed=97, batch_norm=bool(buffers(student))),
    }
    return Step(method, nets, attack, BUDGET, **settings)
