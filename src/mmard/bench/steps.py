"""Steps timed: each method plain and with the engine in turn, and MMARD's forms beside their host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mmard.bench.ceilings import ceiling_of
from mmard.bench.counting import Peak, counted
from mmard.bench.sizes import GUEST, PRICES, Case, Size
from mmard.bench.timing import WARM_UPS, Allowance, Clock, Spread, alternate, ratios
from mmard.bench.variants import KNOWN, Networks, Variant, precisions, variant, variants_of
from mmard.methods import parameters

Row = dict[str, Any]
Told = Callable[[str], None]


class NoRoom(Exception):
    """Memory did not suffice."""


def timed(
    cases: Sequence[Case],
    size: Size,
    networks: Networks,
    now: Clock,
    allowance: Allowance,
    found: Mapping[str, float],
    told: Told,
    latest: Allowance | None = None,
) -> tuple[list[Row], list[str]]:
    """A row for each case, and a line on each that was left out.

    Each case gets an even share of the time that is left, so none is repeated at another's cost. One that has been
    begun is measured once at least.

    Args:
        found: ceilings, as `ceilings` measures them.
        told: hears what is being done.
        latest: after which no case is begun; that of the cases if not given.
    """
    rows, notes = [], []
    latest = latest or allowance
    for number, case in enumerate(cases):
        if latest.left <= 0:
            late = [each.spec for each in cases[number:]]
            notes.append(f"no time for {', '.join(late)}: give more --minutes, or narrow by --only")
            break
        told(f"{case.spec}, {case.networks}")
        try:
            own = allowance.part(1 / (len(cases) - number))
            rows.append(_row(case, size, networks, now, own, dict(found)))
        except NoRoom:
            notes.append(f"{case.spec}, {case.networks}, batch {case.batch}: out of memory")
    return rows, notes


def _row(case: Case, size: Size, networks: Networks, now: Clock, allowance: Allowance, found: dict[str, float]) -> Row:
    device = networks.device
    made: dict[str, Variant] = {}
    peaks: dict[str, int | None] = {}
    operations = moved = 0
    for name in variants_of(case, device):
        peak = Peak(device)
        made[name] = _within_memory(lambda name=name: variant(case, name, networks, size))  # type: ignore[misc]
        if name == "plain":
            operations, moved = _within_memory(lambda: counted(made["plain"]))
        for _ in range(WARM_UPS[device.type] - (name == "plain")):
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


# the price of MMARD -----------------------------------------------------------------------------------------------
def shipped(params: Mapping[str, Any]) -> bool:
    """Whether these parameters are the defaults."""
    return all(parameters(full.split(".")[0])[full.split(".")[1]].default == own for full, own in params.items())


def forms(guest: str = GUEST) -> dict[str, dict[str, float]]:
    """Forms of the guest with their parameters; that which is shipped says so."""
    found = {text + (" (default)" if shipped(own) else ""): dict(own) for text, own in PRICES.items()}
    return found if any(map(shipped, found.values())) else {"default": {}, **found}


def price(size: Size, networks: Networks, now: Clock, allowance: Allowance, told: Told) -> tuple[Row, list[str]]:
    """What the guest's forms cost in steps of the host, all of them with the fastest engine, in turn."""
    precision, device = precisions(networks.device)[-1], networks.device
    told(f"the price of {GUEST}, {size.price.networks}")
    cases: dict[str, tuple[Case, dict[str, float]]] = {size.price.spec: (size.price, {})}
    guest = Case(GUEST, size.price.student, size.price.teacher, size.price.batch)
    cases |= {text: (guest, own) for text, own in forms().items()}
    made: dict[str, Variant] = {}
    notes = []
    for text, (case, params) in cases.items():
        try:
            made[text] = _within_memory(lambda c=case, p=params: variant(c, precision, networks, size, p))  # type: ignore[misc]
            for _ in range(WARM_UPS[device.type]):
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
