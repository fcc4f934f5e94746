"""The verdicts of an evaluation so far: kept after every batch, and shared by all processes that work on it.

A folder holds `plan.json`, which says what is measured, and for each attack a file of verdicts, one int8 per image,
with a JSON file of the seconds that were spent on them. Whoever works on the evaluation takes a batch whose verdicts
are not known yet and that nobody else has taken, attacks it and writes down what came of it. The batches of an attack
are cut before it begins, from those who stand after the one before, so all wait for the last batch of an attack; what
is drawn for a batch hangs on the batch alone. So the verdicts are the same however many processes there are, and
whichever died.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mmard.errors import Refused
from mmard.evaluation.score import Mask
from mmard.files import read_json, write_array, write_json, writing_into
from mmard.ranks import Ranks

PENDING, FALLEN, SURVIVED = -1, 0, 1
"""Verdicts: not known yet, misread, read rightly."""
POLL = 0.2
"""Seconds between two looks at the verdicts of others."""

Judge = Callable[[NDArray[np.int64], int], NDArray[np.bool_]]
"""From the images of a batch and its number to who of them is read rightly."""
Progress = Callable[[str, int, int, int], None]
"""(attack, images it is done with, images it was given, images still read rightly of those it did)."""


def cut(who: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """The batches in which these images are attacked."""
    return [who[first : first + batch_size] for first in range(0, len(who), batch_size)]


class Journal:
    """The verdicts of one evaluation, in a folder or nowhere.

    Args:
        folder: where they are kept; None keeps nothing.
        plan: what is measured; a folder with verdicts of anything else is refused.
        n: images in the set.

    Raises:
        Refused: for a folder with verdicts of another evaluation.
    """

    def __init__(self, folder: Path | None, plan: dict[str, Any], n: int) -> None:
        self._folder, self._n = folder, n
        if folder is None:
            return
        file = folder / "plan.json"
        with writing_into(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".plan.lock"):
                if not file.exists():
                    write_json(file, plan)
        if (held := read_json(file)) != plan:
            differing = [key for key in plan if not isinstance(held, dict) or held.get(key) != plan[key]]
            raise Refused(
                str(folder),
                expected="no verdicts, or those of this evaluation",
                got="verdicts with other " + ", ".join(differing),
                mend="choose another folder, or remove this one",
            )

    def judged(
        self, attack: str, who: NDArray[np.int64], batch_size: int, judge: Judge, progress: Progress | None
    ) -> tuple[Mask, float]:
        """Who is read rightly after an attack, and the seconds that all processes spent on it.

        Args:
            attack: its name.
            who: the images it is given; the others count as misread.
            batch_size: images attacked at once.
            judge: the attack on a batch, and the verdict.
            progress: called with how far all processes are, after every batch.
        """
        name = re.sub(r"[^A-Za-z0-9.,+@_-]+", "_", attack)
        batches = cut(who, batch_size)
        verdicts, seconds = self._begin(name, who)
        left = list(range(len(batches)))
        while left:
            taken = []
            for number in left:
                batch = batches[number]
                if (verdicts[batch] == PENDING).any():
                    with self._claim(f"{name}-{number}") as mine:
                        if not mine:
                            continue
                        verdicts, seconds = self._read(name, verdicts, seconds)
                        if (verdicts[batch] == PENDING).any():
                            began = time.monotonic()
                            right = judge(batch, number)
                            verdicts, seconds = self._add(
                                name, batch, right, time.monotonic() - began, verdicts, seconds
                            )
                taken.append(number)
                if progress is not None:
                    done = verdicts[who] != PENDING
                    progress(attack, int(done.sum()), len(who), int((verdicts[who] == SURVIVED).sum()))
            left = [number for number in left if number not in taken]
            if left and not taken:
                time.sleep(POLL)
            if left:
                verdicts, seconds = self._read(name, verdicts, seconds)
        self._sweep(name)
        return verdicts == SURVIVED, seconds

    def _begin(self, name: str, who: NDArray[np.int64]) -> tuple[NDArray[np.int8], float]:
        verdicts = np.full(self._n, FALLEN, dtype=np.int8)
        verdicts[who] = PENDING
        return self._read(name, verdicts, 0.0)

    def _read(self, name: str, verdicts: NDArray[np.int8], seconds: float) -> tuple[NDArray[np.int8], float]:
        """What the folder holds, or else what is known here."""
        if self._folder is None or not (file := self._folder / f"{name}.npy").exists():
            return verdicts, seconds
        spent = file.with_suffix(".json")
        try:
            held = np.load(file, allow_pickle=False)
            seconds = float(read_json(spent)["seconds"]) if spent.exists() else 0.0
        except (ValueError, TypeError, KeyError, EOFError, OSError) as error:
            raise self._damaged(file, str(error)) from None
        fits = held.shape == verdicts.shape and held.dtype == np.int8
        if not fits or not np.isin(held, (PENDING, FALLEN, SURVIVED)).all():
            raise self._damaged(file, f"{held.dtype} of shape {held.shape}")
        return held, seconds

    @staticmethod
    def _damaged(file: Path, got: str) -> Refused:
        mend = f"remove {file.name} and the .json beside it: that attack is then made again"
        return Refused(str(file), expected="the verdicts of an attack", got=got, mend=mend)

    def _add(
        self,
        name: str,
        batch: NDArray[np.int64],
        right: NDArray[np.bool_],
        spent: float,
        verdicts: NDArray[np.int8],
        seconds: float,
    ) -> tuple[NDArray[np.int8], float]:
        """Write down a batch."""
        found = np.where(right, SURVIVED, FALLEN).astype(np.int8)
        if self._folder is None:
            verdicts[batch] = found
            return verdicts, seconds + spent
        with writing_into(self._folder), FileLock(self._folder / f".{name}.lock"):
            verdicts, seconds = self._read(name, verdicts, seconds)
            verdicts[batch], seconds = found, seconds + spent
            write_json(self._folder / f"{name}.json", {"seconds": seconds})
            write_array(self._folder / f"{name}.npy", verdicts)
        return verdicts, seconds

    @contextmanager
    def _claim(self, name: str) -> Iterator[bool]:
        """Whether a batch is ours inside; the system takes it back from a process that dies."""
        if self._folder is None:
            yield True
            return
        lock = FileLock(self._folder / f".{name}.lock")
        with writing_into(self._folder), suppress(Timeout):
            lock.acquire(timeout=0)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def _sweep(self, name: str) -> None:
        """Remove the locks of an attack that is done; who still holds one finds nothing left to do."""
        if self._folder is not None:
            for lock in (self._folder / f".{name}.lock", *self._folder.glob(f".{name}-*.lock")):
                lock.unlink(missing_ok=True)


class RankJournal:
    """As `Journal`, kept nowhere, for processes that make the same calls: validation during their training.

    They are in step anyway, so every batch has its process beforehand, and verdicts are exchanged after every attack.
    What takes long, or should outlive a process, goes by a folder instead.

    Args:
        ranks: this process among the others.
        n: images in the set.
    """

    def __init__(self, ranks: Ranks, n: int) -> None:
        self._ranks, self._n = ranks, n

    def judged(
        self, attack: str, who: NDArray[np.int64], batch_size: int, judge: Judge, progress: Progress | None
    ) -> tuple[Mask, float]:
        """As `Journal.judged`; `progress` only once, at the end."""
        right, began = np.zeros(self._n + 1), time.monotonic()
        for number, batch in enumerate(cut(who, batch_size)):
            if number % self._ranks.size == self._ranks.rank:
                right[batch] = judge(batch, number)
        right[-1] = time.monotonic() - began
        every = self._ranks.sums(torch.from_numpy(right)).numpy()
        mask, seconds = every[:-1] > 0, float(every[-1])
        if progress is not None:
            progress(attack, len(who), len(who), int(mask.sum()))
        return mask, seconds
