"""Which command made a run, where it stands, and what to type next about it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from mmard.errors import Refused

if TYPE_CHECKING:
    from mmard.run import Run
    from mmard.training.checkpoint import Position


def command_of(config: dict[str, Any]) -> str:
    """The command that made a run, by the settings it has."""
    return "distill" if "student" in config else "train"


def position_of(run: Run) -> Position | None:
    """Where a run stands; None before its first save."""
    from mmard.training.checkpoint import Position

    if not run.has_state:
        return None
    _, facts = run.load_state()
    if "position" not in facts:
        raise Refused(str(run.path), expected="the state of a training", got="a file without counters")
    return Position(**facts["position"])


def next_commands(run: Run, finished: bool) -> list[str]:
    """What to type next about a run; what was made of Python objects can only be looked at from here."""
    from mmard.networks import GIVEN

    path, config = shlex.quote(str(run.path)), run.config
    if any(str(config.get(name)).startswith(GIVEN) for name in ("model", "student", "data", "method")):
        return [f"mmard show {path}"]
    if not finished:
        return [f"mmard {command_of(config)} --resume {path}", f"mmard show {path}"]
    lines = [f"mmard evaluate {path} --attack pgd-20,cw-30", f"mmard show {path}"]
    if command_of(config) == "train":
        use = f"--data {config['data']} --eps {_radius(config['eps'])}"
        if config.get("data_dir"):
            use += f" --data-dir {shlex.quote(config['data_dir'])}"
        lines.append(f"mmard distill --teacher {path} --student {_smaller(config['model'])} {use}")
    return lines


def _smaller(model: str) -> str:
    return "cnn-4" if model.startswith("cnn") else "resnet18"


def _radius(eps: float) -> str:
    from mmard.balls import as_fraction

    return as_fraction(eps)
