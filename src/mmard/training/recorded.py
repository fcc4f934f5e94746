"""The choice of twins, kept with a run and shared by the processes that train it."""

from __future__ import annotations

from torch import Tensor

from mmard.engine.twins import Record, Twins
from mmard.run import Run
from mmard.training.ranks import Ranks


def chosen(twins: Twins, x: Tensor, run: Run | None = None, ranks: Ranks | None = None) -> Record:
    """Make the twins for batches like x (B, C, H, W): as the run had them so far, as the first process has them.

    A resumed run computes with what it began with, and processes that choose by timing would not choose alike.
    """
    kept = None if run is None else run.engine
    begun = kept is not None
    if ranks is not None and not ranks.first:
        kept = ranks.told(None)
    if kept is not None:
        twins.keep(kept)
    record = twins.ready(x)
    if ranks is not None and ranks.first:
        ranks.told(record)
    if run is not None and not begun:
        run.note_engine(record)
    return record
