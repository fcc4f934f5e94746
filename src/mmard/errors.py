"""What a user is told when something is refused: where, expected, got, and the mend, in one line.

Bad input is refused at the door with `Refused`, which the command line prints without a traceback. Anything else that
escapes is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 300
"""Characters of what was met that a refusal repeats."""


class Refused(ValueError):
    """Input that cannot be used. The message says where, what was expected, what was met, and how to mend it.

    >>> print(Refused("Budget(eps=8)", expected="eps in (0, 1]", got="8", mend="did you mean 8/255?"))
    Budget(eps=8): expected eps in (0, 1], got 8; did you mean 8/255?
    """

    def __init__(self, where: str, *, expected: str, got: str, mend: str = "") -> None:
        self.where, self.expected, self.got, self.mend = _cut(where), expected, _cut(got), mend
        super().__init__(f"{self.where}: expected {expected}, got {self.got}" + (f"; {mend}" if mend else ""))


def _cut(text: str) -> str:
    """A text with the middle left out if it is longer than a person reads."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def require(holds: bool, where: str, *, expected: str, got: object, mend: str = "") -> None:
    """Refuse unless `holds`.

    >>> require(2 > 0, "ard.tau", expected="a positive temperature", got=2)
    """
    if not holds:
        raise Refused(where, expected=expected, got=f"{got:g}" if isinstance(got, float) else str(got), mend=mend)


def unknown(kind: str, name: str, known: Iterable[str]) -> Refused:
    """The error for a name that no table holds, offering the nearest one.

    >>> print(unknown("method", "rlsad", ["ard", "rslad"]))
    method 'rlsad': expected one of ard, rslad, got 'rlsad'; did you mean 'rslad'?
    >>> print(unknown("network", "vit", ["cnn-16", "cnn-4"]))
    network 'vit': expected one of cnn-4, cnn-16, got 'vit'
    """
    names = sorted(known, key=_with_numbers)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return Refused(
        f"{kind} {name!r}",
        expected="one of " + ", ".join(names),
        got=repr(name),
        mend=f"did you mean {near[0]!r}?" if near else "",
    )


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, in which 4 comes before 16."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def needs_extra(package: str, extra: str, purpose: str) -> Refused:
    """The error for an optional dependency that is not installed, naming the extra that brings it."""
    return Refused(
        purpose,
        expected=f"the package {package!r}",
        got="no such package in this environment",
        mend=f'install it with: pip install "mmard[{extra}]"',
    )


def cause(error: Exception) -> str:
    """What went wrong in somebody else's code, in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
