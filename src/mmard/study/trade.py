"""Robust accuracy at the same clean accuracy: the lines along which own weights move methods, and who is above them.

lines(reading)                host -> its rows, the least accurate on clean images first
unplugged(reading, row)       the same row without its plug-in
above(reading, row, line)     how much more robust a row is than the line where the line is as accurate as the row
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from mmard.evaluation.score import Mask
from mmard.evaluation.spread import Difference, difference
from mmard.study.grid import Row
from mmard.study.rows import Host, hosts_of, rows_of
from mmard.study.summary import CLEAN, ROBUST, Quantity, Reading


def unplugged(reading: Reading, row: Row) -> Row | None:
    """The same row of the host without its last plug-in; None where the study has none."""
    host, plus, _ = row.host.rpartition("+")
    alike = (host, row.student, row.variant, row.axis, row.value)
    own = (r for r in reading.grid.rows if (r.host, r.student, r.variant, r.axis, r.value) == alike)
    return next((r for r in own if plus and r.teacher in (row.teacher, "")), None)


class Place(NamedTuple):
    """Where one network stands: its accuracies, and which images it reads rightly, clean and attacked."""

    clean: float
    robust: float
    masks: tuple[Any, Any] | None


def lines(reading: Reading) -> dict[Host, list[Row]]:
    """Methods with several rows that have records, by rising clean accuracy on average."""
    found = {}
    for key in hosts_of(reading):
        own = rows_of(reading, key)
        level = {row: mean.mean for row in own if (mean := reading.mean(row, CLEAN)) is not None}
        if len(level) > 1:
            found[key] = sorted(level, key=lambda row: level[row])
    return found


def above(reading: Reading, row: Row, line: Sequence[Row]) -> Difference | None:
    """A row's robust accuracy minus that of a line where the line's clean accuracy is the row's, paired by seed.

    The line is straight between its rows, and beyond its ends as at the nearer one. The interval over images holds
    both accuracies of all networks to vary with the images. None where no seed has all, and for a row of the line.
    """
    if row in line:
        return None
    ours = _places(reading, row)
    theirs = [_places(reading, each) for each in line]
    seeds = ours.keys() & set.intersection(*(set(each) for each in theirs))
    if not seeds:
        return None
    beside = {seed: _on(sorted((each[seed] for each in theirs), key=_ordered), ours[seed]) for seed in sorted(seeds)}
    masks = {seed: mask for seed, (_, mask) in beside.items() if mask is not None}
    mine = {seed: ours[seed].robust for seed in beside}
    return difference(mine, {seed: value for seed, (value, _) in beside.items()}, reading.masks(row, ROBUST), masks)


def _places(reading: Reading, row: Row) -> dict[int, Place]:
    """By seed."""
    of = {quantity: reading.mean(row, quantity) for quantity in (CLEAN, ROBUST)}
    clean, robust = of[CLEAN], of[ROBUST]
    if clean is None or robust is None:
        return {}
    rights: dict[Quantity, dict[int, Mask]] = {quantity: reading.masks(row, quantity) for quantity in of}
    known = rights[CLEAN].keys() & rights[ROBUST].keys()
    return {
        seed: Place(
            clean.by_seed[seed],
            robust.by_seed[seed],
            (rights[CLEAN][seed].astype(float), rights[ROBUST][seed].astype(float)) if seed in known else None,
        )
        for seed in clean.by_seed.keys() & robust.by_seed.keys()
    }


def _ordered(place: Place) -> tuple[float, float]:
    return place.clean, place.robust


def _on(line: Sequence[Place], at: Place) -> tuple[float, Any]:
    """The line's robust accuracy at a clean accuracy, and per image what its mean varies by: to first order."""
    end = line[0] if at.clean <= line[0].clean else line[-1]
    between = ((a, b) for a, b in pairwise(line) if a.clean <= at.clean <= b.clean and a.clean < b.clean)
    a, b = next(between, (end, end))
    if a is b:
        return a.robust, None if a.masks is None else a.masks[1]
    w, slope = (at.clean - a.clean) / (b.clean - a.clean), (b.robust - a.robust) / (b.clean - a.clean)
    value = a.robust + slope * (at.clean - a.clean)
    if a.masks is None or b.masks is None or at.masks is None:
        return value, None
    # d value = (1 - w) dR_a + w dR_b + slope (dC - (1 - w) dC_a - w dC_b)
    clean = at.masks[0] - (1 - w) * a.masks[0] - w * b.masks[0]
    return value, (1 - w) * a.masks[1] + w * b.masks[1] + slope * clean
