"""A benchmark: everything measured within its time, as one record."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmard.bench.around import attacks, loading
from mmard.bench.ceilings import ceilings
from mmard.bench.records import FORMAT, write
from mmard.bench.sizes import PARTS, RUN_EPOCHS, RUN_IMAGES, RUNS, SHARES, SIZES, Case, Size, checked, size_for
from mmard.bench.steps import Told, price, timed
from mmard.bench.timing import Allowance, clock_for
from mmard.bench.variants import EPS, Networks, variant
from mmard.devices import pick_device
from mmard.environment import environment
from mmard.errors import require

MINUTES = 8.0
QUIET = 0.5
"""Processes of others that are ready to run, on average, from which a machine counts as busy."""
KEPT = 0.9
"""Of the allowance; the rest is for writing and for a round that takes longer than the one before."""


def benchmark(
    size: str = "auto",
    *,
    only: Sequence[str] = (),
    part: Sequence[str] = (),
    minutes: float = MINUTES,
    threads: int = 1,
    device: str = "auto",
    out: str | Path | None = None,
    told: Told | None = None,
) -> dict[str, Any]:
    """Time training steps of every method, the engine beside the plain path, and what else takes time.

    Args:
        size: "laptop", "gpu", "tiny" (seconds, means nothing), or "auto" by device.
        only: methods, plug-ins included; all if none is named.
        part: of "methods", "pairs", "price", "attacks", "data"; all if none is named.
        minutes: repetitions are dropped, and at last whole rows, to keep them. A step that has been begun is ended.
        threads: of the CPU. With one, time of the process is measured, else wall-clock time.
        device: "cpu", "cuda", "cuda:1", or "auto".
        out: a folder for the record and its chart; nothing is written without one.
        told: hears what is being done.

    Returns:
        The record; docs/benchmarks.md says what it holds. "files" are those that were written.

    Raises:
        Refused: for an unknown size, method, part or device.
    """
    where = pick_device(device)
    specs, parts = checked(only, part)
    chosen = size_for(size, where).only(specs, parts)
    require(minutes > 0, "--minutes", expected="more than 0", got=minutes)
    require(threads > 0, "--threads", expected="at least 1", got=threads)
    with _threads(threads):
        record = _measured(chosen, parts, minutes, where, told or _silent)
    return record if out is None else write(record, Path(out))


def _measured(size: Size, parts: Sequence[str], minutes: float, device: torch.device, told: Told) -> dict[str, Any]:
    now, clock = clock_for(device)
    began, worked, load = time.monotonic(), time.process_time(), _load()
    whole = Allowance(60 * minutes * KEPT)
    told("ceilings")
    found = ceilings(device, now, size.matmul, size.copy, size.convolved)
    _woken(device)
    networks = Networks(size.image_shape, device)
    shares = {part: SHARES[part] for part in PARTS if part in parts}
    rows: dict[str, Any] = {"methods": [], "pairs": [], "price": None, "attacks": [], "data": []}
    notes: list[str] = []
    for part in shares:
        to_come = [own for name, own in shares.items() if PARTS.index(name) >= PARTS.index(part)]
        own = whole.part(shares[part] / sum(to_come))
        if part in ("methods", "pairs"):
            cases: Sequence[Case] = getattr(size, part)
            rows[part], more = timed(cases, size, networks, now, own, found, told, whole)
            notes += more
        elif whole.left <= 0:
            notes.append(f"no time for {part}: give more --minutes, or narrow by --part")
        elif part == "price":
            rows[part], more = price(size, networks, now, own, told)
            notes += more
        elif part == "attacks":
            rows[part] = attacks(size, networks, now, own, told, quick=size.name == "tiny")
        else:
            rows[part] = loading(size, device, now, own, told)
    spent = time.monotonic() - began
    machine = {
        "load_before": load,
        "load_after": _load(),
        "cores": os.cpu_count(),
        "process_share": (time.process_time() - worked) / spent,
    }
    notes = [*_busy(machine, device), *_few(rows, size), *notes]
    return {
        "kind": "bench",
        "format": FORMAT,
        "size": {
            "name": size.name,
            "image_shape": list(size.image_shape),
            "attack_steps": size.attack_steps,
            "eps": EPS,
            "repeats": size.repeats,
            "minutes": minutes,
        },
        "device": _device_name(device),
        "clock": clock,
        "seconds": round(spent, 1),
        "machine": machine,
        "ceilings": found,
        **rows,
        "hours": hours(rows),
        "notes": notes,
        "environment": environment(),
    }


def _woken(device: torch.device) -> None:
    """Libraries that PyTorch loads when it first trains are not to count as a step's memory."""
    small = SIZES["tiny"]
    variant(small.price, "fp32", Networks(small.image_shape, device), small)()


def hours(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hours of the runs that papers make, by step time alone: no validation, no evaluation.

    Taken from the price, whose networks are those of such a run, or else from the first pair of the method.
    """
    found = []
    for spec in RUNS:
        speeds = {}
        price = rows["price"]
        if price is not None:
            for row in price["rows"]:
                if row["method"] == spec and (spec == price["host"] or "default" in row["form"]):
                    speeds[price["precision"]] = (row["images_per_second"], price["networks"], price["batch"])
        for row in rows["pairs"]:
            if row["method"] == spec:
                for name, own in row["variants"].items():
                    speeds.setdefault(name, (own["images_per_second"], row["networks"], row["batch"]))
                break
        for name, (speed, networks, batch) in speeds.items():
            length = RUN_EPOCHS * RUN_IMAGES / speed / 3600
            found.append({"method": spec, "variant": name, "networks": networks, "batch": batch, "hours": length})
    return found


def _few(rows: Mapping[str, Any], size: Size) -> list[str]:
    """A line where time did not suffice for all repetitions."""
    counts = [
        own["step_seconds"]["n"] for part in ("methods", "pairs") for r in rows[part] for own in r["variants"].values()
    ]
    counts += [r["step_seconds"]["n"] for r in rows["price"]["rows"]] if rows["price"] is not None else []
    if not counts or min(counts) == size.repeats:
        return []
    return [f"time sufficed for {min(counts)} to {max(counts)} repetitions of a step, where {size.repeats} were wanted"]


def _busy(machine: Mapping[str, Any], device: torch.device) -> list[str]:
    """A line on a machine that others used meanwhile."""
    before, share = machine["load_before"], machine["process_share"]
    busy = before is not None and before > QUIET
    waited = device.type == "cpu" and share < 0.9
    if not busy and not waited:
        return []
    load = "" if before is None else f"load {before:.1f} on {machine['cores']} cores before it began, "
    return [f"the machine was busy: {load}{share:.0%} of one core was had; ratios hold better than times"]


def _load() -> float | None:
    """Processes that were ready to run, on average over the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _silent(_: str) -> None:
    pass
