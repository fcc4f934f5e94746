"""The training loop: one for every method, resumable to the bit."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.data.batches import Batches
from mmard.engine.ascent import Chunks
from mmard.engine.twin import Record, Twins
from mmard.errors import Refused
from mmard.method import Method
from mmard.modes import kept_random_state
from mmard.ranks import Ranks, raising_lost, refuse_other_number
from mmard.run import Event, Run
from mmard.training.checkpoint import Position, load, pack, refuse_changed, refuse_without_state, unpack
from mmard.training.log import Tally
from mmard.training.recipe import Average, Recipe, optimizer_of
from mmard.training.step import Outcome, Step, descend
from mmard.training.tables import NO_TABLES, Tables

LOG_EVERY_SECONDS = 10.0
GPU_CHECK_EVERY = 20
"""Steps between looks at the loss on a GPU, where each look waits for the device. On a CPU every step is looked at."""


def chosen_by(method: Method) -> str:
    """What `best_by` = "auto" is for a method: trained without an attack, the least trained network is often the most
    robust one, by chance."""
    return "clean" if method.inner is None else "robust"


def overfitted(found: Validation, best: Position) -> bool:
    """Whether robust accuracy is gone while clean accuracy is not: catastrophic overfitting.

    Wong, Rice, Kolter, ICLR 2020, saw it in training with one step. Gone is more than half of the best, and more than
    a tenth of the images, which a validation split of 100 hardly loses by chance.
    """
    fall = best.best_robust - found.robust
    return fall > max(0.1, best.best_robust / 2) and found.clean > best.best_clean - 0.1


def _what_overfitted(found: Validation, best: Position) -> str:
    return (
        f"catastrophic overfitting in epoch {best.epoch}: robust accuracy on validation images fell from"
        f" {best.best_robust:.1%} (epoch {best.best_epoch}) to {found.robust:.1%}, clean accuracy is {found.clean:.1%};"
        f" the training attack has become too weak: the weights of epoch {best.best_epoch} are kept as best; try more"
        " --steps or a smaller --step-size"
    )


class Interrupted(Exception):
    """The user asked to stop; the run is saved."""


class Diverged(Refused):
    """The loss or a weight is no longer a number."""


class Validation(NamedTuple):
    """Accuracy on the validation split, as fractions."""

    clean: float
    robust: float


def fit(
    step: Step,
    batches: Batches,
    recipe: Recipe,
    run: Run,
    validate: Callable[[nn.Module], Validation],
    *,
    facts: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]] | None = None,
    observers: Sequence[Callable[[Event], None]] = (),
    save_seconds: float = 60.0,
    tables: Tables = NO_TABLES,
    accumulate: int = 1,
    made_from: Mapping[str, Any] | None = None,
) -> Position:
    """Train until the recipe's last epoch, from where the run folder stands.

    Args:
        step: the method with its networks, attack and budget. The student trains in place.
        batches: training images and labels, epoch by epoch.
        recipe: optimiser, schedule, averaging.
        run: where state, weights and log go.
        validate: accuracy of a network on images that no update has seen; called after every epoch.
        facts: what a reader of the weights must know (network's name, classes, image shape ...), written beside them.
        others: the same of networks that are trained beside the student, by letter; their weights of the last and of
            the best epoch are written as last-<letter> and best-<letter>.
        observers: called with every event of the log.
        save_seconds: time between saves of the state; one is made at the end and on Ctrl-C in any case.
        tables: predictions of teachers that need not be made again.
        accumulate: micro-batches that a batch is descended in.
        made_from: what a resumed run must find as it was, by name: hashes of teachers and data, settings.

    Returns:
        The final counters, among them which epoch was best on validation.

    Raises:
        Refused: if the run was made from something else, or its state is gone.
        Diverged: at the first loss that is not finite; the last save stays.
        Interrupted: after Ctrl-C, when the step is finished and the run saved.
    """
    with (
        run.lock(),
        stop_on_interrupt() as stop,
        kept_random_state(p for net in step.nets.values() for p in net.parameters()),
    ):
        training = _Training(step, batches, recipe, run, validate, facts, others or {}, observers, accumulate)
        training.resume(made_from or {})
        saved = time.monotonic()
        while training.at.epoch < recipe.epochs:
            for x, y, known in tables.epoch(batches, training.at.epoch, training.at.epoch_step):
                training.step_once(x, y, known)
                stopping, due = training.agreed(stop.is_set(), time.monotonic() - saved >= save_seconds)
                if stopping or due:
                    training.save()
                    saved = time.monotonic()
                if stopping:
                    raise Interrupted(f"stopped after step {training.at.step} and saved")
            network = training.end_epoch()
            (due,) = training.agreed(time.monotonic() - saved >= save_seconds)
            if training.at.finished or due:
                training.save_networks("last", network)
                training.save()
                saved = time.monotonic()
        tables.close()
        return training.at


class _Training:
    """What a run has in memory while it trains."""

    def __init__(
        self,
        step: Step,
        batches: Batches,
        recipe: Recipe,
        run: Run,
        validate: Callable[[nn.Module], Validation],
        facts: Mapping[str, Any],
        others: Mapping[str, Mapping[str, Any]],
        observers: Sequence[Callable[[Event], None]],
        accumulate: int,
    ) -> None:
        self.step, self.batches, self.recipe, self.run = step, batches, recipe, run
        self.validate, self.facts, self.others, self.observers = validate, dict(facts), others, observers
        self.student, self.ranks = step.nets["S"], step.ranks
        self.at = Position()
        self.tally = Tally(step)
        self.average = Average(self.student, recipe) if recipe.average != "none" else None
        self.optimizer = optimizer_of(step, recipe)
        self.accumulate = accumulate
        self.made_from: dict[str, Any] = {}
        step.listen(lambda text: self.tell({"kind": "note", "text": text}))
        self.began = self.logged = time.monotonic()
        self.cpu_began = time.process_time()
        self.on_gpu = next(self.student.parameters()).is_cuda

    def modules(self) -> dict[str, nn.Module]:
        named = dict(self.step.moving)
        if self.average is not None:
            named["average"] = self.average.module
        if self.step.method.memory is not None:
            named["memory"] = self.step.method.memory
        return named

    def resume(self, made_from: Mapping[str, Any]) -> None:
        """Go on from the state that the run folder holds, or begin."""
        self.made_from = dict(made_from)
        for letter in self.step.method.forwards:
            self.step.nets[letter].train()
        if self.ranks is not None:
            self.ranks.barrier()  # all look before the first process writes
        refuse_without_state(self.run)
        if not self.run.has_state:
            if self.run.log_file.exists():
                # A process that died before its first save: its beginning is told anew.
                self.run.rewind_log(-1, -1)
                self.run.note_environment()
            elif not self.run.environment_file.exists():
                self.run.note_environment()  # it died between its config and this
            self.tell({"kind": "start"})
            return
        tensors, facts = load(self.run)
        refuse_other_number(str(self.run.path), facts.ranks, self._size)
        refuse_changed(str(self.run.path), facts.made_from or {}, self.made_from)
        unpack(tensors, facts, self.modules(), self.optimizer, str(self.run.path))
        self.at = facts.position
        self.step.count = self.at.step
        if isinstance(self.step.ascent, Chunks) and self.at.attack_chunk:
            self.step.ascent.size = self.at.attack_chunk
        self.tally.restore(self.at.sums)
        if self.average is not None:
            self.average.count = facts.averaged
        self.run.rewind_log(self.at.step, self.at.epoch)
        self.run.note_environment()
        self.tell({"kind": "resume"})
        if self.made_from and facts.made_from is None:
            text = "teachers, data and settings are not compared: the state says nothing of them"
            self.tell({"kind": "note", "text": text})

    def save(self) -> None:
        """Write the state, unless a weight has ceased to be a number: the save before stays the good one."""
        self._check_weights()
        self._count_time()
        self.at.sums = self.tally.totals()
        self.at.attack_chunk = self.step.ascent.size if isinstance(self.step.ascent, Chunks) else 0
        tensors, facts = pack(self.modules(), self.optimizer, self.at)
        averaged = self.average.count if self.average is not None else 0
        self.run.save_state(tensors, {**facts, "averaged": averaged, "ranks": self._size, "made_from": self.made_from})

    def _count_time(self) -> None:
        self.at.seconds += time.monotonic() - self.began
        self.began = time.monotonic()
        if self.at.cpu_seconds is not None:
            self.at.cpu_seconds += time.process_time() - self.cpu_began
        self.cpu_began = time.process_time()

    def save_networks(self, which: str, student: nn.Module, **found: float) -> None:
        """Write the "last" or the "best" weights of all trained networks, as of the epoch that has just ended."""
        at = {"epoch": self.at.epoch, "step": self.at.step}
        self.run.save_weights(which, student.state_dict(), {**self.facts, **at, **found})
        for letter, facts in self.others.items():
            self.run.save_weights(f"{which}-{letter}", self.step.nets[letter].state_dict(), {**facts, **at})

    def step_once(self, x: Tensor, y: Tensor, known: Mapping[str, Tensor]) -> None:
        at, recipe = self.at, self.recipe
        rate, progress = recipe.lr_at(at.epoch, at.epoch_step, self.batches.steps), (at.epoch + 1) / recipe.epochs
        for group in self.optimizer.param_groups:
            tuning = self.step.method.tunes.get(group["letter"])
            group["lr"] = rate if tuning is None else tuning.lr(progress)
        # A student with dropout draws from the global generator: give it this step's own draws.
        torch.manual_seed(seeds.derive(self.step.seed, "step", at.step, *([self.ranks.rank] if self.ranks else [])))
        look = self._check_loss if not self.on_gpu or at.step % GPU_CHECK_EVERY == 0 else None
        self.optimizer.zero_grad(set_to_none=True)
        with raising_lost(self.ranks):
            outcome = descend(self.step, x, y, progress, known, self.accumulate, look)
        self.step.share_gradients()
        if recipe.grad_clip > 0:
            for group in self.optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], recipe.grad_clip)
        self.optimizer.step()
        self.step.share_statistics()
        self.step.settle()
        if self.average is not None:
            self.average.after_step()
        at.step += 1
        at.epoch_step += 1
        self._count(outcome, rate)

    def _check_loss(self, outcome: Outcome) -> None:
        """Refuse to go on with a loss that is not finite. A GPU has to be waited for."""
        if not math.isfinite(outcome.loss.item()):
            terms = [name for name, term in outcome.terms.items() if not torch.isfinite(term).all()]
            self._diverged("the term " + ", ".join(terms) if terms else "the sum of finite terms")

    def _check_weights(self) -> None:
        for net in self.step.trained.values():
            for name, tensor in net.state_dict().items():
                if not torch.isfinite(tensor).all():
                    self._diverged(f"{name} of the network")

    def _diverged(self, culprit: str) -> NoReturn:
        kept = "the last save is untouched" if self.run.has_state else "nothing was saved yet"
        raise Diverged(
            f"{self.run.path}, epoch {self.at.epoch + 1}, step {self.at.step + 1}",
            expected="finite losses and weights",
            got=f"{culprit} not finite",
            mend=f"{kept}; try a smaller --lr or --grad-clip 1",
        )

    def _count(self, outcome: Outcome, rate: float) -> None:
        """Add this step to those of the epoch, and log it if the last line is old. Nothing here waits for a GPU."""
        means = self.tally.count(outcome)
        if self.at.step == 1 or time.monotonic() - self.logged >= LOG_EVERY_SECONDS:
            self.logged = time.monotonic()
            self.tell({"kind": "step", "lr": rate, **{name: mean.item() for name, mean in means.items()}})
        else:
            self.tell({"kind": "tick"}, kept=False)

    @property
    def _size(self) -> int:
        return self.ranks.size if self.ranks is not None else 1

    def agreed(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is up in any process."""
        return list(flags) if self.ranks is None else [up > 0 for up in self.ranks.largest(*map(float, flags))]

    def end_epoch(self) -> nn.Module:
        """Count the epoch, validate, and keep the weights if they are the best so far; returns what was validated."""
        at = self.at
        self._check_weights()
        self.step.method.epoch_end()
        if self.average is not None:
            self.average.after_epoch(at.epoch)
        network = self._evaluated()
        totals = self.tally.totals()
        images, reach = totals.pop("images"), totals.pop("reach", None)
        # Not the optimiser's own: a run resumed behind its epoch's last step has taken none with it.
        event: Event = {"kind": "epoch", "lr": self.recipe.lr_at(at.epoch, self.batches.steps - 1, self.batches.steps)}
        event |= {name: total / images for name, total in totals.items()}
        if reach is not None:
            event["reach"] = reach
        self.tally.restore({})
        at.sums = {}
        at.epoch, at.epoch_step = at.epoch + 1, 0
        at.finished = at.epoch == self.recipe.epochs
        found = self.validate(network)
        event |= {"clean": found.clean, "robust": found.robust}
        if self._better(found, Validation(at.best_clean, at.best_robust)):
            at.best_robust, at.best_clean, at.best_epoch = found.robust, found.clean, at.epoch
            self.save_networks("best", network, **found._asdict())
            event["best"] = True
        self.tell(event)
        if self.step.method.inner is not None and not at.overfitted and overfitted(found, at):
            at.overfitted = at.epoch
            self.tell({"kind": "note", "text": _what_overfitted(found, at)})
        return network

    def _better(self, found: Validation, best: Validation) -> bool:
        """Whether weights are better than the best so far, by the accuracy that the recipe says."""
        by = chosen_by(self.step.method) if self.recipe.best_by == "auto" else self.recipe.best_by
        return found > best if by == "clean" else (found.robust, found.clean) > (best.robust, best.clean)

    def _evaluated(self) -> nn.Module:
        """The network that is validated and kept: the average where the recipe asks for one."""
        if self.average is None:
            return self.student
        ready = self.average.ready(x for x, _ in self.batches.epoch(self.at.epoch))
        if self.ranks is not None:
            self.ranks.average_statistics(ready)
        return ready

    def tell(self, event: Event, kept: bool = True) -> None:
        """Show an event, and log it unless it is not worth a line."""
        seconds = round(self.at.seconds + time.monotonic() - self.began, 3)
        here = {"step": self.at.step, "epoch": self.at.epoch, "epoch_step": self.at.epoch_step}
        event = {**here, "seconds": seconds, **event}
        if kept:
            self.run.append(event)
        for observer in self.observers:
            observer(event)


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Set an event at the first SIGINT or SIGTERM; the second interrupts at once.

    Outside the main thread, where signals cannot be caught, nothing is changed.
    """
    request = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.is_set():
            raise KeyboardInterrupt
        request.set()

    kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def choose_twins(twins: Twins, x: Tensor, run: Run | None = None, ranks: Ranks | None = None) -> Record:
    """Make the twins for batches like x (B, C, H, W): as the run had them so far, as the first process has them.

    A resumed run computes with what it began with, and processes that choose by timing would not choose alike.
    """
    kept = None if run is None else run.engine
    begun = kept is not None
    if ranks is not None and not ranks.first:
        kept = ranks.broadcast(None)
    if kept is not None:
        twins.keep(kept)
    record = twins.ready(x)
    if ranks is not None and ranks.first:
        ranks.broadcast(record)
    if run is not None and not begun:
        run.note_engine(record)
    return record
