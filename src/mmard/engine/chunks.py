"""The attack on a slice of the batch at a time: less memory, the same x_adv.

An attack in eval mode treats each image alone, and its random start is drawn for the whole batch before it is cut, so
the slices climb as the batch would. What can differ is the last bit of a float, where a kernel rounds otherwise for
another batch size. When memory runs out all the same, the slices are halved and the attack is made again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmard.batch import Batch
from mmard.engine.ascent import Ascent, Climber, cut, even, joined, plain
from mmard.method import Method

WORDS = ("out of memory", "can't allocate memory", "not enough memory")
"""By which a RuntimeError is known for one of memory, where PyTorch has no class for it."""


def unheard(text: str) -> None:
    """Where nobody listens."""


class Chunks:
    """An ascent in slices of at most `size` images.

    Args:
        size: images in a slice; 0 for the whole batch, until memory runs out.
        ascend: how one slice is climbed.

    Attributes:
        size: as it is by now; a run's state keeps it, so that a resumed run rounds as the uninterrupted one.
        tell: told once, in words, when the size had to change.
    """

    def __init__(self, size: int = 0, ascend: Ascent = plain) -> None:
        self.size, self.ascend = size, ascend
        self.tell: Callable[[str], None] = unheard

    def listen(self, tell: Callable[[str], None]) -> None:
        """Tell this from now on, and have what climbs the slices tell it too."""
        self.tell = tell
        listen = getattr(self.ascend, "listen", None)
        if listen is not None:
            listen(tell)

    def __call__(self, climber: Climber, batch: Batch, first: Tensor) -> Batch:
        """The batch with x_adv, trace, notes and predictions.

        Raises:
            RuntimeError: torch's own, when memory runs out for a single image.
        """
        n = len(batch.y)
        while True:
            size = min(self.size or n, n)
            try:
                return self._in_slices(climber, batch, first, size)
            except RuntimeError as error:
                if size == 1 or not out_of_memory(error):
                    raise
            # Only here: inside the except block the traceback still holds what the attack had allocated.
            self.size = -(-size // 2)
            if batch.x.value.is_cuda:
                torch.cuda.empty_cache()
            self.tell(
                f"out of memory in an attack on {size} images: from here on it attacks {self.size} at a time; "
                f"--attack-chunk {self.size} starts so"
            )

    def _in_slices(self, climber: Climber, batch: Batch, first: Tensor, size: int) -> Batch:
        rows = even(len(batch.y), size)
        return joined(batch, [self.ascend(climber, cut(batch, each), first[each]) for each in rows])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def why_whole(method: Method) -> str:
    """Why the attack of a method cannot be cut, in words; empty if it can."""
    if method.inner is None:
        return "this method makes no adversarial examples"
    if method.attack_mode == "train":
        return "it attacks in train mode, where BatchNorm ties the images of a batch together"
    if method.inner_couples:
        return "its attack climbs an objective that ties the images of a batch together"
    return ""
