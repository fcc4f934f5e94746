"""Figures of a study as a table shows them, and the words that stand below its tables."""

from __future__ import annotations

from functools import partial

from mmard.balls import Budget
from mmard.study.reading import ROBUST, Mean, Quantity, Reading, half_width, row_name
from mmard.tables.statistics import Difference
from mmard.tables.table import MARK, MINUS, Entry, Table

WEIGHTS = {"best": "best weights, chosen on validation images", "last": "last weights"}
NOTHING = ""
"""In a cell without a figure."""
study_table = partial(Table, star="*")
"""A table in which a star stands for bold wherever that may be lost."""


def number(value: float, quantity: Quantity, *, sign: bool = False) -> str:
    """A quantity as it is shown, with a real minus.

    >>> number(-0.0123, ROBUST, sign=True)
    '−1.2'
    """  # noqa: RUF002
    text = f"{value * quantity.times:{'+' if sign else ''}.{quantity.digits}f}"
    # What rounds to nothing has no sign.
    text = text.lstrip("+-") if float(text) == 0 and sign else text
    return text.replace("-", MINUS)


def signed(slope: float) -> str:
    """A slope with its sign, a real minus."""
    return f"{slope:+.2f}".replace("-", MINUS)


def with_half(gap: Difference, quantity: Quantity) -> str:
    """A difference and half of its interval over seeds and images together, which is known.

    >>> with_half(Difference(-0.05, 0.03, 0.04, True, (3, 3)), ROBUST)
    '\N{MINUS SIGN}5.0 ± 5.0'
    """
    assert gap.half is not None
    return f"{number(gap.mean, quantity, sign=True)} ± {gap.half * quantity.times:.{quantity.digits}f}"


def mean_text(found: Mean | None, quantity: Quantity) -> str:
    """Mean and standard deviation, and how many seeds where some are missing.

    >>> mean_text(Mean({0: 0.5, 1: 0.52}, 2), ROBUST), mean_text(Mean({0: 0.5}, 3), ROBUST)
    ('51.0 ± 1.4', '50.0 (1 of 3 seeds)')
    """
    if found is None:
        return NOTHING
    spread = "" if found.deviation is None else f" ± {found.deviation * quantity.times:.{quantity.digits}f}"
    seeds = "" if found.n == found.of else f" ({found.n} of {found.of} seeds)"
    return number(found.mean, quantity) + spread + seeds + MARK * bool(found.suspicious)


def gap_entry(gap: Difference | None, quantity: Quantity) -> str | Entry:
    """A difference and half of its interval; strong where it is beyond noise."""
    if gap is None:
        return NOTHING
    spread = half_width(gap)
    over = "" if spread is None else f" ± {spread * quantity.times:.{quantity.digits}f}"
    images = " (images)" if gap.over_seeds is None and spread is not None else ""
    return Entry(number(gap.mean, quantity, sign=True) + over + images, strong=gap.clear)


def protocol(reading: Reading) -> str:
    """What stands behind every figure of a study, in a sentence or two."""
    record = next((r for row in reading.grid.rows for r in reading.recorded(row).values()), None)
    if record is None:
        return "No records."
    own = record["figures"].get(reading.which) or next(iter(record["figures"].values()))
    robust, attacks = own["robust"], [own[spec]["label"] for spec in record["attacks"] if spec in own]
    under = f"right under each of {' and '.join(attacks)}" if len(attacks) > 1 else f"right under {attacks[0]}"
    ball = Budget(robust["eps"], robust["norm"])
    return f"Robust: {under}, {ball}, n = {robust['n']:,} test images; {WEIGHTS.get(reading.which, reading.which)}."


def over(reading: Reading) -> str:
    """What the intervals of a study's differences are over."""
    if not any(len(reading.recorded(row)) > 1 for row in reading.grid.rows):
        return (
            "Differences ± half of the 95 % interval over images (paired); one seed of training, so that none is beyond"
            " noise."
        )
    return (
        "Mean ± standard deviation over seeds. Differences ± half of the 95 % interval over seeds (Student's t, paired"
        " by seed) and images (paired) together; bold (*) where beyond it."
    )


def foot(reading: Reading) -> str:
    """What holds for all tables of a study, with the suspicion checks that were raised."""
    raised: dict[str, list[str]] = {}
    for row in reading.grid.rows:
        found = reading.mean(row, ROBUST)
        for mark in () if found is None else found.suspicious:
            raised.setdefault(mark, []).append(row_name(reading, row))
    marks = "; ".join(f"{mark} ({', '.join(names)})" for mark, names in raised.items())
    return " ".join(
        filter(None, (protocol(reading), over(reading), f"{MARK}: suspicion raised: {marks}." if marks else ""))
    )
