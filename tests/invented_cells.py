"""Records of cells with invented figures, for tests of what reads studies. Nothing in them was measured.

Every number comes from closed formulas and a seeded generator, so that the same call gives the same records; each says
so: `images` and the processor read "INVENTED, not measured".
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mmard.study.grid import Cell, Grid, Row, Scale, Study, Variant, grid_of, load_scale, load_study
from mmard.tables.table import Entry

IMAGES = 500
GAINS = {"": 0.0, "+inner": 0.012, "+outer": 0.02, "+both": 0.03}
"""Of variants over their host, in robust accuracy."""
TEACHERS = {"natural": 0.26, "self": 0.79, "weak": 0.75, "middle": 0.82, "hard": 0.84, "main": 0.865, "strong": 0.88}


SCALE: dict[str, Any] = {
    "name": "tiny",
    "title": "nothing to train",
    "says": "for tests",
    "data_says": "invented images",
    "seeds": (0, 1, 2),
    "student": "cnn-4",
    "attacks": ("pgd-10", "cw-10"),
    "every": {"data": "digits", "threads": 1},
    "teachers": {
        role: {"title": f"the {role} one", "model": model, "method": "trades"}
        for role, model in (("main", "cnn-32"), ("weak", "cnn-8"), ("middle", "cnn-16"), ("self", "cnn-4"))
    },
}
VARIANTS = {
    "plain": Variant(),
    "+inner": Variant(plugin="mmard", params={"mmard.beta": 0.0}),
    "+both": Variant(plugin="mmard"),
}


def little(reads: str, hosts: tuple[str, ...] = ("rslad", "ard"), **more: Any) -> Grid:
    """A small study of our own, at a scale of our own, so that no declaration in the package moves a test."""
    seeds = more.pop("seeds", SCALE["seeds"])
    study = Study(name=more.pop("name", reads), title=f"On {reads}", question="What?", reads=reads, hosts=hosts, **more)
    return grid_of(study, Scale(**{**SCALE, "seeds": seeds}))


def grid(study: str = "plug-and-play", scale: str = "S") -> Grid:
    """A declared study at a declared scale."""
    at = load_scale(scale)
    return grid_of(load_study(study, at), at)


def records(
    *grids: Grid,
    leave_out: Iterable[str] = (),
    noise: float = 0.004,
    seconds: float = 20.0,
    robust: Callable[[Cell, Row | None], float] | None = None,
) -> dict[str, dict[str, Any]]:
    """One record for each cell, by name.

    Args:
        leave_out: names of cells that have none.
        noise: deviation over seeds that cells of one seed do not share.
        robust: robust accuracies, exact to one of `IMAGES`, in site of the invented ones.
    """
    found: dict[str, dict[str, Any]] = {}
    gone = set(leave_out)
    for each in grids:
        rows = {name: row for row in each.rows for name in row.cells}
        for name, cell in each.cells.items():
            if name not in gone and (name not in found or cell.boundary):
                wanted = None if robust is None else robust(cell, rows.get(name))
                found[name] = record(cell, rows.get(name), noise, seconds, wanted)
    return found


def record(
    cell: Cell, row: Row | None, noise: float = 0.004, seconds: float = 20.0, wanted: float | None = None
) -> dict[str, Any]:
    """Of one cell."""
    draw = np.random.default_rng(_number(cell.name))
    shared = np.random.default_rng(cell.seed).normal(0, 0.006)
    if cell.role:
        robust = TEACHERS.get(cell.role.removeprefix("teacher "), 0.8)
    else:
        assert row is not None
        host, teacher = 0.68 + 0.1 * _share(row.host), TEACHERS.get(row.teacher, 0.865)
        grows = 0.5 if "both" in row.variant else 0.1
        robust = host + GAINS.get(row.variant, 0.03 * _share(row.variant)) + grows * (teacher - 0.865) + shared
    levels = (robust + draw.normal(0, noise), robust + 0.004 + draw.normal(0, noise))
    last, best = (_figures(cell, level if wanted is None else wanted, draw) for level in levels)
    guided = row is not None and row.variant in ("+inner", "+both")
    return {
        "format": 1,
        "cell": cell.name,
        "scale": cell.scale,
        "seed": cell.seed,
        "role": cell.role,
        "teachers": cell.teachers,
        "settings": {**cell.settings.as_config(), "data_dir": None},
        "attacks": list(cell.attacks),
        "test_images": cell.images,
        "figures": {"last": last, "best": best},
        "suspicious": {"last": [], "best": []},
        "boundary": _boundary(draw, guided) if cell.boundary else None,
        "seconds": {
            "train": 3 * seconds,
            "evaluate": 4.0,
            "train_cpu": round(seconds * (0.6 + 1.5 * _share(row.host if row else "teacher") + 0.1 * guided), 3),
        },
        "epochs": cell.settings.epochs,
        "best_epoch": cell.settings.epochs - 3,
        "weights": {which: hashlib.sha256(f"{cell.name} {which}".encode()).hexdigest() for which in ("last", "best")},
        "data": "d" * 64,
        "train_data": "e" * 64,
        "train_images": 1167,
        "parameters": 4038,
        "device": "cpu",
        "environment": {
            "mmard": "0.1.0", "commit": "0" * 40, "commits": ["0" * 40], "python": "3.11.7",
            "versions": {"torch": "2.13.0+cpu", "numpy": "2.4.6"}, "platform": "Linux x86_64",
            "cpu": "INVENTED, not measured", "cores": 2, "threads": 1, "gpus": [],
            "command": f"mmard study run all --scale {cell.scale}",
            "written": f"2026-11-22T{10 + cell.seed:02d}:00:00+00:00",
        },
    }  # fmt: skip


def _figures(cell: Cell, robust: float, draw: np.random.Generator) -> dict[str, Any]:
    clean = min(0.99, robust + 0.2 + draw.normal(0, 0.003))
    attacks = [*cell.attacks, "worst_of_" + ",".join(cell.attacks)]
    made = {attack: _figure(attack, robust + 0.004 * (len(attacks) - 1 - k)) for k, attack in enumerate(attacks)}
    return {"clean": _figure("clean", clean), **made, "robust": _figure(attacks[-1], robust)}


def _figure(attack: str, accuracy: float) -> dict[str, Any]:
    correct = round(max(0.0, min(1.0, accuracy)) * IMAGES)
    attacked = attack != "clean"
    # The same images are the easy ones for every network, but for some.
    order = np.random.default_rng(_number(attack) + correct).permutation(40)
    right = np.arange(IMAGES) < correct
    at = np.arange(IMAGES)[max(0, correct - 20) : max(0, correct - 20) + 40]
    right[at] = right[at][order[: len(at)]] if len(at) == 40 else right[at]
    return {
        "accuracy": correct / IMAGES, "attack": attack, "label": f"{attack.upper()} (invented)",
        "norm": "linf" if attacked else None, "eps": 0.15 if attacked else None, "n": IMAGES,
        "correct": correct, "seconds": 1.0, "seed": 0, "batch_size": 250, "weights": "w" * 64, "data": "d" * 64,
        "images": "INVENTED, not measured", "right": b64encode(np.packbits(right).tobytes()).decode(),
    }  # fmt: skip


def _boundary(draw: np.random.Generator, guided: bool) -> dict[str, Any]:
    def said(margin: float, distance: float) -> dict[str, float]:
        return {
            "mean_margin": margin + draw.normal(0, 0.05), "wrong": max(0.0, 0.3 - 0.05 * margin),
            "entropy": 0.9 - 0.1 * margin + draw.normal(0, 0.01), "distance_first_order": distance,
        }  # fmt: skip

    near = 0.8 if guided else 0.0
    states = ("own", "usual", "plain", "test")
    return {
        state: {"teacher": said(3.0 - near, 0.11 - 0.04 * near), "student": said(0.9, 0.03), "agree": 0.8}
        for state in states
    }


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def _share(text: str) -> float:
    return _number(text) / 0xFFFFFFFF


def text_of(cell: str | Entry) -> str:
    """A cell of a table as plain text, with a star where it is strong."""
    return cell if isinstance(cell, str) else cell.text + "*" * cell.strong
