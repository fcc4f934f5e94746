"""Run folders with records and masks made up for a test, as an evaluation leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmard.evaluation.score import Score
from mmard.files import write_json
from mmard.run import Run
from mmard.settings import Settings

PGD = "PGD-20 (CE, step 2/255, uniform start, 1 restart)"
N = 100


def folder(path: Path, method: str = "rslad", seed: int = 0, **settings: Any) -> Run:
    """A run that was never trained."""
    said = {"method": method, "seed": seed, "data": "digits", "eps": "8/255", **settings}
    if "teacher" in said:
        made = Settings.resolve({"student": "cnn-4", **said})
    else:
        made = Settings.resolve({"model": "cnn-4", **said})
    path.mkdir(parents=True)
    write_json(path / "config.json", made.as_config())
    return Run(path)


def verdicts(correct: int, n: int = N, shift: int = 0) -> NDArray[np.bool_]:
    """So many of n read rightly, in a row from `shift` on."""
    return np.roll(np.arange(n) < correct, shift)


def record(run: Run, correct: int, attack: str = "pgd-20", *, shift: int = 0, written: str = "1", **fields: Any) -> str:
    """Write one figure into a run folder; its slug."""
    clean = attack == "clean"
    facts: dict[str, Any] = {
        "label": "no attack" if clean else PGD,
        "norm": None if clean else "linf",
        "eps": None if clean else 8 / 255,
        "split": "test",
        "n": N,
        "seconds": 1.0,
        "seed": 0,
        "batch_size": 250,
        "weights": f"w{run.path.name}",
        "data": "d" * 64,
        "which": "best",
        "images": "pictures",
    }
    extra = {key: fields.pop(key) for key in ("made_on", "made_on_weights") if key in fields}
    score = Score(attack=attack, correct=correct, **(facts | fields))
    slug = score.slug + "".join(extra.values())
    run.save_score(
        slug, score.record() | extra | {"environment": {"written": written}}, verdicts(correct, score.n, shift)
    )
    return slug
