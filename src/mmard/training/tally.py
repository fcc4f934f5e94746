"""What the log says of an epoch: means over its images, and how far the attack went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmard.errors import Refused
from mmard.training.outcome import Outcome
from mmard.training.step import Step


class Validation(NamedTuple):
    """Accuracy on the validation split, as fractions."""

    clean: float
    robust: float


LOGGED = frozenset(("kind", "step", "epoch", "epoch_step", "seconds", "lr", "loss", "images", "reach", "best"))
"""Names that a term cannot have, with those of `Validation`: the log has them."""


class Tally:
    """Sums over the steps of an epoch so far, kept where the step computed them, so that no step waits for a GPU."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._sums: dict[str, Tensor] = {}

    def restore(self, sums: Mapping[str, float]) -> None:
        """Go on from what `totals` said; from nothing with an empty mapping."""
        self._sums = {name: torch.tensor(total, dtype=torch.float64) for name, total in sums.items()}

    def count(self, outcome: Outcome) -> dict[str, Tensor]:
        """Add a step; the means of its loss and of its terms.

        Raises:
            Refused: for a term that has the name of another thing in the log.
        """
        batch = outcome.batch
        taken = sorted(outcome.terms.keys() & (LOGGED | set(Validation._fields)))
        if taken:
            where = f"term {taken[0]!r} of method {self._step.method.name}"
            raise Refused(where, expected="a name that the log does not use", got=repr(taken[0]), mend="rename it")
        means = {"loss": outcome.loss.detach(), **{name: term.detach().mean() for name, term in outcome.terms.items()}}
        for name, mean in means.items():
            self._add(name, mean * len(batch.y))
        self._add("images", torch.tensor(len(batch.y)))
        if batch.x_adv is not None:
            reach = self._step.budget.distance(batch.x_adv.value, batch.x.value).amax().double()
            before = self._sums.get("reach", reach)
            self._sums["reach"] = torch.maximum(before.to(reach.device), reach)
        return means

    def totals(self) -> dict[str, float]:
        """The sums. The terms' are those of all processes already; the largest reach is made so here."""
        totals = {name: total.item() for name, total in self._sums.items()}
        if self._step.ranks is not None and "reach" in totals:
            (totals["reach"],) = self._step.ranks.largest(totals["reach"])
        return totals

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double()
        self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
