"""A claim's verdict from records, by the rule that it is declared with (declared/claims.toml).

gain      a variant of every host minus the host, averaged over hosts
farther   one quantity minus another on the hosts themselves, averaged over hosts
slope     how much more a student of the variant gains for each point of its teacher than one of the host
spread    how much the robust accuracy of students differs between robust teachers, variant minus host
above     a host with a plug-in minus the host where the host's own weights make it as accurate on clean images
top       the best row with a plug-in minus the best row without it, both chosen on the other seeds
trained   whether every row has its records: about the program and not about figures, so that it has no verdict
"""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mmard.study.figures import number, signed, with_half
from mmard.study.grid import Row
from mmard.study.reading import (
    CLEAN,
    ROBUST,
    Mean,
    Quantity,
    Reading,
    host_name,
    hosts_of,
    nearness,
    on_common_seeds,
    pooled,
    row_name,
    row_of,
    variants_of,
)
from mmard.study.trends import TeacherResult, above_line, by_teacher, trade_off_lines, trend
from mmard.tables.statistics import LEVEL, Difference, difference, holm
from mmard.words import plural

HOLDS, FAILS, OPEN = "holds", "does not hold", "open"
SHOWN = "by construction"
"""Said of what the program does; no figure could refute it."""
Direction = Literal["more", "less", "not less"]


def quantity_of(name: str) -> Quantity:
    """What a claim speaks of: "robust", "clean", or a number beside a boundary, e.g. "teacher margin"."""
    return {"robust": ROBUST, "clean": CLEAN}.get(name) or nearness(name)


class Claim(BaseModel):
    """One claim; docs/studies.md and declared/claims.toml say what its rule is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: str
    says: str
    rule: Literal["gain", "farther", "slope", "spread", "above", "top", "trained"]
    study: str
    variant: str = ""
    quantity: str = "robust"
    than: str = ""
    plugin: str = ""
    direction: Direction = "more"
    brief: str = Field(default="", description="The claim in a few words, for those that a page begins with.")
    matters: float = Field(default=0.0, description="The smallest gain worth having, in the unit of the quantity.")


@dataclass(frozen=True)
class Verdict:
    """A verdict.

    Attributes:
        verdict: `HOLDS`, `FAILS`, `OPEN` or `SHOWN`; "" where the scale has no record of the study.
        figure: the figure with half of its interval and its unit; "" where there is none.
        because: what stands behind it, in a few words.
    """

    claim: Claim
    verdict: str
    figure: str = ""
    because: str = ""


def load_claims() -> tuple[str, tuple[Claim, ...]]:
    """Where the claims are from, and all of them in order."""
    text = (resources.files("mmard") / "study" / "declared" / "claims.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    return str(found["source"]), tuple(Claim.model_validate(each) for each in found["claims"])


def judge(claim: Claim, readings: Mapping[str, Reading]) -> Verdict:
    """What the records of a scale say of a claim.

    Args:
        readings: of the scale, by the name of the study.
    """
    reading = readings.get(claim.study)
    if reading is None or not reading.any:
        return Verdict(claim, "", because=f"no record of {claim.study}")
    return RULES[claim.rule](claim, reading)


def decided(low: float, high: float, direction: Direction, matters: float) -> str:
    """The verdict of an interval.

    >>> decided(0.1, 0.5, "more", 0.2), decided(-0.1, 0.1, "more", 0.2), decided(-0.1, 0.5, "more", 0.2)
    ('holds', 'does not hold', 'open')
    >>> decided(-0.1, 0.1, "less", 0.2), decided(-0.1, 0.1, "not less", 0.2), decided(-0.5, -0.3, "not less", 0.2)
    ('does not hold', 'holds', 'does not hold')
    """
    if direction == "less":
        low, high = -high, -low
    if direction == "not less":
        low, high = low + matters, high + matters
        matters = 0.0
    return HOLDS if low > 0 else FAILS if high < matters else OPEN


def _judged(claim: Claim, gap: Difference | None, quantity: Quantity, because: str) -> Verdict:
    """By a difference and its interval over seeds and images together."""
    if gap is None:
        return Verdict(claim, OPEN, because="records are missing")
    reach = gap.half
    if reach is None:
        figure = f"{number(gap.mean, quantity, sign=True)} {quantity.unit}"
        return Verdict(claim, OPEN, figure, "one seed of training")
    verdict = decided(gap.mean - reach, gap.mean + reach, claim.direction, claim.matters)
    figure = f"{with_half(gap, quantity)} {quantity.unit}"
    return Verdict(claim, verdict, figure, f"{because}, {gap.seeds[0]} seeds")


def _gain(claim: Claim, reading: Reading) -> Verdict:
    quantity = quantity_of(claim.quantity)
    rows = [row_of(reading, key, claim.variant) for key in hosts_of(reading)]
    pairs = [(row, reading.reference(row)) for row in rows if row is not None]
    gaps = [gap for row, other in pairs if (gap := reading.gain(row, other, quantity)) is not None]
    sign = -1 if claim.direction == "less" else 1
    better = sum(gap.clear and sign * gap.mean > 0 for gap in gaps)
    worse = sum(gap.clear and sign * gap.mean < 0 for gap in gaps)
    words = f"mean of {len(pairs)} hosts; beyond noise {better} for it, {worse} against"
    if len(gaps) == len(pairs) > 2:
        most = max(range(len(gaps)), key=lambda k: sign * gaps[k].mean)
        rest = pooled(reading, [pair for k, pair in enumerate(pairs) if k != most], quantity)
        name = pairs[most][0].host
        if rest is not None and rest.half is not None:
            words += f"; without {name}, which is most for it, {with_half(rest, quantity)}"
    found = _judged(claim, pooled(reading, pairs, quantity), quantity, words)
    return replace(found, verdict=OPEN) if found.verdict == HOLDS and worse and claim.direction != "not less" else found


def _farther(claim: Claim, reading: Reading) -> Verdict:
    one, other = quantity_of(claim.quantity), quantity_of(claim.than)
    rows = [row for key in hosts_of(reading) if (row := row_of(reading, key, variants_of(reading)[0])) is not None]
    sides = []
    for quantity in (one, other):
        by_seed = on_common_seeds([reading.mean(row, quantity) for row in rows])
        sides.append({seed: statistics.fmean(values) for seed, values in by_seed.items()})
    gap = difference(sides[0], sides[1]) if sides[0] and sides[0].keys() == sides[1].keys() else None
    return _judged(claim, gap, one, f"mean of {len(rows)} hosts")


def _each_host(reading: Reading) -> list[tuple[str, list[TeacherResult]]]:
    pairs = dict.fromkeys((key.host, key.student) for key in hosts_of(reading))
    return [(host, by_teacher(reading, host, student)) for host, student in pairs]


def _slope(claim: Claim, reading: Reading) -> Verdict:
    (_, teachers), *_ = _each_host(reading)
    found = trend(teachers, claim.variant, variants_of(reading)[0])
    if found is None or found.teachers.half is None:
        return Verdict(claim, OPEN, because="fewer than three robust teachers with records")
    line = found.teachers
    half = found.teachers.half
    figure = f"{signed(line.slope)} ± {half:.2f}"
    verdict = decided(line.slope - half, line.slope + half, claim.direction, claim.matters)
    return Verdict(claim, verdict, figure, f"difference of slopes, {line.n} robust teachers as points")


def _spread(claim: Claim, reading: Reading) -> Verdict:
    (_, teachers), *_ = _each_host(reading)
    robust = [each for each in teachers if not each.apart]
    sides = []
    for variant in (claim.variant, variants_of(reading)[0]):
        by_seed = on_common_seeds([each.students.get(variant) for each in robust])
        sides.append({seed: statistics.stdev(values) for seed, values in by_seed.items() if len(values) > 1})
    shared = sides[0].keys() & sides[1].keys()
    ours, theirs = ({seed: side[seed] for seed in shared} for side in sides)
    gap = difference(ours, theirs) if shared else None
    words = f"standard deviation between {len(robust)} robust teachers"
    return _judged(claim, gap, ROBUST, words)


def _above(claim: Claim, reading: Reading) -> Verdict:
    found = trade_off_lines(reading)
    pairs = [(key, key._replace(host=f"{key.host}+{claim.plugin}")) for key in found]
    pairs = [(host, grown) for host, grown in pairs if grown in hosts_of(reading)]
    if not pairs:
        return Verdict(claim, OPEN, because="records are missing")
    host, grown = pairs[0]
    row = row_of(reading, grown, variants_of(reading)[0])
    gap = None if row is None else above_line(reading, row, found[host])
    words = f"{host_name(reading, grown)} above the line of {host_name(reading, host)}, {len(found[host])} rows"
    ends = [reading.mean(each, CLEAN) for each in (found[host][0], found[host][-1])]
    at = None if row is None else reading.mean(row, CLEAN)
    if at is not None and ends[0] is not None and at.mean < ends[0].mean:
        words += ", less accurate than all of them: held beside the line's end"
    return _judged(claim, gap, ROBUST, words)


def _top(claim: Claim, reading: Reading) -> Verdict:
    """Both rows are chosen for each seed on the others, so that no seed chooses what it is measured by, and the best of
    several must be ahead by Holm's rule over all that could have been it. What was not trained keeps open what it could
    turn around."""
    found = {row: mean for row in reading.grid.rows if (mean := reading.mean(row, ROBUST)) is not None}

    def is_ours(row: Row) -> bool:
        return claim.plugin in row.host.split("+")[1:]

    whole = {row: mean for row, mean in found.items() if mean.n == mean.of}
    sides = [[row for row in whole if is_ours(row) is ours] for ours in (True, False)]
    if not all(sides):
        return Verdict(claim, OPEN, because="records are missing")
    seeds = sorted(set.intersection(*(set(mean.by_seed) for mean in whole.values())))
    chosen = [{seed: _best(rows, whole, seed if len(seeds) > 1 else None) for seed in seeds} for rows in sides]
    values = [{seed: whole[row].by_seed[seed] for seed, row in side.items()} for side in chosen]
    verdicts = [{s: m[s] for s, row in side.items() if s in (m := reading.masks(row, ROBUST))} for side in chosen]
    gap = difference(values[0], values[1], verdicts[0], verdicts[1])
    words = " minus ".join(
        " or ".join(dict.fromkeys(row_name(reading, row) for row in side.values())) for side in chosen
    )
    words += f", chosen on the other seeds, of {len(found)} methods"
    judged = _judged(claim, gap, ROBUST, words)
    mine, other = (_best(rows, whole, None) for rows in sides)
    gaps = {row: each for row in sides[0] if (each := reading.gain(row, other, ROBUST)) is not None}
    ps = {row: p for row, each in gaps.items() if (p := each.p()) is not None}
    if judged.verdict == HOLDS and mine in ps:
        adjusted = dict(zip(ps, holm(list(ps.values())), strict=True))[mine]
        words = f"{judged.because}; p = {adjusted:.2g} after Holm over {len(ps)} rows with {claim.plugin}"
        judged = replace(judged, verdict=HOLDS if adjusted < LEVEL else OPEN, because=words)
    lacking = [row for row in reading.grid.rows if row not in whole]
    could = [row for row in lacking if is_ours(row) is (judged.verdict == FAILS)]
    if judged.verdict == OPEN or not could:
        return judged
    return replace(judged, verdict=OPEN, because=f"{judged.because}; {plural(len(could), 'row')} not trained whole")


def _best(rows: Sequence[Row], means: Mapping[Row, Mean], without: int | None) -> Row:
    """The row of the highest mean over the seeds but one."""

    def level(row: Row) -> float:
        return statistics.fmean(value for seed, value in means[row].by_seed.items() if seed != without)

    return max(rows, key=level)


def _trained(claim: Claim, reading: Reading) -> Verdict:
    lacking, rows = len(reading.missing()), len(reading.grid.rows)
    figure = f"{rows - lacking} of {rows} rows trained"
    return Verdict(claim, OPEN if lacking else SHOWN, figure, "hosts with either half exchanged, trained and attacked")


RULES: dict[str, Callable[[Claim, Reading], Verdict]] = {
    "gain": _gain,
    "farther": _farther,
    "slope": _slope,
    "spread": _spread,
    "above": _above,
    "top": _top,
    "trained": _trained,
}
