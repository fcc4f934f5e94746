"""The records of a run as its folder has them, each held against what a record must be and its own verdicts.

What reads a run folder goes through here: a run that was measured early and trained on has no early figures as its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmard.balls import NORMS
from mmard.errors import Refused, require
from mmard.files import load_tensors, read_json, tensors_hash
from mmard.run import Run

Record = dict[str, Any]
_NUMBER = (int, float)
_HEAD: dict[str, Any] = {"which": str, "split": str, "n": int, "weights": str, "seed": int}
SCORE = _HEAD | {
    "data": str, "images": str, "batch_size": int, "attack": str, "label": str, "correct": int, "accuracy": _NUMBER,
    "interval": list, "norm": (str, type(None)), "eps": (*_NUMBER, type(None)),
}  # fmt: skip
"""What every record of an accuracy has, by type."""
FINDINGS: dict[str, dict[str, Any]] = {
    "checks": {"findings": list},
    "curve": {"over": str, "points": list},
    "classes": {"classes": list, "count": list, "clean": list, "attacked": list},
    "margins": {"edges": list, "clean": list, "attacked": list},
    "calibration": {"clean": list, "attacked": list},
    "boundary": {"clean": dict, "attacked": dict, "histograms": dict, "teacher": str},
    "examples": {"items": list, "classes": list},
}
"""What a finding of each kind has beside its head, by type."""
_ITEMS: dict[tuple[str, str], dict[str, Any]] = {
    ("checks", "findings"): {"check": str, "verdict": str, "says": str},
    ("curve", "points"): {"value": _NUMBER, "correct": int, "n": int},
    ("calibration", "clean"): {"n": int},
    ("calibration", "attacked"): {"n": int},
    ("examples", "items"): {"true": int, "adv_pred": int, "clean_pred": int},
}
_SAVED = re.compile(r"(best|last)[A-Za-z0-9-]*")
"""Names of weights that a run saves; other records name a file of somebody else."""


def scores_of(run: Run) -> list[Record]:
    """All records of accuracies, by file name.

    Raises:
        Refused: for a record that lacks something, contradicts itself, or contradicts the verdicts beside it.
    """
    return [_score(file) for file in sorted(run.scores.glob("*.json"))]


def findings_of(run: Run) -> list[Record]:
    """All findings, by file name, each with its "slug".

    Raises:
        Refused: for one that lacks something.
    """
    return [_finding(file) | {"slug": file.stem} for file in sorted(run.findings_folder.glob("*.json"))]


def present(run: Run, records: Sequence[Record], among: Sequence[Record] = ()) -> tuple[list[Record], int]:
    """The records on the weights that the folder holds now, and how many are on others.

    Where the weights themselves are gone, as from a published run, those are meant that were measured last.

    Args:
        among: more records that say which weights were measured last.
    """
    latest = {str(r["which"]): str(r["weights"]) for r in sorted([*among, *records], key=written)}
    held = {which: _hash_of(run, which) or weights for which, weights in latest.items()}
    kept = [record for record in records if held[str(record["which"])] == record["weights"]]
    return kept, len(records) - len(kept)


def written(record: Mapping[str, Any]) -> str:
    """When a record was made, as text that sorts."""
    return str((record.get("environment") or {}).get("written", ""))


def _score(file: Path) -> Record:
    record = _typed(file, read_json(file), SCORE)
    n, correct, eps = record["n"], record["correct"], record["eps"]
    require(n >= 1, f"{file}: n", expected="at least one image", got=n)
    require(0 <= correct <= n, f"{file}: correct", expected=f"0 to {n} images", got=correct)
    require(eps is None or 0 <= eps < float("inf"), f"{file}: eps", expected="a radius", got=eps)
    require(record["norm"] in (None, *NORMS), f"{file}: norm", expected=" or ".join(NORMS), got=record["norm"])
    require((record["norm"] is None) == (eps is None), str(file), expected="a norm and a radius, or neither", got=eps)
    share = record["accuracy"]
    require(abs(share - correct / n) < 1e-6, f"{file}: accuracy", expected=f"{correct} of {n}", got=share)
    low, high = _pair(file, record["interval"])
    require(
        0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1,
        f"{file}: interval",
        expected=f"one around {share:g}",
        got=[low, high],
    )
    verdicts = file.with_suffix(".npy")
    if verdicts.is_file():
        mask = verdicts_of(verdicts)
        held = f"{int(mask.sum())} of {mask.size}" if mask.dtype == np.bool_ else f"numbers of type {mask.dtype}"
        whole = mask.dtype == np.bool_ and mask.shape == (n,) and int(mask.sum()) == correct
        require(whole, str(verdicts), expected=f"{correct} of {n} images read rightly, as its record says", got=held)
    return record


def _finding(file: Path) -> Record:
    record = _typed(file, read_json(file), {"kind": str})
    kind = record["kind"]
    require(kind in FINDINGS, f"{file}: kind", expected=" or ".join(FINDINGS), got=kind)
    _typed(file, record, _HEAD | FINDINGS[kind])
    for (of, key), wanted in _ITEMS.items():
        for each in record[key] if of == kind else ():
            _typed(file, each, wanted)
    if kind == "classes":
        lengths = {len(record[key]) for key in FINDINGS["classes"]}
        require(len(lengths) == 1, str(file), expected="as many counts as classes", got=sorted(lengths))
        for key in ("clean", "attacked"):
            fit = all(0 <= right <= n for right, n in zip(record[key], record["count"], strict=True))
            require(fit, f"{file}: {key}", expected="no more right than images of a class", got="more")
    return record


def _typed(file: Path, record: Any, wanted: Mapping[str, Any]) -> Record:
    """A record that has what it must have; true and false are no numbers."""
    require(isinstance(record, dict), str(file), expected="a record, which is an object", got=type(record).__name__)
    for key, kind in wanted.items():
        value = record.get(key)
        fits = key in record and isinstance(value, kind) and not isinstance(value, bool)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(dict.fromkeys("nothing" if k is type(None) else k.__name__ for k in kinds))
        require(fits, f"{file}: {key}", expected=names, got=type(value).__name__ if key in record else "no such entry")
    return dict(record)


def _pair(file: Path, value: list[Any]) -> tuple[float, float]:
    fits = len(value) == 2 and all(isinstance(each, _NUMBER) for each in value)
    require(fits, f"{file}: interval", expected="two numbers", got=value)
    return float(value[0]), float(value[1])


def verdicts_of(file: Path) -> Any:
    """Verdicts (n,) from their file."""
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Refused(str(file), expected="verdicts, a .npy file", got=str(error)) from None


def _hash_of(run: Run, which: str) -> str | None:
    """Of the tensors that a run has under this name; None where it has none."""
    file = run.weights_file(which)
    if not _SAVED.fullmatch(which) or not file.is_file():
        return None
    stat = file.stat()
    return _hash(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _hash(file: Path, _changed: int, _size: int) -> str:
    return tensors_hash(load_tensors(file)[0])


def outgrown(stale: int, what: str) -> str:
    """What is said of records on earlier weights."""
    return f"{stale} {what}{'s' * (stale != 1)} of weights that the run has outgrown"
