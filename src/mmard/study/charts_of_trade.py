"""The plot of what methods trade: clean accuracy along, robust accuracy up, a line for each that has several rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmard.report.drawing import Canvas
from mmard.report.labels import Box, labels, write_names
from mmard.report.palette import mark, series
from mmard.study.drawn import WIDE, WIDTH, Plot, around, dot, in_percent, key, panel, plot, words
from mmard.study.grid import Row
from mmard.study.rows import axes_of, host_name, hosts_of, rows_of, short
from mmard.study.summary import CLEAN, ROBUST, Mean, Reading
from mmard.study.trade import lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 380
BOTTOM = 40
LETTER_HEIGHT = 13.0


def trade_off(reading: Reading) -> list[Plot]:
    """Every row where it stands, those of one method joined."""
    found = lines(reading)
    if not found:
        return []
    hosts = hosts_of(reading)
    left, top = 44, 30
    names = ", ".join(host_name(reading, host) for host in hosts)
    alt = f"Robust accuracy against clean accuracy, along a weight of each method's own: {names}."

    def draw(made: Canvas) -> None:
        axes = panel(made, left, top, WIDTH - left - 12, HEIGHT, first=True)
        said: dict[tuple[float, float], str] = {}
        shown: list[tuple[int, str, bool]] = []
        for index, host in enumerate(hosts):
            rows = found.get(host, rows_of(reading, host))
            places = {row: place for row in rows if (place := _place(reading, row)) is not None}
            at = {row: (clean.mean, robust.mean) for row, (clean, robust) in places.items()}
            axes.plot(*zip(*at.values(), strict=True), color=mark(series(index)), linewidth=1, zorder=1)
            for row, (clean, robust) in places.items():
                dot(axes, *at[row], index, thin=around(clean.mean, clean.deviation))
                dot(axes, *at[row], index, thin=around(robust.mean, robust.deviation), upright=True)
                said[at[row]] = _value(reading, row) if len(at) > 1 else host_name(reading, host)
            if len(at) > 1:
                shown.append((index, " by ".join([host_name(reading, host), *axes_of(reading, host)]), False))
        axes.margins(0.08, 0.08)
        _in_percent(axes)
        words(made, 2, 14, "robust %", quiet=True)
        key(made, shown, left + 40, 14)
        words(made, 2, top + HEIGHT + BOTTOM - 8, "means, and thin the standard deviation over seeds", quiet=True)
        made.figure.draw_without_rendering()
        points = [(float(x), float(y)) for x, y in (axes.transData.transform(each) for each in said)]
        box = axes.get_window_extent()
        sizes = [(WIDE * len(name), LETTER_HEIGHT) for name in said.values()]
        placed = labels(points, sizes, Box(box.x0 + 2, box.y0 + 2, box.x1, box.y1))
        write_names(made, axes, list(said.values()), points, placed)

    return [plot(reading, "", alt, draw, top + HEIGHT + BOTTOM)]


def _place(reading: Reading, row: Row) -> tuple[Mean, Mean] | None:
    clean, robust = reading.mean(row, CLEAN), reading.mean(row, ROBUST)
    return None if clean is None or robust is None else (clean, robust)


def _value(reading: Reading, row: Row) -> str:
    axis = row.axis or next(each.axis for each in reading.grid.rows if each.host == row.host and each.axis)
    return short(reading.value(row, axis))


def _in_percent(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for each in (axes.xaxis, axes.yaxis):
        each.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        each.set_major_formatter(FuncFormatter(in_percent))
    axes.grid(visible=True, axis="both")
    axes.set_xlabel("clean %", loc="right", labelpad=3)
