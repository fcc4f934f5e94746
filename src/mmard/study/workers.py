"""Workers of this machine: spawned processes, one for each GPU or share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from mmard.devices import pick_device
from mmard.errors import require
from mmard.study.grid import Cell
from mmard.study.place import ASIDE, Place
from mmard.study.running import Say, Told, Work, note_failure, take_part


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
