"""Epochs for others: a table in the run folder, and trackers by their own libraries, which stand-ins play here."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from little import EPOCHS, FACTS, RECIPE, STEPS, batches_of, run_in, step_of, validation
from trainings import Killed

from mmard.errors import Refused
from mmard.job import prepare
from mmard.run import Run
from mmard.settings import Settings
from mmard.training.fit import fit
from mmard.training.log import LOGS, named_logs


class Tracker:
    """What both libraries have, put down as a list of calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.info = SimpleNamespace(run_id="abc123")

    def init(self, **how: Any) -> Tracker:
        self.calls.append(("init", how))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", (values, step)))

    def finish(self) -> None:
        self.calls.append(("finish", None))

    def start_run(self, **how: Any) -> Tracker:
        self.calls.append(("start_run", how))
        return self

    def log_params(self, params: dict[str, str]) -> None:
        self.calls.append(("log_params", params))

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", (values, step)))

    def end_run(self) -> None:
        self.calls.append(("finish", None))


def trained(folder: Path, log: str, stop_after: int | None = None) -> None:
    """Train, or go on; with `stop_after`, die after so many steps."""

    def killed(event: dict[str, Any]) -> None:
        if event["step"] == stop_after:
            raise Killed

    run = Run.open(folder) if folder.exists() else run_in(folder)
    observer = LOGS[log](run)
    observers = [observer, killed]
    try:
        fit(step_of(), batches_of(), RECIPE, run, validation, facts=FACTS, observers=observers, save_seconds=0.0)
    finally:
        observer.close()


def test_a_table_has_a_line_for_each_epoch_once_whatever_was_cut(tmp_path: Path) -> None:
    trained(tmp_path / "whole", "csv")
    with pytest.raises(Killed):
        trained(tmp_path / "cut", "csv", stop_after=STEPS + 1)
    trained(tmp_path / "cut", "csv")
    whole, cut = (
        list(csv.DictReader((tmp_path / name / "epochs.csv").read_text().splitlines())) for name in ("whole", "cut")
    )
    assert [row["epoch"] for row in whole] == [str(n + 1) for n in range(EPOCHS)]
    logged = [event for event in Run.open(tmp_path / "whole").log() if event["kind"] == "epoch"]
    assert [float(row["robust"]) for row in whole] == [event["robust"] for event in logged]
    assert {"loss", "lr", "clean", "seconds"} <= set(whole[0])
    assert [{**row, "seconds": ""} for row in cut] == [{**row, "seconds": ""} for row in whole]


@pytest.mark.parametrize("log", ["wandb", "mlflow"])
def test_a_tracker_is_told_of_every_epoch_and_goes_on_where_it_was(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Tracker(), Tracker()
    monkeypatch.setitem(sys.modules, log, first)
    with pytest.raises(Killed):
        trained(tmp_path / "run", log, stop_after=STEPS + 1)
    monkeypatch.setitem(sys.modules, log, second)
    trained(tmp_path / "run", log)
    (begun, how), (again, how_again) = first.calls[0], second.calls[0]
    assert begun == again == {"wandb": "init", "mlflow": "start_run"}[log]
    if log == "wandb":
        assert how["id"] == how_again["id"]
        assert (how["project"], how["name"], how["resume"]) == ("mmard", "run", "allow")
    else:
        assert (how, how_again) == ({"run_name": "run"}, {"run_id": "abc123"})
    assert first.calls[-1] == second.calls[-1] == ("finish", None)
    told = [call[1] for tracker in (first, second) for call in tracker.calls if call[0] == "log"]
    epochs = {step: values for values, step in told if "epoch/robust" in values}
    logged = {event["step"]: event for event in Run.open(tmp_path / "run").log() if event["kind"] == "epoch"}
    assert {step: values["epoch/robust"] for step, values in epochs.items()} == {
        step: event["robust"] for step, event in logged.items()
    }


def test_names_and_packages_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_logs(" csv, wandb ,") == ["csv", "wandb"]
    with pytest.raises(Refused, match=r"log 'wandbd': expected one of csv, mlflow, wandb, .*did you mean 'wandb'"):
        prepare(Settings.resolve({"log": "csv,wandbd", "network": "cnn-4"}))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(Refused, match=r"mmard\[mlflow\]"):
        LOGS["mlflow"](run_in(tmp_path / "run"))
