"""Teachers of other people, by name: `robustbench:NAME`, or `robustbench:cifar100/NAME` where two data sets have it.

`teachers.json` has what was read about each: network, normalisation, claimed accuracy, paper, licence, where its
weights live, and where each of these was read. The weights themselves are a file of the user's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmard.errors import Refused, unknown
from mmard.words import radius

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "robustbench:"
SHAPE = (3, 32, 32)
CLASSES = {"cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Teacher:
    """What is known about a network of somebody else.

    Attributes:
        name: as RobustBench calls it.
        data: the data set that it was trained on.
        network: the name of its architecture here.
        mean, std: what it standardises its input with, per channel in input units; None where it reads [0, 1].
        clean: claimed accuracy on the 10,000 test images, a fraction.
        robust: claimed accuracy on them under AutoAttack, linf, at `eps`.
        lowest: a lower figure by another evaluation, where its record has one.
        extra_data: what it was trained on beside the data set's own images.
        quirks: what its file has that others have not.
        drop: beginnings of keys in its file that no forward reads.
        key: which weights of its file are meant, where it has several.
        paper, link: title, and where it is.
        drive: id of the file on Google Drive; None where none was read.
        licence: of the weights.
        read: where figures, network and drive were read, by the keys of `sources`.
    """

    name: str
    data: str
    network: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    clean: float
    robust: float
    eps: float
    paper: str
    link: str
    drive: str | None
    licence: str
    read: Mapping[str, str | None]
    lowest: float | None = None
    extra_data: str = ""
    quirks: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    key: str = ""

    @property
    def spec(self) -> str:
        """How it is named where a teacher is wanted."""
        return PREFIX + (f"{self.data}/{self.name}" if len(_named(self.name)) > 1 else self.name)

    @property
    def address(self) -> str:
        """Where a person gets its file in a browser; empty where that is not known."""
        return f"https://drive.google.com/uc?id={self.drive}" if self.drive else ""

    @property
    def num_classes(self) -> int:
        """Classes of its data."""
        return CLASSES[self.data]

    @property
    def claim(self) -> dict[str, Any]:
        """What a gate holds it to, as JSON has it."""
        return {"by": f"RobustBench, {self.name}", "data": self.data, "split": "test", "clean": self.clean}

    def load(self, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
        """Its network with these weights in it, images (B, 3, 32, 32) in [0, 1] to logits.

        Raises:
            Refused: unless every tensor has its place; the message names the network that the tensors are of.
        """
        from mmard.deploy.layouts import load_foreign
        from mmard.models import build

        module = build(self.network, num_classes=self.num_classes, image_shape=SHAPE, seed=0)
        known: dict[str, Any] = {"registered": True, "drop": self.drop}
        return load_foreign(module, tensors, SHAPE[0], where, self.mean, self.std, **known)


@cache
def teachers() -> tuple[Teacher, ...]:
    """All that are known, by data set and then by claimed robust accuracy.

    >>> teachers()[0].name, len(teachers()) >= 60
    ('Bartoldson2024Adversarial_WRN-94-16', True)
    """
    made = []
    for entry in _file()["teachers"]:
        facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        made.append(Teacher(**facts | {"eps": radius(entry["eps"])}))
    return tuple(made)


def sources() -> dict[str, str]:
    """Where facts were read, by the short names that `Teacher.read` has."""
    return dict(_file()["read"])


def is_teacher(spec: str) -> bool:
    """Whether a spec names a teacher of this table."""
    return spec.lower().startswith(PREFIX)


def without_prefix(spec: str) -> str | None:
    """How the teacher is spelt whose bare name this is; None for any other text.

    >>> without_prefix("zhang2019theoretically"), without_prefix("resnet18")
    ('robustbench:Zhang2019Theoretically', None)
    """
    data, _, name = spec.rpartition("/")
    return next((PREFIX + (f"{data}/" if data else "") + t.name for t in _named(name) if data in ("", t.data)), None)


def find(spec: str, num_classes: int | None = None) -> tuple[Teacher, ...]:
    """The teachers that a spec may mean: one, or one for each data set that has a teacher of this name.

    >>> [t.data for t in find("robustbench:Chen2021LTD_WRN34_10")]
    ['cifar10', 'cifar100']
    >>> find("robustbench:cifar100/Chen2021LTD_WRN34_10")[0].clean
    0.6407

    Args:
        num_classes: of the data that it is wanted for; leaves those of other data out.

    Raises:
        Refused: for a name that is none, or one for other data.
    """
    bare = spec[len(PREFIX) :] if is_teacher(spec) else spec
    data, slash, name = bare.rpartition("/")
    found = [t for t in _named(name) if not slash or t.data == data]
    if not found:
        there = [t for t in teachers() if not slash or t.data == data]
        names = list(dict.fromkeys(t.name for t in there))
        near = _holding(name, there) or unknown("teacher", name, names).mend
        expected = f"one of the {len(teachers())} that `mmard teachers` lists"
        raise Refused(f"teacher {spec}", expected=expected, got=repr(bare), mend=near)
    fitting = [t for t in found if num_classes in (None, t.num_classes)]
    if not fitting:
        got = f"one for {' and '.join(t.data for t in found)}"
        raise Refused(f"teacher {spec}", expected=f"{num_classes} classes, as the data has", got=got)
    return tuple(fitting)


def open_teacher(spec: str, weights: str | Path | None, num_classes: int | None = None) -> tuple[Teacher, nn.Module]:
    """A teacher of this table with the weights of a file, opened tensors-only.

    Where two data sets have a teacher of this name and nothing says which, the file's number of classes does.

    Raises:
        Refused: for an unknown name, no file, or a file that is not this teacher's.
    """
    from mmard.deploy.checkpoints import open_weights
    from mmard.deploy.layouts import classes_in

    found = find(spec, num_classes)
    if weights is None:
        mend = "give --teacher-weights FILE" + (
            f"; mmard fetch {found[0].spec} --data-dir D brings it" if found[0].drive else f"; see {found[0].link}"
        )
        raise Refused(f"teacher {spec}", expected="a file of its weights", got="none", mend=mend)
    tensors, _ = open_weights(weights, found[0].key)
    classes = classes_in(tensors)
    teacher = next((t for t in found if t.num_classes == classes), found[0])
    return teacher, teacher.load(tensors, f"teacher {teacher.spec}, file {weights}")


def _holding(text: str, there: Sequence[Teacher]) -> str:
    """Which teachers have this text at the beginning of their names, else in them, else in their network's name."""
    looks: tuple[Callable[[Teacher], bool], ...] = (
        lambda t: t.name.lower().startswith(text.lower()),
        lambda t: text.lower() in t.name.lower(),
        lambda t: t.network.startswith(text.lower()),
        lambda t: text.lower() in t.network,
    )
    for look in looks if text else ():
        found = list(dict.fromkeys(t.name for t in there if look(t)))
        if found:
            more = f" or one of {len(found) - 4} more" if len(found) > 4 else ""
            return f"did you mean {' or '.join(found[:4])}{more}?"
    return ""


def _named(name: str) -> list[Teacher]:
    return [t for t in teachers() if t.name.lower() == name.lower()]


@cache
def _file() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((resources.files("mmard") / "teachers.json").read_text(encoding="utf-8"))
    return found
