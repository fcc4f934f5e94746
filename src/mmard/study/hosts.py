"""Tables and plots that hold variants of a host beside the host: plug-ins, boundaries, ablation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mmard.report.drawing import Canvas
from mmard.report.palette import mark
from mmard.study.drawing import (
    BOTTOM,
    WIDTH,
    Plot,
    along,
    around,
    dot,
    gap_dot,
    in_rows,
    legend,
    level_title,
    name_width,
    panel,
    plot,
    same_heights,
    words,
)
from mmard.study.figures import NOTHING, gap_entry, mean_text, study_table
from mmard.study.grid import Row
from mmard.study.reading import (
    CLEAN,
    INPUTS,
    ROBUST,
    SECONDS,
    Host,
    Quantity,
    Reading,
    SweepPoint,
    axes_of,
    boundary_quantities,
    half_width,
    host_name,
    hosts_of,
    nearness,
    pooled,
    row_name,
    row_of,
    times_as_long,
    variants_of,
)
from mmard.tables.table import Entry, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 14
"""Height of one variant's line."""


Cells = tuple[str | Entry, ...]


def plug_and_play_tables(reading: Reading) -> list[Table]:
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
        study_table(("robust %", *variants), means(ROBUST), ""),
        study_table(("gain, robust", *added), gains(ROBUST), above),
        study_table(("clean %", *variants), means(CLEAN), "The same networks without an attack.", main=False),
        study_table(("gain, clean", *added), gains(CLEAN), above, main=False),
    ]
    if any(any(cells[1:]) for cells in times):
        said = f"As multiples of {first}; medians over seeds."
        made.append(study_table(("training time", *added), times, said, main=False))
    return made


def _times(reading: Reading, row: Row | None, other: Row | None) -> str:
    found = None if row is None else times_as_long(reading, row, other, SECONDS)
    return NOTHING if found is None else f"{found:.2f}"


def plug_and_play_plots(reading: Reading) -> list[Plot]:
    """Hosts in rows, their variants below each other: accuracy at the left, the gain paired by seed at the right."""
    keys, variants = hosts_of(reading), variants_of(reading)
    names = [host_name(reading, each) for each in keys]
    step = len(variants) + 1
    top, height = 50, ROW * (step * len(keys) - 1)
    left = name_width(names)
    wide = (WIDTH - left - 26 - 12) / 2
    alt = f"Robust accuracy of {len(keys)} hosts, each {', '.join(variants)}, and what is gained over {variants[0]}."

    def draw(made: Canvas) -> None:
        level = panel(made, left, top, wide, height, first=True)
        gains = panel(made, left + wide + 26, top, wide, height)
        for position, host in enumerate(keys):
            for index, variant in enumerate(variants):
                row = row_of(reading, host, variant)
                mean = None if row is None else reading.mean(row, ROBUST)
                if row is None or mean is None:
                    continue
                y = position * step + index
                dot(level, mean.mean, y, index, reach=mean.interval)
                gap = reading.gain(row, reading.reference(row), ROBUST)
                if gap is not None:
                    gap_dot(gains, gap, y, index)
        middles = [position * step + (len(variants) - 1) / 2 for position in range(len(keys))]
        last = step * len(keys) - 1.3
        in_rows(level, names, middles, last)
        in_rows(gains, names, middles, last, named=False)
        for axes in (level, gains):
            for position in range(1, len(keys)):
                axes.axhline(position * step - 1, color=mark("grid"), linewidth=1, zorder=0)
        along(level, level_title(reading))
        along(gains, f"points above {variants[0]}, paired 95 % intervals", zero=True)
        legend(made, [(index, variant, False) for index, variant in enumerate(variants)], left - 4, 14)
        note = "interval over seeds (thick), over images (thin); hollow: within noise"
        words(made, WIDTH - 12, 32, note, quiet=True, ha="right")

    return [plot(reading, "", alt, draw, top + height + BOTTOM)]


_WORDS = (
    "Margin, in nats: log-probability of the true class minus the largest other. Entropy in nats. Distance: to first"
    " order, in radii of the ball. Means over images."
)


def boundary_tables(reading: Reading) -> list[Table]:
    """What changes most, then margins, misreadings, entropy and distances of every variant."""
    first = variants_of(reading)[0]
    shown = (
        nearness("teacher margin"),
        nearness("teacher misread"),
        nearness("teacher distance"),
        nearness("student misread"),
    )
    lines: list[Cells] = []
    for row in reading.grid.rows:
        reference = reading.reference(row)
        if reference is not None:
            pairs = ((mean_text(reading.mean(reference, q), q), _change(reading, row, reference, q)) for q in shown)
            lines.append((row_name(reading, row), *(cell for pair in pairs for cell in pair)))
    heads = ("", *(head for q in shown for head in (q.title, "change")))
    where = f"On {INPUTS['own']}; last weights."
    made = [study_table(heads, tuple(lines), f"{where} Values of {first}, and what changes. {_WORDS}")]
    for state, said in INPUTS.items():
        quantities = boundary_quantities(state)
        rows: list[Cells] = []
        for row in reading.grid.rows:
            reference = reading.reference(row)
            rows.append((row_name(reading, row), *(mean_text(reading.mean(row, q), q) for q in quantities)))
            if reference is not None:
                rows.append(("change", *(_change(reading, row, reference, q) for q in quantities)))
        heads = ("", *(quantity.title for quantity in quantities))
        made.append(study_table(heads, tuple(rows), f"On {said}; last weights. {_WORDS}", main=False))
    return made


def _change(reading: Reading, row: Row, reference: Row, quantity: Quantity) -> str | Entry:
    return gap_entry(reading.gain(row, reference, quantity), quantity)


def boundary_plots(reading: Reading) -> list[Plot]:
    """From the host, hollow, to its variants, filled, for the teacher's margin and what either network misreads."""
    keys, variants = hosts_of(reading), variants_of(reading)
    shown: tuple[tuple[Quantity, str, bool], ...] = (
        (nearness("teacher margin"), "teacher's margin, nats", False),
        (nearness("teacher misread"), "misread by the teacher, %", True),
        (nearness("student misread"), "misread by the student, %", True),
    )
    names = [host_name(reading, each) for each in keys]
    lanes = max(1, len(variants) - 1)
    tall = max(26, 16 * lanes + 8)
    left, top, height = name_width(names), 34, tall * len(keys)
    wide = (WIDTH - left - 12 - 2 * 24) / 3
    alt = (
        f"Training examples under the runs' own attacks, {len(keys)} hosts: the teacher's margin, and the shares that"
        f" the teacher and the student misread, {variants[0]} and {', '.join(variants[1:])}."
    )

    def draw(made: Canvas) -> None:
        for column, (quantity, title, shares) in enumerate(shown):
            axes = panel(made, left + column * (wide + 24), top, wide, height, first=column == 0)
            for position, host in enumerate(keys):
                for lane, variant in enumerate(variants[1:]):
                    row = row_of(reading, host, variant)
                    _moved(axes, reading, row, quantity, position + (lane - (lanes - 1) / 2) * 0.5, lane + 1)
            in_rows(axes, names, range(len(keys)), len(keys) - 0.4, named=column == 0)
            along(axes, title, shares=shares, n=4)
        entries = [(0, variants[0], True), *((k + 1, variant, False) for k, variant in enumerate(variants[1:]))]
        legend(made, entries, left - 4, 14)
        words(made, WIDTH - 12, 14, "bars: 95 % interval of the change, paired by seed", quiet=True, ha="right")

    return [plot(reading, "", alt, draw, top + height + BOTTOM)]


def _moved(axes: Axes, reading: Reading, row: Row | None, quantity: Quantity, y: float, index: int) -> None:
    reference = None if row is None else reading.reference(row)
    if row is None or reference is None:
        return
    before, after, gap = (
        reading.mean(reference, quantity),
        reading.mean(row, quantity),
        reading.gain(row, reference, quantity),
    )
    if before is not None and after is not None:
        axes.plot([before.mean, after.mean], [y, y], color=mark("muted"), linewidth=1, zorder=1)
        dot(axes, after.mean, y, index, reach=None if gap is None else around(after.mean, half_width(gap)))
    if before is not None:
        dot(axes, before.mean, y, 0, hollow=True)


def ablation_tables(reading: Reading) -> list[Table]:
    """One table for each host: its variants, then the points of every axis with the default in its position."""
    made = []
    first = variants_of(reading)[0]
    for key in hosts_of(reading):
        host = row_of(reading, key, first)
        resting = [row for v in variants_of(reading) if (row := row_of(reading, key, v)) is not None]
        rows: list[Cells] = [("", row.variant, *_beside(reading, row, None, host)) for row in resting]
        for axis, points in axes_of(reading, key).items():
            for position, point in enumerate(points):
                value = f"{point.value} (default)" if point.default else point.value
                default = None if point.default else reading.reference(point.row)
                rows.append((axis if position == 0 else "", value, *_beside(reading, point.row, default, host)))
        heads = (host_name(reading, key), "value", "robust %", "minus the default", f"minus {first}", "clean %", "time")
        time = f"Time: of training, as a multiple of {first}'s; medians over seeds."
        made.append(study_table(heads, tuple(rows), time, words=2))
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


def ablation_plots(reading: Reading) -> list[Plot]:
    """A panel for every axis of each host: value against robust accuracy, and its price."""
    made: list[Plot] = []
    for host in hosts_of(reading):
        axes = axes_of(reading, host)
        if axes:
            made.append(_panels(reading, host, axes, "" if not made else f"{len(made) + 1}"))
    return made


def _panels(reading: Reading, host: Host, every: dict[str, list[SweepPoint]], slug: str) -> Plot:
    across = 4
    down = math.ceil(len(every) / across)
    left, gap, tall, top = 40, 16, 128, 46
    wide = (WIDTH - left - 10 - gap * (across - 1)) / across
    bare = row_of(reading, host, variants_of(reading)[0])
    floor = None if bare is None else reading.mean(bare, ROBUST)
    name = host_name(reading, host)
    alt = f"Robust accuracy of {name} with the plug-in along {len(every)} of its parameters, one panel each."

    def draw(made: Canvas) -> None:
        shown = []
        for k, (axis, points) in enumerate(every.items()):
            x, y = left + (k % across) * (wide + gap), top + (k // across) * (tall + 62)
            axes = panel(made, x, y, wide, tall, first=k == 0)
            shown.append(axes)
            words(made, x, y - 12, axis)
            rest = next((p for p in points if p.default), None)
            level = None if rest is None else reading.mean(rest.row, ROBUST)
            if level is not None:
                axes.axhline(level.mean, color=mark("muted"), linewidth=1, zorder=0)
            if floor is not None:
                axes.axhline(floor.mean, color=mark("muted"), linewidth=1, dashes=(3, 3), zorder=0)
            for at, point in enumerate(points):
                mean = reading.mean(point.row, ROBUST)
                if mean is not None:
                    gain = None if point.default else reading.gain(point.row, reading.reference(point.row), ROBUST)
                    reach = None if gain is None else around(mean.mean, half_width(gain))
                    clear = point.default or (gain is not None and gain.clear)
                    dot(axes, at, mean.mean, 5 if point.default else 0, reach=reach, hollow=not clear, upright=True)
            axes.set_xticks(range(len(points)), [_tick(reading, point, bare) for point in points])
            axes.set_xlim(-0.6, len(points) - 0.4)
            axes.tick_params(axis="y", labelleft=k % across == 0)
        same_heights(shown)
        words(made, 2, 14, "robust %", quiet=True)
        legend(made, [(5, "default", False), (0, "beyond noise", False), (0, "within noise", True)], left + 40, 14)
        plain = variants_of(reading)[0]
        lines = f"line: default; dashed: {plain}; below values: training time, {plain} = 1"
        words(made, WIDTH - 10, 14, lines, quiet=True, ha="right")

    return plot(reading, slug, alt, draw, top + down * (tall + 62) - 16)


def _tick(reading: Reading, point: SweepPoint, bare: Row | None) -> str:
    times = times_as_long(reading, point.row, bare, SECONDS)
    value = point.value.replace(",", " ") if len(point.value) > 6 else point.value
    return value if times is None else f"{value}\n{times:.2f}"
