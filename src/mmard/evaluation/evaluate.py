"""Who is read rightly under which attack: the one protocol and the one loop of verdicts.

Every attack goes the same way, batch by batch: the images as the network takes them, the attack on the network's twin
or on the network itself, a look whether its points lie in the ball and the box, and the network's own verdict on them
(`ops.correct`). An image that is misread without an attack counts as misread under each, and no attack is spent on it.
An attack that returns its last iterate (PGD and its like) is given all the others; AutoAttack is a list of attacks,
each on the images that those before it left.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
2020, arXiv:2003.01690. AutoAttack's verdicts are those of the authors' code (fra31/auto-attack, a392200) for the same
seed and batch size. Its attacks start on every batch of survivors from a generator seeded with the same number, so
which images share a batch decides the random starts, and survivors are grouped as theirs: in the order of the set,
`batch_size` at a time. Only where an attack succeeds or fails by rounding may a verdict differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmard import seeds
from mmard._version import __version__
from mmard.attacks import Attack, AutoAttack, read_attacks, refuse_white_box
from mmard.attacks.authors import Authors
from mmard.attacks.autoattack import stages
from mmard.attacks.queries import logits_of, sliced
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.engine.twin import Engine, Twins, described
from mmard.errors import Refused, require
from mmard.evaluation.journal import Journal, Progress, RankJournal
from mmard.evaluation.score import Mask, Score
from mmard.evaluation.spellings import spelled
from mmard.files import weights_hash
from mmard.modes import evaluating, frozen
from mmard.ops import correct
from mmard.ranks import Ranks
from mmard.settings import EVALUATION_BATCH

NETWORK = "the network"
"""What the network is called where `Twins` wants a letter."""

Witness = Callable[[str, Tensor, Tensor, Tensor], None]
"""Called with (attack or "clean", rows (B,) of the set on the CPU, inputs that the network saw, its logits (B, C))."""


@dataclass(frozen=True)
class Protocol:
    """How networks are attacked: all that a verdict depends on beside the network and the images.

    Args:
        attacks: in the order in which they are reported.
        budget: where adversarial examples may be.
        seed: of the random starts.
        batch_size: images attacked at once; random starts depend on it.
        engine: what the attacks ask: "fast", a twin of the network where it has one, which rounds otherwise, or
            "plain", the network itself. The verdict on what they find is the network's own in any case.

    Raises:
        Refused: for a batch without images, or an unknown engine.
    """

    attacks: tuple[Attack | AutoAttack, ...]
    budget: Budget
    seed: int = 0
    batch_size: int = EVALUATION_BATCH
    engine: str = "fast"

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", expected="at least 1", got=self.batch_size)
        Engine(self.engine)

    @classmethod
    def read(cls, specs: str | Sequence[str], budget: Budget, num_classes: int, **settings: Any) -> Protocol:
        """From short spellings and names of groups (`spellings.py`); `settings` are the fields after `budget`.

        Raises:
            Refused: for an attack that is not known, or one that so few classes do not have.
        """
        return cls(read_attacks(spelled(specs, budget), budget, num_classes), budget, **settings)

    def only(self, *attacks: Attack | AutoAttack, budget: Budget | None = None) -> Protocol:
        """The same with these attacks."""
        return replace(self, attacks=attacks, budget=budget or self.budget)


@dataclass(frozen=True)
class Measured:
    """A figure with its verdicts, and the attack that it is of; None for "clean" and the worst case over several."""

    score: Score
    mask: Mask
    attack: Attack | AutoAttack | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Evaluated:
    """What every figure of one evaluation shares; its fields are those of `Score`."""

    split: str
    n: int
    seed: int
    batch_size: int
    weights: str
    data: str
    which: str
    images: str

    @classmethod
    def of(cls, model: nn.Module, images: ImageSet, protocol: Protocol, *, split: str, which: str) -> Evaluated:
        """These weights on these images."""
        hashes = (weights_hash(model), images.fingerprint())
        return cls(split, len(images), protocol.seed, protocol.batch_size, *hashes, which, images.origin)

    @classmethod
    def of_score(cls, score: Score) -> Evaluated:
        """What this figure was measured on."""
        return cls(**{name: getattr(score, name) for name in cls.__dataclass_fields__})

    def score(
        self, attack: str, label: str, mask: Mask, seconds: float, budget: Budget | None, engine: str = ""
    ) -> Score:
        """The figure that verdicts (n,) come to; no budget and no engine without an attack."""
        return Score(
            attack=attack,
            label=label,
            norm=budget.norm if budget else None,
            eps=budget.eps if budget else None,
            correct=int(mask.sum()),
            seconds=round(seconds, 3),
            engine=engine,
            **asdict(self),
        )


def inputs(model: nn.Module, images: ImageSet, rows: Tensor | slice = slice(None)) -> Tensor:
    """Images as a network takes them: (B, C, H, W) in [0, 1] on its device, in float64 for a network in float64."""
    state = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return images.inputs(rows, state.device, dtype)


def labelled(model: nn.Module, images: ImageSet, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Inputs of a network, as `inputs` makes them, and their labels (B,) beside them."""
    x = inputs(model, images, rows)
    return x, images.y[rows].to(x.device)


def verdict(model: nn.Module, x: Tensor, y: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Who of a batch is read rightly (B,), and the logits (B, C).

    Raises:
        Refused: naming `where`, if logits are not finite.
    """
    with torch.no_grad():
        logits = logits_of(model, x)
    if not bool(torch.isfinite(logits).all()):
        raise Refused(where, expected="finite logits", got="NaN or infinity")
    return correct(logits, y), logits


def random_start(attack: Attack, x: Tensor, seed: int, number: int) -> torch.Generator:
    """What an attack draws from on the batch of this number: as AutoAttack's code has it, or by the batch's address."""
    if attack.stops_at_success:
        return torch.Generator().manual_seed(seed)
    return seeds.generator(x.device, seed, "evaluate", attack.spec, number)


def perturbed(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator, where: str
) -> Tensor:
    """What an attack makes of a batch, (B, C, H, W) -> (B, C, H, W). No attack is trusted to stay in its ball.

    Raises:
        Refused: naming `where`, if it left the ball or the box.
    """
    x_adv = attack(model, x.clone(), y, budget, generator=generator).detach()
    # Pixels are rounded when they are made, and again, with their sum, when the distance is taken.
    size = x[0].numel()
    ulps = 4 * {"linf": 1 + budget.eps, "l2": (1 + budget.eps) * size**0.5, "l1": budget.eps + size}[budget.norm]
    reach = budget.distance(x_adv, x)
    if not bool((reach <= budget.eps + ulps * torch.finfo(x.dtype).eps).all()):
        got = f"a point at a distance of {float(reach.amax()):.6g}"
        raise Refused(where, expected=f"an attack that stays in the ball {budget}", got=got)
    if not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
        raise Refused(where, expected="an attack that stays in the box [0, 1]", got="a point outside of it")
    return x_adv


class Loop:
    """The verdicts on one network under one protocol. Its caller has put the network into eval mode.

    Args:
        model, images, protocol: as in `measure`.
        progress, witness: as in `measure`.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        protocol: Protocol,
        progress: Progress | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._model, self._images, self._protocol = model, images, protocol
        self._progress, self._witness = progress, witness
        self._twins = Twins(Engine(protocol.engine), {NETWORK: model})

    def judged(
        self,
        journal: Journal | RankJournal,
        name: str,
        who: NDArray[np.int64],
        attack: Attack | None = None,
        *,
        again: bool = False,
    ) -> tuple[Mask, float]:
        """Who of some images is read rightly, after an attack if there is one, (n,); and the seconds it took.

        What was done before is done `again` in silence.
        """
        size, progress = self._protocol.batch_size, None if again else self._progress

        def judge(rows: NDArray[np.int64], number: int) -> Mask:
            first = number * size
            where = f"{name}, images {first} to {first + len(rows) - 1}"
            return self._judge(torch.from_numpy(rows), number, attack, name, where).cpu().numpy()

        return journal.judged(name, who, size, judge, progress)

    def engine(self, attack: Attack | AutoAttack) -> str:
        """A line on what an attack queries, for records; the authors' attacks ask the network itself."""
        if any(isinstance(each, Authors) for each in stages(attack).values()):
            return ""
        return described(self._twins.ready(inputs(self._model, self._images, slice(0, 1)))[NETWORK])

    def _judge(self, rows: Tensor, number: int, attack: Attack | None, name: str, where: str) -> Tensor:
        x, y = labelled(self._model, self._images, rows)
        if attack is None:
            right, logits = verdict(self._model, x, y, where)
            self._show(name, rows, x, logits)
            return right
        if not attack.stops_at_success:
            x_adv = self._perturbed(attack, self._twins.serving(x)[NETWORK], x, y, number, where)
            right, logits = verdict(self._model, x_adv, y, where)
            self._show(name, rows, x_adv, logits)
            return right
        queried = self._model if isinstance(attack, Authors) else self._twins.serving(x)[NETWORK]
        if queried is not self._model and not _agrees(queried, x, y):
            queried = self._model  # an attack would have nothing to do where the twin misreads the image as it is
        right, disputed = self._survivors(attack, queried, x, y, number, where)
        if disputed and queried is not self._model:
            right, _ = self._survivors(attack, self._model, x, y, number, where)
        return right

    def _survivors(
        self, attack: Attack, queried: nn.Module, x: Tensor, y: Tensor, number: int, where: str
    ) -> tuple[Tensor, bool]:
        """Who withstands an attack that returns x where it fails; and whether it is wrong about a point of its own."""
        queried = queried if isinstance(attack, Authors) else sliced(queried, x)
        x_adv = self._perturbed(attack, queried, x, y, number, where)
        rows = (x_adv != x).flatten(1).any(1).nonzero()[:, 0]
        right = torch.ones_like(y, dtype=torch.bool)
        if len(rows):
            right[rows], _ = verdict(self._model, x_adv[rows], y[rows], where)
        return right, bool(right[rows].any())

    def _perturbed(self, attack: Attack, queried: nn.Module, x: Tensor, y: Tensor, number: int, where: str) -> Tensor:
        generator = random_start(attack, x, self._protocol.seed, number)
        return perturbed(attack, queried, x, y, self._protocol.budget, generator, where)

    def _show(self, name: str, rows: Tensor, x: Tensor, logits: Tensor) -> None:
        if self._witness is not None:
            self._witness(name, rows, x, logits)


def _agrees(twin: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a twin reads a batch as its network does, rightly."""
    with torch.no_grad():
        return bool(correct(logits_of(twin, x), y).all())


@torch.inference_mode(False)
def measure(
    model: nn.Module,
    images: ImageSet,
    protocol: Protocol,
    *,
    split: str,
    which: str,
    progress: Progress | None = None,
    witness: Witness | None = None,
    finished: Callable[[Measured], None] | None = None,
    folder: Path | None = None,
    ranks: Ranks | None = None,
) -> list[Measured]:
    """Clean accuracy, accuracy under each attack, and under all of them together.

    The model is in eval mode inside and is put back as it was; torch's global random state is not touched.

    Args:
        model: inputs (B, C, H, W) in [0, 1] to logits (B, classes).
        images: the images to attack.
        protocol: how.
        split: what the images are, for the records.
        which: what the weights are, for the records.
        progress: told how far the evaluation is, after every batch.
        witness: shown every batch, clean and under the attacks that return their last iterate. These are then neither
            kept nor shared, for a witness must see all.
        finished: told each figure as soon as it is known, so that an interrupted evaluation keeps what it has.
        folder: where verdicts are kept after every batch, in a folder for each evaluation; the same call made again
            goes on from there, and made by several processes at once it is shared. None keeps nothing.
        ranks: processes that make this call together, each with the same network: batches are dealt out, and all have
            all verdicts. Neither with a folder nor with a witness.

    Returns:
        "clean", the attacks in their order, AutoAttack after the attacks that it consists of, and, with more than one
        attack, "worst_of_...".

    Raises:
        Refused: before the first attack for one that needs a gradient which the model has not; later if logits are not
            finite, an attack leaves its ball, or the folder holds another evaluation.
    """
    refuse_white_box(model, protocol.attacks)
    alone = ranks is None or (folder is None and witness is None)
    require(alone, "ranks", expected="neither a folder nor a witness", got="one")
    evaluated = Evaluated.of(model, images, protocol, split=split, which=which)
    loop = Loop(model, images, protocol, progress, witness)
    budget, report = protocol.budget, finished or (lambda _: None)

    def journal(group: str, attack: Attack | AutoAttack | None = None) -> Journal | RankJournal:
        if ranks is not None:
            return RankJournal(ranks, len(images))
        kept = folder if attack is not None or witness is None else None
        label = attack.label if attack else ""
        facts = (
            evaluated.weights,
            evaluated.data,
            budget.eps,
            protocol.batch_size,
            protocol.engine,
            label,
            __version__,
        )
        place = kept and kept / _name(group, budget.norm, budget.eps, protocol.seed, facts)
        return Journal(place, _plan(protocol, evaluated, attack), len(images))

    def under(attack: Attack | AutoAttack, kept: Journal | RankJournal, mask: Mask, total: float) -> list[Measured]:
        """The figures of one attack on the images of a mask; of a list, those of its stages before its own."""
        listed, made = stages(attack), []
        for name, stage in listed.items():
            mask, seconds = loop.judged(kept, name, np.flatnonzero(mask), stage)
            total += seconds
            if len(listed) > 1:
                label = f"right after {stage.label}, in {attack.label}"
                score = evaluated.score(f"{attack.spec}.{name}", label, mask, seconds, budget, loop.engine(attack))
                made.append(Measured(score, mask, stage))
        score = evaluated.score(attack.spec, attack.label, mask, total, budget, loop.engine(attack))
        made.append(Measured(score, mask, attack))
        for each in made:
            report(each)
        return made

    everyone = np.arange(len(images))
    found: dict[int, list[Measured]] = {}
    with evaluating(model), frozen(model):
        each = journal("each")
        mask, seconds = loop.judged(each, "clean", everyone)
        clean = Measured(evaluated.score("clean", "no attack", mask, seconds, None), mask)
        report(clean)
        for number, attack in enumerate(protocol.attacks):
            if not attack.stops_at_success:
                found[number] = under(attack, each, mask, 0.0)
        for number, attack in enumerate(protocol.attacks):
            if attack.stops_at_success:
                own = journal(attack.spec, attack)
                if folder is not None:  # who is right belongs to the verdicts that are kept
                    mask, seconds = loop.judged(own, "clean", everyone, again=True)
                found[number] = under(attack, own, mask, seconds)
    columns = [found[number] for number in range(len(protocol.attacks))]
    results = [clean, *chain.from_iterable(columns)]
    if len(columns) > 1:
        results.append(together(clean, *(column[-1] for column in columns)))
        report(results[-1])
    return results


def together(clean: Measured, *each: Measured) -> Measured:
    """Right without an attack and under each of these attacks: "worst_of_..."."""
    specs = [m.score.attack for m in each]
    mask = np.logical_and.reduce([clean.mask, *(m.mask for m in each)])
    score = replace(
        each[0].score,
        attack="worst_of_" + ",".join(specs),
        label="right under each of " + ", ".join(specs),
        correct=int(mask.sum()),
        seconds=round(sum(m.score.seconds for m in (clean, *each)), 3),
    )
    return Measured(score, mask)


def accuracies(
    model: nn.Module, images: ImageSet, protocol: Protocol, ranks: Ranks | None = None
) -> tuple[float, float]:
    """Clean accuracy and that under the one attack, as fractions: what validation looks at after every epoch."""
    clean, attacked = measure(model, images, protocol, split="val", which="now", ranks=ranks)
    return clean.score.accuracy, attacked.score.accuracy


def _plan(protocol: Protocol, evaluated: Evaluated, attack: Attack | AutoAttack | None) -> dict[str, Any]:
    """What a journal says that it holds: of one attack that stops at success, or of all others."""
    plan: dict[str, Any] = {"norm": protocol.budget.norm, "eps": protocol.budget.eps, "seed": protocol.seed}
    plan |= {"batch_size": protocol.batch_size, "engine": protocol.engine}
    if attack is not None:
        plan["attacks"] = {
            name: {"kind": type(stage).__name__, **asdict(stage)}  # type: ignore[call-overload]
            for name, stage in stages(attack).items()
        }
    return plan | {"weights": evaluated.weights, "data": evaluated.data}


def _name(group: str, norm: str, eps: float, seed: int, facts: tuple[object, ...]) -> str:
    """A folder that no other evaluation has, one by another version of this package included."""
    rest = hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()
    return f"{group}-{norm}-{eps:.5f}-seed{seed}-{rest[:8]}"
