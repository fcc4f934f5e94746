"""Which code files may name: networks `package.module:function`, whose import runs somebody's code.

A name counts where a person typed it: on the command line, as an argument in Python, in `--trust-code NAME` or in the
environment variable MMARD_TRUST_CODE (names with commas between). Where it stands in the header of weights, or in the
settings of a run that others may have written, it is refused unless it was typed as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from mmard.errors import Refused

VARIABLE = "MMARD_TRUST_CODE"
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_code(name: str) -> bool:
    """Whether a name is `package.module:function`; "robustbench:NAME" and objects that were given are not.

    >>> is_code("torchvision.models:resnet18"), is_code("robustbench:Chen2021LTD_WRN34_10"), is_code("cnn-4")
    (True, False, False)
    """
    return _CODE.fullmatch(name) is not None and not name.startswith(("robustbench:", "given:"))


def trust_code(*names: str) -> None:
    """Let files name this code from now on, in this process and in those that it starts."""
    known = _trusted()
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*known, *(name for name in names if is_code(name))]))


def trust_typed(arguments: Iterable[str]) -> None:
    """Trust every name that stands on a command line, alone or behind `=`, a letter of a teacher, or a comma."""
    found = [part for each in arguments for part in re.split(r"[=,]", each) if is_code(part)]
    if found:
        trust_code(*found)


def refuse_untrusted(name: str, where: str) -> None:
    """Refuse code that a file names and that no person has typed.

    Raises:
        Refused: naming the flag that lets it in.
    """
    if is_code(name) and name not in _trusted():
        mend = f"to run that code, say --trust-code {name}, or mmard.trust_code({name!r}) in Python"
        raise Refused(
            where, expected="a network that mmard builds by name", got=f"{name}, code that a file names", mend=mend
        )


def _trusted() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]
