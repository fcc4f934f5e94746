"""Records of an evaluation, written the moment they are known."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mmard.environment import environment
from mmard.evaluation.evaluate import Measured
from mmard.evaluation.finding import Finding
from mmard.run import Run
from mmard.storage import read_json


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
