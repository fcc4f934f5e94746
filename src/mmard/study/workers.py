"""Workers that make the cells of studies: spawned processes of this machine, or jobs of a cluster.

    run_here(work, sites, report)    one spawned worker for each site: a GPU, or a share of the cores
    submit(work, jobs, ...)          jobs of a scheduler, by submitit (the extra "cluster")

Each worker takes the first cell that is neither finished nor locked and whose teachers are trained, makes it, and looks
again (`take_part`). The lock is a file in the runs folder, so that workers of one command, of several, and of several
machines with one file system share the work without speaking to each other; one that dies loses nothing that was saved.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
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
from mmard.study.cell import ASIDE, Site, is_complete, is_trained, make
from mmard.study.grid import Cell

POLL_SECONDS = 1.0
"""Time between looks at what others hold."""
REPORT_SECONDS = 0.5
LAUNCHERS = {"slurm": "slurm", "submitit-local": "local"}
"""What a launcher is called here, and by submitit."""


class Message(NamedTuple):
    """What a worker reports: that it is "ready"; that a cell "began", is "training" or "attacking" with a share of it
    done, is "done", "failed" or "interrupted". Of a worker that died at no cell it is reported that it is "lost"."""

    worker: int
    kind: str
    cell: str
    share: float = 0.0
    seconds: float = 0.0
    text: str = ""


Report = Callable[[Message], None]


@dataclass(frozen=True)
class Work:
    """What the workers of one command share.

    Attributes:
        cells: by name, each after its teachers.
        site: where they are made.
        session: of one command; what failed in it is not tried again in it.
    """

    cells: Mapping[str, Cell]
    site: Site
    session: str = field(default_factory=lambda: uuid4().hex)


def failure_file(site: Site, name: str) -> Path:
    """Why a cell failed the last time."""
    return site.runs / ASIDE / f"{name}.failed.json"


def failure(site: Site, name: str) -> dict[str, Any] | None:
    """Why a cell failed the last time; None if it did not."""
    file = failure_file(site, name)
    return read_json(file) if file.is_file() else None


def write_failure(work: Work, name: str, text: str, trace: str = "") -> None:
    """Note a failure for the other workers, and for whoever asks later."""
    file = failure_file(work.site, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"cell": name, "session": work.session, "error": text, "traceback": trace, "written": now()})


def take_part(work: Work, report: Report, worker: int = 0) -> None:
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
            # A process that asks whether a cell is locked locks it for a moment: look twice.
            sure = True
            time.sleep(0.1)
        else:
            sure = False
            # Between the look and the lock another process may have taken the cell, or finished it.
            with suppress(Timeout), work.site.lock(found):
                if not is_complete(left[found], work.site.record(found)):
                    _make(work, left[found], report, worker)


def _next(work: Work, left: dict[str, Cell]) -> str | None:
    """The cell to make now; "wait" if there will be one when others are done; None if there will not.

    What is finished, has failed, or can never be made is taken out of `left`.
    """
    waiting = False
    for name, cell in list(left.items()):
        if is_complete(cell, work.site.record(name)) or _failed(work, cell):
            del left[name]
        elif not all(is_trained(work.site, teacher) for teacher in cell.teachers.values()):
            waiting = True
        elif not work.site.is_locked(name):
            return name
    return "wait" if waiting else None


def _failed(work: Work, cell: Cell) -> bool:
    """Whether a cell, or a teacher that it needs, has failed in this session."""
    why = failure(work.site, cell.name)
    if why is not None and why["session"] == work.session:
        return True
    teachers = [name for name in cell.teachers.values() if name in work.cells and not is_trained(work.site, name)]
    return any(_failed(work, work.cells[name]) for name in teachers)


def _make(work: Work, cell: Cell, report: Report, worker: int) -> None:
    from mmard.training.fit import Interrupted

    began = last = time.monotonic()
    report(Message(worker, "began", cell.name))

    def progress(stage: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            report(Message(worker, stage, cell.name, share, last - began))

    try:
        make(cell, work.site, progress)
    except (Interrupted, KeyboardInterrupt):
        report(Message(worker, "interrupted", cell.name))
        raise
    except Exception as error:  # a cell that fails, by whatever fault, does not stop the others
        text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        write_failure(work, cell.name, text, "" if isinstance(error, Refused) else traceback.format_exc())
        report(Message(worker, "failed", cell.name, text=text, seconds=time.monotonic() - began))
        return
    failure_file(work.site, cell.name).unlink(missing_ok=True)
    report(Message(worker, "done", cell.name, 1.0, time.monotonic() - began))


def sites_for(site: Site, cells: Sequence[Cell], jobs: int | None, device: str) -> list[Site]:
    """A site for each worker: a GPU each in turn, or a share of the cores.

    Args:
        site: the folders.
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
        # The thread count that cells ask for decides how many have room.
        threads = max((cell.settings.threads for cell in cells), default=0)
        jobs = jobs or (max(1, cores // threads) if threads else 1)
        return [replace(site, device="cpu", threads=max(1, cores // jobs))] * jobs
    gpus = [kind.index] if kind.index is not None else list(range(torch.cuda.device_count()))
    jobs = jobs or len(gpus)
    return [replace(site, device=f"cuda:{gpus[i % len(gpus)]}", threads=max(1, cores // jobs)) for i in range(jobs)]


@dataclass
class _Worker:
    """A process, the end of a pipe that its messages come from, and the cell that it is at."""

    process: Any
    messages: Connection
    number: int
    at: str = ""
    ready: bool = False


def run_here(work: Work, sites: Sequence[Site], report: Report) -> None:
    """Make cells in spawned processes, one for each site.

    A worker that dies (for lack of memory, perhaps) fails the cell it was at, and another takes its turn; one that dies
    at none is "lost", and the others go on without it.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when every worker has saved what it was at.
    """
    context = multiprocessing.get_context("spawn")
    (work.site.runs / ASIDE).mkdir(parents=True, exist_ok=True)

    def start(number: int) -> _Worker:
        messages, sender = context.Pipe(duplex=False)
        # A process that is being started does not take Ctrl-C until it is ready.
        with _handled(signal.SIGINT, signal.SIG_IGN):
            own = replace(work, site=sites[number])
            process = context.Process(target=_worker, args=(sender, own, number), daemon=True)
            process.start()
        sender.close()
        return _Worker(process, messages, number)

    with _handled(signal.SIGTERM, _interrupt):
        workers: list[_Worker] = []
        try:
            workers += [start(number) for number in range(len(sites))]
            while workers:
                for ended in _receive(workers, report):
                    workers.remove(ended)
                    if ended.process.exitcode == 0:
                        continue
                    text = f"its process ended with {_ending(ended.process.exitcode)}"
                    report(Message(ended.number, "failed" if ended.at else "lost", ended.at, text=text))
                    if ended.at:
                        write_failure(work, ended.at, text)
                        workers.append(start(ended.number))
        except KeyboardInterrupt:
            _stop(workers, report)
            raise
        finally:
            for each in workers:
                each.process.kill()


def _receive(workers: Sequence[_Worker], report: Report) -> list[_Worker]:
    """Pass on the messages of workers; those that have ended."""
    by_pipe = {worker.messages: worker for worker in workers}
    ended = []
    for pipe in wait(list(by_pipe), timeout=1.0):
        worker = by_pipe[pipe]  # type: ignore[index]
        try:
            message = Message(*worker.messages.recv())
        except EOFError:
            worker.process.join()
            ended.append(worker)
            continue
        worker.ready = True
        if message.kind != "ready":
            worker.at = message.cell if message.kind in ("began", "training", "attacking") else ""
            report(message)
    return ended


def _stop(workers: list[_Worker], report: Report) -> None:
    """Ask every worker to save and end, and wait until they have."""
    asked = set[int]()
    while workers:
        for each in workers:
            # One that is not ready has begun nothing, and does not take signals.
            if not each.ready and not each.messages.poll():
                each.process.kill()
            elif each.ready and each.number not in asked and each.process.is_alive():
                asked.add(each.number)
                os.kill(each.process.pid, signal.SIGINT)
        for ended in _receive(workers, report):
            workers.remove(ended)


def _worker(sender: Connection, work: Work, number: int) -> None:
    """What a spawned process does."""
    from mmard.training.fit import Interrupted

    # Ctrl-C in a terminal goes to a whole group; the first process passes it on, once.
    with suppress(OSError):
        os.setpgrp()
    alone = False

    def report(message: Message) -> None:
        nonlocal alone
        if alone:
            return
        try:
            sender.send(tuple(message))
        except OSError:
            # The command has ended: save and end, as on Ctrl-C.
            alone = True
            os.kill(os.getpid(), signal.SIGINT)

    with suppress(Interrupted, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        report(Message(number, "ready", ""))
        take_part(work, report, number)


def _ending(code: int) -> str:
    killed = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"status {code}" if code >= 0 else f"signal {-code}{killed}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """A signal handled in another way for a while; in a thread, which gets no signals, nothing changes."""
    try:
        before = signal.signal(number, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)


@dataclass(frozen=True)
class JobLimits:
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
class ClusterJob:
    """One worker as a job; submitit calls it, and asks it what to queue again when its time is over."""

    work: Work

    def __call__(self) -> dict[str, int]:
        """Make cells; how many of them were made, and failed."""
        import torch

        from mmard.training.fit import Interrupted

        torch.set_num_threads(self.work.site.threads)
        made = {"done": 0, "failed": 0}

        def report(message: Message) -> None:
            if message.kind in ("began", "done", "failed"):
                print(f"{message.kind} {message.cell} {message.text}".rstrip(), flush=True)
            if message.kind in made:
                made[message.kind] += 1

        try:
            take_part(self.work, report)
        except Interrupted:
            raise KeyboardInterrupt from None
        return made

    def checkpoint(self) -> Any:
        """The rest of the work is the same work: what is finished is skipped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(work: Work, jobs: int, launcher: str, limits: JobLimits) -> Sequence[Any]:
    """Submit jobs that share the work; submitit's handles of them.

    Raises:
        Refused: for an unknown launcher, where submitit is not installed, or where there is no such scheduler.
    """
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, ("local", *LAUNCHERS))
    require(jobs >= 1, "jobs", expected="at least 1", got=jobs)
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise needs_extra("submitit", "cluster", f"launcher {launcher}") from None
    # submitit would fail with an error of its own.
    require(
        launcher != "slurm" or shutil.which("srun") is not None,
        "launcher slurm",
        expected="a machine that submits to SLURM",
        got="no srun here",
        mend="--launcher local uses the cores and GPUs of this machine",
    )
    site = work.site
    data_dir = None if site.data_dir is None else str(Path(site.data_dir).resolve())
    site = replace(site, runs=site.runs.resolve(), data_dir=data_dir, threads=limits.cpus)
    folder = site.runs / ASIDE / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    executor = AutoExecutor(folder=folder, cluster=LAUNCHERS[launcher])
    asked: dict[str, Any] = {"timeout_min": limits.minutes, "cpus_per_task": limits.cpus, "name": "mmard"}
    asked |= {"gpus_per_node": limits.gpus} if limits.gpus else {}
    asked |= {"slurm_partition": limits.partition} if limits.partition else {}
    executor.update_parameters(**asked)
    job = ClusterJob(replace(work, site=site))
    with executor.batch():
        return [executor.submit(job) for _ in range(jobs)]
