"""The page: sections of a report, set by the templates into one HTML file that needs nothing else.

Equal records give equal pages, to the character: no clock, no random ids, no order of a set.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from mmard._version import __version__
from mmard.errors import Refused, require
from mmard.files import write_text
from mmard.report import accuracy, findings, provenance, training
from mmard.report.drawing import need_plots
from mmard.report.palette import DARK, LIGHT, declarations, swatch
from mmard.report.runs import ReportedRuns, budget, listed, missing, read_runs
from mmard.report.section import Section
from mmard.words import plural

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def missing_section(report: ReportedRuns) -> Section:
    """What was not measured, in one line, with the commands that measure it."""
    texts, commands = missing(report)
    sentences = [f"Not measured: {'; '.join(texts)}."] if texts else []
    return Section("Not measured", "missing", sentences, commands=commands)


FINDINGS = (
    "findings.checks_section",
    "accuracy.classes_section",
    "accuracy.radius_section",
    "findings.confidence_section",
    "findings.boundary_section",
    "findings.examples_section",
)
"""What evaluations find beside accuracies, as a terminal shows it after one and as the page does: functions of files
of this folder."""


def findings_sections(report: ReportedRuns) -> list[Section]:
    """The sections of `FINDINGS` that have anything to show."""
    files = [name.split(".") for name in FINDINGS]
    made = [getattr(import_module(f"mmard.report.{file}"), function)(report) for file, function in files]
    return [section for section in made if not section.empty]


FIRST = (accuracy.results_section, provenance.runs_section)
LAST = (
    accuracy.transfer_section,
    training.training_section,
    missing_section,
    provenance.settings_section,
    provenance.reproduce,
    provenance.environment,
    provenance.files,
)
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


def page(report: ReportedRuns, live: Live | None = None) -> str:
    """The report on a subject, as HTML.

    Raises:
        Refused: if matplotlib is not installed.
    """
    need_plots()
    first, last = ([build(report) for build in builds] for builds in (FIRST, LAST))
    made = [section for section in (*first, *findings_sections(report), *last) if not section.empty]
    script = _template("theme.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = _template("page.html").render(
        title=_title(report),
        facts=_facts(report),
        alarms=findings.alarms(report),
        sections=made,
        report=report,
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
    """The styles that drawings repeat, said once: a third of the page's size."""
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
    made.globals |= {"swatch": swatch}
    return made


def _template(name: str) -> Template:
    return _environment().get_template(name)


def _title(report: ReportedRuns) -> str:
    names = [group.short for group in report.groups]
    if len(names) == 1:
        run = report.groups[0].first
        return report.groups[0].name if run.trained else run.name
    said = listed(names)
    return said if len(said) <= LONGEST_TITLE else f"{plural(len(names), 'configuration')} side by side"


def _facts(report: ReportedRuns) -> list[str]:
    """The line under the title."""
    runs = report.runs
    counts = plural(len(runs), "run")
    if len(report.groups) > 1 and report.seeds > 1:
        counts += f", {len(report.groups)} configurations, up to {report.seeds} seeds"
    elif report.seeds > 1:
        counts += f", {report.seeds} seeds"
    facts = [counts]
    data = list(dict.fromkeys(str(run.config["data"]) for run in runs if run.config.get("data")))
    budgets = list(dict.fromkeys(budget(run.config) for run in runs if run.config.get("eps") is not None))
    facts += [listed(data)] if data else []
    facts += [listed(budgets)] if budgets else []
    unfinished = sum(not run.finished for run in runs)
    facts += [f"{unfinished} unfinished"] if unfinished else []
    return facts


MADE_BY = '<meta name="generator" content="mmard '


def default_out(runs: Sequence[str | Path]) -> Path:
    """Where a report goes if nobody says: into the folder of a single run, else into the working directory."""
    return Path(runs[0]) / "report.html" if len(runs) == 1 else Path("report.html")


def write_report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    watch: int | None = None,
    written: Callable[[Path, ReportedRuns], None] | None = None,
) -> Path:
    """Write one self-contained HTML page about runs, from their folders alone.

    Args:
        runs: run folders; those that differ in their seed alone are shown together.
        out: the file; `default_out` if not given. A file that is no report of ours is never written over.
        watch: write it anew every so many seconds until all runs are finished; the page then reloads itself.
        written: called after each writing.

    Returns:
        The file.

    Raises:
        Refused: if a folder holds no run, matplotlib is not installed, or the file is something else or cannot be
            written.
    """
    paths = [runs] if isinstance(runs, str | Path) else list(runs)
    report = read_runs(paths)
    file = default_out(paths) if out is None else Path(out)
    _refuse_others(file)
    if watch is not None:
        require(watch >= 1, "--watch", expected="at least 1 second", got=watch)
    drawn: list[tuple[str, int, int]] = []
    while watch is not None and not all(run.finished for run in report.runs):
        if (now := _stamps(report, file)) != drawn:
            write_text(file, page(report, Live(watch)))
            drawn = now
        if written is not None:
            written(file, report)
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            # The last page must not claim to be live.
            write_text(file, page(read_runs(paths)))
            raise
        report = read_runs(paths)
    write_text(file, page(report))
    if written is not None:
        written(file, report)
    return file


def _stamps(report: ReportedRuns, page_file: Path) -> list[tuple[str, int, int]]:
    """What tells whether a file of the runs has changed since the last page."""
    files = [file for run in report.runs for file in sorted(Path(run.folder).rglob("[!.]*")) if file.is_file()]
    stats = [(file, file.stat()) for file in files if file.resolve() != page_file.resolve() and file.exists()]
    return [(str(file), stat.st_mtime_ns, stat.st_size) for file, stat in stats]


def _refuse_others(file: Path) -> None:
    """Refuse a file that somebody else made, and a folder that is not there."""
    if file.is_dir():
        raise Refused(str(file), expected="a file to write", got="a folder", mend=f"--out {file / 'report.html'}")
    if not file.parent.is_dir():
        raise Refused(str(file), expected="a folder that exists", got="none", mend=f"mkdir -p {file.parent}")
    if not file.exists():
        return
    with file.open("rb") as opened:
        head = opened.read(4096).decode(errors="replace")
    if MADE_BY not in head:
        raise Refused(
            str(file), expected="a new file or an earlier report", got="another file", mend="choose another --out"
        )
