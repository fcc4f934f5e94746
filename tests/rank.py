"""One of several processes that take steps together: each method on its rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nets import ATTACK, BUDGET, build, conv, images, labels
from torch import Tensor, nn

from mmard.method import Method
from mmard.ranks import Ranks, joined
from mmard.seeds import generator
from mmard.training.step import Step

BATCH, STEPS = 7, 2


def networks(method: Method) -> dict[str, nn.Module]:
    """A network without BatchNorm for each letter, in train mode those that are trained."""
    made: dict[str, nn.Module] = {k: conv(seed, batch_norm=False) for seed, k in enumerate(method.nets)}
    return {letter: net.train(letter in method.forwards) for letter, net in made.items()}


def taken(spec: str, ranks: Ranks | None) -> dict[str, Tensor]:
    """Losses, updated weights and memory after a few steps, the last of them in two micro-batches."""
    method = build(spec)
    step = Step(method, networks(method), ATTACK, BUDGET, seed=3, ranks=ranks)
    weights = {f"{k}.{name}": p for k, net in step.trained.items() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.1, momentum=0.9)
    losses = []
    for count in range(STEPS):
        parts = 2 if count == STEPS - 1 and method.around is None and not method.couples_batch else 1
        x, y = images(BATCH, seed=count), labels(BATCH, seed=count)
        mine = ranks.rows(BATCH) if ranks is not None else slice(None)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64)
        for outcome in step.in_parts(x[mine], y[mine], progress=(count + 1) / STEPS, parts=parts):
            (outcome.loss * outcome.share).backward()
            total += outcome.loss.detach() * outcome.share
        step.share_gradients()
        optimizer.step()
        step.settle()
        step.share_statistics()
        losses.append(total)
    method.epoch_end()
    memory = method.memory.state_dict() if method.memory is not None else {}
    return {
        "loss": torch.stack(losses),
        **{name: p.detach() for name, p in weights.items()},
        **{f"memory.{name}": value for name, value in memory.items()},
    }


def leave_steps(out: Path, specs: Sequence[str]) -> None:
    """What came out of steps of each method, in OUT/<rank>.pt."""
    with joined(on_gpus=False) as found:
        assert found is not None
        draw = torch.rand(3, generator=generator("cpu", 0, "spread", found.rank), dtype=torch.float64)
        everywhere = found.gather(draw[: found.shares(5)[found.rank]], 5)
        torch.save({"gathered": everywhere, **{spec: taken(spec, found) for spec in specs}}, out / f"{found.rank}.pt")
