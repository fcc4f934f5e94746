"""Clocks, variants measured in alternation, and an allowance of time that is kept.

On one thread of a CPU the time of the process counts, which what others do on the machine does not stretch. Elsewhere
it is wall-clock time, on a GPU from idle to idle.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

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


class Allowance:
    """So many seconds of wall-clock time, from now on.

    Args:
        seconds: of all.
        now: the clock.
    """

    def __init__(self, seconds: float, now: Clock = time.monotonic) -> None:
        self._now, self._until = now, now() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when they are over."""
        return self._until - self._now()

    def part(self, share: float) -> Allowance:
        """An allowance of a share of what is left."""
        return Allowance(max(self.left, 0.0) * share, self._now)


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and the quarters around it."""

    median: float
    low: float
    high: float
    n: int

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
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    longest = 0.0
    for number in range(repeats):
        if number >= least and longest > allowance.left:
            break
        before = allowance.left
        for name in (list(variants), list(variants)[::-1])[number % 2]:
            began = now()
            variants[name]()
            seconds[name].append(now() - began)
        longest = max(longest, before - allowance.left)
    return seconds


def ratios(reference: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times as fast as the reference the other was, round by round."""
    return [one / max(two, 1e-12) for one, two in zip(reference, other, strict=True)]
