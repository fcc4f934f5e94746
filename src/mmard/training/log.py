"""What a training says of itself: means over the images of an epoch, and the same events for TensorBoard and others."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmard.errors import Refused, needs_extra, unknown
from mmard.files import write_text, writing_into
from mmard.run import LOGGED, Event, Run
from mmard.training.step import Outcome, Step


class Tally:
    """Sums over the steps of an epoch so far, kept where the step computed them, so that no step waits for a GPU."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._sums: dict[str, Tensor] = {}

    def restore(self, sums: Mapping[str, float]) -> None:
        """Go on from what `totals` said; from nothing with an empty mapping."""
        self._sums = {name: torch.tensor(total, dtype=torch.float64) for name, total in sums.items()}

    def count(self, outcome: Outcome) -> dict[str, Tensor]:
        """Add a step; the means of its loss and of its terms.

        Raises:
            Refused: for a term that has the name of another thing in the log.
        """
        batch = outcome.batch
        taken = sorted(outcome.terms.keys() & LOGGED)
        if taken:
            where = f"term {taken[0]!r} of method {self._step.method.name}"
            raise Refused(where, expected="a name that the log does not use", got=repr(taken[0]), mend="rename it")
        means = {"loss": outcome.loss.detach(), **{name: term.detach().mean() for name, term in outcome.terms.items()}}
        for name, mean in means.items():
            self._add(name, mean * len(batch.y))
        self._add("images", torch.tensor(len(batch.y)))
        if batch.x_adv is not None:
            reach = self._step.budget.distance(batch.x_adv.value, batch.x.value).amax().double()
            before = self._sums.get("reach", reach)
            self._sums["reach"] = torch.maximum(before.to(reach.device), reach)
        return means

    def totals(self) -> dict[str, float]:
        """The sums. The terms' are those of all processes already; the largest reach is made so here."""
        totals = {name: total.item() for name, total in self._sums.items()}
        if self._step.ranks is not None and "reach" in totals:
            (totals["reach"],) = self._step.ranks.largest(totals["reach"])
        return totals

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double()
        self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value


NO_AMOUNTS = frozenset(("kind", "step", "epoch", "epoch_step", "best"))
"""Keys of an event that say what and where it is rather than how much."""


class TensorBoard:
    """An observer that writes events files into a folder.

    Steps go under "step/", the means of epochs and the validation under "epoch/", both over the number of steps. A run
    that resumes hides what was written after the step that it resumes from.

    Args:
        folder: where the events files go.

    Raises:
        Refused: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._make = writer_class()
        self.folder = folder
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write the numbers of one event.

        Raises:
            Refused: if the folder cannot be written to.
        """
        with writing_into(self.folder):
            self._write(event)

    def _write(self, event: Event) -> None:
        kind, step = event["kind"], event.get("step", 0)
        if self._writer is None and kind not in ("tick", "note"):
            # Written only now, when it is known where the run stands: from here on earlier points are void.
            self._writer = self._make(log_dir=str(self.folder), purge_step=step + 1)
        if kind not in ("step", "epoch"):
            return
        for name, value in event.items():
            if name not in NO_AMOUNTS:
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if kind == "epoch":
            self._writer.flush()

    def close(self) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()


def writer_class() -> Any:
    """The writer of PyTorch, which needs the package tensorboard.

    Raises:
        Refused: if that is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise needs_extra("tensorboard", "tb", "writing TensorBoard events") from None
    return SummaryWriter


class CsvLog:
    """An observer that keeps epochs.csv in the run folder: a line for each epoch, a column for each number."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, event: Event) -> None:
        """Write the whole file anew, so that a resumed run has no line twice."""
        if event["kind"] != "epoch":
            return
        epochs = [each for each in self.run.log() if each["kind"] == "epoch"]
        names = list(
            dict.fromkeys(name for each in epochs for name in each if name not in ("kind", "epoch_step", "best"))
        )
        text = io.StringIO()
        table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(epochs)
        write_text(self.run.path / "epochs.csv", text.getvalue())

    def close(self) -> None:
        """Nothing is open."""


class _Remote:
    """What observers for other people's trackers share: the run is found again by the name of its folder's place."""

    def __init__(self, run: Run, package: str) -> None:
        self.run = run
        try:
            self.package: Any = import_module(package)
        except ImportError:
            raise needs_extra(package, package, f"--log {package}") from None
        self.key = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:16]
        self.tracked: Any = None

    def __call__(self, event: Event) -> None:
        """Hand on the numbers of a step or an epoch, over the number of steps."""
        if event["kind"] not in ("step", "epoch"):
            return
        if self.tracked is None:
            self.tracked = self.begin()
        values = {f"{event['kind']}/{name}": value for name, value in event.items() if name not in NO_AMOUNTS}
        self.put({name: value for name, value in values.items() if isinstance(value, int | float)}, event["step"])

    def begin(self) -> Any:
        """Begin to be tracked, or go on."""
        raise NotImplementedError

    def put(self, values: Mapping[str, float], step: int) -> None:
        """Hand on numbers."""
        raise NotImplementedError

    def close(self) -> None:
        """Tell the tracker that it was all for now."""


class WandbLog(_Remote):
    """An observer for Weights & Biases, by its own library: project mmard, or what WANDB_PROJECT says."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, "wandb")

    def begin(self) -> Any:
        project = os.environ.get("WANDB_PROJECT", "mmard")
        where = {"dir": str(self.run.path), "id": self.key, "resume": "allow"}
        return self.package.init(project=project, name=self.run.path.name, config=dict(self.run.config), **where)

    def put(self, values: Mapping[str, float], step: int) -> None:
        self.tracked.log(dict(values), step=step)

    def close(self) -> None:
        if self.tracked is not None:
            self.tracked.finish()


class MlflowLog(_Remote):
    """An observer for MLflow, by its own library; where it writes is what MLFLOW_TRACKING_URI says."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, "mlflow")

    def begin(self) -> Any:
        file = self.run.path / "mlflow-run"
        if file.is_file():
            return self.package.start_run(run_id=file.read_text(encoding="utf-8").strip())
        tracked = self.package.start_run(run_name=self.run.path.name)
        write_text(file, tracked.info.run_id + "\n")
        self.package.log_params({name: str(value)[:500] for name, value in self.run.config.items()})
        return tracked

    def put(self, values: Mapping[str, float], step: int) -> None:
        self.package.log_metrics(dict(values), step=step)

    def close(self) -> None:
        if self.tracked is not None:
            self.package.end_run()


LOGS: dict[str, Callable[[Run], CsvLog | WandbLog | MlflowLog]] = {
    "csv": CsvLog,
    "wandb": WandbLog,
    "mlflow": MlflowLog,
}
"""What `--log` may name."""


def named_logs(names: str) -> list[str]:
    """The names in a text with commas between them.

    Raises:
        Refused: for one that is none.
    """
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in LOGS:
            raise unknown("log", name, LOGS)
    return found
