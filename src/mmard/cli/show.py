"""`mmard show`: a run from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmard.cli.options import Json, argument, command
from mmard.cli.screen import commands, console, line, print_json, put, rich_table
from mmard.cli.train import next_commands, position_of, value_text
from mmard.errors import Refused
from mmard.settings import Settings, command_of
from mmard.words import as_fraction, duration, percent, plural, points, printable, significant

if TYPE_CHECKING:
    from mmard.evaluation.evaluate import Measured
    from mmard.run import Run
    from mmard.training.checkpoint import Position


Record = dict[str, Any]


class Show(Json):
    """What `mmard show` is asked for."""

    run: Path = argument("RUN", "A run folder.")


@command(
    "Look",
    """
    mmard show runs/s
    mmard show runs/s --json
    """,
)
def show(options: Show) -> None:
    """What was run, how far it is, how good it is, and what to do next."""
    from mmard.run import Run

    path = options.run
    run = Run.open(path)
    from mmard.tables.figures import findings_of, outgrown, present, scores_of

    if "method" not in run.config:
        got = f"records of {run.config.get('network', 'a network')}"
        raise Refused(str(path), expected="a run that was trained", got=got, mend=f"mmard compare {path} shows them")
    every = scores_of(run)
    scores, early = present(run, every)
    findings, stale = present(run, findings_of(run), every)
    position = position_of(run)
    events = [event for event in run.log() if event["kind"] == "epoch"]
    notes = warnings(run, position, events, scores, findings)
    notes += [f"{outgrown(n, what)}, not shown" for n, what in ((early, "figure"), (stale, "finding")) if n]
    if options.as_json:
        print_json(facts(run, position, events) | {"scores": scores, "findings": findings, "warnings": notes})
        return
    out = console()
    line(out, str(run.path), "strong")
    line(out, f"  {_status(run, position)}")
    if events:
        best = max(events, key=lambda event: (event["robust"], event["clean"]))
        attack = _validation(run)
        for name, event in (("best", best), ("last", events[-1])):
            found = f"{percent(event['clean'])} clean, {percent(event['robust'])} under {attack}"
            line(out, f"  {name} epoch {event['epoch']}: {found}, on validation images")
    out.print()
    _show_settings(run)
    for title, records in _by_weights_and_images(scores):
        out.print()
        line(out, title, "strong")
        put(out, scores_table(records), 2)
    kinds = sorted({str(f.get("over", f["kind"])) for f in findings})
    if kinds:
        out.print()
        line(out, f"also found: {', '.join(kinds)}; mmard report draws them", "quiet")
    for note in notes:
        out.print()
        line(out, f"note: {note}")
    others = next_commands(run, finished=position is not None and position.finished)
    if others := [each for each in others if not each.startswith("mmard show ")]:
        commands(out, "next", others)


def scores_table(records: Sequence[dict[str, Any]]) -> Table:
    """Records as rows: the attack in full, its budget, accuracy, interval, images and seconds."""
    made = rich_table(
        "attack", "budget", "accuracy", "95% interval", "images", "seconds",
        right=("accuracy", "95% interval", "images", "seconds"), fold=("attack",),
    )  # fmt: skip
    for record in records:
        name, _, details = printable(record["label"]).partition(" (")
        label = Text.assemble(name, (f" ({details}" if details else "", "quiet"))
        budget = "none" if record["eps"] is None else f"{record['norm']} {as_fraction(record['eps'])}"
        made.add_row(
            label,
            budget,
            Text(percent(record["accuracy"]), style="strong"),
            points(*record["interval"]),
            f"{record['n']:,}",
            f"{record['seconds']:.1f}",
        )
    return made


def keep(measured: Sequence[Measured], run: Run | None) -> list[dict[str, Any]]:
    """The records of some figures; with a run, written into its folder with their masks."""
    from mmard.evaluation.examine import Recorder

    keeper = Recorder(run)
    for each in measured:
        keeper.score(each)
    return keeper.scores


WHAT = ("method", "inner", "outer", "network", "teachers", "data", "eps", "norm")
"""Settings that say what a run is, which come first."""


def facts(run: Run, position: Position | None, events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run is, as JSON holds it."""
    from dataclasses import asdict

    return {
        "run": str(run.path),
        "command": command_of(run.config),
        "config": run.config,
        "position": asdict(position) if position is not None else None,
        "epochs": events,
    }


def warnings(
    run: Run, position: Position | None, events: list[Record], scores: list[Record], findings: list[Record]
) -> list[str]:
    """What a reader of the figures should know."""
    found = []
    weights = {which: run.weights_file(which).is_file() for which in ("best", "last")}
    if position is not None and position.finished and not all(weights.values()):
        found.append(
            "the run is finished, but "
            + " and ".join(w for w, there in weights.items() if not there)
            + " weights are missing"
        )
    if events and max(event["robust"] for event in events) - events[-1]["robust"] > 0.05:
        found.append(
            "the last epoch is over 5 points less robust than the best one on validation images: robust overfitting"
        )
    if position is not None and position.finished:
        best = max(events, key=lambda event: (event["robust"], event["clean"])) if events else None
        if best is not None and best["robust"] == 0:
            found.append("no validation image survived the attack in any epoch")
    flattered = [r["attack"] for r in scores if r["split"] == "val"]
    for record in findings:
        found += [
            f"suspicious{_at(record)}, {record['which']} weights: {f['check']}: {f['says']}"
            f" (docs/checks.md#{f['check']})"
            for f in record.get("findings", ())
            if f["verdict"] == "suspicious"
        ]
    if flattered:
        found.append(f"figures on validation images ({', '.join(flattered)}) chose the best weights and flatter them")
    return found


def _at(record: Record) -> str:
    return "" if record.get("eps") is None else f" at {record['norm']} {record['eps']:.4g}"


def _status(run: Run, position: Position | None) -> str:
    epochs = run.config.get("epochs", "?")
    if position is None:
        return f"not trained yet: 0 of {epochs} epochs"
    spent = f"{plural(position.step, 'step')}, {duration(position.seconds)}"
    if position.finished:
        return f"finished: {plural(position.epoch, 'epoch')}, {spent}"
    return f"resumable: {position.epoch} of {epochs} epochs are done, {spent}"


def _validation(run: Run) -> str:
    from mmard.attacks import read_attack
    from mmard.balls import Budget

    budget = Budget(run.config["eps"], run.config["norm"])
    return f"{read_attack(run.config['val_attack'], budget).title} at {budget}"


def _by_weights_and_images(records: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Records that can be read beside each other, the clean one first and the worst case last."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(
        records, key=lambda r: (r["which"], r["split"], r["eps"] or 0, r["attack"].startswith("worst"))
    ):
        groups.setdefault(f"{record['which']} weights, {record['images']}", []).append(record)
    return list(groups.items())


def _show_settings(run: Run) -> None:
    """What a run is, then what somebody chose, then the rest in one quiet paragraph."""
    from mmard.job import method_parameters

    out, config = console(), run.config
    core = {
        name: config[name]
        for name in ("method", "inner", "outer", "preset", "data", "teachers")
        if config.get(name) is not None
    }
    usual, settings = Settings.resolve(core), Settings.resolve(config)
    values = settings.as_config()
    chosen = [
        name for name in values if name not in WHAT and name != "params" and values[name] != usual.as_config()[name]
    ]
    params = method_parameters(settings)
    told = {full: settings.params.get(full, default) for full, default in params.items()}
    moved = [full for full in told if told[full] != usual.params.get(full, params[full])]
    rows = rich_table("setting", "value", "")
    for name in WHAT:
        if values.get(name) is not None:
            rows.add_row(name, value_text(name, values[name]))
    for name in (*chosen, *moved):
        before = usual.as_config()[name] if name in chosen else usual.params.get(name, params[name])
        rows.add_row(
            name,
            value_text(name, values.get(name, told.get(name))),
            Text(f"usually {value_text(name, before)}", style="quiet"),
        )
    put(out, rows, 2)
    rest = [
        f"{n} {value_text(n, values[n])}"
        for n in values
        if n not in (*WHAT, *chosen, "params") and values[n] is not None
    ]
    rest += [f"{full} {value_text(full, told[full])}" for full in told if full not in moved]
    line(out, "  as usual: " + ", ".join(rest), "quiet")


# findings -------------------------------------------------------------------------------------------------------------
# What an evaluation found beside accuracies, for a terminal: a few lines each, and the rest is in the records.


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
    rows = rich_table("check", "verdict", "what was seen", fold=("what was seen",))
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
    from mmard.evaluation.findings import FEW_IMAGES, balanced, worst

    first = records[0]
    count, names = first["count"], first["classes"]
    columns = [("clean", first["clean"]), *((_short(r["attack"]), r["attacked"]) for r in records)]
    last = columns[-1][1]
    shown = [c for c in range(len(names)) if count[c]]
    if len(shown) > MOST_CLASSES:
        shown = sorted(shown, key=lambda c: last[c] / count[c])[:MOST_CLASSES]
    heads = [name for name, _ in columns]
    rows = rich_table("class", "images", *heads, right=("images", *heads))
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
    means = [f"{name} {percent(mean)}" for name, right in columns if (mean := balanced(right, count)) is not None]
    line(out, f"  balanced over classes: {', '.join(means)}", "quiet")
    if few := sum(0 < n < FEW_IMAGES for n in count):
        some = plural(few, "class").replace("classs", "classes")
        line(out, f"  {some} with fewer than {FEW_IMAGES} images: accuracies of these are hardly known", "quiet")


def _show_margins(out: Console, records: Sequence[Record]) -> None:
    """The clean images once, then each attack."""
    rows = rich_table("", "mean", "from -1 to 1", right=("mean",))
    rows.add_row("clean", f"{records[0]['mean_clean']:+.2f}", sparkline(out, records[0]["clean"]))
    for each in records:
        rows.add_row(_short(each["attack"]), f"{each['mean_attacked']:+.2f}", sparkline(out, each["attacked"]))
    out.print()
    line(out, f"probability of the true class minus the largest other, {_ball(records)}", "strong")
    put(out, rows, 2)


def _show_calibration(out: Console, records: Sequence[Record]) -> None:
    """The clean images once, then each attack."""
    rows = rich_table("", "expected error", "log-likelihood lost", right=("expected error", "log-likelihood lost"))
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
        rows = rich_table(
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
    from mmard.evaluation.score import wilson

    over = record["over"]
    rows = rich_table(over, "accuracy", "95% interval", "", right=(over, "accuracy", "95% interval"))
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
    return f"{records[0]['norm']} {as_fraction(records[0]['eps'])}"


def _short(attack: str) -> str:
    return "worst case" if attack.startswith("worst_of_") else attack
