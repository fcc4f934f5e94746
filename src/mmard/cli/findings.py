"""What an evaluation found beside accuracies, for a terminal: a few lines each, and the rest is in the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mmard.cli.output import line, put, table
from mmard.words import percent, plural, points, significant

Record = dict[str, Any]

MOST_CLASSES = 20
"""Classes up to which each has its row; of more, the worst are shown."""
BAR = 24


def show_findings(out: Console, findings: Sequence[Record], left_out: Sequence[str], folder: Path | None) -> None:
    """Print findings by kind, the suspicious checks before all others."""
    by_kind: dict[str, list[Record]] = {}
    for record in findings:
        by_kind.setdefault(record["kind"], []).append(record)
    for record in by_kind.get("checks", []):
        _show_checks(out, record)
    if "classes" in by_kind:
        _show_classes(out, by_kind["classes"])
    for kind, show in (("margins", _show_margins), ("calibration", _show_calibration)):
        if kind in by_kind:
            show(out, by_kind[kind])
    if "boundary" in by_kind:
        _show_boundary(out, by_kind["boundary"])
    for record in by_kind.get("curve", []):
        _show_curve(out, record)
    for record in by_kind.get("examples", []):
        _show_examples(out, record, folder)
    for text in left_out:
        out.print()
        line(out, f"left out: {text}", "quiet")


def _show_checks(out: Console, record: Record) -> None:
    """Suspicious ones in full; the others by name, or in full where they were asked for."""
    found = record["findings"]
    of = {verdict: [f for f in found if f["verdict"] == verdict] for verdict in ("suspicious", "passed", "skipped")}
    out.print()
    for each in of["suspicious"]:
        line(out, f"suspicious: {each['check']}: {each['says']} (docs/checks.md#{each['check']})", "bold red")
    if of["passed"]:
        names = ", ".join(f["check"] for f in of["passed"])
        line(out, f"{plural(len(of['passed']), 'suspicion check')} passed: {names}", "quiet")
    if of["skipped"]:
        names = ", ".join(f["check"] for f in of["skipped"])
        line(out, f"not checked: {names}; --also checks does what it can", "quiet")


def show_every_check(out: Console, record: Record) -> None:
    """Each check with its verdict and its line."""
    rows = table("check", "verdict", "what was seen", fold=("what was seen",))
    styles = {"suspicious": "bold red", "passed": "good", "skipped": "quiet"}
    for each in record["findings"]:
        style = styles[each["verdict"]]
        says = Text(each["says"], style="quiet" if each["verdict"] == "skipped" else "")
        rows.add_row(each["check"], Text(each["verdict"], style=style), says)
    out.print()
    line(out, "suspicion checks, each explained in docs/checks.md", "strong")
    put(out, rows, 2)


def _show_classes(out: Console, records: Sequence[Record]) -> None:
    """Classes as rows, attacks as columns; the worst of a column stands out."""
    from mmard.evaluation.classes import worst

    first = records[0]
    count, names = first["count"], first["classes"]
    columns = [("clean", first["clean"]), *((_short(r["attack"]), r["attacked"]) for r in records)]
    last = columns[-1][1]
    shown = [c for c in range(len(names)) if count[c]]
    if len(shown) > MOST_CLASSES:
        shown = sorted(shown, key=lambda c: last[c] / count[c])[:MOST_CLASSES]
    heads = [name for name, _ in columns]
    rows = table("class", "images", *heads, right=("images", *heads))
    worst_of = {name: worst(right, count) for name, right in columns}
    for c in shown:
        cells = [
            Text(percent(right[c] / count[c]), style="strong" if worst_of[name] == c else "") for name, right in columns
        ]
        rows.add_row(names[c], f"{count[c]:,}", *cells)
    more = "" if len(shown) == len(names) else f", the {len(shown)} worst of {len(names)}"
    out.print()
    line(out, f"by class{more}, {_ball(records)}", "strong")
    put(out, rows, 2)
    told = [
        f"{name} {names[w]} with {percent(right[w] / count[w])}"
        for name, right in columns
        if (w := worst_of[name]) is not None
    ]
    line(out, f"  worst: {', '.join(told)}", "quiet")


def _show_margins(out: Console, records: Sequence[Record]) -> None:
    """The clean images once, then each attack."""
    rows = table("", "mean", "from -1 to 1", right=("mean",))
    rows.add_row("clean", f"{records[0]['mean_clean']:+.2f}", sparkline(out, records[0]["clean"]))
    for each in records:
        rows.add_row(_short(each["attack"]), f"{each['mean_attacked']:+.2f}", sparkline(out, each["attacked"]))
    out.print()
    line(out, f"probability of the true class minus the largest other, {_ball(records)}", "strong")
    put(out, rows, 2)


def _show_calibration(out: Console, records: Sequence[Record]) -> None:
    """The clean images once, then each attack."""
    rows = table("", "expected error", "log-likelihood lost", right=("expected error", "log-likelihood lost"))
    rows.add_row("clean", percent(records[0]["ece_clean"]), f"{records[0]['nll_clean']:.3f} nats")
    for each in records:
        rows.add_row(_short(each["attack"]), percent(each["ece_attacked"]), f"{each['nll_attacked']:.3f} nats")
    out.print()
    line(out, f"calibration over {len(records[0]['clean'])} bins of confidence, {_ball(records)}", "strong")
    put(out, rows, 2)


def _show_boundary(out: Console, records: Sequence[Record]) -> None:
    for record in records:
        out.print()
        line(out, f"distance to decision boundaries, {record['split']} images, {_under(record)}", "strong")
        rows = table(
            "network", "images", "margin", "wrong", "entropy", "if linear", "nearest found",
            right=("margin", "wrong", "entropy", "if linear", "nearest found"),
        )  # fmt: skip
        for who in ("teacher", "student"):
            for name in ("clean", "attacked"):
                each = record[name][who]
                lengths = (each[key] for key in ("distance_first_order", "distance_minimal"))
                shown = ["none" if length is None else significant(length) for length in lengths]
                margin, entropy = f"{each['mean_margin']:+.2f}", f"{each['entropy']:.3f}"
                rows.add_row(who, name, margin, percent(each["wrong"]), entropy, *shown)
        put(out, rows, 2)
    last = records[-1]
    line(out, f"  Teacher: {last['teacher']}. Margin and entropy in nats, distances in {last['norm']}.", "quiet")
    n = max(last[name][who]["n_minimal"] for name in ("clean", "attacked") for who in ("teacher", "student"))
    if n:
        line(out, f"  Nearest found: mean over {plural(n, 'image')}, an upper bound ({last['minimal_by']}).", "quiet")


def _show_curve(out: Console, record: Record) -> None:
    from mmard.balls import as_fraction
    from mmard.evaluation.score import wilson

    over = record["over"]
    rows = table(over, "accuracy", "95% interval", "", right=(over, "accuracy", "95% interval"))
    for point in record["points"]:
        share = point["correct"] / point["n"]
        value = as_fraction(point["value"]) if over == "eps" else f"{point['value']:g}"
        rows.add_row(
            value, Text(percent(share), style="strong"), points(*wilson(point["correct"], point["n"])), bar(out, share)
        )
    where = record["norm"] if over == "eps" else _ball([record])
    out.print()
    line(out, f"accuracy against {over}, {record['label']}, {where}", "strong")
    put(out, rows, 2)
    if over == "eps":
        line(out, "  each radius attacked anew; at the largest, one grey image is in every ball", "quiet")


def _show_examples(out: Console, record: Record, folder: Path | None) -> None:
    broken = sum(item["true"] != item["adv_pred"] for item in record["items"])
    told = f"{plural(len(record['items']), 'example')}: {broken} broken, {len(record['items']) - broken} held"
    out.print()
    line(out, f"{told}, {_under(record)}" + ("" if folder is None else f"; images in {folder}"))


def bar(out: Console, share: float) -> str:
    """A share in [0, 1] as a bar, of letters where the console has no blocks."""
    full, partial = divmod(round(share * BAR * 8), 8)
    if not _draws(out):
        return "#" * round(share * BAR)
    return "█" * full + (" ▏▎▍▌▋▊▉"[partial] if partial else "")


def sparkline(out: Console, values: Sequence[int]) -> str:
    """Counts as columns of eight heights; an empty bin is a dot, one with anything at least the lowest column."""
    heights = "▁▂▃▄▅▆▇█" if _draws(out) else "12345678"
    most = max([*values, 1])
    return "".join("·" if not v and _draws(out) else "." if not v else heights[(8 * v - 1) // most] for v in values)


def _draws(out: Console) -> bool:
    return out.encoding.lower().startswith("utf")


def _under(record: Record) -> str:
    return f"{record['label']} at {_ball([record])}"


def _ball(records: Sequence[Record]) -> str:
    from mmard.balls import as_fraction

    return f"{records[0]['norm']} {as_fraction(records[0]['eps'])}"


def _short(attack: str) -> str:
    return "worst case" if attack.startswith("worst_of_") else attack
