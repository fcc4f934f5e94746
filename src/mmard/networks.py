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
from mmard.deploy.checkpoints import casts, load_foreign, open_weights
from mmard.deploy.onnx import OnnxNetwork
from mmard.errors import Refused, unknown
from mmard.files import load_into
from mmard.gate import ClaimedAccuracy, pass_gate
from mmard.method import Method
from mmard.models import Ensemble, Normalised, build, check_logits
from mmard.run import Run
from mmard.seeds import derive
from mmard.settings import Settings, given_label, is_given
from mmard.teachers import SHAPE, is_teacher, open_teacher
from mmard.training.ranks import Ranks
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
    path = Path(spec)
    if weights is None and (mean is not None or std is not None):
        mend = "what a run, a file or a function brings has its normalisation inside"
        raise Refused(f"{who} {spec}", expected="weights of somebody else beside mean and std", got="none", mend=mend)
    if is_teacher(spec):
        return _known(spec, weights, num_classes, image_shape, who)
    if path.suffix == ".onnx" and weights is None:
        return _onnx(path, num_classes, image_shape, who)
    is_file = path.suffix in FILES
    if not path.is_dir() and not is_file:
        refuse_nowhere(spec, who)
        return _named(spec, weights, num_classes, image_shape, who, mean, std)
    if weights is not None:
        expected = "the name of a network beside weights"
        raise Refused(f"{who} {spec}", expected=expected, got="a run or a file that has its own", mend="leave one out")
    if is_file:
        tensors, facts = open_weights(path)
        source = path.name
        if "network" not in facts:
            got = "a file that does not say its network"
            mend = f"name the network and give this file with {_flag(who)}"
            raise Refused(f"{who} {spec}", expected="weights that mmard wrote", got=got, mend=mend)
    else:
        tensors, facts = Run.open(path).load_weights(which)
        source = f"{path.name} ({which}, epoch {facts.get('epoch', '?')})"
    return Network(_rebuilt(tensors, facts, num_classes, image_shape, f"{who} {spec}").eval(), facts, source)


def load_teacher(
    specs: str | Path | Sequence[str | Path],
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    which: str = "best",
    weights: str | Path | None = None,
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
        return load_network(specs[0], weights=None if weights is None else str(weights), **how)
    if weights is not None:
        mend = "save them as files that mmard wrote, or give run folders"
        raise Refused("--teacher-weights", expected="one teacher", got=f"{len(specs)} in an ensemble", mend=mend)
    members = [load_network(spec, **how) for spec in specs]
    source = f"mean {mix} of {', '.join(member.source for member in members)}"
    return Network(Ensemble([member.module for member in members], mix).eval(), {}, source)


def _flag(who: str) -> str:
    return {"teacher": "--teacher-weights", "source": "--from-weights"}.get(who, "--weights")


def _rebuilt(
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    num_classes: int | None,
    image_shape: tuple[int, ...] | None,
    where: str,
) -> nn.Module:
    name, classes, shape = facts["network"], int(facts["num_classes"]), tuple(facts["image_shape"])
    if is_given(name):
        mend = "hand the object over in Python, or train it as package.module:function"
        raise Refused(where, expected="a network that can be built by name", got=name, mend=mend)
    refuse_untrusted(name, where)
    _same_data(classes, shape, num_classes, image_shape, where)
    channels = shape[0]
    stand_in = {"mean": [0.0] * channels, "std": [1.0] * channels} if facts.get("normalised") else {}
    module = build(name, num_classes=classes, image_shape=shape, seed=0, **stand_in)
    load_into(module, tensors, where)
    return module.eval()


def _same_data(
    classes: int | None,
    shape: tuple[int, ...] | None,
    num_classes: int | None,
    image_shape: tuple[int, ...] | None,
    where: str,
) -> None:
    """Refuse a network for other classes or images than the data has; None where one side says nothing."""
    other = "is it for other data?"
    if None not in (classes, num_classes) and classes != num_classes:
        expected = f"{num_classes} classes, as the data has"
        raise Refused(where, expected=expected, got=f"a network for {classes}", mend=other)
    if shape is not None and image_shape is not None and shape != tuple(image_shape):
        expected = f"images {tuple(image_shape)}, as the data has"
        raise Refused(where, expected=expected, got=f"a network for {shape}", mend=other)


def _known(
    spec: str, weights: str | None, num_classes: int | None, image_shape: tuple[int, ...] | None, who: str
) -> Network:
    _same_data(None, SHAPE, num_classes, image_shape, f"{who} {spec}")
    teacher, module = open_teacher(spec, weights, num_classes)
    facts = {
        "network": teacher.network,
        "normalised": isinstance(module, Normalised),
        "num_classes": teacher.num_classes,
        "image_shape": list(SHAPE),
        "claim": teacher.claim,
    }
    return Network(module.eval(), facts, f"{teacher.spec} with {Path(str(weights)).name}")


def _onnx(path: Path, num_classes: int | None, image_shape: tuple[int, ...] | None, who: str) -> Network:
    where = f"{who} {path}"
    if who == "teacher":
        mend = "give the run or the weights that it was exported from"
        raise Refused(where, expected="a network with a gradient", got="an ONNX file", mend=mend)
    module = OnnxNetwork(path)
    classes, shape = module.facts.get("num_classes", num_classes), module.shape or image_shape
    _same_data(classes, shape, num_classes, image_shape, where)
    if classes is None or shape is None:
        expected = "data that it is for, since the file does not say"
        raise Refused(where, expected=expected, got="none", mend="give --data")
    c, h, w = shape
    check_logits(module, (c, h, w), int(classes), where)
    return Network(module.eval(), module.facts, path.name)


def _named(
    spec: str,
    weights: str | None,
    num_classes: int | None,
    image_shape: tuple[int, ...] | None,
    who: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    if num_classes is None or image_shape is None:
        mend = "give --data, or num_classes and image_shape in Python"
        raise Refused(f"{who} {spec}", expected="data to build it for", got="none", mend=mend)
    module = build(spec, num_classes=num_classes, image_shape=image_shape, seed=0)
    if weights is None and ":" not in spec:
        mend = f"give a run folder, or {_flag(who)} FILE"
        raise Refused(f"{who} {spec}", expected="a trained network", got="a name without weights", mend=mend)
    if weights is None:
        return Network(module.eval(), {}, spec)
    tensors, _ = open_weights(weights)
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != image_shape[0]:
            got = " ".join(map(str, values))
            raise Refused(f"{who} {weights}", expected=f"{image_shape[0]} numbers as {what}", got=got)
    cast = casts(module, tensors)
    module = load_foreign(module, tensors, image_shape[0], f"{who} {weights}", mean, std)
    return Network(module.eval(), {}, f"{spec} with {Path(weights).name}" + (f" ({cast})" if cast else ""))


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
            loaded = load_teacher(
                said,
                num_classes=validation.num_classes,
                image_shape=validation.image_shape,
                which=settings.teacher_which,
                weights=settings.teacher_weights.get(letter),
                mix=settings.teacher_mix,
            )
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
