"""A network that is asked again and again, each time from the same state and the same random seeds."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.modes import evaluating

State = dict[str, Tensor]


class Probe:
    """Asks a network in eval mode, and leaves it as it was: mode, parameters, buffers and everybody's random state.

    Before each answer the global generators of PyTorch, NumPy and Python are seeded; after it, parameters and buffers
    are put back. Answers that still differ come from somewhere else.

    Use it as a context manager. The first call is made on entering, so that what a network prepares then is not taken
    for a change.

    Attributes:
        changed: names of parameters and buffers that an answer changed.
        remembered: names of other attributes of modules (tensors, arrays, numbers, and collections of these) that an
            answer changed.
        backward: whether an answer took a backward pass.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self._model, self._x = model, x
        self.changed: set[str] = set()
        self.remembered: set[str] = set()
        self.backward = False

    def __enter__(self) -> Probe:
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            original = _state(self._model)
            stack.callback(self._leave, original, [p for p in self._model.parameters() if p.grad is None])
            with self._seeded(0), torch.no_grad():
                self._model(self._x)
            self._now = _state(self._model) if _differing(self._model, original) else original
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _leave(self, original: State, without_gradient: list[nn.Parameter]) -> None:
        _put_back(self._model, original, _differing(self._model, original))
        for parameter in without_gradient:
            parameter.grad = None

    def ask(self, x: Tensor, seed: int = 0) -> Tensor:
        """Logits (B, C) without graph, in double.

        Raises:
            Refused: if they are not finite.
        """
        with self._watched(seed) as unpack, torch.no_grad():
            logits = self._forward(x, unpack)
        if not bool(torch.isfinite(logits).all()):
            raise Refused("checks", expected="finite logits", got="NaN or infinity")
        return logits.double()

    def slope(self, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
        """Loss (B,) and its gradient by the input (B, ...); None where autograd finds no way to the input."""
        x = x.detach().requires_grad_()
        with self._watched(0), torch.enable_grad():
            value = loss(self._model(x), y)
            if not value.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        return None if gradient is None else (value.detach(), gradient)

    def _forward(self, x: Tensor, unpack: Callable[[Tensor], Tensor]) -> Tensor:
        try:
            # Whatever a backward pass needs of the forward pass is unpacked by it, whoever asks for it and however.
            with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
                return self._model(x)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            return self._model(x)  # torch.func inside the network does not go with them

    @contextmanager
    def _watched(self, seed: int) -> Iterator[Callable[[Tensor], Tensor]]:
        """Seeds before, bookkeeping and putting back after."""

        def unpack(saved: Tensor) -> Tensor:
            self.backward = True
            return saved

        memories = _memories(self._model)
        with self._seeded(seed):
            yield unpack
        now = _memories(self._model)
        self.remembered |= {name for name, was in memories.items() if now.get(name, was) != was}
        moved = _differing(self._model, self._now)
        self.changed |= moved
        _put_back(self._model, self._now, moved)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        device = self._x.device
        cuda = [device] if device.type == "cuda" else []
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=cuda):
            # Not torch.manual_seed, which would seed every accelerator.
            torch.default_generator.manual_seed(seeds.derive(seed, "check"))
            if cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numpy)


def inputs(model: nn.Module, images: ImageSet, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1] and labels where the network is; in double for a network in double."""
    state = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return images.x[rows].to(state.device).to(dtype) / 255, images.y[rows].to(state.device)


def sample(images: ImageSet, n: int, seed: int) -> Tensor:
    """Rows of n images, in order, drawn from the whole set, which may be sorted by class; all where there are fewer."""
    order = torch.randperm(len(images), generator=seeds.generator("cpu", seed, "checks"))
    return order[:n].sort().values


def _state(model: nn.Module) -> State:
    return {name: t.detach().clone() for name, t in chain(model.named_parameters(), model.named_buffers())}


def _differing(model: nn.Module, kept: State) -> set[str]:
    now = dict(chain(model.named_parameters(), model.named_buffers()))
    return {name for name, was in kept.items() if name in now and not _same(now[name].detach(), was)}


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _put_back(model: nn.Module, kept: State, names: set[str]) -> None:
    """Those of another shape than before were empty until the first call, and stay."""
    now = dict(chain(model.named_parameters(), model.named_buffers()))
    with torch.no_grad():
        for name in names:
            if now[name].shape == kept[name].shape:
                now[name].copy_(kept[name])


def _memories(model: nn.Module) -> dict[str, str]:
    """A digest of every attribute of every module that could hold a memory."""
    return {
        f"{module_name}.{name}".lstrip("."): digest
        for module_name, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in _OF_MODULES and (digest := _digest(value, depth=2)) is not None
    }


_OF_MODULES = frozenset(vars(nn.Module()))


def _digest(value: Any, depth: int) -> str | None:
    """None for what holds no numbers, or holds them too deep."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        return hashlib.blake2b(value.tobytes()).hexdigest()
    if isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (list, tuple, deque, dict)) and depth:
        parts = value.values() if isinstance(value, dict) else value
        return repr((len(value), [_digest(part, depth - 1) for part in parts]))
    return None
