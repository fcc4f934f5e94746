"""`mmard study list`, `status`, `records` and `rerun`: what is shown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from mmard.cli.output import INTERRUPTED, busy, commands, complain, console, line, put, table
from mmard.cli.studying import Asked, expectation
from mmard.words import duration, percent, plural

if TYPE_CHECKING:
    from mmard.study.records import Difference, Repeated

MOST = 12
"""Cells, or differences, that are listed one by one."""


def show_list() -> None:
    """Every study and every scale."""
    with busy("reading what is declared"):
        from mmard.study.declared import load_scale, load_study, names
        from mmard.study.grid import grid_of

        scales = [load_scale(name) for name in names("scales")]
        studies = names("studies")
        order = [*dict.fromkeys([*(name for scale in scales for name in scale.order), *studies])]
        counts = {
            (name, scale.name): len(grid_of(load_study(name, scale), scale).cells) if name in scale.order else None
            for name in order
            for scale in scales
        }
    out = console()
    rows = table("study", "what it asks", "cells at each scale", fold=("what it asks", "cells at each scale"))
    for name in order:
        cells = {scale.name: counts[name, scale.name] for scale in scales}
        said = ", ".join(f"{scale} {n}" for scale, n in cells.items() if n is not None)
        rows.add_row(Text(name, "command"), load_study(name).question, said)
    line(out, "studies", "strong")
    put(out, rows)
    out.print()
    line(out, "scales", "strong")
    rows = table("scale", "what it is", "how long", fold=("what it is", "how long"))
    for scale in scales:
        rows.add_row(Text(scale.name, "command"), f"{scale.title}. {scale.data_says}", scale.says)
    put(out, rows)
    commands(out, "next", ["mmard study run all --scale S --dry-run"])


def show_status(asked: Asked, device: str, as_json: bool) -> None:
    """How far the cells of some studies are."""
    with busy("looking at run folders"):
        from dataclasses import replace

        from mmard.study.expecting import hours_used
        from mmard.study.standing import STATES, standings

        choice = asked.choice()
        place = replace(asked.place(choice), device=device)
        stood = standings(choice.cells, place)
        left = {name: cell for name, cell in choice.cells.items() if stood[name].state != "done"}
        known = expectation(choice, stood, place) if left else None
        expected = {name: known.seconds(cell) * (1 - stood[name].share) for name, cell in left.items()} if known else {}
    if as_json:
        found = {name: {"state": each.state, "share": each.share, "why": each.why} for name, each in stood.items()}
        print(json.dumps(found, indent=2))
        return
    out = console()
    line(out, f"scale {choice.scale.name}, in {place.runs}", "strong")
    heads = ["cells", *STATES, "hours used", "hours left"]
    rows = table("study", *heads, right=heads)
    grids = [(grid.study.name, [name for name in grid.cells if name in stood]) for grid in choice.grids]
    if len(grids) > 1:
        grids.append(("together", list(stood)))
    for title, cells in grids:
        states = [stood[name].state for name in cells]
        used = hours_used(record for name in cells if (record := stood[name].record) is not None)
        rest = sum(expected.get(name, 0.0) for name in cells) / 3600
        counts = [str(states.count(state) or "") for state in STATES]
        rows.add_row(title, str(len(cells)), *counts, f"{used:.2f}", f"{rest:.2f}" if rest else "")
    put(out, rows)
    if len(grids) > 1:
        line(out, "A cell that several studies need is counted in each, and once in the last line.", "quiet")
    _show_cells(
        out, {n: f"{percent(s.share)} of its epochs" for n, s in stood.items() if s.state == "running"}, "running"
    )
    _show_cells(out, {name: each.why for name, each in stood.items() if each.state == "failed"}, "failed")
    if left:
        commands(out, "go on with", [f"mmard study run {asked.words}"])


def _show_cells(out: Console, cells: dict[str, str], title: str) -> None:
    if not cells:
        return
    out.print()
    line(out, title, "strong")
    for name, says in list(cells.items())[:MOST]:
        line(out, f"  {name}: {says}")
    if len(cells) > MOST:
        line(out, f"  and {len(cells) - MOST} more")


def gather_records(asked: Asked, out: Path) -> None:
    """Write the records of finished cells into a file, among those that it has."""
    from mmard.study.records import collect, merged, read, write

    choice = asked.choice()
    found = collect(asked.place(choice).runs, choice.cells)
    both = merged(read(out) if out.is_file() else {}, found)
    write(out, both.records)
    screen = console()
    said = f"{plural(len(found), 'record')} of {plural(len(choice.cells), 'cell')}; {len(both.added):,} new in {out}"
    line(screen, f"{said}, which has {len(both.records):,}.")
    for name in both.changed:
        complain(f"{name}: a figure or its weights changed; the later record was taken")


def rerun_cell(cell: str, records: Path, runs: Path, device: str, data_dir: str | None, as_json: bool) -> None:
    """Make a recorded cell again, and say what is not the same.

    Raises:
        typer.Exit: with 1 where something is not, with 130 when the user stopped it.
    """
    with busy("reading the records"):
        from mmard.study.place import Place
        from mmard.study.records import read, repeat
        from mmard.training.fit import Interrupted

        held = read(records)
    try:
        with busy(f"making {cell}"):
            found = repeat(cell, held, Place(runs, data_dir, device))
    except (Interrupted, KeyboardInterrupt):
        complain("saved; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps({"cell": cell, "same": found.same, "differences": _plain(found)}, indent=2))
    else:
        _show_repeated(cell, found)
    if not found.same:
        raise typer.Exit(1)


def _plain(found: Repeated) -> dict[str, list[dict[str, Any]]]:
    each = {found.recorded["cell"]: found.differences, **found.teachers}
    return {name: [asdict(difference) for difference in own] for name, own in each.items()}


def _show_repeated(cell: str, found: Repeated) -> None:
    out = console()
    rows = table("weights", "figure", "recorded", "again", right=("recorded", "again"))
    for which, own in found.recorded["figures"].items():
        for name, figure in own.items():
            again = found.again["figures"].get(which, {}).get(name)
            now = "missing" if again is None else percent(again["accuracy"])
            rows.add_row(which, name, percent(figure["accuracy"]), now)
    put(out, rows)
    out.print()
    spent = sum(found.again["seconds"][part] for part in ("train", "evaluate"))
    for teacher, differ in found.teachers.items():
        if differ:
            line(out, f"Its teacher {teacher} is not the same: {_first(differ)}")
    if found.same:
        line(out, f"{cell}: weights and figures are the same to the bit, in {duration(spent)}.", "good")
        return
    line(out, f"{cell}: {plural(len(found.differences), 'difference')}.", "strong")
    for each in found.differences[:MOST]:
        line(out, f"  {each.where}: {_short(each.recorded)} recorded, {_short(each.again)} again")
    if len(found.differences) > MOST:
        line(out, f"  and {len(found.differences) - MOST} more")
    for name in ("mmard", "commit", "cpu", "threads", "python", "versions", "gpus"):
        then, now = (record["environment"].get(name) for record in (found.recorded, found.again))
        if then != now:
            line(out, f"  {name} was {_short(then)}, is {_short(now)}", "quiet")


def _first(differ: list[Difference]) -> str:
    return f"{differ[0].where}, and {len(differ) - 1} more" if len(differ) > 1 else differ[0].where


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
