"""Time of our AutoAttack beside its authors' code, on the same network and images, with a count of differing verdicts.

    pip install "mmard[autoattack]"
    python benchmarks/autoattack.py                                  a small network is trained on digits first
    python benchmarks/autoattack.py runs/s --norm l1 --eps 12        a run of yours, on its own test images

Both are run in turn in one process, on one thread of the CPU, the order changing from repeat to repeat, and CPU time
of the process is taken after every attack. What is reported is the ratio of the reference's time to ours: the median of
the repeats with the smallest and the largest. Everything goes into a dated JSON file, with hardware, versions, commit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from mmard.api import train
from mmard.attacks.authors import NORMS, PACKAGE, installed
from mmard.attacks.autoattack import AutoAttack, shortened, standard
from mmard.balls import Budget
from mmard.data import ImageSet
from mmard.evaluation.evaluate import Protocol, measure
from mmard.files import weights_hash, write_json
from mmard.job import load_splits
from mmard.models import parameter_count
from mmard.networks import load_network
from mmard.run import Run, environment, now
from mmard.settings import Settings
from mmard.words import radius

RADII = {"linf": "0.2", "l2": "0.7", "l1": "1.2"}
"""For digits: about half of the images stand."""
Timed = tuple[dict[str, float], list[np.ndarray]]
"""Seconds and verdicts after each attack."""


def subject(run: str | None, data_dir: str | None, first: int, folder: Path) -> tuple[nn.Module, ImageSet, str]:
    """A network, images that it was not trained on, and a line on both."""
    if run is None:
        made = train("cnn-8", data="digits", method="pgd_at", epochs=8, budget=0.15, out=folder / "run", threads=1)
        assert made.splits is not None
        network, images = made.network(), made.splits.test
        line = "cnn-8 after 8 epochs of PGD-AT (linf 0.15) on digits"
    else:
        config = Run.open(run).config
        settings = Settings.resolve({"data": config["data"], "data_dir": data_dir or config.get("data_dir")})
        images = load_splits(settings).test
        found = load_network(run, num_classes=images.num_classes, image_shape=images.image_shape)
        network, line = found.module, f"{found.source}, {images.origin}"
    return network.eval(), images.take(slice(0, first)), line


def ours(model: nn.Module, images: ImageSet, budget: Budget, ensemble: AutoAttack, batch: int, engine: str) -> Timed:
    """Our seconds and verdicts."""
    stamps: dict[str, float] = {}

    def told(name: str, *_: int) -> None:
        stamps[name] = time.process_time()

    protocol = Protocol((ensemble,), budget, batch_size=batch, engine=engine)
    found = measure(model, images, protocol, split="test", which="", progress=told)
    masks = {name: m.mask for name, m in zip(ensemble.attacks, found[1:-1], strict=True)}
    return _steps(stamps["clean"], {name: stamps.get(name, 0.0) for name in ensemble.attacks}), list(masks.values())


def theirs(model: nn.Module, images: ImageSet, budget: Budget, ensemble: AutoAttack, batch: int) -> Timed:
    """Seconds and verdicts of the authors' code, in one call as its users make it."""
    import logging

    import pyautoattack
    from pyautoattack.state import EvaluationState

    logging.getLogger("auto-attack").setLevel(logging.CRITICAL)
    judge = pyautoattack.AutoAttack(model, norm=NORMS[budget.norm], eps=budget.eps, seed=0, version="standard")
    judge.attacks_to_run = list(ensemble.attacks)
    apgd, targeted, fab, square = (cast(Any, ensemble.attacks[n]) for n in ("apgd-ce", "apgd-t", "fab-t", "square"))
    for part, own in ((judge.apgd, apgd), (judge.apgd_targeted, targeted)):
        part.n_iter = part.n_iter_orig = own.steps
        part.n_iter_2, part.n_iter_min, part.size_decr = (max(int(k * own.steps), 1) for k in (0.22, 0.06, 0.03))
    judge.apgd_targeted.n_target_classes = targeted.targets
    judge.fab.n_iter, judge.fab.n_target_classes, judge.square.n_queries = fab.steps, fab.targets, square.queries
    stamps: dict[str, float] = {}
    masks: list[np.ndarray] = []
    kept = EvaluationState.add_run_attack

    def done(state: EvaluationState, attack: str) -> None:
        stamps[attack] = time.process_time()
        masks.append(state.robust_flags.numpy().copy())
        kept(state, attack)

    EvaluationState.add_run_attack = done
    try:
        began = time.process_time()
        judge.run_standard_evaluation(images.x.float() / 255, images.y, batch_size=batch)
    finally:
        EvaluationState.add_run_attack = kept
    # It stops where nobody is left.
    masks += [np.zeros(len(images), dtype=bool)] * (len(ensemble.attacks) - len(masks))
    return _steps(began, {name: stamps.get(name, 0.0) for name in ensemble.attacks}), masks


def _steps(began: float, stamps: dict[str, float]) -> dict[str, float]:
    """Seconds between stamps; 0 for an attack that had nothing to do."""
    spent = {}
    for name, stamp in stamps.items():
        spent[name] = max(stamp - began, 0.0)
        began = max(stamp, began)
    return spent | {"whole": sum(spent.values())}


def ratios(reference: list[dict[str, float]], own: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By attack: the reference's seconds over ours, of each repeat."""
    found = {}
    for name in own[0]:
        each = [theirs[name] / mine[name] for theirs, mine in zip(reference, own, strict=True) if mine[name] > 0]
        if each:
            found[name] = {"median": statistics.median(each), "smallest": min(each), "largest": max(each)}
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run folder; a small network on digits if not given")
    parser.add_argument("--data-dir", help="folder that holds the run's data, where it is no longer where it was")
    parser.add_argument("--norm", default="linf", choices=list(NORMS))
    parser.add_argument("--eps", help="radius; for digits one at which about half of the images stand")
    parser.add_argument("--first", type=int, default=100, help="images (100)")
    parser.add_argument("--batch-size", type=int, default=250, help="images attacked at once (250)")
    parser.add_argument("--repeats", type=int, default=3, help="of each (3)")
    parser.add_argument("--plain", action="store_true", help="also without a twin of the network")
    parser.add_argument("--short", action="store_true", help="30 steps, 300 queries, 3 targets: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    said = parser.parse_args()

    version = installed()
    torch.set_num_threads(1)
    budget = Budget(radius(said.eps or RADII[said.norm]), said.norm)
    with tempfile.TemporaryDirectory() as passing:
        model, images, line = subject(said.run, said.data_dir, said.first, Path(passing))
    ensemble = standard(budget, images.num_classes)
    if said.short:
        ensemble = shortened(ensemble, steps=30, queries=300, targets=3)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # as a user's network is: what theirs then computes in vain is part of the time
    variants: dict[str, Callable[[], Timed]] = {
        "ours": lambda: ours(model, images, budget, ensemble, said.batch_size, "fast"),
        PACKAGE: lambda: theirs(model, images, budget, ensemble, said.batch_size),
    }
    if said.plain:
        variants["ours, plain"] = lambda: ours(model, images, budget, ensemble, said.batch_size, "plain")
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    masks: dict[str, list[np.ndarray]] = {}
    for repeat in range(said.repeats):
        for name in (list(variants), list(variants)[::-1])[repeat % 2]:
            spent, masks[name] = variants[name]()
            seconds[name].append(spent)
            print(f"{repeat + 1}/{said.repeats} {name}: {spent['whole']:.1f} s", flush=True)
    own = [name for name in variants if name != PACKAGE]
    found: dict[str, Any] = {
        "what": f"CPU seconds of {PACKAGE} {version} over ours, one thread, in turn within one process",
        "network": {"line": line, "parameters": parameter_count(model), "weights": weights_hash(model)},
        "images": {
            "line": images.origin,
            "n": len(images),
            "shape": list(images.image_shape),
            "data": images.fingerprint(),
        },
        "budget": {"norm": budget.norm, "eps": budget.eps},
        "ensemble": ensemble.label,
        "batch_size": said.batch_size,
        "repeats": said.repeats,
        "left": {name: [int(mask.sum()) for mask in masks[name]] for name in variants},
        "flips": {
            name: [int((a != b).sum()) for a, b in zip(masks[name], masks[PACKAGE], strict=True)] for name in own
        },
        "ratio": {name: ratios(seconds[PACKAGE], seconds[name]) for name in own},
        "seconds": seconds,
        "environment": environment(),
    }
    stem = f"autoattack-{now()[:10]}-{images.image_shape[-1]}px-{budget.norm}"
    said.out.mkdir(parents=True, exist_ok=True)
    file = next(p for k in range(1, 1000) if not (p := said.out / f"{stem}-{k}.json").exists())
    write_json(file, found)
    print(f"\n{line}; {budget}, {len(images)} images, left {found['left'][PACKAGE]}, flips {found['flips']}")
    for name in own:
        for attack, ratio in found["ratio"][name].items():
            print(f"{name:14} {attack:10} {ratio['median']:5.2f}  ({ratio['smallest']:.2f} to {ratio['largest']:.2f})")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
