"""Where things are computed: a device by name, and the one of a process among several."""

from __future__ import annotations

import torch

from mmard.errors import Refused, unknown
from mmard.training.ranks import Ranks


def pick_device(name: str) -> torch.device:
    """The device of this name, or for "auto" a GPU if there is one.

    Raises:
        Refused: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0")) from None
    if device.type not in ("cpu", "cuda"):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        got = f"{torch.cuda.device_count()} of them"
        raise Refused(f"device {name}", expected="a GPU that PyTorch sees", got=got, mend="use --device cpu")
    return device


def own_device(device: torch.device, ranks: Ranks) -> torch.device:
    """The GPU of this process, or the CPU.

    Raises:
        Refused: if there are fewer GPUs than processes, or one of them was chosen for all.
    """
    if device.type != "cuda":
        return device
    if device.index is not None:
        mend = "leave --device out: each process takes the GPU of its number"
        raise Refused("--device with several processes", expected="auto, cpu or cuda", got=str(device), mend=mend)
    return pick_device(f"cuda:{ranks.local}")
