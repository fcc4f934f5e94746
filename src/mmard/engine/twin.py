"""The twin of a network: what the attack calls instead of it.

A twin answers as its source does in eval mode, up to rounding. BatchNorm is folded into the convolution before it, no
parameter asks for a gradient, memory format and dtype are its own. It copies its source's numbers when it is refreshed,
into the same memory, and refuses to answer once the source has changed.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmard.engine.folding import NORMS, Head, agree, biased, calls, fused, hooked, merge, put
from mmard.engine.packed import CL, Affine, Conv, packable
from mmard.errors import Refused, unknown
from mmard.modes import evaluating, frozen
from mmard.seeds import generator

REPEATS = 4
"""Times that a network answers the same images, so that one that decides at random is found out."""
SLOPES_AGREE = 0.2
"""Relative distance of input gradients: a wrong graph is off by its whole length, rounding by a thousandth of it."""


class Unfit(Exception):
    """Why a network has no twin, in a few words."""


class Stale(RuntimeError):
    """A twin was called after its source had changed."""


class Watch:
    """Whether parameters, buffers and submodules of a network are those that they were.

    A change in place counts up a tensor's version; a tensor or module that was put in another's place is another
    object, or lies elsewhere. What writes through `.data`, or an optimiser with `fused=True`, is not seen: whoever
    trains a network refreshes its twin without asking.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, Any]] = []
        for m in module.modules():
            for held in (m._parameters, m._buffers, m._modules):
                self._places += [(held, name, thing) for name, thing in held.items()]
        self._tensors = [thing for _, _, thing in self._places if isinstance(thing, Tensor)]
        self._seen = self._state()

    def _state(self) -> list[tuple[int, int]]:
        return [(t._version, t.data_ptr()) for t in self._tensors]

    def mark(self) -> None:
        """From now on, this is how it was."""
        self._seen = self._state()

    @property
    def rebuilt(self) -> bool:
        """Whether something else stands in a place."""
        return any(held.get(name) is not thing for held, name, thing in self._places)

    @property
    def changed(self) -> bool:
        """Whether a number may be another than when it was marked."""
        return self._state() != self._seen or self.rebuilt


class TwinFacts(NamedTuple):
    """What became of a network: how many of its BatchNorms were folded, how many layers run in oneDNN's layout."""

    norms: int
    folded: int
    convs: int
    packed: int
    traced: bool


class Twin(nn.Module):
    """A network's equivalent for eval mode: images (B, C, H, W) in [0, 1] -> logits (B, classes), both in x's dtype.

    Args:
        source: a network; it is not changed, and it is not a submodule of its twin.
        image_shape: (C, H, W) of the images to come; other sizes work where the network takes them.
        dtype: of the convolutions' weights and of what passes between them; the source's own if not given. The first
            convolution, what stands before it, linear layers and the pooling before them stay in the source's own.

    Raises:
        Unfit: if there is no twin of this network, saying why.
    """

    def __init__(self, source: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
        super().__init__()
        state = [t for t in (*source.parameters(), *source.buffers()) if t.is_floating_point()]
        if not state:
            raise Unfit("it has no weights")
        own, device = state[0].dtype, state[0].device
        if hooked(source):
            raise Unfit("it has hooks")
        if any(t.is_inference() for t in state):
            raise Unfit("its weights were made in inference mode")
        if dtype is not None and dtype != own and own != torch.float32:
            raise Unfit(f"its weights are {str(own).removeprefix('torch.')}")
        self._held = (source,)  # in a tuple, so that it is no submodule
        self.own, self.device, self.body = own, device, dtype or own
        x = torch.rand(2, *image_shape, generator=generator("cpu", 0, "twin"), device="cpu").to(device, own)
        self.net = self._made(source, x)
        self.watch = Watch(source)
        self.refresh()
        self._check(x)

    @property
    def source(self) -> nn.Module:
        """The network that this is the twin of."""
        return self._held[0]

    @property
    def precision(self) -> str:
        """What passes between its convolutions: "bf16", "fp32", or another dtype by PyTorch's name."""
        short = {torch.bfloat16: "bf16", torch.float32: "fp32"}
        return short.get(self.body, str(self.body).removeprefix("torch."))

    def fits(self, x: Tensor) -> bool:
        """Whether its source is still what it was made of, where these images are."""
        state = next(self.source.parameters(), x)
        return x.device == self.device == state.device and state.dtype == self.own and not self.watch.rebuilt

    def _made(self, source: nn.Module, x: Tensor) -> nn.Module:
        try:
            with evaluating(source):
                seen = calls(source, x)
        except Exception as error:
            raise Unfit(f"it fails on two images ({type(error).__name__})") from error
        if not isinstance(seen.logits, Tensor) or seen.logits.ndim != 2:
            raise Unfit("it returns something else than logits")
        if not seen.convs:
            raise Unfit("it calls no convolution")
        packed = seen.large and x.device.type == "cpu" and packable(self.own) and packable(self.body)
        self.layout = CL if packed or x.device.type == "cuda" else torch.contiguous_format
        try:
            copy = deepcopy(source).eval().requires_grad_(False)
        except Exception as error:
            raise Unfit(f"it cannot be copied ({type(error).__name__})") from error
        for p in copy.parameters():
            p.grad = None
        norm_of = dict(seen.pairs)
        first, last = seen.convs[0], seen.linears[-1] if seen.linears else None
        self._merged: list[tuple[nn.Conv2d, nn.Module, nn.Conv2d]] = []
        for name in dict.fromkeys(seen.convs):
            mine = copy.get_submodule(name)
            assert isinstance(mine, nn.Conv2d)
            if name in norm_of:
                conv, norm = source.get_submodule(name), source.get_submodule(norm_of[name])
                assert isinstance(conv, nn.Conv2d)
                mine = biased(conv)
                self._merged.append((conv, norm, mine))
                put(copy, norm_of[name], nn.Identity())
            if name != first:
                mine.to(self.body)
            mine.weight.data = mine.weight.contiguous(memory_format=self.layout)
            put(copy, name, Conv(mine, packed, self.body))
        if last is not None and self.body != x.dtype:
            head = copy.get_submodule(last)
            assert isinstance(head, nn.Linear)
            put(copy, last, Head(head))
        # What was not merged is copied as it is, by the objects: names differ behind the layers that were put in.
        self._copied = _rest(source, copy, {conv for conv, _, _ in self._merged}, set(norm_of.values()))
        written = {id(t) for _, t in self._copied} | {id(t) for _, _, c in self._merged for t in c.parameters()}
        if any(id(t) not in written for t in (*copy.parameters(), *copy.buffers())):
            raise Unfit("it holds weights that cannot be followed")
        self._layers: list[Conv | Affine] = [m for m in copy.modules() if isinstance(m, Conv)]
        self._refold()
        graph = fused(copy, x, affine=packed)
        network = copy if graph is None else graph
        self._layers += [m for m in network.modules() if isinstance(m, Affine)]
        total = sum(type(m) in NORMS for m in source.modules())
        inside = sum(layer.packed for layer in self._layers if isinstance(layer, Conv))
        self.facts = TwinFacts(total, len(self._merged), len(dict.fromkeys(seen.convs)), inside, graph is not None)
        return network

    def _check(self, x: Tensor) -> None:
        """Refuse to be a twin that answers otherwise. A wrong gradient is refused as well, since attacks follow it.

        What a network draws, by whatever generator, would be frozen in its twin; so one that answers the same images
        in several ways has none.
        """
        slopes, answers = [], []
        within = 1e-4 if x.dtype == torch.float32 else 1e-9
        try:
            with evaluating(self.source), frozen(self.source), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with torch.no_grad():
                    first, *again = (self.source(x) for _ in range(REPEATS))
                for network in (self.source, self):
                    at = x.clone().requires_grad_()
                    with torch.enable_grad():
                        logits = network(at)
                        pull = torch.linspace(-1, 1, logits.numel(), device=x.device, dtype=x.dtype).view_as(logits)
                        (slope,) = torch.autograd.grad((logits * pull).sum(), at)
                    answers.append(logits.detach())
                    slopes.append(slope)
        except Stale:
            raise
        except Exception as error:
            raise Unfit(f"its twin fails ({type(error).__name__})") from error
        if not all(t.isfinite().all() for t in (*answers, *slopes)):
            raise Unfit("its logits are not finite")
        if not all(agree(other, first, within / 10) for other in again):
            raise Unfit("it does not answer the same images alike")
        if self.body != x.dtype:
            return
        far = (slopes[1] - slopes[0]).norm() > SLOPES_AGREE * slopes[0].norm()
        if far or not agree(answers[1], answers[0], within):
            raise Unfit("its twin answers otherwise")

    def refresh(self) -> None:
        """Copy the source's present numbers, into the memory that holds those of before.

        Raises:
            Stale: if the source has other submodules or parameters than when this twin was made.
        """
        if self.watch.rebuilt:
            raise Stale("a network's layers were replaced after its twin had been made")
        self._refold()
        self.watch.mark()

    def _refold(self) -> None:
        with torch.no_grad():
            for conv, norm, mine in self._merged:
                merge(conv, norm, mine)
            for source, target in self._copied:
                target.copy_(source)
        for layer in self._layers:
            layer.renew()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of x (B, C, H, W).

        Raises:
            Stale: if the source has changed since the last refresh.
        """
        if self.watch.changed:
            raise Stale("a network changed while its twin was in use; refresh the twin after every update")
        inside = _Laid.apply(x) if self.layout is CL else x  # type: ignore[no-untyped-call]
        out: Tensor = self.net(inside)
        return out.to(x.dtype)


class _Laid(torch.autograd.Function):
    """The same images with channels last, and their gradient as it lies in a contiguous tensor.

    Whoever attacks may call `.view` on the gradient, or draw noise like it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=CL) if not x.is_contiguous(memory_format=CL) else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def _rest(source: nn.Module, copy: nn.Module, merged: set[nn.Conv2d], norms: set[str]) -> list[tuple[Tensor, Tensor]]:
    """Parameters and buffers of the source that were not merged, each with its copy."""

    def pairs(mine: nn.Module, theirs: nn.Module, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        if name in norms or theirs in merged:
            return
        inner: nn.Module = mine.conv if isinstance(mine, Conv) else mine.linear if isinstance(mine, Head) else mine
        for held, own in ((theirs._parameters, inner._parameters), (theirs._buffers, inner._buffers)):
            for key, tensor in held.items():
                target = own.get(key)
                if tensor is not None and target is not None:
                    yield tensor, target

    found = []
    seen = set[int]()
    for name, theirs in source.named_modules():
        for tensor, target in pairs(copy.get_submodule(name), theirs, name):
            if id(target) not in seen:
                seen.add(id(target))
                found.append((tensor, target))
    return found


def lay_out(network: nn.Module, image_shape: tuple[int, ...]) -> bool:
    """Put a network's weights channels last where that pays, in place; returns whether it was done.

    It pays where convolutions take the time; their sizes decide and no timing does, so it is the same on every start. A
    network that fails so, as one that calls `.view` on feature maps does, is left as it is. State dicts are the same,
    results are up to rounding.
    """
    state = next(network.parameters(), None)
    if state is None or state.dtype != torch.float32:
        return False
    device = state.device
    x = torch.rand(4, *image_shape, generator=generator("cpu", 0, "layout"), device="cpu").to(device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            trial = copy.deepcopy(network)
            if not calls(trial.eval(), x).large:
                return False
            _turn(trial)
            trial.train()(x).sum().backward()
    except Exception:  # somebody's forward, on a layout that it may not have met
        return False
    _turn(network)
    return True


def _turn(network: nn.Module) -> None:
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=CL)


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
