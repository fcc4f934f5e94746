"""Suspicion checks: what each looks for, and what it said of each run."""

from __future__ import annotations

from mmard.report.pieces import Check, Folded, Note, Section, Verdict
from mmard.report.sections.missing import missing
from mmard.report.subject import Record, Subject
from mmard.report.words import listed, number
from mmard.words import plural

EXPLAINED = {
    "randomised": "Answers that differ from call to call hide the gradient from an attack that takes one of them.",
    "softmax-outputs": "Probabilities instead of logits saturate, and the gradients of losses on them vanish.",
    "test-time-adaptation": "A network that changes while it is asked is another one for each image and each attack.",
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

LEAD = (
    "Signs that a robust accuracy says more about the attack than about the network. A mark beside a figure leads here;"
    " docs/checks.md explains each check."
)
MOST_NAMES = 4
"""Runs that a verdict names; of more it tells the number."""
_ORDER = ("suspicious", "skipped", "passed")
_WEIGHT = ("suspicious", "passed", "skipped")


def section(about: Subject) -> Section:
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
    return Section("checks", "Suspicion", LEAD if having else "", pieces)


def _summary(made: list[Check], runs: int) -> str:
    alarmed = [str(check.title) for check in made if check.alarms]
    passed = sum(all(v.verdict == "passed" for v in check.verdicts) for check in made)
    of = f"{runs} run{'s' * (runs != 1)}"
    everywhere = f" on all {of}" if runs > 1 else ""
    rest = f"{passed} of {len(made)} checks passed{everywhere}."
    if not alarmed:
        return f"Nothing suspicious was found. {rest}"
    return f"Suspicious: {listed(alarmed)}. {rest}"


def _verdicts(told: dict[str, Record]) -> list[Verdict]:
    """Suspicious ones by themselves; others together where they say the same."""
    made = []
    for verdict in _ORDER:
        own = [(name, each) for name, each in told.items() if each["verdict"] == verdict]
        if verdict == "suspicious":
            made += [Verdict(name, verdict, str(each["says"]), _figures(each)) for name, each in own]
            continue
        by_words: dict[str, list[str]] = {}
        for name, each in own:
            by_words.setdefault(str(each["says"]), []).append(name)
        made += [Verdict(_who(names, len(told)), verdict, says, "") for says, names in by_words.items()]
    return made


def _who(names: list[str], of: int) -> str:
    if len(names) > MOST_NAMES:
        return f"all {of} runs" if len(names) == of else f"{len(names)} of {of} runs"
    return listed(names)


def _figures(each: Record) -> str:
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
