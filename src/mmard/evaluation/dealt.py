"""Verdicts that several processes make at the same time and keep nowhere: validation during their training.

They are in step anyway, so every batch has its process beforehand, and verdicts are exchanged after every attack. What
takes long, or should outlive a process, goes by a folder instead (see `journal.py`).
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from mmard.evaluation.journal import Judge, Told, cut
from mmard.evaluation.score import Mask
from mmard.training.ranks import Ranks


class Dealt:
    """As `Journal`, for processes that make the same calls: each judges the batches that are dealt to it.

    Args:
        ranks: this process among the others.
        n: images in the set.
    """

    def __init__(self, ranks: Ranks, n: int) -> None:
        self._ranks, self._n = ranks, n

    def judged(
        self, attack: str, who: NDArray[np.int64], batch_size: int, judge: Judge, told: Told | None
    ) -> tuple[Mask, float]:
        """As `Journal.judged`; `told` only once, at the end."""
        right, began = np.zeros(self._n + 1), time.monotonic()
        for number, batch in enumerate(cut(who, batch_size)):
            if number % self._ranks.size == self._ranks.rank:
                right[batch] = judge(batch, number)
        right[-1] = time.monotonic() - began
        every = self._ranks.sums(torch.from_numpy(right)).numpy()
        mask, seconds = every[:-1] > 0, float(every[-1])
        if told is not None:
            told(attack, len(who), len(who), int(mask.sum()))
        return mask, seconds
