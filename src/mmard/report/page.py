"""The page: sections from a subject, set by the templates into one HTML file that needs nothing else.

Equal records give equal pages, to the character: no clock, no random ids, no order of a set.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

from mmard._version import __version__
from mmard.report.drawing import need_plots
from mmard.report.palette import DARK, LIGHT, declarations, swatch
from mmard.report.sections import (
    boundary,
    checks,
    classes,
    confidence,
    examples,
    origin,
    radius,
    results,
    settings,
    subject_matter,
    training,
    transfer,
)
from mmard.report.subject import Subject
from mmard.report.words import budget, listed
from mmard.words import plural

if TYPE_CHECKING:
    from jinja2 import Environment, Template

SECTIONS = (
    subject_matter.section, results.section, checks.section, training.section, radius.section, classes.section,
    confidence.section, boundary.section, examples.section, transfer.section, settings.section, origin.reproduce,
    origin.environment, origin.files,
)  # fmt: skip
GENERATOR = f"mmard {__version__}"
LONGEST_TITLE = 70
_STYLE = re.compile(r'style="((?:fill|stroke|font-size)[^"]*)"')


@dataclass(frozen=True)
class Live:
    """A page that loads itself anew while runs go on.

    Attributes:
        seconds: between two loads.
    """

    seconds: int


def page(about: Subject, live: Live | None = None) -> str:
    """The report on a subject, as HTML.

    Raises:
        Refused: if matplotlib is not installed.
    """
    need_plots()
    made = [build(about) for build in SECTIONS]
    script = _template("theme.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = _template("page.html").render(
        title=_title(about),
        facts=_facts(about),
        alarms=checks.alarms(about),
        sections=made,
        about=about,
        live=live,
        generator=GENERATOR,
        light=Markup(declarations(LIGHT)),
        dark=Markup(declarations(DARK)),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    text = "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"
    return _with_classes(text)


def _with_classes(text: str) -> str:
    """The styles that drawings repeat, told once: a third of the page's size."""
    counts = Counter(_STYLE.findall(text))
    often = [style for style, n in counts.items() if n > 3]
    names = {style: f"s{number}" for number, style in enumerate(often)}
    shorter = _STYLE.sub(lambda found: f'class="{names[found[1]]}"' if found[1] in names else found[0], text)
    rules = "".join(f".{name}{{{style}}}\n" for style, name in names.items())
    return shorter.replace("</style>", f"{rules}</style>", 1)


@cache
def _environment() -> Environment:
    from jinja2 import Environment as Templates
    from jinja2 import PackageLoader, StrictUndefined

    made = Templates(
        loader=PackageLoader("mmard.report"),
        # Everything that comes out of a record is text, whatever the template's name: a run may be called <script>.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"swatch": swatch, "explained": checks.EXPLAINED}
    return made


def _template(name: str) -> Template:
    return _environment().get_template(name)


def _title(about: Subject) -> str:
    names = [group.short for group in about.groups]
    if len(names) == 1:
        run = about.groups[0].first
        return about.groups[0].name if run.trained else run.name
    said = listed(names)
    return said if len(said) <= LONGEST_TITLE else f"{plural(len(names), 'configuration')} side by side"


def _facts(about: Subject) -> list[str]:
    """The line under the title."""
    runs = about.runs
    counts = plural(len(runs), "run")
    if len(about.groups) > 1 and about.seeds > 1:
        counts += f", {len(about.groups)} configurations, up to {about.seeds} seeds"
    elif about.seeds > 1:
        counts += f", {about.seeds} seeds"
    facts = [counts]
    data = list(dict.fromkeys(str(run.config["data"]) for run in runs if run.config.get("data")))
    budgets = list(dict.fromkeys(budget(run.config) for run in runs if run.config.get("eps") is not None))
    facts += [listed(data)] if data else []
    facts += [listed(budgets)] if budgets else []
    unfinished = sum(not run.finished for run in runs)
    facts += [f"{unfinished} unfinished"] if unfinished else []
    return facts
