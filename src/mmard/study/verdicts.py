"""Which images a network reads rightly, as text in a record: one bit for each image."""

from __future__ import annotations

from base64 import b64decode, b64encode

import numpy as np
from numpy.typing import NDArray


def packed(mask: NDArray[np.bool_]) -> str:
    """Verdicts (n,) as text.

    >>> packed(np.array([True, False, True])), unpacked(packed(np.array([True, False, True])), 3)
    ('oA==', array([ True, False,  True]))
    """
    return b64encode(np.packbits(mask).tobytes()).decode()


def unpacked(text: str, n: int) -> NDArray[np.bool_]:
    """Verdicts (n,) out of a figure's "right"."""
    return np.unpackbits(np.frombuffer(b64decode(text), np.uint8), count=n).astype(bool)
