"""One of several processes that evaluate together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from little import measured, net, picture_set, protocol
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.errors import Refused
from mmard.evaluation.evaluate import Loop, Measured, accuracies
from mmard.evaluation.multiprocess import follow, lead, measure
from mmard.ranks import Ranks, joined

BUDGET, SPECS = Budget(0.05), ["pgd-3", "fab-t"]
SAID = {"split": "test", "which": "best"}
HOW = {"seed": 3, "batch_size": 7}


class Meeting(nn.Module):
    """A network that waits, in its first forward, until all processes are in theirs."""

    def __init__(self, inner: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.inner, self._ranks, self._waited = inner, ranks, False

    def forward(self, x: Tensor) -> Tensor:
        if not self._waited:
            self._waited = True
            self._ranks.barrier()
        return self.inner(x)


def masks(measured: list[Measured]) -> dict[str, list[bool]]:
    return {each.score.attack: each.mask.tolist() for each in measured}


def validated(ranks: Ranks | None) -> dict[str, object]:
    """The verdicts of PGD and CW, as the processes of a training make them, and accuracies."""
    model, images = net(seed=2), picture_set(60, seed=5)
    whole = masks(measured(model, images, ["pgd-3", "cw-3"], BUDGET, **SAID, **HOW, ranks=ranks))
    how = protocol(["pgd-3"], BUDGET, seed=4, batch_size=7)
    return {**whole, "accuracies": accuracies(model, images, how, ranks)}


def refusal(ranks: Ranks) -> str:
    """What is said where the processes have different networks."""
    try:
        with lead(ranks, net(seed=ranks.rank), picture_set(8), None):
            return ""
    except Refused as refused:
        return str(refused)


def leave_verdicts(out: Path) -> None:
    """The verdicts that this process has in the end, and how many batches it judged itself, in OUT/<rank>.pt."""
    with joined(on_gpus=False) as ranks:
        assert ranks is not None
        judged = 0
        kept = Loop._judge

        def counted(*arguments: Any) -> torch.Tensor:
            nonlocal judged
            judged += 1
            return kept(*arguments)

        Loop._judge = counted
        found = {"validated": validated(ranks), "validating": judged}
        judged = 0
        model, images = Meeting(net(seed=2), ranks), picture_set(60, seed=5)
        if ranks.first:
            with lead(ranks, model, images, None) as folder:
                found["evaluated"] = masks(
                    measure(model, images, protocol(SPECS, BUDGET, **HOW), **SAID, folder=folder)
                )
            found["left behind"] = folder.exists()
        else:
            follow(ranks, model, images, protocol(SPECS, BUDGET, **HOW), witnessed=False, **SAID)
        found["evaluating"] = judged
        found["refusal"] = refusal(ranks)
        torch.save(found, out / f"{ranks.rank}.pt")
