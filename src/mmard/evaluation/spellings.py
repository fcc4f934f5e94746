"""The columns of a table of results by name, and groups of them: data, so that help pages and documents list the same.

Nothing here needs PyTorch, so that a help page opens at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmard.errors import Refused
from mmard.words import as_fraction, radius

if TYPE_CHECKING:
    from mmard.balls import Budget

SPELLINGS = (
    ("fgsm", "one step of eps on cross-entropy, from x"),
    ("pgd-20", "20 steps of eps/4 on cross-entropy from a uniform start: the 2/255 of the field at 8/255"),
    ("pgd-20@0.003", "with another step, here the second published setting of PGD-20"),
    ("pgd-100x10", "100 steps, 10 restarts; an image counts as broken if any restart breaks it"),
    ("cw-30", "30 steps of eps/4 on the margin of Carlini and Wagner, from a uniform start, in the same ball"),
    ("aa", "AutoAttack: the four attacks below, in this order, each on the images that the earlier ones left"),
    ("apgd-ce", "APGD on cross-entropy, 100 steps; under l1 from 5 starts"),
    ("apgd-t", "APGD on the targeted DLR loss, 100 steps for each of 9 targets, 5 under l1; needs four classes"),
    ("fab-t", "targeted FAB, 100 steps for each of 9 targets"),
    ("square", "Square, 5,000 queries of the logits alone"),
    ("aa-rand", "for networks that answer at random: APGD on cross-entropy and on DLR, each gradient the mean of 20"),
    ("aa@pyautoattack", "any of the six above by the authors' code, which pip install 'mmard[autoattack]' brings"),
)
"""Spellings of attacks, each standing for its kind, and what they are."""

TITLES = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "cw": "CW-PGD",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "fab-t": "FAB-T",
    "square": "Square",
}
"""What a column of an attack is headed by."""
WORST, TRANSFERRED = "worst_of_", "transfer-"
"""How a spelling begins whose figure is of several attacks together, and of one that was made on another network."""
_STEPS = re.compile(r"(?P<kind>pgd|cw)-(?P<steps>\d+)(?:x(?P<restarts>\d+))?(?:@(?P<step>[\d./e-]+))?")


def attack_title(spec: str) -> str:
    """The title of an attack by its short spelling; "" where the spelling does not say it.

    >>> [attack_title(spec) for spec in ("pgd-100x10", "aa.fab-t", "worst_of_pgd-20,cw-30", "transfer-fgsm", "mine")]
    ['PGD-100', 'after FAB-T', 'worst of pgd-20, cw-30', 'FGSM', '']
    """
    if spec.startswith(WORST):
        return "worst of " + spec.removeprefix(WORST).replace(",", ", ")
    whole, dot, part = spec.removeprefix(TRANSFERRED).partition(".")
    if dot and part in TITLES:
        return f"after {TITLES[part]}"
    steps = _STEPS.fullmatch(spec.removeprefix(TRANSFERRED))
    return TITLES.get(whole, "") if steps is None else f"{TITLES[steps['kind']]}-{steps['steps']}"


def attack_settings(spec: str, eps: float | None) -> list[str]:
    """What a short spelling says beside the title, by which two attacks of one title are told apart.

    >>> attack_settings("pgd-20", 8 / 255), attack_settings("pgd-100x10@0.003", 8 / 255), attack_settings("aa", 0.1)
    (['step 2/255', '1 restart'], ['step 0.003', '10 restarts'], [])
    """
    steps = _STEPS.fullmatch(spec.removeprefix(TRANSFERRED))
    if steps is None or eps is None:
        return []
    step, restarts = radius(steps["step"]) if steps["step"] else eps / 4, int(steps["restarts"] or 1)
    return [f"step {as_fraction(step)}", f"{restarts} restart" + "s" * (restarts > 1)]


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
