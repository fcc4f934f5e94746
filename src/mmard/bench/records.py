"""Files of benchmarks: dated JSON, and the chart beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmard.bench.machine import Spread
from mmard.bench.variants import KNOWN
from mmard.files import write_json, write_text
from mmard.report.drawing import LETTER, LETTERS, canvas, need_plots, standing_alone
from mmard.report.palette import mark, marker, series
from mmard.run import now

FORMAT = 2
"""Of the record; raise it when a name or a unit changes."""


def default_folder(here: Path | None = None) -> Path:
    """benchmarks/results of the checkout that this folder lies in, or else the folder itself."""
    here = here or Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "src" / "mmard").is_dir() and (folder / "benchmarks").is_dir():
            return folder / "benchmarks" / "results"
    return here


def write(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a record and, where matplotlib is installed, its chart.

    Returns:
        The record with "files", the names of both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy = re.sub(r"[^a-z0-9]+", "-", f"{record.get('size', {}).get('name', '')} {record['device']}".lower()).strip("-")
    stem = f"{record['kind']}-{now()[:10]}-{tidy}"
    file = next(path for k in range(1, 10_000) if not (path := folder / f"{stem}-{k}.json").exists())
    files = [file]
    if record["kind"] == "bench" and find_spec("matplotlib") is not None and (record["methods"] or record["pairs"]):
        files.append(file.with_suffix(".svg"))
        write_text(files[-1], chart(record))
    write_json(file, record)
    return {**record, "files": [str(path) for path in files]}


WIDTH, ROW = 640, 22
PAIR_GAP = 0.6
"""Rows between methods and pairs."""


def chart(record: Mapping[str, Any]) -> str:
    """A whole SVG file, in the reader's light or dark colours.

    Raises:
        Refused: where matplotlib is not installed.
    """
    need_plots()
    rows = [*record["methods"], *record["pairs"]]
    names = list(dict.fromkeys(name for row in rows for name in row["variants"] if name != "plain"))
    labels, places, place = [], [], 0.0
    for number, row in enumerate(rows):
        if number == len(record["methods"]) and number:
            place += PAIR_GAP
        pair = number >= len(record["methods"])
        labels.append(f"{row['method']}  {row['networks']}" if pair else row["method"])
        places.append(place)
        place += 1
    left = 16 + LETTER * max(map(len, labels))
    height = 88 + ROW * (place + 0.4)
    alt = f"Step time of the plain path over that of the engine, by method, on {_machine(record)}"
    with canvas("bench", alt, width=WIDTH, height=height, left=left, right=16, top=30, bottom=66) as made:
        axes = made.axes
        axes.axvline(1, color=mark("muted"), linewidth=1, zorder=0)
        for index, name in enumerate(names):
            shift = (index - (len(names) - 1) / 2) * 0.24
            colour = mark(series(index))
            for at, row in zip(places, rows, strict=True):
                own = row["variants"].get(name)
                if own is None:
                    continue
                ratio, y = own["ratio"], at + shift
                if Spread(**ratio).known:
                    axes.plot([ratio["low"], ratio["high"]], [y, y], color=colour, linewidth=1.4, alpha=0.5)
                axes.plot([ratio["median"]], [y], marker=marker(index), color=colour, markersize=5, markeredgewidth=0)
            key = (left + 4 + index * 118) / WIDTH
            look: dict[str, Any] = {"marker": marker(index), "color": colour, "markersize": 5, "markeredgewidth": 0}
            axes.plot([key], [1 - 14 / height], transform=made.figure.transFigure, clip_on=False, **look)
            made.figure.text(key + 9 / WIDTH, 1 - 14 / height, _said(name), fontsize=LETTERS, va="center_baseline")
        axes.set_yticks(places, labels)
        axes.tick_params(axis="y", labelcolor=mark("ink"))
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(
            "times as fast as the plain path: median and quartiles of paired ratios", loc="right", labelpad=3
        )
        for line, text in enumerate((_networks(record), _machine(record))):
            made.figure.text(
                1 - 16 / WIDTH, (22 - 14 * line) / height, text, fontsize=LETTERS - 1, ha="right", color=mark("muted")
            )
    return standing_alone(made.svg, WIDTH, height)


def _said(name: str) -> str:
    return f"{name.removesuffix(KNOWN)}, T(x) known" if name.endswith(KNOWN) else name


def _networks(record: Mapping[str, Any]) -> str:
    """The networks of the rows that do not name theirs."""
    rows = record["methods"]
    return f"networks where none are named: {max((row['networks'] for row in rows), key=len)}" if rows else ""


def _machine(record: Mapping[str, Any]) -> str:
    here = record["environment"]
    device = re.sub(r"\s+", " ", here["cpu"] if record["device"] == "cpu" else record["device"])
    counts = [
        own["step_seconds"]["n"] for row in (*record["methods"], *record["pairs"]) for own in row["variants"].values()
    ]
    times = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(min(counts))
    batches = ", ".join(map(str, sorted({row["batch"] for row in (*record["methods"], *record["pairs"])})))
    return f"{device}; {record['clock']}; batch {batches}; n = {times}; {here['written'][:10]}"
