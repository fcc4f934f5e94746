"""Groups of attacks by name: data, so that help pages and documents list the same.

Nothing here needs PyTorch, so that a help page opens at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmard.errors import Refused

if TYPE_CHECKING:
    from mmard.balls import Budget


@dataclass(frozen=True)
class AttackGroup:
    """Columns under one name.

    Attributes:
        says: what they are good for.
        specs: short spellings.
    """

    says: str
    specs: tuple[str, ...]


GROUPS = {
    "quick": AttackGroup("a first look, less than AutoAttack", ("pgd-20", "cw-30")),
    "usual": AttackGroup("the columns of most papers", ("fgsm", "pgd-20", "pgd-20@0.003", "cw-30", "aa")),
    "full": AttackGroup(
        "those, restarts, and black-box alone",
        ("fgsm", "pgd-20", "pgd-20@0.003", "pgd-100x10", "cw-30", "square", "aa"),
    ),
}
"""Groups of columns by name."""
PUBLISHED = ("pgd-20@0.003", 0.06)
"""A column whose step is a number, and the linf radius that it can cross: elsewhere a group leaves it out."""


def spelled(attacks: str | Sequence[str], budget: Budget) -> list[str]:
    """Short spellings of attacks, with those of a group in place of its name, each once.

    >>> from mmard.balls import Budget
    >>> spelled("quick, aa", Budget(8 / 255))
    ['pgd-20', 'cw-30', 'aa']
    >>> spelled("usual", Budget(0.5, "l2"))
    ['fgsm', 'pgd-20', 'cw-30', 'aa']

    Raises:
        Refused: for no attack at all.
    """
    said = attacks.split(",") if isinstance(attacks, str) else list(attacks)
    found: list[str] = []
    for text in (each.strip().lower() for each in said):
        group = GROUPS.get(text)
        if group is None:
            found += [text] if text else []
            continue
        left_out, reach = PUBLISHED
        apt = budget.norm == "linf" and budget.eps <= reach
        found += [spec for spec in group.specs if apt or spec != left_out]
    if not found:
        expected = f"attacks such as pgd-20,cw-30 or aa, or one of {', '.join(GROUPS)}"
        raise Refused("--attack", expected=expected, got=repr(attacks))
    return list(dict.fromkeys(found))
