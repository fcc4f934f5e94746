"""Workers as jobs of a cluster, by submitit (the extra "cluster"), whose scheduler decides when and where they run.

A job is one worker of `running.take_part`: it makes cell after cell until none is left that it could make. As many jobs
as are submitted share the cells through the runs folder, which all of them must see. One whose time is over is queued
again, and goes on from what was saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmard.errors import needs_extra, require, unknown
from mmard.study.place import ASIDE
from mmard.study.running import Told, Work, take_part

LAUNCHERS = {"slurm": "slurm", "submitit-local": "local"}
"""What a launcher is called here, and by submitit."""


@dataclass(frozen=True)
class Wishes:
    """What is asked of the scheduler for each job.

    Attributes:
        partition: of SLURM; "" for its default.
        minutes: until a job is ended and queued again.
        cpus, gpus: for each job.
    """

    partition: str = ""
    minutes: int = 240
    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Part:
    """What a job does; submitit calls it, and asks it what to queue again when its time is over."""

    work: Work

    def __call__(self) -> dict[str, int]:
        """Make cells; how many of them were made, and failed."""
        import torch

        from mmard.training.fit import Interrupted

        torch.set_num_threads(self.work.place.threads)
        made = {"done": 0, "failed": 0}

        def say(told: Told) -> None:
            if told.kind in ("began", "done", "failed"):
                print(f"{told.kind} {told.cell} {told.text}".rstrip(), flush=True)
            if told.kind in made:
                made[told.kind] += 1

        try:
            take_part(self.work, say)
        except Interrupted:
            raise KeyboardInterrupt from None
        return made

    def checkpoint(self) -> Any:
        """The rest of the work is the same work: what is finished is skipped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(work: Work, jobs: int, launcher: str, wishes: Wishes) -> Sequence[Any]:
    """Submit so many jobs that share the work; submitit's handles of them.

    Raises:
        Refused: for a launcher that is none, where submitit is not installed, or where there is no such scheduler.
    """
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, ("local", *LAUNCHERS))
    require(jobs >= 1, "jobs", expected="at least 1", got=jobs)
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise needs_extra("submitit", "cluster", f"launcher {launcher}") from None
    kind = LAUNCHERS[launcher]
    place = work.place
    data_dir = None if place.data_dir is None else str(Path(place.data_dir).resolve())
    place = replace(place, runs=place.runs.resolve(), data_dir=data_dir, threads=wishes.cpus)
    folder = place.runs / ASIDE / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_absent(kind)
    executor = AutoExecutor(folder=folder, cluster=kind)
    asked: dict[str, Any] = {"timeout_min": wishes.minutes, "cpus_per_task": wishes.cpus, "name": "mmard"}
    if wishes.gpus:
        asked["gpus_per_node"] = wishes.gpus
    if wishes.partition:
        asked["slurm_partition"] = wishes.partition
    executor.update_parameters(**asked)
    part = Part(replace(work, place=place))
    with executor.batch():
        handles = [executor.submit(part) for _ in range(jobs)]
    return handles


def _refuse_absent(kind: str) -> None:
    """Refuse SLURM where there is none; submitit would fail with an error of its own."""
    from shutil import which

    require(
        kind != "slurm" or which("srun") is not None,
        "launcher slurm",
        expected="a machine that submits to SLURM",
        got="no srun here",
        mend="--launcher local uses the cores and GPUs of this machine",
    )
