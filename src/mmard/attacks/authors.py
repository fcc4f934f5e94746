"""The authors' own AutoAttack as a backend: the package pyautoattack, equal to fra31/auto-attack to the bit.

It is slower than ours and gives the same verdicts; a figure by it says so in its label. Every attack of theirs is run
by itself on a batch of survivors, so that the survivors' protocol, resuming and the last word on every point are
the same as for our attacks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util

import torch
from torch import Tensor, nn

from mmard.attacks.apgd import APGD
from mmard.attacks.fab import FAB
from mmard.attacks.queries import logits_of
from mmard.attacks.square import Square
from mmard.balls import Budget
from mmard.errors import Refused, needs_extra

PACKAGE = "pyautoattack"
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""Norms as they spell them."""

Own = APGD | FAB | Square


def installed() -> str:
    """The version of the package.

    Raises:
        Refused: where it is not installed.
    """
    if util.find_spec(PACKAGE) is None:
        raise needs_extra(PACKAGE, "autoattack", f"attacks by {PACKAGE}")
    return metadata.version(PACKAGE)


@dataclass(frozen=True)
class Authors:
    """One attack of theirs (an `Attack`). It asks the network itself, for a whole batch at once.

    Args:
        name: as they call it, and we, e.g. "apgd-ce".
        own: ours with the same settings.
        version: of the package.
    """

    name: str
    own: Own
    version: str

    stops_at_success = True

    @property
    def spec(self) -> str:
        """With the backend, e.g. "apgd-ce@pyautoattack"."""
        return f"{self.name}@{PACKAGE}"

    @property
    def title(self) -> str:
        """As that of ours."""
        return self.own.title

    @property
    def label(self) -> str:
        """With its settings and whose code it is."""
        return f"{self.own.label}, by {PACKAGE} {self.version}"

    @property
    def needs_gradient(self) -> bool:
        """As ours."""
        return self.own.needs_gradient

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, *, generator: torch.Generator) -> Tensor:
        """As `Attack`, of images (B, C, H, W); the generator's seed is theirs.

        Raises:
            Refused: for inputs that are not float32, which theirs turns them into.
        """
        import pyautoattack

        if x.dtype != torch.float32:
            raise Refused(f"{self.name} by {PACKAGE}", expected="float32", got=str(x.dtype).removeprefix("torch."))
        seed, norm = generator.initial_seed(), NORMS[budget.norm]
        judge = pyautoattack.AutoAttack(
            partial(logits_of, model), norm=norm, eps=budget.eps, seed=seed, version="standard", device=x.device
        )
        judge.attacks_to_run = [self.name]
        self._set(judge, norm)
        logger = logging.getLogger("auto-attack")
        level = logger.level
        # Theirs seeds and uses the global generators.
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            try:
                logger.setLevel(logging.CRITICAL)
                x_adv, _ = judge.run_standard_evaluation(x, y, batch_size=len(x))
            finally:
                logger.setLevel(level)
        # Under l1 a projected point may round to a hair beyond the box.
        return torch.as_tensor(x_adv).detach().clamp(0, 1)

    def _set(self, judge: object, norm: str) -> None:
        if isinstance(self.own, Square):
            theirs = {"square": {"n_queries": self.own.queries, "n_restarts": self.own.restarts}}
        elif isinstance(self.own, FAB):
            theirs = {"fab": {"n_iter": self.own.steps, "n_target_classes": self.own.targets}}
        else:
            same = {
                "n_restarts": self.own.restarts,
                "eot_iter": self.own.eot,
                "use_largereps": norm == "L1" and self.own.shrink,
                "n_iter": self.own.steps,
                "n_iter_orig": self.own.steps,
                "n_iter_2": max(int(0.22 * self.own.steps), 1),
                "n_iter_min": max(int(0.06 * self.own.steps), 1),
                "size_decr": max(int(0.03 * self.own.steps), 1),
            }
            theirs = {"apgd": same, "apgd_targeted": {**same, "n_target_classes": self.own.targets}}
        for part, settings in theirs.items():
            for name, value in settings.items():
                setattr(getattr(judge, part), name, value)
