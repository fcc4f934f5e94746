"""Scalars of a training for TensorBoard, beside the run's own log and out of the same events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmard.errors import needs_extra
from mmard.run import Event

PLACES = frozenset(("kind", "step", "epoch", "epoch_step", "best"))
"""Keys of an event that say what and where it is rather than how much."""


class TensorBoard:
    """An observer that writes events files into a folder.

    Steps go under "step/", the means of epochs and the validation under "epoch/", both over the number of steps. A run
    that resumes hides what was written after the step that it resumes from.

    Args:
        folder: where the events files go.

    Raises:
        Refused: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._make = writer_class()
        self.folder = folder
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write the numbers of one event."""
        kind, step = event["kind"], event.get("step", 0)
        if self._writer is None and kind not in ("tick", "note"):
            # Written only now, when it is known where the run stands: from here on earlier points are void.
            self._writer = self._make(log_dir=str(self.folder), purge_step=step + 1)
        if kind not in ("step", "epoch"):
            return
        for name, value in event.items():
            if name not in PLACES:
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if kind == "epoch":
            self._writer.flush()

    def close(self) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()


def writer_class() -> Any:
    """The writer of PyTorch, which needs the package tensorboard.

    Raises:
        Refused: if that is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise needs_extra("tensorboard", "tb", "writing TensorBoard events") from None
    return SummaryWriter
