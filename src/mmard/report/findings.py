"""How near the attacked images lie to the boundaries of the teacher and of the student."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmard.evaluation.score import wilson
from mmard.report.blocks import (
    Check,
    Example,
    Examples,
    Folded,
    Gallery,
    Heading,
    Note,
    Picture,
    Prediction,
    Section,
    TableBlock,
    VerdictBlock,
)
from mmard.report.plots import Bin, Dot, dot_rows, histogram, reliability
from mmard.report.subject import (
    TRAINING,
    Chosen,
    Shown,
    Subject,
    listed,
    missing,
    named,
    number,
    of_255,
    percent,
    protocol,
)
from mmard.tables.figures import Record
from mmard.words import plural

BOUNDARY_LEAD = (
    "The margin here is log p(y) minus the largest other log-probability, in nats: below zero a network is wrong."
    " Robust information of the teacher lies near its boundary; examples for which its margin stays large teach little."
)

BOUNDARY_LONGEST_TABLE = 8
"""Rows that are shown unasked."""


def boundary_section(about: Subject) -> Section:
    """Histograms of margins of both networks, and distances to both boundaries."""
    students = [run for run in about.runs if run.config.get("teachers")]
    chosen = Chosen(about, "boundary")
    having = chosen.having()
    if not students and not having:
        return Section("boundary", "Nearness to the boundary", "", [Note("No run here has a teacher to compare with.")])
    pieces: list[object] = []
    others: list[Picture] = []
    for place, rows in enumerate(chosen.by_protocol()):
        training = rows[0][1]["attack"] == TRAINING
        pieces.append(Heading(_heading(rows[0][1])))
        if len(rows) > 1:
            pieces.append(Gallery(_overview(about, rows, place)))
        shown: list[Picture] = []
        seen: set[int] = set()
        for run, record in rows:
            (others if run.group in seen else shown).extend(_histograms(about, run, record, place))
            seen.add(run.group)
        gallery = Gallery(shown, pairs=True)
        pieces.append(Folded("Histograms", [gallery]) if place and len(rows) > 1 else gallery)
        told = dict.fromkeys(str(record["label"]) for _, record in rows) if training else {}
        attack = f" Attacks: {'; '.join(told)}." if told else ""
        pieces.append(Note(f"{protocol(rows[0][1])}.{attack}" if not training else f"{_images(rows[0][1])}.{attack}"))
    if others:
        pieces.append(Folded("The other seeds", [Gallery(others, pairs=True)]))
    if having:
        table = _figures(chosen)
        long = len(table.rows) > BOUNDARY_LONGEST_TABLE
        pieces.append(Folded("Means and distances of every run", [table]) if long else table)
    pieces += missing(about, [r for r in students if r not in having], "Nearness to the boundary", "boundary")
    return Section("boundary", "Nearness to the boundary", BOUNDARY_LEAD if having else "", pieces)


def _heading(record: Record) -> str:
    images = {"test": "Test images", "val": "Validation images", "train": "Training images"}[record["split"]]
    return f"{images}, under the attack that trained" if record["attack"] == TRAINING else f"{images}, attacked"


def _images(record: Record) -> str:
    """How a finding under the training's own attack was made."""
    images = str(record["images"])
    return f"{images[:1].upper()}{images[1:]}; {record['which']} weights, attack seed {record['seed']}"


def _overview(about: Subject, found: Sequence[tuple[Shown, Record]], place: int) -> list[Picture]:
    """Margins and distances of all runs of one protocol, clean and attacked."""
    grey = of_255([record.get("eps") or 0.0 for _, record in found])
    unit, by = ("1/255", 255.0) if grey else ("input units", 1.0)
    wanted: list[tuple[str, str, str, float]] = [
        ("teacher", "mean_margin", "margin, nats", 1.0),
        ("teacher", "distance_first_order", f"first-order distance, {unit}", by),
        ("student", "mean_margin", "margin, nats", 1.0),
    ]
    made = []
    groups = [group for group in about.groups if any(run.group == group.index for run, _ in found)]
    for whose, key, what, scale in wanted:
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
        svg = dot_rows(slug, alt, [g.short for g in groups], dots, x=what, fractions=False, zero=key == "mean_margin")
        table = TableBlock(("run", f"clean ({what.split(', ')[-1]})", "attacked"), lines)
        made.append(Picture(slug, title, svg, "Hollow: clean; filled: attacked.", table))
    return made


def _histograms(about: Subject, run: Shown, found: Record, place: int) -> list[Picture]:
    held: Record = found["histograms"]
    made = []
    limits = _busy(held)
    name = "" if about.single else f": {about.groups[run.group].short}"
    seed = f", seed {run.seed}" if len(about.groups[run.group].runs) > 1 else ""
    for whose in ("teacher", "student"):
        slug, title = f"boundary-{place}-{whose}-{run.group}-{run.seed}", f"Margin of the {whose}{name}{seed}"
        clean, attacked = (found[state][whose] for state in ("clean", "attacked"))
        alt = (
            f"{title}, histogram: mean {number(clean['mean_margin'])} nats without attack, "
            f"{number(attacked['mean_margin'])} under it; wrong on {percent(attacked['wrong'])} % of attacked images."
        )
        svg = histogram(
            slug, alt, held["edges"], held[f"{whose}_attacked"], held[f"{whose}_clean"], index=run.group,
            x="margin, nats", y="images", split=(0.0, "wrong", "right"), limits=limits,
        )  # fmt: skip
        pairs = zip(held["edges"], held["edges"][1:], held[f"{whose}_clean"], held[f"{whose}_attacked"], strict=False)
        rows = [(f"{number(a)} to {number(b)}", str(c), str(d)) for a, b, c, d in pairs if c or d]
        note = f"Teacher: {found['teacher']}." if whose == "teacher" else ""
        made.append(Picture(slug, title, svg, note, TableBlock(("from, to", "clean", "attacked"), rows)))
    return made


def _busy(held: Record) -> tuple[float, float]:
    """The bins that some network uses, and zero."""
    keys = [key for key in held if key != "edges"]
    used = [i for i in range(len(held["edges"]) - 1) if any(held[key][i] for key in keys)]
    if not used:
        return float(held["edges"][0]), float(held["edges"][-1])
    low, high = float(held["edges"][used[0]]), float(held["edges"][used[-1] + 1])
    return min(low, -0.02 * (high - low)), max(high, 0.02 * (high - low))


def _figures(chosen: Chosen) -> TableBlock:
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
            "minimal distance (images)")  # fmt: skip
    return TableBlock(head, rows, "Means over images; distances in input units", 3)


# checks ---------------------------------------------------------------------------------------------------------------
# Suspicion checks: what each looks for, and what it said of each run.


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

CHECKS_LEAD = (
    "Signs that a robust accuracy says more about the attack than about the network. A mark beside a figure leads here;"
    " docs/checks.md explains each check."
)
MOST_NAMES = 4
"""Runs that a verdict names; of more it tells the number."""
_ORDER = ("suspicious", "skipped", "passed")
_WEIGHT = ("suspicious", "passed", "skipped")


def checks_section(about: Subject) -> Section:
    """The checks, those that suspect something first."""
    by_check: dict[str, dict[str, Record]] = {}
    having = [run for run in about.runs if run.found("checks")]
    for run in having:
        for found in run.found("checks"):
            name = run.name if found["which"] == "best" else f"{run.name} ({found['which']})"
            for each in found["findings"]:
                told = by_check.setdefault(str(each["check"]), {})
                # What was made counts more than what another evaluation of the same weights skipped.
                if name not in told or _WEIGHT.index(each["verdict"]) < _WEIGHT.index(told[name]["verdict"]):
                    told[name] = each
    known = list(EXPLAINED)
    made = [
        Check(slug, slug.replace("-", " "), _verdicts(told))
        for slug, told in sorted(by_check.items(), key=lambda i: known.index(i[0]) if i[0] in known else len(known))
    ]
    made.sort(key=lambda check: min(_ORDER.index(v.verdict) for v in check.verdicts))
    clear = [check for check in made if all(v.verdict == "passed" for v in check.verdicts)]
    pieces: list[object] = [Note(_summary(made, len(having)), alarm=any(c.alarms for c in made))] if having else []
    pieces += [check for check in made if check not in clear]
    if clear:
        pieces.append(Folded(f"{plural(len(clear), 'check')} passed", clear))
    pieces += missing(about, [r for r in about.runs if r not in having], "Suspicion checks", "checks")
    return Section("checks", "Suspicion", CHECKS_LEAD if having else "", pieces)


def _summary(made: list[Check], runs: int) -> str:
    alarmed = [str(check.title) for check in made if check.alarms]
    passed = sum(all(v.verdict == "passed" for v in check.verdicts) for check in made)
    of = f"{runs} run{'s' * (runs != 1)}"
    everywhere = f" on all {of}" if runs > 1 else ""
    rest = f"{passed} of {len(made)} checks passed{everywhere}."
    if not alarmed:
        return f"Nothing suspicious was found. {rest}"
    return f"Suspicious: {listed(alarmed)}. {rest}"


def _verdicts(told: dict[str, Record]) -> list[VerdictBlock]:
    """Suspicious ones by themselves; others together where they say the same."""
    made = []
    for verdict in _ORDER:
        own = [(name, each) for name, each in told.items() if each["verdict"] == verdict]
        if verdict == "suspicious":
            made += [VerdictBlock(name, verdict, str(each["says"]), _check_figures(each)) for name, each in own]
            continue
        by_words: dict[str, list[str]] = {}
        for name, each in own:
            by_words.setdefault(str(each["says"]), []).append(name)
        made += [VerdictBlock(_who(names, len(told)), verdict, says, "") for says, names in by_words.items()]
    return made


def _who(names: list[str], of: int) -> str:
    if len(names) > MOST_NAMES:
        return f"all {of} runs" if len(names) == of else f"{len(names)} of {of} runs"
    return listed(names)


def _check_figures(each: Record) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in (each.get("figures") or {}).items())


def alarms(about: Subject) -> int:
    """Suspicious verdicts in all runs, each check of the same weights once."""
    found = {
        (run.name, record["which"], each["check"])
        for run in about.runs
        for record in run.found("checks")
        for each in record["findings"]
        if each["verdict"] == "suspicious"
    }
    return len(found)


# confidence -----------------------------------------------------------------------------------------------------------
# Margins, confidence and calibration, without attack and under it.


CONFIDENCE_LEAD = (
    "The margin is the probability of the true class minus the largest other: right of zero an image is classified"
    " rightly. A network is calibrated where it is right as often as it is sure."
)

CONFIDENCE_LONGEST_TABLE = 16
"""Rows that are shown unasked."""
HISTOGRAMS = (("", "Margin", "margin"), ("confidence_", "Confidence", "probability of the predicted class"))
"""What their keys in a record begin with, their title, and their axis."""


def confidence_section(about: Subject) -> Section:
    """Histograms of margin and confidence, reliability, and the numbers behind them."""
    chosen = Chosen(about, "margins", "calibration")
    first: list[Picture] = []
    seeds: list[Picture] = []
    attacks: list[Picture] = []
    for group in about.groups:
        own = [run for run in group.runs if chosen.all(run, "margins") or chosen.all(run, "calibration")]
        for k, run in enumerate(own):
            for place, found in enumerate(chosen.all(run, "margins")[: 1 if k else None]):
                (attacks if place else seeds if k else first).extend(_margins(about, run, found, chosen, place))
            for place, found in enumerate(chosen.all(run, "calibration")[: 1 if k else None]):
                picture = _calibration(about, run, found, chosen, place)
                (attacks if place else seeds if k else first).append(picture)
    pieces: list[object] = [Gallery(first), *chosen.below("Attacked")] if first else []
    if seeds:
        pieces.append(Folded("The other seeds", [Gallery(seeds)]))
    if attacks:
        pieces.append(Folded("Other attacks", [Gallery(attacks)]))
    margin, calibrated = chosen.having("margins"), chosen.having("calibration")
    if calibrated:
        table = _errors(chosen)
        pieces.append(
            table if len(table.rows) <= CONFIDENCE_LONGEST_TABLE else Folded("Errors of calibration", [table])
        )
    pieces += missing(about, [r for r in about.runs if r not in margin], "Margins and confidence", "margins")
    pieces += missing(about, [r for r in about.runs if r not in calibrated], "Calibration", "calibration")
    return Section("confidence", "Confidence", CONFIDENCE_LEAD if first else "", pieces)


def _title(about: Subject, run: Shown, what: str) -> str:
    group = about.groups[run.group]
    if about.single:
        return what
    seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
    return f"{what}: {group.short}{seed}"


def _margins(about: Subject, run: Shown, found: Record, chosen: Chosen, place: int) -> list[Picture]:
    made = []
    for key, what, x in HISTOGRAMS:
        edges, clean, attacked = (found[f"{key}{part}"] for part in ("edges", "clean", "attacked"))
        slug, title = f"{what.lower()}-{run.group}-{run.seed}-{place}", _title(about, run, what)
        alt = f"{title}, histogram of {found['n']:,} images: {_said(key, edges, clean, attacked)}."
        split = None if key else (0.0, "wrong", "right")
        svg = histogram(slug, alt, edges, attacked, clean, index=run.group, x=x, y="images", split=split)
        note = f"{protocol(found)}." if place else chosen.beside(found)
        made.append(Picture(slug, title, svg, note, _bins(edges, clean, attacked)))
    return made


def _said(key: str, edges: Sequence[float], clean: Sequence[int], attacked: Sequence[int]) -> str:
    if key:
        tops = [edges[max(range(len(c)), key=lambda i, c=c: c[i])] for c in (clean, attacked)]  # type: ignore[misc]
        return f"commonest near {number(tops[0])} without attack and near {number(tops[1])} under it"
    shares = [sum(n for e, n in zip(edges, c, strict=False) if e >= 0) / max(sum(c), 1) for c in (clean, attacked)]
    return f"{percent(shares[0])} % right of zero without attack, {percent(shares[1])} % under it"


def _bins(edges: Sequence[float], clean: Sequence[int], attacked: Sequence[int]) -> TableBlock:
    rows = [
        (f"{number(round(a, 6))} to {number(round(b, 6))}", str(c), str(d))
        for a, b, c, d in zip(edges, edges[1:], clean, attacked, strict=False)
        if c or d
    ]
    return TableBlock(("from, to", "clean", "attacked"), rows)


def _calibration(about: Subject, run: Shown, found: Record, chosen: Chosen, place: int) -> Picture:
    slug, title = f"calibration-{run.group}-{run.seed}-{place}", _title(about, run, "Calibration")
    alt = (
        f"{title}: accuracy against confidence. Expected calibration error {percent(found['ece_clean'])} % without "
        f"attack and {percent(found['ece_attacked'])} % under it."
    )
    svg = reliability(slug, alt, _points(found["clean"]), _points(found["attacked"]), index=run.group)
    rows = [
        (f"{number(b['lower'])} to {number(b['upper'])}", state, str(b["n"]), percent(b["confidence"]),
         percent(b["accuracy"]))
        for state in ("clean", "attacked") for b in found[state] if b["n"]
    ]  # fmt: skip
    table = TableBlock(("confidence", "images are", "images", "mean confidence %", "accuracy %"), rows, numbers=2)
    note = "Below the diagonal: surer than right. Line: 95 % interval; bins of fewer than 5 images are left out. "
    return Picture(slug, title, svg, note + (f"{protocol(found)}." if place else chosen.beside(found)), table)


def _points(bins: Sequence[Record]) -> list[Bin]:
    made = []
    for each in bins:
        if each["n"] >= 5:
            low, high = wilson(round(each["accuracy"] * each["n"]), each["n"])
            made.append(Bin(each["confidence"], each["accuracy"], low, high))
    return made


def _errors(chosen: Chosen) -> TableBlock:
    """A row for each run and attack."""
    found = [(run, record) for run in chosen.having("calibration") for record in chosen.all(run, "calibration")]
    name = named([record for _, record in found])
    rows = [
        (run.name, name(record), percent(record["ece_clean"]), percent(record["ece_attacked"]),
         number(float(record["nll_clean"])), number(float(record["nll_attacked"])))
        for run, record in found
    ]  # fmt: skip
    head = ("run", "attack", "ECE, clean %", "ECE, attacked %", "NLL, clean (nats)", "NLL, attacked (nats)")
    return TableBlock(head, rows, "Expected calibration error and negative log-likelihood", 2)


# examples -------------------------------------------------------------------------------------------------------------
# Images, what was added to them, and what both networks make of them.


SHOWN = 6
"""Images of a run where several runs are shown."""
EXAMPLES_LEAD = (
    "Grey is no change; the perturbation is magnified by the factor that is said. Nobody chose the images: they are"
    " the first that the attack broke and the first that stood."
)

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]


def examples_section(about: Subject) -> Section:
    """Images of the first seed of each group; those of the others are in their folders."""
    having = [run for run in about.runs if _arrays(run) is not None]
    pieces: list[object] = []
    for group in about.groups:
        for run in [run for run in group.runs if run in having][:1]:
            found = run.found("examples")[0]
            seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
            own: list[object] = [
                Examples(_items(run, found, len(found["items"]) if about.single else SHOWN)),
                Note(protocol(found) + "."),
            ]
            if not about.single:
                own.insert(0, Heading(f"{group.short}{seed}", index=group.index))
            pieces += own
    pieces += missing(about, [r for r in about.runs if r not in having], "Images under attack", "examples")
    return Section("examples", "Images under attack", EXAMPLES_LEAD if having else "", pieces)


def _arrays(run: Shown) -> Arrays | None:
    """The images of a run, if it has some: x and x_adv (k, C, H, W) as 8 bits, and what was added, in grey levels."""
    for found in run.found("examples")[:1]:
        held = run.run.finding_arrays(str(found["slug"]))
        if found["items"] and {"x", "x_adv"} <= held.keys():
            x, x_adv = held["x"], held["x_adv"]
            # Images are rounded to 8 bits to be looked at; what was added is there as it was.
            change = 255.0 * held["delta"] if "delta" in held else x_adv.astype(np.float64) - x
            return x, x_adv, change
    return None


def _items(run: Shown, found: Record, most: int) -> list[Example]:
    arrays = _arrays(run)
    assert arrays is not None
    x, x_adv, change = arrays
    factor = max(1, int(127 / max(float(np.abs(change).max()), 0.5)))
    made = []
    for i in _chosen(found["items"], most):
        item, magnified = found["items"][i], np.clip(128 + factor * change[i], 0, 255).round().astype(np.uint8)
        true, index = found["classes"][item["true"]], item["index"]
        times = f"\N{MULTIPLICATION SIGN} {factor}"
        images = [
            (data_uri(x[i]), "image", f"Image {index}, {true}"),
            (data_uri(magnified), f"change {times}", f"Perturbation of image {index}, magnified {factor} times"),
            (data_uri(x_adv[i]), "attacked", f"Image {index} attacked"),
        ]
        made.append(Example(f"{true}, image {index}", images, _predictions(item, found["classes"])))
    return made


def _chosen(items: Sequence[Record], most: int) -> list[int]:
    """So many of them, and of both kinds if there are both: two images in three broken, the rest not."""
    broken = [i for i, item in enumerate(items) if item["adv_pred"] != item["true"]]
    held = [i for i, item in enumerate(items) if item["adv_pred"] == item["true"]]
    if len(items) <= most:
        return list(range(len(items)))
    few = min(len(held), max(most // 3, most - len(broken)))
    return sorted([*broken[: most - few], *held[:few]])


def _predictions(item: Record, classes: Sequence[str]) -> list[Prediction]:
    def told(name: str, before: int, after: int, shares: tuple[float, float] | None) -> Prediction:
        text = [classes[before], classes[after]]
        if shares is not None:
            text = [f"{word} {percent(share)}\N{NO-BREAK SPACE}%" for word, share in zip(text, shares, strict=True)]
        return Prediction(name, text[0], before == item["true"], text[1], after == item["true"])

    teacher: tuple[Any, Any] = (item.get("teacher_clean_pred"), item.get("teacher_adv_pred"))
    made = [
        told(
            "network" if None in teacher else "student", item["clean_pred"], item["adv_pred"],
            (item["clean_prob"], item["adv_prob"]),
        )
    ]  # fmt: skip
    if None not in teacher:
        made.append(told("teacher", *teacher, None))
    return made


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image (C, H, W) as PNG in a data: URI; of one channel in grey."""
    from PIL import Image  # comes with matplotlib

    held = io.BytesIO()
    rows = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image[:3].transpose(1, 2, 0))
    Image.fromarray(rows).save(held, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
