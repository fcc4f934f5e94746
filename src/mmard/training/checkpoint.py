"""Where a training stands, as tensors and JSON: from it the rest of the run is the same to the bit.

No random state is among it, because every draw is addressed by seed and position (see `mmard.seeds`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmard.errors import Refused


@dataclass
class Position:
    """Counters of a run.

    Attributes:
        epoch: epochs finished, so the 0-based index of the one at work.
        epoch_step: steps finished in the epoch at work.
        step: steps finished in all.
        best_robust, best_clean, best_epoch: what validation liked best so far (fractions; epoch 1-based, 0 for none).
        sums: sums of what is logged as means over the epoch at work.
        seconds: time spent training by the clock, over all sittings.
        cpu_seconds: of the processor, with all threads of the process that writes; None where a sitting did not say.
        finished: whether the last epoch is over.
        attack_chunk: images that are attacked at a time, as memory has allowed so far; 0 for the whole batch.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best_robust: float = -1.0
    best_clean: float = -1.0
    best_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float | None = 0.0
    finished: bool = False
    attack_chunk: int = 0


def pack(
    modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, position: Position
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a run must not lose.

    Args:
        modules: by name: trained networks, averages, the method's memory.
    """
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{slot}"] = value
            elif value is not None:
                numbers[f"{index}/{slot}"] = value
    return tensors, {"position": asdict(position), "optimizer": numbers}


def unpack(
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    where: str,
) -> Position:
    """Put a packed state back into the modules and the optimiser; returns the counters.

    Raises:
        Refused: if the state is of other networks, or not of a training at all.
    """
    if "position" not in facts:
        raise Refused(where, expected="the state of a training", got="a file without counters")
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            first = str(error).strip().split("\n")[-1].strip()
            expected = f"the state of this run's {name}"
            raise Refused(where, expected=expected, got=first, mend="was the network changed?") from None
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **{f"optimizer/{k}": v for k, v in facts["optimizer"].items()}}.items():
        if key.startswith("optimizer/"):
            _, index, slot = key.split("/")
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Position(**{"cpu_seconds": None, **facts["position"]})
