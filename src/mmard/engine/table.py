"""A teacher's predictions at the views of the training images, each made once: the exact teacher table.

Pad 4 with flips has 162 views of an image, so T(x) is a table of 162 x N x classes numbers. It is filled as training
comes across the views, or ahead, and shared by every student of that teacher, in any number of processes.

A result must not depend on what a shared file held when the run began. Kernels may round otherwise for another batch,
so predictions for the table are made in one form only, batches of a fixed number of images; that a prediction then
depends on its image alone is tried out at the start. A prediction that is read is therefore the one that would have
been made. What else it depends on is in the key that names the file: the teacher's weights, the training images and
their order, the augmentation, the type of the numbers, the form, PyTorch's version, the device, and the bits of the
first predictions, which stand for all that no name tells, from the network's code to the kernels that were chosen.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from mmard import seeds
from mmard.data import ImageSet
from mmard.data.augment import Augmentation, Views
from mmard.errors import Refused
from mmard.files import read_json, weights_hash, write_json, write_whole
from mmard.modes import evaluating, frozen

CHECKSUM_BYTES = 4
"""Bytes of a seal, in front of every row."""


class ChecksummedRows:
    """So many rows of so many bytes, in a memory-mapped file or in memory; all of them empty at first.

    Many processes may fill one file at once. Each row stands under a seal, a checksum of its bytes and of its place,
    and one without it counts as empty: so neither a killed process, nor one that writes at the same time, nor a power
    cut leaves a wrong row. Who finds a row empty makes it anew, and all who write a row write the same bytes.

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
        self.size = count * (CHECKSUM_BYTES + width)
        self._kept: Tensor | None = None
        self._refuse_without_room()

    @property
    def begun(self) -> bool:
        """Whether there is anything to look into."""
        return self._kept is not None or (self.path is not None and self.path.exists())

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The rows at these places (n,), uint8 (n, width), and which of them bear their seal, bool (n,)."""
        found = self._all()[places]
        body = found[:, CHECKSUM_BYTES:].contiguous()
        return body, found[:, :CHECKSUM_BYTES].contiguous().view(torch.int32)[:, 0] == _checksum(body, places)

    def write(self, places: Tensor, body: Tensor) -> None:
        """Write rows, uint8 (n, width), to these places (n,)."""
        seals = _checksum(body, places)[:, None].view(torch.uint8)
        self._all()[places] = torch.cat([seals, body], 1)

    def _all(self) -> Tensor:
        if self._kept is None:
            flat = torch.zeros(self.size, dtype=torch.uint8) if self.path is None else self._mapped(self.path)
            self._kept = flat.view(self.count, CHECKSUM_BYTES + self.width)
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


def _checksum(body: Tensor, places: Tensor) -> Tensor:
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


FORMAT = 1
"""Of the file; raise it when what a row means changes."""
BLOCKS = {"cpu": (8, 1), "cuda": (64,)}
"""Images in a batch that fills the table, by kind of device: the first number under which predictions are steady."""
SAMPLE = 4096
"""Rows that are looked at to say how full a table is."""


class Unsteady(Exception):
    """A network's prediction of an image depends on more than the image."""


class TeacherTable:
    """The predictions of one network at every view of one set of images.

    Nothing is written before the first look-up.

    Args:
        teacher: in eval mode during a look-up; inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the training images, whose rows look-ups speak of.
        augmentation: whose views there are; None for the images themselves.
        folder: where the file lies; None keeps the table in memory, for this process alone.

    Attributes:
        facts: what the table depends on, as written beside it.
        size: bytes of the whole table.
        path: the file, or None.
        made: predictions that had to be made here.
        read: predictions that were found.

    Raises:
        Refused: if there is no room for it.
        Unsteady: if the network's prediction of an image depends on its batch, or on chance.
    """

    def __init__(
        self, teacher: nn.Module, images: ImageSet, augmentation: Augmentation | None, folder: Path | None
    ) -> None:
        views = 1 if augmentation is None else augmentation.distinct
        if views is None:
            raise Unsteady("views with cutout are not counted")
        self.teacher, self.augmentation, self.views = teacher, augmentation, views
        self.rows = len(images)
        self._device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
        self._block, first = self._form(images)
        self._classes, self._dtype = first.shape[1], first.dtype
        self.facts: dict[str, Any] = {
            "format": FORMAT,
            "teacher": weights_hash(teacher),
            "images": images.fingerprint(),
            "rows": self.rows,
            "views": views,
            "augmentation": repr(augmentation),
            "classes": self._classes,
            "dtype": str(first.dtype).removeprefix("torch."),
            "batch": self._block,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "first predictions": hashlib.sha256(_bytes(first).numpy().tobytes()).hexdigest(),
        }
        name = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:24]
        self.path = folder / f"teacher-{name}.table" if folder is not None else None
        self.made = self.read = 0
        width = self._classes * first.element_size()
        self._rows = ChecksummedRows("teacher table", self.rows * views, width, self.path, self.facts)
        self.size = self._rows.size
        self._waiting: list[tuple[Tensor, Tensor, Any]] = []
        self._tried = False

    def __str__(self) -> str:
        where = "in memory" if self.path is None else str(self.path)
        return f"{self.views} views of {self.rows:,} images, {self.size / 1e6:,.0f} MB {where}"

    def look_up(self, rows: Tensor, views: Views | None, x: Tensor) -> Tensor:
        """The teacher's logits (B, classes) for a batch, on its device; what is not known yet is made and kept.

        Args:
            rows: of the images in their set, int64 (B,) on the CPU.
            views: of the images; None without augmentation.
            x: the images themselves (B, C, H, W).

        Raises:
            Refused: if the first predictions that are found are not those that the teacher makes.
        """
        self.close()
        places = rows * self.views
        if self.augmentation is not None:
            assert views is not None, "a table of views was asked about images without one"
            places = places + self.augmentation.number(views)
        logits, known = self._found(places)
        self.read += int(known.sum())
        if not self._tried and known.any():
            self._try(x, logits, known)
        logits = _over(logits, x.device)
        if not known.all():
            missing = (~known).nonzero()[:, 0]
            there = _over(missing, x.device)
            fresh = self._predict(x.index_select(0, there))
            self.made += len(missing)
            logits = logits.index_copy(0, there, fresh)
            self._keep_later(places[missing], fresh)
        return logits

    def fill(
        self,
        images: Callable[[Tensor, Views | None], Tensor],
        tell: Callable[[int, int], None],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Make every prediction that is not known yet.

        Args:
            images: the images (B, C, H, W) at these rows in these views, on the device.
            tell: called now and then with how many of how many rows are done.
            rank, ranks: which of how many processes this is that fill a file together; in memory each fills its own.
        """
        total, apart = self.rows * self.views, 1 if self.path is None else ranks
        for begin in range(rank % apart * SAMPLE, total, SAMPLE * apart):
            places = torch.arange(begin, min(begin + SAMPLE, total))
            missing = places[~self._found(places)[1]]
            for some in missing.split(4 * self._block) if len(missing) else ():
                views = None if self.augmentation is None else self.augmentation.numbered(some % self.views)
                rows = some // self.views
                self.look_up(rows, views, images(rows, views))
            tell(min(begin + SAMPLE, total), total)
        self.close()

    def filled(self) -> float:
        """Share of the predictions that are known, from a sample where there are many. Makes no file."""
        if not self._rows.begun:
            return 0.0
        total = self.rows * self.views
        places = torch.linspace(0, total - 1, min(total, SAMPLE), dtype=torch.float64).long()
        return self._found(places)[1].double().mean().item()

    def _form(self, images: ImageSet) -> tuple[int, Tensor]:
        """The number of images in a batch, and the predictions of the first images in that form."""
        for block in BLOCKS.get(self._device.type, (1,)):
            self._block = block
            rows = torch.arange(2 * block) % self.rows
            x = images.inputs(rows, self._device)
            forward, backward = self._predict(x), self._predict(x.flip(0)).flip(0)
            # Among others, at other places, and beside zeros, by which what does not fill a batch is filled up.
            beside = self._predict(x[: block // 2 + 1])
            if _equal(forward, backward) and _equal(forward[: block // 2 + 1], beside):
                return block, forward.cpu()
        raise Unsteady("its prediction of an image depends on the other images of the batch, or on chance")

    @torch.no_grad()
    def _predict(self, x: Tensor) -> Tensor:
        """Logits in the one form in which the table is filled."""
        n, block = len(x), self._block
        filled_up = torch.cat([x, x.new_zeros(-n % block, *x.shape[1:])]).contiguous()
        with evaluating(self.teacher), frozen(self.teacher):
            return torch.cat([self.teacher(part) for part in filled_up.split(block)])[:n]

    def _try(self, x: Tensor, logits: Tensor, known: Tensor) -> None:
        """Compare a few of the first predictions that are found with what the teacher says."""
        some = known.nonzero()[: self._block, 0]
        said = self._predict(x.index_select(0, some.to(x.device))).cpu()
        if not _equal(said, logits[some]):
            apart = (said - logits[some]).abs().max().item()
            raise Refused(
                f"teacher table {self.path or 'in memory'}",
                expected="this teacher's predictions",
                got=f"others, apart by {apart:.1g}",
                mend="were its weights changed, or the file copied from another machine? remove the file",
            )
        self._tried = True

    def _found(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B, classes) at these places, and which of them are known, bool (B,); on the CPU."""
        body, known = self._rows.read(places)
        return body.view(self._dtype), known

    def _keep_later(self, places: Tensor, fresh: Tensor) -> None:
        """Write predictions: at once, or from a GPU at the next look-up, so that none waits for the device."""
        if not fresh.is_cuda:
            self._rows.write(places, _bytes(fresh))
            return
        here = torch.empty(fresh.shape, dtype=fresh.dtype, pin_memory=True).copy_(fresh, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(fresh.device))
        self._waiting.append((places, here, arrived))

    def close(self) -> None:
        """Write what is still on its way."""
        for places, fresh, arrived in self._waiting:
            arrived.synchronize()
            self._rows.write(places, _bytes(fresh))
        self._waiting = []


def cache_folder() -> Path:
    """Where tables go that were given no folder: mmard's in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmard" / "teachers"


def _over(t: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for it."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t


def _bytes(t: Tensor) -> Tensor:
    """The numbers of each row as bytes, (B, C) -> uint8 (B, C * size)."""
    return t.detach().cpu().contiguous().view(torch.uint8)


def _equal(a: Tensor, b: Tensor) -> bool:
    """To the bit, NaN included."""
    return torch.equal(_bytes(a), _bytes(b))
