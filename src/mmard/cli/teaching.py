"""`mmard teachers`, and `mmard fetch` of one: what is known of other people's robust networks."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from mmard.cli.output import commands, console, line, put, table
from mmard.errors import Refused

if TYPE_CHECKING:
    from mmard.teachers import Teacher


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
        rows = table("name", "network", "clean %", "AA %", right=("clean %", "AA %"))
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
    from mmard.share.fetching import by_hand
    from mmard.teachers import find, sources

    teacher = find(spec)[0]
    out = console()
    line(out, teacher.spec, "strong")
    line(out, f"  {teacher.paper}", "quiet")
    rows = table("", "", fold=("",))
    rows.show_header = False
    from mmard.balls import as_fraction

    read = sources()
    places: dict[str, list[str]] = {}
    for what, at in teacher.read.items():
        if at is not None:
            places.setdefault(at, []).append(what)
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
        *((f"{' and '.join(what)} read in", read[at]) for at, what in places.items()),
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
    from mmard.cli.catalogue import fetch_data
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
    from mmard.share.fetching import fetch_teacher
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
