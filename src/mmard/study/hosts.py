"""Plots that hold variants of a host beside the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmard.report.drawing import LETTER, Canvas
from mmard.report.palette import dash, mark, series
from mmard.study.drawing import (
    WIDTH,
    Plot,
    along,
    around,
    dot,
    in_percent,
    in_rows,
    legend,
    level_title,
    name_width,
    panel,
    plot,
    words,
)
from mmard.study.grid import Row
from mmard.study.reading import (
    CLEAN,
    INPUTS,
    ROBUST,
    SECONDS,
    Host,
    Mean,
    Point,
    Quantity,
    Reading,
    axes_of,
    beyond,
    boundary_quantities,
    distance,
    half,
    host_name,
    hosts_of,
    margin,
    misread,
    pooled,
    row_name,
    row_of,
    times_as_long,
    variants_of,
)
from mmard.study.sheets import NOTHING, Entry, Sheet, gap_entry, mean_text, number
from mmard.study.trends import Slope, TeacherResult, Trend, by_teacher, trend
from mmard.tables.statistics import LEVEL, holm

ROW = 14
"""Height of one variant's line."""
BOTTOM = 40


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
                    seeds, images = (around(gap.mean, each) for each in (gap.over_seeds, gap.over_images))
                    dot(gains, gap.mean, y, index, reach=seeds, thin=images, hollow=not beyond(gap))
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


def boundary_plots(reading: Reading) -> list[Plot]:
    """From the host, hollow, to its variants, filled, for the teacher's margin and what either network misreads."""
    keys, variants = hosts_of(reading), variants_of(reading)
    shown: tuple[tuple[Quantity, str, bool], ...] = (
        (margin("teacher"), "teacher's margin, nats", False),
        (misread("teacher"), "misread by the teacher, %", True),
        (misread("student"), "misread by the student, %", True),
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


def _moved(axes: object, reading: Reading, row: Row | None, quantity: Quantity, y: float, index: int) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes), "a panel"
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
        dot(axes, after.mean, y, index, reach=None if gap is None else around(after.mean, half(gap)))
    if before is not None:
        dot(axes, before.mean, y, 0, hollow=True)


def ablation_plots(reading: Reading) -> list[Plot]:
    """A panel for every axis of each host: value against robust accuracy, and its price."""
    made: list[Plot] = []
    for host in hosts_of(reading):
        axes = axes_of(reading, host)
        if axes:
            made.append(_panels(reading, host, axes, "" if not made else f"{len(made) + 1}"))
    return made


def _panels(reading: Reading, host: Host, every: dict[str, list[Point]], slug: str) -> Plot:
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
                    reach = None if gain is None else around(mean.mean, half(gain))
                    clear = point.default or beyond(gain)
                    dot(axes, at, mean.mean, 5 if point.default else 0, reach=reach, hollow=not clear, upright=True)
            axes.set_xticks(range(len(points)), [_tick(reading, point, bare) for point in points])
            axes.set_xlim(-0.6, len(points) - 0.4)
            axes.tick_params(axis="y", labelleft=k % across == 0)
        _same_heights(shown)
        words(made, 2, 14, "robust %", quiet=True)
        legend(made, [(5, "default", False), (0, "beyond noise", False), (0, "within noise", True)], left + 40, 14)
        plain = variants_of(reading)[0]
        lines = f"line: default; dashed: {plain}; below values: training time, {plain} = 1"
        words(made, WIDTH - 10, 14, lines, quiet=True, ha="right")

    return plot(reading, slug, alt, draw, top + down * (tall + 62) - 16)


def _tick(reading: Reading, point: Point, bare: Row | None) -> str:
    times = times_as_long(reading, point.row, bare, SECONDS)
    value = point.value.replace(",", " ") if len(point.value) > 6 else point.value
    return value if times is None else f"{value}\n{times:.2f}"


def _same_heights(shown: Sequence[object]) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panels = [axes for axes in shown if isinstance(axes, Axes)]
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(in_percent))


def saturation_plots(reading: Reading) -> list[Plot]:
    """Student against teacher with a line for each variant; teachers that are set apart in a panel of their own."""
    made = []
    pairs = dict.fromkeys((each.host, each.student) for each in hosts_of(reading))
    for position, (host, student) in enumerate(pairs):
        teachers = [each for each in by_teacher(reading, host, student) if each.robust is not None and each.students]
        if teachers:
            made.append(_follows(reading, host, student, teachers, "" if position == 0 else student))
    return made


def _follows(reading: Reading, host: str, student: str, teachers: Sequence[TeacherResult], slug: str) -> Plot:
    variants = variants_of(reading)
    inside, outside = [t for t in teachers if not t.apart], [t for t in teachers if t.apart]
    left, top, height = 40, 34, 290
    aside = 50 + 74 * len(outside) if outside else 0
    wide = WIDTH - left - aside - 16
    name = host_name(reading, Host(host, student, ""))
    alt = f"Robust accuracy of students of {name} against that of their teachers, {' and '.join(variants)}."

    def draw(made: Canvas) -> None:
        main = panel(made, left, top, wide, height, first=True)
        apart = panel(made, left + wide + 44, top, aside - 44, height) if outside else None
        robust = [float(each.robust or 0) for each in inside]
        for index, variant in enumerate(variants):
            shift = (index - (len(variants) - 1) / 2) * max(0.0005, 0.015 * (max(robust) - min(robust)))
            for each in inside:
                _students(main, float(each.robust or 0) + shift, each.students.get(variant), index)
            line = trend(teachers, variant)
            if line is not None:
                ends = [min(robust), max(robust)]
                (drawn,) = main.plot(ends, [line.cells.at(x) for x in ends], color=mark(series(index)), linewidth=1.6)
                if dash(index):
                    drawn.set_dashes(dash(index))
            for at, each in enumerate(outside):
                if apart is not None:
                    _students(apart, at + (index - (len(variants) - 1) / 2) * 0.16, each.students.get(variant), index)
        along(main, "robust % of the teacher")
        if apart is not None:
            labels = [f"{each.role}\n{number(each.robust or 0.0, ROBUST)}" for each in outside]
            apart.set_xticks(range(len(outside)), labels)
            apart.set_xlim(-0.6, len(outside) - 0.4)
            words(made, left + wide + 44, top + height + 46, "apart, not in the lines", quiet=True)
        for axes in (main, apart):
            _same_heights([axes])
        taken, level = -math.inf, 0
        for x, role in sorted((float(each.robust or 0), each.role) for each in inside):
            at_pixel = float(main.transData.transform((x, 0))[0])
            level = level + 1 if at_pixel - LETTER * len(role) / 2 < taken else 0
            taken = max(taken, at_pixel + LETTER * len(role) / 2)
            main.annotate(
                role, (x, 0), xycoords=("data", "axes fraction"), xytext=(0, 5 + 12 * level),
                textcoords="offset points", ha="center", fontsize=10, color=mark("muted"),
            )  # fmt: skip
        head = f"{name}, robust %"
        words(made, 2, 14, head, quiet=True)
        slopes = [(index, _slope_text(variant, teachers), False) for index, variant in enumerate(variants)]
        legend(made, slopes, 26 + LETTER * len(head), 14)

    return plot(reading, slug, alt, draw, top + height + 56)


def _slope_text(variant: str, teachers: Sequence[TeacherResult]) -> str:
    found = trend(teachers, variant)
    if found is None:
        return variant
    reach = "" if found.teachers.half is None else f" ± {found.teachers.half:.2f}"
    return f"{variant}: slope {found.teachers.slope:.2f}{reach}".replace("-", "\N{MINUS SIGN}")


def _students(axes: object, x: float, mean: Mean | None, index: int) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes), "a panel"
    if mean is None:
        return
    if mean.n > 1:
        axes.plot(
            [x] * mean.n, mean.values, "o", color=mark(series(index)), markersize=2.6, alpha=0.45, markeredgewidth=0
        )
    dot(axes, x, mean.mean, index, reach=mean.interval, upright=True)


# tables of hosts ------------------------------------------------------------------------------------------------------
# Tables that hold variants of a host beside the host: plug-ins, nearness, ablation, teachers.


Cells = tuple[str | Entry, ...]


def plug_and_play_tables(reading: Reading) -> list[Sheet]:
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


def boundary_tables(reading: Reading) -> list[Sheet]:
    """What changes most, then margins, misreadings, entropy and distances of every variant."""
    first = variants_of(reading)[0]
    shown = (margin("teacher"), misread("teacher"), distance("teacher"), misread("student"))
    lines: list[Cells] = []
    for row in reading.grid.rows:
        reference = reading.reference(row)
        if reference is not None:
            pairs = ((mean_text(reading.mean(reference, q), q), _change(reading, row, reference, q)) for q in shown)
            lines.append((row_name(reading, row), *(cell for pair in pairs for cell in pair)))
    heads = ("", *(head for q in shown for head in (q.title, "change")))
    where = f"On {INPUTS['own']}; last weights."
    made = [Sheet(heads, tuple(lines), f"{where} Values of {first}, and what changes. {_WORDS}")]
    for state, said in INPUTS.items():
        quantities = boundary_quantities(state)
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


def ablation_tables(reading: Reading) -> list[Sheet]:
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


def saturation_tables(reading: Reading) -> list[Sheet]:
    """Students by teacher, the weakest first, and slopes."""
    made = []
    variants = variants_of(reading)
    first, added = variants[0], variants[1:]
    for host, student in dict.fromkeys((key.host, key.student) for key in hosts_of(reading)):
        teachers = by_teacher(reading, host, student)
        rows: list[Cells] = []
        for each in sorted(teachers, key=lambda t: t.apart):
            own = [NOTHING if value is None else number(value, ROBUST) for value in (each.robust, each.clean)]
            means = [mean_text(each.students.get(variant), ROBUST) for variant in variants]
            gains = [gap_entry(each.gains.get(variant), ROBUST) for variant in added]
            rows.append((each.role + (", apart" if each.apart else ""), *own, *means, *gains))
        name = host_name(reading, Host(host, student, ""))
        students = (*(f"{v}: robust %" for v in variants), *(f"gain of {v}" for v in added))
        heads = (f"{name}, teacher", "its robust %", "its clean %", *students)
        said = f"Of teachers the weights that taught. {_roles(teachers)} {_after_holm(teachers, added)}"
        made.append(Sheet(heads, tuple(rows), said.strip()))
        lines: list[Cells] = [(f"{name} {variant}", *_slopes(trend(teachers, variant))) for variant in variants]
        lines += [(f"{variant} minus {first}", *_slopes(trend(teachers, variant, first))) for variant in added]
        made.append(Sheet(("student's points for one of the teacher's", "slope", "± cells", "± teachers", "n"),
                          tuple(lines), _SLOPES))  # fmt: skip
    return made


def _after_holm(teachers: Sequence[TeacherResult], variants: Sequence[str]) -> str:
    """From which teachers a variant gains, or loses, once it is told that there are several."""
    said = []
    for variant in variants:
        ps = {t.role: p for t in teachers if variant in t.gains and (p := t.gains[variant].p()) is not None}
        clear = [role for role, p in zip(ps, holm(list(ps.values())), strict=True) if p < LEVEL]
        if len(ps) > 1:
            said.append(f"{variant}: {', '.join(clear) or 'none'} of {len(ps)}")
    return f"Beyond noise after Holm over the teachers: {'; '.join(said)}." if said else ""


def _roles(teachers: Sequence[TeacherResult]) -> str:
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
