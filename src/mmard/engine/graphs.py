"""The whole climb of an attack as one CUDA graph: recorded once, then played back with new tensors.

Ten steps through a small network are some thousand kernel launches, which take the CPU longer to ask for than the GPU
to run. A graph asks once. It replays the very kernels on the very memory that it was recorded with, so:

  - what changes from step to step (x, y, the first iterate, predictions that are known) is copied into fixed buffers;
  - everything else that the recording bakes in is its key, and another key means another recording: shapes and types,
    `Batch.progress` (a Python number that formulas branch on), the formula, and where the weights lie in memory;
  - the random start is drawn outside.

A batch of another shape, such as the last of an epoch, climbs the plain way, and so does everything once a recording
has failed or has not agreed with the plain climb; the reason is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mmard.attacks import TrainingAttack
from mmard.balls import Budget
from mmard.batch import Batch, Point
from mmard.engine.ascent import (
    Ascent,
    Chunks,
    Climber,
    climbs,
    every_tensor,
    known_at_x,
    learn,
    like,
    out_of_memory,
    plain,
    split,
    unobserved,
    why_whole,
)
from mmard.errors import Refused
from mmard.method import Method

WARM_UPS = 2
"""Runs before a recording, in which libraries choose kernels and allocate what a recording must not."""
ITERATES_APART = 0.1
"""Of the spread of the last logits: how far a played climb's may be from the plain one's. Rounding flips signs of small
gradients, and more of them at every step, so equality is not to be asked for; a stale buffer is off by all of it."""
FIRST_APART = 1e-2
"""The same for the logits at the first iterate, which no step lies before."""

Work = Callable[[], None]


class GraphRecorder(Protocol):
    """What records work on fixed memory and plays it back."""

    def __call__(self, work: Work) -> Work:
        """Warm the work up, record it, and return what plays it."""


class CudaRecorder:
    """Records with `torch.cuda.CUDAGraph`, on a stream of its own."""

    def __call__(self, work: Work) -> Work:
        """The recorded work; reads and writes the memory that it was recorded with."""
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                work()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replay: Work = graph.replay
        return replay


class Rerun:
    """A stand-in without CUDA: plays work by doing it again, on the same buffers with the same copies."""

    def __call__(self, work: Work) -> Work:
        """The work itself, once warmed up."""
        for _ in range(WARM_UPS):
            work()
        return work


@dataclass
class _Recording:
    """One recorded climb."""

    key: Any
    inputs: list[Tensor]
    play: Work
    outputs: dict[str, Any]


class Graphs:
    """An ascent that is recorded when a batch of the same kind comes for the second time in a row.

    Only for attacks in eval mode, whose warm-up leaves no trace in the networks.

    Args:
        recorder: `CudaRecorder()`, or `Rerun()` where there is no GPU.

    Attributes:
        failed: why recording was given up, in words; empty as long as it was not.
        recorded, played: how often so far.
        tell: told `failed` when it happens.
    """

    def __init__(self, recorder: GraphRecorder) -> None:
        self.recorder, self.failed = recorder, ""
        self.recorded = self.played = 0
        self.tell: Callable[[str], None] = unobserved
        self._kept: _Recording | None = None
        self._last: Any = None

    def listen(self, tell: Callable[[str], None]) -> None:
        """Tell this from now on."""
        self.tell = tell

    def __call__(self, climber: Climber, batch: Batch, first: Tensor) -> Batch:
        """The batch with x_adv, trace, notes and predictions; none of them lies in memory that a replay will change."""
        if self.failed or isinstance(batch.weight, Tensor):
            return plain(climber, batch, first)
        known = known_at_x(batch)
        inputs = [batch.x.value, batch.y, first, *known.values()]
        shape = (tuple(known), [(t.shape, t.dtype, t.device) for t in inputs])
        again, self._last = shape == self._last, shape
        key = (shape, climber, batch.progress, _places(batch))
        if self._kept is not None and self._kept.key == key:
            self._play(self._kept, inputs)
            return _with_outputs(batch, self._kept.outputs)
        if not again:
            return plain(climber, batch, first)
        self._kept = None  # gives its memory back first
        reference = plain(climber, like(batch, batch.x.value, batch.y, known), first)
        try:
            recording = self._record(key, climber, batch, inputs, list(known))
            self._play(recording, inputs)
            _refuse_unlike(_outputs(reference), recording.outputs, climber.budget)
        except Exception as error:
            if out_of_memory(error):
                raise
            self._give_up(error)
        else:
            self._kept = recording
        return _with_outputs(batch, _outputs(reference))

    def _record(self, key: Any, climber: Climber, batch: Batch, inputs: list[Tensor], letters: list[str]) -> _Recording:
        # The recording is made of these images in another order, so that a replay that reads old memory is found out.
        buffers = [t.detach().roll(1, 0) for t in inputs]
        x, y, first, *known = buffers
        outputs: dict[str, Any] = {}

        def work() -> None:
            # Known predictions are constants of the climb, put anew each time as the plain way does.
            at = like(batch, x, y, dict(zip(letters, known, strict=True)))
            found = _outputs(plain(climber, at, first))
            if not outputs:
                outputs.update(every_tensor(found, torch.empty_like))
            _copy(found, outputs)

        play = self.recorder(work)
        self.recorded += 1
        return _Recording(key, buffers, play, outputs)

    def _play(self, recording: _Recording, inputs: list[Tensor]) -> None:
        for buffer, value in zip(recording.inputs, inputs, strict=True):
            buffer.copy_(value)
        recording.play()
        self.played += 1

    def _give_up(self, error: Exception) -> None:
        words = str(error).strip().split("\n")[0] or type(error).__name__
        self.failed = f"the attack is not recorded as a CUDA graph: {words}"
        self._kept = None
        self.tell(self.failed)


def _places(batch: Batch) -> list[Any]:
    """The networks and where their weights and buffers lie: a recording reads there, whatever is there."""
    nets = sorted(batch.nets.items())
    return [(letter, id(net.module), [t.data_ptr() for t in _tensors(net.module)]) for letter, net in nets]


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _outputs(batch: Batch) -> dict[str, Any]:
    return {"x_adv": batch.adv.value, "trace": batch.trace, "known": known_at_x(batch), "notes": batch.notes}


def _with_outputs(batch: Batch, outputs: dict[str, Any]) -> Batch:
    """The batch with what a climb found, in memory of its own."""
    own = every_tensor(outputs, torch.clone)
    learn(batch, own["known"])
    batch.trace[:] = own["trace"]
    batch.notes.update(own["notes"])
    return replace(batch, x_adv=Point("x_adv", own["x_adv"]))


def _copy(found: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Write every tensor of a result into the buffer that stands in the same place."""
    sources: list[Tensor] = []
    targets: list[Tensor] = []
    every_tensor(found, lambda t: sources.append(t) or t)  # type: ignore[func-returns-value]
    every_tensor(outputs, lambda t: targets.append(t) or t)  # type: ignore[func-returns-value]
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source.detach())


def _refuse_unlike(plainly: dict[str, Any], played: dict[str, Any], budget: Budget) -> None:
    """Refuse a recording whose climb is not the plain one's, up to what rounding does on the way.

    Raises:
        Refused: saying how far apart the two are.
    """
    # Both are in the ball around x, so they cannot be further from each other than it is wide.
    across = budget.distance(played["x_adv"], plainly["x_adv"]).amax().item()
    if not across <= 2.01 * budget.eps:
        raise Refused("recorded attack", expected="the climb of the plain way", got=f"x_adv apart by {across:.2g}")
    for which, most in ((0, FIRST_APART), (-1, ITERATES_APART)):
        a, b = plainly["trace"][which], played["trace"][which]
        apart = ((a - b).abs().mean() / a.std().clamp_min(torch.finfo(a.dtype).tiny)).item()
        if not apart <= most:  # so that NaN is refused too
            got = f"logits apart by {apart:.1g} of their spread"
            raise Refused("recorded attack", expected="the climb of the plain way", got=got)


def ascent_for(
    method: Method, attack: TrainingAttack, device: torch.device, chunk: int = 0, graphs: bool = True
) -> tuple[Ascent, list[str]]:
    """The way to run a method's attack.

    Args:
        attack: as the method makes it.
        device: where; a graph can only be recorded on a GPU.
        chunk: images that are attacked at a time; 0 for the batch, as long as memory allows.
        graphs: whether to record where that is possible.

    Returns:
        The ascent, and lines on what was asked for and is not done.
    """
    why = why_whole(method) or ("" if climbs(attack) else "this attack is not made in steps from a start")
    if why:
        return plain, [f"--attack-chunk {chunk} has no effect: {why}"] if chunk else []
    return Chunks(chunk, Graphs(CudaRecorder()) if graphs and device.type == "cuda" else plain), []


def accumulation_notes(method: Method, parts: int, batch_size: int | None) -> list[str]:
    """Lines on what a batch in so many micro-batches means for this method.

    Args:
        batch_size: images of a whole batch; None for a loader of the user's own.

    Raises:
        Refused: if that leaves single images, or the method needs its batch whole.
    """
    if parts == 1:
        return []
    where = f"--accumulate {parts}"
    if method.around is not None:
        got = f"{method.name}, which looks ahead on the whole batch"
        raise Refused(where, expected="a method that is descended where the weights are", got=got, mend="leave it out")
    if batch_size is not None and parts > batch_size // 2:
        mend = f"say at most {batch_size // 2}"
        raise Refused(where, expected="micro-batches of two images or more", got=f"a batch of {batch_size}", mend=mend)
    if batch_size is None:
        size = f"a {parts}th of a batch"
    else:
        size = f"{split(batch_size, parts)[0].stop} images"
    notes = [f"{parts} micro-batches of {size} an update; BatchNorm normalises each by itself"]
    if method.couples_batch or method.inner_couples:
        notes.append(f"terms that couple samples couple those of a micro-batch, {size}")
    if method.memory is not None:
        notes.append("what the method remembers moves with every micro-batch")
    return notes
