"""Rows of bytes in a file that many processes fill at once, each row under a seal that says it is whole.

The seal is a checksum of the row's bytes and of its place. A row without its seal counts as empty, so neither a killed
process, nor one that writes at the same time, nor a power cut leaves a wrong row. Who finds a row empty makes it anew,
and since all who write a row write the same bytes, nobody has to wait for anybody.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from mmard import seeds
from mmard.errors import Refused
from mmard.storage import read_json, write_json, write_whole

SEAL = 4
"""Bytes of a seal, in front of every row."""


class SealedRows:
    """So many rows of so many bytes, in a memory-mapped file or in memory; all of them empty at first.

    Nothing is written before the first row is read or written.

    Args:
        what: how messages call it, e.g. "teacher table".
        count: rows.
        width: bytes of a row, without its seal.
        path: the file; None for memory, which this process alone sees.
        facts: what the rows are, written beside the file as JSON, and which a file that is met must have.

    Raises:
        Refused: if there is no room for the whole.
    """

    def __init__(self, what: str, count: int, width: int, path: Path | None, facts: Mapping[str, Any]) -> None:
        self.what, self.count, self.width, self.path, self.facts = what, count, width, path, dict(facts)
        self.size = count * (SEAL + width)
        self._kept: Tensor | None = None
        self._refuse_without_room()

    @property
    def begun(self) -> bool:
        """Whether there is anything to look into."""
        return self._kept is not None or (self.path is not None and self.path.exists())

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The rows at these places (n,), uint8 (n, width), and which of them bear their seal, bool (n,)."""
        found = self._all()[places]
        body = found[:, SEAL:].contiguous()
        return body, found[:, :SEAL].contiguous().view(torch.int32)[:, 0] == _seal(body, places)

    def write(self, places: Tensor, body: Tensor) -> None:
        """Write rows, uint8 (n, width), to these places (n,)."""
        seals = _seal(body, places)[:, None].view(torch.uint8)
        self._all()[places] = torch.cat([seals, body], 1)

    def _all(self) -> Tensor:
        if self._kept is None:
            flat = torch.zeros(self.size, dtype=torch.uint8) if self.path is None else self._mapped(self.path)
            self._kept = flat.view(self.count, SEAL + self.width)
        return self._kept

    def _mapped(self, path: Path) -> Tensor:
        facts = path.with_suffix(".json")
        where = f"{self.what} {path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Two processes may begin at once; then the first makes the file.
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    self._refuse_without_room()
                    write_json(facts, self.facts)
                    write_whole(path, self._reserve)
            with path.open("r+b") as opened:
                mapped = mmap.mmap(opened.fileno(), 0)
        except OSError as error:
            got = str(error.strerror or error)
            raise Refused(where, expected="a file to read and write", got=got, mend="name another folder") from error
        if len(mapped) != self.size or read_json(facts) != self.facts:
            expected = f"the {self.size:,} bytes that {facts.name} tells of"
            raise Refused(where, expected=expected, got=f"{len(mapped):,} bytes of something else", mend="remove it")
        if hasattr(mmap, "MADV_WILLNEED") and self.size < _memory() / 4:
            mapped.madvise(mmap.MADV_WILLNEED)
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def _reserve(self, path: Path) -> None:
        """Take the whole size from the disk now: a memory map that runs out of disk later would end the process."""
        with path.open("r+b") as opened:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, self.size)
                return
            for begin in range(0, self.size, 2**20):
                opened.write(bytes(min(2**20, self.size - begin)))

    def _refuse_without_room(self) -> None:
        if self.path is None:
            room, of = _memory() / 2, "half of the memory"
        elif self.path.exists():
            return
        else:
            there = next(p for p in self.path.absolute().parents if p.exists())
            room, of = shutil.disk_usage(there).free, f"the disk of {self.path.parent}"
        if self.size > room:
            expected, got = f"{self.size / 1e6:,.0f} MB", f"{room / 1e6:,.0f} MB, {of}"
            raise Refused(self.what, expected=expected, got=got, mend="name a folder with room for it, or off")


def _seal(body: Tensor, places: Tensor) -> Tensor:
    """A checksum of each row's bytes (n, width) and of its place, int32 (n,), never 0, which an empty row has."""
    words = F.pad(body, (0, -body.shape[1] % 4)).contiguous().view(torch.int32).long()
    odd = torch.tensor([seeds.derive(0, "seal", i) | 1 for i in range(words.shape[1] + 2)])
    mixed = (words * odd[:-2]).sum(1) + (places + 1) * odd[-2]  # products wrap around, as they should
    mixed = (mixed ^ (mixed >> 31)) * odd[-1]
    high = (mixed >> 32).to(torch.int32)
    return torch.where(high == 0, torch.ones_like(high), high)


def _memory() -> float:
    """Bytes of memory in this machine; without end where it does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
