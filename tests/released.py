"""The rows of `test_released_defects_*.py`: a defect of released code, what ours does, and the test that says so."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).resolve().parent
Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Defect:
    """One row.

    Attributes:
        code: whose; "others'" is code that implements somebody else's method.
        theirs: what it does.
        ours: what is done here.
        test: file and name, "test_x.py::test_y".
    """

    code: str
    theirs: str
    ours: str
    test: str


def defect(code: str, theirs: str, ours: str) -> Callable[[Test], Test]:
    """Says of a test which defect it is about; `defects` reads it from the source."""
    return lambda test: test


def defects() -> Iterator[Defect]:
    """All rows: tests under `@defect`, and those of other files that a list ELSEWHERE names."""
    for file in sorted(HERE.glob("test_released_defects_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "defect":
                        said = [ast.literal_eval(argument) for argument in call.args]
                        yield Defect(*said, f"{file.name}::{node.name}")
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ELSEWHERE" and node.value:
                for row in ast.literal_eval(node.value):
                    yield Defect(*row)


def names_in(name: str) -> set[str]:
    """Names of the tests in a file of this folder."""
    body = ast.parse((HERE / name).read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
