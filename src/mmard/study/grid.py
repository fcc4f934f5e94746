"""Studies and scales as they are declared, and the grid of cells that follows from the two.

    scale    the data, the networks, the teachers, the recipe, the seeds and the attacks     declared/scales/*.toml
    study    which hosts, in which variants, from which teachers: the question               declared/studies/*.toml
    grid_of  rows (host x variant x teacher), a cell for each row and seed, the teachers' cells before them
    choose   the cells of some studies at a scale, or some of these cells

Methods are named in the files alone. A cell is a run with every setting said, the method's parameters included, so that
a default that changes later changes no cell. Its name ends in a hash of these settings: equal cells of two studies are
one run.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmard.attacks import UntargetedPGD
from mmard.balls import Budget
from mmard.errors import Refused, require, unknown
from mmard.evaluation.evaluate import Protocol
from mmard.job import complete
from mmard.methods import build, parameters
from mmard.models import MODELS
from mmard.names import read_network
from mmard.settings import MACHINE, TAUGHT, Settings, Value, as_published, refusal_of

MAIN = "main"
"""The teacher of a study that names none."""
ALL = "all"
CLASSES = 10
"""Of data that nobody has read yet."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
"""A part of the names of files and folders, so that none of them lies elsewhere."""


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
    param: str = Field(pattern=r"^[^.]+[.][^.]+$", description="By its full name, e.g. mmard.beta.")
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


Reads = Literal[
    "plug-and-play", "boundary", "ablation", "saturation", "benchmark", "trade-off", "sensitivity", "networks"
]
"""Ways in which records of a study are read; there is a table and a plot for each."""


class DeclaredComparison(_Declared):
    """Two hosts that a study is about, and in words what is between them."""

    host: str
    than: str
    says: str


class Study(_Declared):
    """A question, and the cells that answer it."""

    name: Name
    title: str
    question: str
    reads: Reads = Field(description="Which page of the results it is read by: the kind of its table and its plot.")
    hosts: tuple[str, ...]
    variants: dict[str, Variant] = {"plain": Variant()}
    sweeps: tuple[Sweep, ...] = ()
    teachers: tuple[str, ...] = (MAIN,)
    students: tuple[str, ...] = ()
    apart: tuple[str, ...] = Field(default=(), description="Teachers to show apart and to leave out of slopes.")
    compared: tuple[DeclaredComparison, ...] = Field(default=(), description="Differences to put into sentences.")
    boundary: bool = False
    on: dict[str, dict[str, Any]] = Field(default={}, description="What differs at a scale, by its name.")


class Scale(_Declared):
    """Where studies are done."""

    name: Name
    title: str
    says: str
    data_says: str
    caution: str = Field(default="", description="What is wrong with it, or what it cannot show.")
    seeds: tuple[int, ...] = Field(min_length=1)
    student: str
    attacks: tuple[str, ...]
    attack_images: int = Field(default=0, ge=0, description="Attack so many test images; 0 for all.")
    attack_from: int = Field(default=0, ge=0, description="Leave out the first so many test images.")
    which: Literal["best", "last"] = Field(default="best", description="Weights that tables and verdicts speak of.")
    every: dict[str, Any]
    teachers: dict[str, dict[str, Any]]
    order: tuple[str, ...] = Field(default=(), description="Studies in the order of what they tell; `all` means these.")
    minutes: dict[str, float] = Field(
        default={}, description="Planned minutes on the named machine, by study; from a model on paper, not measured."
    )
    minutes_on: str = ""
    published: bool = Field(default=True, description="Whether RESULTS.md is about it.")


def added() -> dict[str, Value]:
    """Settings, and parameters by full name, that are younger than some records, and what those were made with."""
    text = (resources.files("mmard") / "study" / "declared" / "added.toml").read_text(encoding="utf-8")
    found: dict[str, Value] = tomllib.loads(text)
    return found


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
    path: Any = Path(name)
    if path.suffix != ".toml":
        if str(name) not in names(kind):
            raise unknown(kind, str(name), names(kind))
        path = resources.files("mmard") / "study" / "declared" / kind / f"{name}.toml"
    try:
        return _checked(made, tomllib.loads(path.read_text(encoding="utf-8")), str(name))
    except OSError as error:
        raise Refused(str(path), expected="a file that declares one", got=str(error.strerror or error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(str(name), expected="TOML", got=str(error)) from None


def _checked(made: type[Kind], values: Mapping[str, Any], where: str) -> Kind:
    try:
        return made.model_validate(dict(values))
    except ValidationError as error:
        raise refusal_of(error, f"{where}: {'.'.join(map(str, error.errors()[0]['loc']))}") from None


@dataclass(frozen=True)
class Cell:
    """One network to train and to attack.

    Attributes:
        name: readable, and unlike that of any cell with other settings.
        settings: all of them; teachers are given by the names of their cells.
        teachers: names of cells, by the letter that formulas use; one that is given as a file is no cell.
        role: "" for a student, "teacher main" and the like for a teacher.
        scale: the name of the scale.
        attacks: of the evaluation.
        images: how many test images are attacked; 0 for all.
        boundary: whether its x' are held beside the boundaries of student and teacher.
        first: the first test image that is attacked, counted from 0; those before it are left out.
    """

    name: str
    settings: Settings
    teachers: dict[str, str]
    role: str
    scale: str
    attacks: tuple[str, ...]
    images: int = 0
    boundary: bool = False
    first: int = 0

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
    for label, variant in study.variants.items():
        for host in variant.hosts:
            if host not in study.hosts:
                raise unknown(f"host of variant {label} of study {study.name}", host, study.hosts)
    for host in (host for each in study.compared for host in (each.host, each.than)):
        if host not in study.hosts:
            raise unknown(f"host compared in study {study.name}", host, study.hosts)
    _refuse_attacks(study, scale)
    for teacher in study.teachers:
        if teacher not in scale.teachers:
            raise unknown(f"teacher of study {study.name} at scale {scale.name}", teacher, scale.teachers)
    for host in dict.fromkeys((*study.hosts, *(sweep.host for sweep in study.sweeps if sweep.host))):
        for student in study.students or (scale.student,):
            for label, variant, axis, value in _variants(study, host):
                spec = f"{host}+{variant.plugin}" if variant.plugin else host
                needs = build(spec, variant.params).teachers
                for teacher in study.teachers if needs else ("",):
                    roles = {letter: teacher if letter == "T" else _role_of(letter, scale) for letter in needs}
                    said = {**scale.every, **variant.settings, "method": spec, "params": variant.params}
                    names = []
                    for seed in seeds or scale.seeds:
                        cell = _student(
                            {**said, "seed": seed}, student, roles, scale, cells, study.boundary and bool(needs)
                        )
                        _add(cells, cell)
                        names.append(cell.name)
                    rows.append(Row(host, label, student, teacher, tuple(names), axis, value))
    return Grid(study, scale, tuple(rows), cells)


def _refuse_attacks(study: Study, scale: Scale) -> None:
    """Refuse attacks that would fail when all is trained."""
    settings = Settings.resolve({key: value for key, value in scale.every.items() if key not in TAUGHT})
    attacks = Protocol.read(scale.attacks, Budget(settings.eps, settings.norm), CLASSES).attacks
    kept = not study.boundary or any(isinstance(each, UntargetedPGD) for each in attacks)
    expected = f"one that hands out its examples, e.g. pgd-20, for study {study.name}, which looks at boundaries"
    require(kept, f"attacks of scale {scale.name}", expected=expected, got=", ".join(scale.attacks))


def together(grids: list[Grid]) -> dict[str, Cell]:
    """The cells of several studies of one scale, each once, every cell after its teachers."""
    cells: dict[str, Cell] = {}
    for cell in (cell for grid in grids for cell in grid.cells.values()):
        _add(cells, cell)
    return cells


def _add(cells: dict[str, Cell], cell: Cell) -> None:
    """Add a cell; of two that are equal, the one that is measured more."""
    if cell.name not in cells or cell.boundary:
        cells[cell.name] = cell


def _variants(study: Study, host: str) -> Iterator[tuple[str, Variant, str, Value | None]]:
    """(label, variant, axis, value) of a host's rows, but for teachers and students."""
    if host in study.hosts:
        for label, variant in study.variants.items():
            if not variant.hosts or host in variant.hosts:
                yield label, variant, "", None
    for sweep in study.sweeps:
        if host == sweep.host or (not sweep.host and host in study.hosts):
            for label, value in sweep.points():
                params = {**sweep.params, sweep.param: value}
                yield label, Variant(plugin=sweep.plugin, params=params), sweep.axis, value


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
    own = {key: value for key, value in scale.every.items() if key not in TAUGHT}
    settings = Settings.resolve({**own, "seed": 0, **said, "network": model})
    cell = _cell(settings, model, {}, scale, f"teacher {role}", False)
    cells.setdefault(cell.name, cell)
    return cell.name


def _student(
    said: Mapping[str, Any],
    network: str,
    roles: Mapping[str, str],
    scale: Scale,
    cells: dict[str, Cell],
    boundary: bool,
) -> Cell:
    if not roles:
        own = {key: value for key, value in said.items() if key not in TAUGHT}
        return _cell(Settings.resolve({**own, "network": network}), network, {}, scale, "", False)
    given = {letter: scale.teachers[role].get("given") for letter, role in roles.items()}
    made = {letter: _teacher(role, scale, cells) for letter, role in roles.items() if given[letter] is None}
    files = {letter: scale.teachers[role].get("weights") for letter, role in roles.items() if given[letter] is not None}
    for letter, file in files.items():
        where = f"scale {scale.name}: teachers.{roles[letter]}"
        require(isinstance(file, str), where, expected="a file of weights beside `given`", got=repr(file))
    each = {letter: made.get(letter) or given[letter] for letter in roles}
    settings = Settings.resolve({**said, "network": network, "teachers": each, "teacher_weights": files})
    return _cell(settings, network, made, scale, "", boundary)


def _cell(
    settings: Settings,
    network: str,
    teachers: dict[str, str],
    scale: Scale,
    role: str,
    boundary: bool,
) -> Cell:
    if ":" not in network:
        read_network(network, MODELS)
    settings = complete(settings)
    name = cell_name(settings, network, teachers, role)
    return Cell(
        name, settings, teachers, role, scale.name, scale.attacks, scale.attack_images, boundary, scale.attack_from
    )


def cell_name(settings: Settings, network: str, teachers: dict[str, str], role: str) -> str:
    """What a cell is called, from settings with every parameter said."""
    fields = type(settings).model_fields
    plain, as_before = settings.as_config(), added()
    plain["params"] = {key: value for key, value in plain["params"].items() if as_before.get(key) != value}
    kept = {
        key: value
        for key, value in plain.items()
        if key not in MACHINE and (key in ("method", "params") or value != as_before.get(key, fields[key].default))
    }
    text = json.dumps({**as_published(kept), "network": network, "teachers": teachers}, sort_keys=True)
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "_", role.replace(" ", "-") or f"{settings.method}-{network}")
    return f"{slug}-{settings.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Choice:
    """Cells that are meant.

    Attributes:
        scale: where.
        grids: of the studies, whole.
        cells: those that are meant, by name, each after its teachers.
    """

    scale: Scale
    grids: tuple[Grid, ...]
    cells: dict[str, Cell]

    @property
    def runs(self) -> Path:
        """Where they go if nothing else is said."""
        return Path("runs/study") / self.scale.name


def choose(
    studies: Sequence[str | Path], scale: str | Path | Scale, only: str = "", seeds: int | None = None
) -> Choice:
    """The cells of some studies.

    Args:
        studies: names, files, or "all" for those that the scale puts in an order.
        scale: a name, a file, or one that is loaded.
        only: leave out cells that have this text neither in their name nor in the host, variant or student of their
            row; teachers of those that stay, stay.
        seeds: the first so many of the scale's.

    Raises:
        Refused: for unknown names, and where nothing is left.
    """
    where = scale if isinstance(scale, Scale) else load_scale(scale)
    require(seeds is None or seeds >= 1, "seeds", expected="at least 1", got=seeds)
    chosen = list(studies)
    if ALL in chosen:
        chosen = [*(where.order or names("studies")), *(each for each in chosen if each != ALL)]
    few = where.seeds[: seeds or len(where.seeds)]
    grids = tuple(grid_of(load_study(name, where), where, few) for name in dict.fromkeys(chosen))
    cells = together(list(grids))
    if only:
        kept = {
            name
            for g in grids
            for row in g.rows
            for name in row.cells
            if _says(only, name, row.host, row.variant, row.student)
        }
        kept |= {name for name in cells if _says(only, name)}
        cells = with_teachers(kept, cells)
        if not cells:
            raise Refused("--only", expected="a part of a cell's name, host, variant or student", got=repr(only))
    return Choice(where, grids, cells)


def with_teachers(kept: Iterable[str], cells: dict[str, Cell]) -> dict[str, Cell]:
    """These cells, their teachers, and the teachers of those, in the order that they have."""
    needed, asked = set[str](), list(kept)
    while asked:
        name = asked.pop()
        if name not in needed:
            needed.add(name)
            asked += cells[name].teachers.values()
    return {name: cell for name, cell in cells.items() if name in needed}


def _says(text: str, *where: str) -> bool:
    return any(text.lower() in each.lower() for each in where)
