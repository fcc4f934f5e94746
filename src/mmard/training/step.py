"""One step of any method: the way of a batch from its images to a loss.

    in_parts          predictions that are known, micro-batches, and for all of them before any update:
      _attacked       x_adv, by the method's inner objective, with the trained networks in eval mode
    then for each micro-batch:
      _descended      what `Method.around` adds to the weights,
        _forward        the declared forwards of the trained networks, in order and as one call,
        _all_rows       with several processes the predictions of all of them,
                        and the outer terms, whose means are the loss
    descend           backward through each, one after the other

The same object serves the trainer and a user's own loop:

    step = Step(method, {"S": student, "T": teacher}, attack, budget)
    loss, terms = step(x, y)
    loss.backward(); optimizer.step()
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmard import seeds
from mmard.attacks import TrainingAttack
from mmard.balls import Budget
from mmard.batch import Batch, Net, Point, Terms
from mmard.data.batches import check_images, check_labels
from mmard.engine.ascent import (
    Ascent,
    Climber,
    Climbing,
    Compiled,
    attacked_at_once,
    climbs,
    cut,
    learn,
    plain,
    split,
    why_whole,
)
from mmard.engine.twin import PLAIN, Engine, Twins
from mmard.errors import Refused, require
from mmard.method import Method
from mmard.modes import (
    blend,
    ema_share,
    evaluating,
    frozen,
    gradients,
    kept_random_state,
    kept_state,
    quiet_statistics,
)
from mmard.ranks import Ranks


@dataclass(frozen=True)
class Outcome:
    """What a step computed.

    Attributes:
        loss: the sum of the means of the terms, with graph.
        terms: every term per sample (B,), with graph.
        batch: the batch as the outer formula saw it, with x_adv and all predictions.
        share: of the step's images that are in this batch; below 1 for a micro-batch.
    """

    loss: Tensor
    terms: Terms
    batch: Batch
    share: float = 1.0

    def constant(self) -> Outcome:
        """The same without graph and without predictions."""
        terms = {name: term.detach() for name, term in self.terms.items()}
        return Outcome(self.loss.detach(), terms, replace(self.batch, nets={}, trace=[], notes={}), self.share)


def total(terms: Terms) -> Tensor:
    """The loss: the sum of the means of the terms, a scalar with graph."""
    return torch.stack([term.mean() for term in terms.values()]).sum()


class Step:
    """A method bound to its networks, attack and budget; called with a batch, it returns the loss.

    Networks that the method does not train are in eval mode and frozen inside a call, and are put back as they were.
    The trained ones are run in the mode that they are in, which for training is train mode, after an attack in the
    method's `attack_mode`.

    Args:
        method: what to compute.
        nets: networks by letter, at least those that the method reads, but for S_ema, which is made of S if it is not
            given; inputs (B, C, H, W) in [0, 1] to logits.
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
        classes: what labels are held against by a call; None where that is not known.

    Raises:
        Refused: if a network that the method reads is missing, or the attack's step jumps across the budget's ball.
    """

    def __init__(
        self,
        method: Method,
        nets: Mapping[str, nn.Module],
        attack: TrainingAttack,
        budget: Budget,
        seed: int = 0,
        ascent: Ascent = plain,
        engine: Engine = PLAIN,
        ranks: Ranks | None = None,
        compiled: bool = False,
        autocast: bool = False,
    ) -> None:
        if "S_ema" in method.nets and "S" in nets:
            nets = {"S_ema": copy.deepcopy(nets["S"]).eval().requires_grad_(False), **nets}
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
        self.classes: int | None = None
        self.twins = Twins(engine, self.nets, self.moving, self._as_they_are())
        self._due = False
        self._moved: list[tuple[Tensor, Tensor, Tensor]] = []
        self.ranks = ranks
        run = {letter: self.nets[letter] for letter in method.forwards}
        self._compiled = [Compiled(net) for net in run.values()] if compiled else []
        run = dict(zip(run, self._compiled, strict=True)) if compiled else run
        self._alone = {letter: Forwards(net, autocast) for letter, net in run.items()}
        self._joined = (
            self._alone if ranks is None else {k: averaging_gradients(own, ranks) for k, own in self._alone.items()}
        )

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The networks whose weights are updated, by letter: those in train mode, then those that are tuned."""
        return {letter: self.nets[letter] for letter in (*self.method.forwards, *self.method.tunes)}

    @property
    def moving(self) -> dict[str, nn.Module]:
        """The networks that are others after a step: those that are trained, and the average of the student."""
        average = {"S_ema": self.nets["S_ema"]} if "S_ema" in self.nets else {}
        return {**self.trained, **average}

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

        Raises:
            Refused: for images that are not float or not in [0, 1], labels that are not integers or not of a class, and
                a batch on another device than the networks.
        """
        where = "training step"
        check_images(x, where)
        check_labels(y, len(x), self.classes, where)
        require(0 <= progress <= 1, where, expected="progress in [0, 1]", got=progress)
        with gradients():
            # Cloned where it was made under inference_mode, as such tensors cannot be saved for a backward.
            x, y = (each.clone() if each.is_inference() else each for each in (x, y))
            outcome = self.run(x, y.to(x.device, torch.int64), progress)
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
            if len(rows) > 1 and self.method.around is not None:
                got = f"{len(rows)} micro-batches"
                raise Refused(f"method {self.method.name}", expected="a whole batch, on which it looks ahead", got=got)
            batches = [batch] if len(rows) == 1 else [cut(batch, each) for each in rows]
            if self.method.inner is not None:
                batches = self._attacked(batch, batches, rows)
        for each in batches:
            yield self._descended(each, len(y))  # and held nowhere else, for its graph is as large as its forwards
        self.count += 1
        self._due = True

    def _micro_batches(self, n: int, parts: int) -> int:
        """How many there are in a batch of which n rows are here: as many in every process, of two rows at least."""
        if parts == 1:
            return 1
        fewest = n if self.ranks is None else self.ranks.total(n) // self.ranks.size
        return max(1, min(parts, fewest // 2))

    def _attacked(self, batch: Batch, batches: list[Batch], rows: list[slice]) -> list[Batch]:
        """These parts of a batch with their x_adv. What is random in an attack is drawn for the whole batch."""
        inner = self.method.inner
        assert inner is not None
        with frozen(*self.trained.values()), ExitStack() as modes:
            if self.method.attack_mode == "eval":
                modes.enter_context(evaluating(*self.trained.values()))
            generator = seeds.generator(batch.x.value.device, self.seed, "attack", self.count)
            if not climbs(self.attack):
                return [attacked_at_once(inner, self.attack, self.budget, each, generator) for each in batches]
            climber = Climber(inner, self.attack, self.budget)
            first = self._start(self.attack, batch.x.value, generator)
            return [self.ascent(climber, each, first[here]) for each, here in zip(batches, rows, strict=True)]

    def _start(self, attack: Climbing, x: Tensor, generator: torch.Generator) -> Tensor:
        """Where the attack starts; with other processes, as if this one had drawn for the rows of all."""
        if self.ranks is None:
            return attack.begin(x, self.budget, generator)
        n = self.ranks.total(len(x))
        all_rows = x.new_zeros(n, *x.shape[1:])
        all_rows[self.ranks.rows(n)] = x
        return attack.begin(all_rows, self.budget, generator)[self.ranks.rows(n)]

    def _descended(self, batch: Batch, n: int) -> Outcome:
        """The outcome of a batch that has been attacked, in a step on n images (here, where there are processes)."""
        whole = len(batch.y) == n
        with self._others_at_rest():
            if self.method.around is not None:
                self._move_weights(batch)
            batch = self._all_rows(self._forward(batch, self._joined))
            terms = self.method.outer(batch)
        for name, term in terms.items():
            where, shape = f"term {name} of method {self.method.name}", tuple(term.shape)
            mend = "leave the mean over the batch to the trainer" if term.ndim == 0 else ""
            require(term.shape == batch.y.shape, where, expected=f"shape {tuple(batch.y.shape)}", got=shape, mend=mend)
        share = 1.0 if whole else len(batch.y) / (n if self.ranks is None else self.ranks.total(n))
        return Outcome(total(terms), terms, batch, share)

    def _move_weights(self, batch: Batch) -> None:
        """Put the student's weights where the method wants its loss descended, and remember where they were.

        The further forward leaves no trace: statistics of the trained networks, the memory and random states stay.
        """
        assert self.method.around is not None
        weights = {name: w for name, w in self.nets["S"].named_parameters() if w.requires_grad}

        def gradients() -> dict[str, Tensor]:
            with kept_state(self.method.memory), kept_random_state(weights.values()), ExitStack() as quiet:
                for net in self.trained.values():
                    quiet.enter_context(quiet_statistics(net))
                loss = total(self.method.outer(self._all_rows(self._forward(batch, self._alone))))
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            pairs = zip(weights.items(), found, strict=True)
            slopes = {name: torch.zeros_like(w) if g is None else g for (name, w), g in pairs}
            if self.ranks is not None:
                self.ranks.average(slopes.values())
            return slopes

        steps = self.method.around(batch.progress, weights, gradients)
        with torch.no_grad():
            for name, step in steps.items():
                before = weights[name].clone()
                weights[name].add_(step)
                self._moved.append((weights[name], before, weights[name].clone()))

    def _forward(self, batch: Batch, run: Mapping[str, nn.Module]) -> Batch:
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
                logits = self.nets[letter](point.value.clone())
                tuned[f"{letter}_tuned"].put(point, logits)
                batch.nets[letter].put(point, logits.detach())
        return batch

    def _all_rows(self, batch: Batch) -> Batch:
        """The batch of all processes, as the outer formula sees it."""
        if self.ranks is None:
            return batch
        n, ranks = self.ranks.total(len(batch.y)), self.ranks
        nets = {letter: GatheredNet(net, ranks, n) for letter, net in batch.nets.items()}
        trace = [ranks.gather(logits, n) for logits in batch.trace]
        return replace(batch, y=ranks.gather(batch.y, n), nets=nets, trace=trace)

    @contextmanager
    def _others_at_rest(self) -> Iterator[None]:
        others = {letter: m for letter, m in self.nets.items() if letter not in self.method.forwards}
        constant = [m for letter, m in others.items() if letter not in self.method.tunes]
        with evaluating(*others.values()), frozen(*constant):
            yield

    def settle(self) -> None:
        """Take back what `Method.around` added to the weights, and average; call it after the optimiser's step.

        What the optimiser did in between stays. A next step settles by itself what was not settled.
        """
        with torch.no_grad():
            for weight, before, moved in self._moved:
                # Where nothing was added, no rounding either.
                weight.copy_(torch.where(moved == before, weight, before + (weight - moved)))
        self._moved = []
        if self._due and "S_ema" in self.nets:
            blend(self.nets["S_ema"], self.nets["S"], ema_share(self.method.ema_decay, self.count))
        self._due = False

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


def descend(
    step: Step,
    x: Tensor,
    y: Tensor,
    progress: float,
    known: Mapping[str, Tensor],
    parts: int = 1,
    look: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Add the gradient of a batch's loss to the weights' `.grad`, and say what was computed.

    With several micro-batches, losses are weighted by images, so for a network whose prediction of an image depends on
    that image alone the gradient is the batch's. BatchNorm in train mode normalises each micro-batch by its own
    statistics, and terms that couple samples couple those of a micro-batch.

    Args:
        step: whose loss it is.
        x, y, progress, known: as in `Step.run`.
        parts: micro-batches, each of two images at least; one is the batch itself.
        look: shown each outcome before its backward.

    Returns:
        The step's outcome. With several micro-batches it is put together from theirs, without graph, and its batch has
        images and labels alone.
    """
    done: list[Outcome] = []
    outcome = None
    for outcome in step.in_parts(x, y, progress, known, parts):
        if look is not None:
            look(outcome)
        (outcome.loss if outcome.share == 1 else outcome.loss * outcome.share).backward()
        if outcome.share < 1:
            done.append(outcome.constant())
            outcome = None  # or the next micro-batch would have to fit beside this one
    if outcome is not None:
        return outcome
    loss = torch.stack([each.loss * each.share for each in done]).sum()
    terms = {name: torch.cat([each.terms[name] for each in done]) for name in done[0].terms}
    attacked = [each.batch.x_adv.value for each in done if each.batch.x_adv is not None]
    point = Point("x_adv", torch.cat(attacked)) if attacked else None
    return Outcome(loss, terms, Batch(Point("x", x), point, torch.cat([each.batch.y for each in done]), {}, progress))


class GatheredNet(Net):
    """A network as the outer formula sees it on several processes: at a point, the logits of the rows of all."""

    def __init__(self, here: Net, ranks: Ranks, n: int) -> None:
        super().__init__(here.module, here.sealed)
        self.here, self.ranks, self.n = here, ranks, n

    def __call__(self, point: Point) -> Tensor:
        """Logits (n, classes)."""
        if point not in self._seen:
            self._seen[point] = self.ranks.gather(self.here(point), self.n)
        return self._seen[point]

    def slope(self, point: Point, pick: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """As in `Net`, for all rows; every process computes it for all, since `pick` may look at any row."""
        return self.here.slope(Point(point.name, self.ranks.gather(point.value, self.n)), pick)


class Forwards(nn.Module):
    """All forwards of a trained network in a step as one call, as PyTorch's engine asks for it.

    Two calls before one backward would fail: the second changes BatchNorm's buffers, which the first one's backward
    reads.

    Args:
        module: the network.
        autocast: make its forwards in bfloat16 by `torch.autocast`.
    """

    def __init__(self, module: nn.Module, autocast: bool = False) -> None:
        super().__init__()
        self.module, self.autocast = module, autocast

    def forward(self, inputs: Sequence[Tensor], quiet: Sequence[bool]) -> list[Tensor]:
        """Logits (B, C) at each of the inputs (B, C, H, W), in order; the quiet ones move no running statistics."""
        logits = []
        # One context for all of them, for it keeps the weights that it has cast.
        with torch.autocast(inputs[0].device.type, torch.bfloat16) if self.autocast else nullcontext():
            for x, still in zip(inputs, quiet, strict=True):
                with quiet_statistics(self.module) if still else nullcontext():
                    logits.append(self.module(x.clone()).to(x.dtype))  # it may write into its input
        return logits


def averaging_gradients(forwards: Forwards, ranks: Ranks) -> DistributedDataParallel:
    """The forwards of a network whose gradients are averaged over processes as they come.

    Buffers are not broadcast: `Ranks.average_statistics` keeps them equal.
    """
    parameter = next(forwards.parameters())
    where = [parameter.device.index] if parameter.is_cuda else None
    known = inspect.signature(DistributedDataParallel).parameters
    # Newer versions of PyTorch call it by the second name and warn of the first.
    still: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(forwards, device_ids=where, **still)


def synchronised(module: nn.Module) -> nn.Module:
    """The network with SyncBatchNorm, which normalises by the rows of all processes. In place where it can.

    Raises:
        Refused: on a CPU, where PyTorch has none.
    """
    if not next(module.parameters()).is_cuda:
        mend = "leave --sync-bn out: each process then normalises by its own rows"
        raise Refused("--sync-bn", expected="GPUs", got="a CPU", mend=mend)
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)
