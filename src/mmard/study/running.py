"""Many cells: workers that each take what is open, until nothing is.

A worker goes through the cells in their order, takes the first that is neither finished nor taken and whose teachers
are trained, and goes through them again. What is taken is held by a lock in the runs folder, so workers of one command,
of two, and of several machines with one file system share the work without speaking to each other; one that dies loses
nothing that was saved. Nothing here plans: on a cluster its own scheduler starts the workers (`cluster.py`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from filelock import Timeout

from mmard.environment import now
from mmard.errors import Refused
from mmard.storage import read_json, write_json
from mmard.study.cell import make
from mmard.study.grid import Cell
from mmard.study.place import ASIDE, Place, is_trained, is_whole

POLL_SECONDS = 1.0
"""Time between looks at what others hold."""
TELL_SECONDS = 0.5


class Told(NamedTuple):
    """What a worker says: that it is "ready"; that a cell "began", is "training" or "attacking" with a share of it
    done, is "done", "failed" or "interrupted". Of a worker that died at no cell it is said that it is "lost"."""

    worker: int
    kind: str
    cell: str
    share: float = 0.0
    seconds: float = 0.0
    text: str = ""


Say = Callable[[Told], None]


def new_session() -> str:
    """A name for one call of a command: what failed in it is not tried again in it."""
    return uuid4().hex


@dataclass(frozen=True)
class Work:
    """What the workers of one call share.

    Attributes:
        cells: by name, each after its teachers.
        place: where.
        session: of `new_session`.
    """

    cells: Mapping[str, Cell]
    place: Place
    session: str = field(default_factory=new_session)


# failures -------------------------------------------------------------------------------------------------------------
def failure_file(place: Place, name: str) -> Path:
    """Where it is told why a cell failed the last time."""
    return place.runs / ASIDE / f"{name}.failed.json"


def failure(place: Place, name: str) -> dict[str, Any] | None:
    """Why a cell failed the last time; None if it did not."""
    file = failure_file(place, name)
    return read_json(file) if file.is_file() else None


def note_failure(work: Work, name: str, text: str, trace: str = "") -> None:
    """Tell the other workers, and whoever asks later."""
    file = failure_file(work.place, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"cell": name, "session": work.session, "error": text, "traceback": trace, "written": now()})


# one worker -----------------------------------------------------------------------------------------------------------
def take_part(work: Work, say: Say, worker: int = 0) -> None:
    """Make cells until none is left that this process could make.

    Raises:
        Interrupted, KeyboardInterrupt: when the user stops it; what was begun is saved.
    """
    left, sure = dict(work.cells), False
    while left:
        found = _next(work, left)
        if found == "wait":
            time.sleep(POLL_SECONDS)
        elif found is None:
            if sure:
                return
            # Who asks whether a cell is held holds it for a moment.
            sure = True
            time.sleep(0.1)
        else:
            sure = False
            cell = left[found]
            # Between the look and the lock another process may have taken it, or finished it.
            with suppress(Timeout), work.place.lock(found):
                if not is_whole(cell, work.place.record(found)):
                    _make(work, cell, say, worker)


def _next(work: Work, left: dict[str, Cell]) -> str | None:
    """The cell to make now; "wait" if there will be one when others are done; None if there will not.

    What is finished, has failed, or can never be made is taken out of `left`.
    """
    waiting = False
    for name, cell in list(left.items()):
        if is_whole(cell, work.place.record(name)) or _lost(work, cell):
            del left[name]
        elif all(is_trained(work.place, teacher) for teacher in cell.teachers.values()):
            if not work.place.held(name):
                return name
        else:
            waiting = True
    return "wait" if waiting else None


def _lost(work: Work, cell: Cell) -> bool:
    """Whether a cell, or a teacher that it needs, has failed in this session."""
    why = failure(work.place, cell.name)
    if why is not None and why["session"] == work.session:
        return True
    teachers = [name for name in cell.teachers.values() if name in work.cells and not is_trained(work.place, name)]
    return any(_lost(work, work.cells[name]) for name in teachers)


def _make(work: Work, cell: Cell, say: Say, worker: int) -> None:
    from mmard.training.fit import Interrupted

    began = told = time.monotonic()
    say(Told(worker, "began", cell.name))

    def tell(stage: str, share: float) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            say(Told(worker, stage, cell.name, share, told - began))

    try:
        make(cell, work.place, tell)
    except (Interrupted, KeyboardInterrupt):
        say(Told(worker, "interrupted", cell.name))
        raise
    except Exception as error:  # a cell that fails, by whatever fault, does not stop the others
        text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        note_failure(work, cell.name, text, "" if isinstance(error, Refused) else traceback.format_exc())
        say(Told(worker, "failed", cell.name, text=text, seconds=time.monotonic() - began))
        return
    failure_file(work.place, cell.name).unlink(missing_ok=True)
    say(Told(worker, "done", cell.name, 1.0, time.monotonic() - began))
