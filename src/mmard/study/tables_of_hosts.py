"""Tables that hold variants of a host beside the host: plug-ins, nearness, ablation, teachers."""

from __future__ import annotations

from collections.abc import Sequence

from mmard.study.grid import Row
from mmard.study.nearby import STATES, distance, margin, misread, nearness
from mmard.study.rows import Host, axes_of, host_name, hosts_of, pooled, row_name, row_of, times_as_long, variants_of
from mmard.study.sheets import NOTHING, Entry, Sheet, gap_entry, mean_text, number
from mmard.study.slope import Slope, Taught, Trend, taught, trend
from mmard.study.summary import CLEAN, ROBUST, SECONDS, Quantity, Reading

Cells = tuple[str | Entry, ...]


def plug_and_play(reading: Reading) -> list[Sheet]:
    """Hosts down, variants across: robust accuracy, gain, clean accuracy, its gain, time."""
    variants, keys = variants_of(reading), hosts_of(reading)
    first, added = variants[0], variants[1:]

    def mean(row: Row | None, quantity: Quantity) -> str:
        return NOTHING if row is None else mean_text(reading.mean(row, quantity), quantity)

    def means(quantity: Quantity) -> tuple[Cells, ...]:
        return tuple(
            (host_name(reading, key), *(mean(row_of(reading, key, variant), quantity) for variant in variants))
            for key in keys
        )

    def gain(row: Row | None, quantity: Quantity) -> str | Entry:
        return NOTHING if row is None else gap_entry(reading.gain(row, reading.reference(row), quantity), quantity)

    def gains(quantity: Quantity) -> tuple[Cells, ...]:
        found: list[Cells] = [
            (host_name(reading, key), *(gain(row_of(reading, key, variant), quantity) for variant in added))
            for key in keys
        ]
        if len(keys) > 1:
            every = [[r for key in keys if (r := row_of(reading, key, variant)) is not None] for variant in added]
            pairs = [[(row, reading.reference(row)) for row in rows] for rows in every]
            found.append(("mean of the hosts", *(gap_entry(pooled(reading, p, quantity), quantity) for p in pairs)))
        return tuple(found)

    times = tuple(
        (
            host_name(reading, key),
            *(_times(reading, row_of(reading, key, v), row_of(reading, key, first)) for v in added),
        )
        for key in keys
    )
    above = f"Points above {first}."
    made = [
        Sheet(("robust %", *variants), means(ROBUST), ""),
        Sheet(("gain, robust", *added), gains(ROBUST), above),
        Sheet(("clean %", *variants), means(CLEAN), "The same networks without an attack.", main=False),
        Sheet(("gain, clean", *added), gains(CLEAN), above, main=False),
    ]
    if any(any(cells[1:]) for cells in times):
        said = f"As multiples of {first}; medians over seeds."
        made.append(Sheet(("training time", *added), times, said, main=False))
    return made


def _times(reading: Reading, row: Row | None, other: Row | None) -> str:
    found = None if row is None else times_as_long(reading, row, other, SECONDS)
    return NOTHING if found is None else f"{found:.2f}"


def boundary(reading: Reading) -> list[Sheet]:
    """What changes most, then margins, misreadings, entropy and distances of every variant."""
    first = variants_of(reading)[0]
    told = (margin("teacher"), misread("teacher"), distance("teacher"), misread("student"))
    lines: list[Cells] = []
    for row in reading.grid.rows:
        reference = reading.reference(row)
        if reference is not None:
            pairs = ((mean_text(reading.mean(reference, q), q), _change(reading, row, reference, q)) for q in told)
            lines.append((row_name(reading, row), *(cell for pair in pairs for cell in pair)))
    heads = ("", *(head for q in told for head in (q.title, "change")))
    where = f"On {STATES['own']}; last weights."
    made = [Sheet(heads, tuple(lines), f"{where} Values of {first}, and what changes. {_WORDS}")]
    for state, said in STATES.items():
        quantities = nearness(state)
        rows: list[Cells] = []
        for row in reading.grid.rows:
            reference = reading.reference(row)
            rows.append((row_name(reading, row), *(mean_text(reading.mean(row, q), q) for q in quantities)))
            if reference is not None:
                rows.append(("change", *(_change(reading, row, reference, q) for q in quantities)))
        heads = ("", *(quantity.title for quantity in quantities))
        made.append(Sheet(heads, tuple(rows), f"On {said}; last weights. {_WORDS}", main=False))
    return made


_WORDS = (
    "Margin, in nats: log-probability of the true class minus the largest other. Entropy in nats. Distance: to first"
    " order, in radii of the ball. Means over images."
)


def _change(reading: Reading, row: Row, reference: Row, quantity: Quantity) -> str | Entry:
    return gap_entry(reading.gain(row, reference, quantity), quantity)


def ablation(reading: Reading) -> list[Sheet]:
    """One table for each host: its variants, then the points of every axis with the default in its place."""
    made = []
    first = variants_of(reading)[0]
    for key in hosts_of(reading):
        host = row_of(reading, key, first)
        resting = [row for v in variants_of(reading) if (row := row_of(reading, key, v)) is not None]
        rows: list[Cells] = [("", row.variant, *_beside(reading, row, None, host)) for row in resting]
        for axis, points in axes_of(reading, key).items():
            for place, point in enumerate(points):
                value = f"{point.value} (default)" if point.default else point.value
                default = None if point.default else reading.reference(point.row)
                rows.append((axis if place == 0 else "", value, *_beside(reading, point.row, default, host)))
        heads = (host_name(reading, key), "value", "robust %", "minus the default", f"minus {first}", "clean %", "time")
        time = f"Time: of training, as a multiple of {first}'s; medians over seeds."
        made.append(Sheet(heads, tuple(rows), time, words=2))
    return made


def _beside(reading: Reading, row: Row, default: Row | None, host: Row | None) -> Cells:
    other = None if row is host else host
    return (
        mean_text(reading.mean(row, ROBUST), ROBUST),
        gap_entry(reading.gain(row, default, ROBUST), ROBUST),
        gap_entry(reading.gain(row, other, ROBUST), ROBUST),
        mean_text(reading.mean(row, CLEAN), CLEAN),
        _times(reading, row, other),
    )


def saturation(reading: Reading) -> list[Sheet]:
    """Students by teacher, the weakest first, and slopes."""
    made = []
    variants = variants_of(reading)
    first, added = variants[0], variants[1:]
    for host, student in dict.fromkeys((key.host, key.student) for key in hosts_of(reading)):
        teachers = taught(reading, host, student)
        rows: list[Cells] = []
        for each in sorted(teachers, key=lambda t: t.apart):
            own = [NOTHING if value is None else number(value, ROBUST) for value in (each.robust, each.clean)]
            means = [mean_text(each.students.get(variant), ROBUST) for variant in variants]
            gains = [gap_entry(each.gains.get(variant), ROBUST) for variant in added]
            rows.append((each.role + (", apart" if each.apart else ""), *own, *means, *gains))
        name = host_name(reading, Host(host, student, ""))
        students = (*(f"{v}: robust %" for v in variants), *(f"gain of {v}" for v in added))
        heads = (f"{name}, teacher", "its robust %", "its clean %", *students)
        made.append(Sheet(heads, tuple(rows), f"Of teachers the weights that taught. {_roles(teachers)}"))
        lines: list[Cells] = [(f"{name} {variant}", *_slopes(trend(teachers, variant))) for variant in variants]
        lines += [(f"{variant} minus {first}", *_slopes(trend(teachers, variant, first))) for variant in added]
        made.append(Sheet(("student's points for one of the teacher's", "slope", "± cells", "± teachers", "n"),
                          tuple(lines), _SLOPES))  # fmt: skip
    return made


def _roles(teachers: Sequence[Taught]) -> str:
    return "; ".join(f"{each.role}: {each.title}" for each in teachers) + "."


_SLOPES = (
    "Least squares over robust teachers x seeds, those set apart left out. ± cells: half of the 95 % interval"
    " (Student's t) with every network as a point; too narrow for teachers at large, as students of one teacher are not"
    " independent. ± teachers: the same with one point for each teacher, the mean over seeds. n: teachers, networks."
)


def _slopes(found: Trend | None) -> Cells:
    if found is None:
        return (NOTHING,) * 4
    halves = ["unknown" if line.half is None else f"{line.half:.2f}" for line in (found.cells, found.teachers)]
    clear = found.teachers.half is not None and abs(found.cells.slope) > found.teachers.half
    return (Entry(_signed(found.teachers), clear), *halves, f"{found.teachers.n}, {found.cells.n}")


def _signed(line: Slope) -> str:
    return f"{line.slope:+.2f}".replace("-", "\N{MINUS SIGN}")
