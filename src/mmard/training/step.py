"""One step of any method: make x_adv, run the declared forwards, add up the terms.

The same object serves the trainer and a user's own loop:

    step = Step(method, {"S": student, "T": teacher}, attack, budget)
    loss, terms = step(x, y)
    loss.backward(); optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import Attack
from mmard.balls import Budget
from mmard.batch import Batch, Net, Point, Terms
from mmard.engine.ascent import Ascent, Climber, Climbing, attacked_at_once, climbs, cut, learn, plain, split
from mmard.engine.chunks import why_whole
from mmard.engine.compiled import Compiled
from mmard.engine.twins import PLAIN, Engine, Twins
from mmard.errors import Refused, require
from mmard.method import Method
from mmard.modes import evaluating, frozen
from mmard.training.ahead import Moved, looked_ahead
from mmard.training.forwards import Everywhere, Forwards, wrapped
from mmard.training.outcome import Outcome, total
from mmard.training.ranks import Ranks


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
        ascent: how the attack is run; the plain way if not said.
        engine: what is called instead of the networks in the attack, and of those at rest; nothing if not said.
        ranks: this process among those that train together, each of which is called with its rows of the batch; the
            loss that is returned is that of all rows, in every process.
        compiled: run the declared forwards through `torch.compile`.
        autocast: run them in bfloat16 by `torch.autocast`, with float32 weights, gradients and logits.

    Attributes:
        count: number of steps taken, which addresses the random start of the next.

    Raises:
        Refused: if a network that the method reads is missing, or the attack's step jumps across the budget's ball.
    """

    def __init__(
        self,
        method: Method,
        nets: Mapping[str, nn.Module],
        attack: Attack,
        budget: Budget,
        seed: int = 0,
        ascent: Ascent = plain,
        engine: Engine = PLAIN,
        ranks: Ranks | None = None,
        compiled: bool = False,
        autocast: bool = False,
    ) -> None:
        missing = [letter for letter in method.nets if letter not in nets]
        if missing:
            raise Refused(
                f"method {method.name}",
                expected=f"the networks {', '.join(method.nets)}",
                got=f"no {', '.join(missing)}",
                mend="give a teacher" if any(letter in method.teachers for letter in missing) else "",
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
        # What ties the images of a batch together in the attack can only be run the plain way.
        self.ascent = plain if why_whole(method) else ascent
        self.count = 0
        self.twins = Twins(engine, self.nets, self.trained, self._as_they_are())
        self._moved = Moved()
        self.ranks = ranks
        run = {letter: self.nets[letter] for letter in method.forwards}
        self._compiled = [Compiled(net) for net in run.values()] if compiled else []
        run = dict(zip(run, self._compiled, strict=True)) if compiled else run
        self._alone = {letter: Forwards(net, autocast) for letter, net in run.items()}
        self._joined = self._alone if ranks is None else {k: wrapped(own, ranks) for k, own in self._alone.items()}

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The networks whose weights are updated, by letter: those in train mode, then those that are tuned."""
        return {letter: self.nets[letter] for letter in (*self.method.forwards, *self.method.tunes)}

    def listen(self, tell: Callable[[str], None]) -> None:
        """Tell this, in words, what has to be run in another way than was asked for."""
        for part in (self.ascent, *self._compiled):
            listen = getattr(part, "listen", None)
            if listen is not None:
                listen(tell)

    def _as_they_are(self) -> dict[str, str]:
        """The networks that no twin may stand for, with the reason."""
        if self.method.inner is None:
            return dict.fromkeys(self.method.forwards, "no attack")
        return dict.fromkeys(self.trained, "attacked in train mode") if self.method.attack_mode == "train" else {}

    def __call__(self, x: Tensor, y: Tensor, progress: float = 1.0) -> tuple[Tensor, Terms]:
        """The loss (scalar, with graph) and its terms (B,) on a batch x (B, C, H, W) in [0, 1] with labels y (B,).

        Args:
            progress: 1-based epoch divided by the number of epochs; ramps and late terms read it.
        """
        outcome = self.run(x, y, progress)
        return outcome.loss, outcome.terms

    def run(self, x: Tensor, y: Tensor, progress: float = 1.0, known: Mapping[str, Tensor] | None = None) -> Outcome:
        """Like calling, and hands back the batch with its predictions as well.

        Args:
            known: predictions at x (B, classes) that need not be made, by letter of a network that is not trained.
        """
        (outcome,) = self.in_parts(x, y, progress, known)
        return outcome

    def in_parts(
        self, x: Tensor, y: Tensor, progress: float = 1.0, known: Mapping[str, Tensor] | None = None, parts: int = 1
    ) -> Iterator[Outcome]:
        """A step in up to `parts` micro-batches of at least two images, whose outcomes come one after the other.

        All attacks are made first, on the networks as they are before the update. The loss of the batch is the mean of
        the outcomes' losses weighted by their images; go backward through each before the next is asked for.
        """
        self.settle()
        with self._others_at_rest():
            called = self.twins.serving(x)
            batch = Batch(Point("x", x), None, y, {k: Net(m) for k, m in called.items()}, progress)
            learn(batch, dict(known or {}))
            rows = split(len(y), self._micro_batches(len(y), parts))
            assert len(rows) == 1 or self.method.around is None, f"{self.method.name} looks ahead on a whole batch"
            pieces = [batch] if len(rows) == 1 else [cut(batch, each) for each in rows]
            if self.method.inner is not None:
                pieces = self._attacked(batch, pieces, rows)
        for piece in pieces:
            yield self._descended(piece, len(y))  # and held nowhere else, for its graph is as large as its forwards
        self.count += 1

    def _micro_batches(self, n: int, parts: int) -> int:
        """How many there are in a batch of which n rows are here: as many in every process, of two rows at least."""
        if parts == 1:
            return 1
        fewest = n if self.ranks is None else self.ranks.total(n) // self.ranks.size
        return max(1, min(parts, fewest // 2))

    def _descended(self, batch: Batch, n: int) -> Outcome:
        """The outcome of a batch that has been attacked, in a step on n images (here, where there are processes)."""
        part = len(batch.y) < n
        with self._others_at_rest():
            if self.method.around is not None:
                self._move_weights(batch)
            batch = self._whole(self._with_forwards(batch, self._joined))
            terms = self.method.outer(batch)
        for name, term in terms.items():
            shape = tuple(term.shape)
            assert term.shape == batch.y.shape, f"term {name} of {self.method.name} has shape {shape}, not (B,)"
        if not part:
            return Outcome(total(terms), terms, batch)
        share = len(batch.y) / (n if self.ranks is None else self.ranks.total(n))
        return Outcome(total(terms), terms, batch, share)

    def settle(self) -> None:
        """Take back what `Method.around` added to the weights; call it after the optimiser's step.

        What the optimiser did in between stays. A next step settles by itself what was not settled.
        """
        self._moved.take_back()

    def share_gradients(self) -> None:
        """After going backward: average over processes what their engine has not averaged on the way."""
        if self.ranks is not None:
            tuned = [
                p.grad for letter in self.method.tunes for p in self.nets[letter].parameters() if p.grad is not None
            ]
            if tuned:
                self.ranks.average(tuned)

    def share_statistics(self) -> None:
        """After an update: give all processes the same running statistics."""
        if self.ranks is not None:
            for letter in self.method.forwards:
                self.ranks.average_statistics(self.nets[letter])

    @contextmanager
    def _others_at_rest(self) -> Iterator[None]:
        others = {letter: m for letter, m in self.nets.items() if letter not in self.method.forwards}
        constant = [m for letter, m in others.items() if letter not in self.method.tunes]
        with evaluating(*others.values()), frozen(*constant):
            yield

    def _move_weights(self, batch: Batch) -> None:
        """Put the student's weights where the method wants its loss descended."""
        assert self.method.around is not None
        weights = {name: w for name, w in self.nets["S"].named_parameters() if w.requires_grad}

        def loss() -> Tensor:
            return total(self.method.outer(self._whole(self._with_forwards(batch, self._alone))))

        def gradients() -> dict[str, Tensor]:
            found = looked_ahead(loss, weights, self.trained.values(), self.method.memory)
            if self.ranks is not None:
                self.ranks.average(found.values())
            return found

        self._moved.add(weights, self.method.around(batch.progress, weights, gradients))

    def _attacked(self, batch: Batch, pieces: list[Batch], rows: list[slice]) -> list[Batch]:
        """The pieces of a batch with their x_adv. What is random in an attack is drawn for the whole batch."""
        inner = self.method.inner
        assert inner is not None
        with ExitStack() as modes:
            modes.enter_context(frozen(*self.trained.values()))
            if self.method.attack_mode == "eval":
                modes.enter_context(evaluating(*self.trained.values()))
            generator = seeds.generator(batch.x.value.device, self.seed, "attack", self.count)
            if not climbs(self.attack):
                return [attacked_at_once(inner, self.attack, self.budget, piece, generator) for piece in pieces]
            climber = Climber(inner, self.attack, self.budget)
            first = self._begun(self.attack, batch.x.value, generator)
            return [self.ascent(climber, piece, first[each]) for piece, each in zip(pieces, rows, strict=True)]

    def _begun(self, attack: Climbing, x: Tensor, generator: torch.Generator) -> Tensor:
        """Where the attack starts; with other processes, as if this one had drawn for the rows of all."""
        if self.ranks is None:
            return attack.begin(x, self.budget, generator)
        n = self.ranks.total(len(x))
        all_rows = x.new_zeros(n, *x.shape[1:])
        all_rows[self.ranks.rows(n)] = x
        return attack.begin(all_rows, self.budget, generator)[self.ranks.rows(n)]

    def _whole(self, batch: Batch) -> Batch:
        """The batch of all processes, as the outer formula sees it."""
        if self.ranks is None:
            return batch
        n, ranks = self.ranks.total(len(batch.y)), self.ranks
        nets = {letter: Everywhere(net, ranks, n) for letter, net in batch.nets.items()}
        trace = [ranks.gathered(logits, n) for logits in batch.trace]
        return replace(batch, y=ranks.gathered(batch.y, n), nets=nets, trace=trace)

    def _with_forwards(self, batch: Batch, run: Mapping[str, nn.Module]) -> Batch:
        """Run the declared forwards, in order, and seal the trained networks behind them."""
        why = f"method {self.method.name} declares forwards {dict(self.method.forwards)}"
        sealed = {letter: Net(self.nets[letter], why) for letter in self.method.forwards}
        tuned = {f"{letter}_tuned": Net(self.nets[letter], "its tuning says where") for letter in self.method.tunes}
        batch = replace(batch, nets={**batch.nets, **sealed, **tuned})
        for letter, points in self.method.forwards.items():
            asked = [batch.point(name) for name in points]
            quiet = [name in self.method.quiet for name in points]
            for point, logits in zip(asked, run[letter]([each.value for each in asked], quiet), strict=True):
                sealed[letter].put(point, logits)
        for letter, tuning in self.method.tunes.items():
            for name in tuning.points:
                point = batch.point(name)
                logits = self.nets[letter](point.value)
                tuned[f"{letter}_tuned"].put(point, logits)
                batch.nets[letter].put(point, logits.detach())
        return batch
