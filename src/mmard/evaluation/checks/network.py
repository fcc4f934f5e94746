"""Checks that look at a network's answers and gradients, each time from the same state and the same random seeds.

Answers: are they a function of the image, and are they logits? Athalye, Carlini, Wagner, "Obfuscated gradients give a
false sense of security", ICML 2018, arXiv:1802.00420 (randomised networks, shattered gradients). Croce, Gowal, Brunner,
Shelhamer, Hein, Cemgil, "Evaluating the adversarial robustness of adaptive test-time defenses", ICML 2022,
arXiv:2202.13711. Gradients: are there any, and do they say where the loss rises? Carlini et al., "On evaluating
adversarial robustness", 2019, arXiv:1902.06705.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks.queries import logits_of
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation.checks.checked import Checked, exceeds, judged, skipped
from mmard.modes import evaluating
from mmard.ops import ce, correct, margin

State = dict[str, Tensor]


class Probe:
    """Asks a network in eval mode, and leaves it as it was: mode, parameters, buffers and everybody's random state.

    Before each answer the global generators of PyTorch, NumPy and Python are seeded; after it, parameters and buffers
    are put back. Answers that still differ come from somewhere else.

    Use it as a context manager. The first call is made on entering, so that what a network prepares then is not taken
    for a change.

    Attributes:
        changed: names of parameters and buffers that an answer changed.
        remembered: names of other attributes of modules (tensors, arrays, numbers, and collections of these) that an
            answer changed.
        backward: whether an answer took a backward pass.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self._model, self._x = model, x
        self.changed: set[str] = set()
        self.remembered: set[str] = set()
        self.backward = False

    def __enter__(self) -> Probe:
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            original = _state(self._model)
            stack.callback(self._leave, original, [p for p in self._model.parameters() if p.grad is None])
            with self._seeded(0), torch.no_grad():
                logits_of(self._model, self._x)
            self._now = _state(self._model) if _differing(self._model, original) else original
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _leave(self, original: State, without_gradient: list[nn.Parameter]) -> None:
        _put_back(self._model, original, _differing(self._model, original))
        for parameter in without_gradient:
            parameter.grad = None

    def ask(self, x: Tensor, seed: int = 0) -> Tensor:
        """Logits (B, C) without graph, in double.

        Raises:
            Refused: if they are not finite.
        """
        with self._watched(seed) as unpack, torch.no_grad():
            logits = self._forward(x, unpack)
        if not bool(torch.isfinite(logits).all()):
            raise Refused("checks", expected="finite logits", got="NaN or infinity")
        return logits.double()

    def slope(self, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
        """Loss (B,) and its gradient by the input (B, ...); None where autograd finds no way to the input."""
        x = x.detach().requires_grad_()
        with self._watched(0), torch.enable_grad():
            value = loss(logits_of(self._model, x), y)
            if not value.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        return None if gradient is None else (value.detach(), gradient)

    def _forward(self, x: Tensor, unpack: Callable[[Tensor], Tensor]) -> Tensor:
        try:
            # Whatever a backward pass needs of the forward pass is unpacked by it, whoever asks for it and however.
            with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
                return logits_of(self._model, x)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            return logits_of(self._model, x)  # torch.func inside the network does not go with them

    @contextmanager
    def _watched(self, seed: int) -> Iterator[Callable[[Tensor], Tensor]]:
        """Seeds before, bookkeeping and putting back after."""

        def unpack(saved: Tensor) -> Tensor:
            self.backward = True
            return saved

        memories = _memories(self._model)
        with self._seeded(seed):
            yield unpack
        now = _memories(self._model)
        self.remembered |= {name for name, was in memories.items() if now.get(name, was) != was}
        moved = _differing(self._model, self._now)
        self.changed |= moved
        _put_back(self._model, self._now, moved)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        device = self._x.device
        cuda = [device] if device.type == "cuda" else []
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=cuda):
            # Not torch.manual_seed, which would seed every accelerator.
            torch.default_generator.manual_seed(seeds.derive(seed, "check"))
            if cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numpy)


def sample(images: ImageSet, n: int, seed: int) -> Tensor:
    """Rows of n images, in order, drawn from the whole set, which may be sorted by class; all where there are fewer."""
    order = torch.randperm(len(images), generator=seeds.generator("cpu", seed, "checks"))
    return order[:n].sort().values


def _state(model: nn.Module) -> State:
    return {name: t.detach().clone() for name, t in chain(model.named_parameters(), model.named_buffers())}


def _differing(model: nn.Module, kept: State) -> set[str]:
    now = dict(chain(model.named_parameters(), model.named_buffers()))
    return {name for name, was in kept.items() if name in now and not _same(now[name].detach(), was)}


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _put_back(model: nn.Module, kept: State, names: set[str]) -> None:
    """Those of another shape than before were empty until the first call, and stay."""
    now = dict(chain(model.named_parameters(), model.named_buffers()))
    with torch.no_grad():
        for name in names:
            if now[name].shape == kept[name].shape:
                now[name].copy_(kept[name])


def _memories(model: nn.Module) -> dict[str, str]:
    """A digest of every attribute of every module that could hold a memory."""
    return {
        f"{module_name}.{name}".lstrip("."): digest
        for module_name, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in _OF_MODULES and (digest := _digest(value, depth=2)) is not None
    }


_OF_MODULES = frozenset(vars(nn.Module()))


def _digest(value: Any, depth: int) -> str | None:
    """None for what holds no numbers, or holds them too deep."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        return hashlib.blake2b(value.tobytes()).hexdigest()
    if isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (list, tuple, deque, dict)) and depth:
        parts = value.values() if isinstance(value, dict) else value
        return repr((len(value), [_digest(part, depth - 1) for part in parts]))
    return None


SAME_CALL = 1e-3
"""Largest difference between two equal calls, as a share of the logits' range, that is put down to rounding."""
OTHER_BATCH = 1e-2
"""The same where other images or another order of the batch may lead to other kernels, of lower precision too."""
FEWEST_OTHERS = 10
"""Images of other classes among those that are all taken for one, below which this may be chance."""
TIED_SHARE = 0.01
"""Share of images whose largest logits may tie: rounding to few digits does that now and then."""
FEW = 0.05
"""Share of images on which a network that rounds inside may cross a step under another order of summation."""


@dataclass(frozen=True)
class Answers:
    """What a network said to the same images under different circumstances; differences are per image, (n,), as shares
    of the range of its logits.

    Attributes:
        logits: the first answer (n, C).
        again: the same call, the same state and seeds.
        reseeded: the same call under another seed.
        elsewhere: under the same seed, in other company: for every second image, which kept its place.
        moved: under the same seed, the batch in reverse order.
        flips: predictions that differ between the first answer and the reseeded one.
    """

    logits: Tensor
    again: Tensor
    reseeded: Tensor
    elsewhere: Tensor
    moved: Tensor
    flips: int

    @property
    def steady(self) -> bool:
        """Whether equal calls have equal answers, once state and seeds are equal."""
        return not _differ(self.again, SAME_CALL)


def answers_of(probe: Probe, x: Tensor) -> Answers:
    """Five forward passes over x (n, ...)."""
    first = probe.ask(x)
    spread = (first.amax(1) - first.amin(1)).median()
    scale = spread if spread > 0 else first.abs().amax().clamp_min(1)

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().amax(1) / scale

    other = probe.ask(x, seed=1)
    company = x.clone()
    company[1::2] = x[0]
    return Answers(
        logits=first,
        again=difference(first, probe.ask(x)),
        reseeded=difference(first, other),
        elsewhere=difference(first, probe.ask(company))[::2],
        moved=difference(first, probe.ask(x.flip(0)).flip(0)),
        flips=int((first.argmax(1) != other.argmax(1)).sum()),
    )


def randomised(probe: Probe, answers: Answers) -> Checked:
    """The same input twice."""
    check, n = "randomised", len(answers.logits)
    if not answers.steady and (probe.changed or probe.remembered):
        return skipped(check, "answers change with earlier calls, which cannot be told from chance")
    largest = float(torch.maximum(answers.again, answers.reseeded).amax())
    figures = {"images": n, "largest_difference": largest, "changed_predictions": answers.flips}
    if _differ(answers.again, SAME_CALL) or _differ(answers.reseeded, SAME_CALL):
        source = "" if answers.steady else ", from a source that the global seeds do not rule"
        says = (
            f"the same {n} images asked twice: logits differ by up to {largest:.1%} of their range and {answers.flips} "
            f"predictions change{source}; gradients and verdicts are draws: use aa-rand"
        )
        return judged(check, True, says, **figures)
    moved = float(answers.moved.amax())
    if not _many(answers.elsewhere) and _many(answers.moved):
        says = (
            f"logits change by up to {moved:.1%} of their range with the image's place in the batch, as those of a "
            "network do that draws noise from the same seed every time: use aa-rand without the seed"
        )
        return judged(check, True, says, **figures, largest_by_place=moved)
    return judged(check, False, f"{n} images asked twice: logits differ by {largest:.1e} of their range", **figures)


def softmax_outputs(answers: Answers) -> Checked:
    """Probabilities where logits belong."""
    check, logits = "softmax-outputs", answers.logits
    n, low, high = len(logits), float(logits.amin()), float(logits.amax())
    off = float((logits.sum(1) - 1).abs().amax())
    off_log = float(logits.logsumexp(1).abs().amax())
    figures = {"images": n, "lowest": low, "highest": high, "largest_sum_error": off}
    if low >= -1e-6 and high <= 1 + 1e-3 and off <= 1e-2:
        says = (
            f"outputs of {n} images lie in [0, 1] and add up to 1: these are probabilities, and cross-entropy on them "
            "is nearly flat where the network is sure; return logits, without softmax"
        )
        return judged(check, True, says, **figures)
    kind = "log-probabilities, which losses read as logits" if off_log <= 1e-3 else "no probabilities"
    return judged(check, False, f"outputs between {low:.3g} and {high:.3g}: {kind}", **figures)


def adaptation(probe: Probe, answers: Answers) -> Checked:
    """Answers that change the network, optimise something, or depend on other images."""
    check, n = "test-time-adaptation", len(answers.logits)
    seen = []
    if probe.changed:
        names = sorted(probe.changed)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        seen.append(f"a forward pass in eval mode changes {names[0]}{more}")
    if probe.backward:
        seen.append("a forward pass takes a backward pass inside")
    if not answers.steady and probe.remembered and not probe.changed:
        seen.append(f"answers differ after earlier calls, which change {min(probe.remembered)}")
    neighbours = float(answers.elsewhere.amax())
    company = answers.steady and n > 1 and _many(answers.elsewhere)
    if company:
        seen.append(f"logits change by up to {neighbours:.1%} of their range with the other images of the batch")
    figures: dict[str, float] = {"images": n, "changed_tensors": len(probe.changed), "backward": int(probe.backward)}
    if answers.steady:
        figures["largest_by_neighbours"] = neighbours
    if seen:
        says = f"{'; '.join(seen)}: accuracy belongs to a batch and an order, and an attack must reckon with that"
        return judged(check, True, says, **figures)
    if not answers.steady:
        return skipped(check, "answers are draws, which cannot be told from those that depend on other images")
    return judged(check, False, "answers change neither weights nor buffers and depend on the image alone", **figures)


def one_class(answers: Answers, y: Tensor) -> Checked:
    """Predictions that hang on nothing: one class for all images, or logits that tie."""
    check, logits, n = "degenerate-predictions", answers.logits, len(answers.logits)
    predicted = logits.argmax(1)
    tied = int(((logits == logits.amax(1, keepdim=True)).sum(1) > 1).sum())
    others, classes = int((y != predicted[0]).sum()), len(predicted.unique())
    figures = {"images": n, "predicted_classes": classes, "images_of_other_classes": others, "tied": tied}
    seen = []
    if classes == 1 and others >= FEWEST_OTHERS:
        seen.append(f"all {n} images are taken for class {int(predicted[0])}, and {others} of them are of others")
    if exceeds(tied, n, TIED_SHARE):
        seen.append(f"the largest logits of {tied} of {n} images tie, and the class of the lowest index is predicted")
    if seen:
        says = f"{' and '.join(seen)}: its accuracy is the share of a class, which no attack can lower"
        return judged(check, True, says, **figures)
    return judged(check, False, f"{n} images are taken for {classes} classes, {tied} by a tie", **figures)


def _differ(difference: Tensor, tolerance: float) -> bool:
    return bool((difference > tolerance).any())


def _many(difference: Tensor) -> bool:
    return int((difference > OTHER_BATCH).sum()) > FEW * len(difference)


FLAT_SHARE = 0.01
"""Share of images without gradient that is let pass: each of them may be a whole image's worth of false robustness."""
MISLED_SHARE = 0.05
PROMISE = 0.1
"""Share of the rise that the gradient promises which must come about at one of the distances below."""
DISTANCES = (1 / 4, 1 / 16, 1 / 64)
"""Of the radius."""
NAMES = ("vanishing-gradients", "misleading-gradients")
NO_GRADIENT = "the network gives no gradients: robust accuracies come from black-box attacks alone, as upper bounds"


def gradients(probe: Probe, x: Tensor, y: Tensor, budget: Budget) -> list[Checked]:
    """Both checks, on the images (n, ...) that are read rightly: two gradients and five forward passes."""
    right = correct(probe.ask(x), y)
    if not bool(right.any()):
        return [skipped(name, "no image of the sample is read rightly") for name in NAMES]
    x, y = x[right], y[right]
    of_ce, of_margin = probe.slope(x, y, ce), probe.slope(x, y, margin)
    if of_ce is None or of_margin is None:
        says = (
            "the way back from the logits to the input is cut (a threshold, detach, a detour over NumPy): attacks that "
            "need a gradient fail, and robust accuracies come from black-box attacks alone, as upper bounds"
        )
        return [judged(NAMES[0], True, says, images=len(x), cut=1), skipped(NAMES[1], "there are no gradients")]
    return [_vanishing(of_ce, of_margin), _misleading(probe, x, y, of_margin, budget)]


def _vanishing(of_ce: tuple[Tensor, Tensor], of_margin: tuple[Tensor, Tensor]) -> Checked:
    n = len(of_ce[0])
    none, flat = (_lost(gradient) for _, gradient in (of_ce, of_margin))
    lost, cut, zero = int(none.sum()), int(flat.sum()), int((of_ce[0] == 0).sum())
    figures = {"images": n, "without_gradient": lost, "of_these_flat": cut, "loss_rounded_to_zero": zero}
    if not exceeds(lost, n, FLAT_SHARE):
        says = f"cross-entropy has a gradient on {n - lost} of {n} images"
        return judged("vanishing-gradients", False, says, **figures)
    if 2 * cut > lost:
        why = (
            f"nor has the margin on {cut}: a rounding or a threshold cuts it; only black-box attacks (square, "
            "transfer) or a differentiable stand-in for that part say something"
        )
    else:
        why = (
            f"while the margin has one on {n - cut}: logits are too large for the loss (saturated); pgd and apgd-ce "
            "see nothing, cw and apgd-t do"
        )
    says = f"cross-entropy has no gradient on {lost} of {n} images, {why}"
    return judged("vanishing-gradients", True, says, **figures)


def _misleading(probe: Probe, x: Tensor, y: Tensor, of_margin: tuple[Tensor, Tensor], budget: Budget) -> Checked:
    value, gradient = of_margin
    direction = gradient.sign() if budget.norm == "linf" else Budget(1.0, "l2").steepest(gradient)
    # A vector of l2 length r / sqrt(d) is in the l1 ball of radius r.
    radius = budget.eps / (x[0].numel() ** 0.5 if budget.norm == "l1" else 1)
    rounding = 64 * torch.finfo(x.dtype).eps * probe.ask(x).abs().amax(1)
    measurable = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    kept = torch.zeros_like(measurable)
    best = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for distance in DISTANCES:
        x_moved = (x + distance * radius * direction).clamp(0, 1)
        promised = ((x_moved - x) * gradient).flatten(1).sum(1).double()
        rise = margin(probe.ask(x_moved), y) - value
        heard = promised > rounding
        measurable |= heard
        kept |= heard & (rise >= PROMISE * promised)
        best = torch.where(heard, torch.maximum(best, rise / promised), best)
    n, misled = int(measurable.sum()), int((measurable & ~kept).sum())
    if n == 0:
        return skipped("misleading-gradients", "no image has a gradient that rises above rounding")
    typical = float(best[measurable].median())
    says = (
        f"following the gradient of the margin brings less than {PROMISE:.0%} of the rise it promises on {misled} of "
        f"{n} images (typically {typical:.0%})"
    )
    suspicious = exceeds(misled, n, MISLED_SHARE)
    if suspicious:
        says += ": it does not describe the network at this radius; trust black-box attacks (square, transfer) more"
    return judged("misleading-gradients", suspicious, says, images=n, misled=misled, typical_share=typical)


def _lost(gradient: Tensor) -> Tensor:
    """Whose gradient (n, ...) is zero, or so small that products with it lose their digits: (n,) bool."""
    limits = torch.finfo(gradient.dtype)
    return gradient.flatten(1).abs().amax(1) < limits.tiny / limits.eps
