"""Numbers and texts as people read them."""

from __future__ import annotations

import unicodedata

from mmard.errors import Refused

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode's categories of what steers a terminal or an editor, and of what it breaks a line at."""


def printable(text: str) -> str:
    """One line without anything that steers a terminal: line ends and tabs as blanks, other controls spelled out.

    >>> printable("a\\nb\\t\\x1b[31mred")
    'a b \\\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(
        " " if letter in "\n\r\t\v\f\x85\u2028\u2029"
        else letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _UNSEEN
        else letter
        for letter in text
    )  # fmt: skip


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage.

    >>> percent(0.7312)
    '73.1%'
    """
    return f"{100 * share:.1f}%"


def points(low: float, high: float) -> str:
    """An interval of shares in [0, 1], in percent.

    >>> points(0.702, 0.76)
    '70.2 to 76.0'
    """
    return f"{100 * low:.1f} to {100 * high:.1f}"


def duration(seconds: float) -> str:
    """A length of time in the two units that matter.

    >>> [duration(s) for s in (0.42, 7.3, 130, 4000, 200_000)]
    ['0.42 s', '7 s', '2 min 10 s', '1 h 06 min', '2 d 07 h']
    """
    if seconds < 1:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def significant(value: float) -> str:
    """A number with four significant digits.

    >>> significant(0.0001234567), significant(12.5)
    ('0.0001235', '12.5')
    """
    return f"{value:.4g}"


def plural(n: int, thing: str) -> str:
    """A count and its thing.

    >>> plural(1, "epoch"), plural(1200, "image")
    ('1 epoch', '1,200 images')
    """
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


def radius(text: str | float) -> float:
    """Read a radius or a step size: a number, or a fraction such as "8/255".

    >>> radius("8/255") == 8 / 255
    True

    Raises:
        Refused: if the text is neither a number nor a fraction of two.
    """
    if isinstance(text, (int, float)):
        return float(text)
    try:
        above, slash, below = text.partition("/")
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise Refused(f"radius {text!r}", expected="a number or a fraction such as 8/255", got=repr(text)) from None


def as_fraction(value: float) -> str:
    """Write a radius as the field does: a short decimal as it is, otherwise in 255ths where that is exact to 1e-9.

    >>> as_fraction(8 / 255), as_fraction(0.15), as_fraction(0.5 / 255)
    ('8/255', '0.15', '0.5/255')
    """
    n = value * 255
    if float(f"{value:.3g}") != value and abs(n - round(n, 1)) < 1e-9:
        return f"{round(n, 1):g}/255"
    return f"{value:.10g}"


def number(text: str) -> float | int | bool | str:
    """An argument that a command line gave as text: a number, true or false, or the text itself.

    >>> [number(text) for text in ("1e-6", "3", "true", "max")]
    [1e-06, 3, True, 'max']
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
