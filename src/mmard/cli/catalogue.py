"""What can be named, and how to get it: `mmard methods`, `attacks`, `models`, `data`, `teachers`, `fetch`."""

from __future__ import annotations

import inspect
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mmard.catalogue import HOST, STEPS, Fact, facts, families
from mmard.cli.options import Json, Options, argument, command, option
from mmard.cli.train import PASSES, ROLES, passes_table
from mmard.errors import Refused
from mmard.screen import commands, console, line, print_json, put, rich_table
from mmard.teachers import PREFIX, Teacher, find, is_teacher, sources, without_prefix
from mmard.teachers import teachers as known_teachers
from mmard.words import as_fraction


class Methods(Json):
    """What `mmard methods` is asked for."""

    method: str | None = argument("METHOD", "One method, with plug-ins if any, in detail.", None)


@command(
    "Look",
    """
    mmard methods
    mmard methods rslad+mmard
    """,
)
def methods(options: Methods) -> None:
    """Methods and plug-ins: their formulas, papers and parameters, and what a step costs."""
    if options.method is not None:
        found = in_detail(options.method)
        print_json(found) if options.as_json else _show_method(found)
        return
    rows = facts("methods")
    if options.as_json:
        print_json(rows)
        return
    out = console()
    line(out, "methods", "strong")
    put(out, _listing(row for row in rows if row["kind"] == "method"))
    out.print()
    line(out, f"plug-ins, on any method: method+plug-in; passes are what they add to {HOST}, or to pgd_at", "strong")
    put(out, _listing(row for row in rows if row["kind"] == "plug-in"))
    out.print()
    letters = "S student, T teacher, T_nat natural teacher, P peer, x' the attacked x."
    line(out, f"{letters} max: climbed by the attack, min: descended by the student.", "quiet")
    line(out, f"Passes of one step, counted in a run with {STEPS} attack steps; {PASSES}.", "quiet")
    commands(out, "one in detail", [f"mmard methods {HOST}+mmard"])


def _listing(rows: Iterable[Fact]) -> Table:
    made = passes_table("name", "formulas", "net")
    made.columns[1].no_wrap, made.columns[1].overflow, made.columns[1].ratio = False, "fold", 1
    made.expand = True
    for row in rows:
        formulas = Text.assemble((row["source"], "quiet"), "\nmax ", row["attack"] or "-", "\nmin ", row["loss"])
        stacked = [
            "\n".join(map(str, cells)) for cells in zip(*(n.values() for n in row["passes"].values()), strict=True)
        ]
        made.add_row(Text(row["name"], "command"), formulas, "\n".join(row["passes"]), *stacked)
        made.add_row()
    return made


def in_detail(spec: str) -> Fact:
    """One method with its plug-ins: formulas, source, passes, parameters, and where it departs from its sources.

    Raises:
        Refused: for a name that is none.
    """
    from mmard.methods import build, maker, parameters
    from mmard.passes import count_passes

    method = build(spec)
    makers = {name: maker(name) for name in map(str.strip, spec.split("+"))}
    says = {name: argument_sentences(make.__doc__ or "") for name, make in makers.items()}
    notes = {name: _differences(inspect.getmodule(make).__doc__ or "") for name, make in makers.items()}
    return {
        "name": method.name,
        "source": method.source,
        "attack": method.says[0],
        "loss": method.says[1],
        "passes": {letter: asdict(passes) for letter, passes in count_passes(build(spec), STEPS).items()},
        "parameters": [
            {"name": f"{name}.{key}", "default": parameter.default, "says": says[name].get(key, "")}
            for name in makers
            for key, parameter in parameters(name).items()
        ],
        "differences": {name: found for name, found in notes.items() if found},
    }


def _show_method(found: Fact) -> None:
    out = console()
    line(out, found["name"], "strong")
    line(out, f"  {found['source']}", "quiet")
    out.print()
    line(out, f"  attack climbs  {found['attack'] or '-'}")
    line(out, f"  loss descends  {found['loss']}")
    out.print()
    line(out, f"passes in a step, attack of {STEPS} steps", "strong")
    grid = passes_table("network")
    for letter, passes in found["passes"].items():
        grid.add_row(f"{letter} {ROLES[letter]}", *map(str, passes.values()))
    put(out, grid, 2)
    line(out, f"  {PASSES}", "quiet")
    out.print()
    line(out, "parameters: --param NAME=VALUE", "strong")
    rows = rich_table("name", "default", "", fold=("",))
    for row in found["parameters"]:
        rows.add_row(Text(row["name"], "command"), _plain(row["default"]), row["says"])
    put(out, rows, 2)
    for name, (title, *items) in found["differences"].items():
        out.print()
        line(out, f"{name}: {title}", "strong")
        for item in items:
            line(out, f"  {item}", "quiet")


def argument_sentences(docstring: str) -> dict[str, str]:
    """The sentences of a docstring's Args section, by argument.

    >>> argument_sentences("Add.\\n\\nArgs:\\n    a, b: two\\n        numbers.\\n    c: one.\\n\\nRaises:\\n    X: no.")
    {'a': 'two numbers.', 'b': 'two numbers.', 'c': 'one.'}
    """
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(docstring), re.MULTILINE)
    if section is None:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for text in textwrap.dedent(section[1]).splitlines():
        entry = re.match(r"([\w, ]+): (.*)", text) if not text.startswith(" ") else None
        if entry is not None:
            names = [name.strip() for name in entry[1].split(",")]
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {text.strip()}".strip() for name in names}
    return found


def _differences(docstring: str) -> list[str]:
    """The section of a leaf on where it departs from its paper or the authors' code: its title, then its items."""
    found = re.search(r"^Differences from .*?(?=\n\n|\Z)", inspect.cleandoc(docstring), re.MULTILINE | re.DOTALL)
    title, *items = re.split(r"\n(?=\s*\d+\. )|\n(?=\S)", found[0]) if found else [""]
    return [title.splitlines()[0].rstrip(":"), *(" ".join(item.split()) for item in items)] if title else []


def _plain(default: Any) -> str:
    if isinstance(default, bool):
        return "true" if default else "false"
    return f"{default:.3g}" if isinstance(default, float) else str(default)


@command("Look", "mmard attacks")
def attacks(options: Json) -> None:
    """Attacks that an evaluation can be told to make, as they are spelled, and groups of them."""
    from mmard.evaluation.spellings import GROUPS

    if options.as_json:
        print_json({"attacks": facts("attacks"), "groups": {name: asdict(group) for name, group in GROUPS.items()}})
        return
    out = console()
    rows = rich_table("spelling", "attack", fold=("attack",))
    for row in facts("attacks"):
        rows.add_row(Text(row["spelling"], style="command"), Text(row["says"]))
    put(out, rows)
    out.print()
    rows = rich_table("group", "attacks", "", fold=("attacks", ""))
    for name, group in GROUPS.items():
        rows.add_row(Text(name, style="command"), ",".join(group.specs), Text(group.says, style="quiet"))
    put(out, rows)
    out.print()
    line(out, "Numbers can be changed: KIND-STEPSxRESTARTS@STEP for pgd and cw. A step that is a number is", "quiet")
    line(out, "left out of a group where the ball is not linf up to 0.06, which it could not cross.", "quiet")
    commands(out, "next", ["mmard evaluate RUN --attack usual", "mmard evaluate RUN --attack pgd-50x5,square"])


@command("Look", "mmard models")
def models(options: Json) -> None:
    """Networks that can be named, with their numbers of weights."""
    if options.as_json:
        print_json(facts("networks"))
        return
    out = console()
    rows = rich_table("name", "weights", right=("weights",))
    for row in facts("networks"):
        rows.add_row(Text(row["name"], style="command"), f"{row['weights']:,}")
    put(out, rows)
    out.print()
    sized = ", ".join(f.spelt(key, *map(str.upper, f.numbers)) for key, f in families().items() if f.numbers)
    text = f"For 10 classes and 3 channels; images of any size. Any other size of {sized} can be named too,"
    line(out, text, "quiet")
    line(out, "and so can your own code: package.module:function.", "quiet")


@command("Data", "mmard data")
def data(options: Json) -> None:
    """Data sets that can be named, and how to get them."""
    if options.as_json:
        print_json(facts("data"))
        return
    out = console()
    rows = rich_table("name", "what", "how to get it", fold=("what", "how to get it"))
    for row in facts("data"):
        how = "comes with the package" if row["bundled"] else "your own files in --data-dir"
        how = f"mmard fetch {row['name']} --data-dir D" if row["fetched"] else how
        rows.add_row(Text(row["name"], style="command"), row["title"], Text(how, "" if row["fetched"] else "quiet"))
    put(out, rows)
    out.print()
    line(out, "Official archives in --data-dir are read as they are. Nothing is ever fetched unasked.", "quiet")


class Teachers(Json):
    """What `mmard teachers` is asked for."""

    name: str | None = argument("NAME", "One of them, in detail.", None)


@command(
    "Look",
    """
    mmard teachers
    mmard teachers Chen2021LTD_WRN34_10
    """,
)
def teachers(options: Teachers) -> None:
    """Robust networks of other people that can be named as a teacher: claimed accuracies, papers, licences, places.

    Their weights are a file of yours, given with --teacher-weights; `mmard fetch robustbench:NAME` brings most of them.
    """
    name = options.name
    found = known_teachers() if name is None else find(name if is_teacher(name) else PREFIX + name)
    if options.as_json:
        print_json([{**asdict(teacher), "spec": teacher.spec} for teacher in found])
        return
    if name is not None:
        for teacher in found:
            _show_teacher(teacher)
        return
    out = console()
    for data in dict.fromkeys(teacher.data for teacher in found):
        line(out, data, "strong")
        rows = rich_table("name", "network", "clean %", "AA %", right=("clean %", "AA %"))
        for teacher in (t for t in found if t.data == data):
            cells = (teacher.network, f"{100 * teacher.clean:.2f}", f"{100 * teacher.robust:.2f}")
            rows.add_row(Text(teacher.name, style="command"), *cells)
        put(out, rows)
        out.print()
    line(out, "Accuracies as RobustBench lists them, not measured here; linf 8/255, Zhang2019Theoretically 0.031.")
    line(out, "AA: AutoAttack. Where both sets have a name, the data decides, or robustbench:cifar100/NAME.", "quiet")
    example = find("robustbench:cifar10/Chen2021LTD_WRN34_10")[0]
    commands(out, "next", ["mmard teachers robustbench:Chen2021LTD_WRN34_10", _distilling(example, "FILE", "D")])


def _show_teacher(teacher: Teacher) -> None:
    out = console()
    line(out, teacher.spec, "strong")
    line(out, f"  {teacher.paper}", "quiet")
    rows = rich_table("", "", fold=("",))
    rows.show_header = False
    for key, text in _about(teacher).items():
        rows.add_row(Text(key, style="quiet"), text)
    put(out, rows, 2)
    fetch = [f"mmard fetch {teacher.spec} --data-dir D"] if teacher.drive else []
    commands(out, "next", [*fetch, _distilling(teacher, "FILE", "D")])


def _about(teacher: Teacher) -> Mapping[str, str]:
    """What is known about a teacher, line by line."""
    read_in: dict[str, list[str]] = {}
    for what, at in teacher.read.items():
        if at is not None:
            read_in.setdefault(at, []).append(what)
    values = f"mean {list(teacher.mean)}, std {list(teacher.std or ())}" if teacher.mean else "none, it reads [0, 1]"
    lowest = f"; {teacher.lowest:.2%} by another evaluation" if teacher.lowest is not None else ""
    robust = f"{teacher.robust:.2%} under AutoAttack at linf {as_fraction(teacher.eps)}{lowest}"
    return {
        "network": teacher.network,
        "data": teacher.data + (f" and {teacher.extra_data}" if teacher.extra_data else ""),
        "normalisation": values,
        "claimed": f"{teacher.clean:.2%} clean, {robust}",
        "its file": "; ".join(teacher.quirks) or "nothing unusual known",
        "weights": teacher.address or "place not known",
        "licence": f"{teacher.licence} (of the weights)",
        "paper": teacher.link,
        **{f"{' and '.join(what)} read in": sources()[at] for at, what in read_in.items()},
    }


def _distilling(teacher: Teacher, weights: str, folder: str) -> str:
    """The command that distils from a teacher; one that is not robust can only stand beside one that is."""
    use = f"--teacher {teacher.spec} --teacher-weights {weights}"
    if teacher.robust == 0:
        use = f"--method mtard --teacher T=RUN --teacher T_nat={teacher.spec} --teacher-weights T_nat={weights}"
    return f"mmard distill {use} --data {teacher.data} --data-dir {folder} --out runs/s"


class Fetch(Options):
    """What `mmard fetch` is asked for."""

    name: str = argument("NAME", "A data set of `mmard data`, or a teacher of `mmard teachers`: robustbench:NAME.")
    data_dir: Path = option(..., "Where to put it.", "FOLDER")


@command(
    "Data",
    """
    mmard fetch cifar10 --data-dir D
    mmard fetch robustbench:Zhang2019Theoretically --data-dir D
    """,
)
def fetch(options: Fetch) -> None:
    """Fetch a data set from the Hugging Face hub, or a teacher from Google Drive, and check every file.

    Called again, it goes on where it stopped.
    """
    meant = without_prefix(options.name)
    if meant is not None:
        got = f"the bare name of a teacher, {options.name!r}"
        raise Refused("fetch", expected="a data set or a teacher", got=got, mend=f"write {meant}")
    (_fetch_teacher if is_teacher(options.name) else _fetch_data)(options.name, options.data_dir)


def _fetch_data(name: str, data_dir: Path) -> None:
    rows = {row["name"]: row for row in facts("data")}
    if name in rows and not rows[name]["fetched"]:
        expected = "one of " + ", ".join(known for known, row in rows.items() if row["fetched"])
        raise Refused(f"fetch {name}", expected=expected, got=name, mend="see mmard data")
    from mmard.data.fetch import fetch

    out = console()
    folder = fetch(name, data_dir, lambda text: line(out, text))
    line(out, f"complete and checked: {folder}", "strong")
    use = f"--data {name} --data-dir {shlex.quote(str(data_dir))}"
    commands(out, "next", [f"mmard train --method trades --model wide_resnet-16-4 {use} --out runs/teacher --dry-run"])


def _fetch_teacher(spec: str, data_dir: Path) -> None:
    from mmard.share.hub import fetch_teacher

    out = console()
    file = fetch_teacher(spec, data_dir, lambda text: line(out, text))
    teacher = find(spec)[0]
    line(out, f"complete and read: {file}", "strong")
    weights, folder = shlex.quote(str(file)), shlex.quote(str(data_dir))
    use = f"--data {teacher.data} --data-dir {folder}"
    looking = f"mmard evaluate {teacher.spec} --weights {weights} --attack fgsm --eps 8/255 {use}"
    commands(out, "next", [looking, _distilling(teacher, weights, folder)])
