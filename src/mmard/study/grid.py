"""The grid of cells that follows from a study and a scale.

    grid_of  rows (host x variant x teacher), a cell for each row and seed, the teachers' cells before them

A cell is a run with every setting said, the method's parameters included, so that a default that changes later changes
no cell. Its name ends in a hash of these settings: equal cells of two studies are one run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmard.config import DistillSettings, Settings, TrainSettings, Value
from mmard.errors import Refused, unknown
from mmard.job import complete
from mmard.methods import build
from mmard.study.declared import Scale, Study, Variant

MACHINE = {"data_dir", "on_disk", "device", "threads", "save_seconds", "tensorboard", "attack_chunk", "teacher_table"}
"""Settings that do not belong to what is studied; two cells that differ in them alone are one."""
OF_STUDENTS = set(DistillSettings.model_fields) - set(TrainSettings.model_fields)


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
    for teacher in study.teachers:
        if teacher not in scale.teachers:
            raise unknown(f"teacher of study {study.name} at scale {scale.name}", teacher, scale.teachers)
    for host in dict.fromkeys((*study.hosts, *(sweep.host for sweep in study.sweeps if sweep.host))):
        for student in study.students or (scale.student,):
            for label, variant, axis, value in _variants(study, host):
                spec = f"{host}+{variant.plugin}" if variant.plugin else host
                needs = build(spec, variant.params).teachers
                for teacher in study.teachers if needs else ("",):
                    found = []
                    for seed in seeds or scale.seeds:
                        roles = {letter: teacher if letter == "T" else _role_of(letter, scale) for letter in needs}
                        said = {
                            **scale.every,
                            **variant.settings,
                            "method": spec,
                            "params": variant.params,
                            "seed": seed,
                        }
                        cell = _student(said, student, roles, scale, cells, study.boundary and bool(needs))
                        found.append(cell.name)
                        if cell.name not in cells or cell.boundary:
                            cells[cell.name] = cell
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
    own = {key: value for key, value in scale.every.items() if key not in OF_STUDENTS}
    settings = TrainSettings.resolve({**own, "seed": 0, **said, "model": model})
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
        own = {key: value for key, value in said.items() if key not in OF_STUDENTS}
        return _cell(TrainSettings.resolve({**own, "model": network}), network, {}, scale, "", False)
    given = {letter: scale.teachers[role].get("given") for letter, role in roles.items()}
    made = {letter: _teacher(role, scale, cells) for letter, role in roles.items() if given[letter] is None}
    files = {letter: scale.teachers[role]["weights"] for letter, role in roles.items() if given[letter] is not None}
    each = {letter: made.get(letter) or given[letter] for letter in roles}
    settings = DistillSettings.resolve(
        {
            **said,
            "student": network,
            "teacher": each["T"] if list(each) == ["T"] else each,
            "teacher_weights": files["T"] if list(files) == ["T"] else files or None,
        }
    )
    return _cell(settings, network, made, scale, "", boundary)


def _cell(
    settings: TrainSettings | DistillSettings,
    network: str,
    teachers: dict[str, str],
    scale: Scale,
    role: str,
    boundary: bool,
) -> Cell:
    settings = complete(settings)
    name = _name(settings, network, teachers, role)
    return Cell(name, settings, teachers, role, scale.name, scale.attacks, scale.attack_images, boundary)


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
