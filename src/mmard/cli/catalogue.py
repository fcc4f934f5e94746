"""`mmard methods`, `models`, `data` and `fetch`: what can be named, and how to get it."""

from __future__ import annotations

import inspect
import re
import shlex
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mmard.cli.output import commands, console, line, put, table
from mmard.cli.planned import PASSES, ROLES, counts, passes_table
from mmard.errors import Refused

if TYPE_CHECKING:
    from mmard.method import Method
    from mmard.plan import Passes

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
    rows = table("name", "default", "", fold=("",))
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
    from mmard.evaluation.columns import GROUPS, SPELLINGS

    out = console()
    rows = table("spelling", "attack", fold=("attack",))
    for spelling, says in SPELLINGS:
        rows.add_row(Text(spelling, style="command"), Text(says))
    put(out, rows)
    out.print()
    rows = table("group", "attacks", "", fold=("attacks", ""))
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
    rows = table("name", "weights", right=("weights",))
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
    rows = table("name", "what", "how to get it", fold=("what", "how to get it"))
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
