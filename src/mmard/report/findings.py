"""What evaluations found beside accuracies: checks, margins and calibration, boundaries, images."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mmard.evaluation.score import wilson
from mmard.report.plots import Bin, Dot, dot_rows, histogram, reliability
from mmard.report.runs import (
    TRAINING,
    Chosen,
    ReportedRun,
    ReportedRuns,
    listed,
    named,
    number,
    of_255,
    percent,
    protocol,
)
from mmard.report.section import Picture, Section
from mmard.tables.records import Record
from mmard.tables.table import Emphasis, Entry, Table
from mmard.words import plural

LONGEST_TABLE = 16
"""Rows that are shown unasked."""


def long_or_short(table: Table, title: str) -> Section:
    """A table as a part, folded where it is long."""
    return Section(title, tables=[table], folded=len(table.rows) > LONGEST_TABLE)


# checks: what each looks for, and what it said of each run
EXPLAINED = {
    "randomised": "Answers that differ from call to call hide the gradient from an attack that takes one of them.",
    "softmax-outputs": "Probabilities instead of logits saturate, and the gradients of losses on them vanish.",
    "test-time-adaptation": "A network that changes while it is asked is another one for each image and each attack.",
    "degenerate-predictions": "One class for all images, or logits that tie: no attack can lower such an accuracy.",
    "vanishing-gradients": "Where the gradient is zero, attacks that follow it stand still: it only seems robust.",
    "misleading-gradients": "Where a step along the gradient does not raise the loss, attacks go astray.",
    "rescaled-loss": "If an attack succeeds better with scaled logits, the unscaled gradient was too small to follow.",
    "fgsm-beats-pgd": "One step must not succeed where many fail: then the many are misled.",
    "more-steps": "Further steps must not succeed less often.",
    "larger-radius": "A larger ball holds the smaller one, so accuracy must not be higher in it.",
    "huge-radius": "In a ball that holds any image accuracy must be about nothing.",
    "black-box-beats-white-box": "An attack on the logits alone must not succeed where one with gradients fails.",
    "autoattack-above-pgd": "AutoAttack holds stronger attacks than PGD; more accuracy under it means one failed.",
}
"""What a suspicious verdict means, by slug."""
MOST_NAMES = 4
"""Runs that a verdict names; of more it tells the number."""
VERDICTS: dict[str, Emphasis] = {"suspicious": "alarm", "skipped": "quiet", "passed": "good"}
"""Verdicts of a check, the one to see first at the front; what was made counts before what was skipped."""


def checks_section(report: ReportedRuns) -> Section:
    """What is suspected, then what was not made and what passed."""
    by_check: dict[str, dict[str, Record]] = {}
    having = [run for run in report.runs if run.found("checks")]
    for run in having:
        for found in run.found("checks"):
            name = run.name if found["which"] == "best" else f"{run.name} ({found['which']})"
            for each in found["findings"]:
                of = by_check.setdefault(str(each["check"]), {})
                made_before = name in of and of[name]["verdict"] != "skipped"
                if not made_before or each["verdict"] == "suspicious":
                    of[name] = each
    if not having:
        return Section("Suspicion", "checks")
    known = list(EXPLAINED)
    slugs = sorted(by_check, key=lambda slug: known.index(slug) if slug in known else len(known))
    of_verdict = {
        verdict: [slug for slug in slugs if verdict in {each["verdict"] for each in by_check[slug].values()}]
        for verdict in VERDICTS
    }
    suspicious = of_verdict["suspicious"]
    skipped = [slug for slug in of_verdict["skipped"] if slug not in suspicious]
    passed = [slug for slug in slugs if slug not in suspicious and slug not in skipped]
    everywhere = f" on all {len(having)} runs" if len(having) > 1 else ""
    found_what = f"Suspicious: {listed(suspicious)}." if suspicious else "Nothing suspicious was found."
    rest = f"{plural(len(passed), 'suspicion check')} passed{everywhere}: {', '.join(passed)}." if passed else ""
    parts = [
        Section(f"{plural(len(some), 'check')} {verdict}", tables=[_checks_table(report, some, by_check)], folded=True)
        for some, verdict in ((skipped, "not made everywhere"), (passed, "passed"))
        if some
    ]
    sentences = [found_what, *([rest] if rest else [])]
    sentences += [f"Not made: {', '.join(skipped)}; --also checks makes what it can."] if skipped else []
    return Section(
        "Suspicion",
        "checks",
        [*sentences, "Signs that a robust accuracy says more about the attack than about the network; docs/checks.md."],
        tables=[_checks_table(report, suspicious, by_check)] if suspicious else [],
        parts=parts,
        alarm=bool(suspicious),
    )


def _checks_table(report: ReportedRuns, slugs: Sequence[str], by_check: dict[str, dict[str, Record]]) -> Table:
    """A row for each thing that was said of a check: of suspicious runs by themselves, of others together."""
    rows: list[list[str | Entry]] = []
    for slug in slugs:
        own = by_check[slug]
        by_words: dict[tuple[str, str, str], list[str]] = {}
        for verdict, (name, each) in itertools.product(VERDICTS, own.items()):
            if each["verdict"] == verdict:
                figures = each.get("figures") or {} if verdict == "suspicious" else {}
                said = f" ({', '.join(f'{key} {number(value)}' for key, value in figures.items())})" if figures else ""
                one = name if verdict == "suspicious" else ""
                by_words.setdefault((verdict, f"{each['says']}{said}", one), []).append(name)
        for place, ((verdict, says, _), names) in enumerate(by_words.items()):
            title = slug.replace("-", " ")
            anchor = Markup('<span id="check-{}">{}</span>').format(slug, title)
            first = Entry(title, below=EXPLAINED.get(slug, ""), markup=anchor) if place == 0 else Entry()
            who = f"all {len(own)} runs" if len(names) == len(own) > MOST_NAMES else listed(names)
            who = f"{len(names)} of {len(own)} runs" if MOST_NAMES < len(names) < len(own) else who
            rows.append([who, first, Entry(verdict, emphasis=VERDICTS[verdict]), says])
    return without_names(report, Table(("run", "check", "verdict", "what was seen"), rows, words=4))


def alarms(report: ReportedRuns) -> int:
    """Suspicious verdicts in all runs, each check of the same weights once."""
    found = {
        (run.name, record["which"], each["check"])
        for run in report.runs
        for record in run.found("checks")
        for each in record["findings"]
        if each["verdict"] == "suspicious"
    }
    return len(found)


# confidence: margins, confidence and calibration
CONFIDENCE_LEAD = (
    "The margin is the probability of the true class minus the largest other: right of zero an image is classified"
    " rightly. A network is calibrated where it is right as often as it is sure."
)
HISTOGRAMS = (("", "Margin", "margin"), ("confidence_", "Confidence", "probability of the predicted class"))
"""What their keys in a record begin with, their title, and their axis."""


def confidence_section(report: ReportedRuns) -> Section:
    """Histograms of margin and confidence, reliability, and the numbers behind them."""
    chosen = Chosen(report, "margins", "calibration")
    first: list[Picture] = []
    seeds: list[Picture] = []
    attacks: list[Picture] = []
    for group in report.groups:
        own = [run for run in group.runs if chosen.all(run, "margins") or chosen.all(run, "calibration")]
        for k, run in enumerate(own):
            for place, found in enumerate(chosen.all(run, "margins")[: 1 if k else None]):
                (attacks if place else seeds if k else first).extend(_margins(report, run, found, chosen, place))
            for place, found in enumerate(chosen.all(run, "calibration")[: 1 if k else None]):
                picture = _calibration(report, run, found, chosen, place)
                (attacks if place else seeds if k else first).append(picture)
    if not first:
        return Section("Confidence", "confidence")
    parts = [Section("", sentences=chosen.below("Attacked"))]
    parts += [Section("The other seeds", pictures=seeds, folded=True)] if seeds else []
    parts += [Section("Other attacks", pictures=attacks, folded=True)] if attacks else []
    parts.append(long_or_short(_confidence_table(report, chosen), "Margins and errors of calibration"))
    return Section("Confidence", "confidence", [CONFIDENCE_LEAD], first, parts=parts)


def _title(report: ReportedRuns, run: ReportedRun, what: str) -> str:
    group = report.groups[run.group]
    if report.single:
        return what
    seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
    return f"{what}: {group.short}{seed}"


def _margins(report: ReportedRuns, run: ReportedRun, found: Record, chosen: Chosen, place: int) -> list[Picture]:
    made = []
    for key, what, x in HISTOGRAMS:
        if f"{key}edges" not in found:
            continue
        edges, clean, attacked = (found[f"{key}{part}"] for part in ("edges", "clean", "attacked"))
        slug, title = f"{what.lower()}-{run.group}-{run.seed}-{place}", _title(report, run, what)
        alt = f"{title}, histogram of {found['n']:,} images: {_said(key, edges, clean, attacked)}."
        split = None if key else (0.0, "wrong", "right")
        draw = partial(histogram, slug, alt, edges, attacked, clean, index=run.group, x=x, y="images", split=split)
        note = f"{protocol(found)}." if place else chosen.beside(found)
        made.append(Picture(slug, title, draw, note, _bins(edges, clean, attacked)))
    return made


def _said(key: str, edges: Sequence[float], clean: Sequence[int], attacked: Sequence[int]) -> str:
    if key:
        tops = [edges[max(range(len(c)), key=lambda i, c=c: c[i])] for c in (clean, attacked)]  # type: ignore[misc]
        return f"commonest near {number(tops[0])} without attack and near {number(tops[1])} under it"
    shares = [sum(n for e, n in zip(edges, c, strict=False) if e >= 0) / max(sum(c), 1) for c in (clean, attacked)]
    return f"{percent(shares[0])} % right of zero without attack, {percent(shares[1])} % under it"


def _bins(edges: Sequence[float], clean: Sequence[int], attacked: Sequence[int]) -> Table:
    rows = [
        (f"{number(round(a, 6))} to {number(round(b, 6))}", str(c), str(d))
        for a, b, c, d in zip(edges, edges[1:], clean, attacked, strict=False)
        if c or d
    ]
    return Table(("from, to", "clean", "attacked"), rows)


def _calibration(report: ReportedRuns, run: ReportedRun, found: Record, chosen: Chosen, place: int) -> Picture:
    slug, title = f"calibration-{run.group}-{run.seed}-{place}", _title(report, run, "Calibration")
    alt = (
        f"{title}: accuracy against confidence. Expected calibration error {percent(found['ece_clean'])} % without "
        f"attack and {percent(found['ece_attacked'])} % under it."
    )
    draw = partial(reliability, slug, alt, _points(found["clean"]), _points(found["attacked"]), index=run.group)
    rows = [
        (f"{number(b['lower'])} to {number(b['upper'])}", state, str(b["n"]), percent(b["confidence"]),
         percent(b["accuracy"]))
        for state in ("clean", "attacked") for b in found[state] if b["n"]
    ]  # fmt: skip
    table = Table(("confidence", "images are", "images", "mean confidence %", "accuracy %"), rows, words=2)
    note = "Below the diagonal: surer than right. Line: 95 % interval; bins of fewer than 5 images are left out. "
    return Picture(slug, title, draw, note + (f"{protocol(found)}." if place else chosen.beside(found)), table)


def _points(bins: Sequence[Record]) -> list[Bin]:
    made = []
    for each in bins:
        if each["n"] >= 5:
            low, high = wilson(round(each["accuracy"] * each["n"]), each["n"])
            made.append(Bin(each["confidence"], each["accuracy"], low, high))
    return made


def _confidence_table(report: ReportedRuns, chosen: Chosen) -> Table:
    """A row for each run and attack."""
    found: dict[tuple[str, str], dict[str, Record]] = {}
    for kind in ("margins", "calibration"):
        for run in chosen.having(kind):
            for record in chosen.all(run, kind):
                found.setdefault((run.name, protocol(record)), {})[kind] = record
    name = named([next(iter(both.values())) for both in found.values()])
    rows = []
    for (run_name, _), both in found.items():
        margins, calibration = both.get("margins", {}), both.get("calibration", {})
        each = [margins.get("mean_clean"), margins.get("mean_attacked")]
        shares = [percent(calibration[key]) if calibration else "" for key in ("ece_clean", "ece_attacked")]
        nats = [number(calibration.get(key)) for key in ("nll_clean", "nll_attacked")]
        rows.append((run_name, name(margins or calibration), *map(number, each), *shares, *nats))
    head = ("run", "attack", "mean margin, clean", "mean margin, attacked", "calibration error, clean %",
            "calibration error, attacked %", "NLL, clean (nats)", "NLL, attacked (nats)")  # fmt: skip
    return without_names(
        report, Table(head, rows, "Means over images, expected errors of calibration and negative log-likelihoods", 2)
    )


def without_names(report: ReportedRuns, table: Table) -> Table:
    """A table whose first column names runs, without it where there is one run."""
    if not report.single:
        return table
    rows = [row[1:] for row in table.rows]
    return Table(table.heads[1:], rows, table.caption, table.words - 1, kind=table.kind)


# boundary: how near attacked images lie to the boundaries of the teacher and of the student
BOUNDARY_LEAD = (
    "The margin here is log p(y) minus the largest other log-probability, in nats: below zero a network is wrong."
    " Robust information of the teacher lies near its boundary; examples for which its margin stays large teach little."
)


def boundary_section(report: ReportedRuns) -> Section:
    """Histograms of margins of both networks, and distances to both boundaries."""
    # What was found of a network alone, as a terminal shows it, has no settings and asks for no teacher.
    untaught = all(run.config and not run.config.get("teachers") for run in report.runs)
    chosen = Chosen(report, "boundary")
    title, slug = "Nearness to the boundary", "boundary"
    if not chosen.having():
        return Section(title, slug, ["No run here has a teacher to compare with."] if untaught else [])
    parts: list[Section] = []
    others: list[Picture] = []
    for place, rows in enumerate(chosen.by_protocol()):
        first = rows[0][1]
        training = first["attack"] == TRAINING
        labels = dict.fromkeys(str(record["label"]) for _, record in rows) if training else {}
        how = _images(first) if training else protocol(first)
        attacks = f" Attacks: {'; '.join(labels)}." if labels else ""
        sentence = f"{how}.{attacks} Teacher: {first['teacher']}."
        shown: list[Picture] = []
        seen: set[int] = set()
        for run, record in rows:
            (others if run.group in seen else shown).extend(_histograms(report, run, record, place))
            seen.add(run.group)
        overview = _overview(report, rows, place) if len(rows) > 1 else []
        folded = bool(overview and place)
        below = [Section("Histograms", pictures=shown, folded=True)] if folded else []
        parts.append(Section(_heading(first), sentences=[sentence], pictures=overview or shown, parts=below))
        if overview and not folded:
            parts.append(Section("", pictures=shown))
    if others:
        parts.append(Section("The other seeds", pictures=others, folded=True))
    parts.append(long_or_short(_distances(report, chosen), "Means and distances"))
    return Section(title, slug, [BOUNDARY_LEAD], parts=parts)


def _heading(record: Record) -> str:
    images = {"test": "Test images", "val": "Validation images", "train": "Training images"}[record["split"]]
    return f"{images}, under the attack that trained" if record["attack"] == TRAINING else f"{images}, attacked"


def _images(record: Record) -> str:
    """How a finding under the training's own attack was made."""
    images = str(record["images"])
    return f"{images[:1].upper()}{images[1:]}; {record['which']} weights, attack seed {record['seed']}"


def _overview(report: ReportedRuns, found: Sequence[tuple[ReportedRun, Record]], place: int) -> list[Picture]:
    """Margins and distances of all runs of one protocol, clean and attacked."""
    grey = of_255([record.get("eps") or 0.0 for _, record in found])
    unit, by = ("1/255", 255.0) if grey else ("input units", 1.0)
    quantities: list[tuple[str, str, str, float]] = [
        ("teacher", "mean_margin", "margin, nats", 1.0),
        ("teacher", "distance_first_order", f"first-order distance, {unit}", by),
        ("student", "mean_margin", "margin, nats", 1.0),
    ]
    made = []
    groups = [group for group in report.groups if any(run.group == group.index for run, _ in found)]
    for whose, key, what, scale in quantities:
        dots, lines = [], []
        for row, group in enumerate(groups):
            own = [(run, record) for run, record in found if run.group == group.index]
            for k, (run, record) in enumerate(own):
                before, after = (float(record[state][whose][key]) * scale for state in ("clean", "attacked"))
                shift = (k - (len(own) - 1) / 2) * min(0.22, 0.6 / len(own))
                dots.append(Dot(row, before, before, after, group.index, hollow=True, shift=shift))
                dots.append(Dot(row, after, None, None, group.index, shift=shift))
                lines.append((run.name, number(before), number(after)))
        title = f"{'Teacher' if whose == 'teacher' else 'Student'}: {what.split(',')[0]}"
        slug = f"near-{place}-{whose}-{key.replace('_', '-')}"
        alt = f"{title}, clean and attacked: " + "; ".join(f"{n} {a} to {b}" for n, a, b in lines) + "."
        zero, names = key == "mean_margin", [g.short for g in groups]
        draw = partial(dot_rows, slug, alt, names, dots, x=what, fractions=False, zero=zero)
        table = Table(("run", f"clean ({what.split(', ')[-1]})", "attacked"), lines)
        made.append(Picture(slug, title, draw, "Hollow: clean; filled: attacked.", table))
    return made


def _histograms(report: ReportedRuns, run: ReportedRun, found: Record, place: int) -> list[Picture]:
    held: Record = found["histograms"]
    made = []
    for whose in ("teacher", "student"):
        slug, title = f"boundary-{place}-{whose}-{run.group}-{run.seed}", _title(report, run, f"Margin of the {whose}")
        clean, attacked = (found[state][whose] for state in ("clean", "attacked"))
        alt = (
            f"{title}, histogram: mean {number(clean['mean_margin'])} nats without attack, "
            f"{number(attacked['mean_margin'])} under it; wrong on {percent(attacked['wrong'])} % of attacked images."
        )
        draw = partial(
            histogram, slug, alt, held["edges"], held[f"{whose}_attacked"], held[f"{whose}_clean"], index=run.group,
            x="margin, nats", y="images", split=(0.0, "wrong", "right"), limits=_busy(held),
        )  # fmt: skip
        table = _bins(held["edges"], held[f"{whose}_clean"], held[f"{whose}_attacked"])
        made.append(Picture(slug, title, draw, "", table))
    return made


def _busy(held: Record) -> tuple[float, float]:
    """The bins that some network uses, and zero."""
    keys = [key for key in held if key != "edges"]
    used = [i for i in range(len(held["edges"]) - 1) if any(held[key][i] for key in keys)]
    if not used:
        return float(held["edges"][0]), float(held["edges"][-1])
    low, high = float(held["edges"][used[0]]), float(held["edges"][used[-1] + 1])
    return min(low, -0.02 * (high - low)), max(high, 0.02 * (high - low))


def _distances(report: ReportedRuns, chosen: Chosen) -> Table:
    """Rows for each run, protocol, state and network."""
    found = [(run, record) for run in chosen.having() for record in chosen.all(run)]
    name = named([record for _, record in found])
    rows = []
    for run, record in found:
        for state, whose in itertools.product(("clean", "attacked"), ("teacher", "student")):
            one: dict[str, Any] = record[state][whose]
            least = one.get("distance_minimal")
            minimal = "\N{EN DASH}" if least is None else f"{number(least)} ({one['n_minimal']})"
            rows.append(
                (run.name, name(record), f"{whose}, {state}", number(one["mean_margin"]), percent(one["wrong"]),
                 number(one["entropy"]), number(one["distance_first_order"]), minimal)
            )  # fmt: skip
    head = ("run", "attack", "network, images", "margin (nats)", "wrong %", "entropy (nats)", "first-order distance",
            "nearest found (images)")  # fmt: skip
    caption = "Means over images; distances in input units, the nearest found an upper bound"
    return without_names(report, Table(head, rows, caption, 3))


# examples: images, what was added to them, and what both networks make of them
SHOWN = 6
"""Images of a run where several runs are shown."""
EXAMPLES_LEAD = (
    "Grey is no change; the perturbation is magnified by the factor that is said. Nobody chose the images: they are"
    " the first that the attack broke and the first that stood."
)


def examples_section(report: ReportedRuns) -> Section:
    """Images of the first seed of each group; those of the others are in their folders."""
    parts = []
    for group in report.groups:
        for run in [run for run in group.runs if any(found["items"] for found in run.found("examples"))][:1]:
            found = run.found("examples")[0]
            broken = sum(item["true"] != item["adv_pred"] for item in found["items"])
            kept = f"{plural(len(found['items']), 'example')}: {broken} broken, {len(found['items']) - broken} held"
            seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
            title = "" if report.single else f"{group.short}{seed}"
            most = len(found["items"]) if report.single else SHOWN
            pictures = _pictures(run, found, most)
            parts.append(Section(title, "", [f"{kept}. {protocol(found)}."], pictures, index=group.index))
    return Section("Images under attack", "examples", [EXAMPLES_LEAD] if parts else [], parts=parts)


def _pictures(run: ReportedRun, found: Record, most: int) -> list[Picture]:
    """Images (k, C, H, W) of 8 bits as they were and attacked, and what was added, in grey levels between them."""
    held = run.arrays(found)
    if not {"x", "x_adv"} <= held.keys():
        return []
    x, x_adv = held["x"], held["x_adv"]
    # Images are rounded to 8 bits to be looked at; what was added is there as it was.
    change = 255.0 * held["delta"] if "delta" in held else x_adv.astype(np.float64) - x
    factor = max(1, int(127 / max(float(np.abs(change).max()), 0.5)))
    made = []
    for i in _first_of_both(found["items"], most):
        item, magnified = found["items"][i], np.clip(128 + factor * change[i], 0, 255).round().astype(np.uint8)
        true, index = found["classes"][item["true"]], item["index"]
        images = [
            (x[i], "image", f"Image {index}, {true}"),
            (magnified, f"change \N{MULTIPLICATION SIGN} {factor}", f"Change of image {index}, {factor} times"),
            (x_adv[i], "attacked", f"Image {index} attacked"),
        ]
        slug, title = f"image-{run.group}-{run.seed}-{index}", f"{true}, image {index}"
        made.append(Picture(slug, title, partial(_three, images), _predictions(item, found["classes"])))
    return made


def _three(images: Sequence[tuple[NDArray[np.uint8], str, str]]) -> Markup:
    one = Markup('<div><img src="{}" alt="{}" width="96" height="96"><span class="small">{}</span></div>')
    inner = Markup("").join(one.format(data_uri(image), alt, word) for image, word, alt in images)
    return Markup('<div class="triple">{}</div>').format(inner)


def _first_of_both(items: Sequence[Record], most: int) -> list[int]:
    """So many of them, and of both kinds if there are both: two images in three broken, the rest not."""
    broken = [i for i, item in enumerate(items) if item["adv_pred"] != item["true"]]
    held = [i for i, item in enumerate(items) if item["adv_pred"] == item["true"]]
    if len(items) <= most:
        return list(range(len(items)))
    few = min(len(held), max(most // 3, most - len(broken)))
    return sorted([*broken[: most - few], *held[:few]])


def _predictions(item: Record, classes: Sequence[str]) -> str:
    """What the networks say, right or wrong, before and after."""

    def said(whose: str, key: str) -> str:
        predicted, share = item[f"{whose}{key}_pred"], item.get(f"{whose}{key}_prob")
        sure = "" if share is None or whose else f" {percent(share)}\N{NO-BREAK SPACE}%"
        return f"{'✓' if predicted == item['true'] else '✗'} {classes[predicted]}{sure}"

    taught = None not in (item.get("teacher_clean_pred"), item.get("teacher_adv_pred"))
    lines = [f"{'student' if taught else 'network'}: {said('', 'clean')} → {said('', 'adv')}"]
    lines += [f"teacher: {said('teacher_', 'clean')} → {said('teacher_', 'adv')}"] if taught else []
    return "; ".join(lines)


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image (C, H, W) as PNG in a data: URI; of one channel in grey."""
    from PIL import Image  # comes with matplotlib

    held = io.BytesIO()
    rows = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image[:3].transpose(1, 2, 0))
    Image.fromarray(rows).save(held, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
