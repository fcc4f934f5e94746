"""Several processes at one evaluation, which share its batches through a folder (`journal.py`).

`measure(processes=N)`: the process that was called spawns the others and takes part. They end when nothing is left to
do, when it ends, or when it dies. One of them that dies costs the batch it was at, which another takes over.

`torchrun --nproc-per-node 2 -m mmard evaluate RUN --attack aa`: the processes that PyTorch's launcher started meet in a
folder. The first is at the whole evaluation (`lead`), and writes and speaks; the others take their part of those
attacks whose batches can be shared (`follow`).
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import torch
from torch import nn

from mmard._version import __version__
from mmard.data.image_set import ImageSet
from mmard.errors import Refused, require
from mmard.evaluation import evaluate
from mmard.evaluation.evaluate import Measured, Protocol, Witness
from mmard.evaluation.journal import Progress
from mmard.files import weights_hash
from mmard.ranks import Lost, Ranks


def measure(
    model: nn.Module,
    images: ImageSet,
    protocol: Protocol,
    *,
    split: str,
    which: str,
    progress: Progress | None = None,
    witness: Witness | None = None,
    finished: Callable[[Measured], None] | None = None,
    folder: Path | None = None,
    processes: int = 1,
) -> list[Measured]:
    """As `evaluate.measure`, by this process and others that are spawned.

    Args:
        processes: how many take part, this one included. Where a witness sees to the attacks that return their last
            iterate, the others take part in the rest alone.

    Raises:
        Refused: as `evaluate.measure`, and for a network that cannot be sent to another process.
    """
    require(processes >= 1, "processes", expected="at least 1", got=processes)
    with TemporaryDirectory() as passing, ExitStack() as company:
        if processes > 1:
            folder = folder or Path(passing)
            shared = shareable(protocol, witness is not None)
            if shared.attacks:
                company.enter_context(shared_work(processes, model, images, shared, split, which, folder))
        return evaluate.measure(
            model,
            images,
            protocol,
            split=split,
            which=which,
            progress=progress,
            witness=witness,
            finished=finished,
            folder=folder,
        )


def shareable(protocol: Protocol, witnessed: bool) -> Protocol:
    """With the attacks that other processes can take part in.

    Who has a witness sees to the others alone; what other processes would do of them is for nothing.
    """
    return protocol.only(*(attack for attack in protocol.attacks if not witnessed or attack.stops_at_success))


@contextmanager
def shared_work(
    processes: int, model: nn.Module, images: ImageSet, protocol: Protocol, split: str, which: str, folder: Path
) -> Iterator[None]:
    """So many processes, this one included, at the same call of `evaluate.measure` inside.

    Threads are divided among them. On CUDA devices they take turns at all of them, unless one of them is alone.

    Args:
        processes: at least 2.
        model, images, protocol, split, which: as in `measure`.
        folder: where verdicts are kept.

    Raises:
        Refused: for a network that cannot be sent to another process.
    """
    threads = torch.get_num_threads()
    each = max(threads // processes, 1)
    state = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
    context = multiprocessing.get_context("spawn")
    others = []
    try:
        sent = copy.deepcopy(model).cpu()
        for k in range(1, processes):
            device = f"cuda:{k % torch.cuda.device_count()}" if state.is_cuda else "cpu"
            work = (sent, images, protocol, split, which, folder, device, each, os.getpid())
            other = context.Process(target=_take_part, args=work, daemon=True)
            other.start()
            others.append(other)
    except (TypeError, AttributeError, RuntimeError) as error:
        for other in others:
            other.terminate()
        raise Refused(
            f"{processes} processes",
            expected="a network that can be copied and sent to another process",
            got=f"{type(model).__name__}: {error}",
            mend="use one process, or type the same command in several terminals",
        ) from error
    try:
        torch.set_num_threads(each)
        yield
        for other in others:
            other.join()
    finally:
        torch.set_num_threads(threads)
        for other in others:
            other.terminate()


def _take_part(
    model: nn.Module,
    images: ImageSet,
    protocol: Protocol,
    split: str,
    which: str,
    folder: Path,
    device: str,
    threads: int,
    parent: int,
) -> None:
    """What a spawned process does."""

    def told(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    torch.set_num_threads(threads)
    try:
        evaluate.measure(model.to(device), images, protocol, split=split, which=which, folder=folder, progress=told)
    except (Refused, KeyboardInterrupt):
        return  # the first process meets the same and says it


AGAIN = "see why it died, and type the same command again"


@contextmanager
def lead(ranks: Ranks | None, model: nn.Module, images: ImageSet, folder: Path | None) -> Iterator[Path | None]:
    """The folder in which the processes meet, for the first of them, which makes the whole evaluation inside.

    Args:
        ranks: this process among the others; None for one alone, which stays so.
        model, images: as in `measure`; they must be the same everywhere.
        folder: where verdicts are to be kept; None for a passing one.

    Raises:
        Refused: if the processes have different networks, images or versions, or do not see one folder.
        Lost: if the launcher stops this process because another has died.
    """
    if ranks is None:
        yield folder
        return
    with _met(ranks, model, images, folder) as place, _told_if_stopped(ranks, folder is not None):
        yield place


def follow(
    ranks: Ranks,
    model: nn.Module,
    images: ImageSet,
    protocol: Protocol,
    *,
    split: str,
    which: str,
    witnessed: bool,
) -> None:
    """What a process does that is not the first; it returns when nothing is left that can be shared.

    Args:
        ranks: this process among the others.
        model, images, protocol, split, which: as in `measure`.
        witnessed: whether the first process wants to see the examples of attacks, and therefore makes them alone.

    Raises:
        Refused: as `lead`.
    """
    # Of Ctrl-C, and of what is wrong with the network, the first process speaks.
    with _met(ranks, model, images, None) as place, suppress(KeyboardInterrupt):
        shared = shareable(protocol, witnessed)
        try:
            if shared.attacks:
                with suppress(Refused):
                    evaluate.measure(model, images, shared, split=split, which=which, folder=place)
        except OSError:
            if place.exists():
                raise  # else the first process was done, and has cleared a passing folder away


@contextmanager
def _met(ranks: Ranks, model: nn.Module, images: ImageSet, folder: Path | None) -> Iterator[Path]:
    """The folder that all processes share: the first one's, or a passing one of its."""
    ranks.refuse_unequal("version", f"mmard {__version__}, torch {torch.__version__}")
    ranks.refuse_unequal("weights", weights_hash(model))
    ranks.refuse_unequal("images", images.fingerprint())
    passing = folder is None and ranks.first
    with TemporaryDirectory(ignore_cleanup_errors=True) if passing else nullcontext(folder) as mine:
        place = Path(ranks.broadcast(str(Path(mine or "").resolve())))
        sign = place / ranks.broadcast(f".met-{secrets.token_hex(8)}")
        if ranks.first:
            place.mkdir(parents=True, exist_ok=True)
            sign.touch()
        ranks.barrier()
        (missed,) = ranks.largest(not sign.exists())
        if ranks.first:
            sign.unlink()
        if missed:
            raise Refused(
                f"evaluation by {ranks.size} processes",
                expected="a folder that all of them see",
                got=str(place),
                mend="evaluate a run on a shared file system, or start the processes on one machine",
            )
        yield place


@contextmanager
def _told_if_stopped(ranks: Ranks, kept: bool) -> Iterator[None]:
    """Say what SIGTERM means here: the launcher sends it to the others when a process has died.

    Args:
        ranks: this process among the others.
        kept: whether the verdicts so far stay.

    Raises:
        Lost: in place of a silent death.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if not asked:
            raise
        so_far = "the verdicts so far are kept" if kept else "the verdicts so far are lost"
        raise Lost(
            f"process {ranks.rank} of {ranks.size}",
            expected="the other processes at their work",
            got="a signal to stop, as when one of them has died",
            mend=f"{so_far}; {AGAIN}",
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
