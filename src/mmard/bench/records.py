"""Files of benchmarks: dated JSON, and the chart beside it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmard.environment import now
from mmard.storage import write_json, write_whole

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
        from mmard.bench.chart import chart

        drawn = chart(record)
        files.append(file.with_suffix(".svg"))
        write_whole(files[-1], lambda temporary: _put(temporary, drawn))
    write_json(file, record)
    return {**record, "files": [str(path) for path in files]}


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
