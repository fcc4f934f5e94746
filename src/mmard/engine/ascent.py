"""The attack of a step as a function of a batch: what chunks slice, and what graphs record and play back.

All that is random in a climb is its first iterate, which is drawn for the whole batch beforehand. From there on nothing
but tensors decides, so however a climb is run, it climbs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from mmard.attacks import Objective, TrainingAttack
from mmard.balls import Budget
from mmard.batch import Batch, Net, Point
from mmard.method import Inner, Method


class Climbing(Protocol):
    """An attack that draws its first iterate in one act and climbs from it in another, as PGD does."""

    def begin(self, x: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
        """The first iterate (B, ...)."""

    def climb(
        self,
        model: nn.Module,
        objective: Objective,
        x: Tensor,
        first: Tensor,
        budget: Budget,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """x_adv (B, ...), a function of these tensors alone."""


def climbs(attack: object) -> TypeGuard[Climbing]:
    """Whether an attack can be begun and climbed in two acts."""
    return hasattr(attack, "begin") and hasattr(attack, "climb")


@dataclass(frozen=True)
class Climber:
    """One method's attack, called with a batch and a first iterate.

    Args:
        inner: the objective.
        attack: how it is climbed.
        budget: where x_adv may be.
    """

    inner: Inner
    attack: Climbing
    budget: Budget

    def __call__(self, batch: Batch, first: Tensor) -> Batch:
        """The batch with its x_adv; `batch.trace` and `batch.notes` are filled in place."""
        objective = objective_of(self.inner, batch)
        x_adv = self.attack.climb(batch.S.module, objective, batch.x.value, first, self.budget, batch.trace)
        return replace(batch, x_adv=Point("x_adv", x_adv))


def attacked_at_once(
    inner: Inner, attack: TrainingAttack, budget: Budget, batch: Batch, generator: torch.Generator | None
) -> Batch:
    """The batch with its x_adv, from an attack that is one act."""
    objective = objective_of(inner, batch)
    x_adv = attack(batch.S.module, objective, batch.x.value, budget, generator=generator, trace=batch.trace)
    return replace(batch, x_adv=Point("x_adv", x_adv))


def objective_of(inner: Inner, batch: Batch) -> Objective:
    """An inner formula over a batch as an attack climbs it: each question is one iterate further."""
    asked = 0

    def objective(logits: Tensor, x_adv: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return inner(batch.at(x_adv, logits, asked - 1))

    return objective


class Ascent(Protocol):
    """How a climb is run: (climber, batch, first iterate) -> the batch with x_adv, trace, notes and predictions."""

    def __call__(self, climber: Climber, batch: Batch, first: Tensor, /) -> Batch: ...


def plain(climber: Climber, batch: Batch, first: Tensor) -> Batch:
    """The whole batch at once, step by step: the reference that every other way is tested against."""
    return climber(batch, first)


def split(n: int, parts: int) -> list[slice]:
    """n rows in so many slices, of lengths that differ by one at most.

    >>> split(10, 3)
    [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
    """
    whole, rest = divmod(n, parts)
    ends = [whole * (i + 1) + min(i + 1, rest) for i in range(parts)]
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def even(n: int, size: int) -> list[slice]:
    """n rows in the fewest slices of at most `size`.

    They are as even as can be, so that none is a remainder of a single row, for which kernels round otherwise than for
    more.
    """
    return split(n, -(-n // size))


def cut(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch that has not been attacked, as a batch of its own, with what is known of them."""
    known = known_at_x(batch)
    return like(
        batch,
        batch.x.value[rows],
        batch.y[rows],
        {letter: logits[rows] for letter, logits in known.items()},
        batch.weight[rows] if isinstance(batch.weight, Tensor) else batch.weight,
    )


def like(batch: Batch, x: Tensor, y: Tensor, known: dict[str, Tensor], weight: Tensor | float = 1.0) -> Batch:
    """A batch of other images under the same networks, about which nothing is known but these predictions at x."""
    nets = {letter: Net(net.module, net.sealed) for letter, net in batch.nets.items()}
    made = replace(batch, x=Point("x", x), x_adv=None, y=y, nets=nets, trace=[], notes={}, weight=weight)
    for letter, logits in known.items():
        nets[letter].put(made.x, logits)
    return made


def known_at_x(batch: Batch) -> dict[str, Tensor]:
    """The constant predictions at x that have been made or were given, by letter of the network."""
    known = {letter: net.known(batch.x) for letter, net in batch.nets.items()}
    return {letter: logits for letter, logits in known.items() if logits is not None}


def joined(batch: Batch, parts: Sequence[Batch]) -> Batch:
    """The batch, attacked, from its slices that were: x_adv, trace, notes and predictions at x."""
    learn(batch, {letter: torch.cat([known_at_x(p)[letter] for p in parts]) for letter in known_at_x(parts[0])})
    batch.trace[:] = [torch.cat(logits) for logits in zip(*(p.trace for p in parts), strict=True)]
    batch.notes.update(
        {name: _together([p.notes[name] for p in parts], [len(p.y) for p in parts]) for name in parts[0].notes}
    )
    return replace(batch, x_adv=Point("x_adv", torch.cat([p.adv.value for p in parts])))


def learn(batch: Batch, known: dict[str, Tensor]) -> None:
    """Let a batch know predictions at x that were made in its name, where it has none yet."""
    for letter, logits in known.items():
        if batch.nets[letter].known(batch.x) is None:
            batch.nets[letter].put(batch.x, logits)


def _together(values: list[Any], lengths: list[int]) -> Any:
    """One note of a whole batch from those of its slices: what has a row per sample in each is put end to end."""
    if all(isinstance(v, Tensor) and v.ndim and len(v) == n for v, n in zip(values, lengths, strict=True)):
        return torch.cat(values)
    if all(isinstance(v, tuple) for v in values):
        return tuple(_together(list(parts), lengths) for parts in zip(*values, strict=True))
    return values[0]


def every_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with each tensor in it changed, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: every_tensor(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([every_tensor(each, change) for each in value])
    return value


WORDS = ("out of memory", "can't allocate memory", "not enough memory")
"""By which a RuntimeError is known for one of memory, where PyTorch has no class for it."""


def unobserved(text: str) -> None:
    """Where nobody listens."""


class Chunks:
    """An ascent in slices of at most `size` images: less memory, the same x_adv.

    An attack in eval mode treats each image alone, and its start is drawn for the whole batch before it is cut. What
    can differ is the last bit of a float, where a kernel rounds otherwise for another batch size. When memory runs out,
    the slices are halved and the attack is made again.

    Args:
        size: images in a slice; 0 for the whole batch, until memory runs out.
        ascend: how one slice is climbed.

    Attributes:
        size: as it is by now; a run's state keeps it, so that a resumed run rounds as the uninterrupted one.
        tell: told once, in words, when the size had to change.
    """

    def __init__(self, size: int = 0, ascend: Ascent = plain) -> None:
        self.size, self.ascend = size, ascend
        self.tell: Callable[[str], None] = unobserved

    def listen(self, tell: Callable[[str], None]) -> None:
        """Tell this from now on, and have what climbs the slices tell it too."""
        self.tell = tell
        listen = getattr(self.ascend, "listen", None)
        if listen is not None:
            listen(tell)

    def __call__(self, climber: Climber, batch: Batch, first: Tensor) -> Batch:
        """The batch with x_adv, trace, notes and predictions.

        Raises:
            RuntimeError: torch's own, when memory runs out for a single image.
        """
        n = len(batch.y)
        while True:
            size = min(self.size or n, n)
            try:
                return self._in_slices(climber, batch, first, size)
            except RuntimeError as error:
                if size == 1 or not out_of_memory(error):
                    raise
            # Only here: inside the except block the traceback still holds what the attack had allocated.
            self.size = -(-size // 2)
            if batch.x.value.is_cuda:
                torch.cuda.empty_cache()
            self.tell(
                f"out of memory in an attack on {size} images: from here on it attacks {self.size} at a time; "
                f"--attack-chunk {self.size} starts so"
            )

    def _in_slices(self, climber: Climber, batch: Batch, first: Tensor, size: int) -> Batch:
        rows = even(len(batch.y), size)
        return joined(batch, [self.ascend(climber, cut(batch, each), first[each]) for each in rows])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def why_whole(method: Method) -> str:
    """Why the attack of a method cannot be cut, in words; empty if it can."""
    if method.inner is None:
        return "this method makes no adversarial examples"
    if method.attack_mode == "train":
        return "it attacks in train mode, where BatchNorm ties the images of a batch together"
    if method.inner_couples:
        return "its attack climbs an objective that ties the images of a batch together"
    return ""


class Compiled(nn.Module):
    """A network whose calls are compiled by `torch.compile`, for every shape of batch anew.

    Whether that is possible is settled when it is tried: code of the user's own, a missing C++ compiler and a backend's
    faults all end in the plain forward, and the reason is told once.

    Args:
        module: the network; its weights and buffers are used in place.
        backend: as `torch.compile` takes it.

    Attributes:
        failed: why it is called as it is, in words; empty as long as it is compiled.
        tell: told `failed` when it happens.
    """

    def __init__(self, module: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        self.module, self.failed = module, ""
        self.tell: Callable[[str], None] = unobserved
        self._held: tuple[Any] = (torch.compile(module, backend=backend, dynamic=False),)  # no submodule of this one
        self._proven: set[Any] = set()

    def listen(self, tell: Callable[[str], None]) -> None:
        """Tell this from now on."""
        self.tell = tell

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        if self.failed:
            return self.module(x)
        kind = (x.shape, x.dtype, [m.training for m in self.module.modules()].count(True))
        if kind in self._proven:
            return self._held[0](x)
        try:
            logits = self._tried(x)
        except Exception as error:
            if out_of_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.failed = f"the update is not compiled: {lines[0] if lines else type(error).__name__}"
            self.tell(self.failed)
            return self.module(x)
        self._proven.add(kind)
        return logits

    def _tried(self, x: Tensor) -> Tensor:
        """The first call of a kind. One that fails half-way must not have moved running statistics."""
        before = {name: value.clone() for name, value in self.module.named_buffers()}
        try:
            return self._held[0](x)
        except Exception:
            with torch.no_grad():
                for name, value in self.module.named_buffers():
                    value.copy_(before[name])
            raise
