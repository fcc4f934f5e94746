"""One step of any method: make x_adv, run the declared forwards, add up the terms.

The same object serves the trainer and a user's own loop:

    step = Step(method, {"S": student, "T": teacher}, attack, budget)
    loss, terms = step(x, y)
    loss.backward(); optimizer.step()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import Attack
from mmard.balls import Budget
from mmard.errors import Refused, require
from mmard.method import Batch, Method, Net, Point, Terms
from mmard.modes import evaluating, frozen, quiet_statistics


@dataclass(frozen=True)
class Outcome:
    """What a step computed.

    Attributes:
        loss: the sum of the means of the terms, with graph.
        terms: every term per sample (B,), with graph.
        batch: the batch as the outer formula saw it, with x_adv and all predictions.
    """

    loss: Tensor
    terms: Terms
    batch: Batch


class Step:
    """A method bound to its networks, attack and budget; called with a batch, it returns the loss.

    Networks that the method does not train are in eval mode and frozen inside a call, and are put back as they were.
    The trained ones are run in the mode that they are in, which for training is train mode, after an attack in the
    method's `attack_mode`.

    Args:
        method: what to compute.
        nets: networks by letter, at least those that the method reads; inputs (B, C, H, W) in [0, 1] to logits.
        attack: how x_adv is made.
        budget: where x_adv may be.
        seed: of the attack's random start.

    Attributes:
        count: number of steps taken, which addresses the random start of the next.

    Raises:
        Refused: if a network that the method reads is missing, or the attack's step jumps across the budget's ball.
    """

    def __init__(
        self, method: Method, nets: Mapping[str, nn.Module], attack: Attack, budget: Budget, seed: int = 0
    ) -> None:
        missing = [letter for letter in method.nets if letter not in nets]
        if missing:
            raise Refused(
                f"method {method.name}",
                expected=f"the networks {', '.join(method.nets)}",
                got=f"no {', '.join(missing)}",
                mend="give a teacher" if "T" in missing else "",
            )
        require(
            getattr(attack, "restarts", 1) == 1,
            "training attack",
            expected="one start",
            got=f"{getattr(attack, 'restarts', 1)} restarts",
            mend="restarts belong to evaluation",
        )
        check = getattr(attack, "check", None)
        if check is not None:
            check(budget)
        self.method, self.attack, self.budget, self.seed = method, attack, budget, seed
        self.nets = {letter: nets[letter] for letter in method.nets}
        self.count = 0

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The networks that the method trains, by letter."""
        return {letter: self.nets[letter] for letter in self.method.forwards}

    def __call__(self, x: Tensor, y: Tensor, progress: float = 1.0) -> tuple[Tensor, Terms]:
        """The loss (scalar, with graph) and its terms (B,) on a batch x (B, C, H, W) in [0, 1] with labels y (B,).

        Args:
            progress: 1-based epoch divided by the number of epochs; ramps and late terms read it.
        """
        outcome = self.run(x, y, progress)
        return outcome.loss, outcome.terms

    def run(self, x: Tensor, y: Tensor, progress: float = 1.0) -> Outcome:
        """Like calling, and hands back the batch with its predictions as well."""
        with self._others_at_rest():
            batch = Batch(Point("x", x), None, y, {k: Net(m) for k, m in self.nets.items()}, progress)
            if self.method.inner is not None:
                batch = self._attacked(batch)
            batch = self._with_forwards(batch)
            terms = self.method.outer(batch)
        for name, term in terms.items():
            assert term.shape == y.shape, f"term {name} of {self.method.name} has shape {tuple(term.shape)}, not (B,)"
        self.count += 1
        return Outcome(torch.stack([term.mean() for term in terms.values()]).sum(), terms, batch)

    @contextmanager
    def _others_at_rest(self) -> Iterator[None]:
        others = [m for letter, m in self.nets.items() if letter not in self.method.forwards]
        with evaluating(*others), frozen(*others):
            yield

    def _attacked(self, batch: Batch) -> Batch:
        inner = self.method.inner
        assert inner is not None
        asked = 0

        def objective(logits: Tensor, x_adv: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            return inner(batch.at(x_adv, logits, asked - 1))

        trained = self.trained.values()
        with ExitStack() as modes:
            modes.enter_context(frozen(*trained))
            if self.method.attack_mode == "eval":
                modes.enter_context(evaluating(*trained))
            generator = seeds.generator(batch.x.value.device, self.seed, "attack", self.count)
            x_adv = self.attack(
                self.nets["S"], objective, batch.x.value, self.budget, generator=generator, trace=batch.trace
            )
        return replace(batch, x_adv=Point("x_adv", x_adv))

    def _with_forwards(self, batch: Batch) -> Batch:
        """Run the declared forwards, in order, and seal the trained networks behind them."""
        why = f"method {self.method.name} declares forwards {dict(self.method.forwards)}"
        sealed = {letter: Net(module, why) for letter, module in self.trained.items()}
        batch = replace(batch, nets={**batch.nets, **sealed})
        for letter, points in self.method.forwards.items():
            for name in points:
                module, point = self.nets[letter], batch.point(name)
                with quiet_statistics(module) if name in self.method.quiet else ExitStack():
                    sealed[letter].put(point, module(point.value))
        return batch
