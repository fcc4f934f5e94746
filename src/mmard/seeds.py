"""Randomness by address: every draw comes from a generator seeded by (seed, purpose, position).

Nothing random is carried from step to step, so a resumed run draws what the uninterrupted one would have drawn without
any random state having been saved, and adding a consumer of randomness cannot shift another's.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *address: str | int) -> int:
    """A 63-bit seed for one purpose and position, e.g. `derive(seed, "attack", step)`.

    >>> derive(0, "attack", 3) == derive(0, "attack", 3) != derive(0, "attack", 4)
    True
    """
    text = "/".join(map(str, (seed, *address)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: torch.device | str, seed: int, *address: str | int) -> torch.Generator:
    """A fresh generator on `device`, seeded by `derive(seed, *address)`."""
    return torch.Generator(device).manual_seed(derive(seed, *address))
