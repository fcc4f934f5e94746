r"""Which part of SAAD loses a class on the bundled digits: its formula with one thing changed at a time.

    python studies/digits_saad.py --runs runs/digits-saad --teacher runs/study/S/TEACHER \\
        --results results/digits-saad.json

The setting and the teacher are those of `mmard study` at scale S, whose cell teacher-main-0-... TEACHER stands for.
Finished cells are skipped, so it may be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmard
from mmard.batch import Batch, Terms
from mmard.method import Method
from mmard.methods.saad import saad
from mmard.ops import entropy, kl
from mmard.run import environment

ATTACKS = ["pgd-40x2", "cw-40x2"]


def weighted(b: Batch, w: Tensor) -> Terms:
    """SAAD's loss (beta = 0) with other weights (B,)."""
    teacher, student = b.T(b.adv) - b.T(b.x_mirror), b.S(b.adv) - b.S(b.x_mirror)
    return {"adv": w * kl(b.T(b.adv), b.S(b.adv)), "gradient": w * b.progress * kl(teacher, student)}


def published(b: Batch) -> Tensor:
    """SAAD's weights (B,)."""
    h = entropy(b.T(b.adv))
    return 5 * (h - h.amin())


FEW, MANY = (0,), (0, 1, 2)
VARIANTS: dict[str, tuple[Method, str, tuple[int, ...]]] = {
    "as released": (saad(), "cnn-4", MANY),
    "every weight its batch's mean": (
        replace(saad(), outer=lambda b: weighted(b, published(b).mean().expand(len(b.y)))),
        "cnn-4",
        MANY,
    ),
    "every weight 0.5 more": (replace(saad(), outer=lambda b: weighted(b, published(b) + 0.5)), "cnn-4", MANY),
    "beta = 1": (saad(beta=1.0), "cnn-4", MANY),
    "beta = 0.1": (saad(beta=0.1), "cnn-4", MANY),
    "order = 0.5": (saad(order=0.5), "cnn-4", FEW),
    "BatchNorm as in the released code": (
        replace(saad(quiet_mirror=False), forwards={"S": ("x_adv", "x_mirror", "x")}),
        "cnn-4",
        MANY,
    ),
    "alpha = 0": (saad(alpha=0.0), "cnn-4", FEW),
    "lam = 0": (saad(lam=0.0), "cnn-4", FEW),
    "scale = 0.45": (saad(scale=0.45), "cnn-4", FEW),
    "spread = 50": (saad(spread=50.0), "cnn-4", FEW),
    "as released, cnn-8": (saad(), "cnn-8", MANY),
    "as released, cnn-16": (saad(), "cnn-16", MANY),
}
"""Name -> what is trained, the student, and the seeds."""


def cell(name: str, seed: int, teacher: Path, runs: Path) -> dict[str, Any]:
    """Train and measure one cell, or read what an earlier call measured."""
    folder = runs / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}-{seed}"
    if (folder / "cell.json").exists():
        found: dict[str, Any] = json.loads((folder / "cell.json").read_text())
        return found
    shutil.rmtree(folder, ignore_errors=True)
    method, student, _ = VARIANTS[name]
    trained = mmard.distill(student, teacher, data="digits", method=method, seed=seed, out=folder)
    network, splits = trained.network("last"), trained.splits
    assert splits is not None
    scores = mmard.evaluate(network, splits.test, ATTACKS, budget=0.15)
    with torch.no_grad():
        said = network(splits.test.x.float() / 255).argmax(1)
    right = [(said[splits.test.y == c] == c).float().mean().item() for c in range(splits.test.num_classes)]
    row = {
        "variant": name,
        "seed": seed,
        "clean": scores[0].accuracy,
        "robust": scores[-1].accuracy,
        "n": scores[-1].n,
        "clean_by_class": [round(each, 3) for each in right],
    }
    (folder / "cell.json").write_text(json.dumps(row))
    return row


def main() -> None:
    """Run what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (_, _, seeds) in VARIANTS.items():
        for seed in seeds:
            rows.append(cell(name, seed, arguments.teacher, arguments.runs))
            print(json.dumps(rows[-1]), flush=True)
    result = {"study": "digits-saad", "environment": environment(), "cells": rows}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
