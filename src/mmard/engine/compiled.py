"""The forwards of the update through `torch.compile`, with the network itself as the fall-back.

What can be compiled is settled when it is tried: code of the user's own, a missing C++ compiler and a backend's faults
all end in the plain forward, and the reason is told once. The network stays what it is; only its calls go elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmard.engine.chunks import out_of_memory, unheard


class Compiled(nn.Module):
    """A network whose calls are compiled, for every shape of batch anew.

    Args:
        module: the network; its weights and buffers are used in place.
        backend: as `torch.compile` takes it.

    Attributes:
        failed: why it is called as it is, in words; empty as long as it is compiled.
        tell: told `failed` when it happens.
    """

    def __init__(self, module: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        self.module, self.failed = module, ""
        self.tell: Callable[[str], None] = unheard
        self._held: tuple[Any] = (torch.compile(module, backend=backend, dynamic=False),)  # no submodule of this one
        self._proven: set[Any] = set()

    def listen(self, tell: Callable[[str], None]) -> None:
        """Tell this from now on."""
        self.tell = tell

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        if self.failed:
            return self.module(x)
        kind = (x.shape, x.dtype, [m.training for m in self.module.modules()].count(True))
        if kind in self._proven:
            return self._held[0](x)
        try:
            logits = self._tried(x)
        except Exception as error:
            if out_of_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.failed = f"the update is not compiled: {lines[0] if lines else type(error).__name__}"
            self.tell(self.failed)
            return self.module(x)
        self._proven.add(kind)
        return logits

    def _tried(self, x: Tensor) -> Tensor:
        """The first call of a kind. One that fails half-way must not have moved running statistics."""
        before = {name: value.clone() for name, value in self.module.named_buffers()}
        try:
            return self._held[0](x)
        except Exception:
            with torch.no_grad():
                for name, value in self.module.named_buffers():
                    value.copy_(before[name])
            raise
