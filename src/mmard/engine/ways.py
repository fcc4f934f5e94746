"""How a training's attack is run and its batches are descended on this machine, with a line on each for plans."""

from __future__ import annotations

import torch

from mmard.attacks import Attack
from mmard.engine.ascent import Ascent, climbs, plain, split
from mmard.engine.chunks import Chunks, why_whole
from mmard.engine.graphs import CudaRecorder, Graphs
from mmard.errors import Refused
from mmard.method import Method


def ascent_for(
    method: Method, attack: Attack, device: torch.device, chunk: int = 0, graphs: bool = True
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
