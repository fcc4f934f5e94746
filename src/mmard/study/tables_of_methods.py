"""Tables that hold methods beside each other: the benchmark, what they trade, what their hyperparameters are worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmard.evaluation.spread import Difference
from mmard.study.grid import Row
from mmard.study.rows import axes_of, host_name, hosts_of, row_name, row_of, rows_of, valued, variants_of
from mmard.study.sheets import NOTHING, Entry, Sheet, gap_entry, mean_text, number
from mmard.study.summary import CLEAN, ROBUST, SECONDS, WHICH, Quantity, Reading, beyond
from mmard.study.trade import above, lines, unplugged


def ranked(reading: Reading) -> list[Row]:
    """Rows that have a robust accuracy, the highest first."""
    found = {row: mean.mean for row in reading.grid.rows if (mean := reading.mean(row, ROBUST)) is not None}
    return sorted(found, key=lambda row: -found[row])


def benchmark(reading: Reading) -> list[Sheet]:
    """All methods, sorted, with best and last weights; then accuracy for time."""
    rows = ranked(reading)
    if not rows:
        return [Sheet(("method",), (), "No records.")]
    readings = {which: replace(reading, which=which) for which in WHICH}
    made: list[tuple[str | Entry, ...]] = []
    for row in rows:
        gap = None if row is rows[0] else reading.gain(row, rows[0], ROBUST)
        noise = gap is not None and gap.over_seeds is not None and not beyond(gap)
        found = gap_entry(gap, ROBUST)
        told = f"{found.text}, noise" if noise and isinstance(found, Entry) else found
        seconds = reading.mean(row, SECONDS)
        each = [mean_text(readings[w].mean(row, q), q) for w in WHICH for q in (CLEAN, ROBUST)]
        time = NOTHING if seconds is None else number(seconds.median, SECONDS)
        made.append((row_name(reading, row), *each, told, _seeds(reading, row), time))
    figures = (f"{w}: {q.title}" for w in WHICH for q in (CLEAN, ROBUST))
    heads = ("method", *figures, "minus the top", "seeds", "time, s")
    caption = (
        f"Sorted by robust accuracy, {reading.which} weights, of which the differences are too. noise: within that of"
        " the top, which is the highest of all and so flattered by chance. Time: of training, median over seeds."
    )
    sheets = [Sheet(heads, tuple(made), caption)]
    front = pareto(reading)
    if front:
        lines = [(row_name(reading, row), number(s, SECONDS), number(r, ROBUST)) for row, s, r in front]
        caption = (
            "Methods to which no other is at once faster and more robust, by medians of time and means of accuracy."
        )
        sheets.append(Sheet(("most robust for its time", "training, s", "robust %"), tuple(lines), caption, main=False))
    return sheets


def _seeds(reading: Reading, row: Row) -> str:
    found = reading.mean(row, ROBUST)
    n = 0 if found is None else found.n
    return str(n) if n == len(row.cells) else f"{n} of {len(row.cells)}"


def placed(reading: Reading) -> list[tuple[Row, float, float]]:
    """(row, median seconds of training, mean robust accuracy) of the rows that have both, the fastest first."""
    found = []
    for row in reading.grid.rows:
        seconds, robust = reading.mean(row, SECONDS), reading.mean(row, ROBUST)
        if seconds is not None and robust is not None:
            found.append((row, seconds.median, robust.mean))
    return sorted(found, key=lambda each: (each[1], -each[2]))


def pareto(reading: Reading) -> list[tuple[Row, float, float]]:
    """Those of `placed` that are more robust than everything faster."""
    front: list[tuple[Row, float, float]] = []
    for each in placed(reading):
        if not front or each[2] > front[-1][2]:
            front.append(each)
    return front


@dataclass(frozen=True)
class Turned:
    """A hyperparameter of a method, off by a factor to both sides.

    Attributes:
        host: the method.
        axis: the hyperparameter.
        default: its value.
        changes: what robust accuracy changes by, for each point: (label such as "/3", value, change).
    """

    host: str
    axis: str
    default: str
    changes: tuple[tuple[str, str, Difference | None], ...]

    @property
    def worst(self) -> float:
        """The largest loss, as a change: at most 0."""
        return min([0.0, *(gap.mean for _, _, gap in self.changes if gap is not None)])


def turned(reading: Reading, quantity: Quantity = ROBUST) -> list[Turned]:
    """Every hyperparameter of the study, those of one method together."""
    found = []
    for key in hosts_of(reading):
        for axis, points in axes_of(reading, key).items():
            default = next((point.value for point in points if point.default), "")
            changes = tuple(
                (
                    p.row.variant.removeprefix(f"{axis} "),
                    p.value,
                    reading.gain(p.row, reading.reference(p.row), quantity),
                )
                for p in points
                if not p.default
            )
            found.append(Turned(host_name(reading, key), axis, default, changes))
    return found


def trade_off(reading: Reading) -> list[Sheet]:
    """Clean and robust accuracy along every line, and what a row has above the other lines."""
    found = lines(reading)
    heads = ("method", CLEAN.title, ROBUST.title, *(f"above the line of {host_name(reading, key)}" for key in found))
    rows: list[tuple[str | Entry, ...]] = []
    for key in hosts_of(reading):
        for row in found.get(key, rows_of(reading, key)):
            means = [mean_text(reading.mean(row, quantity), quantity) for quantity in (CLEAN, ROBUST)]
            gaps = [gap_entry(above(reading, row, line), ROBUST) for line in found.values()]
            rows.append((valued(reading, row), *means, *gaps))
    caption = (
        "Above a line: robust accuracy minus that of the line at the same clean accuracy, in points, paired by seed; a"
        " line is straight between its rows, and beyond its ends as at the nearer one."
    )
    plugged = [(row, other) for row in reading.grid.rows if (other := unplugged(reading, row)) is not None]
    gains = tuple(
        (valued(reading, row), *(gap_entry(reading.gain(row, other, q), q) for q in (CLEAN, ROBUST)))
        for row, other in plugged
    )
    heads_of_gains = ("minus the same without its plug-in", "clean, points", "robust, points")
    return [Sheet(heads, tuple(rows), caption), Sheet(heads_of_gains, gains, "")]


def sensitivity(reading: Reading) -> list[Sheet]:
    """What each hyperparameter costs, and the worst of each method."""
    every = turned(reading)
    labels = list(dict.fromkeys(label for each in every for label, _, _ in each.changes))
    rows: list[tuple[str | Entry, ...]] = []
    for each in every:
        cells: list[str | Entry] = []
        for label in labels:
            gap, value = next(((gap, value) for own, value, gap in each.changes if own == label), (None, ""))
            entry = gap_entry(gap, ROBUST)
            cells.append(replace(entry, text=f"{entry.text} (at {value})") if isinstance(entry, Entry) else entry)
        rows.append((each.host, each.axis, each.default, *cells))
    caption = "Change of robust accuracy in points."
    sheets = [Sheet(("method", "hyperparameter", "default", *labels), tuple(rows), caption, words=3)]
    worst = []
    for key in hosts_of(reading):
        name = host_name(reading, key)
        own = [each for each in every if each.host == name and any(gap is not None for _, _, gap in each.changes)]
        rest = row_of(reading, key, variants_of(reading)[0])
        if own:
            least = min(own, key=lambda each: each.worst)
            gap_cells = [(gap.mean, label, gap) for label, _, gap in least.changes if gap is not None]
            _, label, gap = min(gap_cells, key=lambda each: each[0])
            robust = NOTHING if rest is None else mean_text(reading.mean(rest, ROBUST), ROBUST)
            worst.append((name, robust, f"{least.axis} {label}", gap_entry(gap, ROBUST)))
    caption = "The hyperparameter of each method whose change costs most; the lowest of several, so chance adds to it."
    sheets.append(Sheet(("method", "robust % at defaults", "worst", "change"), tuple(worst), caption))
    return sheets
