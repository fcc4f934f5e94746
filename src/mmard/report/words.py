"""Numbers and settings as the page writes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from mmard.balls import as_fraction
from mmard.report.subject import Record, Shown

RAISED = {"2": "₂", "inf": "∞"}


def percent(share: float) -> str:
    """A share in [0, 1], in percent without the sign, which stands in the head.

    >>> percent(0.2251)
    '22.5'
    """
    return f"{100 * share:.1f}"


def number(value: object) -> str:
    """A number with four significant digits; text as it is, nothing as a dash.

    >>> number(0.000123456), number(None), number("a")
    ('0.0001235', '–', 'a')
    """  # noqa: RUF002
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if isinstance(value, float) else str(value)


def budget(record: Record) -> str:
    """The budget of a record.

    >>> budget({"norm": "linf", "eps": 8 / 255}), budget({"norm": None, "eps": None})
    ('linf 8/255', 'no attack')
    """
    if record.get("norm") is None:
        return "no attack"
    if record.get("eps") is None:
        return str(record["norm"])
    return f"{record['norm']} {as_fraction(float(record['eps']))}"


def of_255(values: Iterable[float]) -> bool:
    """Whether radii are told in grey levels: multiples of a quarter of one, and not all of them short decimals.

    >>> of_255([0.0, 2 / 255, 0.5 / 255]), of_255([0.0, 0.15])
    (True, False)
    """
    told = list(values)
    grey = all(abs(v * 255 * 4 - round(v * 255 * 4)) < 1e-6 for v in told)
    return grey and any(float(f"{v:.3g}") != v for v in told)


def protocol(record: Record) -> str:
    """How a finding was made, in one line: attack, budget, images, weights."""
    attack = record.get("label") or "no attack"
    at = f" at {budget(record)}" if record.get("norm") else ""
    return f"{attack}{at}; {record['images']}; {record['which']} weights, attack seed {record['seed']}"


def quoted(run: Shown) -> str:
    """A run's folder as a shell takes it."""
    return shlex.quote(run.said)


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def size(n: int) -> str:
    """A number of bytes.

    >>> size(512), size(20_480), size(5_000_000)
    ('512 B', '20.5 kB', '5.0 MB')
    """
    for above, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= above:
            return f"{n / above:.1f} {unit}"
    return f"{n} B"


def setting(name: str, value: Any) -> str:
    """A setting's value as it would be said on the command line."""
    if value is None:
        return "not set"
    if name in ("eps", "step_size") and isinstance(value, float):
        return as_fraction(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(setting("", each) for each in value)
    return str(value)
