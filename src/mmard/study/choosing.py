"""Which cells are meant: studies by name, at a scale, all of their cells or some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmard.errors import Refused, require
from mmard.study.declared import Scale, load_scale, load_study, names
from mmard.study.grid import Cell, Grid, grid_of, together

ALL = "all"


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


def choose(studies: Sequence[str | Path], scale: str | Path, only: str = "", seeds: int | None = None) -> Choice:
    """The cells of some studies.

    Args:
        studies: names, files, or "all" for those that the scale puts in an order.
        scale: a name or a file.
        only: leave out cells that have this text neither in their name nor in the host, variant or student of their
            row; teachers of those that stay, stay.
        seeds: the first so many of the scale's.

    Raises:
        Refused: for unknown names, and where nothing is left.
    """
    where = load_scale(scale)
    require(seeds is None or seeds >= 1, "seeds", expected="at least 1", got=seeds)
    wanted = list(studies)
    if ALL in wanted:
        wanted = [*(where.order or names("studies")), *(each for each in wanted if each != ALL)]
    few = where.seeds[: seeds or len(where.seeds)]
    grids = tuple(grid_of(load_study(name, where), where, few) for name in dict.fromkeys(wanted))
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
    wanted, asked = set[str](), list(kept)
    while asked:
        name = asked.pop()
        if name not in wanted:
            wanted.add(name)
            asked += cells[name].teachers.values()
    return {name: cell for name, cell in cells.items() if name in wanted}


def _says(text: str, *where: str) -> bool:
    return any(text.lower() in each.lower() for each in where)
