"""Operations and bytes of what is computed, counted as PyTorch runs it, and the memory that it takes."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Counter(TorchDispatchMode):
    """Adds up what operators compute, read and write.

    Bytes are those of each tensor that goes in and each that comes out, views left out. Caches keep some of it from
    memory, so this is what is asked of memory and caches together. (PyTorch's own `FlopCounterMode` has the formulas
    of the operations, but its hooks stand in the way of gradients by the input.)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.bytes += sum(_bytes(t) for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        return out


def _bytes(tensor: Tensor) -> int:
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def counted(run: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations of convolutions and matrix products (a multiplication and its addition are two), and
    bytes that all operators read and wrote, in one call.

    >>> a = torch.ones(2, 3)
    >>> counted(lambda: a @ a.T)
    (24, 64)
    """
    with Counter() as seen:
        run()
    return seen.operations, seen.bytes


class Peak:
    """The most memory that is taken between its start and `bytes`, beyond what was taken at the start.

    On a GPU it is what PyTorch holds. On Linux it is the process's memory in RAM, which is only about right: the
    allocator gives back late what is free. Elsewhere it is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
        else:
            self._before = _fresh_peak()

    @property
    def bytes(self) -> int | None:
        """So far; None where it is not known."""
        if self._before is None:
            return None
        now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")
        return None if now is None else max(now - self._before, 0)


def _fresh_peak() -> int | None:
    """Let the kernel forget the largest size so far, and say the present one."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(line: str) -> int | None:
    try:
        for each in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if each.startswith(line):
                return int(each.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
