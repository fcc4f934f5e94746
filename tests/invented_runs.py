"""Run folders with invented figures, for tests of what shows them. Nothing in them was measured.

Every number comes from closed formulas and a seeded generator, so that the same call writes the same bytes. All of them
say so: `images` reads "INVENTED, not measured".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

EPS = 8 / 255
IMAGES = "INVENTED, not measured: 1,000 test images"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
METHODS = {"rslad": 0.50, "rslad+mmard": 0.525, "adaad": 0.505, "adaad+mmard": 0.53, "ard": 0.48}
CHECKS = (
    "randomised", "softmax-outputs", "test-time-adaptation", "degenerate-predictions",
    "vanishing-gradients", "misleading-gradients", "rescaled-loss", "fgsm-beats-pgd", "more-steps",
    "larger-radius", "huge-radius", "black-box-beats-white-box", "autoattack-above-pgd",
)  # fmt: skip
KINDS = ("checks", "eps", "steps", "classes", "margins", "calibration", "boundary", "examples")
LABELS = {
    "clean": "no attack",
    "pgd-20": "PGD-20 (CE, step 2/255, uniform start, 1 restart)",
    "cw-30": "CW-PGD-30 (CW margin, step 2/255, uniform start, 1 restart)",
    "aa": "AutoAttack (standard)",
}


def environment(command: str, minute: int) -> dict[str, Any]:
    """As `mmard.run` writes it, at a fixed time."""
    return {
        "mmard": "0.1.0", "commit": "0" * 40, "python": "3.11.7", "versions": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
        "platform": "Linux x86_64", "cpu": "INVENTED", "cores": 2, "threads": 1, "gpus": [], "command": command,
        "written": f"2026-11-22T10:{minute:02d}:00+00:00",
    }  # fmt: skip


def config(method: str, seed: int, **more: Any) -> dict[str, Any]:
    """Settings of a student."""
    return {
        "method": method, "params": {}, "preset": "unified", "data": "cifar10", "data_dir": "D", "eps": EPS,
        "norm": "linf",
        "steps": 10, "step_size": 2 / 255, "epochs": 100, "batch_size": 128, "lr": 0.1, "schedule": "one-cycle",
        "weight_decay": 0.0005, "val_attack": "pgd-10", "seed": seed, "student": "resnet18", "teacher": "teacher",
        "teacher_which": "best", **more,
    }  # fmt: skip


def run(
    folder: Path, method: str = "rslad", seed: int = 0, *, epochs: int = 100, done: int | None = None,
    kinds: Sequence[str] = KINDS, scores: bool = True, suspicious: Sequence[str] = (), **more: Any,
) -> Path:  # fmt: skip
    """Write one run.

    Args:
        folder: where.
        epochs, done: epochs that it is to have, and has.
        kinds: findings that it has.
        scores: whether it was evaluated.
        suspicious: checks that it fails.
        more: settings over the usual ones.
    """
    done = epochs if done is None else done
    folder.mkdir(parents=True)
    settings = config(method, seed, **{"epochs": epochs, **more})
    _json(folder / "config.json", settings)
    _json(folder / "environment.json", [environment(f"mmard distill --method {method} --seed {seed}", seed)])
    draw = np.random.default_rng([len(method), sum(map(ord, method)), seed])
    _log(folder, method, epochs, done, draw)
    if scores and done:
        _scores(folder, method, draw)
    head = _head(method, seed)
    shift = METHODS.get(method, 0.4)
    bodies = {
        "checks": lambda: _checks(suspicious), "eps": lambda: _curve("eps", shift),
        "steps": lambda: _curve("steps", shift), "classes": lambda: _classes(shift, draw),
        "margins": lambda: _margins(shift), "calibration": lambda: _bins(shift),
        "boundary": lambda: _boundary(shift), "examples": lambda: _items(),
    }  # fmt: skip
    for kind in kinds:
        if kind == "boundary" and "teacher" not in settings:
            continue
        _finding(folder, kind, head | bodies[kind]())
        if kind == "examples":
            _images(folder / "findings" / "best-examples.npz")
    return folder


def comparison(folder: Path, seeds: int = 3, methods: Sequence[str] = tuple(METHODS)[:4]) -> list[Path]:
    """Several methods with several seeds each."""
    return [
        run(
            folder / f"{method}-{seed}",
            method,
            seed,
            suspicious=("more-steps",) if (method, seed) == ("ard", 0) else (),
        )
        for method in methods
        for seed in range(seeds)
    ]


def _json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _head(method: str, seed: int) -> dict[str, Any]:
    return {
        "which": "best", "split": "test", "n": 1000, "seed": 0, "batch_size": 250, "weights": _sha(f"{method} {seed}"),
        "data": _sha("data"), "images": IMAGES, "attack": "pgd-20", "label": LABELS["pgd-20"], "norm": "linf",
        "eps": EPS,
        "seconds": 1.0, "environment": environment(f"mmard evaluate {method}-{seed} --also all", 30 + seed),
    }  # fmt: skip


def _finding(folder: Path, kind: str, record: dict[str, Any]) -> None:
    (folder / "findings").mkdir(exist_ok=True)
    _json(folder / "findings" / f"best-{kind}.json", record)


def _log(folder: Path, method: str, epochs: int, done: int, draw: np.random.Generator) -> None:
    top = METHODS.get(method, 0.4)
    lines = [{"step": 0, "epoch": 0, "epoch_step": 0, "seconds": 0.0, "kind": "start"}]
    lines += [
        {"step": s, "epoch": 0, "epoch_step": s, "seconds": 1.0 * s, "kind": "step", "lr": 0.01, "loss": 2.3 - 0.1 * s}
        for s in range(1, 6)
    ]
    best = -1.0
    for epoch in range(1, done + 1):
        t = epoch / epochs
        robust = top * (1 - np.exp(-5 * t)) + 0.01 * draw.standard_normal() * (1 - 0.7 * t)
        clean = 0.85 * (1 - np.exp(-6 * t)) + 0.015 * draw.standard_normal() * (1 - 0.7 * t)
        adv, nat = 0.9 * np.exp(-2 * t) + 0.2, 0.3 * np.exp(-3 * t) + 0.05
        terms = {"adv": adv, "nat": nat} | ({"triangle": 0.5 * np.exp(-t)} if "+" in method else {})
        lines.append(
            {
                "step": 390 * epoch, "epoch": epoch, "epoch_step": 0, "kind": "epoch",
                "seconds": round(epoch * (70 + 9 * len(method)), 1), "lr": 0.1 * min(t / 0.3, (1 - t) / 0.7 + 0.001),
                "loss": sum(terms.values()), **terms, "reach": EPS, "clean": round(float(clean), 4),
                "robust": round(float(robust), 4), "best": bool(robust > best),
            }
        )  # fmt: skip
        best = max(best, float(robust))
    if done == epochs:
        lines.append({"step": 390 * done, "epoch": done, "epoch_step": 0, "seconds": 9e4, "kind": "end"})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _scores(folder: Path, method: str, draw: np.random.Generator) -> None:
    (folder / "scores").mkdir()
    seed = int(json.loads((folder / "config.json").read_text())["seed"])
    top = METHODS.get(method, 0.4) + 0.008 * draw.standard_normal()
    shares = {
        "clean": 0.84 + 0.006 * draw.standard_normal(),
        "pgd-20": top + 0.03,
        "cw-30": top + 0.01,
        "aa": top - 0.015,
    }
    hard = draw.permutation(1000)
    for attack, share in shares.items():
        mask = np.zeros(1000, bool)
        mask[hard[: round(1000 * share)]] = True
        correct = int(mask.sum())
        p, z2 = correct / 1000, 3.8414588
        half = 1.959964 / (1 + z2 / 1000) * (p * (1 - p) / 1000 + z2 / 4e6) ** 0.5
        centre = (p + z2 / 2000) / (1 + z2 / 1000)
        record = _head(method, seed) | {
            "attack": attack, "label": LABELS[attack], "norm": None if attack == "clean" else "linf",
            "eps": None if attack == "clean" else EPS, "correct": correct, "accuracy": p,
            "interval": [centre - half, centre + half],
        }  # fmt: skip
        np.save(folder / "scores" / f"best-{attack}.npy", mask)
        _json(folder / "scores" / f"best-{attack}.json", record)


def _checks(suspicious: Sequence[str]) -> dict[str, Any]:
    findings = [
        {
            "check": slug, "verdict": "suspicious" if slug in suspicious else "passed",
            "says": f"INVENTED: {'12 points more with more steps' if slug in suspicious else 'as it must be'}",
            "figures": {"gain": 0.12 if slug in suspicious else 0.0},
        }
        for slug in CHECKS
    ]  # fmt: skip
    return {"kind": "checks", "attack": None, "label": None, "norm": None, "eps": None, "findings": findings}


def _curve(over: str, top: float) -> dict[str, Any]:
    if over == "eps":
        values = [0.0, *(k / 255 for k in (2, 4, 6, 8, 12, 16, 24, 32)), 0.5]
        points = [
            {"value": v, "correct": round(1000 * 0.84 * float(np.exp(-v / EPS * (1 - top)))), "n": 1000} for v in values
        ]
        points[-1]["correct"] = 0
        return {"kind": "curve", "over": "eps", "points": points, "eps": None, "label": "PGD-20 (CE, step eps/4)"}
    points = [
        {"value": v, "correct": round(1000 * (top + (0.84 - top) * float(np.exp(-v / 2)))), "n": 1000}
        for v in (0, 1, 2, 5, 10, 20, 50, 100)
    ]
    return {"kind": "curve", "over": "steps", "points": points, "label": "PGD (CE, step 2/255)"}


def _classes(top: float, draw: np.random.Generator) -> dict[str, Any]:
    clean, attacked = [], []
    for i in range(10):
        row = np.full(10, 1.0) + 6 * np.exp(-np.abs(np.arange(10) - i) / 2)
        row[i] = 0
        hits = [round(100 * (0.8 + 0.02 * (i % 5))), round(100 * (top - 0.25 + 0.055 * i))]
        for hit, rows in zip(hits, (clean, attacked), strict=True):
            rest = draw.multinomial(100 - hit, row / row.sum())
            rest[i] = hit
            rows.append([int(v) for v in rest])
    return {
        "kind": "classes", "classes": list(CLASSES), "count": [100] * 10, "clean": [clean[i][i] for i in range(10)],
        "attacked": [attacked[i][i] for i in range(10)], "confusion_clean": clean, "confusion_attacked": attacked,
    }  # fmt: skip


def _bell(edges: Any, centre: float, width: float, n: int = 1000) -> list[int]:
    middles = (edges[:-1] + edges[1:]) / 2
    weights = np.exp(-(((middles - centre) / width) ** 2) / 2)
    return [int(v) for v in np.round(n * weights / weights.sum())]


def _margins(top: float) -> dict[str, Any]:
    edges, shares = np.round(np.linspace(-1, 1, 41), 10), np.round(np.linspace(0, 1, 21), 10)
    return {
        "kind": "margins", "margin": "probability of the true class minus the largest other", "edges": edges.tolist(),
        "clean": _bell(edges, 0.45, 0.3), "attacked": _bell(edges, top - 0.48, 0.25),
        "confidence_edges": shares.tolist(),
        "confidence_clean": _bell(shares, 0.75, 0.2), "confidence_attacked": _bell(shares, 0.5, 0.18),
    }  # fmt: skip


def _bins(top: float) -> dict[str, Any]:
    def made(gain: float) -> list[dict[str, Any]]:
        out = []
        for b in range(15):
            n = 0 if b < 2 else 20 + 10 * b
            middle = (b + 0.5) / 15
            out.append(
                {"lower": b / 15, "upper": (b + 1) / 15, "n": n, "confidence": middle if n else None,
                 "accuracy": min(1.0, gain * middle) if n else None}
            )  # fmt: skip
        return out

    return {
        "kind": "calibration", "clean": made(1.05), "attacked": made(0.9 * top / 0.55), "ece_clean": 0.04,
        "ece_attacked": 0.11, "nll_clean": 0.61, "nll_attacked": 1.3,
    }  # fmt: skip


def _boundary(top: float) -> dict[str, Any]:
    edges = np.round(np.linspace(-4, 5, 46), 10)

    def one(margin: float) -> dict[str, Any]:
        return {
            "mean_margin": margin, "wrong": 0.3, "entropy": 1.2, "distance_first_order": 0.02 + 0.01 * margin,
            "distance_minimal": 0.018 + 0.01 * margin, "n_minimal": 256,
        }  # fmt: skip

    return {
        "kind": "boundary", "teacher": "teacher (best, epoch 110)", "clean": {"teacher": one(2.0), "student": one(1.6)},
        "attacked": {"teacher": one(0.9 - 4 * (top - 0.5)), "student": one(0.1)},
        "histograms": {
            "edges": edges.tolist(),
            "teacher_clean": _bell(edges, 2.0, 1.0), "teacher_attacked": _bell(edges, 0.9, 0.9),
            "student_clean": _bell(edges, 1.6, 1.1), "student_attacked": _bell(edges, 0.1, 1.0),
        },
    }  # fmt: skip


def _items() -> dict[str, Any]:
    items = [
        {
            "index": 7 * k, "true": k % 10, "clean_pred": k % 10, "adv_pred": (k + (k % 3 > 0)) % 10,
            "clean_prob": 0.9 - k / 40,
            "adv_prob": 0.4 + k / 40, "teacher_clean_pred": k % 10, "teacher_adv_pred": (k + (k % 4 == 1)) % 10,
        }
        for k in range(9)
    ]  # fmt: skip
    return {
        "kind": "examples",
        "items": items,
        "classes": list(CLASSES),
        "image_shape": [3, 32, 32],
        "slug": "best-examples",
    }


def _images(file: Path) -> None:
    draw = np.random.default_rng(0)
    yy, xx = np.mgrid[0:32, 0:32] / 31
    x = np.stack(
        [
            np.stack(
                [128 + 100 * np.sin((2 + k % 3) * np.pi * (xx * np.cos(c + k) + yy * np.sin(c + k))) for c in range(3)]
            )
            for k in range(9)
        ]
    )
    x = np.clip(x, 8, 247).astype(np.uint8)
    x_adv = (x.astype(int) + 8 * np.sign(draw.standard_normal(x.shape)).astype(int)).astype(np.uint8)
    np.savez(file, x=x, x_adv=x_adv)
