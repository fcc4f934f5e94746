"""RESULTS.md and its pictures, from the records of all scales: what was asked, what was measured, what it means.

page = results_page(records)          the text, and the pictures by file name
write_page(page, out, folder)     both into files
stale(page, out, folder)          what in the files is not as the records have it
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from mmard.data import DATA
from mmard.errors import Refused
from mmard.files import write_text
from mmard.settings import current_names
from mmard.study.claims import Verdict, judge, load_claims
from mmard.study.drawing import drawn_from, stamp
from mmard.study.figures import NOTHING, foot, number, study_table
from mmard.study.grid import Scale, grid_of, load_scale, load_study, names
from mmard.study.reading import CLEAN, ROBUST, Reading, missing_rows
from mmard.study.records import Record
from mmard.study.tables import charts, tables
from mmard.tables.table import Entry, Table, markdown, markdown_text
from mmard.words import as_fraction, duration, plural

COMMIT = 7
"""Letters of a commit's hash."""


def recipe(records: Iterable[Record]) -> str:
    """How students were trained, from the settings that most of them have."""
    students = [record for record in records if not record["role"]]

    def usual(key: str) -> Any:
        return Counter(str(record["settings"][key]) for record in students).most_common(1)[0][0]

    def settled(key: str) -> Any:
        return next(r["settings"][key] for r in students if str(r["settings"][key]) == usual(key))

    if not students:
        return ""
    network = Counter((current_names(r["settings"])["network"], r["parameters"]) for r in students)
    names = ", ".join(f"{name} ({weights:,} weights)" for (name, weights), _ in network.most_common())
    images = Counter(record["train_images"] for record in students).most_common(1)[0][0]
    eps, step = float(settled("eps")), settled("step_size")
    step_said = as_fraction(float(step)) if step is not None else as_fraction(eps / 4)
    return (
        f"Students: {names}; {images:,} training images, {usual('epochs')} epochs, {usual('schedule')} with a largest"
        f" learning rate of {usual('lr')}, batch {usual('batch_size')}, training attack of {usual('steps')} steps of"
        f" {step_said} in {usual('norm')} {as_fraction(eps)}; best weights by {usual('val_attack')} on validation"
        " images. Methods may differ in what their preset says."
    )


def teachers(scale: Scale, records: Iterable[Record]) -> Table | None:
    """The teachers that have records, with their own figures."""
    rows = []
    for record in records:
        if record["role"]:
            role = str(record["role"]).removeprefix("teacher ")
            own = [quantity.take(record, "best") for quantity in (CLEAN, ROBUST)]
            cells = [NOTHING if value is None else number(value, ROBUST) for value in own]
            rows.append((role, str(scale.teachers.get(role, {}).get("title", "")), f"{record['parameters']:,}", *cells))
    if not rows:
        return None
    rows.sort(key=lambda row: row[-1])
    return study_table(
        ("teacher", "what it is", "weights", "clean %", "robust %"), tuple(rows), "Best weights.", words=2
    )


def provenance(records: Iterable[Record]) -> list[str]:
    """Cells, hours, commits, versions and machines, a line each."""
    found = list(records)
    if not found:
        return []
    trained = sum(record["seconds"].get("train") or 0.0 for record in found)
    measured = sum(record["seconds"].get("evaluate") or 0.0 for record in found)
    cpu = [record["seconds"].get("train_cpu") for record in found]
    known = [seconds for seconds in cpu if seconds is not None]
    environments = [record["environment"] for record in found]
    written = sorted(str(each["written"])[:10] for each in environments)
    commits = Counter(commit for each in environments for commit in each.get("commits") or [str(each["commit"])])
    seconds = f"{duration(trained)} of training and {duration(measured)} of attacks, by the clock, summed over cells"
    processor = f"; {duration(sum(known))} of processor time in {len(known)} trainings" if known else ""
    days = written[0] if written[0] == written[-1] else f"{written[0]} to {written[-1]}"
    return [
        f"{plural(len(found), 'cell')}, {days}; {seconds} (several ran side by side){processor}.",
        f"Commits: {', '.join(f'{_commit(name)} ({n})' for name, n in commits.most_common())}.",
        f"Machines: {_counted(_machine(record) for record in found)}.",
        f"Versions: {_counted(_versions(each) for each in environments)}.",
    ]


def _commit(name: str) -> str:
    """A commit in short, and whether files differed from it."""
    head, _, dirty = name.partition("+")
    return head[:COMMIT] + (" with uncommitted changes" if dirty else "")


def _counted(texts: Iterable[str]) -> str:
    counts = Counter(texts)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{text} ({n} cells)" for text, n in counts.most_common())


def _machine(record: Record) -> str:
    environment = record["environment"]
    cores = (
        f"{environment['cores']} cores of {environment['cpu']}, {plural(int(environment['threads']), 'thread')} a cell"
    )
    gpus = ", ".join(environment.get("gpus") or ())
    return f"{gpus}, {cores}" if gpus and record["device"] != "cpu" else cores


def _versions(environment: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return f"mmard {environment['mmard']}, Python {environment['python']}, {packages}, {environment['platform']}"


def commands(scale: Scale) -> list[str]:
    """What makes these records and this page again."""
    source = DATA.get(str(scale.every.get("data", "digits")))
    folder = "" if source is not None and source.bundled else " --data-dir D"
    return [
        f"mmard study run all --scale {scale.name}{folder}",
        f"mmard study records all --scale {scale.name} --out results/studies/{scale.name}.jsonl",
        "mmard study ledger",
    ]


RECORDS = Path("results/studies")
PICTURES = Path("results/pictures")
PAGE = Path("RESULTS.md")
FIRST = ("S", "M", "L")
"""Scales that come before others."""
MOST_GAPS = 8
"""Rows without records that are named one by one."""

HEAD = """# Results

<!-- written by `mmard study ledger`; change the records or the code, not this page -->

Everything here is computed from the records in [results/studies](results/studies), one line of JSON for each trained
network. `mmard study rerun CELL --records FILE` makes a network again from its line and compares every figure.
[docs/studies.md](docs/studies.md) says how studies are run and read."""

RULE = """A verdict is by the 95 % interval of its figure over seeds (Student's t, paired by seed) and images (paired)
together: *holds* where all of it is on the claimed side and no single host is beyond noise on the other, *does not
hold* where it excludes a gain worth having, *open* otherwise. The rows of claim 6 are chosen on other seeds than those
that they are compared on, and the best of several must be ahead by Holm's rule. The figures and the gains worth having
are declared in [claims.toml](src/mmard/study/declared/claims.toml). Each other interval stands for itself: of twenty
differences of nothing, one is beyond its own by chance. The students of a scale share its teachers, so that intervals
over seeds say nothing of other teachers."""

CLAIMED = """Claimed by others and not measured here; training, data and attacks differ from ours, so that none of these
figures can be held beside one above."""


@dataclass(frozen=True)
class ResultsPage:
    """The results as they are to be written.

    Attributes:
        text: of RESULTS.md.
        pictures: files by name.
        stamps: what each picture is drawn from, by name; known without drawing it.
    """

    text: str
    pictures: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, str] = field(default_factory=dict)


def by_scale(records: Mapping[str, Record]) -> dict[str, dict[str, Record]]:
    """Records of each scale by the name of their cell."""
    found: dict[str, dict[str, Record]] = {}
    for name, record in records.items():
        found.setdefault(str(record["scale"]), {})[name] = record
    return found


def published_scales() -> list[Scale]:
    """Scales that the page is about, those of `FIRST` before others."""
    scales = [scale for name in names("scales") if (scale := load_scale(name)).published]
    return sorted(scales, key=lambda each: (FIRST.index(each.name) if each.name in FIRST else len(FIRST), each.name))


def readings(scale: Scale, records: Mapping[str, Record], which: str = "") -> dict[str, Reading]:
    """The studies of a scale that have records: those in its order, then those of which every row has some."""
    found = {}
    others = sorted({name for each in published_scales() for name in each.order})
    for name in dict.fromkeys((*scale.order, *others)):
        try:
            reading = Reading(grid_of(load_study(name, scale), scale), records, which or scale.which)
        except Refused:
            # A study that asks for what this scale does not have is not done here.
            if name in scale.order:
                raise
            continue
        whole = all(reading.recorded(row) for row in reading.grid.rows)
        if (name in scale.order and reading.any) or whole:
            found[name] = reading
    return found


def results_page(
    records: Mapping[str, Record], *, which: str = "", pictures: Path = PICTURES, draw: bool = True
) -> ResultsPage:
    """The page about all records.

    Args:
        records: of all scales, by cell.
        which: the weights that are spoken of; what each scale says if not given.
        pictures: where they will be, as seen from the page.
        draw: make the pictures, which takes a few seconds and matplotlib; without, the text alone is made.
    """
    made = ResultsPage("")
    found = by_scale(records)
    scales = published_scales()
    every = {scale.name: readings(scale, found[scale.name], which) for scale in scales if scale.name in found}
    parts = [HEAD, "", _claims(every)]
    for scale in scales:
        if scale.name in found:
            parts.append(_scale(scale, found[scale.name], every[scale.name], made, pictures, draw))
    parts += [_published(), _not_run(scales, every)]
    parts[1] = _in_short([scale for scale in scales if scale.name in every], every, made, pictures)
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    return ResultsPage(text, made.pictures, made.stamps)


def _in_short(
    scales: Sequence[Scale], every: Mapping[str, Mapping[str, Reading]], made: ResultsPage, pictures: Path
) -> str:
    """A sentence for each scale, and the picture of the last one that shows both accuracies."""
    lines = []
    for scale in scales:
        said = []
        for claim in load_claims()[1]:
            judged = judge(claim, every[scale.name])
            if claim.brief and judged.verdict:
                figure = f", {judged.figure}" if judged.figure else ""
                said.append(f"{claim.brief}: **{judged.verdict}**{markdown_text(figure)}")
        if said:
            wrong = " What is wrong with this scale stands below." if scale.caution else ""
            lines.append(f"- {markdown_text(scale.title)}: {'; '.join(said)}.{wrong}")
    if not lines:
        return ""
    shown = [name for name in made.stamps if name.endswith("-trade-off.svg")][-1:]
    parts = ["## In short", "\n".join(lines)]
    parts += [f"![Clean against robust accuracy of every method]({(pictures / name).as_posix()})" for name in shown]
    return "\n\n".join(parts)


def _claims(every: Mapping[str, Mapping[str, Reading]]) -> str:
    source, claims = load_claims()
    heads = ["", "claim", *(f"scale {name}" for name in every)]
    rows: list[list[str | Entry]] = []
    reasons = []
    for claim in claims:
        judged = {name: judge(claim, readings) for name, readings in every.items()}
        rows.append([claim.number, claim.says, *(_verdict(each) for each in judged.values())])
        said = [f"{name}: {each.because}" for name, each in judged.items() if each.because]
        reasons.append(f"- {claim.number}: {markdown_text('; '.join(said))}")
    return "\n\n".join(
        [
            "## The paper's claims",
            f"{source}; the words are ours.",
            Table(heads, rows, words=2).markdown(),
            RULE,
            _folded("What stands behind each verdict", "\n".join(reasons)),
        ]
    )


def _verdict(judged: Verdict) -> Entry:
    return Entry(judged.verdict or "not measured", below=judged.figure, strong=bool(judged.verdict))


def _scale(
    scale: Scale,
    records: Mapping[str, Record],
    studies: Mapping[str, Reading],
    made: ResultsPage,
    pictures: Path,
    draw: bool,
) -> str:
    own = teachers(scale, records.values())
    parts = [
        f"## Scale {scale.name}: {scale.title}",
        markdown_text(f"{scale.data_says}. {recipe(records.values())}"),
    ]
    parts += [f"**{markdown_text(scale.caution)}**"] if scale.caution else []
    if studies:
        parts.append(markdown_text(foot(next(iter(studies.values())))))
    parts += [markdown([own]).strip()] if own is not None else []
    lines = "\n".join(f"- {markdown_text(line)}" for line in provenance(records.values()))
    again = "```\n" + "\n".join(commands(scale)) + "\n```"
    parts.append(_folded("Commits, machines, versions, hours and commands", f"{lines}\n\n{again}"))
    for reading in studies.values():
        parts.append(_study(reading, made, pictures, draw))
    known = {name for reading in studies.values() for name in reading.grid.cells}
    strange = sorted(set(records) - known)
    if strange:
        parts.append(f"{len(strange)} records are of cells that no study declares any more, and are left out.")
    return "\n\n".join(parts)


def _study(reading: Reading, made: ResultsPage, pictures: Path, draw: bool) -> str:
    study, scale = reading.grid.study, reading.grid.scale
    parts = [f"*{markdown_text(study.question)}*"]
    parts += _pictures(reading, made, pictures, draw)
    sheets = tables(reading)
    parts += [markdown([sheet]).strip() for sheet in sheets if sheet.main]
    lacking = missing_rows(reading)
    if lacking:
        named = "; ".join(lacking[:MOST_GAPS]) + (f"; and {len(lacking) - MOST_GAPS} more" * (len(lacking) > MOST_GAPS))
        parts.append(f"Missing: {markdown_text(named)}.")
    marks = foot(reading).partition("\N{DAGGER}: ")[2]
    parts += [f"\N{DAGGER}: {markdown_text(marks)}"] if marks else []
    rest = [markdown([sheet]).strip() for sheet in sheets if not sheet.main]
    if rest:
        parts.append(_folded("More figures", "\n\n".join(rest)))
    parts.append(f"`mmard study table {study.name} --scale {scale.name}`")
    return _folded(f"<b>{markdown_text(study.title)}</b>", "\n\n".join(parts))


def _pictures(reading: Reading, made: ResultsPage, pictures: Path, draw: bool) -> list[str]:
    """References to the pictures of a study, which go into `made`."""
    study, scale = reading.grid.study, reading.grid.scale
    parts = []
    for each in charts(reading):
        name = f"{scale.name}-{study.name}{f'-{each.slug}' if each.slug else ''}.svg"
        made.stamps[name] = stamp(reading)
        if draw:
            made.pictures[name] = each.draw()
        parts.append(f"![{markdown_text(each.alt)}]({(pictures / name).as_posix()})")
    return parts


def _folded(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def _published() -> str:
    text = (resources.files("mmard") / "study" / "declared" / "published.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    heads = ("method", "teacher", "clean %", "AutoAttack %", "claimed by", "read in", "note")
    rows = []
    for each in found["figures"]:
        clean, robust = (f"{each[key]:.2f}" if key in each else "" for key in ("clean", "aa"))
        robust += f" ± {each['sd']:.2f}" if "sd" in each else ""
        cells: list[Any] = [each["method"], each.get("teacher", ""), clean, robust]
        rows.append([*cells, each["claimed_by"], each["read_in"], each.get("note", "")])
    rows.sort(key=lambda row: row[3], reverse=True)
    places = "\n".join(f"- {name}: {markdown_text(says)}" for name, says in found["places"].items())
    intro = f"{markdown_text(found['title'])}. {CLAIMED}"
    return f"## What others have published\n\n{intro}\n\n{Table(heads, rows, words=len(heads)).markdown()}\n\n{places}"


def _not_run(scales: Sequence[Scale], every: Mapping[str, Mapping[str, Reading]]) -> str:
    """Studies that are declared and have not been run, with the minutes that are planned for them."""
    lines = []
    for scale in scales:
        for name in scale.order:
            reading = every.get(scale.name, {}).get(name)
            left = len(reading.missing()) if reading is not None else None
            if left == 0:
                continue
            minutes = scale.minutes.get(name)
            planned = "" if minutes is None else f"; planned: {minutes:.0f} minutes on {scale.minutes_on}"
            state = "not run" if left is None else f"{left} rows lack records"
            lines.append(f"- scale {scale.name}, {name}: {state}{planned}. `{commands(scale)[0].replace('all', name)}`")
    return "## Not run\n\n" + "\n".join(lines) if lines else ""


def write_page(page: ResultsPage, out: Path, pictures: Path) -> None:
    """Write the page and its pictures; pictures of the same kind that it has no more are removed."""
    pictures.mkdir(parents=True, exist_ok=True)
    for name, svg in page.pictures.items():
        write_text(pictures / name, svg)
    for file in pictures.glob("*.svg"):
        if file.name not in page.pictures and drawn_from(file.read_text(encoding="utf-8")) is not None:
            file.unlink()
    write_text(out, page.text)


def stale(page: ResultsPage, out: Path, pictures: Path) -> list[str]:
    """Files that are not as the records have it, a line each."""
    found = []
    if not out.is_file() or out.read_text(encoding="utf-8") != page.text:
        found.append(str(out))
    for name, drawn in page.stamps.items():
        file = pictures / name
        if not file.is_file() or drawn_from(file.read_text(encoding="utf-8")) != drawn:
            found.append(str(file))
    return found
