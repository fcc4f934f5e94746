"""Code that is named `package.module:function`: networks and methods of somebody's own, whose import runs their code.

A name counts where a person typed it: on the command line, as an argument in Python, in `--trust-code NAME` or in the
environment variable MMARD_TRUST_CODE (names with commas between). Where it stands in the header of weights, or in the
settings of a run that others may have written, it is refused unless it was typed as well.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from mmard.errors import Refused, cause

VARIABLE = "MMARD_TRUST_CODE"
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_code(name: str) -> bool:
    """Whether a name is `package.module:function`; "robustbench:NAME" and objects that were given are not.

    >>> is_code("torchvision.models:resnet18"), is_code("robustbench:Chen2021LTD_WRN34_10"), is_code("cnn-4")
    (True, False, False)
    """
    return _CODE.fullmatch(name) is not None and not name.startswith(("robustbench:", "given:"))


def code_in(texts: Iterable[str]) -> list[str]:
    """Code that is named in texts: alone, or behind `=`, a letter of a teacher, a comma, or a plus.

    >>> code_in(["--method=rslad+mine:plug", "T_nat=nets:wide", "runs/a"])
    ['mine:plug', 'nets:wide']
    """
    return [part for text in texts for part in map(str.strip, re.split(r"[=,+]", text)) if is_code(part)]


def trust_code(*names: str) -> None:
    """Let files name this code from now on, in this process and in those that it starts."""
    known = _trusted()
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*known, *(name for name in names if is_code(name))]))


def trust_typed(texts: Iterable[str]) -> list[str]:
    """Trust the code that a person's texts name; returns its names."""
    found = code_in(texts)
    if found:
        trust_code(*found)
    return found


def refuse_untrusted(name: str, where: str) -> None:
    """Refuse code that a file names and that no person has typed.

    Raises:
        Refused: naming the flag that lets it in.
    """
    if is_code(name) and not is_trusted(name):
        mend = f"to run that code, say --trust-code {name}, or mmard.trust_code({name!r}) in Python"
        raise Refused(where, expected="a name that mmard knows", got=f"{name}, code that a file names", mend=mend)


def is_trusted(name: str) -> bool:
    """Whether a person has typed this name."""
    return name in _trusted()


def _trusted() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def import_code(name: str, kind: str) -> Callable[..., Any]:
    """Import `package.module` and return `function`; who calls this knows that the name is trusted.

    Args:
        kind: what the function makes, in messages: "network" or "method".

    Raises:
        Refused: if the module or the function is not there, or the import fails.
    """
    who = f"{kind} {name!r}"
    path, _, attribute = name.partition(":")
    if not path or path.startswith(".") or not attribute.isidentifier():
        raise Refused(who, expected="package.module:function", got=repr(name))
    expected = f"a module {path!r} that can be imported"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        absent = error.name is not None and (path == error.name or path.startswith(error.name + "."))
        mend = "is its folder on PYTHONPATH?" if absent else f"{path} itself needs it: install it"
        raise Refused(who, expected=expected, got=str(error), mend=mend) from error
    except Exception as error:
        raise Refused(who, expected=expected, got=cause(error)) from error
    if not hasattr(module, attribute):
        near = get_close_matches(attribute, dir(module), n=1)
        mend = f"did you mean {path + ':' + near[0]!r}?" if near else ""
        raise Refused(who, expected=f"a function {attribute!r} in {path}", got="no such name there", mend=mend)
    function: Callable[..., Any] = getattr(module, attribute)
    if not callable(function):
        expected = f"a function or class that makes a {kind}"
        raise Refused(who, expected=expected, got=f"an object of type {type(function).__name__}")
    return function
