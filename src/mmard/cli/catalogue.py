"""What can be named, and how to get it: `mmard methods`, `attacks`, `models`, `data`, `teachers`, `fetch`."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import textwrap
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mmard.cli.options import Options, argument, command, option
from mmard.cli.screen import commands, console, line, put, rich_table
from mmard.cli.train import PASSES, ROLES, counts, passes_table
from mmard.errors import Refused
from mmard.words import as_fraction

if TYPE_CHECKING:
    from mmard.method import Method
    from mmard.plan import Passes
    from mmard.teachers import Teacher


class Methods(Options):
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
    if options.method is None:
        show_methods()
    else:
        show_method(options.method)


@command("Look", "mmard attacks")
def attacks() -> None:
    """Attacks that an evaluation can be told to make, as they are spelled, and groups of them."""
    show_attacks()


@command("Look", "mmard models")
def models() -> None:
    """Networks that can be named, with their numbers of weights."""
    show_models()


@command("Data", "mmard data")
def data() -> None:
    """Data sets that can be named, and how to get them."""
    show_data()


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
    fetch_named(options.name, options.data_dir)


class Teachers(Options):
    """What `mmard teachers` is asked for."""

    name: str | None = argument("NAME", "One of them, in detail.", None)
    as_json: bool = option(False, "Print records as JSON.", flag="--json")


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
    show_teachers(options.name, options.as_json)


STEPS = 10
"""Steps of the attack for which passes are counted."""
HOST = "rslad"
"""The method on which plug-ins are shown."""


def show_methods() -> None:
    """Every method and every plug-in, with formulas, papers, and counted passes."""
    from mmard.methods import METHODS, PLUGINS, build
    from mmard.plan import count_passes

    out = console()
    line(out, "methods", "strong")
    put(out, _listing([(name, _entry(build(name)), count_passes(build(name), STEPS)) for name in METHODS]))
    out.print()
    host, passes = build(HOST), count_passes(build(HOST), STEPS)
    line(out, f"plug-ins, on any method: method+plug-in; passes are what they add to {HOST}", "strong")
    rows = []
    for name in PLUGINS:
        grown = build(f"{HOST}+{name}")
        entry = _entry(grown)
        source = grown.source.removeprefix(f"{host.source}; ").split(": ", 1)[-1]
        says = [_added(whole, part) for whole, part in zip(grown.says, host.says, strict=True)]
        rows.append(
            (
                name,
                {**entry, "source": source, "inner": says[0], "outer": says[1]},
                _more(count_passes(grown, STEPS), passes),
            )
        )
    put(out, _listing(rows))
    out.print()
    line(
        out,
        "S student, T teacher, T_nat natural teacher, P peer, x' the attacked x. max: climbed by the attack, "
        "min: descended by the student.",
        "quiet",
    )
    line(out, f"Passes of one step, counted in a run with {STEPS} attack steps; {PASSES}.", "quiet")
    commands(out, "one in detail", [f"mmard methods {HOST}+mmard"])


def _entry(method: Method) -> dict[str, Any]:
    return {"source": method.source, "inner": method.says[0], "outer": method.says[1], "nets": method.nets}


def _listing(rows: list[tuple[str, dict[str, Any], dict[str, Passes]]]) -> Table:
    made = passes_table("name", "formulas", "net")
    made.columns[1].no_wrap, made.columns[1].overflow = False, "fold"
    made.columns[1].ratio = 1
    made.expand = True
    for name, entry, passes in rows:
        title = Text.assemble((name, "command"))
        formulas = Text.assemble((entry["source"], "quiet"), "\nmax ", entry["inner"] or "-", "\nmin ", entry["outer"])
        columns = [counts(passes[net]) if net in passes else [""] * 4 for net in entry["nets"]]
        stacked = ["\n".join(cell) for cell in zip(*columns, strict=True)]
        made.add_row(title, formulas, "\n".join(entry["nets"]), *stacked)
        made.add_row()
    return made


def _added(whole: str, part: str) -> str:
    return f"host{whole.removeprefix(part)}" if whole.startswith(part) else whole


def _more(grown: dict[str, Passes], host: dict[str, Passes]) -> dict[str, Passes]:
    from mmard.plan import Passes

    def difference(net: str) -> Passes:
        before = host.get(net, Passes())
        return Passes(**{f.name: getattr(grown[net], f.name) - getattr(before, f.name) for f in fields(Passes)})

    return {net: difference(net) for net in grown}


def show_method(spec: str) -> None:
    """One method with its plug-ins: formulas, sources, parameters, passes.

    Raises:
        Refused: for a name that is none.
    """
    from mmard.methods import METHODS, PLUGINS, build, parameters
    from mmard.plan import count_passes

    method = build(spec)
    out = console()
    line(out, method.name, "strong")
    line(out, f"  {method.source}", "quiet")
    out.print()
    line(out, f"  attack climbs  {method.says[0] or '-'}")
    line(out, f"  loss descends  {method.says[1]}")
    out.print()
    line(out, f"passes in a step, attack of {STEPS} steps", "strong")
    grid = passes_table("network")
    for letter, passes in count_passes(build(spec), STEPS).items():
        grid.add_row(f"{letter} {ROLES[letter]}", *counts(passes))
    put(out, grid, 2)
    line(out, f"  {PASSES}", "quiet")
    out.print()
    line(out, "parameters: --param NAME=VALUE", "strong")
    rows = rich_table("name", "default", "", fold=("",))
    for name in (part.strip() for part in spec.split("+")):
        says = argument_sentences((METHODS.get(name) or PLUGINS[name]).__doc__ or "")
        for key, parameter in parameters(name).items():
            default = parameter.default
            rows.add_row(Text(f"{name}.{key}", style="command"), _plain(default), says.get(key, ""))
    put(out, rows, 2)
    for name in (part.strip() for part in spec.split("+")):
        make = METHODS.get(name) or PLUGINS[name]
        module = inspect.getmodule(make)
        notes = _differences(inspect.cleandoc(module.__doc__ or "")) if module else ""
        if notes:
            out.print()
            line(out, f"{name}: {notes.splitlines()[0].rstrip(':')}", "strong")
            for item in _items(notes):
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


def _differences(docstring: str) -> str:
    """The section of a leaf on where it departs from its paper or the authors' code."""
    found = re.search(r"^Differences from .*?(?=\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def _items(notes: str) -> list[str]:
    """Numbered items, each in one line."""
    return [" ".join(item.split()) for item in re.split(r"\n(?=\s*\d+\. )|\n(?=\S)", notes)[1:]]


def _plain(default: Any) -> str:
    if isinstance(default, bool):
        return "true" if default else "false"
    return f"{default:.3g}" if isinstance(default, float) else str(default)


def show_attacks() -> None:
    """Every spelling of an attack that stands for its kind, and the groups of columns."""
    from mmard.evaluation.spellings import GROUPS, SPELLINGS

    out = console()
    rows = rich_table("spelling", "attack", fold=("attack",))
    for spelling, says in SPELLINGS:
        rows.add_row(Text(spelling, style="command"), Text(says))
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


def show_models() -> None:
    """Every network that can be named, with its number of weights."""
    import torch

    from mmard.models import MODELS, build, names, parameter_count

    out = console()
    rows = rich_table("name", "weights", right=("weights",))
    for name in names():
        with torch.device("meta"):
            n = parameter_count(build(name, num_classes=10, image_shape=(3, 32, 32)))
        rows.add_row(Text(name, style="command"), f"{n:,}")
    put(out, rows)
    out.print()
    sized = ", ".join(
        family.spelt(key, *(n.upper() for n in family.numbers)) for key, family in MODELS.items() if family.numbers
    )
    line(
        out, f"For 10 classes and 3 channels; images of any size. Any other size of {sized} can be named too,", "quiet"
    )
    line(out, "and so can your own code: package.module:function.", "quiet")


def show_data() -> None:
    """Every data set that can be named, and how to get it."""
    from mmard.data import DATA
    from mmard.data.fetch import REPOSITORIES

    out = console()
    rows = rich_table("name", "what", "how to get it", fold=("what", "how to get it"))
    for name, source in DATA.items():
        if source.bundled:
            how = "comes with the package"
        elif name in REPOSITORIES:
            how = f"mmard fetch {name} --data-dir D"
        else:
            how = "your own files in --data-dir"
        rows.add_row(
            Text(name, style="command"), source.title, Text(how, style="" if name in REPOSITORIES else "quiet")
        )
    put(out, rows)
    out.print()
    line(out, "Official archives in --data-dir are read as they are. Nothing is ever fetched unasked.", "quiet")


def fetch_data(name: str, data_dir: Path) -> None:
    """Fetch a data set and say how to use it.

    Raises:
        Refused: for an unknown name, a missing extra, no network, or a file that is not what the hub says.
    """
    from mmard.data.fetch import REPOSITORIES, fetch

    if name not in REPOSITORIES:
        from mmard.data import DATA

        if name in DATA:
            raise Refused(
                f"fetch {name}", expected="one of " + ", ".join(REPOSITORIES), got=name, mend="see mmard data"
            )
    out = console()
    folder = fetch(name, data_dir, lambda text: line(out, text))
    line(out, f"complete and checked: {folder}", "strong")
    use = f"--data {name} --data-dir {shlex.quote(str(data_dir))}"
    commands(out, "next", [f"mmard train --method trades --model wide_resnet-16-4 {use} --out runs/teacher --dry-run"])


def show_teachers(name: str | None, as_json: bool) -> None:
    """All known teachers in a table, or one in detail.

    Raises:
        Refused: for a name that is none.
    """
    from mmard.teachers import PREFIX, find, is_teacher, teachers

    found = teachers() if name is None else find(name if is_teacher(name) else PREFIX + name)
    if as_json:
        print(json.dumps([{**asdict(teacher), "spec": teacher.spec} for teacher in found], indent=2))
        return
    out = console()
    if name is not None:
        for teacher in found:
            _detail(teacher.spec)
        return
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
    example = "robustbench:Chen2021LTD_WRN34_10"
    commands(
        out,
        "next",
        [
            f"mmard teachers {example}",
            f"mmard distill --teacher {example} --teacher-weights FILE --data cifar10 --data-dir D --out runs/s",
        ],
    )


def _detail(spec: str) -> None:
    from mmard.share.hub import by_hand
    from mmard.teachers import find, sources

    teacher = find(spec)[0]
    out = console()
    line(out, teacher.spec, "strong")
    line(out, f"  {teacher.paper}", "quiet")
    rows = rich_table("", "", fold=("",))
    rows.show_header = False
    read = sources()
    read_in: dict[str, list[str]] = {}
    for what, at in teacher.read.items():
        if at is not None:
            read_in.setdefault(at, []).append(what)
    values = f"mean {list(teacher.mean)}, std {list(teacher.std or ())}" if teacher.mean else "none, it reads [0, 1]"
    lowest = f"; {teacher.lowest:.2%} by another evaluation" if teacher.lowest is not None else ""
    robust = f"{teacher.robust:.2%} under AutoAttack at linf {as_fraction(teacher.eps)}{lowest}"
    for key, text in (
        ("network", teacher.network),
        ("data", teacher.data + (f" and {teacher.extra_data}" if teacher.extra_data else "")),
        ("normalisation", values),
        ("claimed", f"{teacher.clean:.2%} clean, {robust}"),
        ("its file", "; ".join(teacher.quirks) or "nothing unusual known"),
        ("weights", by_hand(teacher) if teacher.drive else "place not known"),
        ("licence", f"{teacher.licence} (of the weights)"),
        ("paper", teacher.link),
        *((f"{' and '.join(what)} read in", read[at]) for at, what in read_in.items()),
    ):
        rows.add_row(Text(key, style="quiet"), text)
    put(out, rows, 2)
    fetch = [f"mmard fetch {teacher.spec} --data-dir D"] if teacher.drive else []
    commands(out, "next", [*fetch, _distilling(teacher, "FILE", "D")])


def _distilling(teacher: Teacher, weights: str, folder: str) -> str:
    """The command that distils from a teacher; one that is not robust can only stand beside one that is."""
    use = f"--teacher {teacher.spec} --teacher-weights {weights}"
    if teacher.robust == 0:
        use = f"--method mtard --teacher T=RUN --teacher T_nat={teacher.spec} --teacher-weights T_nat={weights}"
    return f"mmard distill {use} --data {teacher.data} --data-dir {folder} --out runs/s"


def fetch_named(name: str, data_dir: Path) -> None:
    """Fetch a data set, or a teacher.

    Raises:
        Refused: for a name that is none, a teacher's without its prefix among them.
    """
    from mmard.teachers import is_teacher, without_prefix

    meant = without_prefix(name)
    if meant is not None:
        got = f"the bare name of a teacher, {name!r}"
        raise Refused("fetch", expected="a data set or a teacher", got=got, mend=f"write {meant}")
    (fetch_known if is_teacher(name) else fetch_data)(name, data_dir)


def fetch_known(spec: str, data_dir: Path) -> None:
    """Fetch a teacher's file, and say how to use it.

    Raises:
        Refused: for an unknown name, no network, or a file that is not the teacher's.
    """
    from mmard.share.hub import fetch_teacher
    from mmard.teachers import find

    out = console()
    file = fetch_teacher(spec, data_dir, lambda text: line(out, text))
    teacher = find(spec)[0]
    line(out, f"complete and read: {file}", "strong")
    weights, folder = shlex.quote(str(file)), shlex.quote(str(data_dir))
    use = f"--data {teacher.data} --data-dir {folder}"
    commands(
        out,
        "next",
        [
            f"mmard evaluate {teacher.spec} --weights {weights} --attack fgsm --eps 8/255 {use}",
            _distilling(teacher, weights, folder),
        ],
    )
