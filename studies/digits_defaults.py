"""Choose MMARD's defaults on the bundled digits: guidance, measures, weights, over seeds.

    python studies/digits_defaults.py --runs runs/digits-defaults --results results/digits-defaults.json

One TRADES teacher (cnn-32), students cnn-4 from it, same start for every variant of a seed. Robust accuracy is the
worst of PGD-40x2 and CW-40x2 on the 500 test images, last weights (no selection). Finished cells are skipped, so it may
be stopped and started. Every cell leaves a run folder; the results file has one row for each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

import mmard
from mmard.environment import environment

OFF: dict[str, Any] = {"mmard.guide": 0.0, "mmard.beta": 0.0, "mmard.teacher_every": 1}
"""Every variant says what the defaults were before this study chose them, so that it can be repeated."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rslad": ("rslad", {}),
    "guide 0.3": ("rslad+mmard", {**OFF, "mmard.guide": 0.3}),
    "guide 1": ("rslad+mmard", {**OFF, "mmard.guide": 1.0}),
    "guide 1 bounded": ("rslad+mmard", {**OFF, "mmard.guide": 1.0, "mmard.bounded": True}),
    "nce 1": ("rslad+mmard", {**OFF, "mmard.beta": 1.0}),
    "nce 3": ("rslad+mmard", {**OFF, "mmard.beta": 3.0}),
    "nce 9": ("rslad+mmard", {**OFF, "mmard.beta": 9.0}),
    "match 3": ("rslad+mmard", {**OFF, "mmard.beta": 3.0, "mmard.measure": "match"}),
    "kl 3": ("rslad+mmard", {**OFF, "mmard.beta": 3.0, "mmard.measure": "kl"}),
    "mi 3": ("rslad+mmard", {**OFF, "mmard.beta": 3.0, "mmard.measure": "mi"}),
    "guide 0.3 + nce 3": ("rslad+mmard", {**OFF, "mmard.guide": 0.3, "mmard.beta": 3.0}),
    "guide 0.3 every 5 + nce 3": ("rslad+mmard", {"mmard.guide": 0.3, "mmard.beta": 3.0, "mmard.teacher_every": 5}),
    "guide 1 every 5 + nce 3": ("rslad+mmard", {"mmard.guide": 1.0, "mmard.beta": 3.0, "mmard.teacher_every": 5}),
}
ATTACKS = ["pgd-40x2", "cw-40x2"]


def finished(folder: Path) -> bool:
    """Whether a run of this study is complete."""
    if not (folder / "state.safetensors").exists():
        return False
    _, facts = mmard.Run.open(folder).load_state()
    return bool(facts["position"]["finished"])


def cell(variant: str, seed: int, teacher: Path, folder: Path) -> dict[str, Any]:
    """Train and measure one cell, or read what an earlier call measured."""
    if (folder / "cell.json").exists():
        found: dict[str, Any] = json.loads((folder / "cell.json").read_text())
        return found
    shutil.rmtree(folder, ignore_errors=True)
    method, params = VARIANTS[variant]
    trained = mmard.distill("cnn-4", teacher, data="digits", method=method, params=params, seed=seed, out=folder)
    splits = trained.splits
    assert splits is not None
    scores = mmard.evaluate(trained.network("last"), splits.test, ATTACKS, budget=0.15)
    row = {
        "variant": variant,
        "seed": seed,
        "clean": scores[0].accuracy,
        "robust": scores[-1].accuracy,
        "n": scores[-1].n,
        "attack": scores[-1].label,
        "train_seconds": round(trained.position.seconds, 1),
        "weights": scores[0].weights,
    }
    (folder / "cell.json").write_text(json.dumps(row))
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Mean and standard deviation over seeds, by figure."""
    found: dict[str, dict[str, float | int | None]] = {}
    for name in ("clean", "robust", "train_seconds"):
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.mean(values), "sd": spread, "n": len(values)}
    return found


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = arguments.runs / "teacher"
    if not finished(teacher):
        shutil.rmtree(teacher, ignore_errors=True)
        mmard.train("cnn-32", data="digits", method="trades", out=teacher)
    splits = mmard.load("digits")
    of_teacher = mmard.evaluate(teacher, splits.test, ATTACKS, budget=0.15)
    rows = []
    for seed in range(arguments.seeds):
        for variant in arguments.only:
            rows.append(cell(variant, seed, teacher, arguments.runs / f"{variant.replace(' ', '_')}-{seed}"))
            print(json.dumps(rows[-1]), flush=True)
    table = {variant: summary([row for row in rows if row["variant"] == variant]) for variant in arguments.only}
    result = {
        "study": "digits-defaults",
        "teacher": {
            "clean": of_teacher[0].accuracy,
            "robust": of_teacher[-1].accuracy,
            "weights": of_teacher[0].weights,
        },
        "environment": environment(),
        "table": table,
        "cells": rows,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(result, indent=1) + "\n")
    for variant, row in table.items():
        clean, robust = row["clean"], row["robust"]
        print(f"{variant:28} clean {clean['mean']:.3f}  robust {robust['mean']:.3f} +- {robust['sd'] or 0:.3f}")


if __name__ == "__main__":
    main()
