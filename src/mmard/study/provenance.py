"""Where the records of a scale come from: data, recipe, teachers, commits, machines, hours, commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmard.balls import as_fraction
from mmard.data import DATA
from mmard.study.declared import Scale
from mmard.study.sheets import NOTHING, Sheet, number
from mmard.study.summary import CLEAN, ROBUST, Record
from mmard.words import duration, plural

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
    network = Counter((r["settings"].get("student") or r["settings"]["model"], r["parameters"]) for r in students)
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


def teachers(scale: Scale, records: Iterable[Record]) -> Sheet | None:
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
    return Sheet(("teacher", "what it is", "weights", "clean %", "robust %"), tuple(rows), "Best weights.", words=2)


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
