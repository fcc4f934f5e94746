"""Writing the report into a file: once, or again and again while runs go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mmard.errors import Refused, require
from mmard.report.page import Live, page
from mmard.report.subject import Subject, subject
from mmard.storage import write_whole

MADE_BY = '<meta name="generator" content="mmard '


def default_out(runs: Sequence[str | Path]) -> Path:
    """Where a report goes if nobody says: into the folder of a single run, else into the working directory."""
    return Path(runs[0]) / "report.html" if len(runs) == 1 else Path("report.html")


def write_report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    watch: int | None = None,
    told: Callable[[Path, Subject], None] | None = None,
) -> Path:
    """Write one self-contained HTML page about runs, from their folders alone.

    Args:
        runs: run folders; those that differ in their seed alone are shown together.
        out: the file; `default_out` if not given. A file that is no report of ours is never written over.
        watch: write it anew every so many seconds until all runs are finished; the page then reloads itself.
        told: called after each writing.

    Returns:
        The file.

    Raises:
        Refused: if a folder holds no run, matplotlib is not installed, or the file is something else or cannot be
            written.
    """
    paths = [runs] if isinstance(runs, str | Path) else list(runs)
    about = subject(paths)
    file = default_out(paths) if out is None else Path(out)
    _refuse_others(file)
    if watch is not None:
        require(watch >= 1, "--watch", expected="at least 1 second", got=watch)
    drawn: list[tuple[str, int, int]] = []
    while watch is not None and not all(run.finished for run in about.runs):
        if (now := _stamps(about, file)) != drawn:
            _write(file, page(about, Live(watch)))
            drawn = now
        if told is not None:
            told(file, about)
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            # The last page must not claim to be live.
            _write(file, page(subject(paths)))
            raise
        about = subject(paths)
    _write(file, page(about))
    if told is not None:
        told(file, about)
    return file


def _stamps(about: Subject, page_file: Path) -> list[tuple[str, int, int]]:
    """What tells whether a file of the runs has changed since the last page."""
    files = [file for run in about.runs for file in sorted(run.run.path.rglob("[!.]*")) if file.is_file()]
    stats = [(file, file.stat()) for file in files if file.resolve() != page_file.resolve() and file.exists()]
    return [(str(file), stat.st_mtime_ns, stat.st_size) for file, stat in stats]


def _write(file: Path, text: str) -> None:
    write_whole(file, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _refuse_others(file: Path) -> None:
    """Refuse a file that somebody else made, and a folder that is not there."""
    if file.is_dir():
        raise Refused(str(file), expected="a file to write", got="a folder", mend=f"--out {file / 'report.html'}")
    if not file.parent.is_dir():
        raise Refused(str(file), expected="a folder that exists", got="none", mend=f"mkdir -p {file.parent}")
    if not file.exists():
        return
    with file.open("rb") as opened:
        head = opened.read(4096).decode(errors="replace")
    if MADE_BY not in head:
        raise Refused(
            str(file), expected="a new file or an earlier report", got="another file", mend="choose another --out"
        )
