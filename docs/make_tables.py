"""Write the generated tables into the documentation, or with --check fail where they are stale.

    python docs/make_tables.py [--check]

A table stands between `<!-- table: NAME (make docs) -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from mmard.catalogue import facts, host_of, written_anew
from mmard.methods import METHODS, PLUGINS, build, parameters
from mmard.passes import count_passes
from mmard.settings import DISTILLED, TAUGHT, Settings
from mmard.teachers import sources, teachers

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = "src/mmard/catalogue.json"
PAGES = (
    CATALOGUE,
    "docs/architecture.md", "docs/evaluation.md", "docs/methods.md", "docs/released_code.md",
    "docs/settings.md", "docs/teachers.md",
    "docs/results/cifar10-jpeg.md", "docs/results/digits-saad.md",
)  # fmt: skip
BLOCK = re.compile(r"(<!-- table: (?P<name>[a-z0-9-]+) \(make docs\) -->\n).*?(<!-- end -->)", re.DOTALL)
STEPS = 10


def row(*cells: object) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A Markdown table."""
    return "\n".join([row(*head), row(*["---"] * len(head)), *(row(*cells) for cells in rows)])


def code(text: str) -> str:
    """Text as code."""
    return f"`{text}`"


def methods() -> str:
    """Name, source and formulas of every method and plug-in."""
    rows: list[tuple[object, ...]] = []
    for name in METHODS:
        made = build(name)
        rows.append((code(name), made.source, code(made.says[0]), code(made.says[1])))
    for name in PLUGINS:
        bare = build(host_of(name))
        made = build(f"{bare.name}+{name}")
        source = made.source.removeprefix(bare.source + "; ")
        added = [
            code(after.removeprefix(before + " ")) if after != before else "the host's"
            for before, after in zip(bare.says, made.says, strict=True)
        ]
        rows.append((code(f"+{name}"), source, *added))
    return table(("name", "source", "attack climbs", "loss"), rows)


def costs() -> str:
    """Passes through each network in one step."""
    rows: list[tuple[object, ...]] = []
    for spec in (*METHODS, *(f"{host_of(plugin)}+{plugin}" for plugin in PLUGINS)):
        passes = count_passes(build(spec), STEPS)
        for letter, own in passes.items():
            counts = (own.forwards, own.train_forwards, own.input_backwards, own.weight_backwards)
            rows.append((code(spec) if letter == "S" else "", letter, *counts))
    head = ("method", "net", "forwards", "of them in train mode", "gradients to the input", "to the weights")
    return table(head, rows)


def method_parameters() -> str:
    """Every parameter of a method or plug-in with its default and its sentence."""
    rows: list[tuple[object, ...]] = []
    for name, make in (*METHODS.items(), *PLUGINS.items()):
        sentences = argument_sentences(make)
        for key, parameter in parameters(name).items():
            default = f"{parameter.default:.4g}" if isinstance(parameter.default, float) else parameter.default
            rows.append((code(f"{name}.{key}"), default, sentences[key]))
    return table(("parameter", "default", "what it is"), rows)


def argument_sentences(make: Callable[..., object]) -> dict[str, str]:
    """The Args section of a docstring, by argument."""
    text = inspect.cleandoc(make.__doc__ or "")
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1], re.DOTALL | re.MULTILINE)
    return {name: " ".join(sentence.split()) for name, sentence in entries}


def settings() -> str:
    """Every setting with its default and its sentence, by panel."""
    parts, fields = [], Settings.model_fields
    panels = dict.fromkeys(str(field.json_schema_extra["panel"]) for field in fields.values())  # type: ignore[index]
    for panel in panels:
        rows: list[tuple[object, ...]] = []
        for name, field in fields.items():
            if field.json_schema_extra["panel"] != panel:  # type: ignore[index]
                continue
            shown = "8/255" if name == "eps" else "" if field.default in (None, {}) else field.default
            if name == "method":
                shown = f"{shown}; {DISTILLED} with teachers"
            where = " (distill only)" if name in TAUGHT else ""
            rows.append((code(name), shown, f"{field.description}{where}"))
        parts.append(f"### {panel}\n\n" + table(("name", "default", "what it is"), rows))
    return "\n\n".join(parts)


def percent(values: list[float]) -> str:
    """Mean and standard deviation of fractions, in percent."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def digits_saad() -> str:
    """SAAD on digits, with one thing changed at a time."""
    study = json.loads((ROOT / "results" / "digits-saad.json").read_text(encoding="utf-8"))
    rows: list[tuple[object, ...]] = []
    for variant in dict.fromkeys(cell["variant"] for cell in study["cells"]):
        cells = [cell for cell in study["cells"] if cell["variant"] == variant]
        zero = ", ".join(f"{100 * cell['clean_by_class'][0]:.0f}" for cell in cells)
        rows.append(
            (variant, percent([c["clean"] for c in cells]), percent([c["robust"] for c in cells]), zero, len(cells))
        )
    return table(("what is changed", "clean %", "robust %", "class 0, clean %", "seeds"), rows)


def cifar10_jpeg() -> str:
    """The CIFAR-10 trial: a row for each network and set of images, a column for each attack."""
    columns = {"clean": 0, "pgd-20": 1, "cw-30": 2, "worst_of_pgd-20,cw-30": 3, "aa": 4}
    found: dict[tuple[str, str, int], list[str]] = {}
    for file in sorted((ROOT / "results" / "cifar10-jpeg").glob("*/scores/*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["attack"] not in columns:
            continue
        images = "lossless originals" if record["n"] == 1017 else "JPEG"
        cells = found.setdefault((images, file.parent.parent.name, record["n"]), [""] * len(columns))
        low, high = record["interval"]
        cells[columns[record["attack"]]] = f"{100 * record['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    head = (
        "test images",
        "n",
        "network",
        "clean %",
        "PGD-20 %",
        "CW-PGD-30 %",
        "worst of both %",
        "AutoAttack (standard) %",
    )
    rows = [
        (images, n, code(run), *cells)
        for (images, run, n), cells in sorted(found.items(), key=lambda f: (f[0][0], -f[0][2], f[0][1]))
    ]
    return table(head, rows)


def known_teachers() -> str:
    """Every known teacher, by data set, with what is claimed of it and where that was read."""
    parts = []
    for data in dict.fromkeys(teacher.data for teacher in teachers()):
        rows: list[tuple[object, ...]] = []
        for t in (t for t in teachers() if t.data == data):
            lowest = f" ({100 * t.lowest:.2f})" if t.lowest is not None else ""
            place = f"[file]({t.address})" if t.address else "not known"
            notes = "; ".join(([f"also {t.extra_data}"] if t.extra_data else []) + list(t.quirks))
            read = ", ".join(dict.fromkeys(at for at in t.read.values() if at))
            reads = "in [0, 1]" if t.mean is None else "standardised"
            figures = (f"{100 * t.clean:.2f}", f"{100 * t.robust:.2f}{lowest}")
            rows.append((f"[{t.name}]({t.link})", code(t.network), reads, *figures, place, t.licence, notes, read))
        head = ("name", "network", "input", "clean %", "AutoAttack %", "weights", "licence", "notes", "read in")
        parts.append(f"### {data}\n\n" + table(head, rows))
    return "\n\n".join(parts)


def read_in() -> str:
    """Where facts on teachers were read."""
    return table(("short", "what it is"), list(sources().items()))


def released_code() -> str:
    """What the authors' code does, what ours does, and the test of it; from the tests themselves."""
    sys.path.insert(0, str(ROOT / "tests"))
    from released import defects

    def place(test: str) -> str:
        file, _, name = test.partition("::")
        return f"[{name.removeprefix('test_')}](../tests/{file})"

    rows: list[tuple[object, ...]] = [(d.code, d.theirs, d.ours, place(d.test)) for d in defects()]
    return table(("code of", "does", "ours", "test"), rows)


def architecture() -> str:
    """Every file of the package by floor, from the top down, with the first sentence of its docstring and its lines."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_architecture import FILES, FLOORS, PACKAGE, TREES, floors_of

    parts = []
    for floor in sorted(FLOORS, reverse=True):
        rows: list[tuple[object, ...]] = []
        for path in (path for path in FILES if floors_of(path) == [floor]):
            first = (ast.get_docstring(TREES[path]) or "").split("\n\n")[0]
            relative = path.relative_to(PACKAGE).as_posix()
            says = re.split(r"(?<=[.?])\s", " ".join(first.split()))[0]
            rows.append((f"[{relative}](../src/mmard/{relative})", says))
        parts.append(f"### Floor {floor}\n\n" + table(("file", "what it is"), rows))
    return "\n\n".join(parts)


def attacks() -> str:
    """What `mmard attacks` lists."""
    return table(("spelling", "attack"), [(code(each["spelling"]), each["says"]) for each in facts("attacks")])


TABLES: dict[str, Callable[[], str]] = {
    "attacks": attacks,
    "architecture": architecture,
    "methods": methods,
    "costs": costs,
    "parameters": method_parameters,
    "settings": settings,
    "digits-saad": digits_saad,
    "cifar10-jpeg": cifar10_jpeg,
    "teachers": known_teachers,
    "read-in": read_in,
    "released-code": released_code,
}


def renewed(text: str) -> str:
    """A page with its tables written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}\n{found[3]}", text)


def main() -> None:
    """Write or check all pages."""
    stale = []
    for page in PAGES:
        file = ROOT / page
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        after = written_anew() + "\n" if page == CATALOGUE else renewed(before)
        if after != before:
            stale.append(page)
            if "--check" not in sys.argv:
                file.write_text(after, encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.exit(f"stale: {', '.join(stale)}: run make docs")
    print(f"{len(stale)} of {len(PAGES)} pages written")


if __name__ == "__main__":
    main()
