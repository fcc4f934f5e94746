"""Which module stands for each network of a step: its twin, or itself where it has none, and in which precision.

What is chosen by a rule is the same on every start. What is chosen by timing, which only precision "auto" does, is kept
with the run, so that a resumed run computes as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmard.engine.twin import Twin, Unfit
from mmard.errors import Refused, unknown
from mmard.modes import evaluating, frozen

ENGINES = ("fast", "plain")
PRECISIONS = ("fp32", "bf16", "auto")
WORTH = 1.1
"""How many times faster bfloat16 must be before "auto" takes it: it costs some accuracy of the gradients."""
TIMED_IMAGES, TIMED_ROUNDS = 16, 3

Record = dict[str, dict[str, Any]]
"""By letter of a network, what stood for it: "twin", "precision", "why" and counts of layers."""


def has_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return torch.backends.mkldnn.is_available() and any(flag is not None and flag() for flag in flags)


def refuse_without_bf16(what: str, device: torch.device, mend: str = "leave it out") -> None:
    """Refuse bfloat16 where the hardware has none.

    Raises:
        Refused: so.
    """
    if not has_bf16(device):
        raise Refused(what, expected=f"a {device.type} with bfloat16", got="one without", mend=mend)


@dataclass(frozen=True)
class Engine:
    """How a step calls its networks in the attack, and those at rest everywhere.

    Args:
        kind: "fast" for twins, "plain" for the networks themselves.
        precision: of the twins' bodies. "fp32" is the networks' own, "bf16" takes bfloat16 where a network can, "auto"
            times both for each network and takes bfloat16 where it is clearly faster. Without twins it is "fp32".

    Raises:
        Refused: for anything else.
    """

    kind: str = "fast"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.kind not in ENGINES:
            raise unknown("engine", self.kind, ENGINES)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.kind == "plain" and self.precision != "fp32":
            mend = "leave out --engine plain, or --precision"
            raise Refused("engine plain", expected="precision fp32", got=self.precision, mend=mend)

    def check(self, device: torch.device) -> None:
        """Refuse bfloat16 where the hardware has none.

        Raises:
            Refused: so.
        """
        if self.precision == "bf16":
            refuse_without_bf16("precision bf16", device, "use --precision fp32, or auto")


PLAIN = Engine("plain")


class Twins:
    """The modules that a step calls.

    Args:
        engine: what was asked for.
        nets: the networks by letter.
        changing: letters of those that are trained, whose twins are refreshed at every step.
        as_is: letters of those that nothing may stand for, with the reason.
    """

    def __init__(
        self,
        engine: Engine,
        nets: Mapping[str, nn.Module],
        changing: Collection[str] = (),
        as_is: Mapping[str, str] | None = None,
    ) -> None:
        self.engine, self.nets, self.changing = engine, dict(nets), frozenset(changing)
        self._as_is = dict(as_is or {})
        self._twins: dict[str, Twin] = {}
        self._record: Record = {}
        self._kept: Record = {}

    def keep(self, record: Mapping[str, Mapping[str, Any]]) -> None:
        """Choose as a record of an earlier start says, instead of by timing."""
        self._kept = {letter: dict(chosen) for letter, chosen in record.items()}

    @property
    def record(self) -> Record:
        """What stands for each network by now."""
        return {letter: dict(chosen) for letter, chosen in self._record.items()}

    def ready(self, x: Tensor) -> Record:
        """Choose and make the twins for images such as x (B, C, H, W), if that is still to be done.

        Raises:
            Refused: if a record is kept that cannot be followed here.
        """
        for letter, net in self.nets.items():
            twin = self._twins.get(letter)
            if letter not in self._record or (twin is not None and not twin.fits(x)):
                self._twins.pop(letter, None)
                self._record[letter] = self._made(letter, net, x)
        return self._record

    def serving(self, x: Tensor) -> dict[str, nn.Module]:
        """The module to call for each network, with its present numbers, by letter."""
        if self.engine.kind == "plain":
            return self.nets
        self.ready(x)
        for letter, twin in self._twins.items():
            if letter in self.changing or twin.watch.changed:
                twin.refresh()
        return {**self.nets, **self._twins}

    def _made(self, letter: str, net: nn.Module, x: Tensor) -> dict[str, Any]:
        kept = self._kept.get(letter)
        own = str(next((p.dtype for p in net.parameters()), x.dtype)).removeprefix("torch.")
        why = self._as_is.get(letter, "") or ("engine plain" if self.engine.kind == "plain" else "")
        if kept is not None and not kept["twin"]:
            why = why or kept["why"]
        if why:
            return {"twin": False, "precision": own, "why": why}
        precision = kept["precision"] if kept else self.engine.precision
        shape = tuple(x.shape[1:])
        try:
            twin, why = _chosen(net, shape, len(x), precision)
        except Unfit as unfit:
            if kept is not None:
                mend = "resume on the machine that it began on"
                raise Refused(
                    f"network {letter}", expected="a twin, as this run had so far", got=str(unfit), mend=mend
                ) from unfit
            return {"twin": False, "precision": own, "why": str(unfit)}
        if kept is not None and twin.precision != precision:
            raise Refused(f"network {letter}", expected=f"{precision}, as this run had so far", got=why)
        self._twins[letter] = twin
        return {"twin": True, "precision": twin.precision, "why": why, **twin.facts._asdict()}


def _chosen(net: nn.Module, shape: tuple[int, ...], batch: int, precision: str) -> tuple[Twin, str]:
    """A network's twin, and why it is not in bfloat16 where that was a possibility."""
    if precision not in ("bf16", "auto"):
        return Twin(net, shape), ""
    try:
        if not has_bf16(next(net.parameters()).device):
            raise Unfit("no bfloat16 here")
        half = Twin(net, shape, torch.bfloat16)
    except Unfit as unfit:
        return Twin(net, shape), str(unfit)
    if precision == "bf16":
        return half, ""
    full = Twin(net, shape)
    gain = _ratio(full, half, shape, min(batch, TIMED_IMAGES))
    return (half, f"{gain:.2f} times as fast") if gain >= WORTH else (full, f"bf16 is {gain:.2f} times as fast")


def _ratio(slow: Twin, fast: Twin, shape: tuple[int, ...], batch: int) -> float:
    """Time of a gradient through one twin over that through the other: the median of rounds that alternate."""
    source = next(slow.source.parameters())
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(source.device, source.dtype)

    def once(twin: Twin) -> float:
        began = _now(x.device)
        at = x.clone().requires_grad_()
        with torch.enable_grad():
            torch.autograd.grad(twin(at).sum(), at)
        return _now(x.device) - began

    with evaluating(slow.source), frozen(slow.source):
        once(slow), once(fast)
        ratios = sorted(once(slow) / once(fast) for _ in range(TIMED_ROUNDS))
    return ratios[len(ratios) // 2]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return (_clock())()


def _clock() -> Callable[[], float]:
    """On one thread, the time that this process had: what others do on the machine does not count."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def described(chosen: Mapping[str, Any]) -> str:
    """One network's entry of a record in words.

    >>> described({"twin": False, "precision": "float32", "why": "it has hooks"})
    'itself (it has hooks)'
    """
    if not chosen["twin"]:
        return f"itself ({chosen['why']})"
    words = [f"a twin in {chosen['precision']}", f"{chosen['folded']} of {chosen['norms']} BatchNorms folded"]
    if chosen["packed"]:
        words.append(f"{chosen['packed']} of {chosen['convs']} convolutions packed")
    if not chosen["traced"]:
        words.append("not traceable")
    return ", ".join(words) + (f" ({chosen['why']})" if chosen["why"] else "")
