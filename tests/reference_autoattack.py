"""The authors' AutoAttack (PyPI: pyautoattack 0.2.0, the same as fra31/auto-attack a392200 to the bit) as an oracle.

It computes in float32 whatever it is given. `in_double` makes it compute in float64, so that a difference is one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmard.balls import Budget

CLASSES = 10
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


@contextmanager
def in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every `.float()` and every new tensor in float64."""
    default = torch.get_default_dtype()
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def reference_masks(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    budget: Budget,
    *,
    names: Sequence[str] = STANDARD,
    steps: int,
    queries: int,
    targets: int,
    batch_size: int,
    stamps: list[float] | None = None,
) -> list[np.ndarray]:
    """Who stands after each attack of an ensemble, with this much effort; `stamps` collects the CPU time after each."""
    package = pytest.importorskip("pyautoattack")
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack
    from pyautoattack.state import EvaluationState

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[budget.norm]
    sparse = {"use_largereps": norm == "L1"}
    judge = package.AutoAttack(model, attacks=list(names), eps=budget.eps, norm=norm, seed=0, version="custom")
    shared = {"norm": norm, "n_restarts": 1, "eps": budget.eps, "seed": 0, "device": "cpu"}
    logger = logging.getLogger("auto-attack")
    judge.apgd = APGDAttack(
        model, n_iter=steps, logger=logger, **{**shared, **sparse, "n_restarts": 5 if norm == "L1" else 1}
    )
    judge.apgd_targeted = APGDAttack_targeted(
        model, n_iter=steps, n_target_classes=min(targets, 5) if norm == "L1" else targets, logger=logger,
        **{**shared, **sparse},
    )  # fmt: skip
    judge.fab = FABAttack_PT(model, n_iter=steps, n_target_classes=targets, **shared)
    judge.square = SquareAttack(model, n_queries=queries, p_init=0.8, resc_schedule=False, **shared)
    masks: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():

        def done(state: EvaluationState, attack: str) -> None:
            masks.append(state.robust_flags.numpy().copy())
            if stamps is not None:
                stamps.append(time.process_time())

        patched.setattr(EvaluationState, "add_run_attack", done)
        judge.run_standard_evaluation(x, y, batch_size=batch_size)
    # It stops where nobody is left.
    return masks + [np.zeros(len(x), dtype=bool)] * (len(names) - len(masks))


class Scene(nn.Module):
    """A small network of ten classes on images (2, 6, 6), smooth, with lively weights, the same everywhere."""

    SHAPE = (2, 6, 6)

    def __init__(self, classes: int = CLASSES, smooth: bool = True) -> None:
        super().__init__()
        drawn = np.random.default_rng(0)
        bend = nn.Tanh if smooth else nn.ReLU
        self.layers = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), bend(), nn.Conv2d(8, 12, 3, stride=2, padding=1), bend(), nn.Flatten(),
            nn.Linear(12 * 9, classes),
        ).double()  # fmt: skip
        for p in self.parameters():
            p.data = torch.from_numpy(drawn.normal(0, 1.5 / np.sqrt(max(p[0].numel(), 4)), p.shape))
        with torch.no_grad():  # no class wins everywhere
            self.layers[-1].bias -= self(scene_images(64).double() / 255).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def scene_images(n: int) -> Tensor:
    """uint8 (n, 2, 6, 6), a good part of the pixels on the faces of the box."""
    drawn = np.random.default_rng(1).normal(128, 110, (n, *Scene.SHAPE))
    return torch.from_numpy(drawn.clip(0, 255).astype(np.uint8))


def scene_labels(model: nn.Module, images: Tensor, classes: int = CLASSES) -> Tensor:
    """What the network says, but for every ninth image."""
    with torch.no_grad():
        said = model(images.double() / 255).argmax(1)
    return torch.where(torch.arange(len(said)) % 9 == 4, (said + 1) % classes, said)
