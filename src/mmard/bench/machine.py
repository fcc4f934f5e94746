"""Clocks, variants measured in alternation, and an allowance of time that is kept.

On one thread of a CPU the time of the process counts, which what others do on the machine does not stretch. Elsewhere
it is wall-clock time, on a GPU from idle to idle.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mmard.engine.twin import has_bf16
from mmard.seeds import generator

Clock = Callable[[], float]
WARM_UPS = {"cpu": 1, "cuda": 3}
"""Steps of each variant that are not timed, by kind of device; on a GPU graphs are recorded in these."""


def clock_for(device: torch.device) -> tuple[Clock, str]:
    """The clock that counts on this device, and its name."""
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised, "wall-clock time, device synchronised"
    threads = torch.get_num_threads()
    if threads == 1:
        return time.process_time, "time of the process, one thread"
    return time.perf_counter, f"wall-clock time, {threads} threads"


class OutOfTime(Exception):
    """The time that was promised is over."""


class Allowance:
    """So many seconds of wall-clock time, from now on, and an end that all parts of it share.

    Args:
        seconds: of all.
        now: the clock.
        end: on that clock, when whatever is at work is given up (`hold`).
    """

    def __init__(self, seconds: float, now: Clock = time.monotonic, end: float = math.inf) -> None:
        self._now, self._until, self._end = now, now() + seconds, end

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when they are over."""
        return self._until - self._now()

    def part(self, share: float) -> Allowance:
        """An allowance of a share of what is left."""
        return Allowance(max(self.left, 0.0) * share, self._now, self._end)

    def hold(self) -> None:
        """Called between two steps.

        Raises:
            OutOfTime: after the end.
        """
        if self._now() > self._end:
            raise OutOfTime


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and the quarters around it."""

    median: float
    low: float
    high: float
    n: int

    ROUNDS: ClassVar[int] = 3
    """Numbers below which their quartiles mean nothing."""

    @property
    def known(self) -> bool:
        """Whether there are enough numbers for quartiles."""
        return self.n >= self.ROUNDS

    @property
    def noise(self) -> bool:
        """Of a ratio: whether its quartiles lie on both sides of 1."""
        return self.known and self.low < 1 < self.high

    def __str__(self) -> str:
        """A ratio as a table shows it.

        >>> print(Spread(1.8, 1.75, 1.82, 5), "|", Spread(1.02, 0.97, 1.06, 5), "|", Spread(1.8, 1.8, 1.8, 1))
        1.80 [1.75, 1.82] | 1.02 [0.97, 1.06], noise | 1.80
        """
        quartiles = f" [{self.low:.2f}, {self.high:.2f}]" if self.known else ""
        return f"{self.median:.2f}{quartiles}{', noise' if self.noise else ''}"

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles.

        >>> Spread.of([1, 2, 3, 4, 5])
        Spread(median=3, low=2.0, high=4.0, n=5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high, len(values))

    def as_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def alternate(
    variants: Mapping[str, Callable[[], object]], now: Clock, *, repeats: int, allowance: Allowance, least: int = 1
) -> dict[str, list[float]]:
    """Seconds of each variant in every round, all of them in turn, forward and backward.

    Args:
        variants: what to call, by name, already warm.
        now: the clock.
        repeats: rounds at most.
        allowance: a round is begun while it is expected to end in time.
        least: but so many are made at least.

    Raises:
        OutOfTime: where the allowance ends before one round is whole; a later round that is not is dropped.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    longest = 0.0
    for number in range(repeats):
        if number >= least and longest > allowance.left:
            break
        before, taken = allowance.left, dict[str, float]()
        try:
            for name in (list(variants), list(variants)[::-1])[number % 2]:
                allowance.hold()
                began = now()
                variants[name]()
                taken[name] = now() - began
        except OutOfTime:
            if number == 0:
                raise
            break
        for name, each in taken.items():
            seconds[name].append(each)
        longest = max(longest, before - allowance.left)
    return seconds


def ratios(reference: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times as fast as the reference the other was, round by round."""
    return [one / max(two, 1e-12) for one, two in zip(reference, other, strict=True)]


TRIES = 7
CHANNELS, SIDE = 640, 8
"""Of the convolution, 3 x 3: the last stage of a WideResNet-34-10."""


def ceilings(device: torch.device, now: Clock, side: int, floats: int, batch: int) -> dict[str, float]:
    """Operations a second of a matrix product ("fp32", "bf16" where hardware has it) and of a convolution ("conv_fp32",
    "conv_bf16"), which libraries do not always serve alike; bytes a second of a "copy". The best of some tries.

    A GPU has "tf32" as well, which is what its convolutions of float32 take unless told otherwise. A copy reads and
    writes, so each byte counts twice.

    Args:
        side: of square matrices.
        floats: that are copied.
        batch: images of the convolution.
    """
    draw = generator(device, 0, "ceilings")
    a, b = (torch.rand(side, side, generator=draw, device=device) for _ in range(2))
    x = torch.rand(batch, CHANNELS, SIDE, SIDE, generator=draw, device=device)
    w = torch.rand(CHANNELS, CHANNELS, 3, 3, generator=draw, device=device)
    product, convolution = 2 * side**3, 2 * 9 * CHANNELS**2 * batch * SIDE**2
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "fp32" or has_bf16(device):
            found[name] = product / _best(_product(a.to(dtype), b.to(dtype)), now)
            found[f"conv_{name}"] = convolution / _best(_convolution(x.to(dtype), w.to(dtype)), now)
    if device.type == "cuda":
        kept = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32"] = product / _best(_product(a, b), now)
        torch.backends.cuda.matmul.allow_tf32 = kept
    source = torch.rand(floats, generator=draw, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / _best(lambda: target.copy_(source), now)
    return found


def ceiling_of(found: dict[str, float], precision: str, device: torch.device) -> float:
    """What a step in this precision is held against: the faster of the matrix product and the convolution."""
    names = [precision, f"conv_{precision}"]
    if precision == "fp32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        names.append("tf32")
    return max(found[name] for name in names if name in found)


def _product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b


def _convolution(x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, w, padding=1)


def _best(run: Callable[[], object], now: Clock) -> float:
    run()
    least = float("inf")
    for _ in range(TRIES):
        began = now()
        run()
        least = min(least, now() - began)
    return max(least, 1e-9)


_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Counter(TorchDispatchMode):
    """Adds up what operators compute, read and write.

    Bytes are those of each tensor that goes in and each that comes out, views left out. Caches keep some of it from
    memory, so this is what is asked of memory and caches together. (PyTorch's own `FlopCounterMode` has the formulas
    of the operations, but its hooks stand in the way of gradients by the input.)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.bytes += sum(_bytes(t) for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        return out


def _bytes(tensor: Tensor) -> int:
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def counted(run: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations of convolutions and matrix products (a multiplication and its addition are two), and
    bytes that all operators read and wrote, in one call.

    >>> a = torch.ones(2, 3)
    >>> counted(lambda: a @ a.T)
    (24, 64)
    """
    with Counter() as seen:
        run()
    return seen.operations, seen.bytes


class Peak:
    """The most memory that is taken between its start and `bytes`, beyond what was taken at the start.

    On a GPU it is what PyTorch holds. On Linux it is the process's memory in RAM, which is only about right: the
    allocator gives back late what is free. Elsewhere it is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
        else:
            self._before = _fresh_peak()

    @property
    def bytes(self) -> int | None:
        """So far; None where it is not known."""
        if self._before is None:
            return None
        now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")
        return None if now is None else max(now - self._before, 0)


def _fresh_peak() -> int | None:
    """Let the kernel forget the largest size so far, and say the present one."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(line: str) -> int | None:
    try:
        for each in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if each.startswith(line):
                return int(each.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
