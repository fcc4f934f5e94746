"""What a study and a scale declare, and the grid of cells that follows from the two.

    scale    the data, the networks, the teachers, the recipe, the seeds and the attacks     declared/scales/*.toml
    study    which hosts, in which variants, from which teachers: the question                declared/studies/*.toml
    grid_of  rows (host x variant x teacher), a cell for each row and seed, the teachers' cells before them

A cell is a run with every setting said, the method's parameters included, so that a default that changes later changes
no cell. Its name ends in a hash of these settings: equal cells of two studies are one run. Methods are named in the
declarations alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmard.config import DistillSettings, Settings, TrainSettings, Value
from mmard.errors import Refused, unknown
from mmard.methods import build, parameters

MACHINE = {"data_dir", "on_disk", "device", "threads", "save_seconds", "tensorboard", "attack_chunk", "teacher_table"}
"""Settings that do not belong to what is studied; two cells that differ in them alone are one."""
OF_STUDENTS = set(DistillSettings.model_fields) - set(TrainSettings.model_fields)
MAIN = "main"
"""The teacher of a study that names none."""


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Declared):
    """What is done to a host: a plug-in, parameters, settings."""

    plugin: str = ""
    params: dict[str, Value] = {}
    settings: dict[str, Any] = {}


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


class Study(_Declared):
    """A question, and the cells that answer it."""

    name: str
    title: str
    question: str
    reads: str = Field(description="Which page of the results it is read by: the kind of its table and its plot.")
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
    every: dict[str, Any]
    teachers: dict[str, dict[str, Any]]
    order: tuple[str, ...] = Field(default=(), description="Studies in the order of what they tell; `all` means these.")
    minutes: dict[str, float] = Field(
        default={}, description="Planned minutes on the named machine, by study; from a model on paper, not measured."
    )
    minutes_on: str = ""


@dataclass(frozen=True)
class Cell:
    """One network to train and to attack.

    Attributes:
        name: readable, and unlike that of any cell with other settings.
        settings: all of them; teachers are given by the names of their cells.
        teachers: names of cells, by the letter that formulas use.
        role: "" for a student, "teacher main" and the like for a teacher.
        scale: the name of the scale.
        attacks: of the evaluation.
        images: how many test images are attacked; 0 for all.
        boundary: whether its x' are held beside the boundaries of student and teacher.
    """

    name: str
    settings: TrainSettings | DistillSettings
    teachers: dict[str, str]
    role: str
    scale: str
    attacks: tuple[str, ...]
    images: int = 0
    boundary: bool = False

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.settings.seed


@dataclass(frozen=True)
class Row:
    """One line of a study's table: cells that differ in their seed alone.

    Attributes:
        host: method without the variant's plug-in, e.g. the half before "+".
        variant: name of the variant; for a point of a sweep, its axis and value.
        student: network.
        teacher: role of the robust teacher; "" for a method without one.
        axis, value: of a sweep; "" and None otherwise.
        cells: names, in the order of the scale's seeds.
    """

    host: str
    variant: str
    student: str
    teacher: str
    cells: tuple[str, ...]
    axis: str = ""
    value: Value | None = None


@dataclass(frozen=True)
class Grid:
    """A study at a scale.

    Attributes:
        cells: by name; every cell comes after its teachers.
    """

    study: Study
    scale: Scale
    rows: tuple[Row, ...]
    cells: dict[str, Cell]


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


def grid_of(study: Study, scale: Scale, seeds: tuple[int, ...] = ()) -> Grid:
    """The cells of a study.

    Args:
        study: as `load_study` gives it for this scale.
        scale: where.
        seeds: other seeds than the scale's.

    Raises:
        Refused: for a method, a parameter, a setting or a teacher that there is not.
    """
    rows: list[Row] = []
    cells: dict[str, Cell] = {}
    for teacher in study.teachers:
        if teacher not in scale.teachers:
            raise unknown(f"teacher of study {study.name} at scale {scale.name}", teacher, scale.teachers)
    for host, label, variant, axis, value in _variants(study):
        spec = f"{host}+{variant.plugin}" if variant.plugin else host
        needs = build(spec, variant.params).teachers
        for student in study.students or (scale.student,):
            for teacher in study.teachers if needs else ("",):
                found = []
                for seed in seeds or scale.seeds:
                    given = {letter: teacher if letter == "T" else _role_of(letter, scale) for letter in needs}
                    makers = {letter: _teacher(role, scale, cells) for letter, role in given.items()}
                    said = {**scale.every, **variant.settings, "method": spec, "params": variant.params, "seed": seed}
                    cell = _cell(said, student, makers, scale, "", study.boundary and bool(needs))
                    known = cells.get(cell.name)
                    cells[cell.name] = cell if known is None or cell.boundary else known
                    found.append(cell.name)
                rows.append(Row(host, label, student, teacher, tuple(found), axis, value))
    return Grid(study, scale, tuple(rows), cells)


def together(grids: list[Grid]) -> dict[str, Cell]:
    """The cells of several studies of one scale, each once, every cell after its teachers."""
    cells: dict[str, Cell] = {}
    for grid in grids:
        for name, cell in grid.cells.items():
            if name not in cells or cell.boundary:
                cells[name] = cell
    return cells


def _variants(study: Study) -> Iterator[tuple[str, str, Variant, str, Value | None]]:
    """(host, label, variant, axis, value) of every row but for teachers and students."""
    for host in study.hosts:
        for label, variant in study.variants.items():
            yield host, label, variant, "", None
    for sweep in study.sweeps:
        for host in (sweep.host,) if sweep.host else study.hosts:
            for label, value in sweep.points():
                params = {**sweep.params, sweep.param: value}
                yield host, label, Variant(plugin=sweep.plugin, params=params), sweep.axis, value


def _role_of(letter: str, scale: Scale) -> str:
    """Which teacher of the scale is meant by a letter other than T: the one that says so."""
    for role, said in scale.teachers.items():
        if said.get("letter") == letter:
            return role
    raise Refused(f"scale {scale.name}", expected=f"a teacher with letter = {letter!r}", got="none")


def _teacher(role: str, scale: Scale, cells: dict[str, Cell]) -> str:
    """The cell of a teacher, made if need be."""
    said = {key: value for key, value in scale.teachers[role].items() if key not in ("title", "letter")}
    model = said.pop("model", scale.student)
    cell = _cell({**scale.every, "seed": 0, **said}, model, {}, scale, f"teacher {role}", False)
    cells.setdefault(cell.name, cell)
    return cell.name


def _cell(
    said: Mapping[str, Any], network: str, teachers: dict[str, str], scale: Scale, role: str, boundary: bool
) -> Cell:
    settings: TrainSettings | DistillSettings
    if teachers:
        given = teachers["T"] if list(teachers) == ["T"] else teachers
        settings = DistillSettings.resolve({**said, "student": network, "teacher": given})
    else:  # what a scale says for students with a teacher is not for a network without one
        own = {key: value for key, value in said.items() if key not in OF_STUDENTS}
        settings = TrainSettings.resolve({**own, "model": network})
    settings = settings.model_copy(update={"params": _all_parameters(settings)})
    name = _name(settings, network, teachers, role)
    return Cell(name, settings, teachers, role, scale.name, scale.attacks, scale.attack_images, boundary)


def _all_parameters(settings: Settings) -> dict[str, Value]:
    """Every parameter of the method and its plug-ins, the defaults said."""
    parts = [
        part.strip() for spec in (settings.method, settings.inner, settings.outer) if spec for part in spec.split("+")
    ]
    defaults = {f"{part}.{own}": each.default for part in parts for own, each in parameters(part).items()}
    return {**defaults, **settings.params}


def _name(settings: Settings, network: str, teachers: dict[str, str], role: str) -> str:
    fields = type(settings).model_fields
    plain = settings.as_config()
    kept = {
        key: value
        for key, value in plain.items()
        if key not in MACHINE and (key in ("method", "params") or value != fields[key].default)
    }
    text = json.dumps({**kept, "network": network, "teachers": teachers}, sort_keys=True)
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "_", role.replace(" ", "-") or f"{settings.method}-{network}")
    return f"{slug}-{settings.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


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
