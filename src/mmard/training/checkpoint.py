"""Where a training stands, as tensors and JSON: from it the rest of the run is the same to the bit.

No random state is among it, because every draw is addressed by seed and position (see `mmard.seeds`). What the run was
made from goes with it, as hashes and settings, so that it is not gone on with on other ground.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mmard.errors import Refused, require
from mmard.run import Run
from mmard.settings import refusal_of
from mmard.training.recipe import Recipe


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
        overfitted: first epoch (1-based) after which robustness was lost and accuracy was not, 0 for none.
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
    overfitted: int = 0


@dataclass
class StateFacts:
    """What the header of a state says beside its tensors.

    Attributes:
        position: counters.
        optimizer: numbers of the optimiser, by "index/slot".
        averaged: steps or epochs in the average.
        ranks: processes that train.
        made_from: what the run began with, by name; None in states from before it was kept.
    """

    position: Position
    optimizer: dict[str, float | bool] = field(default_factory=dict)
    averaged: int = 0
    ranks: int = 1
    made_from: dict[str, Any] | None = None


_STATE_FACTS = TypeAdapter(StateFacts)


def load(run: Run) -> tuple[dict[str, Tensor], StateFacts]:
    """The state of a run, looked at.

    Raises:
        Refused: if it is damaged, or not of a training at all.
    """
    tensors, facts = run.load_state()
    if not isinstance(facts.get("position"), dict):
        raise Refused(str(run.path), expected="the state of a training", got="a file without counters")
    try:
        said = _STATE_FACTS.validate_python({**facts, "position": {"cpu_seconds": None, **facts["position"]}})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise refusal_of(error, f"{run.path}, state, {where}") from None
    return tensors, said


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
            elif isinstance(value, float | int):
                numbers[f"{index}/{slot}"] = value
            elif value is not None:
                got = f"{slot}, a {type(value).__name__}"
                raise Refused(
                    "optimizer", expected="a state of tensors and numbers, which a resumed run needs", got=got
                )
    if not isinstance(optimizer, torch.optim.SGD):  # some count in their groups
        for index, group in enumerate(optimizer.param_groups):
            own = {name: value for name, value in group.items() if isinstance(value, float | int) and name != "lr"}
            numbers |= {f"group{index}/{name}": value for name, value in own.items()}
    return tensors, {"position": asdict(position), "optimizer": numbers}


def unpack(
    tensors: dict[str, Tensor],
    facts: StateFacts,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    where: str,
) -> None:
    """Put a packed state back into the modules and the optimiser.

    Raises:
        Refused: if the state is of other networks, or of another optimiser.
    """
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            first = str(error).strip().split("\n")[-1].strip()
            expected = f"the state of this run's {name}"
            raise Refused(where, expected=expected, got=first, mend="was the network changed?") from None
    state: dict[int, dict[str, Any]] = {}
    own = {k.removeprefix("optimizer/"): t for k, t in tensors.items() if k.startswith("optimizer/")}
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    of_weight = isinstance(optimizer, torch.optim.SGD | torch.optim.Adam)  # others factor what they remember
    for key, value in {**own, **facts.optimizer}.items():
        index, _, slot = key.partition("/")
        if index.removeprefix("group").isdecimal() and index.startswith("group"):
            place = int(index.removeprefix("group"))
            fits = place < len(groups) and slot in groups[place]
        else:
            fits = index.isdecimal() and int(index) < len(weights)
            shapes = (weights[int(index)].shape, torch.Size([])) if fits and of_weight else ()
            fits = fits and (not isinstance(value, Tensor) or not shapes or value.shape in shapes)
        require(fits, where, expected="the state of this run's optimiser", got=f"one with {key}")
        if index.startswith("group"):
            groups[place][slot] = value
        else:
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def refuse_changed(where: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose teacher, data or settings are no longer those that it began with.

    What only one of the two says, as after an update of mmard, is no difference.

    Raises:
        Refused: naming all that changed.
    """
    changed = [name for name in then if name in now and then[name] != now[name]]
    if not changed:
        return
    differences = [f"{name} {_short(now[name])} where it was {_short(then[name])}" for name in changed]
    epochs = changed == ["setting epochs"]
    mend = (
        "a run is lengthened by --resume RUN --epochs N" if epochs else "put it back, or begin another run with --out"
    )
    raise Refused(where, expected="what this run began with", got="; ".join(differences), mend=mend)


def _short(value: Any) -> str:
    """A value as messages have it; of a hash its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 else text


def lengthen(run: Run, epochs: int) -> None:
    """Give a run more epochs than it began with; it is trained on when it is resumed.

    From where it stands, the learning rate and all that follows the share of the run are those of a run of the new
    length, milestones in whole epochs staying where they are. What comes out is therefore not a run of that length.

    Raises:
        Refused: for a number that is not above the present one, or a run whose state is gone.
    """
    with run.lock():
        config = run.config
        before = int(config["epochs"])
        require(epochs > before, f"{run.path}, --epochs", expected=f"more than its {before}", got=epochs)
        refuse_without_state(run)
        old, new = (
            Recipe(**{k: config[k] for k in Recipe.__dataclass_fields__} | {"epochs": n}) for n in (before, epochs)
        )
        if run.has_state:
            tensors, facts = load(run)
            facts.made_from = {**(facts.made_from or {}), "setting epochs": epochs}
            facts.position.finished = False
            run.save_state(tensors, asdict(facts))
            at = facts.position.epoch
            here = {name: getattr(facts.position, name) for name in ("step", "epoch", "epoch_step", "seconds")}
            rates = f"{new.lr_at(at, 0, 1):.3g}" + (f" where it was {old.lr_at(at, 0, 1):.3g}" if at < before else "")
            text = f"{epochs} epochs instead of {before}: after epoch {at} as a run of {epochs} has it, lr {rates}"
            run.append({"kind": "note", **here, "text": text})
        run.write_config({**config, "epochs": epochs})


def refuse_without_state(run: Run) -> None:
    """Refuse to train a run anew whose weights are there and whose state is not.

    Raises:
        Refused: so.
    """
    if not run.has_state and run.weights_file("last").is_file():
        got = "its weights alone, state.safetensors is gone"
        mend = "evaluate it as it is, or train another with --out"
        raise Refused(str(run.path), expected="a run that can be gone on with", got=got, mend=mend)
