"""A benchmark: everything measured within its time, as one record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmard.attacks import read_attack
from mmard.attacks.apgd import APGD
from mmard.attacks.autoattack import shortened, standard
from mmard.balls import Budget
from mmard.bench.machine import (
    WARM_UPS,
    Allowance,
    Clock,
    OutOfTime,
    Peak,
    Spread,
    alternate,
    ceiling_of,
    ceilings,
    clock_for,
    counted,
    ratios,
)
from mmard.bench.records import FORMAT, write
from mmard.bench.variants import (
    EPS,
    GUEST,
    KNOWN,
    PARTS,
    PRICES,
    RUN_EPOCHS,
    RUN_IMAGES,
    RUNS,
    SHARES,
    SIZES,
    Case,
    Networks,
    Size,
    TimedStep,
    checked,
    precisions,
    size_for,
    smooth_images,
    variant,
    variants_of,
)
from mmard.data import ImageSet
from mmard.data.augment import augmentation
from mmard.data.batches import SetBatches
from mmard.engine.twin import Engine, Twins
from mmard.errors import require
from mmard.evaluation.evaluate import Protocol
from mmard.evaluation.evaluate import measure as measured
from mmard.methods import parameters
from mmard.modes import evaluating, frozen
from mmard.networks import pick_device
from mmard.run import environment
from mmard.seeds import generator

Row = dict[str, Any]
Progress = Callable[[str], None]


class NoRoom(Exception):
    """Memory did not suffice."""


def timed(
    cases: Sequence[Case],
    size: Size,
    networks: Networks,
    now: Clock,
    allowance: Allowance,
    found: Mapping[str, float],
    progress: Progress,
) -> tuple[list[Row], list[str]]:
    """A row for each case, and a line on each that was left out.

    Each case gets an even share of the time that is left, so none is repeated at another's cost. One that has been
    begun is measured once, or given up when the allowance ends.

    Args:
        found: ceilings, as `ceilings` measures them.
        progress: hears what is being done.
    """
    rows, notes = [], []
    for number, case in enumerate(cases):
        progress(f"{case.spec}, {case.networks}")
        try:
            own = allowance.part(1 / (len(cases) - number))
            rows.append(_step_row(case, size, networks, now, own, dict(found)))
        except OutOfTime:
            late = [each.spec for each in cases[number:]]
            notes.append(f"no time for {', '.join(late)}: give more --minutes, or narrow by --only")
            break
        except NoRoom:
            notes.append(f"{case.spec}, {case.networks}, batch {case.batch}: out of memory")
    return rows, notes


def _step_row(
    case: Case, size: Size, networks: Networks, now: Clock, allowance: Allowance, found: dict[str, float]
) -> Row:
    device = networks.device
    made: dict[str, TimedStep] = {}
    peaks: dict[str, int | None] = {}
    operations = moved = 0
    for name in variants_of(case, device):
        allowance.hold()
        peak = Peak(device)
        made[name] = _within_memory(lambda name=name: variant(case, name, networks, size))  # type: ignore[misc]
        if name == "plain":
            operations, moved = _within_memory(lambda: counted(made["plain"]))
        for _ in range(WARM_UPS[device.type] - (name == "plain")):
            allowance.hold()
            _within_memory(made[name].warm)
        peaks[name] = peak.bytes
    seconds = _within_memory(lambda: alternate(made, now, repeats=size.repeats, allowance=allowance))
    columns = {}
    for name, each in seconds.items():
        middle = Spread.of(each)
        precision = "fp32" if name == "plain" else name.removesuffix(KNOWN)
        columns[name] = {
            "seconds": each,
            "step_seconds": middle.as_record(),
            "steps_per_second": 1 / middle.median,
            "images_per_second": case.batch / middle.median,
            "ratio": None if name == "plain" else Spread.of(ratios(seconds["plain"], each)).as_record(),
            "of_matmul": operations / middle.median / ceiling_of(found, precision, device),
            "of_copy": moved / middle.median / found["copy"],
            "peak_bytes": peaks[name],
            "engine": {} if name == "plain" else made[name].step.twins.record,
        }
    return {
        "method": case.spec,
        "networks": case.networks,
        "batch": case.batch,
        "operations": operations,
        "bytes": moved,
        "variants": columns,
    }


def _within_memory(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except torch.OutOfMemoryError:
        raise NoRoom from None
    except RuntimeError as error:  # how a CPU says so
        if "allocate memory" not in str(error):
            raise
        raise NoRoom from None


def shipped(params: Mapping[str, Any]) -> bool:
    """Whether these parameters are the defaults."""
    return all(parameters(full.split(".")[0])[full.split(".")[1]].default == own for full, own in params.items())


def forms(guest: str = GUEST) -> dict[str, dict[str, float]]:
    """Forms of the guest with their parameters; that which is shipped says so."""
    found = {text + (" (default)" if shipped(own) else ""): dict(own) for text, own in PRICES.items()}
    return found if any(map(shipped, found.values())) else {"default": {}, **found}


def price(
    size: Size, networks: Networks, now: Clock, allowance: Allowance, progress: Progress
) -> tuple[Row, list[str]]:
    """What the guest's forms cost in steps of the host, all of them with the fastest engine, in turn."""
    precision, device = precisions(networks.device)[-1], networks.device
    progress(f"the price of {GUEST}, {size.price.networks}")
    cases: dict[str, tuple[Case, dict[str, float]]] = {size.price.spec: (size.price, {})}
    guest = Case(GUEST, size.price.student, size.price.teacher, size.price.batch)
    cases |= {text: (guest, own) for text, own in forms().items()}
    made: dict[str, TimedStep] = {}
    notes = []
    for text, (case, params) in cases.items():
        try:
            made[text] = _within_memory(lambda c=case, p=params: variant(c, precision, networks, size, p))  # type: ignore[misc]
            for _ in range(WARM_UPS[device.type]):
                allowance.hold()
                _within_memory(made[text].warm)
        except NoRoom:
            made.pop(text, None)
            notes.append(f"price of {text}: out of memory")
    seconds = alternate(made, now, repeats=size.repeats, allowance=allowance)
    rows = []
    for text, each in seconds.items():
        middle = Spread.of(each)
        in_host = [1 / ratio for ratio in ratios(seconds[size.price.spec], each)]
        rows.append(
            {
                "form": text,
                "method": cases[text][0].spec,
                "params": cases[text][1],
                "seconds": each,
                "step_seconds": middle.as_record(),
                "images_per_second": size.price.batch / middle.median,
                "hosts": Spread.of(in_host).as_record(),
            }
        )
    about = {"networks": size.price.networks, "batch": size.price.batch, "precision": precision}
    return {"host": size.price.spec, **about, "rows": rows}, notes


BALL = Budget(1e-6)
"""So small that nothing in it is misread: no image is let off early, and the figure is for images that withstand, which
cost the most. Labels are what the attacked network says, which is random: what it computes does not decide how long it
takes."""
VIEWS = "crop-flip"


def attacks(
    size: Size, networks: Networks, now: Clock, allowance: Allowance, progress: Progress, quick: bool = False
) -> Iterator[Row]:
    """PGD-20 and APGD on the network and on its twin, and AutoAttack as an evaluation runs it, with and without.

    Args:
        quick: a few steps of AutoAttack only, to see that it runs.
    """
    network = networks("S", size.attacked)
    images = _kept(network, smooth_images(size.attack_batch, size.image_shape), networks.device)
    x, y = images.inputs(device=networks.device), images.y.to(networks.device)
    copies = {"itself": network, "twin": Twins(Engine(), {"": network}).serving(x)[""]}
    pgd = read_attack("pgd-20", BALL)

    def climb(model: nn.Module, attack: Any) -> None:
        draw = generator(networks.device if attack is not apgd else "cpu", 0, "bench", "attack")
        with evaluating(model), frozen(model):
            attack(model, x, y, BALL, generator=draw)

    apgd = APGD("ce", steps=100)
    for name, attack in (("PGD-20", pgd), ("APGD-CE, 100 steps", apgd)):
        progress(name)
        runs = {kind: (lambda m=model, a=attack: climb(m, a)) for kind, model in copies.items()}
        seconds = alternate(runs, now, repeats=size.repeats, allowance=allowance.part(0.25))
        yield _row(name, size.attacked, len(images), seconds)
    progress("AutoAttack")
    judges = Networks(size.judged_shape, networks.device)
    judged = judges("S", size.judged)
    few = _kept(judged, smooth_images(size.judged_images, size.judged_shape), networks.device)
    ensemble = standard(BALL, few.num_classes)
    if quick:
        ensemble = shortened(ensemble, steps=2, queries=5, targets=1)

    def judge(engine: str) -> None:
        measured(judged, few, Protocol((ensemble,), BALL, engine=engine), split="bench", which="random")

    both: dict[str, Callable[[], object]] = {"itself": lambda: judge("plain"), "twin": lambda: judge("fast")}
    seconds = alternate(both, now, repeats=size.repeats, allowance=allowance)
    shape = " x ".join(map(str, size.judged_shape))
    yield _row(ensemble.label, f"{size.judged}, {shape}", len(few), seconds)


def _kept(network: nn.Module, images: ImageSet, device: torch.device) -> ImageSet:
    """The images under the labels that the network gives them."""
    with evaluating(network), torch.no_grad():
        said = network(images.inputs(device=device)).argmax(1).cpu()
    return replace(images, y=said)


def _row(attack: str, network: str, images: int, seconds: dict[str, list[float]]) -> Row:
    ways = {}
    for name, each in seconds.items():
        middle = Spread.of(each)
        ways[name] = {
            "seconds": each,
            "images_per_second": images / middle.median,
            "ratio": None if name == "itself" else Spread.of(ratios(seconds["itself"], each)).as_record(),
        }
    return {"attack": attack, "network": network, "images": images, "variants": ways}


def loading(size: Size, device: torch.device, now: Clock, allowance: Allowance, progress: Progress) -> Iterator[Row]:
    """Epochs of batches, with the augmentation of CIFAR-10 and without."""
    images = smooth_images(size.load_images, size.image_shape)
    for name in (VIEWS, "none"):
        progress(f"batches, augmentation {name}")
        batches = SetBatches(images, size.load_batch, device, 0, augmentation(name, size.image_shape))

        def epoch(batches: SetBatches = batches) -> None:
            for _ in batches.epoch(0):
                pass

        epoch()
        each = alternate({name: epoch}, now, repeats=size.repeats, allowance=allowance.part(0.5))[name]
        middle = Spread.of(each)
        yield {
            "augmentation": name,
            "batch": size.load_batch,
            "seconds": each,
            "batches_per_second": batches.steps / middle.median,
            "images_per_second": len(images) / middle.median,
            "n": middle.n,
        }


MINUTES = 8.0
QUIET = 0.5
"""Processes of others that are ready to run, on average, from which a machine counts as busy."""
KEPT, GIVEN_UP = 0.9, 0.97
"""Of the promised time: what is shared out; and when what is not done yet is given up, for the step at work to end."""


def benchmark(
    size: str = "auto",
    *,
    only: Sequence[str] = (),
    part: Sequence[str] = (),
    minutes: float = MINUTES,
    threads: int = 1,
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time training steps of every method, the engine beside the plain path, and what else takes time.

    Args:
        size: "laptop", "gpu", "tiny" (seconds, means nothing), or "auto" by device.
        only: methods, plug-ins included; all if none is named.
        part: of "methods", "pairs", "price", "attacks", "data"; all if none is named.
        minutes: repetitions are dropped, and at last whole rows, to keep them: but for the step at work, nothing is
            done after their end.
        threads: of the CPU. With one, time of the process is measured, else wall-clock time.
        device: "cpu", "cuda", "cuda:1", or "auto".
        out: a folder for the record and its chart; nothing is written without one.
        progress: hears what is being done.

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
        record = _measured(chosen, parts, minutes, where, progress or _silent)
    return record if out is None else write(record, Path(out))


def _measured(
    size: Size, parts: Sequence[str], minutes: float, device: torch.device, progress: Progress
) -> dict[str, Any]:
    now, clock = clock_for(device)
    began, worked, load = time.monotonic(), time.process_time(), _load()
    whole = Allowance(60 * minutes * KEPT, time.monotonic, began + 60 * minutes * GIVEN_UP)
    progress("ceilings")
    found = ceilings(device, now, size.matmul, size.copy, size.convolved)
    _woken(device)
    networks = Networks(size.image_shape, device)
    to_come = {part: SHARES[part] for part in PARTS if part in parts}
    rows: dict[str, Any] = {"methods": [], "pairs": [], "price": None, "attacks": [], "data": []}
    notes: list[str] = []
    for part in list(to_come):
        own = whole.part(to_come[part] / sum(to_come.values()))
        del to_come[part]
        try:
            if part in ("methods", "pairs"):
                cases: Sequence[Case] = getattr(size, part)
                rows[part], more = timed(cases, size, networks, now, own, found, progress)
                notes += more
            elif part == "price":
                own.hold()
                rows[part], more = price(size, networks, now, own, progress)
                notes += more
            else:
                quick = size.name == "tiny"
                own.hold()
                for row in (
                    attacks(size, networks, now, own, progress, quick)
                    if part == "attacks"
                    else loading(size, device, now, own, progress)
                ):
                    rows[part].append(row)
        except OutOfTime:
            some = "the rest of " if rows[part] else ""
            notes.append(f"no time for {some}{part}: give more --minutes, or narrow by --part")
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
