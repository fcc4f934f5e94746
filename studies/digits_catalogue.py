"""Train every method of the catalogue on the bundled digits, from one start, and set the figures side by side.

    python studies/digits_catalogue.py --runs runs/digits-catalogue --results results/digits-catalogue.json

One robust teacher (TRADES, cnn-32), one natural one of the same kind, students cnn-4 with the same first weights, order
and views for every method of a seed, each at its unified preset. Robust accuracy is the worst of PGD-40x2 and CW-40x2
on the 500 test images, last weights (no selection). Finished cells are skipped, so it may be stopped and started, and
several processes may share the work: --part 1/2 and --part 2/2, then once more without --part for the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from digits_defaults import ATTACKS, finished, summary

import mmard
from mmard.environment import environment
from mmard.methods import METHODS, build

PLUGGED = ("rslad+igdm", "rslad+fair", "rslad+awp", "rslad+mmard", "adaad+mmard", "trades+awp")


def made(folder: Path, model: str, method: str) -> Path:
    """A network trained without a teacher, or what an earlier call trained."""
    if not finished(folder):
        shutil.rmtree(folder, ignore_errors=True)
        mmard.train(model, data="digits", method=method, out=folder)
    return folder


def cell(spec: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train and measure one cell, or read what an earlier call measured."""
    folder = runs / f"{spec}-{seed}"
    if (folder / "cell.json").exists():
        found: dict[str, Any] = json.loads((folder / "cell.json").read_text())
        return found
    shutil.rmtree(folder, ignore_errors=True)
    method = build(spec)
    if method.teachers:
        given = {"T": str(runs / "teacher"), "T_nat": str(runs / "natural")}
        teachers = {letter: given[letter] for letter in method.teachers}
        trained = mmard.distill("cnn-4", teachers, data="digits", method=spec, seed=seed, out=folder)
    else:
        trained = mmard.train("cnn-4", data="digits", method=spec, seed=seed, out=folder)
    splits = trained.splits
    assert splits is not None
    scores = mmard.evaluate(trained.network("last"), splits.test, ATTACKS, budget=0.15)
    row = {
        "method": spec,
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


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="1/1", help="this process's share of the cells, e.g. 1/2")
    parser.add_argument("--only", nargs="*", default=[*METHODS, *PLUGGED])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = made(arguments.runs / "teacher", "cnn-32", "trades")
    natural = made(arguments.runs / "natural", "cnn-32", "natural")
    splits = mmard.load("digits")
    part, parts = map(int, arguments.part.split("/"))
    cells = [(spec, seed) for seed in range(arguments.seeds) for spec in arguments.only]
    rows = []
    for spec, seed in cells[part - 1 :: parts]:
        rows.append(cell(spec, seed, arguments.runs))
        print(json.dumps(rows[-1]), flush=True)
    if parts > 1:
        return
    table = {spec: summary([row for row in rows if row["method"] == spec]) for spec in arguments.only}
    of_teachers = {
        name: [score.record() for score in mmard.evaluate(folder, splits.test, ATTACKS, budget=0.15)]
        for name, folder in (("teacher", teacher), ("natural", natural))
    }
    result = {
        "study": "digits-catalogue",
        "teachers": {
            name: {"clean": found[0]["accuracy"], "robust": found[-1]["accuracy"], "weights": found[0]["weights"]}
            for name, found in of_teachers.items()
        },
        "environment": environment(),
        "table": table,
        "cells": rows,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(result, indent=1) + "\n")
    for spec, row in table.items():
        clean, robust = row["clean"], row["robust"]
        print(f"{spec:16} clean {clean['mean']:.3f}  robust {robust['mean']:.3f} +- {robust['sd'] or 0:.3f}")


if __name__ == "__main__":
    main()
