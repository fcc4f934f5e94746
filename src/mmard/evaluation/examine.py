"""An evaluation with all that it can find beside accuracies.

Images are attacked once: the figures, the classes, the margins, the calibration and the examples of an attack are of
the same adversarial images. Everything is handed to a `Recorder` as soon as it is known, so that an evaluation that is
stopped keeps what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmard import seeds
from mmard.attacks import UntargetedPGD
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation import checks
from mmard.evaluation.boundary import boundary
from mmard.evaluation.checks.checked import skipped
from mmard.evaluation.curves import eps_label, over_eps, over_steps, radii, steps_label
from mmard.evaluation.evaluate import Evaluated, Measured, Protocol, labelled, perturbed
from mmard.evaluation.findings import (
    ALSO,
    Finding,
    FindingsPlan,
    PredictionsByAttack,
    Used,
    by_class,
    calibration,
    examples,
    margins,
)
from mmard.evaluation.journal import Progress, cut
from mmard.evaluation.multiprocess import measure
from mmard.evaluation.transfer import Surrogate, measure_transfer
from mmard.files import read_json, weights_hash
from mmard.modes import evaluating, frozen
from mmard.run import Run, environment


class Recorder:
    """Collects figures and findings with the environment they were made in, and writes them into a folder if given one.

    Args:
        run: the folder; None keeps them in memory alone.

    Attributes:
        scores, findings: the records so far.
        measured, found: the figures and findings that these are of, with their masks and arrays.
    """

    def __init__(self, run: Run | None) -> None:
        self.run = run
        self.scores: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.measured: list[Measured] = []
        self.found: list[Finding] = []

    @cached_property
    def _here(self) -> dict[str, Any]:
        return environment()

    def score(self, measured: Measured) -> None:
        """Keep a figure."""
        record = measured.score.record() | {"environment": self._here}
        if self.run is not None:
            self.run.save_score(measured.score.slug, record, measured.mask)
        self.scores.append(record)
        self.measured.append(measured)

    def finding(self, finding: Finding) -> None:
        """Keep a finding. A check that was skipped now and made before, on the same weights and images, stays."""
        record = finding.record() | {"environment": self._here}
        if self.run is not None:
            if finding.kind == "checks":
                record["findings"] = self._with_earlier(finding, record["findings"])
            self.run.save_finding(finding.slug, record, finding.arrays)
        self.findings.append(record)
        self.found.append(finding)

    def _with_earlier(self, finding: Finding, findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self.run is not None
        file = self.run.findings_folder / f"{finding.slug}.json"
        held = read_json(file) if file.is_file() else {}
        if held.get("weights") != finding.evaluated.weights:
            return findings
        written = held["environment"]["written"]
        made = {f["check"]: {"made": written, **f} for f in held["findings"] if f["verdict"] != "skipped"}
        return [made.get(f["check"], f) if f["verdict"] == "skipped" else f for f in findings]


def examine(
    model: nn.Module,
    images: ImageSet,
    protocol: Protocol,
    plan: FindingsPlan,
    record: Recorder,
    *,
    split: str,
    which: str,
    progress: Progress | None = None,
    folder: Path | None = None,
    processes: int = 1,
) -> list[Measured]:
    """The figures of `multiprocess.measure`, the suspicion checks, and what else is asked for.

    Args:
        model, images, protocol, split, which, progress, folder, processes: as in `multiprocess.measure`.
        plan: what else to find. Curves, boundary and examples are of the first attack that hands out its examples,
            margins and calibration of each such attack, classes of every attack.
        record: given each figure and each finding as soon as it is known.

    Raises:
        Refused: as `evaluate.measure`.
    """
    evaluated = Evaluated.of(model, images, protocol, split=split, which=which)
    known = checks.cheap(model, images, protocol)
    views = PredictionsByAttack(images, hold=bool({"boundary", "examples"} & set(plan.also)))
    try:
        measured = measure(
            model,
            images,
            protocol,
            split=split,
            which=which,
            progress=progress,
            folder=folder,
            processes=processes,
            witness=views if plan.also else None,
            finished=record.score,
        )
    except RuntimeError as error:
        marks = [each.check for each in known if each.suspicious]
        if not marks:
            raise
        # What the checks saw is the likely cause, and what an attack trips over says nothing to its user.
        record.finding(checked(known, evaluated, protocol.budget, 0.0))
        expected, got = (
            "a network that an attack can ask",
            f"one marked {', '.join(marks)} ({str(error).splitlines()[0]})",
        )
        raise Refused(f"attacks on {which}", expected=expected, got=got, mend="see docs/checks.md") from error
    found = _Search(model, images, protocol, plan, evaluated, views, measured, progress)
    began = time.monotonic()
    if "checks" in plan.also:
        made = checks.thorough(model, images, protocol, measured=measured, known=known, progress=progress)
    else:
        made = checks.compared(measured, known=known)
    record.finding(checked([*known, *made], evaluated, protocol.budget, time.monotonic() - began))
    for name in plan.also:
        if name != "checks":
            for finding in found.by_name[name]():
                record.finding(finding)
    return measured


def examine_transfer(
    model: nn.Module,
    surrogate: Surrogate,
    images: ImageSet,
    protocol: Protocol,
    record: Recorder,
    *,
    split: str,
    which: str,
    progress: Progress | None = None,
) -> list[Measured]:
    """The figures of `transfer.measure_transfer`, and the checks that need no attack on the network itself."""
    known = checks.cheap(model, images, protocol)
    measured = measure_transfer(model, surrogate, images, protocol, split=split, which=which, progress=progress)
    for each in measured:
        record.score(each)
    made = [*known, *checks.compared(measured, known=known)]
    record.finding(checked(made, Evaluated.of_score(measured[0].score), protocol.budget, 0.0))
    return measured


def checked(findings: Sequence[checks.Checked], evaluated: Evaluated, budget: Budget, seconds: float) -> Finding:
    """The outcome of suspicion checks as one finding; they are of a network in a ball, and of no one attack."""
    made = {f.check: f for f in findings}
    not_made = [skipped(name, "needs attacks of its own: --also checks") for name in checks.CHECKS if name not in made]
    made |= {f.check: f for f in not_made}
    used = Used(norm=budget.norm, eps=budget.eps)
    return Finding("checks", evaluated, used, {"findings": [made[name].record() for name in checks.CHECKS]}, seconds)


class _Search:
    """One method for each name of `ALSO` but the checks: the findings of that name, one after the other."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        protocol: Protocol,
        plan: FindingsPlan,
        evaluated: Evaluated,
        views: PredictionsByAttack,
        measured: Sequence[Measured],
        progress: Progress | None,
    ) -> None:
        self._model, self._images, self._protocol, self._plan = model, images, protocol, plan
        self._evaluated, self._views, self._measured, self._progress = evaluated, views, measured, progress
        self._clean = measured[0]
        self._climbs = [(m.attack, m) for m in measured if isinstance(m.attack, UntargetedPGD)]
        self.by_name: dict[str, Callable[[], Iterator[Finding]]] = {
            name: getattr(self, name) for name in ALSO if name != "checks"
        }

    def classes(self) -> Iterator[Finding]:
        """By every figure: those of AutoAttack, and the worst case, from their verdicts."""
        columns = {attack.spec for attack in self._protocol.attacks}
        for measured in self._measured[1:]:
            name = measured.score.attack
            if measured.attack is not None and name not in columns:
                continue  # "aa.square" and its like are stages of what follows
            logits = self._views.under(name) if isinstance(measured.attack, UntargetedPGD) else None
            began = time.monotonic()
            body = by_class(self._images, self._clean.mask, measured.mask, self._views.clean, logits)
            yield self._finding("classes", Used.of(measured), body, began)

    def margins(self) -> Iterator[Finding]:
        """Under each attack that hands out its examples."""
        for attack, measured in self._climbs:
            began = time.monotonic()
            body = margins(self._views.clean, self._views.under(attack.spec), self._images.y)
            yield self._finding("margins", Used.of(measured), body, began)

    def calibration(self) -> Iterator[Finding]:
        """Under each attack that hands out its examples."""
        for attack, measured in self._climbs:
            began = time.monotonic()
            body = calibration(self._views.clean, self._views.under(attack.spec), self._images.y)
            yield self._finding("calibration", Used.of(measured), body, began)

    def examples(self) -> Iterator[Finding]:
        """Under the first attack."""
        began, (attack, measured) = time.monotonic(), self._climbs[0]
        teacher = None if self._plan.teacher is None else self._plan.teacher.module
        body, arrays = examples(self._images, self._views, attack.spec, teacher)
        yield self._finding("examples", Used.of(measured), body, began, arrays)

    def boundary(self) -> Iterator[Finding]:
        """On the images of the evaluation under the first attack, and on training images under the training's own."""
        (attack, measured), own = self._climbs[0], self._plan.own
        began = time.monotonic()
        body = self._proximity(self._images, self._attacked_all(attack))
        yield self._finding("boundary", Used.of(measured), body, began)
        if own is None:
            return
        began = time.monotonic()
        rows = (torch.from_numpy(batch) for batch in cut(np.arange(len(own.images)), self._protocol.batch_size))
        x_adv = [own.attack(*labelled(self._model, own.images, batch)).detach().float().cpu() for batch in rows]
        body = self._proximity(own.images, torch.cat(x_adv))
        evaluated = replace(
            self._evaluated,
            split="train",
            n=len(own.images),
            data=own.images.fingerprint(),
            images=own.images.origin,
        )
        used = Used("training", own.label, own.budget.norm, own.budget.eps)
        yield replace(self._finding("boundary", used, body, began), evaluated=evaluated)

    def eps(self) -> Iterator[Finding]:
        """Of the first attack."""
        (attack, measured), budget, began = self._climbs[0], self._protocol.budget, time.monotonic()
        body = over_eps(
            self._model,
            self._images,
            attack,
            self._protocol,
            self._clean,
            measured,
            radii=radii(budget, self._images.image_shape),
            progress=self._progress,
        )
        yield self._finding("curve", Used(attack.spec, eps_label(attack, budget.eps), budget.norm), body, began)

    def steps(self) -> Iterator[Finding]:
        """Of the first attack that takes several."""
        attack = next(attack for attack, _ in self._climbs if attack.climb.steps > 1)
        began, budget = time.monotonic(), self._protocol.budget
        body = over_steps(self._model, self._images, attack, self._protocol, self._clean, progress=self._progress)
        used = Used(attack.spec, steps_label(attack), budget.norm, budget.eps)
        yield self._finding("curve", used, body, began)

    def _proximity(self, images: ImageSet, x_adv: Tensor) -> dict[str, Any]:
        teacher = self._plan.teacher
        assert teacher is not None
        body = boundary(
            self._model,
            teacher.module,
            teacher.source,
            images.inputs(),
            x_adv,
            images.y,
            self._protocol.budget.norm,
            seed=self._protocol.seed,
            batch_size=self._protocol.batch_size,
            progress=self._progress,
        )
        return body | {"teacher_weights": weights_hash(teacher.module)}

    def _attacked_all(self, attack: UntargetedPGD) -> Tensor:
        """Every image attacked, those too that are misread as they are, as a training attacks them."""
        x_adv, protocol = self._views.x_adv(attack.spec), self._protocol
        misread = np.flatnonzero(~self._clean.mask)
        with torch.inference_mode(False), evaluating(self._model), frozen(self._model):
            for number, batch in enumerate(cut(misread, protocol.batch_size)):
                rows = torch.from_numpy(batch)
                x, y = labelled(self._model, self._images, rows)
                generator = seeds.generator(x.device, protocol.seed, "boundary", attack.spec, number)
                found = perturbed(attack, self._model, x, y, protocol.budget, generator, "boundary")
                x_adv[rows] = found.float().cpu()
        return x_adv

    def _finding(
        self, kind: str, used: Used, body: dict[str, Any], began: float, arrays: dict[str, Any] | None = None
    ) -> Finding:
        return Finding(kind, self._evaluated, used, body, time.monotonic() - began, arrays or {})
