"""An evaluation with all that it can find beside accuracies.

Images are attacked once: the figures, the classes, the margins, the calibration and the examples of an attack are of
the same adversarial images. Everything is handed to a `Keeper` as soon as it is known, so that an evaluation that is
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
from mmard.attacks import Trial, Untargeted
from mmard.balls import Budget
from mmard.data.image_set import ImageSet
from mmard.errors import Refused
from mmard.evaluation import checks
from mmard.evaluation.boundary import boundary
from mmard.evaluation.checks.checked import skipped
from mmard.evaluation.curves import eps_label, over_eps, over_steps, radii, steps_label
from mmard.evaluation.evaluate import Measured, Progress, Subject, labelled
from mmard.evaluation.findings import ALSO, Finding, Used, Views, Wanted, by_class, calibration, examples, margins
from mmard.evaluation.suite import measure, read
from mmard.evaluation.transfer import Source, measure_transfer
from mmard.files import read_json, weights_hash
from mmard.modes import evaluating, frozen
from mmard.run import Run, environment

# keeping --------------------------------------------------------------------------------------------------------------
# Records of an evaluation, written the moment they are known.


class Keeper:
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
        if held.get("weights") != finding.subject.weights:
            return findings
        written = held["environment"]["written"]
        made = {f["check"]: {"made": written, **f} for f in held["findings"] if f["verdict"] != "skipped"}
        return [made.get(f["check"], f) if f["verdict"] == "skipped" else f for f in findings]


# examine --------------------------------------------------------------------------------------------------------------


def examine(
    model: nn.Module,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    look: Wanted,
    keep: Keeper,
    *,
    split: str,
    which: str,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
    folder: Path | None = None,
    processes: int = 1,
    engine: str = "fast",
) -> list[Measured]:
    """The figures of `suite.measure`, the suspicion checks, and what else is asked for.

    Args:
        model, images, specs, budget, split, which, seed, batch_size, progress, folder, processes, engine: as in
            `suite.measure`.
        look: what else to find. Curves, boundary and examples are of the first attack that hands out its examples,
            margins and calibration of each such attack, classes of every attack.
        keep: given each figure and each finding as soon as it is known.

    Raises:
        Refused: as `suite.measure`.
    """
    trials = [attack for attack in read(specs, budget, images.num_classes) if isinstance(attack, Trial)]
    subject = Subject.of(model, images, split=split, which=which, seed=seed, batch_size=batch_size)
    every: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    known = checks.cheap(model, images, budget, **every)
    hold = bool({"boundary", "examples"} & set(look.also))
    views = Views(images, hold=hold)
    try:
        measured = measure(
            model,
            images,
            specs,
            budget,
            split=split,
            which=which,
            progress=progress,
            folder=folder,
            processes=processes,
            witness=views if look.also else None,
            finished=keep.score,
            engine=engine,
            **every,
        )
    except RuntimeError as error:
        marks = [each.check for each in known if each.suspicious]
        if not marks:
            raise
        # What the checks saw is the likely cause, and what an attack trips over says nothing to its user.
        keep.finding(checked(known, subject, budget, 0.0))
        expected, got = (
            "a network that an attack can ask",
            f"one marked {', '.join(marks)} ({str(error).splitlines()[0]})",
        )
        raise Refused(f"attacks on {which}", expected=expected, got=got, mend="see docs/checks.md") from error
    figures = {m.score.attack: m for m in measured}
    found = _Search(model, images, budget, look, subject, views, figures, progress, engine)
    began = time.monotonic()
    if "checks" in look.also:
        made = checks.thorough(model, images, budget, measured=measured, known=known, progress=progress, **every)
    else:
        made = checks.compared(measured, known=known)
    keep.finding(checked([*known, *made], subject, budget, time.monotonic() - began))
    for name in look.also:
        if name != "checks":
            for finding in found.by_name[name](trials):
                keep.finding(finding)
    return measured


def examine_transfer(
    model: nn.Module,
    source: Source,
    images: ImageSet,
    specs: Sequence[str],
    budget: Budget,
    keep: Keeper,
    *,
    seed: int = 0,
    batch_size: int = 250,
    **every: Any,
) -> list[Measured]:
    """The figures of `transfer.measure_transfer`, and the checks that need no attack on the network itself."""
    every |= {"seed": seed, "batch_size": batch_size}
    known = checks.cheap(model, images, budget, seed=seed, batch_size=batch_size)
    measured = measure_transfer(model, source, images, specs, budget, **every)
    for each in measured:
        keep.score(each)
    score = measured[0].score
    subject = Subject(**{name: getattr(score, name) for name in Subject.__dataclass_fields__})
    keep.finding(checked([*known, *checks.compared(measured, known=known)], subject, budget, 0.0))
    return measured


def checked(findings: Sequence[checks.Checked], subject: Subject, budget: Budget, seconds: float) -> Finding:
    """The outcome of suspicion checks as one finding; they are of a network in a ball, and of no one attack."""
    made = {f.check: f for f in findings}
    not_made = [skipped(name, "needs attacks of its own: --also checks") for name in checks.CHECKS if name not in made]
    made |= {f.check: f for f in not_made}
    used = Used(norm=budget.norm, eps=budget.eps)
    return Finding("checks", subject, used, {"findings": [made[name].record() for name in checks.CHECKS]}, seconds)


class _Search:
    """One method for each name of `ALSO` but the checks: from the attacks to findings, one after the other."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        budget: Budget,
        look: Wanted,
        subject: Subject,
        views: Views,
        figures: dict[str, Measured],
        progress: Progress | None,
        engine: str,
    ) -> None:
        self._model, self._images, self._budget, self._look = model, images, budget, look
        self._subject, self._views, self._figures, self._progress = subject, views, figures, progress
        self._engine = engine
        self.by_name: dict[str, Callable[[Sequence[Trial]], Iterator[Finding]]] = {
            name: getattr(self, name) for name in ALSO if name != "checks"
        }

    def classes(self, trials: Sequence[Trial]) -> Iterator[Finding]:
        """By every figure: those of ensembles, and the worst case, from their verdicts."""
        handed_out = {trial.spec for trial in trials}
        for name, measured in self._figures.items():
            if name == "clean" or "." in name.partition("@")[0]:
                continue  # "aa.square" and its like are stages of what follows
            logits = self._views.under(name) if name in handed_out else None
            clean = self._figures["clean"].mask
            began = time.monotonic()
            body = by_class(self._images, clean, measured.mask, self._views.clean, logits)
            yield self._finding("classes", Used.of(measured), body, began)

    def margins(self, trials: Sequence[Trial]) -> Iterator[Finding]:
        """Under each attack that hands out its examples."""
        for trial in trials:
            began = time.monotonic()
            body = margins(self._views.clean, self._views.under(trial.spec), self._images.y)
            yield self._finding("margins", Used.of(self._figures[trial.spec]), body, began)

    def calibration(self, trials: Sequence[Trial]) -> Iterator[Finding]:
        """Under each attack that hands out its examples."""
        for trial in trials:
            began = time.monotonic()
            body = calibration(self._views.clean, self._views.under(trial.spec), self._images.y)
            yield self._finding("calibration", Used.of(self._figures[trial.spec]), body, began)

    def examples(self, trials: Sequence[Trial]) -> Iterator[Finding]:
        """Under the first attack."""
        began, spec = time.monotonic(), trials[0].spec
        teacher = None if self._look.teacher is None else self._look.teacher.module
        body, arrays = examples(self._images, self._views, spec, teacher)
        yield self._finding("examples", Used.of(self._figures[spec]), body, began, arrays)

    def boundary(self, trials: Sequence[Trial]) -> Iterator[Finding]:
        """On the images of the evaluation under the first attack, and on training images under the training's own."""
        assert self._look.teacher is not None
        trial, own = trials[0], self._look.own
        x = self._images.x.float() / 255
        began = time.monotonic()
        body = self._proximity(x, self._attacked_all(trial), self._images.y)
        yield self._finding("boundary", Used.of(self._figures[trial.spec]), body, began)
        if own is None:
            return
        began = time.monotonic()
        images, size = own.images, self._subject.batch_size
        batches = (labelled(self._model, images, slice(i, i + size)) for i in range(0, len(images), size))
        x_adv = [own.attack(x, y).detach().float().cpu() for x, y in batches]
        body = self._proximity(images.x.float() / 255, torch.cat(x_adv), images.y)
        subject = replace(self._subject, split="train", n=len(images), data=images.fingerprint(), images=images.origin)
        used = Used("training", own.label, own.budget.norm, own.budget.eps)
        yield replace(self._finding("boundary", used, body, began), subject=subject)

    def eps(self, trials: Sequence[Trial]) -> Iterator[Finding]:
        """Of the first attack."""
        trial, began = trials[0], time.monotonic()
        body = over_eps(
            self._model,
            self._images,
            trial,
            self._figures["clean"],
            self._figures[trial.spec],
            radii=radii(self._budget, self._images.image_shape),
            progress=self._progress,
            engine=self._engine,
        )
        used = Used(trial.spec, eps_label(trial, self._budget.eps), self._budget.norm)
        yield self._finding("curve", used, body, began)

    def steps(self, trials: Sequence[Trial]) -> Iterator[Finding]:
        """Of the first attack that takes several."""
        trial = next(each for each in trials if each.attack.steps > 1)
        began = time.monotonic()
        body = over_steps(
            self._model, self._images, trial, self._figures["clean"], self._budget, progress=self._progress
        )
        used = Used(trial.spec, steps_label(trial), self._budget.norm, self._budget.eps)
        yield self._finding("curve", used, body, began)

    def _proximity(self, clean: Tensor, attacked: Tensor, y: Tensor) -> dict[str, Any]:
        teacher = self._look.teacher
        assert teacher is not None
        body = boundary(
            self._model,
            teacher.module,
            teacher.source,
            clean,
            attacked,
            y,
            self._budget.norm,
            seed=self._subject.seed,
            batch_size=self._subject.batch_size,
            progress=self._progress,
        )
        return body | {"teacher_weights": weights_hash(teacher.module)}

    def _attacked_all(self, trial: Trial) -> Tensor:
        """Every image attacked, those too that are misread as they are, as a training attacks them."""
        x_adv, size = self._views.x_adv(trial.spec), self._subject.batch_size
        misread = np.flatnonzero(~self._figures["clean"].mask)
        with evaluating(self._model), frozen(self._model):
            for batch, first in enumerate(range(0, len(misread), size)):
                rows = torch.from_numpy(misread[first : first + size])
                x, y = labelled(self._model, self._images, rows)
                generator = seeds.generator(x.device, self._subject.seed, "boundary", trial.spec, batch)
                found = trial.attack(self._model, Untargeted(y, trial.loss), x, self._budget, generator=generator)
                x_adv[rows] = found.float().cpu()
        return x_adv

    def _finding(
        self, kind: str, used: Used, body: dict[str, Any], began: float, arrays: dict[str, Any] | None = None
    ) -> Finding:
        return Finding(kind, self._subject, used, body, time.monotonic() - began, arrays or {})
