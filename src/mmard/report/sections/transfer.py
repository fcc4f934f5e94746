"""What attacks made on one network do to another."""

from __future__ import annotations

from mmard.report.pieces import Heat, Heats, Missing, Section
from mmard.report.subject import Record, Subject
from mmard.report.words import budget, percent, quoted

LEAD = "Accuracy in percent of the network of the row on images made against the network of the column."
PREFIX = "transfer-"


def section(about: Subject) -> Section:
    """A matrix for each attack, or what would make one."""
    tables: dict[tuple[str, ...], dict[str, dict[str, Record]]] = {}
    for run in about.runs:
        for score in run.scores:
            if str(score["attack"]).startswith(PREFIX) and score.get("made_on"):
                key = _key(score, str(score["attack"]).removeprefix(PREFIX))
                tables.setdefault(key, {}).setdefault(run.name, {})[str(score["made_on"])] = score
    heats = []
    for (attack, _, eps, split, n, _), rows in tables.items():
        sources = sorted({source for own in rows.values() for source in own})
        one = next(iter(next(iter(rows.values())).values()))
        cells = []
        for name in rows:
            run = next(run for run in about.runs if run.name == name)
            own = next((s for s in run.scores if s["attack"] == attack and _alike(s, one)), None)
            line = [
                ("", 0.0, False) if source not in rows[name] else _cell(rows[name][source], same=False)
                for source in sources
            ]
            cells.append([("", 0.0, False) if own is None else _cell(own, same=True), *line])
        title = f"{attack} at {budget(one)}, {split}, {int(n):,} images" if eps else attack
        heats.append(Heat(title, "attacked network", ["itself", *sources], list(rows), cells))
    pieces: list[object] = [Heats(heats)] if heats else []
    if not heats:
        runs = " ".join(quoted(group.first) for group in about.groups)
        command = (
            f"mmard transfer {runs}" if len(about.groups) > 1 else f"mmard evaluate {runs} --attack pgd-20 --from OTHER"
        )
        pieces.append(Missing("What attacks made on one network do to another", [command]))
    return Section("transfer", "Transfer", LEAD if heats else "", pieces)


def _key(score: Record, attack: str) -> tuple[str, ...]:
    return (attack, str(score["norm"]), str(score["eps"]), str(score["split"]), str(score["n"]), str(score["data"]))


def _alike(score: Record, other: Record) -> bool:
    return all(score[key] == other[key] for key in ("norm", "eps", "split", "n", "data", "which"))


def _cell(score: Record, same: bool) -> tuple[str, float, bool]:
    share = score["correct"] / score["n"]
    return percent(share), share, same
