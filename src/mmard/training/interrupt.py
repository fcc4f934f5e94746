"""Ctrl-C as a request: the step is finished, the run is saved, and the user is told how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second interrupts at once.

    Outside the main thread, where signals cannot be caught, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
