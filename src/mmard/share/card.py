"""A model card, written from a run's records alone: README.md with the head that the Hugging Face hub reads.

Every figure has its interval, its number of images and its budget. Marks of suspicion stand above the table, so that
nobody copies a figure without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mmard.balls import Budget
from mmard.data.fetch import REPOSITORIES
from mmard.files import load_tensors, read_json, tensors_hash
from mmard.report.runs import setting as shown
from mmard.run import Run
from mmard.settings import is_given
from mmard.tables.figures import Figure, figures_of, severity
from mmard.tables.table import Table, markdown_text
from mmard.teachers import find, is_teacher
from mmard.words import printable

WEIGHTS = ("best", "last")
TAGS = ("adversarial-robustness", "adversarial-training", "knowledge-distillation", "mmard")
SETTINGS = (
    "method", "inner", "outer", "params", "preset", "eps", "norm", "steps", "step_size", "start", "epochs",
    "batch_size", "lr", "schedule", "weight_decay", "average", "augment", "val_attack", "limit_train",
    "split_seed", "seed",
)  # fmt: skip
"""What decides a training, in the order in which one asks."""

Record = dict[str, Any]


def card(run: Run, name: str, licence: str | None = None) -> str:
    """The card of a run that has weights.

    Args:
        name: of the network, as a title.
        licence: of the weights, by its short name at the hub.
    """
    config, held = run.config, _held(run)
    which, facts = next((each, facts) for each, (_, facts) in held.items())
    hashes = {each: digest for each, (digest, _) in held.items()}
    every, _ = figures_of(run, int(config.get("seed", 0)))
    figures = sorted((f for f in every if hashes.get(f.which) == f.record["weights"]), key=_rank)
    stale = len(run.score_records()) - len(figures)
    checks = _made(run, hashes)
    parts = [
        _head(name, config, figures, licence),
        f"# {name}\n\n{_sentence(config, facts)}",
        _marks(checks),
        _table(figures, stale),
        _checks(checks),
        _loading(name, which, facts),
        _training(run, config, facts),
        _data(config, facts, figures),
        _teachers(config),
        "---\n\nWritten by mmard from the records of the run, which are beside it; nothing was filled in by hand.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def suspicions(run: Run) -> tuple[str, ...]:
    """The checks that were raised on the weights of a run, by slug."""
    made = _made(run, {which: digest for which, (digest, _) in _held(run).items()})
    raised = [f["check"] for record in made for f in record["findings"] if f["verdict"] == "suspicious"]
    return tuple(dict.fromkeys(raised))


def _held(run: Run) -> dict[str, tuple[str, Record]]:
    """Hash and facts of the weights that a run has, the best first."""
    found = {}
    for which in WEIGHTS:
        if run.weights_file(which).is_file():
            tensors, facts = load_tensors(run.weights_file(which))
            found[which] = tensors_hash(tensors), facts
    return found


def _made(run: Run, hashes: dict[str, str]) -> list[Record]:
    """Records of suspicion checks that were made on exactly these weights."""
    return [f for f in run.findings() if f.get("kind") == "checks" and hashes.get(f["which"]) == f["weights"]]


def _head(name: str, config: Record, figures: Sequence[Figure], licence: str | None) -> str:
    """The YAML block; its texts are written as JSON, which YAML reads."""
    lines = ["---", "library_name: mmard"]
    lines += [f"license: {json.dumps(licence)}"] if licence else []
    lines += ["pipeline_tag: image-classification", "tags:", *(f"- {tag}" for tag in TAGS)]
    data = str(config.get("data", ""))
    if data in REPOSITORIES:
        lines += ["datasets:", f"- {REPOSITORIES[data].repo_id}"]
    lines += ["metrics:", "- accuracy"]
    tests = [f for f in figures if f.split == "test" and not f.suspicious]
    if tests:
        kind = REPOSITORIES[data].repo_id if data in REPOSITORIES else data or "unknown"
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:", "  - task:"]
        lines += ["      type: image-classification", "    dataset:", f"      name: {json.dumps(data)}"]
        lines += [f"      type: {json.dumps(kind)}", "      split: test", "    metrics:"]
        for figure in tests:
            lines += ["    - type: accuracy", f"      value: {round(100 * figure.accuracy, 2)}"]
            lines += [f"      name: {json.dumps(_title(figure))}"]
    return "\n".join([*lines, "---"])


def _sentence(config: Record, facts: Record) -> str:
    """What it is."""
    network, classes = facts.get("network", "a network"), facts.get("num_classes", "?")
    shape = " x ".join(map(str, facts.get("image_shape", ())))
    ball = _ball(config)
    if config.get("teachers"):
        made = f"distilled by {_code(config.get('method'))}"
    else:
        made = f"trained by {_code(config.get('method'))}" if "method" in config else "evaluated"
    data = markdown_text(str(config.get("data", "images")))
    text = f"{_code(network)} for {classes} classes of {data} ({shape}), {made}"
    return text + (f" to hold within {ball}." if ball else ".")


def _code(text: object) -> str:
    """Text between backticks, which it cannot leave."""
    return f"`{printable(str(text)).replace('`', chr(39))}`"


def _ball(config: Record) -> str:
    return str(Budget(float(config["eps"]), config.get("norm", "linf"))) if "eps" in config else ""


def _marks(checks: Iterable[Record]) -> str:
    raised = [(record, f) for record in checks for f in record["findings"] if f["verdict"] == "suspicious"]
    if not raised:
        return ""
    lines = [
        f"> - {_code(f['check'])} ({markdown_text(record['which'])} weights): {markdown_text(f['says'])}"
        for record, f in raised
    ]
    return "\n".join(
        [
            "> **Suspicious.** Signs were found that the robust accuracies below are too high:",
            ">",
            *lines,
            ">",
            "> docs/checks.md of mmard says what each means. Do not quote these figures without them.",
        ]
    )


def _table(figures: Sequence[Figure], stale: int) -> str:
    if not figures:
        text = "These weights were not evaluated, or their records were not shared."
        return f"## Figures\n\n{text}"
    rows = []
    for figure in figures:
        low, high = figure.record["interval"]
        mark = f" ⚠ {', '.join(figure.suspicious)}" if figure.suspicious else ""
        accuracy = f"{100 * figure.accuracy:.1f}{mark}"
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        images = f"{figure.n:,} {figure.split}"
        rows.append((_label(figure), _within(figure), accuracy, interval, images, figure.which))
    heads = ("attack", "within", "accuracy %", "95 % interval", "images", "weights")
    notes = "Intervals are Wilson's, over the choice of images alone; another seed of training moves a figure as well."
    left = f"\n\n{stale} figures on other weights than these are left out." if stale else ""
    return "## Figures\n\n" + Table(heads, rows, words=len(heads)).markdown() + f"\n\n{notes}{left}"


def _checks(checks: Sequence[Record]) -> str:
    if not checks:
        return "## Checks\n\nNo suspicion checks were made: `mmard evaluate RUN --also checks` makes them."
    lines = []
    for record in checks:
        by = {
            verdict: [f["check"] for f in record["findings"] if f["verdict"] == verdict]
            for verdict in ("suspicious", "passed", "skipped")
        }
        found = [f"{len(names)} {verdict} ({', '.join(names)})" for verdict, names in by.items() if names]
        line = f"{record['which']} weights, {record['n']:,} {record['split']} images: " + "; ".join(found)
        lines.append(f"- {markdown_text(line)}")
    return "## Checks\n\n" + "\n".join(lines)


def _loading(name: str, which: str, facts: Record) -> str:
    inside = "; its normalisation is inside" if facts.get("normalised") else ""
    repo = name if "/" in name else f"USER/{name}"
    return f"""## How to load

```
pip install "mmard[hub]"
mmard pull {repo} --to runs/pulled
```

```python
import mmard

network = mmard.load_network("runs/pulled", which="{which}").module.eval()
```

It takes images (B, C, H, W) in [0, 1] and returns logits{inside}. `runs/pulled` is a run folder:
`mmard evaluate runs/pulled` measures it again, and `--teacher runs/pulled` teaches with it."""


def _training(run: Run, config: Record, facts: Record) -> str:
    rows = []
    for key in SETTINGS:
        value = config.get(key)
        if value not in (None, "", {}):
            text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else shown(key, value)
            rows.append((key, text))
    environments = read_json(run.path / "environment.json") if _has_environment(run) else []
    where = ""
    if environments:
        first = environments[0]
        versions = ", ".join(f"{name} {version}" for name, version in (first.get("versions") or {}).items() if version)
        processor = f"{first.get('cpu', 'CPU')}, threads: {first.get('threads', '?')}"
        hardware = ", ".join(first.get("gpus") or []) or processor
        made = f"mmard {first.get('mmard')} ({str(first.get('commit'))[:12]}), {versions}; {hardware}."
        where = f"\n\n{markdown_text(made)}"
    epoch = f"Weights: epoch {facts['epoch']}.\n\n" if "epoch" in facts else ""
    return (
        f"## Training\n\n{epoch}"
        + Table(("setting", "value"), rows, words=2).markdown()
        + "\n\nAll settings are in config.json."
        + where
    )


def _has_environment(run: Run) -> bool:
    return (run.path / "environment.json").is_file()


def _data(config: Record, facts: Record, figures: Sequence[Figure]) -> str:
    lines = [f"- trained on: {markdown_text(str(facts['images']))}"] if facts.get("images") else []
    for images, digest in dict.fromkeys((str(f.record["images"]), str(f.record["data"])) for f in figures):
        lines.append(f"- measured on: {markdown_text(images)} (SHA-256 of images and labels {digest[:16]})")
    classes = facts.get("classes") or ()
    if 0 < len(classes) <= 20:
        lines.append(f"- classes: {markdown_text(', '.join(map(str, classes)))}")
    data = str(config.get("data", "unknown"))
    if not is_given(data):
        lines.append("- the best weights were chosen on images held out of the training part, not on test images")
    return f"## Data\n\nSet: {markdown_text(data)}.\n\n" + "\n".join(lines)


def _teachers(config: Record) -> str:
    by_letter = config.get("teachers") or {}
    lines = [
        f"- {markdown_text(letter)}: {_code(spec)}{_known(spec, str(config.get('data')))}"
        for letter, specs in by_letter.items()
        for spec in specs
    ]
    if not lines:
        return ""
    return "## Teacher\n\n" + "\n".join(lines)


def _known(spec: str, data: str) -> str:
    if not is_teacher(spec):
        return ""
    found = [t for t in find(spec) if t.data == data] or list(find(spec))
    t = found[0]
    return f": {t.paper}, {t.link}; licence of its weights {t.licence}"


def _rank(figure: Figure) -> tuple[Any, ...]:
    kind = severity(figure.attack)
    return (figure.which != "best", figure.split != "test", -figure.n, kind, figure.attack, figure.record["eps"] or 0)


def _within(figure: Figure) -> str:
    eps = figure.record.get("eps")
    return "" if eps is None else str(Budget(float(eps), figure.record["norm"]))


def _label(figure: Figure) -> str:
    made_on = figure.record.get("made_on")
    label = "none" if figure.attack == "clean" else str(figure.record["label"])
    return label + (f", made on {made_on}" if made_on and "made on" not in label else "")


def _title(figure: Figure) -> str:
    label = str(figure.record["label"])
    attack = f"accuracy, {label}" if figure.attack.startswith("worst") else f"accuracy under {label}"
    attack = "clean accuracy" if figure.attack == "clean" else attack
    within = f" at {_within(figure)}" if _within(figure) else ""
    low, high = figure.record["interval"]
    return f"{attack}{within}, {figure.n} images, 95% interval {100 * low:.1f} to {100 * high:.1f}"
