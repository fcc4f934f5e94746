"""Attacks of every kind by their short spellings, one after the other, and what stands under all of them."""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from torch import nn

from mmard._version import __version__
from mmard.attacks import Trial, trial
from mmard.attacks.autoattack import SPECS, Ensemble, is_named, named, refuse_white_box
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused, require
from mmard.evaluation.columns import spelled
from mmard.evaluation.evaluate import Measured, Progress, Witness, auto_attack, evaluate, together
from mmard.files import weights_hash
from mmard.training.ranks import Lost, Ranks

# processes ------------------------------------------------------------------------------------------------------------
# Several processes at one evaluation, which share the batches through its folder (see `journal.py`).
#
# The process that was called spawns the others and takes part. They end when nothing is left to do, when it ends, or
# when it dies. One of them that dies costs the batch it was at, which another takes over.


@contextmanager
def shared_work(
    processes: int,
    measure: Callable[..., object],
    model: nn.Module,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    settings: Mapping[str, Any],
    folder: Path,
) -> Iterator[None]:
    """So many processes, this one included, at the same call of `measure` inside.

    Threads are divided among them. On CUDA devices they take turns at all of them, unless one of them is alone.

    Args:
        processes: at least 2.
        measure: `suite.measure`, or a function like it that another process can import.
        model, images, specs, budget: as in `measure`.
        settings: its other arguments.
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
            work = (measure, sent, images, list(specs), budget, dict(settings), folder, device, each, os.getpid())
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
    measure: Callable[..., object],
    model: nn.Module,
    images: ImageSet,
    specs: list[str],
    budget: Budget,
    settings: dict[str, Any],
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
        measure(model.to(device), images, specs, budget, **settings, folder=folder, progress=told)
    except (Refused, KeyboardInterrupt):
        return  # the first process meets the same and says it


# suite ----------------------------------------------------------------------------------------------------------------


def measure(
    model: nn.Module,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    *,
    split: str,
    which: str,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
    folder: Path | None = None,
    processes: int = 1,
    witness: Witness | None = None,
    finished: Callable[[Measured], None] | None = None,
    engine: str = "fast",
) -> list[Measured]:
    """Clean accuracy, accuracy under each attack, and under all of them together.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        specs: spellings of `mmard.attacks.trial`, names of `ensemble.SPECS` and of `columns.GROUPS`, e.g.
            ["pgd-20", "aa"].
        budget: where adversarial examples may be.
        split: what the images are, for the records.
        which: what the weights are, for the records.
        seed: of the random starts.
        batch_size: images attacked at once; random starts depend on it.
        progress: told how far the evaluation is.
        folder: where verdicts are kept after every batch, in a folder for each evaluation; the same call made again
            goes on from there, and made by several processes at once it is shared. None keeps nothing.
        processes: how many take part, this one and others that are spawned.
        witness: shown every batch, clean and under the attacks that are no ensembles. These are then neither kept nor
            shared, for a witness must see all.
        finished: told each figure as soon as it is known, so that an interrupted evaluation keeps what it has.
        engine: what the attacks ask: "fast", a twin of the network where it has one, or "plain", the network itself.
            The verdict on what they find is the network's own.

    Returns:
        "clean", the attacks in their order, each ensemble after its attacks, and, with more than one spec,
        "worst_of_...".

    Raises:
        Refused: before the first attack for a spec that is not known, or one that needs a gradient which the model has
            not; later if logits are not finite.
    """
    specs = spelled(specs, budget)
    attacks = read(specs, budget, images.num_classes)
    refuse_white_box(model, specs, attacks)
    require(processes >= 1, "processes", expected="at least 1", got=processes)
    settings: dict[str, Any] = {
        "split": split,
        "which": which,
        "seed": seed,
        "batch_size": batch_size,
        "engine": engine,
    }
    if processes > 1:
        given: dict[str, Any] = {"progress": progress, "witness": witness, "finished": finished}
        shared = shareable(specs, budget, images.num_classes, witness is not None)
        with TemporaryDirectory() as passing, ExitStack() as company:
            place = folder or Path(passing)
            if shared:
                company.enter_context(shared_work(processes, measure, model, images, shared, budget, settings, place))
            return measure(model, images, specs, budget, **settings, **given, folder=place)

    def kept_in(spec: str, label: str = "") -> Path | None:
        facts = (weights_hash(model), images.fingerprint(), budget.eps, batch_size, engine, label, __version__)
        return folder and folder / _name(spec, budget.norm, budget.eps, seed, facts)

    trials = [attack for attack in attacks if isinstance(attack, Trial)]
    clean, *rest = evaluate(
        model,
        images,
        trials,
        budget,
        **settings,
        progress=progress,
        witness=witness,
        finished=finished,
        folder=kept_in("each"),
    )
    results, wholes, alone = [clean], list[Measured](), iter(rest)
    for attack in attacks:
        if isinstance(attack, Trial):
            found = [next(alone)]
        else:
            _, *found = auto_attack(
                model,
                images,
                budget,
                ensemble=attack,
                **settings,
                progress=progress,
                folder=kept_in(attack.spec, attack.label),
            )
            if finished is not None:
                for each in found:
                    finished(each)
        results += found
        wholes.append(found[-1])
    if len(wholes) > 1:
        results.append(together(clean, *wholes))
        if finished is not None:
            finished(results[-1])
    return results


def shareable(specs: Sequence[str], budget: Budget, num_classes: int, witnessed: bool) -> list[str]:
    """The attacks that other processes can take part in.

    Who has a witness sees to single attacks alone; what others would do of them is for nothing.
    """
    every = read(specs, budget, num_classes)
    return [s for s, attack in zip(specs, every, strict=True) if not witnessed or isinstance(attack, Ensemble)]


def read(specs: Sequence[str], budget: Budget, num_classes: int) -> list[Trial | Ensemble]:
    """Attacks by their short spellings.

    Raises:
        Refused: for a spelling that is not known, or an attack that so few classes do not have.
    """
    return [_read(spec, budget, num_classes) for spec in specs]


def _read(spec: str, budget: Budget, num_classes: int) -> Trial | Ensemble:
    if is_named(spec):
        return named(spec, budget, num_classes)
    return trial(spec, budget, beside=SPECS)


def _name(spec: str, norm: str, eps: float, seed: int, facts: tuple[object, ...]) -> str:
    """A folder that no other evaluation has, one by another version of this package included."""
    rest = hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()
    return f"{spec}-{norm}-{eps:.5f}-seed{seed}-{rest[:8]}"


# meeting --------------------------------------------------------------------------------------------------------------
# An evaluation by the processes that PyTorch's launcher started: they meet in a folder and share its batches there.
#
#     torchrun --nproc-per-node 2 -m mmard evaluate RUN --attack aa
#
# What they share, and how, is `journal.py`. The first process is at the whole evaluation, and writes and speaks; the
# others take their part of those attacks whose batches can be shared.


AGAIN = "see why it died, and type the same command again"


@contextmanager
def lead(ranks: Ranks | None, model: nn.Module, images: ImageSet, folder: Path | None) -> Iterator[Path | None]:
    """The folder in which the processes meet, for the first of them, which makes the whole evaluation inside.

    Args:
        ranks: this process among the others; None for one alone, which stays so.
        model, images: as in `suite.measure`; they must be the same everywhere.
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
    specs: Sequence[str],
    budget: Budget,
    *,
    witnessed: bool,
    **settings: Any,
) -> None:
    """What a process does that is not the first; it returns when nothing is left that can be shared.

    Args:
        ranks: this process among the others.
        model, images, specs, budget: as in `suite.measure`.
        witnessed: whether the first process wants to see the examples of attacks, and therefore makes them alone.
        settings: split, which, seed and batch_size, as in `suite.measure`.

    Raises:
        Refused: as `lead`.
    """
    # Of Ctrl-C, and of what is wrong with the network, the first process speaks.
    with _met(ranks, model, images, None) as place, suppress(KeyboardInterrupt):
        shared = shareable(specs, budget, images.num_classes, witnessed)
        try:
            if shared:
                with suppress(Refused):
                    measure(model, images, shared, budget, **settings, folder=place)
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
        place = Path(ranks.told(str(Path(mine or "").resolve())))
        sign = place / ranks.told(f".met-{secrets.token_hex(8)}")
        if ranks.first:
            place.mkdir(parents=True, exist_ok=True)
            sign.touch()
        ranks.wait()
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
