"""Networks from names, run folders and files of weights, with the facts that let a reader rebuild them.

new_network, load_network, load_teacher    one network, fresh or trained
companions                                 those of a training beside its student: teachers, peers
pick_device, own_device                    where they are computed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmard.balls import Budget
from mmard.catalogue import FILES, refuse_nowhere
from mmard.data import ImageSet
from mmard.deploy.checkpoints import open_weights
from mmard.deploy.layouts import casts, load_foreign
from mmard.deploy.onnx import OnnxNetwork
from mmard.errors import Refused, require, unknown
from mmard.files import load_into
from mmard.gate import ClaimedAccuracy, pass_gate
from mmard.method import Method
from mmard.models import Normalised, build, check_logits
from mmard.models.wrapped import Ensemble
from mmard.ranks import Ranks
from mmard.run import Run
from mmard.seeds import derive
from mmard.settings import Settings, given_label, is_given
from mmard.teachers import SHAPE, is_teacher, open_teacher
from mmard.trust import refuse_untrusted


@dataclass(frozen=True)
class Network:
    """A network and where it came from.

    Attributes:
        module: inputs (B, C, H, W) in [0, 1] to logits (B, classes), in eval mode where it was loaded.
        facts: what `network_facts` wrote beside its weights; {} for a foreign file.
        source: a line for records: a run folder and which weights, a file, or a name.
    """

    module: nn.Module
    facts: dict[str, Any]
    source: str


def new_network(name: str, images: ImageSet, normalise: str, seed: int) -> nn.Module:
    """A fresh network for these images; with normalise = "data" their mean and deviation become part of it.

    Raises:
        Refused: for an unknown name, or that of an object that was handed over.
    """
    mean, std = images.channel_statistics() if normalise == "data" else (None, None)
    module = build(name, num_classes=images.num_classes, image_shape=images.image_shape, mean=mean, std=std, seed=seed)
    check_logits(module, images.image_shape, images.num_classes, f"network {name}", trained=True)
    return module


def trained_on(name: str, init: str, images: ImageSet) -> tuple[nn.Module, str]:
    """The network of this name with weights to begin a training from, in train mode, and where they are from.

    Args:
        init: a run folder, or a file of weights by mmard or somebody else.

    Raises:
        Refused: if nothing is there, they are of another network, or for other classes or images.
    """
    use: dict[str, Any] = {"num_classes": images.num_classes, "image_shape": images.image_shape, "who": "init"}
    if Path(init).is_dir():
        found = load_network(init, **use)
        theirs = str(found.facts["network"])
        require(theirs == name, f"init {init}", expected=name, got=theirs, mend=f"train it as {theirs}")
    else:
        found = load_network(name, weights=init, **use)
    check_logits(found.module, images.image_shape, images.num_classes, f"init {init}", trained=True)
    return found.module.train(), found.source


def network_facts(name: str, module: nn.Module, images: ImageSet) -> dict[str, Any]:
    """What a reader of the weights must know to build the network and to feed it."""
    return {
        "network": name,
        "normalised": isinstance(module, Normalised),
        "num_classes": images.num_classes,
        "image_shape": list(images.image_shape),
        "classes": list(images.classes),
        "images": images.origin,
    }


def load_network(
    spec: str | Path,
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    which: str = "best",
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    who: str = "network",
) -> Network:
    """A trained network.

    Args:
        spec: a run folder, a .safetensors file written by mmard, an .onnx file, which has no gradient and so cannot
            teach, the name of a network, whose weights are then in `weights` (`package.module:function` may bring its
            own), or `robustbench:NAME`, whose weights are there too and whose normalisation is known.
        num_classes, image_shape: what the network is for; a trained one must agree, a named one is built so.
            None takes what the facts say.
        which: "best" or "last" weights of a run folder.
        weights: a file of weights for a network given by name.
        mean, std: what those weights want their input normalised with, per channel in input units, where the file does
            not say it.
        who: how messages call it, e.g. "teacher".

    Raises:
        Refused: if nothing is there, or it was trained for other classes or images, or the weights do not fit.
    """
    spec, weights = str(spec), None if weights is None else str(weights)
    path, use = Path(spec), _Use(f"{who} {spec}", who, num_classes, image_shape)
    bare = {"mean": mean, "std": std}
    if weights is None and bare != {"mean": None, "std": None}:
        mend = "what a run, a file or a function brings has its normalisation inside"
        raise Refused(use.where, expected="weights of somebody else beside mean and std", got="none", mend=mend)
    if is_teacher(spec):
        if bare != {"mean": None, "std": None}:
            mend = f"leave them out, or name the network: mmard teachers {spec}"
            raise Refused(use.where, expected="no mean and std, since its own are known", got="some", mend=mend)
        return _known(spec, weights, use)
    if path.suffix == ".onnx" and weights is None:
        return _onnx(path, use)
    if not path.is_dir() and path.suffix not in FILES:
        refuse_nowhere(spec, who)
        return _named(spec, weights, use, bare)
    if weights is not None:
        expected = "the name of a network beside weights"
        raise Refused(use.where, expected=expected, got="a run or a file that has its own", mend="leave one out")
    if path.suffix in FILES:
        tensors, facts = open_weights(path)
        source = path.name
        if "network" not in facts:
            got = "a file that does not say its network"
            mend = f"name the network and give this file with {use.flag}"
            raise Refused(use.where, expected="weights that mmard wrote", got=got, mend=mend)
    else:
        tensors, facts = Run.open(path).load_weights(which)
        source = f"{path.name} ({which}, epoch {facts.get('epoch', '?')})"
    return Network(_rebuilt(tensors, facts, use), facts, source)


@dataclass(frozen=True)
class _Use:
    """What a network is loaded for: classes and images, None where nothing says them, and how messages call it."""

    where: str
    who: str
    num_classes: int | None
    image_shape: tuple[int, ...] | None

    @property
    def flag(self) -> str:
        """Which option gives the weights of such a network."""
        return {"teacher": "--teacher-weights", "source": "--from-weights", "init": "--init"}.get(self.who, "--weights")

    def refuse_other(self, classes: int | None, shape: tuple[int, ...] | None) -> None:
        """Refuse a network for other classes or images than the data has; None where one side says nothing."""
        other = "is it for other data?"
        if None not in (classes, self.num_classes) and classes != self.num_classes:
            expected = f"{self.num_classes} classes, as the data has"
            raise Refused(self.where, expected=expected, got=f"a network for {classes}", mend=other)
        if shape is not None and self.image_shape is not None and shape != tuple(self.image_shape):
            expected = f"images {tuple(self.image_shape)}, as the data has"
            raise Refused(self.where, expected=expected, got=f"a network for {shape}", mend=other)


def _rebuilt(tensors: dict[str, Tensor], facts: dict[str, Any], use: _Use) -> nn.Module:
    """The network that a run or a file of ours says it is, in eval mode."""
    name, classes, shape = facts["network"], int(facts["num_classes"]), tuple(facts["image_shape"])
    if is_given(name):
        mend = "hand the object over in Python, or train it as package.module:function"
        raise Refused(use.where, expected="a network that can be built by name", got=name, mend=mend)
    refuse_untrusted(name, use.where)
    use.refuse_other(classes, shape)
    stand_in = {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]} if facts.get("normalised") else {}
    module = build(name, num_classes=classes, image_shape=shape, seed=0, **stand_in)
    load_into(module, tensors, use.where)
    return module.eval()


def _known(spec: str, weights: str | None, use: _Use) -> Network:
    """A teacher of the table of RobustBench's."""
    use.refuse_other(None, SHAPE)
    teacher, module = open_teacher(spec, weights, use.num_classes)
    facts = {
        "network": teacher.network,
        "normalised": isinstance(module, Normalised),
        "num_classes": teacher.num_classes,
        "image_shape": list(SHAPE),
        "claim": teacher.claim,
    }
    return Network(module.eval(), facts, f"{teacher.spec} with {Path(str(weights)).name}")


def _onnx(path: Path, use: _Use) -> Network:
    if use.who == "teacher":
        mend = "give the run or the weights that it was exported from"
        raise Refused(use.where, expected="a network with a gradient", got="an ONNX file", mend=mend)
    module = OnnxNetwork(path)
    classes, shape = module.facts.get("num_classes", use.num_classes), module.shape or use.image_shape
    use.refuse_other(classes, shape)
    if classes is None or shape is None:
        expected = "data that it is for, since the file does not say"
        raise Refused(use.where, expected=expected, got="none", mend="give --data")
    c, h, w = shape
    check_logits(module, (c, h, w), int(classes), use.where)
    return Network(module.eval(), module.facts, path.name)


def _named(spec: str, weights: str | None, use: _Use, standard: Mapping[str, Sequence[float] | None]) -> Network:
    """A network by name with the weights of a file, which want their input standardised so."""
    if use.num_classes is None or use.image_shape is None:
        mend = "give --data, or num_classes and image_shape in Python"
        raise Refused(use.where, expected="data to build it for", got="none", mend=mend)
    module = build(spec, num_classes=use.num_classes, image_shape=use.image_shape, seed=0)
    if weights is None and ":" not in spec:
        mend = f"give a run folder, or {use.flag} FILE"
        raise Refused(use.where, expected="a trained network", got="a name without weights", mend=mend)
    if weights is None:
        return Network(module.eval(), {}, spec)
    tensors, _ = open_weights(weights)
    channels, where = use.image_shape[0], f"{use.who} {weights}"
    for what, values in standard.items():
        if values is not None and len(values) != channels:
            raise Refused(where, expected=f"{channels} numbers as {what}", got=" ".join(map(str, values)))
    cast = casts(module, tensors)
    module = load_foreign(module, tensors, channels, where, standard["mean"], standard["std"])
    return Network(module.eval(), {}, f"{spec} with {Path(weights).name}" + (f" ({cast})" if cast else ""))


def load_teacher(
    specs: str | Path | Sequence[str | Path],
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    which: str = "best",
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mix: str = "probs",
) -> Network:
    """A teacher, or an ensemble of those that `specs` name; the rest as in `load_network`.

    `load_teacher("robustbench:Chen2021LTD_WRN34_10", weights="ltd.pt")` reads a file of RobustBench; `mmard teachers`
    lists those that are known, and docs/teachers.md says what is checked.

    Args:
        mix: what an ensemble averages, "probs" or "logits".

    Raises:
        Refused: if one of them cannot be had.
    """
    how: dict[str, Any] = {"num_classes": num_classes, "image_shape": image_shape, "which": which, "who": "teacher"}
    specs = (specs,) if isinstance(specs, str | Path) else specs
    if len(specs) == 1:
        return load_network(specs[0], weights=weights, mean=mean, std=std, **how)
    if weights is not None:
        mend = "save them as files that mmard wrote, or give run folders"
        raise Refused("--teacher-weights", expected="one teacher", got=f"{len(specs)} in an ensemble", mend=mend)
    members = [load_network(spec, mean=mean, std=std, **how) for spec in specs]
    source = f"mean {mix} of {', '.join(member.source for member in members)}"
    return Network(Ensemble([member.module for member in members], mix).eval(), {}, source)


def teacher_by_letter(settings: Settings, letter: str, images: ImageSet) -> Network:
    """The teacher that settings name by this letter, for these images.

    Raises:
        Refused: if it cannot be had, or is for other data.
    """
    return load_teacher(
        settings.teachers[letter],
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        which=settings.teacher_which,
        weights=settings.teacher_weights.get(letter),
        mean=settings.teacher_mean.get(letter),
        std=settings.teacher_std.get(letter),
        mix=settings.teacher_mix,
    )


@dataclass
class Companions:
    """Networks by letter, and what is known about them.

    Attributes:
        nets: on the device.
        sources: where each teacher came from.
        facts: what a reader of the weights must know, of those that are trained.
        notes: a line on what each teacher achieves.
    """

    nets: dict[str, nn.Module] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def companions(
    settings: Settings,
    method: Method,
    student: str,
    given: Mapping[str, nn.Module],
    images: ImageSet,
    validation: ImageSet,
    budget: Budget,
    device: torch.device,
) -> Companions:
    """The teachers and peers that a method needs.

    Args:
        student: name of the student's network, of which a peer is another.
        given: teachers as objects, by letter; the others are loaded as the settings say.
        images: training images.

    Raises:
        Refused: if one cannot be had, fits neither images nor classes, or does no better than chance, or far worse than
            is claimed of it.
    """
    found = Companions()
    for letter in method.teachers:
        who = "teacher" if letter == "T" else f"teacher {letter}"
        known: dict[str, Any] = {}
        if letter in given:
            module = given[letter]
            name = found.sources[letter] = given_label(module)
        else:
            said = settings.teachers[letter]
            loaded = teacher_by_letter(settings, letter, validation)
            module, found.sources[letter], known = loaded.module, loaded.source, loaded.facts
            name = said[0] if len(said) == 1 else given_label(module)
        found.nets[letter] = module.to(device)
        check_logits(module, validation.image_shape, validation.num_classes, who, trained=letter in method.tunes)
        robust = letter == "T"
        claim, source = ClaimedAccuracy.of(known), found.sources[letter]
        bind = settings.teacher_gate
        note = pass_gate(module, validation, budget, source, robust=robust, who=who, claim=claim, bind=bind)
        found.notes.append(note)
        if letter in method.tunes:
            found.facts[letter] = {**network_facts(name, module, images), **known}
    for letter in method.peers:
        peer = settings.peer or student
        if is_given(peer):
            mend = "name a network: --peer, or peer=..."
            raise Refused("peer", expected="a network that can be built anew", got=peer, mend=mend)
        module = new_network(peer, images, settings.normalise, derive(settings.seed, "peer", letter))
        found.nets[letter], found.facts[letter] = module.to(device), network_facts(peer, module, images)
    return found


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
