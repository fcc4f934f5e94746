"""What a study and a scale declare.

    scale    the data, the networks, the teachers, the recipe, the seeds and the attacks     declared/scales/*.toml
    study    which hosts, in which variants, from which teachers: the question                declared/studies/*.toml

Methods are named in these files alone. What follows from the two is in `grid.py`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmard.config import Value
from mmard.errors import Refused, unknown
from mmard.methods import parameters

MAIN = "main"
"""The teacher of a study that names none."""


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Declared):
    """What is done to a host: a plug-in, parameters, settings. With `hosts`, to those of the study alone."""

    plugin: str = ""
    params: dict[str, Value] = {}
    settings: dict[str, Any] = {}
    hosts: tuple[str, ...] = ()


class Sweep(_Declared):
    """A parameter along which variants lie, on each of the study's hosts with `plugin`.

    With `factor`, the values are the default divided and multiplied by it; `share` does so with the odds of a weight
    between 0 and 1.
    """

    axis: str
    param: str
    values: tuple[Value, ...] = ()
    factor: float = 0.0
    share: bool = False
    plugin: str = ""
    host: str = ""
    params: dict[str, Value] = {}

    def points(self) -> Iterator[tuple[str, Value]]:
        """(label, value), the default left out."""
        if not self.factor:
            yield from ((f"{self.axis} {_short(value)}", value) for value in self.values)
            return
        owner, own = self.param.split(".", 1)
        default = float(parameters(owner)[own].default)
        for sign, power in (("/", -1.0), ("x", 1.0)):
            times = self.factor**power
            odds = default / (1 - default) * times if self.share else 0.0
            value = odds / (1 + odds) if self.share else default * times
            yield f"{self.axis} {sign}{self.factor:g}", float(f"{value:.4g}")


Reads = Literal["plug-and-play", "boundary", "ablation", "saturation", "benchmark", "trade-off", "sensitivity"]
"""Ways in which records of a study are read; there is a table and a plot for each."""


class Study(_Declared):
    """A question, and the cells that answer it."""

    name: str
    title: str
    question: str
    reads: Reads = Field(description="Which page of the results it is read by: the kind of its table and its plot.")
    hosts: tuple[str, ...]
    variants: dict[str, Variant] = {"plain": Variant()}
    sweeps: tuple[Sweep, ...] = ()
    teachers: tuple[str, ...] = (MAIN,)
    students: tuple[str, ...] = ()
    apart: tuple[str, ...] = Field(default=(), description="Teachers to show apart and to leave out of slopes.")
    boundary: bool = False
    on: dict[str, dict[str, Any]] = Field(default={}, description="What differs at a scale, by its name.")


class Scale(_Declared):
    """Where studies are done."""

    name: str
    title: str
    says: str
    data_says: str
    seeds: tuple[int, ...]
    student: str
    attacks: tuple[str, ...]
    attack_images: int = Field(default=0, description="Attack the first so many test images; 0 for all.")
    which: Literal["best", "last"] = Field(default="best", description="Weights that tables and verdicts speak of.")
    every: dict[str, Any]
    teachers: dict[str, dict[str, Any]]
    order: tuple[str, ...] = Field(default=(), description="Studies in the order of what they tell; `all` means these.")
    minutes: dict[str, float] = Field(
        default={}, description="Planned minutes on the named machine, by study; from a model on paper, not measured."
    )
    minutes_on: str = ""


def names(kind: str) -> list[str]:
    """What is declared here: kind "studies" or "scales"."""
    folder = resources.files("mmard") / "study" / "declared" / kind
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_scale(name: str | Path) -> Scale:
    """A scale by name, or from a file of one's own.

    Raises:
        Refused: for an unknown name, or a file that does not declare a scale.
    """
    return _load("scales", Scale, name)


def load_study(name: str | Path, scale: Scale | None = None) -> Study:
    """A study by name, or from a file of one's own, as it is done at a scale.

    Raises:
        Refused: for an unknown name, or a file that does not declare a study.
    """
    study = _load("studies", Study, name)
    if scale is None or scale.name not in study.on:
        return study
    return _checked(Study, {**study.model_dump(), **study.on[scale.name]}, f"study {study.name} at {scale.name}")


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float | int) and not isinstance(value, bool) else str(value)


Kind = TypeVar("Kind", Study, Scale)


def _load(kind: str, made: type[Kind], name: str | Path) -> Kind:
    path = Path(name)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise Refused(str(path), expected="a file that declares one", got=str(error.strerror or error)) from None
    else:
        if str(name) not in names(kind):
            raise unknown(kind, str(name), names(kind))
        text = (resources.files("mmard") / "study" / "declared" / kind / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return _checked(made, tomllib.loads(text), str(name))
    except tomllib.TOMLDecodeError as error:
        raise Refused(str(name), expected="TOML", got=str(error)) from None


def _checked(made: type[Kind], values: Mapping[str, Any], where: str) -> Kind:
    try:
        return made.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise Refused(f"{where}: {at}", expected=first["msg"], got=repr(first["input"])) from None
