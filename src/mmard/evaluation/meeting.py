"""An evaluation by the processes that PyTorch's launcher started: they meet in a folder and share its batches there.

    torchrun --nproc-per-node 2 -m mmard evaluate RUN --attack aa

What they share, and how, is `journal.py`. The first process is at the whole evaluation, and writes and speaks; the
others take their part of those attacks whose batches can be shared.
"""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from torch import nn

from mmard._version import __version__
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.suite import measure, shareable
from mmard.training.ranks import Lost, Ranks
from mmard.weights import weights_hash

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
