"""Lines as nobody should type them: each option of each command with values that it cannot take."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.commands import Case, fault, mmard
from campaign.home import SMALL, copy_of

BASE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train",): (*SMALL, "--model", "cnn-2", "--epochs", "1", "--dry-run"),
    ("distill",): (
        *SMALL,
        "--student",
        "cnn-2",
        "--teacher",
        "t",
        "--teacher-gate",
        "off",
        "--epochs",
        "1",
        "--dry-run",
    ),
    ("evaluate",): ("s", "--attack", "pgd-1", "--first", "5"),
    ("show",): ("s",),
    ("compare",): ("s", "t"),
    ("transfer",): ("s", "t", "--attack", "pgd-1", "--first", "5"),
    ("report",): ("s", "--out", "r.html"),
    ("methods",): (),
    ("attacks",): (),
    ("models",): (),
    ("teachers",): (),
    ("data",): (),
    ("export",): ("s", "--to", "s.onnx", "--first", "5", "--attack", "none"),
    ("push",): ("s", "ada/x", "--to", "new"),
    ("pull",): ("shared", "--to", "new"),
    ("fetch",): ("nothing",),
    ("study", "list"): (),
    ("study", "status"): ("all", "--scale", "S"),
    ("study", "run"): ("nothing", "--scale", "S"),
    ("study", "table"): ("nothing", "--scale", "S"),
    ("study", "ledger"): ("--check",),
}
NUMBERS = ("-1", "nan", "inf", "1e308", "9" * 40, "abc", "", "1,5", "0x10", "½", "--", "8/0")
WORDS = (
    "",
    " ",
    "\x1b[31mred",
    "../../../x",
    "é\u202e",
    "a" * 5000,
    "nope",
    "-",
    "[bold]x",
    "%s%n",
    "a\nb",
    "os:abort",
    "{0}",
)
HARMLESS = {"--dry-run", "--help", "--version"}
TOO_LONG = {"--processes", "--jobs", "--steps", "--epochs", "--batch-size", "--first", "--limit-train", "--threads"}


def _options(program: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each option of each command that has a base line."""
    for name, command in program.commands.items():
        if hasattr(command, "commands"):
            yield from _options(command, (*path, name))
        elif (*path, name) in BASE:
            for each in command.params:
                if each.opts[0].startswith("--") and each.opts[0] not in HARMLESS:
                    yield (*path, name), each


def _trial(home: Path, line: tuple[str, ...], must_refuse: bool) -> Callable[[Path], str | None]:
    def run(folder: Path) -> str | None:
        copy_of(home, folder, "s", "t", "shared")
        done = mmard(*line, cwd=folder, limit=60)
        return fault(done, may=(2,) if must_refuse else (0, 2))

    return run


def cases(home: Path, rng: random.Random, work: Path) -> Iterator[Case]:
    import typer

    from mmard.cli import commands

    options = list(_options(typer.main.get_command(commands())))
    for path, option in options:
        base, flag = (*path, *BASE[path]), option.opts[0]
        if getattr(option, "is_flag", False):
            yield _case(home, (*base, flag, flag), False)
            continue
        annotation = str(option.type_descriptor.annotation)
        number = "int" in annotation or "float" in annotation
        values = NUMBERS if number else WORDS
        for value in rng.sample(values, 2):
            numeric = number and value in ("nan", "abc", "", "½", "0x10", "--", "8/0", "1,5")
            yield _case(home, (*base, flag, value), numeric)
    for path, base in BASE.items():
        for more in (("--nope",), ("extra", "\x1b]0;x\x07", "é" * 300), ("--help=3",)):
            yield _case(home, (*path, *base, *more), "--nope" in more)


def _case(home: Path, line: tuple[str, ...], must_refuse: bool) -> Case:
    said = " ".join(each if len(each) < 40 else f"{each[:12]}..." for each in line)
    return Case("flags", repr(said)[1:-1], _trial(home, line, must_refuse))
