"""Workers of this machine: spawned processes, one for each GPU or share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from uuid import uuid4

from filelock import Timeout

from mmard.errors import Refused, needs_extra, require, unknown
from mmard.files import read_json, write_json
from mmard.networks import pick_device
from mmard.run import now
from mmard.study.cell import ASIDE, Place, is_trained, is_whole, make
from mmard.study.grid import Cell

# running --------------------------------------------------------------------------------------------------------------
# Many cells: workers that each take what is open, until nothing is.
#
# A worker goes through the cells in their order, takes the first that is neither finished nor taken and whose teachers
# are trained, and goes through them again. What is taken is held by a lock in the runs folder, so workers of one
# command, of two, and of several machines with one file system share the work without speaking to each other; one that
# dies loses nothing that was saved. Nothing here plans: on a cluster its own scheduler starts the workers
# (`cluster.py`).


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


# workers --------------------------------------------------------------------------------------------------------------


def places_for(place: Place, cells: Sequence[Cell], jobs: int | None, device: str) -> list[Place]:
    """A place for each worker: a GPU each in turn, or a share of the cores.

    Args:
        place: the folders.
        cells: that will be made.
        jobs: workers; as many as the GPUs or the cores allow if None.
        device: "cpu", "cuda", one GPU ("cuda:1"), or "auto" for GPUs where there are any.

    Raises:
        Refused: for a device that is not there, or no worker.
    """
    import torch

    require(jobs is None or jobs >= 1, "jobs", expected="at least 1", got=jobs)
    kind = pick_device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if kind.type == "cpu":
        # A cell that says how many threads it takes decides how many have room.
        said = max((cell.settings.threads for cell in cells), default=0)
        jobs = jobs or (max(1, cores // said) if said else 1)
        return [replace(place, device="cpu", threads=max(1, cores // jobs))] * jobs
    gpus = [kind.index] if kind.index is not None else list(range(torch.cuda.device_count()))
    jobs = jobs or len(gpus)
    return [replace(place, device=f"cuda:{gpus[i % len(gpus)]}", threads=max(1, cores // jobs)) for i in range(jobs)]


@dataclass
class _Worker:
    process: Any
    ears: Connection
    number: int
    at: str = ""
    hears: bool = False


def run_here(work: Work, places: Sequence[Place], say: Say) -> None:
    """So many spawned workers at once, one for each place.

    A worker that dies (for lack of memory, say) fails the cell it was at, and another takes its place; one that dies
    at none is "lost", and the others go on without it.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when every worker has saved what it was at.
    """
    context = multiprocessing.get_context("spawn")
    (work.place.runs / ASIDE).mkdir(parents=True, exist_ok=True)

    def start(number: int) -> _Worker:
        ears, mouth = context.Pipe(duplex=False)
        given = replace(work, place=places[number])
        with _deaf():
            process = context.Process(target=_worker, args=(mouth, given, number), daemon=True)
            process.start()
        mouth.close()
        return _Worker(process, ears, number)

    with _terminated_as_interrupted():
        workers: list[_Worker] = []
        try:
            workers += [start(number) for number in range(len(places))]
            while workers:
                for gone in _heard(workers, say):
                    workers.remove(gone)
                    if gone.process.exitcode == 0:
                        continue
                    text = f"its process ended with {_ending(gone.process.exitcode)}"
                    say(Told(gone.number, "failed" if gone.at else "lost", gone.at, text=text))
                    if gone.at:
                        note_failure(work, gone.at, text)
                        workers.append(start(gone.number))
        except KeyboardInterrupt:
            _stop(workers, say)
            raise
        finally:
            for each in workers:
                each.process.kill()


def _heard(workers: Sequence[_Worker], say: Say) -> list[_Worker]:
    """Pass on what workers say; those that have ended."""
    by_ears = {worker.ears: worker for worker in workers}
    gone = []
    for ears in wait(list(by_ears), timeout=1.0):
        worker = by_ears[ears]  # type: ignore[index]
        try:
            told = Told(*worker.ears.recv())
        except EOFError:
            worker.process.join()
            gone.append(worker)
            continue
        worker.hears = True
        if told.kind == "ready":
            continue
        worker.at = told.cell if told.kind in ("began", "training", "attacking") else ""
        say(told)
    return gone


def _stop(workers: list[_Worker], say: Say) -> None:
    """Ask every worker to save and end, and wait until they have."""
    asked = set[int]()
    while workers:
        for each in workers:
            # One that is not ready has begun nothing, and would not hear.
            if not each.hears and not each.ears.poll():
                each.process.kill()
            elif each.hears and each.number not in asked and each.process.is_alive():
                asked.add(each.number)
                os.kill(each.process.pid, signal.SIGINT)
        for gone in _heard(workers, say):
            workers.remove(gone)


def _worker(mouth: Connection, work: Work, number: int) -> None:
    """What a spawned process does."""
    from mmard.training.fit import Interrupted

    # Ctrl-C in a terminal goes to a whole group; the first process passes it on, once.
    with suppress(OSError):
        os.setpgrp()
    alone = False

    def say(told: Told) -> None:
        nonlocal alone
        if alone:
            return
        try:
            mouth.send(tuple(told))
        except OSError:
            # Whoever listened is gone: save and end, as on Ctrl-C.
            alone = True
            os.kill(os.getpid(), signal.SIGINT)

    with suppress(Interrupted, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say(Told(number, "ready", ""))
        take_part(work, say, number)


def _ending(code: int) -> str:
    killed = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"status {code}" if code >= 0 else f"signal {-code}{killed}"


@contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started inside does not hear Ctrl-C until it says so."""
    try:
        kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread, where signals are nobody's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, kept)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        kept = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


# cluster --------------------------------------------------------------------------------------------------------------
# Workers as jobs of a cluster, by submitit (the extra "cluster"), whose scheduler decides when and where they run.
#
# A job is one worker of `running.take_part`: it makes cell after cell until none is left that it could make. As many
# jobs as are submitted share the cells through the runs folder, which all of them must see. One whose time is over is
# queued again, and goes on from what was saved.


LAUNCHERS = {"slurm": "slurm", "submitit-local": "local"}
"""What a launcher is called here, and by submitit."""


@dataclass(frozen=True)
class Wishes:
    """What is asked of the scheduler for each job.

    Attributes:
        partition: of SLURM; "" for its default.
        minutes: until a job is ended and queued again.
        cpus, gpus: for each job.
    """

    partition: str = ""
    minutes: int = 240
    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Part:
    """What a job does; submitit calls it, and asks it what to queue again when its time is over."""

    work: Work

    def __call__(self) -> dict[str, int]:
        """Make cells; how many of them were made, and failed."""
        import torch

        from mmard.training.fit import Interrupted

        torch.set_num_threads(self.work.place.threads)
        made = {"done": 0, "failed": 0}

        def say(told: Told) -> None:
            if told.kind in ("began", "done", "failed"):
                print(f"{told.kind} {told.cell} {told.text}".rstrip(), flush=True)
            if told.kind in made:
                made[told.kind] += 1

        try:
            take_part(self.work, say)
        except Interrupted:
            raise KeyboardInterrupt from None
        return made

    def checkpoint(self) -> Any:
        """The rest of the work is the same work: what is finished is skipped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(work: Work, jobs: int, launcher: str, wishes: Wishes) -> Sequence[Any]:
    """Submit so many jobs that share the work; submitit's handles of them.

    Raises:
        Refused: for a launcher that is none, where submitit is not installed, or where there is no such scheduler.
    """
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, ("local", *LAUNCHERS))
    require(jobs >= 1, "jobs", expected="at least 1", got=jobs)
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise needs_extra("submitit", "cluster", f"launcher {launcher}") from None
    kind = LAUNCHERS[launcher]
    place = work.place
    data_dir = None if place.data_dir is None else str(Path(place.data_dir).resolve())
    place = replace(place, runs=place.runs.resolve(), data_dir=data_dir, threads=wishes.cpus)
    folder = place.runs / ASIDE / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_absent(kind)
    executor = AutoExecutor(folder=folder, cluster=kind)
    asked: dict[str, Any] = {"timeout_min": wishes.minutes, "cpus_per_task": wishes.cpus, "name": "mmard"}
    if wishes.gpus:
        asked["gpus_per_node"] = wishes.gpus
    if wishes.partition:
        asked["slurm_partition"] = wishes.partition
    executor.update_parameters(**asked)
    part = Part(replace(work, place=place))
    with executor.batch():
        handles = [executor.submit(part) for _ in range(jobs)]
    return handles


def _refuse_absent(kind: str) -> None:
    """Refuse SLURM where there is none; submitit would fail with an error of its own."""
    from shutil import which

    require(
        kind != "slurm" or which("srun") is not None,
        "launcher slurm",
        expected="a machine that submits to SLURM",
        got="no srun here",
        mend="--launcher local uses the cores and GPUs of this machine",
    )
